"""On a GPU the public functions give what they give on a CPU, and take what lies there."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from shared.five_prompts import PROMPTS, random, sites_of
from shared.planted import activations, words
from shared.tiny import FAMILIES

from helpers import ROOT, attribution, baselines, claims, hooks, models, patching, plots, probes, prompts, scores
from helpers.hooks import Edit
from helpers.patching import Node

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    pytest.mark.usefixtures("one_thread"),
]
LIMIT = {"float32": 1e-4, "bfloat16": 5e-2}
"""How far what a GPU gives may be from what a CPU gives, as a share of its norm: sums are taken in another order."""
EMBEDDED = [models.DEFAULT_MODEL] if models.is_cached(models.find(models.DEFAULT_MODEL)) else []
SHARED = [[5, 9, 120, 33, *end] for end in ([40], [40, 41], [7, 5], [9])]  # with new tokens within Gemma's window
CHOICES = [(101, 102), (103, 104), (105, 106), (107, 108)]
BASE = [row[:9] for row in PROMPTS if len(row) >= 9]
SOURCE = [[*row[:place], 7 + place, *row[place + 1 :]] for row, place in zip(BASE, (2, 2, 5), strict=True)]
ANSWERS = [(111, 112), (113, 114), (115, 116)]
RECEIVERS = [Node("q", 1, 0, -1), Node("v", 1, 1)]
EDITS = [
    Edit("resid_post", 0, 0.5, how="add", position=-1),
    Edit("head_z", 1, 0.0, head=(0, 2)),
    Edit("v", 0, 2.0, how="scale", head=1, position=[0, 3, 0, 2, 5]),
    Edit("mlp_out", 1, random(5, 1, 1), how="add"),
    Edit("pattern", 1, 1.0, head=0, position=0),
]
TEXTS = [f"{word} {end}" for word in ("the cat", "a mat", "the hat", "on that") for end in ("sat", "it was", "on")]
GROUPS = [number // 2 for number in range(len(TEXTS))]
LABELS = [group % 2 == 0 for group in GROUPS]


@pytest.fixture(scope="module")
def on(tiny_folders):
    """Loads a model, each once; "float32" is what all are held against."""

    @cache
    def load(name, device, backend="huggingface", dtype="float32"):
        return models.load(str(tiny_folders.get(name, name)), backend=backend, device=device, dtype=dtype)

    return load


def tensors(found):
    """All that a function gives, as tensors in a fixed order."""
    if dataclasses.is_dataclass(found):
        found = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    if isinstance(found, pd.DataFrame):
        found = found.select_dtypes("number").to_numpy(dtype=float)
    if isinstance(found, Mapping):
        return [tensor for name in found for tensor in tensors(found[name])]
    if isinstance(found, tuple | list) and not all(isinstance(one, int | float) for one in found):
        return [tensor for one in found for tensor in tensors(one)]
    if isinstance(found, torch.Tensor | np.ndarray | float | int | tuple | list):
        return [torch.as_tensor(found)]
    return []


def apart(found, wanted):
    """The largest distance of two results' tensors, as a share of the norm; both have NaN at the same places."""
    largest, pairs = 0.0, list(zip(tensors(found), tensors(wanted), strict=True))
    assert pairs
    for one, other in pairs:
        assert one.device.type == "cpu" and one.shape == other.shape and one.dtype == other.dtype
        one, other = one.double(), other.double()
        assert torch.equal(one.isnan(), other.isnan())
        distance = float((one - other).nan_to_num().norm())
        largest = max(largest, distance / max(float(other.nan_to_num().norm()), 1e-6))
    return largest


def edited(loaded, run):
    legal = set(sites_of(loaded))
    with hooks.intervene(loaded, *(edit for edit in EDITS if edit.site in legal)):
        return run()


def patch_with_metric(loaded):
    weights = random(loaded.config.vocab_size).to(loaded.device)
    metric = lambda logits, examples: logits[:, : len(weights)] @ weights + examples.to(logits.device)  # noqa: E731
    return patching.patch_positions(loaded, BASE, SOURCE, site="attn_out", metric=metric)


def ablate_groups(loaded):
    groups = {"groups": [0, 1, 0], "reference": SOURCE, "answers": ANSWERS}
    return patching.ablate(loaded, BASE, [[Node("head_z", 0, 1), Node("mlp_out", 1)]], **groups)


def attribute(loaded):
    whole = attribution.attribute_logits(loaded, BASE, ANSWERS)
    options = {"against": [[1, 2]] * len(BASE), "scale_of": whole.resid + 1}
    return whole, attribution.attribute_logits(loaded, SOURCE, ANSWERS, **options)


def score_copies(loaded):
    resid = hooks.capture(loaded, BASE, "resid_post", layers=0)["resid_post"][:, 0, 0]
    last = [row[-1] for row in BASE]
    return attribution.measure_copy_rates(loaded, last, resid, top=20), attribution.score_copying(
        loaded, [[5, 9, 120, 33], [6, 8, 7, 1]]
    )


def nudge(loaded):
    size = loaded.config.hidden_size
    once = hooks.nudge(loaded, SHARED, CHOICES, random(2, 4, size), layer=0)
    options = {"layer": [0, 1], "n_last": [1, 2, 2, 1], "then": [[3, 4]] * 4}
    return once, hooks.nudge(loaded, SHARED, CHOICES, random(2, 4, 2, size), **options)


def read_states(loaded):
    states = hooks.capture(loaded, TEXTS, "resid_post")
    options = {"answers": ([105, 106], [107]), "rules": {"length": list(map(len, TEXTS))}, "folds": 3, "seed": 0}
    return baselines.score_baselines(loaded, TEXTS, LABELS, GROUPS, states=states, **options)


def draw(loaded):
    """What is random is drawn by the CPU's generators, whatever the device."""
    repeats = prompts.draw_segments(loaded, n_sequences=2, segment_length=4, n_segments=2, seed=0)
    return repeats, [weight.cpu() for weight in models.randomise(loaded, seed=3).model.parameters()]


ON_ANY_BACKEND = {
    "capture": lambda loaded: hooks.capture(loaded, PROMPTS, [*sites_of(loaded), "logits"], positions="all"),
    "capture the mean": lambda loaded: hooks.capture(loaded, PROMPTS, ["resid_pre", "v"], positions="mean"),
    "edit": lambda loaded: edited(loaded, lambda: hooks.capture(loaded, PROMPTS, "logits", positions="all")),
    "edit and generate": lambda loaded: edited(loaded, lambda: hooks.generate(loaded, PROMPTS, max_new_tokens=3)),
    "generate": lambda loaded: hooks.generate(loaded, SHARED, max_new_tokens=2),
    "losses": lambda loaded: hooks.measure_losses(loaded, BASE, entries=[0, 3]),
    "output": lambda loaded: baselines.read_output(loaded, PROMPTS, [105, 106], [107]),
}
ON_HUGGING_FACE = {
    "capture trees": lambda loaded: hooks.capture(loaded, SHARED, ["resid_post", "q"], positions=3, as_trees=True),
    "choices": lambda loaded: hooks.score_next_tokens(loaded, SHARED, CHOICES),
    "nudge": nudge,
    "positions": lambda loaded: patching.patch_positions(loaded, BASE, SOURCE, answers=ANSWERS),
    "a position each": lambda loaded: patching.patch_heads(
        loaded, BASE, SOURCE, answers=ANSWERS, positions={"there": [2, 8, 5], "last": -1}
    ),
    "metric": patch_with_metric,
    "heads": lambda loaded: patching.patch_heads(loaded, BASE, SOURCE, site="pattern", answers=ANSWERS),
    "losses of sets": lambda loaded: patching.patch_sets(loaded, BASE, SOURCE, [RECEIVERS], metric="losses"),
    "paths": lambda loaded: patching.patch_paths(loaded, BASE, SOURCE, "logits", answers=ANSWERS),
    "paths to each": lambda loaded: patching.patch_paths_to_each(
        loaded, BASE, SOURCE, [RECEIVERS, RECEIVERS[:1]], senders=[(0, 1), (0, 2)], answers=ANSWERS
    ),
    "means": lambda loaded: patching.ablate(loaded, BASE, answers=ANSWERS),
    "means of groups": ablate_groups,
    "resample": lambda loaded: patching.ablate(loaded, BASE, how="resample", reference=SOURCE, answers=ANSWERS),
    "attribution": attribute,
    "copying": score_copies,
    "attention": lambda loaded: attribution.score_attention_to_repeats(loaded, [[5, 6, 7, 5, 6]]),
    "baselines": read_states,
    "draws": draw,
}


@pytest.mark.parametrize("name", [*ON_ANY_BACKEND, *ON_HUGGING_FACE])
@pytest.mark.parametrize("family", [*FAMILIES, *EMBEDDED])
def test_a_gpu_gives_what_a_cpu_gives(family, name, on):
    run = (ON_ANY_BACKEND | ON_HUGGING_FACE)[name]
    assert apart(run(on(family, "cuda")), run(on(family, "cpu"))) <= LIMIT["float32"]


@pytest.mark.parametrize("name", ON_ANY_BACKEND)
@pytest.mark.parametrize("backend", models.BACKENDS[1:])
@pytest.mark.parametrize("family", [*FAMILIES, *EMBEDDED])
def test_so_does_each_backend(family, backend, name, on):
    run = ON_ANY_BACKEND[name]
    assert apart(run(on(family, "cuda", backend)), run(on(family, "cpu", backend))) <= LIMIT["float32"]
    assert torch.get_float32_matmul_precision() == "highest"  # no library took TensorFloat-32


@pytest.mark.parametrize("name", ["capture", "generate", "nudge", "positions", "paths", "attribution"])
@pytest.mark.parametrize("family", FAMILIES)  # in a deeper model the last bits of thirty layers add up
def test_and_in_half_precision_about_that(family, name, on):
    run = (ON_ANY_BACKEND | ON_HUGGING_FACE)[name]
    assert apart(*(run(on(family, device, dtype="bfloat16")) for device in ("cuda", "cpu"))) <= LIMIT["bfloat16"]


@pytest.mark.parametrize("method", ["ridge", "logistic", "mean_difference"])
def test_probes_may_be_fitted_there(method):
    labels, groups = words(20)
    captured = activations(labels, planted=[(1, None)])
    found, wanted = (
        probes.sweep(captured, labels, groups, types=groups, seed=0, method=method, n_permutations=20, device=device)
        for device in ("cuda", "cpu")
    )
    assert found.leading() == wanted.leading()
    assert apart(found.scores, wanted.scores) <= 1e-3
    assert apart(found.inner_loss, wanted.inner_loss) <= 1e-3 or method == "mean_difference"  # which counts errors
    assert apart(found.auroc, wanted.auroc) <= 1e-2


FIRST = """
import torch
from shared.planted import activations, words
from helpers import probes
torch.set_num_threads(8)
labels, groups = words(20)
probes.sweep(activations(labels, n_layers=200), labels, groups, types=None, seed=0, n_permutations=99, device="cuda")
"""


def test_a_sweep_may_be_the_first_that_a_process_does_there():
    """Several threads that begin torch's linear algebra on a GPU at once end in an error of its own."""
    found = [str(Path(__file__).parent), str(ROOT), *sys.path]
    subprocess.run([sys.executable, "-c", FIRST], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(found)})


X, SCORES = random(12, 8, seed=1), random(12, seed=2)
OF_TENSORS = {
    "average": lambda give: claims.average(give(SCORES), seed=0),
    "evaluate": lambda give: scores.evaluate(give(SCORES), LABELS, GROUPS, seed=0),
    "labels": lambda give: scores.evaluate(SCORES, give(torch.tensor(LABELS)), give(torch.tensor(GROUPS)), seed=0),
    "subtract": lambda give: scores.subtract(give(SCORES), SCORES.flip(0), LABELS, GROUPS, seed=0),
    "combine": lambda give: scores.combine([(1.0, give(SCORES), [True] * 12)], LABELS, GROUPS, seed=0),
    "separation": lambda give: scores.measure_separation(give(SCORES), LABELS, GROUPS, seed=0),
    "compute separation": lambda give: scores.compute_separation(give(SCORES), LABELS, folds=[0, 1] * 6),
    "calibration": lambda give: scores.measure_calibration_error(give(SCORES), LABELS, GROUPS, n_bins=3, seed=0),
    "auroc": lambda give: scores.compute_auroc(give(SCORES), LABELS),
    "controls": lambda give: baselines.compare_with_controls(give(X), seed=0),
    "head map": lambda give: plots.draw_head_map(Figure().subplots(), give(X)).get_clim(),
    "share": lambda give: claims.share(give(torch.tensor(LABELS))),
    "controls of groups": lambda give: baselines.compare_with_controls(give(X), groups=[0, 1] * 4, seed=0),
    "standardise": lambda give: probes.standardise(give(X[None]), like=X[None]),
    "fit": lambda give: probes.fit(give(X[None]), torch.tensor(LABELS)[:, None], method="ridge", penalties=[1.0]),
    "cross-train": lambda give: probes.cross_train(give(X), LABELS, GROUPS, {"all": [1] * 12}, folds=3, seed=0),
    "transfer": lambda give: probes.transfer(give(X), LABELS, GROUPS, [0] * 12, folds=3, seed=0),
    "learning curve": lambda give: probes.trace_learning_curve(
        give(X), LABELS, GROUPS, sizes=[2], n_draws=3, folds=3, seed=0
    ),
}
OF_MODELS = {
    "prompts": lambda loaded, give: hooks.capture(loaded, give(torch.tensor(SHARED[1:3])), "resid_post"),
    "positions": lambda loaded, give: hooks.capture(
        loaded, PROMPTS, "v", positions=give(torch.tensor([0, 3, 0, 2, 5]))
    ),
    "choices": lambda loaded, give: hooks.score_next_tokens(loaded, SHARED, give(torch.tensor(CHOICES))),
    "vectors": lambda loaded, give: hooks.nudge(
        loaded, SHARED, CHOICES, give(random(2, 4, loaded.config.hidden_size)), layer=[0, 1]
    ),
    "stream": lambda loaded, give: attribution.attribute_logits(
        loaded, BASE, give(torch.tensor(ANSWERS)), scale_of=give(random(3, loaded.config.hidden_size))
    ),
    "resid": lambda loaded, give: attribution.measure_copy_rates(
        loaded, give(torch.tensor([5, 6])), give(random(2, loaded.config.hidden_size)), top=20
    ),
    "sequences": lambda loaded, give: attribution.score_copying(loaded, give(torch.tensor([[5, 9, 120]]))),
    "start": lambda loaded, give: prompts.prepend_start_token(
        dataclasses.replace(loaded, start_token_id=0), give(torch.tensor([[5, 9]]))
    ),
}


@pytest.mark.parametrize("name", OF_TENSORS)
def test_a_tensor_may_lie_there(name):
    run = OF_TENSORS[name]
    given = [tensor.cpu() for tensor in tensors(run(lambda tensor: tensor.cuda()))]
    assert apart(given, tensors(run(lambda tensor: tensor))) <= LIMIT["float32"]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", OF_MODELS)
def test_also_beside_a_model_that_lies_elsewhere(name, device, on):
    run, loaded = OF_MODELS[name], on("llama", device)
    found, wanted = (run(loaded, lambda tensor, place=place: tensor.to(place)) for place in ("cuda", "cpu"))
    assert apart([tensor.cpu() for tensor in tensors(found)], tensors(wanted)) <= LIMIT["float32"]


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_a_value_of_an_edit_may_lie_there_too(backend, on):
    for device in ("cuda", "cpu"):
        loaded, found = on("llama", device, backend), []
        for place in ("cuda", "cpu"):
            value = random(5, loaded.config.hidden_size).to(place)
            with hooks.intervene(loaded, Edit("resid_post", 0, value, position=-1)):
                found.append(hooks.capture(loaded, PROMPTS, "logits"))
        assert apart(*found) == 0


def test_a_view_and_a_device_that_is_none(on, tiny_folders, refused):
    viewed = models.view(on("llama", "cuda"), "transformer_lens")
    assert apart(*(hooks.capture(one, PROMPTS, "q") for one in (viewed, on("llama", "cpu")))) <= LIMIT["float32"]
    with refused("cuda:99", "'cpu' always works"):
        models.load(str(tiny_folders["llama"]), device="cuda:99")
