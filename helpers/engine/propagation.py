"""Patches on their way through the model: what they change, and nothing else, is computed again.

`propagate` takes patches that begin at any layer and position. At each layer those that begin there join
the batch; of each only the positions from its first on are carried, and the keys and values before that
are those of the unpatched run. Tokens of all patches go through norms, projections and MLP packed
together; attention is done for those with the same first position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.engine import backends
from helpers.engine.architectures import BlockCall, Layer, SiteName, attention_given
from helpers.engine.attention import AttentionCall, redirect
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
    met: Mapping[int, tuple[Float[Tensor, "example position kv_head d_head"], ...]]
    """By layer the keys and values of the base prompts, as attention had them."""
    calls: Sequence[BlockCall]
    """What each block is called with at this length."""


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
        through = _LayerRun(loaded, found[number], part, is_last=number == n_layers - 1 and only_last, number=number)
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
    """One layer, for pieces of any first position at once: the model's own block, with attention of ours."""

    loaded: LoadedModel
    layer: Layer
    part: Part
    is_last: bool
    """Whether only the last position leaves it."""
    number: int

    def __call__(self, pieces: Sequence[_Piece]) -> None:
        packed = torch.cat([piece.state.flatten(0, 2) for piece in pieces])
        spans = keys_spans = _spans(pieces, self.part.length, only_last=False)
        for span in spans:  # here and not at the block, whose input may be needed once more
            for i, change in span.piece.changes:
                if change.site == "resid_pre":
                    _write(span.of(packed)[i], span.first, change)
        met: list[tuple[Tensor, Tensor]] = []
        if self.is_last:  # of other positions only keys and values are needed
            self.run(packed, spans, _Attention(self, spans, spans, met, stops=True))
            spans = _spans(pieces, self.part.length, only_last=True)
            ends = [torch.arange(s.start + s.width - 1, s.end, s.width, device=packed.device) for s in keys_spans]
            packed = packed[torch.cat(ends)]
        post = self.run(packed, spans, _Attention(self, spans, keys_spans, met))
        for piece, span in zip(pieces, spans, strict=True):
            piece.state[:, :, -span.width :] = post[span.start : span.end].view(*piece.state.shape[:2], span.width, -1)

    def run(self, packed: Float[Tensor, "token d_model"], spans: Sequence[_Span], attend: _Attention) -> Tensor:
        positions = [torch.arange(s.first, self.part.length, device=packed.device).repeat(s.n_rows) for s in spans]
        elsewhere: tuple[SiteName, ...] = (*backends.IN_ATTENTION, "resid_pre")
        sites: set[SiteName] = {change.site for span in spans for _, change in span.piece.changes}
        taps: list[tuple[SiteName, int, backends.Tap]] = [
            (site, self.number, partial(self.write, site, spans)) for site in sites if site not in elsewhere
        ]
        with ExitStack() as stack:
            stack.enter_context(redirect(self.loaded.model, attend))
            if taps:
                stack.enter_context(backends.tap(self.loaded, taps))
            stack.enter_context(backends.stopping())
            return self.layer.run(packed, self.part.calls[self.number], torch.cat(positions))
        return packed  # stopped

    def write(self, site: SiteName, spans: Sequence[_Span], tensor: Float[Tensor, "1 token ..."]) -> Tensor:
        """The tensor with the changes that are made at a site."""
        wanted = [(span, i, change) for span in spans for i, change in span.piece.changes if change.site == site]
        new = tensor.clone() if wanted else tensor
        for span, i, change in wanted:
            _write(span.of(new[0])[i], span.first, change)
        return new


@dataclass(frozen=True)
class _Attention:
    """Attention over the unpatched keys before a piece's first position, and its own after that.

    The former are the same for all patches, so that one product serves them all.
    """

    through: _LayerRun
    spans: Sequence[_Span]
    """Of the queries."""
    keys_spans: Sequence[_Span]
    met: list[tuple[Tensor, Tensor]]
    """The keys and values of all positions, once they are known."""
    stops: bool = False

    def __call__(self, call: AttentionCall) -> tuple[Float[Tensor, "1 token head d_head"], None]:
        q, k, v = (part[0].transpose(0, 1) for part in (call.query, call.key, call.value))  # token head d_head
        q = self.through.write("rot_q", self.spans, q[None])[0]
        if not self.met:
            self.met.append((self.through.write("rot_k", self.spans, k[None])[0], v))
        if self.stops:
            backends.stop()
        z = q.new_empty(*q.shape[:2], v.shape[-1])
        for query_span, key_span in zip(self.spans, self.keys_spans, strict=True):
            self.attend(call, z, q, query_span, key_span)
        return z[None], None

    def attend(self, call: AttentionCall, z: Tensor, q: Tensor, queries: _Span, keys: _Span) -> None:
        part, number = self.through.part, self.through.number

        def change_pattern(pattern: Tensor) -> None:
            for i, change in queries.piece.changes:
                if change.site == "pattern":
                    _write_pattern(pattern[i], queries.first, change)

        base_k, base_v = (kept[:, : keys.first] for kept in part.met[number])
        own_k, own_v = (keys.of(kept) for kept in self.met[0])
        mask = part.calls[number].mask
        queries.of(z)[:] = mix(call, queries.of(q), own_k, own_v, base_k, base_v, mask, change_pattern)


def mix(
    call: AttentionCall,
    q: Float[Tensor, "patch example query head d_head"],
    own_k: Float[Tensor, "patch example own kv_head d_head"],
    own_v: Float[Tensor, "patch example own kv_head d_head"],
    base_k: Float[Tensor, "example before kv_head d_head"],
    base_v: Float[Tensor, "example before kv_head d_head"],
    mask: Float[Tensor, "head_or_1 position position"] | None,
    change_pattern: Callable[[Float[Tensor, "patch example kv_head query group key"]], None] = lambda pattern: None,
) -> Float[Tensor, "patch example query head d_head"]:
    """What each head mixes at the last positions, from keys and values that are alike for all patches, then their own.

    Args:
        call: of the layer's attention, for its formula.
        q: at as many last positions as there are queries.
        own_k: at as many last positions as there are keys of a patch's own.
        own_v: the same.
        base_k: at all positions before these.
        base_v: the same.
        mask: as of `BlockCall`.
        change_pattern: is handed the pattern, which it may write into.
    """
    n_kv, n_queries, n_before = own_k.shape[3], q.shape[2], base_k.shape[1]
    grouped = q.unflatten(3, (n_kv, -1))  # p n s k g d: patch first; query position, key/value head, query head of it
    scores = torch.cat(
        [torch.einsum("pnskgd,ntkd->pnksgt", grouped, base_k), torch.einsum("pnskgd,pntkd->pnksgt", grouped, own_k)],
        dim=-1,
    )
    if mask is not None:
        mask = mask[:, -n_queries:].unflatten(0, (-1, len(mask)) if len(mask) == 1 else (n_kv, -1))
        mask = mask.transpose(1, 2)  # k s g t
    if n_queries == 1 and mask is not None and not mask.any():
        mask = None
    by_head = lambda numbers: numbers.view(n_kv, 1, -1, 1)  # noqa: E731
    pattern = call.normalise(scores * call.scaling, mask, by_head)
    change_pattern(pattern)
    mixed = torch.einsum("pnksgt,ntkd->pnskgd", pattern[..., :n_before], base_v)
    mixed += torch.einsum("pnksgt,pntkd->pnskgd", pattern[..., n_before:], own_v)
    return mixed.flatten(3, 4)


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


def run_senders(
    loaded: LoadedModel,
    found: Sequence[Layer],
    part: Part,
    positions: slice,
    last: int,
    senders: Sequence[tuple[int, int]],
) -> Iterator[tuple[int, Float[Tensor, "sender example position d_model"]]]:
    """For each layer up to `last` its `resid_pre` with each sender of the layers before it patched in turn.

    Attention is frozen, so each position goes its way alone.
    """
    state = part.base["resid_pre", 0][:, positions].expand(0, -1, -1, -1)
    for number in range(last + 1):
        yield number, state
        if number == last:
            return
        resid, z = (part.base[site, number][:, positions] for site in ("resid_pre", "head_z"))
        heads, n_before = [head for layer, head in senders if layer == number], len(state)
        if not heads and not n_before:
            continue
        given = z.repeat(1 + len(heads), 1, 1, 1, 1)  # the first as it is, for all senders before
        for place, head in enumerate(heads, start=1):
            given[place, :, :, head] = part.source["head_z", number][:, positions, head]
        written = found[number].write(given)
        written = torch.cat([written[:1].expand(n_before, -1, -1, -1), written[1:]])
        resid = torch.cat([state, resid.expand(len(heads), *resid.shape)])
        places = torch.arange(part.length, device=z.device)[positions].repeat(resid.shape[1])
        step = max(1, get_step_size(state.device) // (resid.shape[1] * resid.shape[2]))
        state = torch.cat(
            [
                run_frozen(
                    loaded,
                    found[number],
                    part.calls[number],
                    some.flatten(0, 2),
                    adds.flatten(0, 2),
                    places.repeat(len(some)),
                ).view(some.shape)
                for some, adds in zip(resid.split(step), written.split(step), strict=True)
            ]
        )


def run_frozen(
    loaded: LoadedModel,
    layer: Layer,
    call: BlockCall,
    resid_pre: Float[Tensor, "token d_model"],
    written: Float[Tensor, "token d_model"],
    positions: Int[Tensor, " token"],
) -> Float[Tensor, "token d_model"]:
    """`resid_post` of one layer where what its attention's output matrix writes is given."""
    layout = loaded.layout
    mixed = resid_pre.new_zeros(1, len(resid_pre), layout.n_heads, layout.d_value)
    with attention_given(layer, written), redirect(loaded.model, lambda _: (mixed, None)):
        return layer.run(resid_pre, call, positions)


def read_block(
    loaded: LoadedModel,
    number: int,
    layer: Layer,
    call: BlockCall,
    resid_pre: Float[Tensor, "*many position d_model"],
    sites: Sequence[SiteName],
    first: int = 0,
) -> dict[SiteName, Float[Tensor, "*many position ..."]]:
    """Sites of one layer up to its attention, from any `resid_pre`, whose positions begin with `first`."""
    read: dict[SiteName, Tensor] = {}
    shape = resid_pre.shape[:-1]
    positions = torch.arange(first, first + shape[-1], device=resid_pre.device).repeat(shape[:-1].numel())

    def keep(site: SiteName, tensor: Tensor) -> None:
        read[site] = tensor[0]

    taps: list[tuple[SiteName, int, backends.Tap]] = [(site, number, partial(keep, site)) for site in sites]
    with redirect(loaded.model, backends.stop), backends.tap(loaded, taps), backends.stopping():
        layer.run(resid_pre.flatten(0, -2), call, positions)
    return {site: tensor.unflatten(0, shape) for site, tensor in read.items()}


def get_step_size(device: Any) -> int:
    return TOKENS_PER_STEP.get(device.type, TOKENS_PER_STEP["cpu"])
