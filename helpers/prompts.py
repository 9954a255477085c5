"""The data sets of the book, each made from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers import InputError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from helpers.models import LoadedModel


def random_segments(
    loaded: LoadedModel, *, n_sequences: int, segment_length: int, n_segments: int, seed: int
) -> Int[Tensor, "sequence segment position"]:
    """Random tokens, drawn uniformly from the vocabulary without special tokens.

    Within a sequence no token occurs twice, so every match between positions is one that the caller
    makes by repeating a segment.

    Raises:
        InputError: the vocabulary holds fewer tokens than a sequence needs.
    """
    import torch

    special = set(loaded.tokenizer.all_special_ids) if loaded.tokenizer else set()
    vocabulary_size = loaded.config.vocab_size if loaded.tokenizer is None else len(loaded.tokenizer)
    vocabulary_size = min(vocabulary_size, loaded.config.vocab_size)  # some embeddings are padded, some cut
    ordinary = torch.tensor([token for token in range(vocabulary_size) if token not in special])
    needed = n_segments * segment_length
    if needed > len(ordinary):
        raise InputError(
            f"{needed} different tokens a sequence are asked for, but {loaded.card.name!r} has only {len(ordinary)}"
        )
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(len(ordinary), generator=generator)[:needed] for _ in range(n_sequences)]
    return ordinary[torch.stack(picks)].reshape(n_sequences, n_segments, segment_length)


def with_start_token(
    loaded: LoadedModel, token_ids: Int[Tensor, "sequence position"]
) -> Int[Tensor, "sequence position_with_start"]:
    """Put the model's start token before every sequence, where the model has one.

    Raises:
        InputError: the sequences are then longer than the model's context.
    """
    import torch

    if loaded.start_token_id is not None:
        start = torch.full((token_ids.shape[0], 1), loaded.start_token_id)
        token_ids = torch.cat([start, token_ids], dim=1)
    if loaded.context_length is not None and token_ids.shape[1] > loaded.context_length:
        raise InputError(
            f"sequences of {token_ids.shape[1]} tokens are longer than the {loaded.context_length} "
            f"that {loaded.card.name!r} takes"
        )
    return token_ids
