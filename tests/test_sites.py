"""Prompts, positions, batches and sites by name: what they mean, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared.five_prompts import PROMPTS, assert_close

from helpers import InputError, hooks
from helpers.engine import sites
from helpers.hooks import Edit

pytestmark = pytest.mark.usefixtures("one_thread")


def test_texts_tensors_and_lists_of_token_ids_are_the_same_prompts(llama):
    texts = ["the cat sat", "on the mat"]
    rows = [llama.tokenizer(text)["input_ids"] for text in texts]
    given = hooks.capture(llama, texts, "resid_post")["resid_post"]
    assert torch.equal(hooks.capture(llama, rows, "resid_post")["resid_post"], given)
    first = torch.tensor(rows[:1])
    for form in (first, first.numpy(), list(first), iter(texts[:1])):
        assert_close(hooks.capture(llama, form, "resid_post")["resid_post"], given[:1])


def test_numbers_of_numpy_are_numbers(load_tiny):
    loaded, np = load_tiny("llama"), pytest.importorskip("numpy")
    three, one = np.int64(3), np.int64(1)
    plain = hooks.capture(loaded, PROMPTS[:2], "q", layers=[1], positions=3)
    assert torch.equal(hooks.capture(loaded, PROMPTS[:2], "q", layers=[one], positions=three)["q"], plain["q"])
    for edit in (Edit("q", one, 0.0, head=three, position=one), Edit("q", 1, head=np.array([3]), position=one)):
        with hooks.intervene(loaded, edit):
            found = hooks.capture(loaded, PROMPTS[:2], "q", positions="all")["q"]
        assert found[:, 1, 1, 3].abs().max() == 0 and found[:, 1, 1, :3].abs().min() > 0


@given(n_sequences=st.integers(1, 200), length=st.integers(1, 3000))
def test_batches_keep_all_sequences_in_order_and_hold_about_a_thousand_tokens(n_sequences, length):
    order = torch.arange(n_sequences)
    batches = list(sites.split_batches(order, torch.full((n_sequences,), length), hooks.TOKENS_PER_BATCH))
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == 1 or len(batch) * length <= hooks.TOKENS_PER_BATCH for batch in batches)
    assert all(len(batch) * length > hooks.TOKENS_PER_BATCH - length for batch in batches[:-1])


def test_some_prompts_of_a_capture_keep_what_is_theirs(load_tiny):
    texts = ["the cat", "on the mat it sat", "the"]
    captured = hooks.capture(load_tiny("llama"), texts, ["resid_post", "head_z"], positions="all")
    some = captured.select([2, 0])
    assert some.lengths.tolist() == [captured.lengths[2], captured.lengths[0]]
    for site in ("resid_post", "head_z"):
        assert torch.equal(some[site].nan_to_num(), captured[site][[2, 0]].nan_to_num())
    assert (some.axes, some.layers, some.positions) == (captured.axes, captured.layers, captured.positions)


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(lengths=LENGTHS, tokens=st.integers(1, 40))
def test_batches_of_prompts_of_any_lengths_are_as_large_as_they_may_be(lengths, tokens):
    lengths = torch.tensor(lengths)
    order = lengths.argsort(stable=True)
    batches = list(sites.split_batches(order, lengths, tokens))
    assert torch.equal(torch.cat(batches), order)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= tokens
        assert following is None or (len(batch) + 1) * lengths[following[0]] > tokens


@given(lengths=LENGTHS, number=st.integers(-12, 11))
def test_a_number_is_the_token_that_python_counts_or_is_refused(lengths, number):
    if any(not -length <= number < length for length in lengths):
        with pytest.raises(InputError, match=f"position {number} of prompt"):
            sites.locate_positions(number, torch.tensor(lengths))
        return
    expected = [[range(length)[number]] for length in lengths]
    each = {"here": [number] * len(lengths)}
    here = [number] * len(lengths)
    for positions, name in ((number, str(number)), (here, "each"), (each, "here"), ({"here": number}, "here")):
        names, columns = sites.locate_positions(positions, torch.tensor(lengths))
        assert names == (name,) and columns.tolist() == expected


@given(lengths=LENGTHS)
def test_all_and_mean_are_every_token_of_each_prompt(lengths):
    expected = [[*range(length), *[-1] * (max(lengths) - length)] for length in lengths]
    for positions in ("all", "mean"):
        names, columns = sites.locate_positions(positions, torch.tensor(lengths))
        assert columns.tolist() == expected
        assert names == (("mean",) if positions == "mean" else tuple(map(str, range(max(lengths)))))


def test_heads_are_counted_as_the_weights_have_them(load_tiny, refused):
    loaded = load_tiny("llama")
    attention = loaded.model.model.layers[0].self_attn
    rows = {"q": attention.q_proj, "rot_q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}
    for site, projection in rows.items():
        assert sites.count_heads(loaded, site) == len(projection.weight) // 4
        sites.check_site(loaded, site, 1, range(sites.count_heads(loaded, site)))
        with refused("legal are", f"0 to {sites.count_heads(loaded, site) - 1}"):
            sites.check_site(loaded, site, 1, [sites.count_heads(loaded, site)])
    with refused("mlp_out has no heads", "q, k, v"):
        sites.count_heads(loaded, "mlp_out")
    with refused("no layer 2", "0 to 1"):
        sites.check_site(loaded, "q", 2)
    with refused("unknown site 'nose'", *sites.SITES):
        sites.check_site(loaded, "nose", 0)
