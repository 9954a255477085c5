"""Patches on their way through the model: no more is computed than they can change, however the work is cut."""

import pytest
import torch

from helpers import patching
from helpers.engine import propagation
from helpers.engine.architectures import list_layers
from helpers.patching import Node

LENGTH, FIRST = 9, 4
ANSWERS = [(1, 2), (3, 4), (5, 6)]


@pytest.fixture(scope="module")
def prompts():
    """Base and source, equal up to position 4."""
    base = torch.randint(250, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    source = base.clone()
    source[:, FIRST:] = (source[:, FIRST:] + 1) % 250
    return base, source


def count_tokens(loaded, run):
    """How many tokens go through the MLP of each layer while `run` runs."""
    counts = [0, 0]
    handles = [
        layer.block.mlp.register_forward_pre_hook(
            lambda _, inputs, i=i: counts.__setitem__(i, counts[i] + inputs[0].numel() // inputs[0].shape[-1])
        )
        for i, layer in enumerate(list_layers(loaded.model, loaded.layout))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counts


def test_only_layers_and_positions_after_a_patch_are_computed(tiny, prompts):
    unpatched = 2 * 3 * LENGTH
    suffixes = 3 * (5 + 4 + 3 + 2 + 1)
    found = count_tokens(tiny, lambda: patching.patch_positions(tiny, *prompts, answers=ANSWERS))
    # Layer 0 sees the patches that begin there. Layer 1 those of both, but only their last position.
    assert found == [unpatched + suffixes, unpatched + 2 * 3 * 5]
    found = count_tokens(tiny, lambda: patching.patch_heads(tiny, *prompts, answers=ANSWERS))
    assert found == [unpatched + 4 * 3 * 5, unpatched + 2 * 4 * 3]
    receiver = [Node("q", 1, 0, -1)]
    found = count_tokens(tiny, lambda: patching.patch_paths(tiny, *prompts, receiver, answers=ANSWERS))
    # First pass: the last position through the MLP of layer 0; second: through that of layer 1. Four run_senders.
    assert found == [unpatched + 4 * 3, unpatched + 4 * 3]


def test_equal_prompts_cost_nothing_and_have_no_effect(tiny, prompts):
    effects = []
    found = count_tokens(
        tiny, lambda: effects.append(patching.patch_positions(tiny, prompts[0], prompts[0], answers=ANSWERS))
    )
    assert found == [2 * 3 * LENGTH] * 2
    assert (effects[0].effect == 0).all()


def test_equal_tokens_after_the_first_difference_cost_nothing_in_layer_0(tiny, prompts):
    source = prompts[0].clone()
    source[:, FIRST] += 1
    found = count_tokens(tiny, lambda: patching.patch_positions(tiny, prompts[0], source, answers=ANSWERS))
    assert found == [2 * 3 * LENGTH + 3 * 5, 2 * 3 * LENGTH + 3 + 3 * 5]


@pytest.mark.parametrize(("per_step", "at_once"), [(1, 2**16), (40, 30), (2**15, 1)])
def test_how_the_work_is_cut_does_not_matter(per_step, at_once, load_tiny, prompts, monkeypatch):
    loaded = load_tiny("gemma3_text")
    expected = patching.patch_positions(loaded, *prompts, site="attn_out", answers=ANSWERS).values
    monkeypatch.setitem(propagation.TOKENS_PER_STEP, "cpu", per_step)
    monkeypatch.setattr(propagation, "TOKENS_AT_ONCE", at_once)
    torch.testing.assert_close(
        patching.patch_positions(loaded, *prompts, site="attn_out", answers=ANSWERS).values, expected, atol=1e-4, rtol=0
    )
