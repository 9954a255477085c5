"""Edits have the effect computed by hand, on whatever runs while they are in place, and leave nothing behind."""

import dataclasses
import re

import pytest
import torch
from shared.five_prompts import (
    LENGTHS,
    N_NEW,
    PROMPTS,
    assert_all_as_by_hand,
    assert_close,
    capture_in_batches,
    pad_left,
    plainly,
    random,
    sites_of,
)

from helpers import hooks, models
from helpers.engine import attention, backends
from helpers.hooks import Edit

pytestmark = pytest.mark.usefixtures("one_thread")

WITH_HEADS = [site for site, axes in hooks.SITES.items() if len(axes) == 3]
ONE_FOR_EACH = torch.tensor([2, 7, 0, -1, 11])
IN_EACH_PROMPT = torch.tensor([2, 7, 0, 8, 11])  # the same tokens also when more follow
SELECTIONS = [
    (None, None),
    (1, None),
    ([1, 0], None),
    (1, 3),
    (None, [2, 7, 0, -1, 11]),
    (0, -1),
    ((1,), (-1, 4, 0, 2, -2)),
    (1, ONE_FOR_EACH),
    (None, ONE_FOR_EACH),
]


def values_for(loaded, edit, *, seed=0):
    """The edit with random values of its own for each prompt, head and position."""
    old = hooks.capture(loaded, PROMPTS, edit.site, layers=[edit.layer], positions="all")[edit.site][:, 0]
    if edit.site == "pattern":
        old = old.transpose(1, 2)
    if edit.head is not None:
        old = old[:, :, list(edit.head) if isinstance(edit.head, tuple) else edit.head]
    if edit.position is not None:
        old = old[:, 0]
    value = random(*old.shape, seed=seed)
    if edit.site == "pattern":  # no attention to the padding
        value *= (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).view(5, *[1] * (value.ndim - 2), 12)
    return dataclasses.replace(edit, value=value)


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
        changed = values_for(model, edit, seed=number)
        with hooks.intervene(model, changed):
            found = capture_in_batches(model, PROMPTS, "logits", positions="all")
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
            found = capture_in_batches(loaded, PROMPTS, ["k", "logits"], positions="all")
        assert_all_as_by_hand(found, expected, loaded, edit)


@pytest.mark.parametrize("site", hooks.SITES)
def test_sites_read_during_an_edit_are_those_computed_by_hand(model, site, expected):
    """Those before the edit as they were, the site itself and those after it as changed."""
    if backends.explain_missing(model, site):
        pytest.skip("no such site")
    edit = values_for(model, Edit(site, 0))
    sites = [*sites_of(model), "logits"]
    with hooks.intervene(model, edit):
        captured = capture_in_batches(model, PROMPTS, sites, positions="all")
        again = capture_in_batches(model, PROMPTS, sites, positions="all")
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
            after = capture_in_batches(model, PROMPTS, "logits", positions="all")
        assert_close(after["logits"].nan_to_num(), before["logits"].nan_to_num(), limit=1e-5)


def test_the_last_residual_stream_of_another_run_gives_its_logits(model):
    others = [tokens[::-1] for tokens in PROMPTS]
    wanted = hooks.capture(model, others, ["resid_post", "logits"], positions="all")
    with hooks.intervene(model, Edit("resid_post", 1, wanted["resid_post"][:, 1].nan_to_num())):
        found = capture_in_batches(model, PROMPTS, "logits", positions="all")
    assert_close(found["logits"].nan_to_num(), wanted["logits"].nan_to_num(), limit=1e-5)


EQUALLY_LONG = [PROMPTS[1], PROMPTS[4], PROMPTS[1][::-1], PROMPTS[4][::-1]]


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_what_an_ablation_writes_is_read_at_its_site(llama, how):
    for site in hooks.SITES:
        before = hooks.capture(llama, EQUALLY_LONG, [site, "logits"], layers=[0], positions="all")
        old = before[site][:, 0].transpose(1, 2) if site == "pattern" else before[site][:, 0]
        value = {"zero": 0.0, "mean": old.mean((0, 1)), "resample": old.roll(1, dims=0)}[how]
        with hooks.intervene(llama, Edit(site, 0, value)):
            captured = hooks.capture(llama, EQUALLY_LONG, [site, "logits"], layers=[0], positions="all")
        found = captured[site][:, 0].transpose(1, 2) if site == "pattern" else captured[site][:, 0]
        assert_close(found, torch.as_tensor(value).expand_as(found))
        assert (captured["logits"] - before["logits"])[:, -1].abs().max() > 1e-3


def test_a_single_position_is_unchanged_by_the_mean_of_itself(model):
    one = [PROMPTS[2]]
    before = hooks.capture(model, one, ["head_z", "logits"], positions="all")
    other = hooks.capture(model, [[7]], "head_z", positions="all")
    for reference, same in ((before, True), (other, False)):
        edits = [Edit("head_z", layer, reference["head_z"][:, layer].mean((0, 1))) for layer in (0, 1)]
        with hooks.intervene(model, *edits):
            after = hooks.capture(model, one, "logits")["logits"]
        assert ((after - before["logits"]).abs().max() < 1e-4) == same


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "q", "rot_k", "pattern"])  # one of each way to reach it
def test_edits_of_one_site_apply_in_the_order_given_and_contexts_nest(model, site, expected):
    if backends.explain_missing(model, site):
        pytest.skip("no such site")
    steps = [
        values_for(model, Edit(site, 0, how=how, position=position), seed=seed)
        for seed, (how, position) in enumerate([("replace", None), ("scale", None), ("add", [0, 2, 0, -1, 1])])
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
    [("resid_pre", "resid_mid"), ("attn_out", "resid_mid"), ("resid_mid", "resid_pre"), ("resid_mid", "attn_out")],
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
        found = capture_in_batches(model, PROMPTS, [*sites, "logits"], positions="all")
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
    for batch in (pad_left(PROMPTS), backends.make_batch(PROMPTS, "cpu")):
        with hooks.intervene(tiny, edit), torch.no_grad():
            logits = tiny.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
            ).logits
        for i, tokens in enumerate(PROMPTS):
            start = 0 if batch.attention_mask is None else int(batch.attention_mask[i].argmax())
            wanted = expected(tiny, tokens, edit, example=i)["logits"]
            assert_close(logits[i, start : start + len(tokens)], wanted)


def test_a_value_for_the_keys_of_a_batch_that_is_padded_on_the_left_is_refused(load_tiny, refused):
    loaded, batch = load_tiny("llama"), pad_left(PROMPTS)
    with refused("replace pattern of layer 0", "right padding"):
        with hooks.intervene(loaded, Edit("pattern", 0, torch.full((12,), 1 / 12))):
            loaded.model(batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids)


def test_a_mask_that_is_no_row_for_each_prompt_is_refused_during_an_edit(load_tiny, refused):
    loaded = load_tiny("llama")
    mask = torch.zeros(1, 1, 5, 5)
    with refused("attention mask"), hooks.intervene(loaded, Edit("resid_post", 0)):
        loaded.model(torch.tensor([PROMPTS[0]]), attention_mask=mask)


# Generation


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
                again = dataclasses.replace(edit, position=range(len(prompt) - 1, 30), value=value)
            yield found[i], plainly(loaded, expected, prompt, again, example=i)


@pytest.mark.slow
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


@pytest.mark.slow
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
    batch = pad_left(PROMPTS)
    with hooks.intervene(tiny, edit), torch.no_grad():
        longer = tiny.model.generate(
            batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=3, do_sample=False, pad_token_id=0
        )
    for i, prompt in enumerate(PROMPTS):
        wanted = plainly(tiny, expected, prompt, edit, n_new=3, example=i)
        assert longer[i, 12 : 12 + len(wanted)].tolist() == wanted


# Losses


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
        len(attention._STACKS),
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


@pytest.mark.parametrize("position", [12, -13, [12, 40, 12, 40, 12], torch.tensor([5, 12, 1, 9, 12])])
def test_an_edit_beyond_every_prompt_is_named(llama, position, refused):
    with refused("add v of layer 0", "position", "12 tokens"):
        with hooks.intervene(llama, Edit("v", 0, 1.0, "add", position=position)):
            hooks.capture(llama, PROMPTS, "resid_post")


LATER_LAYER = pytest.mark.parametrize("backend", models.BACKENDS)


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
        capture_in_batches(llama, PROMPTS, "resid_post")


BROKEN_EDITS = [
    (Edit("q", 0, float("nan")), ["replace q of layer 0", "finite"]),
    (Edit("q", 0, float("inf"), "add"), ["add q of layer 0", "finite"]),
    (Edit("q", 0, random(4, 4), "add", head=[1]), ["add q of layer 0"]),
    (Edit("q", 0, random(2, 4), head=1, position=0), ["2 prompts", "5"]),
    (Edit("q", 0, random(6, 4), head=1, position=0), ["6 prompts", "5"]),
    (Edit("q", 0, position=[0, 1, 2]), ["3 prompts", "5"]),
    (Edit("q", 0, random(5, 7, 4, 4)), ["7 positions", "12"]),
    (Edit("q", 0, position=torch.tensor([0, 0])), ["2 prompts", "5"]),
    (Edit("q", 0, position=torch.tensor([0] * 7)), ["7 prompts", "5"]),
    (Edit("q", 0, position="last"), ["'last'"]),
]


@pytest.mark.parametrize(("edit", "parts"), BROKEN_EDITS)
def test_a_worse_edit_is_refused_with_what_is_legal(edit, parts, load_tiny, refused):
    with refused(*parts), hooks.intervene(load_tiny("llama"), edit):
        capture_in_batches(load_tiny("llama"), PROMPTS, "resid_post")


def test_an_edit_holds_where_embeddings_are_given_instead_of_tokens(load_tiny):
    llama = load_tiny("llama")
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), hooks.intervene(llama, Edit("resid_post", 0, 1.0, "add", position=1)):
        given = llama.model(inputs_embeds=llama.model.get_input_embeddings()(ids)).logits
        expected = llama.model(ids).logits
    assert torch.allclose(given, expected, atol=1e-5)


def test_no_edit_at_all_changes_nothing_and_stops_nothing(load_tiny):
    llama = load_tiny("llama")
    expected = hooks.generate(llama, PROMPTS[:2], max_new_tokens=2)
    with hooks.intervene(llama):
        assert hooks.generate(llama, PROMPTS[:2], max_new_tokens=2) == expected
        hooks.capture(llama, PROMPTS[:2], "resid_post", as_trees=True)
