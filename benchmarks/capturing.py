"""Capturing beside a bare forward pass, TransformerLens and nnsight: time, and peak memory in fresh processes."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.pairs import Row, paired
from benchmarks.patching import SEED
from helpers import hooks, models
from helpers.engine import backends
from helpers.prompts import NAMES
from studies.ioi.templates import PLACES

N_TEXTS = 512


def texts() -> list[str]:
    """Sentences of 7 to 25 tokens."""
    chooser = random.Random(SEED)
    made = []
    for _ in range(N_TEXTS):
        one, other = chooser.sample(NAMES[:10], 2)
        middle = " and then" + ", very slowly" * chooser.randrange(4) + " went home" if chooser.random() < 0.5 else ""
        made.append(f"Then {one} and {other} went to the {chooser.choice(PLACES)}{middle}")
    return made


def batches(loaded: models.LoadedModel) -> list[backends.Batch]:
    """The batches that `capture` makes."""
    rows = hooks.tokenize(loaded, texts())
    lengths = torch.tensor([len(row) for row in rows])
    return [
        backends.make_batch([rows[i] for i in examples.tolist()], loaded.device)
        for examples in hooks.split_batches(lengths.argsort(stable=True), lengths, hooks.TOKENS_PER_BATCH)
    ]


def bare(loaded: models.LoadedModel) -> None:
    for batch in batches(loaded):
        with torch.inference_mode():
            loaded.model.base_model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def captured(loaded: models.LoadedModel) -> torch.Tensor:
    return hooks.capture(loaded, texts(), "resid_post")["resid_post"][:, :, 0]


def with_transformer_lens(bridge: models.LoadedModel) -> torch.Tensor:
    found = []
    for batch in batches(bridge):
        last = _last(batch)
        with torch.inference_mode():
            _, cache = bridge.model.run_with_cache(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                names_filter=lambda name: name.endswith("hook_resid_post"),
            )
        rows = torch.arange(len(last))
        found.append(torch.stack([cache["resid_post", layer][rows, last] for layer in range(bridge.n_layers)], dim=1))
    return torch.cat(found)


def with_nnsight(loaded: models.LoadedModel) -> torch.Tensor:
    import nnsight

    model, found = loaded.model, []
    for batch in batches(loaded):
        last = _last(batch)
        rows = torch.arange(len(last))
        inputs = {"input_ids": batch.input_ids}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        with torch.inference_mode(), model.trace(inputs):
            states = []
            for layer in model.model.layers:
                states.append(layer.output[rows, last])
            kept = nnsight.save(torch.stack(states, dim=1))
        found.append(kept)
    return torch.cat(found)


def rows(quick: bool, name: str = models.DEFAULT_MODEL) -> Iterator[Row]:
    n_pairs = 1 if quick else 5
    plain = models.load(name)
    work = f"capture of resid_post, all layers, last position, {N_TEXTS} texts"
    yield paired(
        work,
        lambda: captured(plain),
        lambda: bare(plain),
        named="bare Hugging Face forward, same batches",
        at_least=1 / 1.05,
        n_pairs=n_pairs,
    )
    if name != models.DEFAULT_MODEL:
        return
    bridge, nns = (models.load(backend=backend) for backend in models.BACKENDS[1:])
    expected = captured(plain)
    order = torch.tensor([len(row) for row in hooks.tokenize(plain, texts())]).argsort(stable=True)
    for function, loaded in ((with_transformer_lens, bridge), (with_nnsight, nns)):
        assert torch.allclose(function(loaded), expected[order], atol=1e-3, rtol=1e-4), function.__name__
    for named, peer, loaded in (
        ("TransformerLens run_with_cache with a filter", with_transformer_lens, bridge),
        ("nnsight, one trace a batch", with_nnsight, nns),
    ):
        yield paired(
            work,
            lambda: captured(plain),
            lambda p=peer, m=loaded: p(m),
            named=named,
            at_least=1,
            n_pairs=1 if quick else 3,
        )
    yield _memory()


def _memory() -> Row:
    """Peak resident memory in two fresh processes; ratio: what is allowed over what was taken."""
    peak = {}
    for kind in ("bare", "captured"):
        command = [sys.executable, "-m", "benchmarks.capturing", kind]
        peak[kind] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    asked = 4 * N_TEXTS * peak["captured"]["layers"] * peak["captured"]["d_model"] / 1e6
    allowed = (peak["bare"]["peak"] + asked) * 1.1
    return Row(
        work="peak memory of that capture (MB)",
        ours=peak["captured"]["peak"],
        peer="bare forward + the tensors asked for",
        peer_seconds=peak["bare"]["peak"] + asked,
        ratio=(peak["bare"]["peak"] + asked) / peak["captured"]["peak"],
        target="≥ 0.91×",
        reached=peak["captured"]["peak"] <= allowed,
        note="megabytes instead of seconds; may take 10 % more",
    )


def _last(batch: backends.Batch) -> torch.Tensor:
    return (
        torch.full((len(batch.input_ids),), batch.input_ids.shape[1] - 1)
        if batch.attention_mask is None
        else batch.attention_mask.sum(1) - 1
    )


if __name__ == "__main__":
    model = models.load()
    {"bare": bare, "captured": captured}[sys.argv[1]](model)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"peak": peak_mb, "layers": model.n_layers, "d_model": model.config.hidden_size}))
