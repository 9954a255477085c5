"""Name a site once, read or change it on any backend.

A site is a place in the forward pass. Its tensor has the axes given here, on every backend:

    resid_pre, resid_mid, resid_post    example position d_model
    attn_out, mlp_out                   example position d_model
    q, rot_q, head_z                    example position head d_head
    k, rot_k, v                         example position kv_head d_head
    pattern                             example head query key

`q` and `k` are taken before the rotary embedding, `rot_q` and `rot_k` after it. `attn_out` and `mlp_out`
are what is added to the residual stream. `capture` also knows `logits` (example position token). The
definitions, and what a backend can't give, are on the page "Sites" of the book.
"""

from __future__ import annotations

import json
import operator
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import InputError, backends

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from helpers.models import LoadedModel

    Head = tuple[int, int]
    """(layer, query head)"""
    Prompt = str | Sequence[int]
    """A text, or its token ids."""

SITES = {
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
TOKENS_PER_BATCH = 1024
MEMORY_BUDGET = 4 * 2**30
"""In bytes."""
HOW = ("replace", "add", "scale")


# What can be read and changed


@dataclass(frozen=True)
class Edit:
    """One change of one site while the model runs.

    `value` broadcasts against the selected part of the site's tensor, whose axes are those of the module's
    docstring, without `head` or `position` where that is a single number. So for one head at one position
    it may be a number, `d_head` numbers, or `example d_head`. The value for `pattern` is laid out
    `example query head key`, less what is selected.
    """

    site: str
    layer: int
    value: Tensor | float = 0.0
    how: str = "replace"
    """`replace` by the value, `add` it, or `scale` by it."""
    head: int | Sequence[int] | None = None
    """A query head (of `k`, `rot_k`, `v`: a key/value head), several, or all."""
    position: int | Sequence[int] | Int[Tensor, " example"] | None = None
    """A token's number in its prompt, the same several of each prompt, one for each prompt (a tensor), or
    every token, generated ones included. Negative numbers count from the end of what one forward pass
    processes, so that during generation -1 is always the newest token."""

    def __str__(self) -> str:
        head = "" if self.head is None else f" head {self.head}"
        position = "" if self.position is None else f" position {self.position}"
        if hasattr(self.position, "tolist"):
            position = " at a position of each prompt"
        return f"{self.how} {self.site} of layer {self.layer}{head}{position}"


@dataclass(frozen=True)
class Captured:
    """Activations of many prompts. Positions a prompt does not have hold NaN."""

    values: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    """For each site the names of its tensor's axes; `layer` and `position` count along the next two fields."""
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    lengths: Int[Tensor, " example"]
    """Tokens of each prompt."""
    folder: Any = field(default=None, repr=False)
    """Keeps a temporary folder of memory-mapped files alive."""

    def __getitem__(self, site: str) -> Tensor:
        return self.values[site]

    def chosen(self, rows: Sequence[int]) -> Captured:
        """Those of some of the prompts."""
        rows = list(rows)
        values = {site: tensor[rows] for site, tensor in self.values.items()}
        return replace(self, values=values, lengths=self.lengths[rows])


def token_ids(loaded: LoadedModel, prompts: Sequence[Prompt] | Int[Tensor, "example position"]) -> list[list[int]]:
    """The token ids of each prompt, texts with the model's start token before them.

    Raises:
        InputError: no prompt, an empty one, or a token id that the model does not have.
    """
    rows = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if isinstance(prompts, str) or not rows or not all(isinstance(row, Sequence) for row in rows):
        raise InputError(f"prompts {str(prompts)[:80]!r}: legal are texts or lists of token ids, at least one")
    rows = [loaded.encode(row) if isinstance(row, str) else list(map(_whole, row)) for row in rows]
    vocabulary, longest = loaded.config.vocab_size, loaded.context_length
    for i, row in enumerate(rows):
        if not row:
            raise InputError(f"prompt {i} has no token: legal is at least one")
        if longest and len(row) > longest:
            raise InputError(f"prompt {i} has {len(row)} tokens: the model takes at most {longest}")
        if bad := [token for token in row if not 0 <= token < vocabulary]:
            raise InputError(f"prompt {i} has token {bad[0]}: legal are 0 to {vocabulary - 1}")
    return rows


def capture(
    loaded: LoadedModel,
    prompts: Sequence[Prompt] | Int[Tensor, "example position"],
    sites: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: str | int | Sequence[int] | Mapping[str, int | Sequence[int]] = "last",
    padding_side: str = "right",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    memory_budget: int = MEMORY_BUDGET,
    folder: Path | None = None,
) -> Captured:
    """Run prompts of any lengths through the model and keep what was asked for, in float32 on the CPU.

    The model runs no further than the last layer asked for, and the unembedding only for `logits`, at the
    positions asked for.

    Args:
        sites: names of `SITES`, or "logits".
        layers: all by default.
        positions: "all", "mean" (over the prompt's tokens), "last", "second_to_last", numbers (negative ones
            count from the end), or names, each with one number or with one for each prompt.
        padding_side: "right" or "left"; the result is the same.
        tokens_per_batch: padding included; a single longer prompt is a batch of its own.
        memory_budget: a larger result, in bytes, is written to a safetensors file for each site, memory-mapped.
        folder: where those files go and stay; by default they vanish with the result.

    Raises:
        InputError: unknown site, layer or position out of range, an activation that is not a finite number.
    """
    import torch
    from tqdm import tqdm

    rows = token_ids(loaded, prompts)
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    chosen = tuple(range(loaded.n_layers)) if layers is None else tuple(map(_whole, layers))
    for layer in chosen:
        for site in sites:
            check_site(loaded, "resid_pre" if site == "logits" else site, layer)
    if not sites or not chosen:
        raise InputError(f"nothing to capture: sites {list(sites)}, layers {list(chosen)}")
    if padding_side not in ("right", "left"):
        raise InputError(f"unknown padding side {padding_side!r}: legal are right, left")
    lengths = torch.tensor([len(row) for row in rows])
    names, columns = positions_of(positions, lengths)
    sizes = {site: _size(loaded, site, len(chosen), len(names), int(lengths.max())) for site in sites}
    queue = list(batches(lengths.argsort(stable=True), lengths, tokens_per_batch))
    bar = tqdm(total=len(rows), desc="capture", delay=2, mininterval=2, leave=False, file=sys.stderr)
    with _Store(sizes, len(rows), memory_budget, folder) as store, bar:
        while queue:
            examples = queue.pop(0)
            batch = backends.make_batch([rows[i] for i in examples.tolist()], loaded.device, padding_side)
            reading = _Reading(chosen, columns[examples], lengths[examples], names == ("mean",))
            try:
                with _running(examples, len(rows)):
                    read = _read(loaded, batch, reading, sizes)
            except torch.OutOfMemoryError:
                if len(examples) == 1:
                    raise InputError(
                        f"prompt {int(examples)} alone, of {int(lengths[examples])} tokens, does not fit on "
                        f"{loaded.device}: shorten it or take another device"
                    ) from None
                queue[:0] = examples.chunk(2)
                continue
            store.write(examples, read)
            bar.update(len(examples))
        values = store.finish()
    axes = {}
    for site in sites:
        axes[site] = ("example", "layer", *SITES[site]) if site != "logits" else ("example", "position", "token")
        if site == "pattern":  # kept with the query first, so that positions are one axis of every site
            values[site] = values[site].transpose(2, 3)
    return Captured(values, axes, chosen, names, lengths, store.temporary)


@contextmanager
def intervene(loaded: LoadedModel, *edits: Edit) -> Iterator[None]:
    """While the context lasts, every forward pass of the model is changed, in the order given.

    That holds for `capture`, `next_token_losses`, `generate` and for the backend's own calls (nnsight: its
    traces). The hooks are removed when the context ends, also after an exception.

    Raises:
        InputError: no such site, layer or head; a value that does not fit; an edit that never took place,
            since no pass ran or none had the position.
    """

    fired = [False] * len(edits)
    passes: list[_Current] = []

    def tap(number: int, edit: Edit) -> backends.Tap:
        def change(tensor: Tensor) -> Tensor | None:
            changed = _apply(edit, tensor, passes[-1])
            fired[number] |= changed is not None
            return changed

        return change

    for edit in edits:
        _check_edit(loaded, edit)
    with ExitStack() as stack:
        # Read here and not in the taps: nnsight runs those in a context of their own.
        stack.enter_context(backends.watched(loaded, lambda began: passes.append(_Current(began, *_RUNNING.get()))))
        taps = [(edit.site, edit.layer, tap(number, edit)) for number, edit in enumerate(edits)]
        stack.enter_context(backends.tapped(loaded, taps))
        yield
    for number, edit in enumerate(edits):
        if not fired[number]:
            longest = max((int(current.began.lengths.max()) for current in passes), default=0)
            seen = f"the longest prompt had {longest} tokens" if passes else "no forward pass ran"
            raise InputError(f"the edit '{edit}' never took place: {seen} inside the context")


def ablation(
    loaded: LoadedModel,
    site: str,
    layer: int,
    *,
    how: str = "zero",
    head: int | Sequence[int] | None = None,
    position: int | None = None,
    reference: Captured | None = None,
    seed: int = 0,
) -> Edit:
    """An edit that takes away what a site says of the prompt at hand.

    Args:
        how: "zero"; "mean" over all examples and positions of `reference`; or "resample", the activations of
            another prompt of `reference`, drawn with `seed` (as many prompts as will be run, equally long).
        reference: what `capture` returned for this site and layer, at all positions.

    Raises:
        InputError: unknown kind, or a reference that lacks what is needed.
    """
    import numpy as np
    import torch

    if how not in ("zero", "mean", "resample"):
        raise InputError(f"unknown ablation {how!r}: legal are zero, mean, resample")
    check_site(loaded, site, layer, _as_tuple(head))
    if how == "zero":
        return Edit(site, layer, 0.0, head=head, position=position)
    if reference is None or site not in reference.values or layer not in reference.layers:
        raise InputError(f"{how} ablation needs a reference that has {site} of layer {layer}")
    everywhere = tuple(map(str, range(int(reference.lengths.max()))))
    if reference.positions != everywhere and (how, reference.positions) != ("mean", ("mean",)):
        raise InputError(f"the reference holds positions {', '.join(reference.positions)}: legal are all positions")
    values = reference[site][:, reference.layers.index(layer)]
    if site == "pattern":
        values = values.transpose(1, 2)
    if how == "mean":
        return Edit(site, layer, _at(values.nanmean(dim=(0, 1)), head, axis=0), head=head, position=position)
    n_examples = len(values)
    if n_examples < 2 or len(set(reference.lengths.tolist())) > 1:
        raise InputError(f"resample ablation needs at least two reference prompts of one length, not {n_examples}")
    if position is not None and not -len(everywhere) <= position < len(everywhere):
        raise InputError(f"position {position} is out of range: legal are {-len(everywhere)} to {len(everywhere) - 1}")
    order = np.random.default_rng(seed).permutation(n_examples)
    donor = np.empty_like(order)
    donor[order] = np.roll(order, 1)  # one cycle through all prompts: nobody is her own donor
    values = _at(_at(values[torch.from_numpy(donor)], head, axis=2), position, axis=1)
    return Edit(site, layer, values, head=head, position=position)


def generate(
    loaded: LoadedModel, prompts: Sequence[Prompt] | Int[Tensor, "example position"], *, max_new_tokens: int
) -> list[list[int]]:
    """The most likely next token, again and again: the new tokens of each prompt, up to the end token.

    Prompts of one length run together, so that nothing is padded.

    Raises:
        InputError: no token to generate, or more than the model's context holds.
    """
    import torch

    rows = token_ids(loaded, prompts)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens}: legal is at least 1")
    if loaded.context_length and (longest := max(map(len, rows))) + max_new_tokens > loaded.context_length:
        raise InputError(
            f"{max_new_tokens} new tokens after a prompt of {longest} are too many: the model takes "
            f"{loaded.context_length} in all"
        )
    lengths = torch.tensor([len(row) for row in rows])
    new: dict[int, list[int]] = {}
    for length in lengths.unique():
        for examples in batches((lengths == length).nonzero()[:, 0], lengths, TOKENS_PER_BATCH):
            batch = backends.make_batch([rows[i] for i in examples.tolist()], loaded.device)
            with _running(examples, len(rows)):
                longer = backends.generate(loaded, batch.input_ids, max_new_tokens)
            new |= zip(examples.tolist(), longer[:, length:].tolist(), strict=True)
    return [_up_to_end(loaded, new[i]) for i in range(len(rows))]


def next_token_losses(
    loaded: LoadedModel, tokens: Int[Tensor, "sequence position"], *, entries: Sequence[int] | None = None
) -> Float[Tensor, "sequence position-1"]:
    """Cross-entropy of each token given those before it, in nats; entry i belongs to token i + 1.

    Args:
        entries: those to return, which saves the unembedding of others; all by default.

    Batches hold a fixed number of tokens, so that the same call gives the same bits on every machine
    of a kind, whatever memory is free.
    """
    import torch

    rows, n_entries = token_ids(loaded, tokens), tokens.shape[1] - 1
    lengths = torch.full((len(rows),), tokens.shape[1])
    entries = range(n_entries) if entries is None else entries
    chosen = torch.tensor([_whole(entry) for entry in entries], dtype=torch.long)
    if ((chosen < 0) | (chosen >= n_entries)).any():
        raise InputError(f"entries {chosen.tolist()}: legal are 0 to {n_entries - 1}")
    losses = []
    for examples in batches(torch.arange(len(rows)), lengths, TOKENS_PER_BATCH):
        batch = backends.make_batch([rows[i] for i in examples.tolist()], loaded.device)
        with _running(examples, len(rows)):
            losses.append(backends.forward_losses(loaded, batch, chosen).cpu())
    return torch.cat(losses)


def layer_matched_sets(
    loaded: LoadedModel, heads: Sequence[Head], *, n_sets: int, seed: int, disjoint: bool = True
) -> list[list[Head]]:
    """Random sets to compare with: as many heads in every layer as `heads` has there, none of them in `heads`.

    Args:
        disjoint: if not, they are drawn from all heads of the layer, so that they may share some with `heads`.

    Returns no set at all where a layer has too few other heads, or where `heads` are all that could be drawn.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    taken = {layer: [head for other, head in heads if other == layer] for layer, _ in heads}
    free = {layer: np.setdiff1d(np.arange(loaded.n_heads), taken[layer]) for layer in taken}
    if taken and all(len(taken[layer]) == loaded.n_heads for layer in taken):
        return []
    if not disjoint:
        free = {layer: np.arange(loaded.n_heads) for layer in taken}
    if any(len(free[layer]) < len(taken[layer]) for layer in taken):
        return []
    return [
        [
            (layer, int(head))
            for layer in sorted(taken)
            for head in generator.choice(free[layer], len(taken[layer]), replace=False)
        ]
        for _ in range(n_sets)
    ]


# How it is done

_RUNNING: ContextVar[tuple[Any, int | None]] = ContextVar("running", default=(None, None))
"""Which of the caller's prompts the rows of the pass in progress are, and of how many; set where we batch them."""


@contextmanager
def _running(examples: Int[Tensor, " row"], n_prompts: int) -> Iterator[None]:
    token = _RUNNING.set((examples, n_prompts))
    try:
        yield
    finally:
        _RUNNING.reset(token)


@dataclass(frozen=True)
class _Current:
    """A pass in progress, and which prompts its rows are; None where the caller made the batch."""

    began: backends.Pass
    examples: Int[Tensor, " row"] | None
    n_prompts: int | None

    def of_prompts(self, tensor: Tensor, what: str) -> Tensor:
        """The rows' share of a tensor that has one entry for each prompt."""
        import torch

        n_rows = len(self.began.pads)
        n_prompts = self.n_prompts or n_rows
        if len(tensor) != n_prompts:
            raise InputError(f"{what} is for {len(tensor)} prompts: there are {n_prompts}")
        examples = torch.arange(n_rows) if self.examples is None else self.examples
        return tensor.to(self.began.pads.device)[examples.to(self.began.pads.device)]


@dataclass(frozen=True)
class _Reading:
    """What to keep of one batch."""

    layers: tuple[int, ...]
    positions: Int[Tensor, "row selected"]
    """-1 where a prompt is too short."""
    lengths: Int[Tensor, " row"]
    mean: bool


def _read(
    loaded: LoadedModel, batch: backends.Batch, reading: _Reading, sizes: Mapping[str, tuple[int, ...]]
) -> dict[str, Float[Tensor, "row ..."]]:
    """Run one batch; returns for each site `row layer selected …` (logits: `row selected token`)."""
    import torch

    n_rows, device = len(batch.pads), batch.pads.device
    present = (reading.positions >= 0).to(device)
    columns = reading.positions.clamp(min=0).to(device) + batch.pads[:, None]
    row = torch.arange(n_rows, device=device)[:, None]
    read = {site: torch.empty((n_rows, *size), device=device) for site, size in sizes.items()}

    def keep(site: str, number: int | None, tensor: Tensor) -> None:
        block = tensor[row, columns] if number is not None else tensor
        if not block[present].isfinite().all():
            where = "" if number is None else f" of layer {reading.layers[number]}"
            raise InputError(f"{site}{where} holds NaN or infinity: legal are prompts whose activations are finite")
        if site == "pattern":
            block = _unpadded_keys(block, batch.pads, reading.lengths.to(device), sizes[site][-1])
        if reading.mean:
            weights = (present / present.sum(1, keepdim=True)).view(*present.shape, *[1] * (block.ndim - 2))
            block = (block.float() * weights).sum(1, keepdim=True)
        else:
            block = block.masked_fill(~present.view(*present.shape, *[1] * (block.ndim - 2)), torch.nan)
        read[site][(slice(None), number) if number is not None else slice(None)] = block

    taps = [
        (site, layer, lambda tensor, site=site, number=number: keep(site, number, tensor))
        for site in sizes
        if site != "logits"
        for number, layer in enumerate(reading.layers)
    ]
    wants_logits = "logits" in sizes
    with backends.tapped(loaded, taps):
        logits = backends.forward(
            loaded,
            batch,
            stop_after=None if wants_logits else max(reading.layers),
            logits_at=columns if wants_logits else None,
        )
    if wants_logits:
        keep("logits", None, logits)
    return {site: tensor.cpu() for site, tensor in read.items()}


def _unpadded_keys(
    pattern: Float[Tensor, "row query head column"],
    pads: Int[Tensor, " row"],
    lengths: Int[Tensor, " row"],
    n_keys: int,
) -> Float[Tensor, "row query head key"]:
    """Count keys from the prompt's first token; NaN beyond its last."""
    import torch

    key = torch.arange(n_keys, device=pads.device)
    column = (key + pads[:, None]).clamp(max=pattern.shape[-1] - 1)
    shifted = pattern.gather(-1, column[:, None, None].expand(*pattern.shape[:-1], -1))
    return shifted.masked_fill((key >= lengths[:, None])[:, None, None], torch.nan)


def _apply(edit: Edit, tensor: Tensor, current: _Current) -> Tensor | None:
    """The changed tensor, `row column …`; None where this pass has none of the edit's positions."""
    import torch

    value = torch.as_tensor(edit.value)
    keeps_position = edit.position is None or isinstance(edit.position, Sequence)
    n_full = tensor.ndim - (not keeps_position) - isinstance(edit.head, Integral)
    if value.ndim > n_full:
        raise InputError(f"the value to '{edit}' has {value.ndim} axes: legal are at most {n_full}")
    value = value.view(*[1] * (n_full - value.ndim), *value.shape)
    row, column, number = _selected(edit, current)
    if keeps_position and value.shape[1] > 1:
        _check_positions(edit, value.shape[1], current)
        given = number < value.shape[1]  # no value, no change: tokens generated after the prompt
        row, column, number = row[given], column[given], number[given]
    if not len(row):
        return None
    value = (
        current.of_prompts(value, f"the value to '{edit}'")[row]
        if len(value) > 1
        else value.expand(len(row), *value.shape[1:]).to(row.device)
    )
    if keeps_position:
        value = value[torch.arange(len(row)), number if value.shape[1] > 1 else 0]
    where: tuple[Any, ...] = (row, column)
    if edit.head is not None:
        heads = torch.as_tensor(edit.head, device=row.device)
        where = (row, column, heads) if not heads.ndim else (row[:, None], column[:, None], heads)
    old = tensor[where]
    value = _as_part(edit, value.to(tensor), old, current)
    changed = tensor.clone()
    changed[where] = {"replace": lambda: value, "add": lambda: old + value, "scale": lambda: old * value}[edit.how]()
    return changed


def _as_part(edit: Edit, value: Tensor, old: Tensor, current: _Current) -> Tensor:
    """A value in the shape of what it goes to, and checked."""
    import torch

    if edit.site == "pattern" and value.shape[-1] > 1:
        if current.began.pads.any():
            raise InputError(f"the value to '{edit}' counts keys without padding: legal is right padding")
        value = torch.nn.functional.pad(value, (0, old.shape[-1] - value.shape[-1]))
    if not value.isfinite().all():
        raise InputError(f"the value to '{edit}' holds NaN or infinity: legal are finite numbers")
    try:
        return value.expand_as(old)
    except RuntimeError:
        raise InputError(
            f"the value to '{edit}' has shape {list(torch.as_tensor(edit.value).shape)}: legal is what broadcasts to "
            f"{list(old.shape[1:])}"
        ) from None


def _selected(
    edit: Edit, current: _Current
) -> tuple[Int[Tensor, " selected"], Int[Tensor, " selected"], Int[Tensor, " selected"]]:
    """Row, column, and number along the value's position axis, of what an edit selects in this pass."""
    import torch

    began, device = current.began, current.began.pads.device
    pads, lengths = began.pads[:, None], began.lengths[:, None]
    first = began.total - began.new  # the column that the pass begins with
    if edit.position is None:
        columns = torch.arange(first, began.total, device=device).expand(len(pads), -1)
        numbers = columns - pads
    else:
        if isinstance(edit.position, torch.Tensor):
            wanted = current.of_prompts(edit.position, f"the position of '{edit}'")[:, None]
        else:
            wanted = torch.as_tensor(edit.position, device=device).reshape(1, -1)
        columns = (pads + wanted + lengths * (wanted < 0)).expand(len(pads), -1)
        numbers = torch.arange(columns.shape[1], device=device).expand(len(pads), -1)
    legal = (columns >= first) & (columns >= pads) & (columns < pads + lengths)
    row, at = legal.nonzero(as_tuple=True)
    return row, columns[row, at] - first, numbers[row, at]


def _check_positions(edit: Edit, n_positions: int, current: _Current) -> None:
    if edit.position is not None:
        needed = len(edit.position)
    else:
        prompt = current.began.total == current.began.new  # else the value was long enough for the prompt
        needed = int(current.began.lengths.max()) if prompt else 0
    if n_positions < needed or (edit.position is not None and n_positions > needed):
        raise InputError(f"the value to '{edit}' has {n_positions} positions: there are {needed}")


def _check_edit(loaded: LoadedModel, edit: Edit) -> None:
    import torch

    check_site(loaded, edit.site, _whole(edit.layer), _as_tuple(edit.head))
    if edit.how not in HOW:
        raise InputError(f"unknown edit {edit.how!r}: legal are {', '.join(HOW)}")
    if not isinstance(edit.position, torch.Tensor):
        for position in _as_tuple(edit.position):
            _whole(position)


def _as_tuple(numbers: int | Sequence[int] | None) -> tuple[int, ...]:
    if numbers is None:
        return ()
    return tuple(numbers) if isinstance(numbers, Sequence) and not isinstance(numbers, str) else (numbers,)


def _whole(number: Any) -> int:
    """Also numpy's and torch's whole numbers; a sentence for anything else."""
    try:
        return operator.index(number)
    except TypeError:
        raise InputError(f"{number!r} is no whole number") from None


def _at(tensor: Tensor, index: int | Sequence[int] | None, axis: int) -> Tensor:
    if index is None:
        return tensor
    return tensor.select(axis, index) if isinstance(index, Integral) else tensor[(slice(None),) * axis + (list(index),)]


def positions_of(positions: Any, lengths: Int[Tensor, " example"]) -> tuple[tuple[str, ...], Int[Tensor, "example p"]]:
    """Names of the positions asked for, and each one's number in each prompt; -1 where there is none."""
    import torch

    if positions in ("all", "mean"):
        numbers = torch.arange(int(lengths.max())).expand(len(lengths), -1)
        numbers = torch.where(numbers < lengths[:, None], numbers, -1)
        return (("mean",) if positions == "mean" else tuple(map(str, range(numbers.shape[1])))), numbers
    if isinstance(positions, str):
        if positions not in ("last", "second_to_last"):
            raise InputError(
                f"unknown positions {positions!r}: legal are all, mean, last, second_to_last, numbers, or names with "
                "one number or one for each prompt"
            )
        positions = {positions: -1 if positions == "last" else -2}
    elif isinstance(positions, Integral):
        positions = {str(positions): positions}
    elif not isinstance(positions, Mapping):
        positions = {str(number): number for number in map(_whole, positions)}
    columns = []
    for name, position in positions.items():
        numbers = torch.as_tensor(position)
        if numbers.ndim and len(numbers) != len(lengths):
            raise InputError(f"position {name!r} is given for {len(numbers)} prompts: there are {len(lengths)}")
        numbers = numbers.expand(len(lengths))
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
    return tuple(positions), torch.stack(columns, dim=1)


def batches(
    order: Int[Tensor, " example"], lengths: Int[Tensor, " example"], tokens_per_batch: int
) -> Iterator[Int[Tensor, " row"]]:
    """Cut an order of examples, shortest first, into batches of at most so many tokens with their padding."""
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * int(lengths[order[end]]) > tokens_per_batch:
            yield order[start:end]
            start = end


def _size(loaded: LoadedModel, site: str, n_layers: int, n_positions: int, longest: int) -> tuple[int, ...]:
    config, n_heads = loaded.config, loaded.n_heads
    if site == "logits":
        return n_positions, backends.huggingface_model(loaded).get_output_embeddings().weight.shape[0]
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    if site == "pattern":
        return n_layers, n_positions, n_heads, longest
    if SITES[site][-1] == "d_model":
        return n_layers, n_positions, config.hidden_size
    return n_layers, n_positions, heads_of(loaded, site), d_head


def check_site(loaded: LoadedModel, site: str, layer: int, heads: Sequence[int] = ()) -> None:
    """Refuse, in one sentence, a site, layer or head that the model does not have."""
    if site not in SITES:
        raise InputError(f"unknown site {site!r}: legal are {', '.join(SITES)}")
    if why := backends.missing(loaded, site):
        raise InputError(why)
    if not 0 <= layer < loaded.n_layers:
        raise InputError(f"no layer {layer}: legal are 0 to {loaded.n_layers - 1}")
    for head in heads:
        if not 0 <= head < heads_of(loaded, site):
            kind = "key/value head" if "kv_head" in SITES[site] else "head"
            raise InputError(f"no {kind} {layer}.{head}: legal are {kind}s 0 to {heads_of(loaded, site) - 1}")


def heads_of(loaded: LoadedModel, site: str) -> int:
    """How many heads a site has in each layer.

    Raises:
        InputError: a site of the residual stream.
    """
    if "kv_head" in SITES[site]:
        return getattr(loaded.config, "num_key_value_heads", None) or loaded.n_heads
    if "head" in SITES[site]:
        return loaded.n_heads
    with_heads = ", ".join(name for name, axes in SITES.items() if axes[-1] != "d_model")
    raise InputError(f"{site} has no heads: legal are {with_heads}")


def _up_to_end(loaded: LoadedModel, tokens: list[int]) -> list[int]:
    ends = backends.huggingface_model(loaded).generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    return next((tokens[:i] for i, token in enumerate(tokens) if token in ends), tokens)


class _Store:
    """Where results are gathered: in memory, or, beyond a budget, in one safetensors file for each site."""

    def __init__(
        self, sizes: Mapping[str, tuple[int, ...]], n_examples: int, memory_budget: int, folder: Path | None
    ) -> None:
        import torch

        self.shapes = {site: (n_examples, *size) for site, size in sizes.items()}
        self.temporary = None
        self.tensors = self.files = None
        n_bytes = {site: 4 * torch.Size(shape).numel() for site, shape in self.shapes.items()}
        if sum(n_bytes.values()) <= memory_budget and folder is None:
            self.tensors = {site: torch.empty(shape) for site, shape in self.shapes.items()}
            return
        if folder is None:
            self.temporary = tempfile.TemporaryDirectory(prefix="capture-")
            folder = Path(self.temporary.name)
        self.folder, self.files, self.starts = Path(folder), {}, {}
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for site, shape in self.shapes.items():
                header = {site: {"dtype": "F32", "shape": shape, "data_offsets": [0, n_bytes[site]]}}
                text = json.dumps(header).encode()
                text += b" " * (-len(text) % 8)
                self.files[site] = file = self._partial(site).open("wb")
                file.write(len(text).to_bytes(8, "little") + text)
                self.starts[site] = file.tell()

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: Any) -> None:
        for site, file in (self.files or {}).items():
            with suppress(OSError):  # on a full disk closing fails as well
                file.close()
            self._partial(site).unlink(missing_ok=True)

    def _partial(self, site: str) -> Path:
        return self.folder / f".{site}.safetensors.partial"

    def write(self, examples: Int[Tensor, " row"], read: Mapping[str, Float[Tensor, "row ..."]]) -> None:
        for site, tensor in read.items():
            if self.tensors is not None:
                self.tensors[site][examples] = tensor
                continue
            with _writing(self.folder):
                for i, row in zip(examples.tolist(), tensor.contiguous().numpy(), strict=True):
                    self.files[site].seek(self.starts[site] + i * row.nbytes)
                    self.files[site].write(row.data)

    def finish(self) -> dict[str, Float[Tensor, "example ..."]]:
        from safetensors import safe_open

        if self.tensors is not None:
            return self.tensors
        values = {}
        for site, file in self.files.items():
            with _writing(self.folder):
                file.close()
                os.replace(self._partial(site), self.folder / f"{site}.safetensors")
            with safe_open(self.folder / f"{site}.safetensors", "pt") as opened:
                values[site] = opened.get_tensor(site)
        return values


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"activations could not be written to {folder} ({error.strerror or error})") from None
