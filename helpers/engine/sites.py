"""Where in the forward pass: the sites by name, and which tokens of which prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from helpers import InputError
from helpers.engine import backends
from helpers.engine.architectures import SiteName
from helpers.engine.cards import LoadedModel
from helpers.engine.inputs import as_list, as_mask, as_whole, as_wholes, is_row

Prompt = str | Sequence[int]
"""A text, or its token ids."""
Prompts = Sequence[Prompt] | Int[Tensor, "example position"]
Readable = SiteName | Literal["logits"]
Position = int | Sequence[int] | Int[Tensor, " example"]
"""A token's number in its prompt: the same in all prompts, or one for each. Negative numbers count from the end."""
Positions = Literal["all", "mean", "last", "second_to_last"] | Position | Mapping[str, Position]
"""One position, or several by name."""

# A new site needs besides: its name and place in the pass in `backends.SiteName`, where each backend finds it in
# `backends._point`, `_bridge_hooks` and `_edit_nnsight`, and a line in `tests/shared/by_hand.py`.
SITES: dict[SiteName, tuple[str, ...]] = {
    "resid_pre": ("position", "d_model"),
    "resid_mid": ("position", "d_model"),
    "resid_post": ("position", "d_model"),
    "attn_out": ("position", "d_model"),
    "mlp_out": ("position", "d_model"),
    "q": ("position", "head", "d_head"),
    "k": ("position", "kv_head", "d_head"),
    "v": ("position", "kv_head", "d_head"),
    "rot_q": ("position", "head", "d_head"),
    "rot_k": ("position", "kv_head", "d_head"),
    "pattern": ("head", "query", "key"),
    "head_z": ("position", "head", "d_head"),
}


@dataclass(frozen=True)
class Captured:
    """Activations of many prompts. Positions a prompt does not have hold NaN."""

    values: Mapping[Readable, Tensor]
    axes: Mapping[Readable, tuple[str, ...]]
    """For each site the names of its tensor's axes; `layer` and `position` count along the next two fields."""
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    lengths: Int[Tensor, " example"]
    """Tokens of each prompt."""

    def __getitem__(self, site: Readable) -> Tensor:
        return self.values[site]

    def select(self, rows: Sequence[int]) -> Captured:
        """Those of some of the prompts."""
        rows = as_list(rows)
        if is_row(rows) and rows and all(isinstance(row, bool) for row in rows):
            rows = np.flatnonzero(as_mask(rows, len(self.lengths), "rows")).tolist()
        rows = list(as_wholes(rows)) if is_row(rows) else rows
        if not is_row(rows) or not all(-len(self.lengths) <= row < len(self.lengths) for row in rows):
            raise InputError(f"rows {str(rows)[:60]}: legal are numbers below {len(self.lengths)}, or True and False")
        values = {site: tensor[rows] for site, tensor in self.values.items()}
        return replace(self, values=values, lengths=self.lengths[rows])


def tokenize(loaded: LoadedModel, prompts: Prompts) -> list[list[int]]:
    """The token ids of each prompt, texts with the model's start token before them.

    What a tokenizer or a chat template returns is read as well, without the tokens that its mask leaves out.

    Raises:
        InputError: no prompt, an empty one, or a token id that the model does not have.
    """
    given = _unpacked(prompts)
    if not is_row(given) or not given:
        raise InputError(f"prompts {str(prompts)[:80]!r}: legal are texts or lists of token ids, at least one")
    rows = [row for one in given for row in (_unpacked(one) if isinstance(one, Mapping) else [as_list(one)])]
    if not all(isinstance(row, str) or is_row(row) for row in rows):
        raise InputError(f"prompts {str(prompts)[:80]!r}: legal are texts or lists of token ids, at least one")
    rows = [loaded.encode(row) if isinstance(row, str) else list(map(as_whole, row)) for row in rows]
    vocabulary, longest = loaded.config.vocab_size, loaded.context_length
    for i, row in enumerate(rows):
        if not row:
            raise InputError(f"prompt {i} has no token: legal is at least one")
        if longest and len(row) > longest:
            raise InputError(f"prompt {i} has {len(row)} tokens: the model takes at most {longest}")
        if bad := [token for token in row if not 0 <= token < vocabulary]:
            raise InputError(f"prompt {i} has token {bad[0]}: legal are 0 to {vocabulary - 1}")
    return rows


def _unpacked(prompts: Any) -> Any:
    """The rows in what a tokenizer returns, without padding; all else as a list, or as it is."""
    if not isinstance(prompts, Mapping):
        return as_list(prompts)
    if "input_ids" not in prompts:
        names = ", ".join(map(repr, list(prompts)[:3]))
        raise InputError(f"prompts in a mapping of {names}: legal are texts, token ids, or what a tokenizer returns")
    rows, masks = (as_list(prompts.get(name)) for name in ("input_ids", "attention_mask"))
    if not is_row(rows):
        raise InputError(f"input_ids {str(rows)[:60]}: legal are token ids, or lists of them")
    if rows and not is_row(as_list(rows[0])):
        rows, masks = [rows], masks and [masks]
    if not masks:
        return rows
    if len(masks) != len(rows):
        raise InputError(f"an attention mask of {len(masks)} rows for {len(rows)} prompts: legal is one for each")
    rows, masks = [as_list(row) for row in rows], [as_list(mask) for mask in masks]
    seen = [as_mask(mask, len(row), "attention mask") for row, mask in zip(rows, masks, strict=True)]
    return [[token for token, one in zip(row, mask, strict=True) if one] for row, mask in zip(rows, seen, strict=True)]


def locate_positions(
    positions: Any, lengths: Int[Tensor, " example"]
) -> tuple[tuple[str, ...], Int[Tensor, "example p"]]:
    """Names of the positions asked for, and each one's number in each prompt; -1 where there is none."""
    if isinstance(positions, str) and positions in ("all", "mean"):
        numbers = torch.arange(int(lengths.max())).expand(len(lengths), -1)
        numbers = torch.where(numbers < lengths[:, None], numbers, -1)
        return (("mean",) if positions == "mean" else tuple(map(str, range(numbers.shape[1])))), numbers
    if isinstance(positions, str):
        if positions not in ("last", "second_to_last"):
            raise InputError(
                f"unknown positions {positions!r}: legal are all, mean, last, second_to_last, one number, one for "
                "each prompt, or several of these by name"
            )
        positions = {positions: -1 if positions == "last" else -2}
    elif not isinstance(positions, Mapping):
        positions = {"each" if is_row(as_list(positions)) else str(as_list(positions)): positions}
    columns = []
    for name, position in positions.items():
        given = as_wholes(position)
        if is_row(as_list(position)) and len(given) != len(lengths):
            raise InputError(f"position {name!r} is given for {len(given)} prompts: there are {len(lengths)}")
        numbers = torch.tensor(given).expand(len(lengths))
        wrong = ((numbers >= lengths) | (numbers < -lengths)).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise InputError(
                f"position {int(numbers[i])} of prompt {i} is out of range: legal are {-int(lengths[i])} to "
                f"{int(lengths[i]) - 1}"
            )
        columns.append(torch.where(numbers < 0, numbers + lengths, numbers))
    if not columns:
        raise InputError("no positions: legal is at least one")
    return tuple(map(str, positions)), torch.stack(columns, dim=1)


def split_batches(
    order: Int[Tensor, " example"], lengths: Int[Tensor, " example"], tokens_per_batch: int, apart: float = np.inf
) -> Iterator[Int[Tensor, " row"]]:
    """Cut an order of examples, shortest first, into batches of at most so many tokens with their padding.

    Examples of more than `apart` tokens never share a batch with shorter ones.
    """
    start, sizes = 0, lengths[order].tolist()
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * sizes[end] > tokens_per_batch or sizes[start] <= apart < sizes[end]:
            yield order[start:end]
            start = end


def get_axes(site: Readable) -> tuple[str, ...]:
    return ("example", "position", "token") if site == "logits" else ("example", "layer", *SITES[site])


def get_size(loaded: LoadedModel, site: Readable, n_layers: int, n_positions: int, longest: int) -> tuple[int, ...]:
    if site == "logits":
        return n_positions, backends.get_huggingface_model(loaded).get_output_embeddings().weight.shape[0]
    if site == "pattern":
        return n_layers, n_positions, loaded.n_heads, longest
    if SITES[site][-1] == "d_model":
        return n_layers, n_positions, loaded.config.hidden_size
    return n_layers, n_positions, count_heads(loaded, site), loaded.layout.get_width(site)


def check_site(loaded: LoadedModel, site: SiteName, layer: int, heads: Sequence[int] = ()) -> None:
    """Refuse, in one sentence, a site, layer or head that the model does not have."""
    if not isinstance(site, str) or site not in SITES:
        raise InputError(f"unknown site {site!r}: legal are {', '.join(SITES)}")
    if why := backends.explain_missing(loaded, site):
        raise InputError(why)
    if not 0 <= as_whole(layer) < loaded.n_layers:
        raise InputError(f"no layer {layer}: legal are 0 to {loaded.n_layers - 1}")
    for head in map(as_whole, heads):
        if not 0 <= head < count_heads(loaded, site):
            kind = "key/value head" if "kv_head" in SITES[site] else "head"
            raise InputError(f"no {kind} {layer}.{head}: legal are {kind}s 0 to {count_heads(loaded, site) - 1}")


def count_heads(loaded: LoadedModel, site: SiteName) -> int:
    """How many heads a site has in each layer.

    Raises:
        InputError: a site of the residual stream.
    """
    if SITES[site][-1] != "d_model":
        return loaded.layout.count_heads(site)
    with_heads = ", ".join(name for name, axes in SITES.items() if axes[-1] != "d_model")
    raise InputError(f"{site} has no heads: legal are {with_heads}")
