"""Sites, losses and generation are those computed by hand, on every backend. For edits see `test_hooks_edits`."""

import copy
import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.five_prompts import (
    LENGTHS,
    N_NEW,
    PROMPTS,
    assert_all_as_by_hand,
    assert_close,
    batches_of,
    capture_in_batches,
    part,
    plainly,
    random,
    sites_of,
)
from shared.tiny import FAMILIES

from helpers import baselines, hooks, models
from helpers.engine import backends
from helpers.hooks import Edit

pytestmark = pytest.mark.usefixtures("one_thread")


# Reading


def test_every_site_and_the_logits_are_those_computed_by_hand(model, expected):
    sites = [*sites_of(model), "logits"]
    captured = capture_in_batches(model, PROMPTS, sites, positions="all")
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
    captured = capture_in_batches(model, PROMPTS, sites_of(model), positions="all")
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


def test_positions_select_from_what_all_gives(llama):
    sites = ["resid_post", "head_z", "pattern", "logits"]

    def at(positions):
        return capture_in_batches(llama, PROMPTS, sites, positions=positions)

    everything = at("all")
    long = [i for i, n in enumerate(LENGTHS) if n > 1]
    each = torch.tensor([0, 11, 0, 3, -2])
    named = at({"first": 0, "each": each, "same as a list": each.tolist()})
    assert named.positions == ("first", "each", "same as a list")
    assert at(-1).positions == ("-1",)
    assert at(each).positions == at(each.tolist()).positions == at(each.numpy()).positions == ("each",)
    for site in sites:
        axis = everything.axes[site].index("query" if site == "pattern" else "position") - 1

        def of(captured, number, axis=axis, site=site):
            return captured[site].select(axis + 1, number)

        for i, n in enumerate(LENGTHS):
            rows = everything[site][i].split(1, dim=axis)
            assert_close(of(at("last"), 0)[i].nan_to_num(), rows[n - 1].squeeze(axis).nan_to_num())
            assert_close(of(at(each), 0)[i].nan_to_num(), rows[each[i]].squeeze(axis).nan_to_num())
            assert_close(of(named, 0)[i].nan_to_num(), rows[0].squeeze(axis).nan_to_num())
            wanted = rows[int(each[i]) % n].squeeze(axis).nan_to_num()
            assert_close(of(named, 1)[i].nan_to_num(), wanted)
            assert_close(of(named, 2)[i].nan_to_num(), wanted)
            mean = torch.cat(rows[:n], dim=axis).mean(axis)
            assert_close(of(at("mean"), 0)[i].nan_to_num(), mean.nan_to_num())
        prompts = [PROMPTS[i] for i in long]
        before_last = hooks.capture(llama, prompts, sites, positions="second_to_last")
        for i, example in enumerate(long):
            wanted = everything[site][example].select(axis, LENGTHS[example] - 2)
            assert_close(of(before_last, 0)[i].nan_to_num()[..., :5], wanted.nan_to_num()[..., :5])


def test_positions_that_a_prompt_does_not_have_hold_nan_and_only_these(model):
    captured = capture_in_batches(model, PROMPTS, [*sites_of(model), "logits"], positions="all")
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
    tokens_per_batch=st.integers(0, 80),
    seed=st.integers(0, 100),
)
def test_a_prompt_alone_gives_the_same_as_among_others(load_tiny, lengths, family, backend, tokens_per_batch, seed):
    loaded = load_tiny(family, backend)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(300, (n,), generator=generator).tolist() for n in lengths]
    sites = ["resid_post", "pattern", "logits"]
    with batches_of(tokens_per_batch):
        together = hooks.capture(loaded, prompts, sites, positions="all")
    for i, prompt in enumerate(prompts):
        alone = hooks.capture(loaded, [prompt], sites, positions="all")
        for site in sites:
            assert_close(part(together, site, i), part(alone, site, 0))


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


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_the_unembedding_runs_only_for_logits(load_tiny, backend):
    for family in FAMILIES:
        loaded = load_tiny(family, backend)
        called = modules_called(loaded, lambda loaded=loaded: hooks.capture(loaded, PROMPTS, "resid_post"))
        assert ran(called, IN_LAYER_1) and not ran(called, UNEMBEDDING)


# Memory that is too small


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


# Generation


def test_generation_is_that_of_running_the_whole_text_again(model, expected):
    found = hooks.generate(model, PROMPTS, max_new_tokens=N_NEW)
    assert found == [plainly(model, expected, prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, found))) > 2


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_a_model_that_asks_for_a_repetition_penalty_still_gives_its_most_likely_token(backend, load_tiny, expected):
    loaded = load_tiny("llama", backend)
    settings = backends.get_huggingface_model(loaded).generation_config
    settings.repetition_penalty = 0.01  # whatever was said becomes likely
    settings.no_repeat_ngram_size, settings.min_new_tokens, settings.num_beams = 1, 2, 3
    try:
        assert hooks.generate(loaded, PROMPTS, max_new_tokens=N_NEW) == [plainly(loaded, expected, p) for p in PROMPTS]
    finally:
        settings.repetition_penalty = settings.no_repeat_ngram_size = settings.min_new_tokens = settings.num_beams = (
            None
        )


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


def test_no_entry_gives_no_loss(llama, token_ids):
    assert hooks.measure_losses(llama, token_ids, entries=[]).shape == (40, 0)


# Bad input


CAPTURES = [
    ({"sites": "resid"}, "'resid'", *hooks.SITES),
    ({"sites": ["q", "logit"]}, "'logit'"),
    ({"sites": []}, "nothing to capture"),
    ({"layers": []}, "nothing to capture"),
    ({"layers": [0, 2]}, "layer 2", "0 to 1"),
    ({"layers": [-1]}, "layer -1", "0 to 1"),
    ({"positions": "first"}, "'first'", "all, mean, last, second_to_last"),
    ({"positions": 5}, "position 5 of prompt 0", "-5 to 4"),
    ({"positions": {"a": 0, "b": -2}}, "position -2 of prompt 2", "-1 to 0"),
    ({"positions": "second_to_last"}, "position -2 of prompt 2"),
    ({"positions": {}}, "no positions"),
    ({"positions": []}, "0 prompts", "5"),
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
    + [({"sites": "logits", "layers": [2]}, ["layer 2", "0 to 1"]), ({"prompts": [1, 2, 3]}, ["token ids"])],
)
def test_a_bad_capture_is_refused_with_what_is_legal(options, parts, load_tiny, refused):
    with refused(*parts):
        hooks.capture(load_tiny("llama"), **({"prompts": PROMPTS, "sites": "q"} | options))


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


@pytest.mark.parametrize("entries", [[29], [-1], [0, 1, 30], [2, -29]])
def test_entries_that_there_are_not_are_refused(llama, entries, token_ids, refused):
    with refused("entries", entries, "legal", "0 to 28"):
        hooks.measure_losses(llama, token_ids, entries=entries)


@pytest.mark.parametrize("entry", [1.5, "last", None])
def test_an_entry_that_is_no_number_is_refused(llama, entry, token_ids, refused):
    with refused(repr(entry), "whole number"):
        hooks.measure_losses(llama, token_ids, entries=[0, entry])


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_generation_beyond_the_context_is_refused(load_tiny, backend, refused):
    with refused("64"):
        hooks.generate(load_tiny("gpt2", backend), [[1] * 60], max_new_tokens=10)


@pytest.mark.parametrize("n_new", [0, -1])
@pytest.mark.parametrize("backend", models.BACKENDS)
def test_generation_of_no_token_is_refused(load_tiny, backend, n_new, refused):
    with refused(n_new, "1"):
        hooks.generate(load_tiny("llama", backend), PROMPTS, max_new_tokens=n_new)


# The real model, all of it here, so that it is loaded once


@pytest.mark.slow
def test_the_backends_agree_on_the_real_model(embedded_on):
    prompts = ["The capital of France is", "Hello", "One two three four five six seven"]
    sites = [*hooks.SITES, "logits"]
    options = {"layers": [0, 17, 29], "positions": "all"}
    reference = hooks.capture(embedded_on["huggingface"], prompts, sites, **options)
    for loaded in embedded_on.values():
        captured = hooks.capture(loaded, prompts, sites, **options)
        for site in sites:
            assert torch.equal(captured[site].isnan(), reference[site].isnan())
            assert_close(captured[site].nan_to_num(), reference[site].nan_to_num())
    best = reference["logits"][0, reference.lengths[0] - 1].argmax()
    assert embedded_on["huggingface"].token_labels([int(best)]) == [" Paris"]


@pytest.mark.slow
@pytest.mark.parametrize("site", hooks.SITES)
def test_the_backends_agree_on_the_real_model_when_it_is_changed(site, embedded_on):
    prompts = ["The capital of France is", "One two three four five six seven"]
    head = None if hooks.SITES[site][-1] == "d_model" else 1
    found = []
    for loaded in embedded_on.values():
        with hooks.intervene(loaded, *(Edit(site, 17, 0.3, "scale", head, position) for position in (0, 2, -1))):
            found.append(hooks.capture(loaded, prompts, "logits")["logits"])
    plain = hooks.capture(loaded, prompts, "logits")["logits"]
    assert (found[0] - plain).abs().max() > 1e-3
    for other in found[1:]:
        assert_close(other, found[0])


@pytest.mark.slow
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
        means = captured["head_z"][0].mean(1)
        edits = [Edit("head_z", layer, means[layer, head], head=head) for layer, head in ablated]
        with hooks.intervene(embedded, *edits):
            losses = hooks.measure_losses(embedded, tokens)[0]
        return float(losses[:24].mean() - losses[25:].mean())

    others = baselines.draw_controls(embedded, heads, n_sets=1, seed=0).sets[0]
    before = fall()
    assert before > 3
    assert before - fall(*heads) > 3 * abs(before - fall(*others))
    assert fall() == before
