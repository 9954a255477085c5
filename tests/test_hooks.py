import copy
import dataclasses

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from helpers import hooks, models

PROJECTIONS = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}  # the others: self_attn.o_proj


def projections(loaded):
    """The output projections, found by their full names."""
    name = PROJECTIONS.get(loaded.config.model_type, "self_attn.o_proj")
    return [module for path, module in loaded.model.named_modules() if path.endswith("." + name)]


def logits(loaded, token_ids):
    with torch.inference_mode():
        return loaded.model(token_ids).logits


def naive_z(loaded, token_ids):
    """(layer, sequence, position, head, d_head), through plain hooks of the test's own."""
    seen = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
        for module in projections(loaded)
    ]
    with torch.no_grad():
        loaded.model(token_ids)
    for handle in handles:
        handle.remove()
    return torch.stack(seen).unflatten(-1, (loaded.n_heads, -1))


def n_hooks(loaded):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())


# Attention patterns


def test_patterns_are_causal_and_each_row_sums_to_one(tiny, token_ids):
    patterns = torch.stack(list(hooks.attention_patterns(tiny, token_ids)))
    assert patterns.shape == (40, 2, 4, 30, 30)
    torch.testing.assert_close(patterns.sum(-1), torch.ones(patterns.shape[:-1]), atol=1e-5, rtol=0)
    assert patterns.min() >= 0
    assert patterns.triu(1).abs().max() == 0


def test_patterns_come_in_the_order_of_the_sequences(tiny, token_ids):
    together = list(hooks.attention_patterns(tiny, token_ids))
    for i in (0, 33, 34, 39):  # on both sides of where the batches part
        (alone,) = hooks.attention_patterns(tiny, token_ids[i : i + 1])
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_head_z_is_the_attention_weighted_sum_of_the_values(load_tiny, token_ids):
    loaded, one = load_tiny("llama"), token_ids[:1]
    values = {}
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda *call, i=i: values.update({i: call[-1][0]}))
        for i, layer in enumerate(loaded.model.model.layers)
    ]
    (patterns,) = hooks.attention_patterns(loaded, one)
    for handle in handles:
        handle.remove()
    for layer in range(2):
        keys = values[layer].unflatten(-1, (2, 4))  # two key/value heads, each read by two query heads
        for head in range(4):
            z = patterns[layer, head] @ keys[:, head // 2]
            torch.testing.assert_close(hooks.mean_head_z(loaded, one)[layer, head], z.mean(0), atol=1e-5, rtol=1e-4)


# Means and ablation


def test_mean_head_z_is_the_mean_over_all_batches(tiny, token_ids):
    expected = naive_z(tiny, token_ids).mean(dim=(1, 2))
    torch.testing.assert_close(hooks.mean_head_z(tiny, token_ids), expected, atol=1e-5, rtol=1e-4)


def test_a_single_position_is_unchanged_by_its_own_head_z(tiny, token_ids):
    one = token_ids[:1, :1]
    everything = [(layer, head) for layer in range(2) for head in range(4)]
    before = logits(tiny, one)
    with hooks.ablate_heads(tiny, everything, hooks.mean_head_z(tiny, one)):
        torch.testing.assert_close(logits(tiny, one), before, atol=1e-5, rtol=1e-5)
    with hooks.ablate_heads(tiny, everything, hooks.mean_head_z(tiny, token_ids[1:2, :1])):
        assert (logits(tiny, one) - before).abs().max() > 1e-2


@pytest.mark.parametrize("heads", [[(0, 1)], [(1, 3)], [(0, 0), (0, 2), (1, 1)]])
def test_zero_ablation_is_zeroing_the_heads_part_of_the_output_projection(tiny, token_ids, heads):
    without = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model))
    d_head = hooks.mean_head_z(tiny, token_ids).shape[-1]
    for layer, head in heads:
        module = projections(without)[layer]
        columns = slice(head * d_head, (head + 1) * d_head)
        weight = module.weight.T if tiny.config.model_type == "gpt2" else module.weight  # Conv1D is transposed
        weight[:, columns] = 0
    before, expected = logits(tiny, token_ids), logits(without, token_ids)
    with hooks.ablate_heads(tiny, heads, torch.zeros(2, 4, d_head)):
        torch.testing.assert_close(logits(tiny, token_ids), expected, atol=1e-5, rtol=1e-4)
    assert (before - expected).abs().max() > 1e-2
    assert torch.equal(logits(tiny, token_ids), before)


def test_ablation_puts_the_given_values_there_and_leaves_the_other_heads(tiny, token_ids):
    before = naive_z(tiny, token_ids)
    values = torch.arange(before[:, 0, 0].numel()).reshape(before[:, 0, 0].shape).float()
    with hooks.ablate_heads(tiny, iter([(1, 2)]), values):
        after = hooks.mean_head_z(tiny, token_ids)
    torch.testing.assert_close(after[1, 2], values[1, 2])
    others = torch.ones(2, 4, dtype=torch.bool)
    others[1, 2] = False
    torch.testing.assert_close(after[others], before.mean(dim=(1, 2))[others], atol=1e-5, rtol=1e-4)


def test_the_ablation_of_no_heads_changes_nothing(tiny, token_ids):
    before = logits(tiny, token_ids)
    with hooks.ablate_heads(tiny, [], torch.zeros(2, 4, 1)):
        assert torch.equal(logits(tiny, token_ids), before)


# Hooks are always removed


def test_no_hook_is_left_after_the_context(tiny, token_ids):
    before = n_hooks(tiny)  # transformers has some of its own
    hooks.mean_head_z(tiny, token_ids)
    assert n_hooks(tiny) == before
    with hooks.ablate_heads(tiny, [(0, 0), (1, 0)], torch.zeros(2, 4, 1)):
        assert n_hooks(tiny) == before + 2
    assert n_hooks(tiny) == before


def test_no_hook_is_left_after_an_exception(tiny):
    before = n_hooks(tiny)
    with pytest.raises(ZeroDivisionError), hooks.ablate_heads(tiny, [(0, 0)], torch.zeros(2, 4, 1)):
        assert n_hooks(tiny) == before + 1
        _ = 1 / 0
    assert n_hooks(tiny) == before
    beyond = torch.tensor([[0, 10_000]])  # no such token: the model itself raises
    with pytest.raises(IndexError):
        hooks.mean_head_z(tiny, beyond)
    assert n_hooks(tiny) == before


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_head_that_does_not_exist_is_refused_and_no_hook_is_left(head, tiny, refused):
    before = n_hooks(tiny)
    with (
        refused(f"no head {head[0]}.{head[1]}", "layers 0 to 1, heads 0 to 3"),
        hooks.ablate_heads(tiny, [(0, 0), head], torch.zeros(2, 4, 1)),
    ):
        pass
    assert n_hooks(tiny) == before


@pytest.mark.parametrize("family", ["bert", "opt"])
def test_an_unknown_architecture_is_refused_by_its_name(family, foreign_folders, token_ids, refused):
    loaded = models.load(str(foreign_folders[family]))
    with refused(repr(family), "GPT-2, Llama, Qwen2, Gemma 3"):
        hooks.mean_head_z(loaded, token_ids)
    with refused(repr(family)), hooks.ablate_heads(loaded, [(0, 0)], torch.zeros(2, 4, 4)):
        pass


def test_a_model_without_attention_is_refused_by_its_name(foreign_folders, token_ids, refused):
    loaded = models.load(str(foreign_folders["mamba"]))
    with refused("'mamba'", "attention"):
        list(hooks.attention_patterns(loaded, token_ids[:1]))


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("read", [hooks.mean_head_z, lambda *call: torch.stack(list(hooks.attention_patterns(*call)))])
def test_another_backend_gives_the_same_or_is_refused_by_its_name(backend, read, load_tiny, token_ids):
    try:
        found = read(load_tiny("llama", backend), token_ids)
    except models.InputError as error:
        assert backend in str(error)
    else:
        torch.testing.assert_close(found, read(load_tiny("llama"), token_ids), atol=1e-4, rtol=1e-3)


# Structure that is known because it was put there

N_POSITIONS = 16


@pytest.fixture(scope="module")
def planted():
    """A GPT-2 whose head 0.1 attends to the previous token; the values of head 0.2 are always 1, 2, 3, 4.

    Position i is the unit vector i, and queries move it by one. All other heads attend evenly, to nothing.
    """
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=N_POSITIONS, n_embd=4 * N_POSITIONS, n_layer=2, n_head=4, tie_word_embeddings=False
    )
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    width, d_head = 4 * N_POSITIONS, N_POSITIONS
    base = model.transformer
    base.wte.weight.zero_()
    base.wpe.weight.copy_(torch.eye(N_POSITIONS, width))
    for block in base.h:
        for module in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj):
            module.weight.zero_()
            module.bias.zero_()
    queries, keys, values = base.h[0].attn.c_attn.weight.split(width, dim=1)
    head_1, head_2 = slice(d_head, 2 * d_head), slice(2 * d_head, 3 * d_head)
    queries[:N_POSITIONS, head_1] = 10 * torch.eye(N_POSITIONS).roll(-1, dims=1)
    keys[:N_POSITIONS, head_1] = torch.eye(N_POSITIONS)
    values[:N_POSITIONS, head_1] = torch.eye(N_POSITIONS)
    base.h[0].attn.c_attn.bias[2 * width :][head_2] = torch.tensor([1.0, 2.0, 3.0, 4.0] * 4)
    return models.LoadedModel(
        card=models.ModelCard(name="planted", title="planted"),
        model=model,
        tokenizer=None,
        weights_sha256="",
        start_token_id=None,
        backend="huggingface",
        device="cpu",
        dtype="float32",
    )


def test_a_planted_previous_token_head_is_the_one_that_is_found(planted):
    tokens = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    patterns = torch.stack(list(hooks.attention_patterns(planted, tokens)))
    to_previous = patterns.diagonal(offset=-1, dim1=-2, dim2=-1).mean(dim=(0, -1))
    assert to_previous[0, 1] > 0.99
    evenly = torch.tensor([1 / (i + 1) for i in range(1, 12)]).mean()
    to_previous[0, 1] = evenly
    torch.testing.assert_close(to_previous, evenly.expand(2, 4))


def test_planted_values_come_back_as_the_mean_of_their_head(planted):
    tokens = torch.zeros((2, 12), dtype=torch.long)
    z = hooks.mean_head_z(planted, tokens)
    torch.testing.assert_close(z[0, 2], torch.tensor([1.0, 2.0, 3.0, 4.0] * 4))
    # Head 0.1 carries the position of the previous token: 0 (from itself), 0, 1, ..., 10.
    read = z[0, 1] - z[0, 1].min()
    torch.testing.assert_close(read[:11] / read[:11].sum(), torch.tensor([2.0, *[1.0] * 10]) / 12, atol=1e-3, rtol=0)
    assert z[0, [0, 3]].abs().max() == z[1].abs().max() == 0


# Random sets of heads to compare with

SETS_OF_HEADS = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=8).map(sorted)


@given(heads=SETS_OF_HEADS, seed=st.integers(0, 1000))
def test_random_sets_have_as_many_other_heads_in_every_layer(load_tiny, heads, seed):
    loaded = load_tiny("llama")
    per_layer = [sum(layer == i for layer, _ in heads) for i in range(2)]
    sets = hooks.layer_matched_sets(loaded, heads, n_sets=5, seed=seed)
    if max(per_layer) > 2:  # of four
        assert sets == []
        return
    assert len(sets) == 5
    for chosen in sets:
        assert len(set(chosen)) == len(chosen) == len(heads)
        assert set(chosen).isdisjoint(heads)
        assert [sum(layer == i for layer, _ in chosen) for i in range(2)] == per_layer
        assert all(0 <= head < 4 for _, head in chosen)
    assert sets == hooks.layer_matched_sets(loaded, heads, n_sets=5, seed=seed)


def test_random_sets_reach_every_other_head_about_equally_often(load_tiny):
    sets = hooks.layer_matched_sets(load_tiny("llama"), [(1, 2)], n_sets=600, seed=0)
    counts = [sum((1, head) in chosen for chosen in sets) for head in range(4)]
    assert counts[2] == 0
    assert all(150 < counts[head] < 250 for head in (0, 1, 3))


# The real model


def test_ablating_the_induction_heads_of_the_real_model_hurts_more_than_ablating_others(embedded):
    generator = torch.Generator().manual_seed(0)
    segment = torch.randperm(40_000, generator=generator)[:25] + 1000
    tokens = torch.cat([segment, segment])[None]
    (patterns,) = hooks.attention_patterns(embedded, tokens)
    to_what_followed = patterns.diagonal(offset=-24, dim1=-2, dim2=-1)[..., 1:].mean(-1)
    best = to_what_followed.flatten().topk(9).indices.tolist()
    heads = [divmod(i, embedded.n_heads) for i in best]
    assert to_what_followed.max() > 0.5

    def fall():
        losses = models.next_token_losses(embedded, tokens)[0]
        return float(losses[:24].mean() - losses[25:].mean())

    means = hooks.mean_head_z(embedded, tokens)
    others = hooks.layer_matched_sets(embedded, heads, n_sets=1, seed=0)[0]
    before = fall()
    with hooks.ablate_heads(embedded, heads, means):
        without = fall()
    with hooks.ablate_heads(embedded, others, means):
        control = fall()
    assert fall() == before > 3
    assert before - without > 3 * abs(before - control)
