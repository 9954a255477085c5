"""Prompts for any model: random tokens, passages of prose, words that are single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from helpers import InputError
from helpers.engine.inputs import as_count, as_list, as_whole, check_seed, is_row
from helpers.models import LoadedModel

PASSAGES = Path(__file__).parent / "data" / "moby_dick.txt"


def draw_segments(
    loaded: LoadedModel, *, n_sequences: int, segment_length: int, n_segments: int, seed: int
) -> Int[Tensor, "sequence segment position"]:
    """Random tokens, drawn uniformly from the vocabulary without special tokens.

    Within a sequence no token occurs twice, so every match between positions is one that the caller
    makes by repeating a segment.

    Args:
        loaded: whose vocabulary is drawn from.
        n_sequences: to draw.
        segment_length: in tokens.
        n_segments: of each sequence.
        seed: of the draws.

    Raises:
        InputError: the vocabulary holds fewer tokens than a sequence needs.
    """
    n_sequences = as_count(n_sequences, "n_sequences")
    segment_length, n_segments = as_count(segment_length, "segment_length"), as_count(n_segments, "n_segments")
    special = set(loaded.tokenizer.all_special_ids) if loaded.tokenizer else set()
    vocabulary_size = loaded.config.vocab_size if loaded.tokenizer is None else len(loaded.tokenizer)
    vocabulary_size = min(vocabulary_size, loaded.config.vocab_size)  # some embeddings are padded, some cut
    ordinary = torch.tensor([token for token in range(vocabulary_size) if token not in special])
    needed = n_segments * segment_length
    if needed > len(ordinary):
        raise InputError(
            f"{needed} different tokens a sequence are asked for, but {loaded.card.name!r} has only {len(ordinary)}"
        )
    generator = torch.Generator().manual_seed(check_seed(seed))
    picks = [torch.randperm(len(ordinary), generator=generator)[:needed] for _ in range(n_sequences)]
    return ordinary[torch.stack(picks)].reshape(n_sequences, n_segments, segment_length)


def prepend_start_token(
    loaded: LoadedModel, token_ids: Int[Tensor, "sequence position"]
) -> Int[Tensor, "sequence position_with_start"]:
    """Put the model's start token before every sequence, where the model has one.

    Raises:
        InputError: the sequences are then longer than the model's context.
    """
    token_ids = torch.as_tensor(token_ids)
    if token_ids.ndim != 2:
        raise InputError(f"token ids of shape {list(token_ids.shape)}: legal is sequence position")
    if loaded.start_token_id is not None:
        start = token_ids.new_full((token_ids.shape[0], 1), loaded.start_token_id)
        token_ids = torch.cat([start, token_ids], dim=1)
    if loaded.context_length is not None and token_ids.shape[1] > loaded.context_length:
        raise InputError(
            f"sequences of {token_ids.shape[1]} tokens are longer than the {loaded.context_length} "
            f"that {loaded.card.name!r} takes"
        )
    return token_ids


def read_passages(loaded: LoadedModel, *, n_passages: int, n_tokens: int) -> Int[Tensor, "passage position"]:
    """The first tokens of passages of English prose, one from each chapter of a novel.

    The data sheet is `helpers/data/README.md`. The model's start token comes first where it has one.

    Args:
        loaded: whose tokenizer is used.
        n_passages: in the order of the novel.
        n_tokens: of each passage, the start token included.

    Raises:
        InputError: more or longer passages than there are, or longer ones than the model takes.
    """
    texts = PASSAGES.read_text(encoding="utf-8").splitlines()
    if not 1 <= as_whole(n_passages) <= len(texts):
        raise InputError(f"{n_passages} passages are asked for: legal are 1 to {len(texts)}")
    rows = [loaded.encode(text)[: as_count(n_tokens, "n_tokens")] for text in texts[:n_passages]]
    longest = min(min(map(len, rows)), loaded.context_length or n_tokens)
    if not 1 <= n_tokens <= longest:
        raise InputError(f"passages of {n_tokens} tokens are asked for: legal are 1 to {longest} with this model")
    return torch.tensor(rows)


NAMES = (
    "Mary John Tom James Anna Sarah David Paul Emma Peter Alice Bob Carol Daniel Emily Frank George Helen Henry Jack "
    "Jane Kate Laura Lisa Mark Martin Michael Nancy Nick Oliver Patrick Rachel Richard Robert Rose Sam Simon Steve "
    "Susan Thomas Tim Victoria William Adam Amy Andrew Anne Anthony Arthur Ben Brian Charles Chris Claire Dean Diana "
    "Edward Elizabeth Eric Ethan Fred Grace Graham Harry Ian Jacob Jason Jennifer Jessica Joe Joseph Joshua Julia "
    "Justin Karen Kelly Kevin Linda Louis Lucy Luke Maria Matthew Max Melissa Michelle Nathan Nicole Philip Rebecca "
    "Roger Ryan Scott Sean Sophie Stephen Tony Vincent Walter"
).split()


def keep_single_tokens(loaded: LoadedModel, words: Sequence[str]) -> list[str]:
    """The words that are one token with a space before them."""
    if loaded.tokenizer is None:
        raise InputError(f"model {loaded.card.name!r} has no tokenizer, so no words can be chosen for it")
    words = as_list(words)
    if not is_row(words) or not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError(f"words {str(words)[:60]}: legal are words, at least a letter each")
    return [word for word in words if len(loaded.encode_after(f" {word}")) == 1]


def encode_word(loaded: LoadedModel, word: str) -> int:
    """The first token of a word with a space before it."""
    if not isinstance(word, str) or not word.strip():
        raise InputError(f"word {word!r}: legal is a text of at least a letter")
    return loaded.encode_after(f" {word}")[0]
