import copy
import dataclasses
import gc
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import by_hand
import pytest
import torch
from conftest import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers import baselines, hooks, models
from helpers.engine import backends
from helpers.hooks import Edit

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (5, 12, 1, 9, 12)  # longer than Gemma's sliding window
PROMPTS = [
    torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(i)).tolist()
    for i, length in enumerate(LENGTHS)
]
PROMPTS[1][0] = PROMPTS[1][3] = PROMPTS[3][8] = 0  # what stands in the padding may also stand in a prompt
SEVERAL_BATCHES = {"tokens_per_batch": 24}  # of PROMPTS three, in another order
WITH_HEADS = [site for site, axes in hooks.SITES.items() if len(axes) == 3]
ONE_FOR_EACH = torch.tensor([2, 7, 0, -1, 11])
IN_EACH_PROMPT = torch.tensor([2, 7, 0, 8, 11])  # the same tokens also when more follow


@pytest.fixture(params=[(family, backend) for family in FAMILIES for backend in models.BACKENDS], ids="-".join)
def model(request, load_tiny):
    """Each family on each backend."""
    return load_tiny(*request.param)


@pytest.fixture(params=models.BACKENDS)
def llama(request, load_tiny):
    """One family on each backend."""
    return load_tiny("llama", request.param)


@pytest.fixture(scope="module")
def embedded_on(embedded):
    """The real model on each backend."""
    others = ("transformer_lens", "nnsight")
    return {"huggingface": embedded} | {backend: models.load(backend=backend) for backend in others}


@pytest.fixture(scope="session")
def expected(load_tiny):
    """By hand, every site of one prompt: {site: `layer position …`}, of a pattern with the query first; and logits."""

    def expected(loaded, tokens, *edits, example=0):
        seen = {}
        change = by_hand.edits(*edits, example=example)

        def at(site, layer, tensor):
            tensor = change(site, layer, tensor)
            seen.setdefault(site, []).append(tensor)
            return tensor

        logits = by_hand.run(load_tiny(loaded.config.model_type).model, torch.as_tensor(tokens), at)
        return {site: torch.stack(tensors) for site, tensors in seen.items()} | {"logits": logits}

    return expected


def sites_of(loaded):
    return [site for site in hooks.SITES if not backends.explain_missing(loaded, site)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def part(captured, site, example):
    """One prompt's tokens at all positions, laid out as in `expected`."""
    n, tensor = int(captured.lengths[example]), captured[site][example]
    if site == "logits":
        return tensor[:n]
    return tensor.transpose(1, 2)[:, :n, :, :n] if site == "pattern" else tensor[:, :n]


def assert_close(found, wanted, limit=1e-4):
    assert found.shape == wanted.shape
    assert float((found - wanted).norm()) <= limit * float(wanted.norm())


def assert_all_as_by_hand(captured, expected, loaded, *edits, but=()):
    for example, tokens in enumerate(PROMPTS):
        for site, wanted in expected(loaded, tokens, *edits, example=example).items():
            if site in captured.values and site not in but:
                assert_close(part(captured, site, example), wanted)


def values_for(loaded, edit, *, seed=0):
    """The edit with random values of its own for each prompt, head and position."""
    old = hooks.capture(loaded, PROMPTS, edit.site, layers=[edit.layer], positions="all")[edit.site][:, 0]
    if edit.site == "pattern":
        old = old.transpose(1, 2)
    if edit.head is not None:
        old = old[:, :, edit.head]
    if isinstance(edit.position, list):
        old = old[:, : len(edit.position)]
    elif edit.position is not None:
        old = old[:, 0]
    value = random(*old.shape, seed=seed)
    if edit.site == "pattern":  # no attention to the padding
        value *= (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).view(5, *[1] * (value.ndim - 2), 12)
    return dataclasses.replace(edit, value=value)


# Reading


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_every_site_and_the_logits_are_those_computed_by_hand(model, padding_side, expected):
    sites = [*sites_of(model), "logits"]
    captured = hooks.capture(model, PROMPTS, sites, positions="all", padding_side=padding_side, **SEVERAL_BATCHES)
    assert len(sites) >= 10
    assert_all_as_by_hand(captured, expected, model)
    for site in sites:
        assert captured[site].dtype == torch.float32
        assert len(captured.axes[site]) == captured[site].ndim


def test_sites_are_what_transformers_itself_returns(tiny):
    for tokens in PROMPTS:
        with torch.no_grad():
            output = tiny.model(torch.tensor([tokens]), output_hidden_states=True, output_attentions=True)
        captured = hooks.capture(tiny, [tokens], ["resid_pre", "resid_post", "pattern", "logits"], positions="all")
        assert_close(captured["resid_pre"][0], torch.cat(output.hidden_states[:2]))
        assert_close(captured["resid_post"][0, 0], output.hidden_states[1][0])
        base = tiny.model.base_model
        final_norm = next(
            module for name, module in base.named_children() if name in ("ln_f", "norm") or "final" in name
        )
        assert_close(final_norm(captured["resid_post"][0, 1]), output.hidden_states[2][0])
        assert_close(captured["pattern"][0], torch.cat(output.attentions))
        assert_close(captured["logits"], output.logits)


def test_the_residual_stream_is_the_sum_of_what_is_added_to_it(model):
    captured = hooks.capture(model, PROMPTS, sites_of(model), positions="all", **SEVERAL_BATCHES)
    present = ~captured["resid_pre"].isnan()
    one = {site: captured[site][present] for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")}
    assert_close(one["resid_pre"] + one["attn_out"] + one["mlp_out"], one["resid_post"])
    if "resid_mid" in captured.values:
        assert_close(one["resid_pre"] + one["attn_out"], captured["resid_mid"][present])


def test_head_z_is_the_pattern_times_the_values(model):
    captured = hooks.capture(model, PROMPTS, ["pattern", "v", "head_z"], positions="all")
    repeats = model.n_heads // captured["v"].shape[3]
    values = captured["v"].nan_to_num().repeat_interleave(repeats, dim=3)
    z = torch.einsum("elhqk,elkhd->elqhd", captured["pattern"].nan_to_num(), values)
    assert_close(z, captured["head_z"].nan_to_num())


def test_patterns_are_causal_sum_to_one_and_keep_to_the_sliding_window(model):
    pattern = hooks.capture(model, PROMPTS, "pattern", positions="all")["pattern"]
    query, key = torch.arange(12)[:, None], torch.arange(12)
    sums = pattern.nansum(-1)
    assert ((sums - 1).abs() < 1e-5).eq(~pattern[..., 0].isnan()).all()
    assert pattern.nan_to_num().triu(1).abs().max() == 0
    beyond = pattern[:, 0, :, query - key >= 8].nan_to_num().abs().max()
    assert (beyond == 0) == (model.config.model_type == "gemma3_text")


def test_the_backends_agree_on_the_real_model(embedded_on):
    prompts = ["The capital of France is", "Hello", "One two three four five six seven"]
    sites = [*hooks.SITES, "logits"]
    options = {"layers": [0, 17, 29], "positions": "all"}
    reference = hooks.capture(embedded_on["huggingface"], prompts, sites, **options)
    for loaded in embedded_on.values():
        captured = hooks.capture(loaded, prompts, sites, padding_side="left", **options)
        for site in sites:
            assert torch.equal(captured[site].isnan(), reference[site].isnan())
            assert_close(captured[site].nan_to_num(), reference[site].nan_to_num())
    best = reference["logits"][0, reference.lengths[0] - 1].argmax()
    assert embedded_on["huggingface"].token_labels([int(best)]) == [" Paris"]


@pytest.mark.parametrize("site", hooks.SITES)
def test_the_backends_agree_on_the_real_model_when_it_is_changed(site, embedded_on):
    prompts = ["The capital of France is", "One two three four five six seven"]
    head = None if hooks.SITES[site][-1] == "d_model" else 1
    found = []
    for loaded in embedded_on.values():
        with hooks.intervene(loaded, Edit(site, 17, 0.3, "scale", head, position=(0, 2, -1))):
            found.append(hooks.capture(loaded, prompts, "logits")["logits"])
    plain = hooks.capture(loaded, prompts, "logits")["logits"]
    assert (found[0] - plain).abs().max() > 1e-3
    for other in found[1:]:
        assert_close(other, found[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("backend", models.BACKENDS)
def test_half_precision_is_given_as_float32_close_to_the_full_one(dtype, backend, load_tiny, tiny_folders):
    half = models.load(str(tiny_folders["llama"]), backend=backend, dtype=dtype)
    sites = [*hooks.SITES, "logits"]
    with hooks.intervene(half, Edit("head_z", 0, 2.0, "scale", head=1)):
        captured = hooks.capture(half, PROMPTS, sites)
    with hooks.intervene(load_tiny("llama"), Edit("head_z", 0, 2.0, "scale", head=1)):
        exact = hooks.capture(load_tiny("llama"), PROMPTS, sites)
    for site in sites:
        assert captured[site].dtype == torch.float32
        assert_close(captured[site].nan_to_num(), exact[site].nan_to_num(), limit=0.2)


# What is kept


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_select_from_what_all_gives(llama, side):
    sites = ["resid_post", "head_z", "pattern", "logits"]

    def at(positions):
        return hooks.capture(llama, PROMPTS, sites, positions=positions, padding_side=side, **SEVERAL_BATCHES)

    everything = at("all")
    long = [i for i, n in enumerate(LENGTHS) if n > 1]
    each = torch.tensor([0, 11, 0, 3, -2])
    named = at({"first": 0, "each": each, "same as a list": each.tolist()})
    assert named.positions == ("first", "each", "same as a list")
    assert at(-1).positions == ("-1",)
    assert at([0, -1]).positions == ("0", "-1")
    for site in sites:
        axis = everything.axes[site].index("query" if site == "pattern" else "position") - 1

        def of(captured, number, axis=axis, site=site):
            return captured[site].select(axis + 1, number)

        for i, n in enumerate(LENGTHS):
            rows = everything[site][i].split(1, dim=axis)
            assert_close(of(at("last"), 0)[i].nan_to_num(), rows[n - 1].squeeze(axis).nan_to_num())
            assert_close(of(at([0, -1]), 1)[i].nan_to_num(), rows[n - 1].squeeze(axis).nan_to_num())
            assert_close(of(named, 0)[i].nan_to_num(), rows[0].squeeze(axis).nan_to_num())
            wanted = rows[int(each[i]) % n].squeeze(axis).nan_to_num()
            assert_close(of(named, 1)[i].nan_to_num(), wanted)
            assert_close(of(named, 2)[i].nan_to_num(), wanted)
            mean = torch.cat(rows[:n], dim=axis).mean(axis)
            assert_close(of(at("mean"), 0)[i].nan_to_num(), mean.nan_to_num())
        prompts = [PROMPTS[i] for i in long]
        before_last = hooks.capture(llama, prompts, sites, positions="second_to_last", padding_side=side)
        for i, example in enumerate(long):
            wanted = everything[site][example].select(axis, LENGTHS[example] - 2)
            assert_close(of(before_last, 0)[i].nan_to_num()[..., :5], wanted.nan_to_num()[..., :5])


def test_positions_that_a_prompt_does_not_have_hold_nan_and_only_these(model):
    captured = hooks.capture(model, PROMPTS, [*sites_of(model), "logits"], positions="all", **SEVERAL_BATCHES)
    absent = torch.arange(12) >= torch.tensor(LENGTHS)[:, None]
    assert captured.lengths.tolist() == list(LENGTHS)
    assert captured.positions == tuple(map(str, range(12)))
    for site in captured.values:
        found = captured[site].isnan()
        if site == "pattern":
            assert torch.equal(found, (absent[:, None] | absent[:, :, None])[:, None, None].expand_as(found))
        elif site == "logits":
            assert torch.equal(found, absent[..., None].expand_as(found))
        else:
            assert torch.equal(found, absent.view(5, 1, 12, *[1] * (found.ndim - 3)).expand_as(found))


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=7),
    family=st.sampled_from(FAMILIES),
    backend=st.sampled_from(models.BACKENDS),
    side=st.sampled_from(["right", "left"]),
    tokens_per_batch=st.integers(0, 80),
    seed=st.integers(0, 100),
)
def test_a_prompt_alone_gives_the_same_as_among_others(
    load_tiny, lengths, family, backend, side, tokens_per_batch, seed
):
    loaded = load_tiny(family, backend)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(300, (n,), generator=generator).tolist() for n in lengths]
    sites = ["resid_post", "pattern", "logits"]
    options = {"positions": "all", "padding_side": side, "tokens_per_batch": tokens_per_batch}
    together = hooks.capture(loaded, prompts, sites, **options)
    for i, prompt in enumerate(prompts):
        alone = hooks.capture(loaded, [prompt], sites, positions="all")
        for site in sites:
            assert_close(part(together, site, i), part(alone, site, 0))


def test_texts_tensors_and_lists_of_token_ids_are_the_same_prompts(llama):
    texts = ["the cat sat", "on the mat"]
    rows = [llama.tokenizer(text)["input_ids"] for text in texts]
    given = hooks.capture(llama, texts, "resid_post")["resid_post"]
    assert torch.equal(hooks.capture(llama, rows, "resid_post")["resid_post"], given)
    first = torch.tensor(rows[:1])
    for form in (first, first.numpy(), list(first), iter(texts[:1])):
        assert_close(hooks.capture(llama, form, "resid_post")["resid_post"], given[:1])


def test_the_order_of_layers_and_sites_is_the_callers(llama):
    everything = hooks.capture(llama, PROMPTS, ["q", "resid_pre"])
    turned = hooks.capture(llama, PROMPTS, ["resid_pre", "q"], layers=[1, 0])
    assert turned.layers == (1, 0)
    assert list(turned.values) == ["resid_pre", "q"]
    for site in ("q", "resid_pre"):
        assert torch.equal(turned[site], everything[site].flip(1))
        assert torch.equal(hooks.capture(llama, PROMPTS, site, layers=(1,))[site], everything[site][:, 1:])


def modules_called(loaded, run):
    """The names of the plain model's modules that ran."""
    called = set()
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, module in backends.get_huggingface_model(loaded).named_modules()
    ]
    run()
    for handle in handles:
        handle.remove()
    return called


def ran(names, pattern):
    return any(re.search(pattern, name) for name in names)


IN_LAYER_1 = r"(layers|h)\.1\.(.+\.)?(mlp|attn|self_attn|attention)$"
FINAL_NORM = r"(^|\.)(norm|ln_f|final_layer_norm)$"
UNEMBEDDING = r"(^|\.)(lm_head|embed_out)$"


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "pattern"])
def test_the_model_runs_no_further_than_the_last_layer_asked_for(model, site):
    def called(layers, *sites):
        return modules_called(model, lambda: hooks.capture(model, PROMPTS[:1], [site, *sites], layers=layers))

    first, both, with_logits = called([0]), called([1, 0]), called([0], "logits")
    assert not any(ran(first, pattern) for pattern in (IN_LAYER_1, FINAL_NORM, UNEMBEDDING))
    assert ran(both, IN_LAYER_1)
    assert all(ran(with_logits, pattern) for pattern in (IN_LAYER_1, FINAL_NORM, UNEMBEDDING))


@pytest.mark.parametrize(
    "backend",
    ["huggingface", "transformer_lens", "nnsight"],
)
def test_the_unembedding_runs_only_for_logits(load_tiny, backend):
    for family in FAMILIES:
        loaded = load_tiny(family, backend)
        called = modules_called(loaded, lambda loaded=loaded: hooks.capture(loaded, PROMPTS, "resid_post"))
        assert ran(called, IN_LAYER_1) and not ran(called, UNEMBEDDING)


# Results larger than memory, and memory that is too small


def test_a_large_result_is_on_disk_memory_mapped_and_vanishes_with_the_result(llama):
    sites = ["resid_post", "pattern", "logits"]
    options = {"positions": "all", **SEVERAL_BATCHES}
    in_memory = hooks.capture(llama, PROMPTS, sites, **options)
    on_disk = hooks.capture(llama, PROMPTS, sites, memory_budget=1000, **options)
    assert in_memory.folder is None
    folder = Path(on_disk.folder.name)
    for site in sites:
        assert torch.equal(on_disk[site].nan_to_num(7), in_memory[site].nan_to_num(7))
        assert on_disk.axes[site] == in_memory.axes[site]
        if Path("/proc/self/maps").exists():  # on Linux
            assert str(folder / f"{site}.safetensors") in Path("/proc/self/maps").read_text()
    del on_disk
    gc.collect()
    assert not folder.exists()


def test_the_budget_counts_all_sites_to_the_byte(load_tiny):
    loaded = load_tiny("llama")
    n_bytes = 4 * 5 * 2 * (16 + 16)
    for budget, in_memory in ((n_bytes, True), (n_bytes - 1, False)):
        captured = hooks.capture(loaded, PROMPTS, ["resid_pre", "q"], memory_budget=budget)
        assert (captured.folder is None) == in_memory


def test_files_in_a_folder_stay_and_are_replaced_whole(load_tiny, tmp_path):
    loaded, folder = load_tiny("llama"), tmp_path / "new" / "folder"
    kept = hooks.capture(loaded, PROMPTS, ["resid_post", "q"], folder=folder)
    wanted = hooks.capture(loaded, PROMPTS, ["resid_post", "q"])
    again = hooks.capture(loaded, PROMPTS[:2], "q", folder=folder)
    assert kept.folder is None
    assert sorted(path.name for path in folder.iterdir()) == ["q.safetensors", "resid_post.safetensors"]
    assert torch.equal(load_file(folder / "q.safetensors")["q"], again["q"])
    for site in ("resid_post", "q"):
        assert torch.equal(kept[site], wanted[site])
    assert torch.equal(load_file(folder / "resid_post.safetensors")["resid_post"], wanted["resid_post"])


def test_a_folder_that_is_a_file_is_refused_by_name(load_tiny, tmp_path, refused):
    (tmp_path / "file").touch()
    with refused(tmp_path / "file", "could not be written"):
        hooks.capture(load_tiny("llama"), PROMPTS, "q", folder=tmp_path / "file")


@contextmanager
def full_disk():
    """No file may grow beyond 4000 bytes; a context, as pytest may write its own output to a longer file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_gives_one_sentence_and_no_file(load_tiny, tmp_path, refused):
    with refused(tmp_path, "could not be written"), full_disk():
        hooks.capture(load_tiny("llama"), PROMPTS, ["q", "logits"], positions="all", folder=tmp_path)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_some_prompts_of_a_capture_keep_what_is_theirs(load_tiny):
    texts = ["the cat", "on the mat it sat", "the"]
    captured = hooks.capture(load_tiny("llama"), texts, ["resid_post", "head_z"], positions="all")
    some = captured.select([2, 0])
    assert some.lengths.tolist() == [captured.lengths[2], captured.lengths[0]]
    for site in ("resid_post", "head_z"):
        assert torch.equal(some[site].nan_to_num(), captured[site][[2, 0]].nan_to_num())
    assert (some.axes, some.layers, some.positions) == (captured.axes, captured.layers, captured.positions)


def test_a_failed_capture_leaves_no_half_written_file(copy_of, tmp_path, refused):
    folder = tmp_path / "results"
    with refused("holds NaN or infinity"):
        hooks.capture(damaged(models.load(str(copy_of()))), PROMPTS, "mlp_out", folder=folder)
    assert list(folder.iterdir()) == []


@pytest.fixture
def little_memory(monkeypatch):
    """`forward` runs out of memory beyond so many prompts at once; gives the sizes that were tried."""
    real, tried = backends.forward, []

    def allow(most):
        def forward(loaded, batch, **options):
            tried.append(len(batch.input_ids))
            if tried[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nGPU 0 ...")
            return real(loaded, batch, **options)

        monkeypatch.setattr(backends, "forward", forward)
        return tried

    return allow


@pytest.mark.parametrize("most", [1, 2, 3])
def test_out_of_memory_halves_the_batch_and_goes_on(llama, most, little_memory):
    sites, edit = ["resid_post", "logits"], Edit("head_z", 0, random(4), head=1)
    with hooks.intervene(llama, edit):
        wanted = hooks.capture(llama, PROMPTS, sites, positions="all")
        tried = little_memory(most)
        found = hooks.capture(llama, PROMPTS, sites, positions="all")
    assert tried[0] == 5 and sum(n for n in tried if n <= most) == 5
    for site in sites:
        assert_close(found[site].nan_to_num(), wanted[site].nan_to_num())


def test_a_single_prompt_that_does_not_fit_is_named(llama, little_memory, refused):
    little_memory(0)
    with refused("prompt 2", "1 tokens", "cpu"):  # the shortest runs first
        hooks.capture(llama, PROMPTS, "resid_post")


# Changing

SELECTIONS = [
    (None, None),
    (1, None),
    ([1, 0], None),
    (1, 3),
    (None, [0, 3]),
    (0, -1),
    ([1], [-1, 4, 0]),
    (1, ONE_FOR_EACH),
    (None, ONE_FOR_EACH),
]


def edits_of(site, selections):
    for number, (head, position) in enumerate(selections):
        if head is None or site in WITH_HEADS:
            yield Edit(site, number % 2, how=hooks.HOW[number % 3], head=head, position=position)


@pytest.mark.parametrize("site", hooks.SITES)
def test_an_edit_has_the_effect_computed_by_hand(model, site, expected):
    """Each prompt has values of its own, which must follow it into its batch."""
    if backends.explain_missing(model, site):
        pytest.skip("no such site")
    selections = SELECTIONS if model.backend == "huggingface" else [SELECTIONS[0], SELECTIONS[6], SELECTIONS[8]]
    plain = hooks.capture(model, PROMPTS, "logits", positions="all")
    for number, edit in enumerate(edits_of(site, selections)):
        side = "left" if number % 2 and site != "pattern" else "right"
        changed = values_for(model, edit, seed=number)
        with hooks.intervene(model, changed):
            found = hooks.capture(model, PROMPTS, "logits", positions="all", padding_side=side, **SEVERAL_BATCHES)
        assert (found["logits"] - plain["logits"]).nan_to_num().abs().max() > 1e-2
        assert_all_as_by_hand(found, expected, model, changed)


@pytest.mark.parametrize("how", hooks.HOW)
@pytest.mark.parametrize(("head", "position"), SELECTIONS)
def test_a_value_broadcasts_from_the_last_axis(head, position, how, load_tiny, expected):
    loaded = load_tiny("qwen2")
    full = values_for(loaded, Edit("k", 0, how=how, head=head, position=position))
    shape = full.value.shape
    smaller = [full.value[0], full.value[:1], full.value[..., :1], full.value[0, ..., :1], random(shape[-1])]
    for value in (*smaller, torch.tensor(0.7), 0.7, 2, [0.1, 0.2, 0.3, 0.4]):
        edit = dataclasses.replace(full, value=value)
        with hooks.intervene(loaded, edit):
            found = hooks.capture(loaded, PROMPTS, ["k", "logits"], positions="all", **SEVERAL_BATCHES)
        assert_all_as_by_hand(found, expected, loaded, edit)


@pytest.mark.parametrize("site", hooks.SITES)
def test_sites_read_during_an_edit_are_those_computed_by_hand(model, site, expected):
    """Those before the edit as they were, the site itself and those after it as changed."""
    if backends.explain_missing(model, site):
        pytest.skip("no such site")
    edit = values_for(model, Edit(site, 0))
    sites = [*sites_of(model), "logits"]
    with hooks.intervene(model, edit):
        captured = hooks.capture(model, PROMPTS, sites, positions="all", **SEVERAL_BATCHES)
        again = hooks.capture(model, PROMPTS, sites, positions="all", **SEVERAL_BATCHES)
    assert_all_as_by_hand(captured, expected, model, edit, but=["attn_out"] if site == "resid_mid" else [])
    assert all(torch.equal(captured[site].nan_to_num(), again[site].nan_to_num()) for site in sites)


def test_attn_out_is_read_unchanged_during_an_edit_of_resid_mid(llama, expected):
    edit = Edit("resid_mid", 0, random(12, 16))
    with hooks.intervene(llama, edit):
        captured = hooks.capture(llama, PROMPTS, "attn_out", positions="all")
    assert_all_as_by_hand(captured, expected, llama, edit)


@pytest.mark.parametrize("site", hooks.SITES)
def test_a_site_replaced_by_its_own_values_changes_nothing(model, site):
    if backends.explain_missing(model, site):
        pytest.skip("no such site")
    before = hooks.capture(model, PROMPTS, [site, "logits"], positions="all")
    for layer in (0, 1):
        value = before[site][:, layer].nan_to_num()
        with hooks.intervene(model, Edit(site, layer, value.transpose(1, 2) if site == "pattern" else value)):
            after = hooks.capture(model, PROMPTS, "logits", positions="all", **SEVERAL_BATCHES)
        assert_close(after["logits"].nan_to_num(), before["logits"].nan_to_num(), limit=1e-5)


def test_the_last_residual_stream_of_another_run_gives_its_logits(model):
    others = [tokens[::-1] for tokens in PROMPTS]
    wanted = hooks.capture(model, others, ["resid_post", "logits"], positions="all")
    with hooks.intervene(model, Edit("resid_post", 1, wanted["resid_post"][:, 1].nan_to_num())):
        found = hooks.capture(model, PROMPTS, "logits", positions="all", **SEVERAL_BATCHES)
    assert_close(found["logits"].nan_to_num(), wanted["logits"].nan_to_num(), limit=1e-5)


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "q", "rot_k", "pattern"])  # one of each way to reach it
def test_edits_of_one_site_apply_in_the_order_given_and_contexts_nest(model, site, expected):
    if backends.explain_missing(model, site):
        pytest.skip("no such site")
    steps = [
        values_for(model, Edit(site, 0, how=how, position=position), seed=seed)
        for seed, (how, position) in enumerate([("replace", None), ("scale", None), ("add", [0, 2])])
    ]
    found = []
    with hooks.intervene(model, *steps):
        found.append(hooks.capture(model, PROMPTS, [site, "logits"], positions="all"))
    with hooks.intervene(model, steps[0]), hooks.intervene(model, steps[1]), hooks.intervene(model, steps[2]):
        found.append(hooks.capture(model, PROMPTS, [site, "logits"], positions="all"))
    for captured in found:
        assert_all_as_by_hand(captured, expected, model, *steps)
    with hooks.intervene(model, steps[0]):
        with hooks.intervene(model, steps[1]):
            pass_within = hooks.capture(model, PROMPTS, "logits", positions="all")
        outer = hooks.capture(model, PROMPTS, "logits", positions="all")
    assert_all_as_by_hand(pass_within, expected, model, *steps[:2])
    assert_all_as_by_hand(outer, expected, model, steps[0])


@pytest.mark.parametrize(
    "pair",
    [
        ("resid_pre", "resid_mid"),
        ("attn_out", "resid_mid"),
        ("resid_mid", "resid_pre"),
        ("resid_mid", "attn_out"),
    ],
    ids=" then ".join,
)
def test_edits_of_two_sites_of_a_layer_take_place_where_they_are(llama, pair, expected):
    edits = [Edit(site, 0, random(1, 12, 16, seed=seed)) for seed, site in enumerate(pair)]
    with hooks.intervene(llama, *edits):
        found = hooks.capture(llama, PROMPTS, ["resid_pre", "resid_mid", "logits"], positions="all")
    assert_all_as_by_hand(found, expected, llama, *edits)


def test_edits_of_many_sites_and_layers_at_once_are_as_by_hand(model, expected):
    sites = [site for site in sites_of(model) if site not in ("attn_out", "resid_mid")]
    edits = [
        values_for(model, Edit(site, layer, how="add", position=layer), seed=layer)
        for layer in (1, 0)
        for site in sites[::-1]
    ]
    with hooks.intervene(model, *edits):
        found = hooks.capture(model, PROMPTS, [*sites, "logits"], positions="all", **SEVERAL_BATCHES)
    assert_all_as_by_hand(found, expected, model, *edits)


def test_the_backends_own_calls_are_changed_too(model, expected):
    tokens = PROMPTS[1]
    edit = Edit("v", 0, random(4 if model.config.model_type != "gemma3_text" else 8), head=1, position=-3)
    with hooks.intervene(model, edit), torch.no_grad():
        if model.backend == "nnsight":
            with model.model.trace({"input_ids": torch.tensor([tokens])}):
                logits = model.model.output.logits.save()
        else:
            output = model.model(torch.tensor([tokens]))
            logits = getattr(output, "logits", output)
    assert_close(logits[0], expected(model, tokens, edit)["logits"])


def test_a_padded_batch_given_to_the_model_itself_is_changed_at_each_prompts_own_position(tiny, expected):
    edit = Edit("resid_post", 0, random(5, 16), position=ONE_FOR_EACH)
    for side in ("left", "right"):
        batch = backends.make_batch(PROMPTS, "cpu", side)
        with hooks.intervene(tiny, edit), torch.no_grad():
            logits = tiny.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
            ).logits
        for i, tokens in enumerate(PROMPTS):
            start = int(batch.pads[i])
            wanted = expected(tiny, tokens, edit, example=i)["logits"]
            assert_close(logits[i, start : start + len(tokens)], wanted)


def test_a_mask_that_is_no_row_for_each_prompt_is_refused_during_an_edit(load_tiny, refused):
    loaded = load_tiny("llama")
    mask = torch.zeros(1, 1, 5, 5)
    with refused("attention mask"), hooks.intervene(loaded, Edit("resid_post", 0)):
        loaded.model(torch.tensor([PROMPTS[0]]), attention_mask=mask)


# Generation

N_NEW = 4


def plainly(loaded, expected, prompt, *edits, n_new=N_NEW, example=0):
    """Greedy generation that runs the whole text again for every token."""
    tokens = list(prompt)
    ends = backends.get_huggingface_model(loaded).generation_config.eos_token_id
    for _ in range(n_new):
        token = int(expected(loaded, tokens, *edits, example=example)["logits"][-1].argmax())
        if token == ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def test_generation_is_that_of_running_the_whole_text_again(model, expected):
    found = hooks.generate(model, PROMPTS, max_new_tokens=N_NEW)
    assert found == [plainly(model, expected, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, found))) > 2


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_a_model_that_asks_for_a_repetition_penalty_still_gives_its_most_likely_token(backend, load_tiny, expected):
    loaded = load_tiny("llama", backend)
    settings = backends.get_huggingface_model(loaded).generation_config
    settings.repetition_penalty = 0.01  # whatever was said becomes likely
    try:
        assert hooks.generate(loaded, PROMPTS, max_new_tokens=N_NEW) == [plainly(loaded, expected, p) for p in PROMPTS]
    finally:
        settings.repetition_penalty = None


def edited_generations(loaded, expected, prompts, examples, edits):
    """Pairs of found and wanted; what an edit at -1 did to a token stays in the cache, so it is seen later."""
    for edit in edits:
        if edit.value.ndim and len(edit.value) == len(PROMPTS):
            edit = dataclasses.replace(edit, value=edit.value[examples])
        with hooks.intervene(loaded, edit):
            found = hooks.generate(loaded, prompts, max_new_tokens=N_NEW)
        for i, prompt in enumerate(prompts):
            again = edit
            if isinstance(edit.position, int) and edit.position == -1:
                value = edit.value if edit.site == "pattern" else edit.value[:, None]
                again = dataclasses.replace(edit, position=list(range(len(prompt) - 1, 30)), value=value)
            yield found[i], plainly(loaded, expected, prompt, again, example=i)


def test_generation_edited_at_every_token_is_that_of_running_the_whole_text_again(model, expected):
    edits = [
        Edit(site, number % 2, 3 * random(4, 1), "scale")
        if site == "pattern"
        else Edit(site, number % 2, 3 * values_for(model, Edit(site, 0)).value[1, 0], hooks.HOW[number % 3])
        for number, site in enumerate(sites_of(model))
    ]
    prompts = [PROMPTS[1], PROMPTS[0]]
    pairs = list(edited_generations(model, expected, prompts, [1, 0], edits))
    assert [found for found, _ in pairs] == [wanted for _, wanted in pairs]
    assert len({tuple(found) for found, _ in pairs}) > 5


@pytest.mark.parametrize("position", [3, -1, IN_EACH_PROMPT], ids=["prompt", "newest", "each"])
def test_edited_generation_is_that_of_running_the_whole_text_again(model, position, expected):
    edits = [values_for(model, Edit(site, 0, position=position), seed=5) for site in sites_of(model)]
    edits = [dataclasses.replace(edit, value=3 * edit.value) for edit in edits]
    examples = [0, 1, 2, 3, 4] if isinstance(position, torch.Tensor) else [1, 0, 4]
    if isinstance(position, int) and position == -1:
        edits = [
            Edit("pattern", 0, random(4, 1), "scale", position=-1) if edit.site == "pattern" else edit for edit in edits
        ]
    prompts = [PROMPTS[i] for i in examples]
    pairs = list(edited_generations(model, expected, prompts, examples, edits))
    assert [found for found, _ in pairs] == [wanted for _, wanted in pairs]


def test_edits_with_a_value_for_each_token_of_the_prompt_leave_generated_tokens_alone(model, expected):
    edit = values_for(model, Edit("v", 0))
    prompts = [PROMPTS[1], PROMPTS[4]]
    edit = dataclasses.replace(edit, value=edit.value[1])
    with hooks.intervene(model, edit):
        found = hooks.generate(model, prompts, max_new_tokens=N_NEW)
    assert found == [plainly(model, expected, prompt, edit, example=i) for i, prompt in enumerate(prompts)]


def test_an_edit_may_be_at_a_token_that_is_yet_to_be_generated(model, expected):
    edit = Edit("resid_post", 0, 5 * random(16), position=14)
    with hooks.intervene(model, edit):
        found = hooks.generate(model, [PROMPTS[1]], max_new_tokens=N_NEW)
    assert found == [plainly(model, expected, PROMPTS[1], edit)]
    assert found != hooks.generate(model, [PROMPTS[1]], max_new_tokens=N_NEW)


def test_transformers_own_generation_of_a_left_padded_batch_is_changed(tiny, expected):
    edit = Edit("resid_pre", 1, 3 * random(5, 16), position=IN_EACH_PROMPT)
    batch = backends.make_batch(PROMPTS, "cpu", "left")
    with hooks.intervene(tiny, edit), torch.no_grad():
        longer = tiny.model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
    for i, prompt in enumerate(PROMPTS):
        wanted = plainly(tiny, expected, prompt, edit, n_new=3, example=i)
        assert longer[i, 12 : 12 + len(wanted)].tolist() == wanted


def test_generation_stops_before_the_end_token(model, monkeypatch, expected):
    monkeypatch.setattr(backends.get_huggingface_model(model).generation_config, "eos_token_id", None)
    whole = hooks.generate(model, PROMPTS, max_new_tokens=N_NEW)
    for end in (whole[1][2], [whole[1][2], 299]):
        monkeypatch.setattr(backends.get_huggingface_model(model).generation_config, "eos_token_id", end)
        end_token = whole[1][2]
        wanted = [row[: row.index(end_token)] if end_token in row else row for row in whole]
        assert hooks.generate(model, PROMPTS, max_new_tokens=N_NEW) == [
            row[: row.index(299)] if isinstance(end, list) and 299 in row else row for row in wanted
        ]


def test_generation_of_the_real_model_agrees_across_backends(embedded_on):
    prompts = ["The capital of France is", "Once upon a time"]
    found = {}
    for backend, loaded in embedded_on.items():
        found[backend] = [hooks.generate(loaded, prompts, max_new_tokens=4)]
        width = loaded.config.hidden_size
        edit = Edit("resid_post", 10, 20 * random(width), "add", position=-1)
        with hooks.intervene(loaded, edit):
            found[backend].append(hooks.generate(loaded, prompts, max_new_tokens=4))
    assert found["huggingface"] == found["transformer_lens"] == found["nnsight"]
    plain, changed = found["huggingface"]
    assert plain != changed
    assert embedded_on["huggingface"].token_labels(plain[0])[0] == " Paris"


# Hooks are always removed


def state(loaded):
    """All that watching could leave behind."""
    plain = backends.get_huggingface_model(loaded)
    modules = {id(module): module for top in (loaded.model, plain) for module in top.modules()}.values()
    return (
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
        sum(len(getattr(module, "fwd_hooks", ())) for module in modules),
        len(getattr(loaded.model, "_edits", [])),
        plain.config._attn_implementation,
        sum(map(len, backends._ATTENTION_TAPS.values())),
    )


def one_edit_at_every_site(loaded):
    return [Edit(site, 1, 0.5, "scale") for site in sites_of(loaded)]


def test_nothing_is_left_behind(model):
    before = state(model)
    hooks.capture(model, PROMPTS, [*sites_of(model), "logits"])
    assert state(model) == before
    with hooks.intervene(model, *one_edit_at_every_site(model)):
        during = state(model)
        assert during != before
        hooks.capture(model, PROMPTS, [*sites_of(model), "logits"])
        hooks.generate(model, PROMPTS[:1], max_new_tokens=2)
        assert state(model) == during
    assert state(model) == before
    hooks.generate(model, PROMPTS[:1], max_new_tokens=2)
    hooks.measure_losses(model, torch.tensor(PROMPTS[:1]))
    assert state(model) == before


def test_nothing_is_left_behind_after_an_exception_in_the_body(model):
    before = state(model)
    with pytest.raises(ZeroDivisionError), hooks.intervene(model, *one_edit_at_every_site(model)):
        hooks.capture(model, PROMPTS, "resid_post")
        _ = 1 / 0
    assert state(model) == before


def test_nothing_is_left_behind_after_an_exception_in_the_model(model):
    class Broken(Exception):
        pass

    def break_down(*_):
        raise Broken

    mlp = next(
        module
        for name, module in backends.get_huggingface_model(model).named_modules()
        if re.search(r"(layers|h)\.1\.(.+\.)?mlp$", name)
    )
    handle = mlp.register_forward_pre_hook(break_down)
    before = state(model)
    for run in (
        lambda: hooks.capture(model, PROMPTS, sites_of(model)),
        lambda: hooks.generate(model, PROMPTS, max_new_tokens=2),
        lambda: hooks.measure_losses(model, torch.tensor(PROMPTS[:1])),
    ):
        with pytest.raises(Exception), hooks.intervene(model, *one_edit_at_every_site(model)):  # noqa: B017
            run()
        assert state(model) == before
        with pytest.raises(Exception):  # noqa: B017
            run()
        assert state(model) == before
    handle.remove()
    hooks.capture(model, PROMPTS, sites_of(model))


def test_nothing_is_left_behind_by_edits_that_are_refused(model):
    before = state(model)
    for edit in (Edit("q", 9), Edit("nose", 0), Edit("q", 0, random(77)), Edit("q", 0, position=40)):
        with pytest.raises(models.InputError), hooks.intervene(model, Edit("pattern", 0), edit):
            hooks.capture(model, PROMPTS, "resid_post")
        assert state(model) == before


def test_the_users_own_hooks_and_edits_stay(llama, expected):
    own = Edit("resid_post", 0, 2.0, "scale")
    if llama.backend == "nnsight":
        with llama.model.edit(inplace=True):
            llama.model.model.layers[0].output = 2 * llama.model.model.layers[0].output
    elif llama.backend == "transformer_lens":
        llama.model.add_hook("blocks.0.hook_out", lambda tensor, hook: 2 * tensor)
    else:
        handle = llama.model.model.layers[0].register_forward_hook(lambda *call: 2 * call[-1])
    try:
        before = state(llama)
        with hooks.intervene(llama, Edit("q", 1, 0.5, "scale")):
            within = hooks.capture(llama, PROMPTS, "logits", positions="all")
        after = hooks.capture(llama, PROMPTS, "logits", positions="all")
        assert state(llama) == before
    finally:
        if llama.backend == "nnsight":
            llama.model._edits = []
        elif llama.backend == "transformer_lens":
            llama.model.reset_hooks()
        else:
            handle.remove()
    assert_all_as_by_hand(within, expected, llama, own, Edit("q", 1, 0.5, "scale"))
    assert_all_as_by_hand(after, expected, llama, own)


# Edits that never take place


def test_an_edit_without_any_pass_is_named(llama, refused):
    with refused("replace q of layer 1 head 2 position 3", "no forward pass"):
        with hooks.intervene(llama, Edit("q", 1, head=2, position=3)):
            pass


@pytest.mark.parametrize("position", [12, -13, [12, 40], torch.tensor([5, 12, 1, 9, 12])])
def test_an_edit_beyond_every_prompt_is_named(llama, position, refused):
    with refused("add v of layer 0", "position", "12 tokens"):
        with hooks.intervene(llama, Edit("v", 0, 1.0, "add", position=position)):
            hooks.capture(llama, PROMPTS, "resid_post")


LATER_LAYER = pytest.mark.parametrize(
    "backend",
    ["huggingface", "transformer_lens", "nnsight"],
)


@LATER_LAYER
def test_an_edit_after_the_last_layer_needed_is_named(load_tiny, backend, refused):
    loaded = load_tiny("llama", backend)
    with refused("scale mlp_out of layer 1", "never took place"):
        with hooks.intervene(loaded, Edit("q", 0), Edit("mlp_out", 1, how="scale")):
            hooks.capture(loaded, PROMPTS, "resid_post", layers=[0])


@LATER_LAYER
def test_an_edit_after_the_last_layer_needed_takes_place_in_a_later_pass(load_tiny, backend):
    loaded = load_tiny("llama", backend)
    with hooks.intervene(loaded, Edit("mlp_out", 1)):
        hooks.capture(loaded, PROMPTS, "resid_post", layers=[0])
        assert hooks.capture(loaded, PROMPTS, "mlp_out")["mlp_out"][:, 1].abs().max() == 0


def test_the_sentence_about_an_edit_is_one_line_however_many_prompts_there_are(llama, token_ids, refused):
    with refused("replace q of layer 1", "never took place"):
        with hooks.intervene(llama, Edit("q", 1, position=torch.full((len(token_ids),), 50))):
            hooks.capture(llama, token_ids, "resid_post")


def test_an_exception_is_not_hidden_by_an_edit_that_did_not_take_place(llama):
    with pytest.raises(ZeroDivisionError), hooks.intervene(llama, Edit("q", 0)):
        _ = 1 / 0


# Bad input

CAPTURES = [
    ({"sites": "resid"}, "'resid'", *hooks.SITES),
    ({"sites": ["q", "logit"]}, "'logit'"),
    ({"sites": []}, "nothing to capture"),
    ({"layers": []}, "nothing to capture"),
    ({"layers": [0, 2]}, "layer 2", "0 to 1"),
    ({"layers": [-1]}, "layer -1", "0 to 1"),
    ({"padding_side": "middle"}, "'middle'", "right, left"),
    ({"positions": "first"}, "'first'", "all, mean, last, second_to_last"),
    ({"positions": 5}, "position 5 of prompt 0", "-5 to 4"),
    ({"positions": [0, -2]}, "position -2 of prompt 2", "-1 to 0"),
    ({"positions": "second_to_last"}, "position -2 of prompt 2"),
    ({"positions": []}, "no positions"),
    ({"positions": {"here": [0, 0]}}, "'here'", "2", "5"),
    ({"positions": {"here": [0, 0, 0, 9, 0]}}, "position 9 of prompt 3", "-9 to 8"),
    ({"prompts": []}, "at least one"),
    ({"prompts": "a text"}, "a text"),
    ({"prompts": [[1], []]}, "prompt 1", "at least one"),
    ({"prompts": ["a", ""]}, "prompt 1", "at least one"),
    ({"prompts": [[1], [1] * 65]}, "prompt 1", "65", "64"),
    ({"prompts": [[1], [2, 300]]}, "prompt 1", "300", "0 to 299"),
    ({"prompts": [[-1]]}, "prompt 0", "-1", "0 to 299"),
]


@pytest.mark.parametrize(
    ("options", "parts"),
    [(options, parts) for options, *parts in CAPTURES]
    + [
        ({"sites": "logits", "layers": [2]}, ["layer 2", "0 to 1"]),
        ({"prompts": [1, 2, 3]}, ["token ids"]),
    ],
)
def test_a_bad_capture_is_refused_with_what_is_legal(options, parts, load_tiny, refused):
    with refused(*parts):
        hooks.capture(load_tiny("llama"), **({"prompts": PROMPTS, "sites": "q"} | options))


EDITS = [
    (Edit("resid", 0), "'resid'", *hooks.SITES),
    (Edit("logits", 0), "'logits'", *hooks.SITES),
    (Edit("q", 2), "layer 2", "0 to 1"),
    (Edit("q", -1), "layer -1", "0 to 1"),
    (Edit("q", 0, how="multiply"), "'multiply'", "replace, add, scale"),
    (Edit("q", 0, head=4), "0.4", "0 to 3"),
    (Edit("q", 0, head=-1), "0.-1", "0 to 3"),
    (Edit("pattern", 1, head=[0, 4]), "1.4", "0 to 3"),
    (Edit("k", 0, head=2), "key/value head 0.2", "0 to 1"),
    (Edit("resid_post", 0, head=0), "resid_post has no heads"),
    (Edit("q", 0, torch.tensor([1.0, torch.nan, 0, 0])), "replace q of layer 0", "finite"),
    (Edit("q", 0, random(5)), "replace q of layer 0", "[4, 4]"),
    (Edit("q", 0, random(3, 4), "add"), "add q of layer 0"),
    (Edit("q", 0, random(3, 1, 1, 1, 1)), "5 axes", "4"),
    (Edit("q", 0, random(5, 4, 4), head=1, position=1), "3 axes", "2"),
]


@pytest.mark.parametrize(("edit", "parts"), [(edit, parts) for edit, *parts in EDITS])
def test_a_bad_edit_is_refused_with_what_is_legal(edit, parts, llama, refused):
    with refused(*parts), hooks.intervene(llama, edit):
        hooks.capture(llama, PROMPTS, "resid_post", **SEVERAL_BATCHES)


BROKEN_EDITS = [
    (Edit("q", 0, float("nan")), ["replace q of layer 0", "finite"]),
    (Edit("q", 0, float("inf"), "add"), ["add q of layer 0", "finite"]),
    (Edit("q", 0, random(4, 4), "add", head=[1]), ["add q of layer 0"]),
    (Edit("q", 0, random(2, 4), head=1, position=0), ["2 prompts", "5"]),
    (Edit("q", 0, random(6, 4), head=1, position=0), ["6 prompts", "5"]),
    (Edit("q", 0, random(5, 2, 4, 4), position=[0, 1, 2]), ["2 positions", "3"]),
    (Edit("q", 0, random(5, 7, 4, 4)), ["7 positions", "12"]),
    (Edit("q", 0, position=torch.tensor([0, 0])), ["2 prompts", "5"]),
    (Edit("q", 0, position=torch.tensor([0] * 7)), ["7 prompts", "5"]),
    (Edit("q", 0, position="last"), ["'last'"]),
]


@pytest.mark.parametrize(("edit", "parts"), BROKEN_EDITS)
def test_a_worse_edit_is_refused_with_what_is_legal(edit, parts, load_tiny, refused):
    with refused(*parts), hooks.intervene(load_tiny("llama"), edit):
        hooks.capture(load_tiny("llama"), PROMPTS, "resid_post", **SEVERAL_BATCHES)


def test_numbers_of_numpy_are_numbers(load_tiny):
    loaded, np = load_tiny("llama"), pytest.importorskip("numpy")
    three, one = np.int64(3), np.int64(1)
    plain = hooks.capture(loaded, PROMPTS[:2], "q", layers=[1], positions=3)
    assert torch.equal(hooks.capture(loaded, PROMPTS[:2], "q", layers=[one], positions=three)["q"], plain["q"])
    for edit in (Edit("q", one, 0.0, head=three, position=one), Edit("q", 1, head=np.array([3]), position=one)):
        with hooks.intervene(loaded, edit):
            found = hooks.capture(loaded, PROMPTS[:2], "q", positions="all")["q"]
        assert found[:, 1, 1, 3].abs().max() == 0 and found[:, 1, 1, :3].abs().min() > 0


def damaged(loaded):
    """A copy of a plain model in which one number of layer 1's MLP is missing."""
    model = copy.deepcopy(loaded.model)
    model.model.layers[1].mlp.down_proj.weight[3, 2] = torch.nan
    return dataclasses.replace(loaded, model=model)


def test_an_activation_that_is_no_number_is_refused_with_its_site(load_tiny, refused):
    loaded = damaged(load_tiny("llama"))
    for positions in ("all", "mean", "last"):
        hooks.capture(loaded, PROMPTS, ["resid_mid", "pattern"], positions=positions)
        with refused("mlp_out", "NaN"):
            hooks.capture(loaded, PROMPTS, ["resid_mid", "mlp_out"], positions=positions)
        with refused("logits", "NaN"):
            hooks.capture(loaded, PROMPTS, "logits", positions=positions)


@pytest.mark.parametrize("family", ["bert", "opt", "mamba"])
def test_an_unknown_architecture_is_refused_by_its_name(family, foreign_folders, refused):
    loaded = models.load(str(foreign_folders[family]))
    for site in ("resid_post", "head_z", "logits"):
        with refused(repr(family), *FAMILIES):
            hooks.capture(loaded, PROMPTS, site)
    with refused(repr(family)), hooks.intervene(loaded, Edit("resid_post", 0)):
        pass


@pytest.mark.parametrize("family", ["bert", "opt", "mamba"])
def test_losses_of_an_unknown_architecture_are_right_or_refused(family, foreign_folders, token_ids):
    loaded = models.load(str(foreign_folders[family]))
    try:
        losses = hooks.measure_losses(loaded, token_ids[:2])
    except models.InputError as error:
        assert repr(family) in str(error)
    else:
        assert_close(losses[0].double(), naive_losses(loaded, token_ids[0]))


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_generation_beyond_the_context_is_refused(load_tiny, backend, refused):
    with refused("64"):
        hooks.generate(load_tiny("gpt2", backend), [[1] * 60], max_new_tokens=10)


@pytest.mark.parametrize("n_new", [0, -1])
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "huggingface"])
def test_generation_of_no_token_is_refused(load_tiny, backend, n_new, refused):
    with refused(n_new, "1"):
        hooks.generate(load_tiny("llama", backend), PROMPTS, max_new_tokens=n_new)


# Ablation

EQUALLY_LONG = [PROMPTS[1], PROMPTS[4], PROMPTS[1][::-1], PROMPTS[4][::-1]]


@pytest.mark.parametrize("site", ["head_z", "k", "pattern", "mlp_out"])
@pytest.mark.parametrize(("head", "position"), [(None, None), (1, None), ([1, 0], 3), (1, -1)])
def test_ablations_are_edits_with_the_values_they_promise(tiny, site, head, position):
    head = head if site in WITH_HEADS else None
    options = {"head": head, "position": position}
    assert hooks.ablation(tiny, site, 1, **options) == Edit(site, 1, 0.0, **options)

    def take(values, axis):
        return values if head is None else values[(slice(None),) * axis + (head,)]

    reference = hooks.capture(tiny, PROMPTS, site, positions="all", layers=[1])
    rows = torch.cat([part(reference, site, i)[0] if site != "pattern" else rows_of(reference, i) for i in range(5)])
    mean = hooks.ablation(tiny, site, 1, how="mean", reference=reference, **options)
    assert_close(mean.value.nan_to_num(), take(rows.nanmean(0), 0))

    reference = hooks.capture(tiny, EQUALLY_LONG, site, positions="all", layers=[1])
    values = torch.stack([part(reference, site, i)[0] for i in range(4)])
    values = take(values, 2) if position is None else take(values[:, position], 1)
    drawn = set()
    for seed in range(20):
        edit = hooks.ablation(tiny, site, 1, how="resample", reference=reference, seed=seed, **options)
        again = hooks.ablation(tiny, site, 1, how="resample", reference=reference, seed=seed, **options)
        assert torch.equal(edit.value, again.value)
        donors = tuple(next(j for j in range(4) if torch.equal(values[j], edit.value[i])) for i in range(4))
        assert sorted(donors) == [0, 1, 2, 3]
        assert all(i != donor for i, donor in enumerate(donors))
        drawn.add(donors)
    assert len(drawn) > 2


def rows_of(reference, i):
    return reference["pattern"][i, 0].transpose(0, 1)[: LENGTHS[i]]


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
@pytest.mark.parametrize("site", hooks.SITES)
def test_ablations_run(llama, site, how):
    reference = hooks.capture(llama, EQUALLY_LONG, site, positions="all")
    edit = hooks.ablation(llama, site, 0, how=how, reference=reference)
    before = hooks.capture(llama, EQUALLY_LONG, "logits")["logits"]
    with hooks.intervene(llama, edit):
        captured = hooks.capture(llama, EQUALLY_LONG, [site, "logits"], positions="all")
    found = captured[site][:, 0].transpose(1, 2) if site == "pattern" else captured[site][:, 0]
    assert_close(found, torch.as_tensor(edit.value).expand_as(found))
    assert (captured["logits"][:, -1] - before[:, 0]).abs().max() > 1e-3


def test_a_single_position_is_unchanged_by_the_mean_of_itself(model):
    one = [PROMPTS[2]]
    before = hooks.capture(model, one, ["head_z", "logits"], positions="all")
    other = hooks.capture(model, [[7]], "head_z", positions="all")
    for reference, same in ((before, True), (other, False)):
        edits = [hooks.ablation(model, "head_z", layer, how="mean", reference=reference) for layer in (0, 1)]
        with hooks.intervene(model, *edits):
            after = hooks.capture(model, one, "logits")["logits"]
        assert ((after - before["logits"]).abs().max() < 1e-4) == same


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"how": "remove"}, ["'remove'", "zero, mean, resample"]),
        ({"how": "mean"}, ["reference", "head_z of layer 1"]),
        ({"how": "mean", "reference": "other site"}, ["reference", "head_z of layer 1"]),
        ({"how": "resample", "reference": "other layer"}, ["reference", "head_z of layer 1"]),
        ({"how": "resample", "reference": "other lengths"}, ["one length"]),
        ({"how": "resample", "reference": "one prompt"}, ["two", "not 1"]),
        ({"layer": 2}, ["layer 2", "0 to 1"]),
        ({"site": "nose"}, ["'nose'"]),
        ({"how": "mean", "reference": "good", "head": 4}, ["4", "0 to 3"]),
        ({"how": "resample", "reference": "good", "position": 12}, ["position 12"]),
        ({"how": "mean", "reference": "last token"}, ["all positions"]),
        ({"how": "resample", "reference": "last token"}, ["all positions"]),
    ],
)
def test_a_bad_ablation_is_refused(options, parts, load_tiny, refused):
    loaded = load_tiny("llama")
    references = {
        "good": (EQUALLY_LONG, {"sites": "head_z"}),
        "other site": (EQUALLY_LONG, {"sites": "q"}),
        "other layer": (EQUALLY_LONG, {"sites": "head_z", "layers": [0]}),
        "other lengths": (PROMPTS, {"sites": "head_z"}),
        "one prompt": (PROMPTS[:1], {"sites": "head_z"}),
        "last token": (EQUALLY_LONG, {"sites": "head_z", "positions": "last"}),
    }
    options = {"site": "head_z", "layer": 1} | options
    if "reference" in options:
        prompts, wanted = references[options["reference"]]
        options["reference"] = hooks.capture(loaded, prompts, **({"positions": "all"} | wanted))
    with refused(*parts):
        hooks.ablation(loaded, **options)


# Losses


def naive_losses(loaded, sequence):
    with torch.inference_mode():
        logits = loaded.model(sequence[None]).logits[0]
    log_probabilities = logits.double().log_softmax(dim=-1)
    return torch.stack([-log_probabilities[i, sequence[i + 1]] for i in range(len(sequence) - 1)])


def test_losses_are_those_of_a_plain_log_softmax_for_each_sequence(tiny, token_ids):
    naive = torch.stack([naive_losses(tiny, sequence) for sequence in token_ids])
    losses = hooks.measure_losses(tiny, token_ids)
    assert naive.std() > 0.5
    torch.testing.assert_close(losses.double(), naive, atol=1e-4, rtol=1e-5)


def test_losses_on_the_other_backends_are_the_same_and_change_with_an_edit(model, load_tiny, token_ids):
    plain = load_tiny(model.config.model_type)
    assert_close(hooks.measure_losses(model, token_ids), hooks.measure_losses(plain, token_ids))
    edit = Edit("head_z", 0, random(40, 1), head=2, position=4)
    with hooks.intervene(model, edit):
        changed = hooks.measure_losses(model, token_ids)
    with hooks.intervene(plain, edit):
        assert_close(changed, hooks.measure_losses(plain, token_ids))
    before = hooks.measure_losses(model, token_ids)
    assert_close(changed[:, :4], before[:, :4])
    assert (changed[:, 4:] - before[:, 4:]).abs().max() > 1e-2


def test_a_single_token_has_no_loss(llama):
    assert hooks.measure_losses(llama, torch.tensor([[1], [2]])).shape == (2, 0)


@pytest.mark.parametrize("entries", [[3], [0, 28], [28, 5, 5, 0], range(10, 20), torch.tensor([7, 2]), list(range(29))])
def test_chosen_entries_are_those_columns_of_all_losses(llama, entries, token_ids):
    everything = hooks.measure_losses(llama, token_ids)
    found = hooks.measure_losses(llama, token_ids, entries=entries)
    torch.testing.assert_close(found, everything[:, list(entries)], atol=1e-5, rtol=1e-5)
    with hooks.intervene(llama, Edit("head_z", 0, random(40, 1), head=2, position=4)):
        changed = hooks.measure_losses(llama, token_ids)
        found = hooks.measure_losses(llama, token_ids, entries=entries)
    torch.testing.assert_close(found, changed[:, list(entries)], atol=1e-5, rtol=1e-5)


def test_chosen_entries_of_every_family_are_those_columns_of_all_losses(model, token_ids):
    found = hooks.measure_losses(model, token_ids[:5], entries=[20, 4])
    assert_close(found, hooks.measure_losses(model, token_ids[:5])[:, [20, 4]])


@pytest.mark.parametrize("entries", [[29], [-1], [0, 1, 30], [2, -29]])
def test_entries_that_there_are_not_are_refused(llama, entries, token_ids, refused):
    with refused("entries", entries, "legal", "0 to 28"):
        hooks.measure_losses(llama, token_ids, entries=entries)


@pytest.mark.parametrize("entry", [1.5, "last", None])
def test_an_entry_that_is_no_number_is_refused(llama, entry, token_ids, refused):
    with refused(repr(entry), "whole number"):
        hooks.measure_losses(llama, token_ids, entries=[0, entry])


def test_no_entry_gives_no_loss(llama, token_ids):
    assert hooks.measure_losses(llama, token_ids, entries=[]).shape == (40, 0)


@pytest.fixture
def fused_calls(monkeypatch):
    """One entry for each call of PyTorch's fused attention."""
    calls, real = [], torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments, **options):
        calls.append(arguments[0].shape)
        return real(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return calls


def losses_of_captured_logits(loaded, tokens):
    logits = hooks.capture(loaded, tokens, "logits", positions="all")["logits"]
    return -logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]


@pytest.mark.parametrize("edits", [[], [Edit("resid_pre", 1, 1.5, "scale")], [Edit("head_z", 1, 2.0, head=3)]])
def test_losses_with_fused_attention_are_those_of_the_captured_logits(tiny, edits, token_ids, fused_calls):
    plain = hooks.measure_losses(tiny, token_ids)
    fused_calls.clear()
    with hooks.intervene(tiny, *edits):
        losses = hooks.measure_losses(tiny, token_ids)
        n_fused = len(fused_calls)
        wanted = losses_of_captured_logits(tiny, token_ids)
    assert n_fused == len(fused_calls) == 4  # two layers, two batches
    torch.testing.assert_close(losses, wanted, atol=1e-4, rtol=1e-4)
    assert bool(edits) == bool((losses - plain).abs().max() > 1e-2)


@pytest.mark.parametrize("site", ["pattern", "rot_q", "rot_k"])
def test_edits_inside_attention_act_on_losses_as_well(tiny, site, token_ids, fused_calls, expected):
    if backends.explain_missing(tiny, site):
        pytest.skip("no such site")
    plain = hooks.measure_losses(tiny, token_ids)
    fused_calls.clear()
    edit = Edit(site, 0, 0.0, head=1, position=10)
    with hooks.intervene(tiny, edit):
        losses = hooks.measure_losses(tiny, token_ids)
        wanted = losses_of_captured_logits(tiny, token_ids)
    assert fused_calls == []
    torch.testing.assert_close(losses, wanted, atol=1e-4, rtol=1e-4)
    by_hand = expected(tiny, token_ids[0], edit)["logits"][:-1].log_softmax(-1)
    assert_close(losses[0], -by_hand.gather(1, token_ids[0, 1:, None])[:, 0])
    torch.testing.assert_close(losses[:, :10], plain[:, :10], atol=1e-4, rtol=1e-4)
    assert (losses[:, 10] - plain[:, 10]).abs().max() > 1e-2


def test_losses_in_an_inner_context_and_after_one_are_right_again(tiny, token_ids, fused_calls):
    plain = hooks.measure_losses(tiny, token_ids)
    with hooks.intervene(tiny, Edit("head_z", 0, 2.0, "scale", head=0)):
        outer = hooks.measure_losses(tiny, token_ids)
        with hooks.intervene(tiny, Edit("pattern", 1, 0.5, "scale", head=2)):
            inner = hooks.measure_losses(tiny, token_ids)
            torch.testing.assert_close(inner, losses_of_captured_logits(tiny, token_ids), atol=1e-4, rtol=1e-4)
        assert torch.equal(hooks.measure_losses(tiny, token_ids), outer)
    assert torch.equal(hooks.measure_losses(tiny, token_ids), plain)
    assert (outer - plain).abs().max() > 1e-2 < (inner - outer).abs().max()
    assert len(fused_calls) == 4 * 4


@given(n_sequences=st.integers(1, 200), length=st.integers(1, 3000))
def test_batches_keep_all_sequences_in_order_and_hold_about_a_thousand_tokens(n_sequences, length):
    order = torch.arange(n_sequences)
    batches = list(hooks.split_batches(order, torch.full((n_sequences,), length), hooks.TOKENS_PER_BATCH))
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == 1 or len(batch) * length <= hooks.TOKENS_PER_BATCH for batch in batches)
    assert all(len(batch) * length > hooks.TOKENS_PER_BATCH - length for batch in batches[:-1])


# Random sets of heads to compare with

SETS_OF_HEADS = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=8).map(sorted)


@given(heads=SETS_OF_HEADS, seed=st.integers(0, 1000))
def test_random_sets_have_as_many_other_heads_in_every_layer(load_tiny, heads, seed):
    loaded = load_tiny("llama")
    per_layer = [sum(layer == i for layer, _ in heads) for i in range(2)]
    sets = baselines.draw_layer_matched_sets(loaded, heads, n_sets=5, seed=seed)
    if max(per_layer) > 2:  # of four
        assert sets == []
        return
    assert len(sets) == 5
    for chosen in sets:
        assert len(set(chosen)) == len(chosen) == len(heads)
        assert set(chosen).isdisjoint(heads)
        assert [sum(layer == i for layer, _ in chosen) for i in range(2)] == per_layer
        assert all(0 <= head < 4 for _, head in chosen)
    assert sets == baselines.draw_layer_matched_sets(loaded, heads, n_sets=5, seed=seed)


@given(heads=SETS_OF_HEADS.filter(bool), seed=st.integers(0, 1000))
def test_random_sets_that_may_share_heads_are_there_unless_only_one_could_be(load_tiny, heads, seed):
    loaded = load_tiny("llama")
    per_layer = [sum(layer == i for layer, _ in heads) for i in range(2)]
    sets = baselines.draw_layer_matched_sets(loaded, heads, n_sets=5, seed=seed, disjoint=False)
    if set(per_layer) <= {0, 4}:
        assert sets == []
        return
    assert len(sets) == 5
    for chosen in sets:
        assert len(set(chosen)) == len(chosen)
        assert [sum(layer == i for layer, _ in chosen) for i in range(2)] == per_layer


def test_random_sets_reach_every_other_head_about_equally_often(load_tiny):
    sets = baselines.draw_layer_matched_sets(load_tiny("llama"), [(1, 2)], n_sets=600, seed=0)
    counts = [sum((1, head) in chosen for chosen in sets) for head in range(4)]
    assert counts[2] == 0
    assert all(150 < counts[head] < 250 for head in (0, 1, 3))


# The real model


def test_ablating_the_induction_heads_of_the_real_model_hurts_more_than_ablating_others(embedded):
    generator = torch.Generator().manual_seed(0)
    segment = torch.randperm(40_000, generator=generator)[:25] + 1000
    tokens = torch.cat([segment, segment])[None]
    captured = hooks.capture(embedded, tokens, ["pattern", "head_z"], positions="all")
    to_what_followed = captured["pattern"][0].diagonal(offset=-24, dim1=-2, dim2=-1)[..., 1:].mean(-1)
    best = to_what_followed.flatten().topk(9).indices.tolist()
    heads = [divmod(i, embedded.n_heads) for i in best]
    assert to_what_followed.max() > 0.5

    def fall(*ablated):
        edits = [
            hooks.ablation(embedded, "head_z", layer, how="mean", head=head, reference=captured)
            for layer, head in ablated
        ]
        with hooks.intervene(embedded, *edits):
            losses = hooks.measure_losses(embedded, tokens)[0]
        return float(losses[:24].mean() - losses[25:].mean())

    others = baselines.draw_layer_matched_sets(embedded, heads, n_sets=1, seed=0)[0]
    before = fall()
    assert before > 3
    assert before - fall(*heads) > 3 * abs(before - fall(*others))
    assert fall() == before
