import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared.five_prompts import pad_left
from shared.tiny import FAMILIES

from helpers import InputError, hooks, models
from helpers.engine import backends

pytestmark = pytest.mark.usefixtures("one_thread")

ABSENT = {"gpt2": {"rot_q": "rotary", "rot_k": "rotary"}, "gpt_neox": {"resid_mid": "parallel"}}
NO_HOOK = {("gpt_neox", "transformer_lens"): {"rot_q": "TransformerLens", "rot_k": "TransformerLens"}}


@given(rows=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), min_size=1, max_size=6))
def test_a_batch_holds_every_prompt_at_its_place_and_masks_the_rest(rows):
    batch = backends.make_batch(rows, "cpu")
    longest = max(map(len, rows))
    assert batch.input_ids.shape == (len(rows), longest)
    assert (batch.attention_mask is None) == all(len(row) == longest for row in rows)
    assert batch.position_ids is None
    for i, row in enumerate(rows):
        assert batch.input_ids[i, : len(row)].tolist() == row
        if batch.attention_mask is not None:
            assert batch.attention_mask[i, : len(row)].all() and batch.attention_mask[i].sum() == len(row)


@pytest.mark.parametrize("backend", models.BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_that_a_backend_cannot_give_is_refused_with_the_reason(family, backend, load_tiny, refused):
    loaded = load_tiny(family, backend)
    absent = ABSENT.get(family, {}) | NO_HOOK.get((family, backend), {})
    for site in hooks.SITES:
        why = backends.explain_missing(loaded, site)
        assert (why is not None) == (site in absent)
        if why:
            with refused(site, absent[site], family, "legal"):
                hooks.capture(loaded, [[1]], site)
            with refused(site, absent[site], family, "legal"), hooks.intervene(loaded, hooks.Edit(site, 0)):
                pass


@pytest.mark.parametrize("backend", models.BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tap_sees_each_pass_once_and_what_it_returns_goes_on(family, backend, load_tiny):
    loaded = load_tiny(family, backend)
    batch = backends.make_batch([[5, 6, 7], [8, 9, 10]], loaded.device)
    at = torch.tensor([[2], [2]])
    for site in [site for site in hooks.SITES if not backends.explain_missing(loaded, site)]:
        seen = []
        with backends.tap(loaded, [(site, 0, lambda tensor, seen=seen: seen.append(tensor.clone()))]):
            plain = backends.forward(loaded, batch, logits_at=at)
        with backends.tap(loaded, [(site, 0, lambda tensor: tensor.clone())]):
            same = backends.forward(loaded, batch, logits_at=at)
        with backends.tap(loaded, [(site, 0, lambda tensor: tensor * torch.linspace(-2, 2, tensor.shape[-1]))]):
            other = backends.forward(loaded, batch, logits_at=at)
        assert len(seen) == 1 and seen[0].shape[:2] == (2, 3)
        torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
        assert (other - plain).abs().max() > 1e-3


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_watching_tells_of_each_pass_how_much_is_new(backend, load_tiny):
    loaded, passes = load_tiny("llama", backend), []
    with backends.watch(loaded, passes.append):
        new = backends.generate_greedily(loaded, torch.tensor([[5, 6, 7], [7, 6, 5]]), 3)
    assert new.shape == (2, 6)
    assert [(one.new, one.total) for one in passes] == [(3, 3), (1, 4), (1, 5)]
    assert all(one.pads.tolist() == [0, 0] for one in passes)
    assert [one.lengths.tolist() for one in passes] == [[3, 3], [4, 4], [5, 5]]


def test_watching_counts_padding_from_the_attention_mask(load_tiny):
    loaded, passes = load_tiny("llama"), []
    rows = [[5], [7, 6, 5]]
    for batch, pads in ((pad_left(rows), [2, 0]), (backends.make_batch(rows, "cpu"), [0, 0])):
        with backends.watch(loaded, passes.append):
            backends.forward(loaded, batch)
        assert passes[-1].pads.tolist() == pads
        assert passes[-1].lengths.tolist() == [1, 3]


@pytest.mark.parametrize("backend", models.BACKENDS)
def test_an_exception_in_a_tap_comes_through_as_it_is(backend, load_tiny):
    def tap(tensor):
        raise InputError("one sentence")

    loaded = load_tiny("llama", backend)
    for site in hooks.SITES:
        with pytest.raises(InputError, match=r"^one sentence$"), backends.tap(loaded, [(site, 1, tap)]):
            backends.forward(loaded, backends.make_batch([[5, 6]], "cpu"), stop_after=1)
    hooks.capture(loaded, [[5, 6]], list(hooks.SITES))


def test_logits_are_capped_where_the_model_caps_them(load_tiny, monkeypatch):
    loaded = load_tiny("gemma3_text")
    monkeypatch.setattr(loaded.config, "final_logit_softcapping", 0.5)
    captured = hooks.capture(loaded, [[5, 6, 7]], "logits", positions="all")["logits"]
    with torch.no_grad():
        wanted = loaded.model(torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(captured, wanted, atol=1e-5, rtol=1e-5)
    assert captured.abs().max() <= 0.5
