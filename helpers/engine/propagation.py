"""Patches on their way through the model: what they change, and nothing else, is computed again.

`propagate` takes patches that begin at any layer and position. At each layer those that begin there join
the batch; of each only the positions from its first on are carried, and the keys and values before that
are those of the unpatched run. Tokens of all patches go through norms, projections and MLP packed
together; attention is done for those with the same first position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.engine.architectures import Layer, compute_rotary_tables
from helpers.engine.backends import SiteName
from helpers.engine.cards import LoadedModel

Key = tuple[SiteName, int]
Kept = Mapping[Key, Float[Tensor, "example position ..."]]
"""Activations by site and layer; `resid_pre` of one layer more is the end of the last."""

TOKENS_PER_STEP = {"cpu": 1024, "cuda": 2**15}
"""How many tokens go through a layer at once: on a CPU as many as its caches hold."""
TOKENS_AT_ONCE = 2**16
"""How many recomputed tokens are kept at most between two layers."""


@dataclass(frozen=True)
class Change:
    """What a patch writes at one site of one layer."""

    site: SiteName
    layer: int
    head: int | None
    values: Float[Tensor, "example written ..."]
    first: int | Int[Tensor, " example"]
    """The position of the first of `values`; as a tensor that of each example's only one, -1 for none."""


@dataclass(frozen=True)
class Patch:
    """Changes made together, and where their first effect can be."""

    number: int
    layer: int
    position: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Part:
    """Examples of one token length, and what is known of their unpatched runs."""

    examples: Int[Tensor, " example"]
    length: int
    first: int
    """The first position at which base and source differ."""
    base: Kept
    source: Kept


def cut(patches: Sequence[Patch], part: Part) -> Iterator[list[Patch]]:
    """Cut patches into batches whose recomputed tokens can be kept at once."""
    batch: list[Patch] = []
    n_tokens = 0
    for patch in patches:
        size = len(part.examples) * (part.length - patch.position)
        if batch and n_tokens + size > TOKENS_AT_ONCE:
            yield batch
            batch, n_tokens = [], 0
        batch.append(patch)
        n_tokens += size
    if batch:
        yield batch


@dataclass(frozen=True)
class _Piece:
    """Patches with one first position, on their way through a layer; a view of the state."""

    position: int
    state: Float[Tensor, "patch example position d_model"]
    changes: Sequence[tuple[int, Change]]
    """With the number of the patch in this piece."""


def propagate(
    loaded: LoadedModel, found: Sequence[Layer], part: Part, patches: Sequence[Patch], *, only_last: bool = True
) -> list[Float[Tensor, "example read d_model"]]:
    """Run patches, in order of their layers, from where they begin to the end of the last layer.

    Read are the last position, or all positions from each patch's first on.
    """
    n_layers = len(found)
    tables = compute_rotary_tables(loaded.model, part.length)
    groups: dict[int, list[Patch]] = defaultdict(list)
    for patch in patches:
        groups[patch.position].append(patch)
    changes = defaultdict(list)
    for position, members in groups.items():
        for i, patch in enumerate(members):
            for change in patch.changes:
                changes[change.layer, position].append((i, change))
    states: dict[int, Tensor] = {}
    for number in range(patches[0].layer, n_layers + 1):
        for position, members in groups.items():
            joining = sum(patch.layer == number for patch in members)
            if joining:
                ends = number == n_layers and only_last
                new = part.base["resid_pre", number][:, -1 if ends else position :]
                new = new.expand(joining, *new.shape)
                states[position] = torch.cat([states[position], new]) if position in states else new.clone()
        if number == n_layers:
            break
        pieces = [_Piece(position, state, changes[number, position]) for position, state in states.items()]
        through = _LayerRun(
            found[number], tables[number], part, is_last=number == n_layers - 1 and only_last, number=number
        )
        for step in _steps(pieces, get_step_size(loaded.model.device)):
            through(step)
        if through.is_last:
            states = {position: state[:, :, -1:] for position, state in states.items()}
    for position, state in states.items():
        for i, change in changes[n_layers, position]:
            _write(state[i], part.length - state.shape[2], change)
    left = {
        patch.number: states[position][i] for position, members in groups.items() for i, patch in enumerate(members)
    }
    return [left[patch.number] for patch in patches]


def _steps(pieces: Sequence[_Piece], budget: int) -> Iterator[list[_Piece]]:
    """Cut pieces between patches so that each step has about `budget` tokens."""
    step: list[_Piece] = []
    room = budget
    for piece in pieces:
        n_patches, *sizes, _ = piece.state.shape
        per_patch = sizes[0] * sizes[1]
        start = 0
        while start < n_patches:
            if step and room < per_patch:
                yield step
                step, room = [], budget
            end = min(n_patches, start + max(1, room // per_patch))
            changes = [(i - start, change) for i, change in piece.changes if start <= i < end]
            step.append(_Piece(piece.position, piece.state[start:end], changes))
            room -= (end - start) * per_patch
            start = end
    if step:
        yield step


@dataclass(frozen=True)
class _LayerRun:
    """One layer, for pieces of any first position at once."""

    layer: Layer
    table: tuple[Tensor, Tensor] | None
    part: Part
    is_last: bool
    """Whether only the last position leaves it."""
    number: int

    def __call__(self, pieces: Sequence[_Piece]) -> None:
        layer, length = self.layer, self.part.length
        packed = torch.cat([piece.state.flatten(0, 2) for piece in pieces])
        spans = _spans(pieces, length, only_last=False)
        self.write("resid_pre", packed, spans)
        q, k, v = layer.qkv(packed)
        for site, tensor in zip("qkv", (q, k, v), strict=True):
            self.write(site, tensor, spans)
        if self.table is not None:
            positions = torch.cat([torch.arange(s.first, length, device=q.device).repeat(s.n_rows) for s in spans])
            q, k = layer.rotate(q, k, (self.table[0][positions], self.table[1][positions]))
            self.write("rot_q", q, spans)
            self.write("rot_k", k, spans)
        keys_spans = spans
        if self.is_last:
            spans = _spans(pieces, length, only_last=True)
            last = torch.cat([torch.arange(s.start + s.width - 1, s.end, s.width, device=q.device) for s in keys_spans])
            packed, q = packed[last], q[last]
        z = torch.empty_like(q)
        for query_span, key_span in zip(spans, keys_spans, strict=True):
            self.attend(z, q, k, v, query_span, key_span)
        self.write("head_z", z, spans)
        attn_out = layer.attn_out(z)
        self.write("attn_out", attn_out, spans)
        mid = packed + attn_out
        self.write("resid_mid", mid, spans)
        mlp_out = layer.mlp_out(packed if layer.parallel else mid)
        self.write("mlp_out", mlp_out, spans)
        post = mid + mlp_out
        for piece, span in zip(pieces, spans, strict=True):
            piece.state[:, :, -span.width :] = post[span.start : span.end].view(*piece.state.shape[:2], span.width, -1)

    def write(self, site: str, tensor: Float[Tensor, "token ..."], spans: Sequence[_Span]) -> None:
        for span in spans:
            for i, change in span.piece.changes:
                if change.site == site:
                    _write(span.of(tensor)[i], span.first, change)

    def attend(self, z: Tensor, q: Tensor, k: Tensor, v: Tensor, queries: _Span, keys: _Span) -> None:
        """Attention over the unpatched keys before a piece's first position, and its own after that.

        The former are the same for all patches, so that one product serves them all.
        """
        before = slice(None, keys.first)
        base_k = self.part.base[self.layer.family.key_site, self.number][:, before]  # n t k d: key/value head, d_head
        base_v = self.part.base["v", self.number][:, before]
        own_k, own_v = keys.of(k), keys.of(v)  # p n t k d: patch first
        grouped = queries.of(q).unflatten(3, (v.shape[1], -1))  # p n s k g d: query position, query head of its group
        scores = torch.cat(
            [
                torch.einsum("pnskgd,ntkd->pnksgt", grouped, base_k),
                torch.einsum("pnskgd,pntkd->pnksgt", grouped, own_k),
            ],
            dim=-1,
        )
        scores = scores * self.layer.attention.scaling
        mask = _mask(queries.width, self.part.length, self.layer.sliding_window, q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        pattern = scores.softmax(dim=-1)
        for i, change in queries.piece.changes:
            if change.site == "pattern":
                _write_pattern(pattern[i], queries.first, change)
        mixed = torch.einsum("pnksgt,ntkd->pnskgd", pattern[..., before], base_v)
        mixed += torch.einsum("pnksgt,pntkd->pnskgd", pattern[..., keys.first :], own_v)
        queries.of(z)[:] = mixed.flatten(3, 4)


@dataclass(frozen=True)
class _Span:
    """Where a piece's tokens are among those packed together."""

    piece: _Piece
    start: int
    width: int
    """Positions of each row."""
    first: int
    """The position of the first of them."""

    @property
    def n_rows(self) -> int:
        return self.piece.state.shape[0] * self.piece.state.shape[1]

    @property
    def end(self) -> int:
        return self.start + self.n_rows * self.width

    def of(self, packed: Float[Tensor, "token ..."]) -> Float[Tensor, "patch example position ..."]:
        return packed[self.start : self.end].view(*self.piece.state.shape[:2], self.width, *packed.shape[1:])


def _spans(pieces: Sequence[_Piece], length: int, *, only_last: bool) -> list[_Span]:
    spans: list[_Span] = []
    for piece in pieces:
        first = length - 1 if only_last else piece.position
        spans.append(_Span(piece, spans[-1].end if spans else 0, length - first, first))
    return spans


def _write(target: Float[Tensor, "example position ..."], start: int, change: Change) -> None:
    """Write a change into the positions from `start` on."""
    if change.head is not None:
        target = target[:, :, change.head]
    width = target.shape[1]
    if not isinstance(change.first, int):
        chosen = ((change.first >= start) & (change.first < start + width)).nonzero()[:, 0]
        target[chosen, change.first[chosen] - start] = change.values[chosen, 0]
        return
    low, high = max(change.first, start), min(change.first + change.values.shape[1], start + width)
    if low < high:
        target[:, low - start : high - start] = change.values[:, low - change.first : high - change.first]


def _write_pattern(target: Float[Tensor, "example kv_head position group key"], start: int, change: Change) -> None:
    """Write attention weights, `example position (head) key`, of one query head or of all."""
    per_group = target.shape[3]
    for head in range(target.shape[1] * per_group) if change.head is None else (change.head,):
        values = change.values[:, :, head] if change.head is None else change.values
        _write(target[:, head // per_group, :, head % per_group], start, replace(change, head=None, values=values))


def _mask(n_queries: int, n_keys: int, window: int | None, device: Any) -> Tensor | None:
    """Which of all keys each of the last queries may see."""
    if n_queries == 1 and (window is None or window >= n_keys):
        return None
    back = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None] - torch.arange(n_keys, device=device)
    return (back >= 0) & (back < (window or n_keys))


def run_senders(
    found: Sequence[Layer], part: Part, positions: slice, last: int
) -> Iterator[tuple[int, Float[Tensor, "sender example position d_model"]]]:
    """For each layer up to `last` its `resid_pre` with each head of the layers before it patched in turn.

    Attention is frozen, so each position goes its way alone.
    """
    state = part.base["resid_pre", 0][:, positions].expand(0, -1, -1, -1)
    for number in range(last + 1):
        yield number, state
        if number == last:
            return
        layer = found[number]
        sites: tuple[SiteName, ...] = ("resid_pre", "attn_out", "head_z")
        resid, attn_out, z = (part.base[site, number][:, positions] for site in sites)
        patched = z.repeat(z.shape[2], 1, 1, 1, 1)
        for head in range(z.shape[2]):
            patched[head, :, :, head] = part.source["head_z", number][:, positions, head]
        resid = torch.cat([state, resid.expand(len(patched), *resid.shape)])
        state = resid + torch.cat([attn_out.expand(len(state), *attn_out.shape), layer.attn_out(patched)])
        step = max(1, get_step_size(state.device) // (resid.shape[1] * resid.shape[2]))
        for mid, pre in zip(state.split(step), resid.split(step), strict=True):
            mid += layer.mlp_out(pre if layer.parallel else mid)


def get_step_size(device: Any) -> int:
    return TOKENS_PER_STEP.get(device.type, TOKENS_PER_STEP["cpu"])
