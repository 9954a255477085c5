"""Sweeps equal hooked forward passes, patch for patch."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.tiny import FAMILIES
from transformer_lens import patching as transformer_lens
from transformer_lens.utilities.statistics import bootstrap_ci, sign_flip_permutation_pvalue

from helpers import ROOT, hooks, models, patching
from helpers.engine import backends
from helpers.hooks import SITES, Edit
from helpers.patching import Node

RESIDUAL = [site for site in SITES if SITES[site][-1] == "d_model"]
OF_HEADS = [site for site in SITES if SITES[site][-1] != "d_model"]
LENGTHS = (11, 11, 11, 6, 6, 11)  # longer than Gemma's sliding window of 8, and not
# Where base and source differ: some only late, one from the start, one at the last token.
DIFFER = ((3,), (3,), (5, 6), (0,), (2, 3), (10,))


@pytest.fixture(scope="module")
def data():
    """Base and source prompts of two lengths, with answers."""
    generator = torch.Generator().manual_seed(0)
    base = [torch.randint(250, (length,), generator=generator).tolist() for length in LENGTHS]
    source = [list(row) for row in base]
    for row, places in zip(source, DIFFER, strict=True):
        for place in places:
            row[place] = (row[place] + 1 + place) % 250
    answers = [(int(a), int(b)) for a, b in torch.randint(250, (len(base), 2), generator=generator)]
    return base, source, answers


@pytest.fixture(scope="module")
def pictures(load_tiny, data):
    """Every site of the source prompts, by family."""
    return {family: capture_all(load_tiny(family), data[1]) for family in FAMILIES}


def given_sites(loaded):
    return [site for site in SITES if backends.explain_missing(loaded, site) is None]


def capture_all(loaded, prompts):
    return hooks.capture(loaded, prompts, given_sites(loaded), positions="all")


def difference(loaded, prompts, answers):
    """Logit of the right less that of the wrong answer, from plain forward passes."""
    logits = hooks.capture(loaded, prompts, "logits")["logits"][:, 0]
    chosen = logits.gather(1, torch.tensor(answers))
    return chosen[:, 0] - chosen[:, 1]


def as_edit(node, captured, i, length):
    """The node's activations in example i, as an edit of that prompt alone."""
    value = captured[node.site][i : i + 1, captured.layers.index(node.layer)]
    value = value.transpose(1, 2)[:, :length, :, :length] if node.site == "pattern" else value[:, :length]
    value = value if node.head is None else value[:, :, node.head]
    value = value if node.position is None else value[:, node.position]
    return Edit(node.site, node.layer, value, head=node.head, position=node.position)


def naive(loaded, data, captured, *nodes):
    """One hooked forward pass for each prompt; NaN where it has no such position."""
    base, _, answers = data
    values = []
    for i, row in enumerate(base):
        if any(node.position is not None and node.position >= len(row) for node in nodes):
            values.append(torch.nan)
            continue
        with hooks.intervene(loaded, *(as_edit(node, captured, i, len(row)) for node in nodes)):
            values.append(float(difference(loaded, [row], [answers[i]])))
    return torch.tensor(values)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, equal_nan=True)


# Sweeps equal hooked passes


@pytest.mark.parametrize("site", RESIDUAL)
@pytest.mark.parametrize("family", FAMILIES)
def test_patching_positions_equals_a_hooked_pass_for_each(family, site, load_tiny, data, pictures):
    loaded = load_tiny(family)
    if backends.explain_missing(loaded, site):
        pytest.skip("no such site")
    base, source, answers = data
    effects = patching.patch_positions(loaded, base, source, site=site, answers=answers)
    assert effects.axes == ("layer", "position", "example")
    assert effects.values.shape == (2, 11, 6)
    for layer in range(2):
        for position in range(11):
            expected = naive(loaded, data, pictures[family], Node(site, layer, None, position))
            close(effects.values[layer, position], expected)
    assert effects.effect[effects.effect.isfinite()].abs().max() > 0.1
    close(effects.base, difference(loaded, base, answers))
    close(effects.source, difference(loaded, source, answers))


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "q"])
@pytest.mark.parametrize("family", FAMILIES)
def test_named_positions_may_differ_between_prompts(family, site, load_tiny, data, pictures):
    loaded = load_tiny(family)
    base, source, answers = data
    place = [3, 1, 6, 0, 2, 10]
    positions = {"there": place, "END": -1}
    effects = patching.patch_positions(loaded, base, source, site=site, answers=answers, positions=positions)
    assert effects.positions == ("there", "END")
    for layer in range(2):
        there = [naive(loaded, data, pictures[family], Node(site, layer, None, p))[i] for i, p in enumerate(place)]
        close(effects.values[layer, 0], torch.stack(there))
        close(effects.values[layer, 1], naive(loaded, data, pictures[family], Node(site, layer, None, -1)))


@pytest.mark.parametrize("site", OF_HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_patching_heads_equals_a_hooked_pass_for_each(family, site, load_tiny, data, pictures):
    loaded = load_tiny(family)
    if backends.explain_missing(loaded, site):
        pytest.skip("no such site")
    base, source, answers = data
    whole = patching.patch_heads(loaded, base, source, site=site, answers=answers)
    by_position = patching.patch_heads(
        loaded, base, source, site=site, answers=answers, positions={"early": 3, "END": -1}
    )
    n_heads = hooks.count_heads(loaded, site)
    assert whole.values.shape == (2, n_heads, 6)
    assert by_position.axes == ("layer", "head", "position", "example")
    for layer in range(2):
        for head in range(n_heads):
            close(whole.values[layer, head], naive(loaded, data, pictures[family], Node(site, layer, head)))
            for i, position in enumerate((3, -1)):
                expected = naive(loaded, data, pictures[family], Node(site, layer, head, position))
                close(by_position.values[layer, head, i], expected)


NODES = st.builds(
    Node,
    st.sampled_from(["resid_pre", "resid_post", "attn_out", "mlp_out"]),
    st.integers(0, 1),
    st.none(),
    st.sampled_from([None, 0, 2, 3, 5, -1, -2]),
) | st.builds(
    Node,
    st.sampled_from(["q", "k", "v", "pattern", "head_z"]),
    st.integers(0, 1),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, 0, 2, 3, 5, -1, -2]),
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, print_blob=False, report_multiple_bugs=False)
@given(sets=st.lists(st.lists(NODES, max_size=4, unique_by=lambda node: (node.site, node.layer)), max_size=4))
def test_any_joint_set_equals_a_pass_with_all_its_hooks(family, sets, load_tiny, data, pictures):
    loaded = load_tiny(family)
    base, source, answers = data
    # A residual stream that is set again after another change: hooks do the same, in order of the layers.
    values = patching.patch_sets(loaded, base, source, sets, answers=answers).values
    assert values.shape == (len(sets), 6)
    for found, nodes in zip(values, sets, strict=True):
        close(found, naive(loaded, data, pictures[family], *nodes))


def test_everything_from_the_source_is_the_source(tiny, data):
    base, source, answers = data
    sets = [[Node("resid_pre", 0)], [Node("resid_post", 1)], [Node("resid_post", 1, None, -1)], []]
    effects = patching.patch_sets(tiny, base, source, sets, answers=answers)
    for found in effects.values[:3]:
        close(found, effects.source)
    close(effects.recovered, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_the_share_that_is_recovered_counts_the_prompts_that_have_the_position(load_tiny, data):
    base, source, answers = data
    effects = patching.patch_positions(load_tiny("llama"), base, source, answers=answers)
    long = [i for i, row in enumerate(base) if len(row) > 7]
    expected = effects.effect[1, 7, long].mean() / (effects.source - effects.base)[long].mean()
    close(effects.recovered[1, 7], expected)


RECEIVERS = {
    "logits": "logits",
    "queries at the end": [Node("q", 1, 2, -1)],
    "keys and values everywhere": [Node("k", 1, 0), Node("v", 1, 1)],
    "two layers": [Node("q", 1), Node("k", 0, 0)],
    "different positions": [Node("v", 1, 0, 3), Node("q", 1, 0, 5)],
}


@pytest.mark.parametrize("receivers", RECEIVERS.values(), ids=RECEIVERS)
def test_chosen_senders_send_what_they_send_among_all(receivers, load_tiny, data):
    loaded, (base, source, answers) = load_tiny("llama"), data
    every = patching.patch_paths(loaded, base, source, receivers, answers=answers).values
    senders = [(1, 0), (0, 3), (0, 1), (1, 0)]
    effects = patching.patch_paths(loaded, base, source, receivers, senders=senders, answers=answers)
    assert effects.axes == ("sender", "example")
    torch.testing.assert_close(effects.values, torch.stack([every[head] for head in senders]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("receivers", RECEIVERS.values(), ids=RECEIVERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_path_patching_equals_the_two_hooked_passes(family, receivers, load_tiny, data, pictures):
    loaded = load_tiny(family)
    base, source, answers = data
    effects = patching.patch_paths(loaded, base, source, receivers, answers=answers)
    assert effects.values.shape == (2, 4, 6)
    clean = capture_all(loaded, base)
    for layer in range(2):
        for head in range(4):
            expected = []
            for i, row in enumerate(base):
                frozen = [as_edit(Node("head_z", number), clean, i, len(row)) for number in range(2)]
                sender = as_edit(Node("head_z", layer, head), pictures[family], i, len(row))
                with hooks.intervene(loaded, *frozen, sender):
                    if receivers == "logits":
                        expected.append(float(difference(loaded, [row], [answers[i]])))
                        continue
                    reached = hooks.capture(loaded, [row], ["q", "k", "v"], positions="all")
                edits = [as_edit(node, reached, 0, len(row)) for node in receivers]
                with hooks.intervene(loaded, *edits):
                    expected.append(float(difference(loaded, [row], [answers[i]])))
            close(effects.values[layer, head], torch.tensor(expected))


def ablation(reference, node, how):
    """The edit of a head that an ablation is: of two prompts each is the other's only donor."""
    old = reference["head_z"][:, node.layer, :, node.head]
    value = {"zero": 0.0, "mean": old.mean((0, 1)), "resample": old.flip(0)}[how]
    return Edit("head_z", node.layer, value, head=node.head)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_an_ablation_equals_the_edit_of_that_name(how, tiny):
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(250, (2, 7), generator=generator).tolist()
    answers = [(3, 4), (5, 6)]
    effects = patching.ablate(tiny, prompts, how=how, answers=answers)
    assert effects.axes == ("layer", "head", "example")
    with pytest.raises(models.InputError, match="no source"):
        _ = effects.recovered
    reference = hooks.capture(tiny, prompts, "head_z", positions="all")
    for layer in range(2):
        for head in range(4):
            with hooks.intervene(tiny, ablation(reference, Node("head_z", layer, head), how)):
                close(effects.values[layer, head], difference(tiny, prompts, answers))


def test_what_is_resampled_is_of_another_prompt_of_the_length_by_the_seed(load_tiny):
    loaded, generator = load_tiny("llama"), torch.Generator().manual_seed(5)
    prompts = [torch.randint(250, (length,), generator=generator).tolist() for length in (7, 5, 7, 7, 5, 7)]
    answers, node = [(3, 4)] * 6, Node("head_z", 0, 1)
    captured = hooks.capture(loaded, prompts, "head_z", positions="all")
    from_donor = torch.full((6, 6), torch.nan)
    for i, row in enumerate(prompts):
        for donor in (j for j in range(6) if j != i and len(prompts[j]) == len(row)):
            with hooks.intervene(loaded, as_edit(node, captured, donor, len(row))):
                from_donor[i, donor] = difference(loaded, [row], answers[:1])
    drawn = set()
    for seed in range(8):
        found, again = (
            patching.ablate(loaded, prompts, [[node]], how="resample", seed=seed, answers=answers).values[0]
            for _ in range(2)
        )
        assert torch.equal(found, again)
        gap = (from_donor - found[:, None]).abs().nan_to_num(torch.inf)
        assert gap.min(1).values.max() < 1e-4
        drawn.add(tuple(gap.argmin(1).tolist()))
    assert len(drawn) > 2


def test_the_mean_of_an_ablation_counts_every_token_once(load_tiny):
    loaded, prompts = load_tiny("llama"), [[5, 6, 7, 8, 9, 10], [11, 12]]
    captured = hooks.capture(loaded, prompts, "mlp_out", positions="all", layers=[0])["mlp_out"]
    mean = captured[:, 0].flatten(0, 1).nanmean(0)
    with hooks.intervene(loaded, Edit("mlp_out", 0, mean)):
        expected = difference(loaded, prompts, [(1, 2), (3, 4)])
    found = patching.ablate(loaded, prompts, [[Node("mlp_out", 0)]], answers=[(1, 2), (3, 4)])
    close(found.values[0], expected)


@pytest.mark.parametrize("how", ["zero", "mean", "resample"])
def test_the_losses_of_an_ablated_run_are_those_of_a_hooked_pass(how, tiny):
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(250, (2, 12), generator=generator)
    sets = [[Node("head_z", 0, 1), Node("head_z", 1, 3)], [Node("head_z", 1, 0)]]
    effects = patching.ablate(tiny, prompts, sets, how=how, metric="losses")
    assert effects.axes == ("set", "example", "position")
    close(effects.base, hooks.measure_losses(tiny, prompts))
    reference = hooks.capture(tiny, prompts, "head_z", positions="all")
    for heads, found in zip(sets, effects.values, strict=True):
        with hooks.intervene(tiny, *(ablation(reference, node, how) for node in heads)):
            close(found, hooks.measure_losses(tiny, prompts))


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "head_z", "mlp_out"])
def test_the_losses_of_patched_prompts_of_several_lengths_are_those_of_hooked_passes(site, tiny, data, pictures):
    base, source, _ = data
    effects = patching.patch_sets(tiny, base, source, [[Node(site, 1)], []], metric="losses")
    captured = pictures[tiny.config.model_type]
    for i, row in enumerate(base):
        one, n_losses = torch.tensor([row]), len(row) - 1
        with hooks.intervene(tiny, as_edit(Node(site, 1), captured, i, len(row))):
            close(effects.values[0, i, :n_losses], hooks.measure_losses(tiny, one)[0])
        close(effects.values[1, i, :n_losses], hooks.measure_losses(tiny, one)[0])
        close(effects.source[i, :n_losses], hooks.measure_losses(tiny, torch.tensor([source[i]]))[0])
        assert effects.values[:, i, n_losses:].isnan().all()


def test_the_mean_of_a_group_is_taken_position_by_position(tiny):
    generator = torch.Generator().manual_seed(6)
    rows = [torch.randint(250, (length,), generator=generator).tolist() for length in (7, 5, 7, 5, 7)]
    others = [[token // 2 for token in row] for row in rows]
    groups, answers = ["a", "b", "a", "b", "c"], [(1, 2)] * 5
    nodes = [Node("head_z", 0, 1), Node("mlp_out", 1)]
    found = patching.ablate(tiny, rows, [nodes], reference=others, groups=groups, answers=answers).values[0]
    turned = patching.ablate(
        tiny, rows, [nodes], reference=others[::-1], groups=groups, reference_groups=groups[::-1], answers=answers
    )
    close(turned.values[0], found)
    captured = hooks.capture(tiny, others, ["head_z", "mlp_out"], positions="all")
    again = patching.ablate(tiny, rows, [nodes], reference=captured, groups=groups, answers=answers).values[0]
    assert torch.equal(again, found)
    for i, row in enumerate(rows):
        members = [j for j, name in enumerate(groups) if name == groups[i]]
        z = captured["head_z"][members, 0, : len(row), 1].mean(0)
        mlp = captured["mlp_out"][members, 1, : len(row)].mean(0)
        with hooks.intervene(tiny, Edit("head_z", 0, z, head=1), Edit("mlp_out", 1, mlp)):
            close(found[i : i + 1], difference(tiny, [row], answers[:1]))


# They agree with TransformerLens, patch by patch


@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_agree_with_those_of_transformer_lens(family, load_tiny):
    loaded, bridge = load_tiny(family), load_tiny(family, "transformer_lens").model
    clean, corrupted = torch.randint(250, (2, 3, 7), generator=torch.Generator().manual_seed(2))
    answers = torch.tensor([[1, 2], [3, 4], [5, 6]])

    def metric(logits):
        chosen = logits[:, -1].gather(1, answers)
        return (chosen[:, 0] - chosen[:, 1]).mean()

    with torch.inference_mode():
        _, cache = bridge.run_with_cache(clean)
        by_position = transformer_lens.get_act_patch_resid_pre(bridge, corrupted, cache, metric)
        by_head = transformer_lens.get_act_patch_attn_head_out_all_pos(bridge, corrupted, cache, metric)
    options = {"answers": answers.tolist()}
    close(patching.patch_positions(loaded, corrupted, clean, **options).values.mean(-1), by_position)
    close(patching.patch_heads(loaded, corrupted, clean, **options).values.mean(-1), by_head)


def test_the_statistics_of_transformer_lens_take_the_effects(load_tiny, data):
    base, source, answers = data
    effect = patching.patch_heads(load_tiny("gpt2"), base, source, answers=answers).effect
    low, high = bootstrap_ci(effect)
    assert low.shape == high.shape == (2, 4)
    assert (low <= effect.mean(-1) + 1e-6).all()
    assert (effect.mean(-1) <= high + 1e-6).all()
    assert sign_flip_permutation_pvalue(effect).shape == (2, 4)


def test_the_unembedding_reads_only_the_answers(load_tiny, data):
    loaded = load_tiny("llama")
    base, source, answers = data
    calls = []
    handle = loaded.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    patching.patch_heads(loaded, base, source, answers=answers)
    handle.remove()
    assert calls == []


def test_the_order_of_the_prompts_does_not_matter(tiny, data):
    order = [4, 1, 5, 0, 3, 2]
    expected = patching.patch_heads(tiny, data[0], data[1], answers=data[2])
    mixed = patching.patch_heads(
        tiny, *([part[i] for i in order] for part in data[:2]), answers=[data[2][i] for i in order]
    )
    close(mixed.values, expected.values[..., order])
    close(mixed.base, expected.base[order])


# Metrics


def test_any_function_of_the_last_logits_is_a_metric(tiny, data):
    base, source, answers = data
    ids = torch.tensor(answers)

    def same(logits, examples):
        chosen = logits.gather(1, ids[examples])
        return chosen[:, 0] - chosen[:, 1]

    expected = patching.patch_heads(tiny, base, source, answers=answers)
    found = patching.patch_heads(tiny, base, source, metric=same)
    for part in ("values", "base", "source"):
        close(getattr(found, part), getattr(expected, part))


def test_answers_may_be_texts_of_one_token(load_tiny, refused):
    loaded = load_tiny("llama")
    ids = [loaded.tokenizer("a", add_special_tokens=False)["input_ids"][0], 7]
    assert patching.encode_answers(loaded, [("a", 7)]).tolist() == [ids]
    with refused("'cat'", "tokens", "one token"):
        patching.encode_answers(loaded, [("a", "cat")])
    with refused("answer 300", "0 to 299"):
        patching.encode_answers(loaded, [(300, 1)])
    with refused("'a'", "tokenizer"):
        patching.encode_answers(dataclasses.replace(loaded, tokenizer=None), [("a", 1)])


# Bad input


def test_bad_input_is_refused_in_one_sentence(load_tiny, data, refused):
    loaded = load_tiny("llama")
    base, source, answers = data

    def patch(*sets, base=base, source=source, **options):
        patching.patch_sets(loaded, base, source, sets, **{"answers": answers} | options)

    with refused("prompt 1 has 11 tokens as base and 10 as source"):
        patch([], source=[row[:-1] if i == 1 else row for i, row in enumerate(source)])
    with refused("6 base and 5 source"):
        patch([], source=source[:5])
    with refused("no layer 2", "0 to 1"):
        patch([Node("resid_pre", 2)])
    with refused("no head 1.4", "0 to 3"):
        patch([Node("head_z", 1, 4)])
    with refused("no key/value head 1.2", "0 to 1"):
        patch([Node("v", 1, 2)])
    with refused("mlp_out has no heads"):
        patch([Node("mlp_out", 1, 0)])
    with refused("position 6", "-6 to 5"):  # the shortest prompt has six tokens
        patch([Node("resid_pre", 1, None, 6)])
    with refused("unknown site 'resid'"):
        patch([Node("resid", 1)])
    with refused("5 answers for 6 prompts"):
        patch([], answers=answers[:5])
    with refused("metric"):
        patch([], answers=None)
    with refused("metric"):
        patch([], metric=lambda logits, examples: logits[:, 0])
    with refused("shape []", "[3]"):
        patch(
            [Node("resid_pre", 0)],
            answers=None,
            metric=lambda logits, examples: logits[:, 0].mean(),
            base=base[:3],
            source=source[:3],
        )
    with refused("position 11 of prompt 0"):
        patching.patch_positions(loaded, base, source, answers=answers, positions={"far": 11})
    with refused("resid_pre has no heads"):
        patching.patch_heads(loaded, base, source, answers=answers, site="resid_pre")
    for receivers in ([], "heads", [Node("head_z", 1, 0)]):
        with refused("receiver", "q, k, v"):
            patching.patch_paths(loaded, base, source, receivers, answers=answers)
    for receivers in ([], "logits", [Node("q", 1, 0)]):
        with refused("receivers", "lists of nodes"):
            patching.patch_paths_to_each(loaded, base, source, receivers, answers=answers)
    with refused("unknown ablation 'knock-out'", "zero, mean, resample"):
        patching.ablate(loaded, base, how="knock-out", answers=answers)
    with refused("no other prompt", "11 tokens of prompt 0"):
        patching.ablate(loaded, base[:1], how="resample", answers=answers[:1])
    with refused("unknown metric 'loss'", "'losses'"):
        patch([], answers=None, metric="loss")
    with refused("'losses' is no function"):
        patching.patch_heads(loaded, base, source, metric="losses")
    with refused("groups are given for zero ablation"):
        patching.ablate(loaded, base, how="zero", groups=range(6), answers=answers)
    with refused("5 groups for 6"):
        patching.ablate(loaded, base, groups=range(5), answers=answers)
    with refused("5 groups for 6"):
        patching.ablate(loaded, base, reference=base[:5], groups=range(5), answers=answers)
    given = hooks.capture(loaded, base, "head_z", positions="all")
    with refused("activations are given without groups"):
        patching.ablate(loaded, base, reference=given, answers=answers)
    for other in (
        hooks.capture(loaded, base, "mlp_out", positions="all"),
        hooks.capture(loaded, base, "head_z", layers=[0], positions="all"),
        hooks.capture(loaded, base, "head_z"),
    ):
        with refused("activations of", "legal are those of ['head_z'] at all"):
            patching.ablate(loaded, base, reference=other, groups=range(6), answers=answers)
    with refused("group '0' has no reference prompt"):
        patching.ablate(
            loaded, base, groups=range(6), reference=base, reference_groups=[1] * 3 + [2] * 2 + [1], answers=answers
        )
    with refused("group 'one'", "token length"):
        patching.ablate(loaded, base, groups=["one"] * 6, answers=answers)
    with refused("pattern"):
        patching.ablate(loaded, base, [[Node("pattern", 0, 0)]], answers=answers)
    with refused("'nnsight'", "'huggingface'"):
        patching.patch_heads(load_tiny("llama", "nnsight"), base, source, answers=answers)


def test_an_activation_that_is_no_number_is_refused(copy_of, data, refused):
    loaded = models.load(str(copy_of("llama")))
    loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with refused("NaN", "layer"):
        patching.patch_heads(loaded, *data[:2], answers=data[2])


# The real model


@pytest.mark.slow
def test_sweeps_of_the_real_model_equal_hooked_passes(embedded):
    names = [(" Mary", " John"), (" Tom", " Anna")]
    clean = [f"When{a} and{b} went to the store,{b} gave a drink to" for a, b in names]
    corrupted = [f"When{a} and{b} went to the store,{a} gave a drink to" for a, b in names]
    base, source = hooks.tokenize(embedded, corrupted), hooks.tokenize(embedded, clean)
    data = base, source, patching.encode_answers(embedded, names).tolist()
    captured = hooks.capture(embedded, source, ["resid_pre", "head_z"], positions="all")
    by_position = patching.patch_positions(embedded, corrupted, clean, answers=names)
    by_head = patching.patch_heads(embedded, corrupted, clean, answers=names)
    for layer in (0, 13, 29):
        for position in (9, 11, 13):
            close(
                by_position.values[layer, position],
                naive(embedded, data, captured, Node("resid_pre", layer, None, position)),
            )
        for head in (2, 8):
            close(by_head.values[layer, head], naive(embedded, data, captured, Node("head_z", layer, head)))

    assert by_position.recovered[0, 9] > 0.99  # the only token that differs
    assert (by_position.effect[:, :9] == 0).all()


def test_the_example_on_the_page_about_sites_runs(embedded, monkeypatch):
    page = (ROOT / "book/reference/sites.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr(models, "load", lambda: embedded)
    names = {
        "texts": ["Then", "Once upon a time"],
        "clean": ["When Mary and John met, John waved at"],
        "corrupted": ["When Mary and John met, Mary waved at"],
    }
    exec(example, names)
    assert names["last"]["resid_post"].shape == (2, 30, 1, 576)
    assert names["last"].axes["resid_post"] == ("example", "layer", "position", "d_model")
    assert names["changed"]["logits"].shape[:2] == (2, 1)
    assert names["effects"].effect.shape == (30, 9, 1)
