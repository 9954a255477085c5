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

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from helpers import InputError
from helpers.engine import backends, generation
from helpers.engine.architectures import SiteName
from helpers.engine.generation import BATCH_SIZE, Nudged, nudge, score_next_tokens
from helpers.engine.inputs import as_list, as_tensor, as_whole, as_wholes, is_row
from helpers.engine.sites import (
    SITES,
    Captured,
    Position,
    Positions,
    Prompts,
    Readable,
    check_site,
    count_heads,
    get_axes,
    get_size,
    locate_positions,
    split_batches,
    tokenize,
)
from helpers.models import LoadedModel

Head = tuple[int, int]
"""(layer, query head)"""

__all__ = [
    "BATCH_SIZE",
    "SITES",
    "Captured",
    "Edit",
    "Nudged",
    "SiteName",
    "capture",
    "check_site",
    "count_heads",
    "generate",
    "intervene",
    "measure_losses",
    "nudge",
    "score_next_tokens",
    "tokenize",
]
TOKENS_PER_BATCH = 1024
How = Literal["replace", "add", "scale"]
HOW: tuple[How, ...] = get_args(How)


@dataclass(frozen=True)
class Edit:
    """One change of one site while the model runs.

    `value` broadcasts against the selected part of the site's tensor, whose axes are those of the module's
    docstring, without `head` or `position` where that is a single number. So for one head at one position
    it may be a number, `d_head` numbers, or `example d_head`. The value for `pattern` is laid out
    `example query head key`, less what is selected.
    """

    site: SiteName
    layer: int
    value: Tensor | float = 0.0
    how: How = "replace"
    """`replace` by the value, `add` it, or `scale` by it."""
    head: int | Sequence[int] | None = None
    """A query head (of `k`, `rot_k`, `v`: a key/value head), several, or all."""
    position: Position | None = None
    """A token's number in its prompt, the same in all or one for each prompt; or every token, generated ones
    included. Negative numbers count from the end of what one forward pass processes, so that during generation -1
    is always the newest token. Several positions are several edits."""

    def __str__(self) -> str:
        head = "" if self.head is None else f" head {self.head}"
        position = "" if self.position is None else f" position {self.position}"
        if is_row(as_list(self.position)):
            position = " at a position of each prompt"
        return f"{self.how} {self.site} of layer {self.layer}{head}{position}"


def capture(
    loaded: LoadedModel,
    prompts: Prompts,
    sites: Readable | Sequence[Readable],
    *,
    layers: int | Sequence[int] | None = None,
    positions: Positions = "last",
    as_trees: bool = False,
) -> Captured:
    """Run prompts of any lengths through the model and keep what was asked for, in float32 on the CPU.

    The model runs no further than the last layer asked for, and the unembedding only for `logits`, at the
    positions asked for.

    Args:
        loaded: on any backend.
        prompts: texts, or token ids of any lengths.
        sites: names of `SITES`, or "logits".
        layers: all by default.
        positions: "all", "mean" (over the prompt's tokens), "last", "second_to_last", a number (a negative one counts
            from the end), one for each prompt, or several of these by name.
        as_trees: run what several prompts begin with once (plain Hugging Face; sites outside the attention function,
            tokens by number). Faster for long common beginnings; sums are taken in another order.

    Raises:
        InputError: unknown site, layer or position out of range, what trees can't give.
    """
    rows = tokenize(loaded, prompts)
    given: Any = [sites] if isinstance(sites, str) else as_list(sites)
    if not is_row(given):
        raise InputError(f"sites {sites!r}: legal are names of sites")
    sites = list(given)
    chosen = tuple(range(loaded.n_layers)) if layers is None else as_wholes(layers)
    for layer in chosen:
        for site in sites:
            check_site(loaded, "resid_pre" if site == "logits" else site, layer)
    if not sites or not chosen:
        raise InputError(f"nothing to capture: sites {sites}, layers {list(chosen)}")
    lengths = torch.tensor([len(row) for row in rows])
    names, columns = locate_positions(positions, lengths)
    if as_trees:
        return generation.capture_trees(loaded, rows, sites, chosen, names, columns)
    sizes: dict[Readable, tuple[int, ...]] = {
        site: get_size(loaded, site, len(chosen), len(names), int(lengths.max())) for site in sites
    }
    values: dict[Readable, Tensor] = {site: torch.empty(len(rows), *size) for site, size in sizes.items()}
    order, apart = lengths.argsort(stable=True), generation.find_original_length(loaded.config)
    queue = list(split_batches(order, lengths, TOKENS_PER_BATCH, apart))
    with tqdm(total=len(rows), desc="capture", delay=2, mininterval=2, leave=False, file=sys.stderr) as bar:
        while queue:
            examples = queue.pop(0)
            batch = backends.make_batch([rows[i] for i in examples.tolist()], loaded.device)
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
            for site, tensor in read.items():
                values[site][examples] = tensor
            bar.update(len(examples))
    if "pattern" in values:  # kept with the query first, so that positions are one axis of every site
        values["pattern"] = values["pattern"].transpose(2, 3)
    return Captured(values, {site: get_axes(site) for site in sites}, chosen, names, lengths)


@contextmanager
def intervene(loaded: LoadedModel, *edits: Edit) -> Iterator[None]:
    """While the context lasts, every forward pass of the model is changed, in the order given.

    That holds for `capture`, `measure_losses`, `generate` and for the backend's own calls (nnsight: its
    traces). The hooks are removed when the context ends, also after an exception.

    Args:
        loaded: on any backend.
        *edits: what to change; several may change one site.

    Raises:
        InputError: no such site, layer or head; a value that does not fit; an edit that never took place,
            since no pass ran or none had the position.
    """
    if not edits:
        yield
        return
    edits = tuple(_checked(loaded, edit) for edit in edits)
    fired = [False] * len(edits)
    passes: list[_Current] = []

    def tap(number: int, edit: Edit) -> backends.Tap:
        def change(tensor: Tensor) -> Tensor | None:
            changed = _apply(edit, tensor, passes[-1])
            fired[number] |= changed is not None
            return changed

        return change

    with ExitStack() as stack:
        # Read here and not in the taps: nnsight runs those in a context of their own.
        stack.enter_context(backends.watch(loaded, lambda began: passes.append(_Current(began, *_RUNNING.get()))))
        stack.enter_context(
            backends.tap(loaded, [(edit.site, edit.layer, tap(number, edit)) for number, edit in enumerate(edits)])
        )
        yield
    for number, edit in enumerate(edits):
        if not fired[number]:
            longest = max((int(current.began.lengths.max()) for current in passes), default=0)
            seen = f"the longest prompt had {longest} tokens" if passes else "no forward pass ran"
            raise InputError(f"the edit '{edit}' never took place: {seen} inside the context")


def generate(
    loaded: LoadedModel,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    stop: str | Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    folder: str | Path | None = None,
) -> list[list[int]]:
    """The most likely next token, again and again: the new tokens of each prompt, up to its end token or a stop.

    On plain Hugging Face what prompts begin with runs once for all that share it. While edits are in place, and on
    other backends, prompts of one length run together, so that nothing is padded.

    Args:
        loaded: on any backend.
        prompts: texts, or token ids of any lengths.
        max_new_tokens: of each prompt, at least 1.
        stop: texts that end a continuation; it is cut before the token that completes one.
        batch_size: prompts that run together where beginnings are shared; part of what makes a run in bfloat16
            repeatable.
        folder: where each finished batch is written, so that a job begun again with the same prompts and options goes
            on where it was interrupted and gives the same tokens.

    Raises:
        InputError: nothing to generate, more than the model's context holds, a folder where nothing is shared.
    """
    rows, stop = tokenize(loaded, prompts), (stop,) if isinstance(stop, str) else as_list(stop)
    if not is_row(stop) or not all(isinstance(text, str) and text for text in stop):
        raise InputError(f"texts to stop at {stop!r}: legal are texts of at least one letter")
    if folder is not None and not isinstance(folder, str | Path):
        raise InputError(f"folder {folder!r}: legal is a path")
    stop, max_new_tokens, batch_size = tuple(stop), as_whole(max_new_tokens), as_whole(batch_size)
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"max_new_tokens = {max_new_tokens}, batch_size = {batch_size}: legal is at least 1 of each")
    if loaded.context_length and (longest := max(map(len, rows))) + max_new_tokens > loaded.context_length:
        raise InputError(
            f"{max_new_tokens} new tokens after a prompt of {longest} are too many: the model takes "
            f"{loaded.context_length} in all"
        )
    why_not = generation.explain_unshareable(loaded, rows, max_new_tokens)
    if why_not is None:
        return generation.continue_rows(
            loaded, rows, max_new_tokens, stop, batch_size, Path(folder) if folder else None
        )
    if folder is not None:
        raise InputError(f"a job can't go on from {folder} here, since {why_not}: legal is no folder")
    lengths = torch.tensor([len(row) for row in rows])
    new: dict[int, list[int]] = {}
    for length in lengths.unique():
        for examples in split_batches((lengths == length).nonzero()[:, 0], lengths, TOKENS_PER_BATCH):
            batch = backends.make_batch([rows[i] for i in examples.tolist()], loaded.device)
            with _running(examples, len(rows)):
                longer = backends.generate_greedily(loaded, batch.input_ids, max_new_tokens)
            new |= zip(examples.tolist(), longer[:, length:].tolist(), strict=True)
    return [generation.cut_at_end(loaded, new[i], stop) for i in range(len(rows))]


def measure_losses(
    loaded: LoadedModel, tokens: Prompts, *, entries: Sequence[int] | None = None
) -> Float[Tensor, "sequence position-1"]:
    """Cross-entropy of each token given those before it, in nats; entry i belongs to token i + 1.

    Args:
        loaded: on any backend.
        tokens: prompts of one length in tokens.
        entries: those to return, which saves the unembedding of others; all by default.

    Batches hold a fixed number of tokens, so that the same call gives the same bits on every machine
    of a kind, whatever memory is free.
    """
    rows = tokenize(loaded, tokens)
    lengths = torch.tensor([len(row) for row in rows])
    if len(lengths.unique()) > 1:
        raise InputError(f"sequences of {int(lengths.min())} to {int(lengths.max())} tokens: legal is one length")
    n_entries = len(rows[0]) - 1
    chosen = torch.tensor(range(n_entries) if entries is None else as_wholes(entries), dtype=torch.long)
    if ((chosen < 0) | (chosen >= n_entries)).any():
        raise InputError(f"entries {chosen.tolist()}: legal are 0 to {n_entries - 1}")
    losses = []
    for examples in split_batches(torch.arange(len(rows)), lengths, TOKENS_PER_BATCH):
        batch = backends.make_batch([rows[i] for i in examples.tolist()], loaded.device)
        with _running(examples, len(rows)):
            losses.append(backends.compute_losses(loaded, batch, chosen).cpu())
    return torch.cat(losses)


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
    loaded: LoadedModel, batch: backends.Batch, reading: _Reading, sizes: Mapping[Readable, tuple[int, ...]]
) -> dict[Readable, Float[Tensor, "row ..."]]:
    """Run one batch; returns for each site `row layer selected …` (logits: `row selected token`)."""
    n_rows, device = len(batch.input_ids), batch.input_ids.device
    present = (reading.positions >= 0).to(device)
    columns = reading.positions.clamp(min=0).to(device)
    row = torch.arange(n_rows, device=device)[:, None]
    read: dict[Readable, Tensor] = {site: torch.empty((n_rows, *size), device=device) for site, size in sizes.items()}

    def keep(site: Readable, number: int | None, tensor: Tensor) -> None:
        block = tensor[row, columns] if number is not None else tensor
        if not block[present].isfinite().all():
            where = "" if number is None else f" of layer {reading.layers[number]}"
            raise InputError(f"{site}{where} holds NaN or infinity: legal are prompts whose activations are finite")
        if site == "pattern":
            beyond = torch.arange(block.shape[-1], device=device) >= reading.lengths[:, None].to(device)
            block = block.masked_fill(beyond[:, None, None], torch.nan)
            block = torch.nn.functional.pad(block, (0, sizes[site][-1] - block.shape[-1]), value=torch.nan)
        if reading.mean:
            weights = (present / present.sum(1, keepdim=True)).view(*present.shape, *[1] * (block.ndim - 2))
            block = (block.float() * weights).sum(1, keepdim=True)
        else:
            block = block.masked_fill(~present.view(*present.shape, *[1] * (block.ndim - 2)), torch.nan)
        read[site][(slice(None), number) if number is not None else slice(None)] = block

    taps: list[tuple[SiteName, int, backends.Tap]] = [
        (site, layer, lambda tensor, site=site, number=number: keep(site, number, tensor))
        for site in sizes
        if site != "logits"
        for number, layer in enumerate(reading.layers)
    ]
    wants_logits = "logits" in sizes
    with backends.tap(loaded, taps):
        logits = backends.forward(
            loaded,
            batch,
            stop_after=None if wants_logits else max(reading.layers),
            logits_at=columns if wants_logits else None,
        )
    if wants_logits:
        keep("logits", None, logits)
    return {site: tensor.cpu() for site, tensor in read.items()}


def _apply(edit: Edit, tensor: Tensor, current: _Current) -> Tensor | None:
    """The changed tensor, `row column …`; None where this pass has none of the edit's positions."""
    assert isinstance(edit.value, Tensor)
    everywhere = edit.position is None
    n_full = tensor.ndim - (not everywhere) - isinstance(edit.head, int)
    value = edit.value
    if value.ndim > n_full:
        raise InputError(f"the value to '{edit}' has {value.ndim} axes: legal are at most {n_full}")
    value = value.view(*[1] * (n_full - value.ndim), *value.shape)
    row, column, number = _selected(edit, current)
    if everywhere and value.shape[1] > 1:
        prompt = current.began.total == current.began.new  # else the value was long enough for the prompt
        longest = int(current.began.lengths.max()) if prompt else 0
        if value.shape[1] < longest:
            raise InputError(f"the value to '{edit}' has {value.shape[1]} positions: there are {longest}")
        given = number < value.shape[1]  # no value, no change: tokens generated after the prompt
        row, column, number = row[given], column[given], number[given]
    if not len(row):
        return None
    value = (
        current.of_prompts(value, f"the value to '{edit}'")[row]
        if len(value) > 1
        else value.expand(len(row), *value.shape[1:]).to(row.device)
    )
    if everywhere:
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
    began, device = current.began, current.began.pads.device
    pads, lengths = began.pads[:, None], began.lengths[:, None]
    first = began.total - began.new  # the column that the pass begins with
    if edit.position is None:
        columns = torch.arange(first, began.total, device=device).expand(len(pads), -1)
        numbers = columns - pads
    else:
        wanted = torch.as_tensor(edit.position, device=device).reshape(-1, 1)
        if is_row(edit.position):
            wanted = current.of_prompts(wanted, f"the position of '{edit}'")
        columns = (pads + wanted + lengths * (wanted < 0)).expand(len(pads), -1)
        numbers = torch.zeros_like(columns)
    legal = (columns >= first) & (columns >= pads) & (columns < pads + lengths)
    row, at = legal.nonzero(as_tuple=True)
    return row, columns[row, at] - first, numbers[row, at]


def _checked(loaded: LoadedModel, edit: Edit) -> Edit:
    """The edit with plain numbers, and its value as a tensor."""
    if not isinstance(edit, Edit):
        raise InputError(f"{edit!r} is no Edit: legal are hooks.Edit(site, layer, …), one after the other")
    several = is_row(as_list(edit.head))
    heads = () if edit.head is None else as_wholes(edit.head)
    check_site(loaded, edit.site, edit.layer, heads)
    if edit.how not in HOW:
        raise InputError(f"unknown edit {edit.how!r}: legal are {', '.join(HOW)}")
    if len(set(heads)) < len(heads) or (several and not heads):
        raise InputError(f"heads {list(heads)} of '{edit}': legal are different ones, at least one")
    value = as_tensor(edit.value, f"the value of '{edit}'")
    if value.dtype == torch.bool:
        raise InputError(f"the value of '{edit}' holds {value.dtype}: legal are real numbers")
    position = edit.position
    if position is not None:
        position = as_wholes(position) if is_row(as_list(position)) else as_whole(position)
    head = edit.head if edit.head is None else heads if several else as_whole(edit.head)
    return replace(edit, layer=as_whole(edit.layer), value=value, head=head, position=position)
