"""Random tokens, the start token, prose, and words that are single tokens."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import prompts

SHAPES = {"n_sequences": st.integers(1, 6), "segment_length": st.integers(1, 20), "n_segments": st.integers(1, 4)}


def segments(loaded, *, n_sequences=4, segment_length=10, n_segments=2, seed=0):
    return prompts.draw_segments(
        loaded, n_sequences=n_sequences, segment_length=segment_length, n_segments=n_segments, seed=seed
    )


@pytest.fixture(scope="module", params=[False, True], ids=["no start token", "start token"])
def loaded(request, load_tiny):
    """A tiny Llama, with and without a start token."""
    plain = load_tiny("llama")
    start = plain.tokenizer.bos_token_id
    return dataclasses.replace(plain, start_token_id=start) if request.param else plain


# Random tokens


@given(seed=st.integers(0, 2**31), **SHAPES)
def test_no_token_occurs_twice_in_a_sequence_and_none_is_special(loaded, seed, n_sequences, segment_length, n_segments):
    drawn = segments(loaded, n_sequences=n_sequences, segment_length=segment_length, n_segments=n_segments, seed=seed)
    assert drawn.shape == (n_sequences, n_segments, segment_length)
    for sequence in drawn.flatten(1).tolist():
        assert len(set(sequence)) == len(sequence)
        assert set(sequence).isdisjoint(loaded.tokenizer.all_special_ids)
        assert all(0 <= token < len(loaded.tokenizer) for token in sequence)


@given(seed=st.integers(0, 2**31))
def test_the_seed_alone_decides_what_is_drawn(loaded, seed):
    torch.manual_seed(1)
    drawn = segments(loaded, seed=seed)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(segments(loaded, seed=seed), drawn)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(segments(loaded, seed=seed + 1), drawn)


def test_sequences_of_one_sample_differ(loaded):
    drawn = segments(loaded, n_sequences=20).flatten(1)
    assert len({tuple(sequence) for sequence in drawn.tolist()}) == 20


def test_every_ordinary_token_is_drawn_about_equally_often(loaded):
    ordinary = sorted(set(range(len(loaded.tokenizer))) - set(loaded.tokenizer.all_special_ids))
    n_sequences, per_sequence = 2000, 26
    drawn = segments(loaded, n_sequences=n_sequences, segment_length=13, n_segments=2)
    counts = torch.bincount(drawn.flatten(), minlength=loaded.config.vocab_size)
    assert counts[ordinary].sum() == drawn.numel()
    share = per_sequence / len(ordinary)
    spread = (n_sequences * share * (1 - share)) ** 0.5
    deviations = (counts[ordinary] - n_sequences * share) / spread
    assert deviations.abs().max() < 5
    assert 0.85 < deviations.std() < 1.15


def test_without_tokenizer_the_whole_vocabulary_is_used(without_tokenizer):
    size = without_tokenizer.config.vocab_size
    drawn = segments(without_tokenizer, n_sequences=1, segment_length=size, n_segments=1)
    assert sorted(drawn.flatten().tolist()) == list(range(size))


def test_a_vocabulary_is_used_to_its_last_token_and_no_further(loaded, refused):
    ordinary = len(loaded.tokenizer) - len(loaded.tokenizer.all_special_ids)
    drawn = segments(loaded, n_sequences=2, segment_length=ordinary, n_segments=1)
    assert all(len(set(sequence)) == ordinary for sequence in drawn.flatten(1).tolist())
    with refused(f"{ordinary + 1} different tokens", repr(loaded.card.name), f"only {ordinary}"):
        segments(loaded, segment_length=ordinary + 1, n_segments=1)


def test_no_token_lies_beyond_embeddings_that_are_smaller_than_the_tokenizer(load_tiny):
    cut = load_tiny("gpt2")
    config = cut.config.__class__(**{**cut.config.to_dict(), "vocab_size": 100})
    model = torch.nn.Module()
    model.config = config
    drawn = segments(dataclasses.replace(cut, model=model), segment_length=99, n_segments=1)
    assert drawn.max() < 100


# The start token


@given(n_sequences=st.integers(1, 6), length=st.integers(1, 63))
def test_the_start_token_is_put_before_every_sequence_where_there_is_one(loaded, n_sequences, length):
    token_ids = torch.arange(n_sequences * length).reshape(n_sequences, length) % 200
    prepared = prompts.prepend_start_token(loaded, token_ids)
    start = [] if loaded.start_token_id is None else [loaded.start_token_id]
    assert prepared.tolist() == [start + sequence for sequence in token_ids.tolist()]


def test_a_sequence_longer_than_the_context_is_refused_counting_the_start_token(loaded, refused):
    longest = loaded.context_length - (loaded.start_token_id is not None)
    fits = prompts.prepend_start_token(loaded, torch.ones(2, longest, dtype=torch.long))
    assert fits.shape[1] == loaded.context_length == 64
    with refused("65 tokens", "64", repr(loaded.card.name)):
        prompts.prepend_start_token(loaded, torch.ones(2, longest + 1, dtype=torch.long))


# Prose


def test_passages_are_the_texts_cut_to_so_many_tokens(embedded, load_tiny, refused):
    found = prompts.read_passages(embedded, n_passages=3, n_tokens=20)
    assert found.shape == (3, 20)
    assert embedded.tokenizer.decode(found[0]).startswith("Call me Ishmael.")
    assert prompts.read_passages(embedded, n_passages=64, n_tokens=512).shape == (64, 512)
    with refused("101 passages", "1 to 100"):
        prompts.read_passages(embedded, n_passages=101, n_tokens=5)
    with refused("9000 tokens", "legal are 1 to"):
        prompts.read_passages(embedded, n_passages=2, n_tokens=9000)
    with refused("65 tokens", "1 to 64"):  # its context
        prompts.read_passages(load_tiny("llama"), n_passages=2, n_tokens=65)
