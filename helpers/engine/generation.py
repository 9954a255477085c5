"""Continue many prompts that begin alike, read what a model would say next, and its activations.

What prompts have in common, such as examples before the question, runs once for each family of them. Its rows attend
to those keys and values where they lie: nothing is copied for each row or moved at each step, and rows that have
finished leave the batch. Plain Hugging Face only; `hooks.generate` takes other ways where this one can't.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from helpers import InputError
from helpers.engine import backends
from helpers.engine.architectures import SiteName, unembed
from helpers.engine.attention import Attend, AttentionCall, add_linear_bias, is_plain, redirect
from helpers.engine.backends import Batch
from helpers.engine.cards import LoadedModel
from helpers.engine.inputs import as_list, as_tensor, as_wholes, is_row
from helpers.engine.sites import Captured, Prompt, Readable, check_site, get_axes, tokenize

BATCH_SIZE = 64
"""Rows. Part of what makes a run repeatable: in bfloat16 a sum's last bit depends on the shape of the batch."""
TREE_SIZE = 1024
"""Tokens. Larger trees share more, and spend more on attention between branches that don't see one another."""
PASS = 64
"""Tokens. A beginning runs on its own where this saves more than so many."""

T = TypeVar("T")


def explain_unshareable(loaded: LoadedModel, rows: Sequence[list[int]], n_new: int) -> str | None:
    """Why prompts can't share what they begin with here, or None where they can."""
    if loaded.backend != "huggingface":
        return f"backend {loaded.backend!r} shares nothing"
    if backends.is_tapped(loaded):
        return "edits are in place"
    if not loaded.layout.takes_positions:
        return f"{loaded.layout.model_type} counts positions itself, from the first token of each pass"
    longest = max(map(len, rows)) + n_new
    if longest > (window := find_window(loaded.config)):
        return f"{longest} tokens exceed the window of {window} that some layers attend to"
    if longest > (original := find_original_length(loaded.config)):
        return f"{longest} tokens exceed the {original} up to which rotary embeddings are those of short prompts"
    return None


def continue_rows(
    loaded: LoadedModel,
    rows: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str],
    batch_size: int,
    folder: Path | None,
) -> list[list[int]]:
    """`hooks.generate` for prompts that begin alike."""
    options = (max_new_tokens, tuple(stop))
    job = None if folder is None else folder / _digest(loaded, rows, batch_size, options)
    beginnings = _beginnings(loaded, rows)
    new: list[list[int]] = [[] for _ in rows]
    with tqdm(total=len(rows), desc="generate", delay=2, mininterval=2, leave=False, file=sys.stderr) as bar:
        for number, batch in enumerate(_batches(rows, beginnings, batch_size)):

            def run(batch: Sequence[int] = batch) -> list[list[int]]:
                begun = [beginnings[row] for row in batch]
                return _continued(_Batch(loaded, [rows[row] for row in batch], begun, max_new_tokens), *options)

            for row, tokens in zip(batch, _run_once(job, number, run), strict=True):
                new[row] = tokens
            bar.update(len(batch))
    return new


def cut_at_end(loaded: LoadedModel, tokens: Sequence[int], stop: Sequence[str]) -> list[int]:
    """A continuation up to its end token, or up to the token that completes a stop."""
    ends = _end_tokens(loaded)
    kept: list[int] = []
    for token in tokens:
        if token in ends or _stops(loaded, [*kept, token], stop):
            break
        kept.append(token)
    return kept


def score_next_tokens(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    tokens: Int[Tensor, "prompt choice"],
    *,
    folder: str | Path | None = None,
) -> Float[Tensor, "prompt choice"]:
    """The logits of some tokens, others for each prompt, after its last token; in float32.

    Prompts run as trees: what several begin with stands there once, and a token attends to those between the root and
    itself (the tree attention of SpecInfer, Miao et al. 2023).

    Args:
        loaded: on plain Hugging Face.
        prompts: texts, or token ids of any lengths.
        tokens: ids, a row of choices for each prompt.
        folder: where each finished tree is written, as by `hooks.generate`.

    Raises:
        InputError: as `generate`; not one row of tokens for each prompt.
    """
    rows = tokenize(loaded, prompts)
    _check(loaded, rows)
    tokens = _choices(loaded, tokens, len(rows))
    job = None if folder is None else Path(folder) / _digest(loaded, rows, TREE_SIZE, ("score", tokens.tolist()))
    logits = torch.empty(tokens.shape)
    for number, tree in enumerate(_trees(rows)):
        asked = list(tree.leaves)

        def run(tree: _Tree = tree, asked: list[int] = asked) -> list[list[float]]:
            with redirect(loaded.model, tree.make_attention(loaded.device)):
                ends = torch.tensor([list(tree.leaves.values())], device=loaded.device)
                (found,) = backends.forward(loaded, tree.batch(loaded.device), logits_at=ends)
            return found.gather(1, tokens[asked].to(found.device)).float().tolist()

        logits[asked] = torch.tensor(_run_once(job, number, run))
    return logits


def capture_trees(
    loaded: LoadedModel,
    rows: Sequence[list[int]],
    sites: Sequence[Readable],
    chosen: tuple[int, ...],
    names: tuple[str, ...],
    columns: Int[Tensor, "prompt position"],
) -> Captured:
    """`hooks.capture` for prompts that begin alike."""
    _check(loaded, rows)
    shared: list[SiteName] = [site for site in sites if site not in ("rot_q", "rot_k", "pattern", "logits")]
    if len(shared) < len(sites) or columns.min() < 0 or names == ("mean",):
        raise InputError(
            f"sites {list(sites)} at {list(names)[:5]}: legal in trees are sites outside the attention function, and "
            "tokens by number"
        )
    lengths = torch.tensor([len(row) for row in rows])
    parts: dict[tuple[SiteName, int], list[Tensor]] = {tap: [] for tap in product(shared, chosen)}
    order: list[int] = []
    for tree in tqdm(_trees(rows), desc="capture", delay=2, mininterval=2, leave=False, file=sys.stderr):
        order += tree.leaves
        nodes = torch.stack([tree.path_to(leaf)[columns[prompt]] for prompt, leaf in tree.leaves.items()])

        def keep(tensor: Tensor, part: list[Tensor], nodes: Tensor = nodes) -> None:
            part.append(tensor[0, nodes.to(tensor.device)].float().cpu())

        taps = [(*tap, partial(keep, part=part)) for tap, part in parts.items()]
        with redirect(loaded.model, tree.make_attention(loaded.device)), backends.tap(loaded, taps):
            backends.forward(loaded, tree.batch(loaded.device), stop_after=max(chosen))
    place = torch.tensor(order).argsort()
    values: dict[Readable, Tensor] = {
        site: torch.stack([torch.cat(parts[site, layer])[place] for layer in chosen], dim=1) for site in shared
    }
    return Captured(values, {site: get_axes(site) for site in shared}, chosen, names, lengths)


def _choices(loaded: LoadedModel, tokens: Any, n_prompts: int) -> Int[Tensor, "prompt choice"]:
    """Token ids to choose from, a row for each prompt."""
    rows = as_list(tokens)
    if not is_row(rows) or len(rows) != n_prompts or not all(is_row(as_list(row)) for row in rows):
        raise InputError(f"tokens {str(rows)[:80]} for {n_prompts} prompts: legal is a row for each")
    choices = [as_wholes(row) for row in rows]
    if len(set(map(len, choices))) > 1:
        raise InputError("rows of tokens of different lengths: legal is one length")
    if bad := [token for row in choices for token in row if not 0 <= token < loaded.config.vocab_size]:
        raise InputError(f"token {bad[0]}: legal are 0 to {loaded.config.vocab_size - 1}")
    return torch.tensor(choices)


class Nudged(NamedTuple):
    """What a model would say next after each vector."""

    logits: Float[Tensor, "vector prompt choice"]
    divergence: Float[Tensor, "vector prompt"]
    """Kullback-Leibler, of the next token's distribution without the vector from that with it, in nats."""
    mass: Float[Tensor, "vector prompt"]
    """The probability of all choices together."""
    loss: Float[Tensor, "vector prompt"]
    """Mean cross-entropy of the tokens that follow, in nats; NaN without any."""


def nudge(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    tokens: Int[Tensor, "prompt choice"],
    vectors: Float[Tensor, "vector prompt d_model"] | Float[Tensor, "vector prompt last d_model"],
    *,
    layer: int | Sequence[int],
    n_last: int | Sequence[int] = 1,
    then: Sequence[Sequence[int]] = (),
) -> Nudged:
    """The logits of some tokens after each prompt, with a vector added to `resid_post` of a layer at its last tokens.

    What comes before those runs once for each prompt, whatever the number of vectors, and so do the first layers.

    Args:
        loaded: on plain Hugging Face.
        prompts: texts, or token ids, longer than what is changed of them.
        tokens: ids, a row of choices for each prompt.
        vectors: each with one row for each prompt, or with one for each of as many last tokens as any prompt has.
        layer: after which all are added, or each.
        n_last: at how many last tokens of all prompts, or of each.
        then: for each prompt the ids of a text that follows whatever the model says, to see what the vector does to it.

    Raises:
        InputError: as `generate`; a prompt that is too short, shapes that don't fit, no such layer.
    """
    rows = tokenize(loaded, prompts)
    tokens, vectors = _choices(loaded, tokens, len(rows)), as_tensor(vectors, "vectors")
    texts = [list(as_wholes(some)) for some in then] if len(then) else [[]] * len(rows)
    counts = as_wholes(n_last) * (1 if is_row(as_list(n_last)) else len(rows))
    layers = torch.tensor(as_wholes(layer), device=vectors.device)
    if len(texts) != len(rows) or len(counts) != len(rows) or len(layers) not in (1, len(vectors)):
        raise InputError(
            f"{len(texts)} texts that follow, {len(counts)} numbers of last tokens and {len(layers)} layers for "
            f"{len(rows)} prompts and {len(vectors)} vectors: legal is one for each"
        )
    _check(loaded, [[*row, *some] for row, some in zip(rows, texts, strict=True)])
    for one in layers.unique().tolist():
        check_site(loaded, "resid_post", one)
    for row, count in zip(rows, counts, strict=True):
        if not 1 <= count < len(row):
            raise InputError(f"the last {count} tokens of a prompt of {len(row)}: legal are at least 1, and not all")
    size, given = loaded.config.hidden_size, tuple(vectors.shape[1:])
    legal = given in ((len(rows), size), (len(rows), max(counts), size))
    if not legal or not vectors.isfinite().all():
        raise InputError(
            f"vectors of shape {list(vectors.shape)} for {len(rows)} prompts: legal are finite numbers of shape "
            f"vector, {len(rows)}, {size}, or with {max(counts)} before the last"
        )
    vectors = vectors.reshape(len(vectors), len(rows), -1, size)
    logits = torch.empty(len(vectors), *tokens.shape)
    divergence, mass, loss = torch.full((3, *vectors.shape[:2]), torch.nan)
    for number, (row, count, some) in enumerate(zip(rows, counts, texts, strict=True)):
        beginning = _begun_with(loaded, row[:-count], family=1)
        batch = _Batch(loaded, [[*row, *some[:-1]]], [beginning], 0)
        taps: list[tuple[SiteName, int, backends.Tap]] = [
            ("resid_post", one, partial(_add, vectors[:, number, -count:] * (layers == one)[:, None, None], count))
            for one in layers.unique().tolist()
        ]
        with backends.tap(loaded, taps):
            found = batch.first_logits(n_last=max(1, len(some))).float().cpu()
        logs, chosen = found.log_softmax(-1), tokens[number].cpu()
        plain, pushed = logs[0, 0], logs[1:, 0]
        logits[:, number] = found[1:, 0, chosen]
        divergence[:, number] = (plain.exp() * (plain - pushed)).sum(-1)
        mass[:, number] = pushed[:, chosen].exp().sum(-1)
        if some:
            loss[:, number] = -logs[1:, range(len(some)), some].mean(1)
    return Nudged(logits, divergence, mass, loss)


def _add(
    vectors: Float[Tensor, "vector last_or_one d_model"], count: int, hidden: Float[Tensor, "row new d_model"]
) -> Float[Tensor, "row new d_model"]:
    """To the first tokens of all rows but the first, which is left as it is; up to the first layer all are one row."""
    changed = hidden.expand(1 + len(vectors), -1, -1).clone()
    changed[1:, :count] += vectors.to(hidden)
    return changed


# How it is done


def find_window(config: Any) -> float:
    """How many tokens back every layer sees at least, as far as a model says so."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    kinds = [*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())]
    if kinds and not any(kind in ("sliding_attention", "chunked_attention", "local") for kind in kinds):
        return float("inf")
    return min((window for window in windows if isinstance(window, int)), default=float("inf"))


def find_original_length(config: Any) -> float:
    """Up to how many tokens rotary embeddings don't depend on how long a prompt is."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    changing = [one for one in kinds if one.get("rope_type") in ("longrope", "dynamic")]
    original = [
        one.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for one in changing
    ]
    return min(original, default=float("inf"))


def _check(loaded: LoadedModel, rows: Sequence[list[int]]) -> None:
    if why_not := explain_unshareable(loaded, rows, 0):
        raise InputError(f"prompts can't share a beginning here, since {why_not}: legal are hooks.capture and generate")


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass
class _Tree:
    """Prompts put together: tokens with their parents, and for each prompt the token it ends with."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    leaves: dict[int, int] = field(default_factory=dict)
    path: list[int] = field(default_factory=list)
    """From the root to the end of the prompt added last."""

    def add(self, prompt: int, row: Sequence[int], n_common: int) -> None:
        """A prompt that has so many tokens in common with the one before."""
        del self.path[n_common:]
        for depth in range(n_common, len(row)):
            self.parents.append(self.path[-1] if self.path else -1)
            self.path.append(len(self.tokens))
            self.tokens.append(row[depth])
            self.depths.append(depth)
        self.leaves[prompt] = self.path[-1]

    def path_to(self, token: int) -> Int[Tensor, " depth"]:
        """The tokens from the root to this one."""
        path = []
        while token >= 0:
            path.append(token)
            token = self.parents[token]
        return torch.tensor(path[::-1])

    def batch(self, device: str) -> Batch:
        """One row; what a token sees is up to the attention."""
        return Batch(
            input_ids=torch.tensor([self.tokens], device=device),
            attention_mask=None,
            position_ids=torch.tensor([self.depths], device=device),
        )

    def make_attention(self, device: str) -> Attend:
        """Attention in which a token sees itself and all between it and the root."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for token, parent in enumerate(self.parents):
            if parent >= 0:
                seen[token] |= seen[parent]
        seen, places = seen.to(device)[None, None], torch.tensor([self.depths], device=device)

        def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
            mask = add_linear_bias(call, seen, places)
            if not is_plain(call):
                return call.attend(mask)
            mixed = scaled_dot_product_attention(
                call.query, call.key, call.value, attn_mask=mask, scale=call.scaling, enable_gqa=True
            )
            return mixed.transpose(1, 2), None

        return attend


def _trees(rows: Sequence[list[int]]) -> list[_Tree]:
    """In the order of their tokens, where each prompt has most in common with the one before it."""
    trees = [_Tree()]
    before: Sequence[int] = ()
    for prompt in sorted(range(len(rows)), key=rows.__getitem__):
        n_common = _n_common(before, rows[prompt])
        if trees[-1].tokens and len(trees[-1].tokens) + len(rows[prompt]) - n_common > TREE_SIZE:
            trees.append(_Tree())
            n_common = 0
        trees[-1].add(prompt, rows[prompt], n_common)
        before = rows[prompt]
    return trees


@dataclass(frozen=True)
class _Beginning:
    """What the rows of a family begin with: its keys and values in each layer; nothing for rows without a family."""

    family: int = 0
    length: int = 0
    keys: tuple[Float[Tensor, "position kv_head d_head"], ...] = ()
    values: tuple[Float[Tensor, "position kv_head d_head"], ...] = ()


def _beginnings(loaded: LoadedModel, rows: Sequence[list[int]]) -> list[_Beginning]:
    """For each row what it begins with, run once for each family."""
    found = [_Beginning()] * len(rows)
    for number, (length, family) in enumerate(_families(rows), start=1):
        beginning = _begun_with(loaded, rows[family[0]][:length], family=number)
        for row in family:
            found[row] = beginning
    return found


def _begun_with(loaded: LoadedModel, tokens: Sequence[int], *, family: int) -> _Beginning:
    """Keys and values are those that attention has, which are not what every family keeps in its cache."""
    keys, values = [], []

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        keys.append(call.key[0].transpose(0, 1))
        values.append(call.value[0].transpose(0, 1))
        if not is_plain(call):
            return call.run()
        mixed = scaled_dot_product_attention(
            call.query, call.key, call.value, is_causal=True, scale=call.scaling, enable_gqa=True
        )
        return mixed.transpose(1, 2), None

    with torch.inference_mode(), redirect(loaded.model, attend):
        loaded.model.base_model(torch.tensor([tokens], device=loaded.device), use_cache=False)
    return _Beginning(family, len(tokens), tuple(keys), tuple(values))


def _families(rows: Sequence[list[int]]) -> list[tuple[int, list[int]]]:
    """Rows with the length of what they have in common: of the rows in order the split that saves most tokens."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    saved, first = np.zeros(len(rows) + 1), np.zeros(len(rows) + 1, dtype=int)
    common = np.full(len(rows), np.inf)  # to the rows from this one to the last that was looked at
    lengths = np.zeros(len(rows) + 1, dtype=int)
    for last, row in enumerate(order):
        if last:
            common[:last] = np.minimum(common[:last], _n_common(rows[order[last - 1]][:-1], rows[row][:-1]))
        gain = np.append((last - np.arange(last)) * common[:last] - PASS, 0)
        total = saved[: last + 1] + gain
        first[last + 1] = start = total.argmax()
        saved[last + 1], lengths[last + 1] = total[start], common[start] if start < last else 0
    families, stop = [], len(rows)
    while stop:
        if lengths[stop]:
            families.append((int(lengths[stop]), order[first[stop] : stop]))
        stop = first[stop]
    return families


def _batches(rows: Sequence[list[int]], beginnings: Sequence[_Beginning], batch_size: int) -> list[list[int]]:
    """Rows of a family together, and of these such of similar length."""
    order = sorted(range(len(rows)), key=lambda row: (beginnings[row].family, len(rows[row])))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class _Begun:
    """The beginnings of a batch's rows, and which is whose."""

    lengths: Int[Tensor, " row"]
    families: Int[Tensor, " row"]
    keys: tuple[Float[Tensor, "family kv_head position d_head"], ...]
    """In each layer, with zeros where another family's beginning is longer; empty if no row has one."""
    values: tuple[Float[Tensor, "family kv_head position d_head"], ...]

    @staticmethod
    def of(beginnings: Sequence[_Beginning], device: str) -> _Begun:
        from torch.nn.utils.rnn import pad_sequence

        begun = {one.family: one for one in beginnings if one.length}
        number = {family: place for place, family in enumerate(begun)}

        def stacked(layer: Sequence[Tensor]) -> Float[Tensor, "family kv_head position d_head"]:
            return pad_sequence(list(layer), batch_first=True).transpose(1, 2).contiguous()

        return _Begun(
            torch.tensor([one.length for one in beginnings], device=device),
            torch.tensor([number.get(one.family, 0) for one in beginnings], device=device),  # at length 0 it sees none
            tuple(map(stacked, zip(*(one.keys for one in begun.values()), strict=True))),
            tuple(map(stacked, zip(*(one.values for one in begun.values()), strict=True))),
        )

    def of_rows(self, kept: Bool[Tensor, " row"] | Int[Tensor, " kept"]) -> _Begun:
        return replace(self, lengths=self.lengths[kept], families=self.families[kept])

    @cached_property
    def seen(self) -> Bool[Tensor, "row position"]:
        return torch.arange(self.keys[0].shape[2], device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    def places(self) -> tuple[Int[Tensor, " row"], int]:
        """Where each row stands when all families are given as many places as the largest needs, and how many."""
        member = self.families[:, None] == torch.arange(len(self.keys[0]), device=self.families.device)
        number = member.cumsum(0).gather(1, self.families[:, None])[:, 0] - 1
        most = int(member.sum(0).max())
        return self.families * most + number, most

    def times(
        self, rows: Float[Tensor, "row kv_head query a"], matrices: Float[Tensor, "family kv_head a b"]
    ) -> Float[Tensor, "row kv_head query b"]:
        """Each row times its family's matrices, those of a family in one product."""
        places, most = self.places
        n_families = len(matrices)
        placed = rows.new_zeros(n_families * most, *rows.shape[1:])
        placed[places] = rows
        together = placed.unflatten(0, (n_families, most)).transpose(1, 2).flatten(2, 3) @ matrices
        return together.unflatten(2, (most, -1)).transpose(1, 2).flatten(0, 1)[places]


class _Batch:
    """Rows on their way, padded on the left, with the keys and values of what comes after their beginnings."""

    begun: _Begun
    cache: Any
    """A `StaticCache`."""
    seen: Bool[Tensor, "row column"]
    """Columns that are no padding."""
    anything: Int[Tensor, "row column"]
    """A mask that hides nothing, as some families ask for one; what is seen is up to the attention."""

    def __init__(
        self, loaded: LoadedModel, rows: Sequence[list[int]], beginnings: Sequence[_Beginning], n_new: int
    ) -> None:
        from transformers import StaticCache

        self.loaded, self.begun = loaded, _Begun.of(beginnings, loaded.device)
        rest = [row[beginning.length :] for row, beginning in zip(rows, beginnings, strict=True)]
        width = max(map(len, rest))
        self.cache = StaticCache(config=loaded.config, max_cache_len=width + n_new)
        self.ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rest], device=loaded.device)
        lengths = torch.tensor([len(row) for row in rest], device=loaded.device)
        self.seen = torch.arange(width, device=loaded.device) >= (width - lengths)[:, None]
        self.anything = self.seen.new_ones(len(rest), width + n_new).long()

    def first_logits(self, *, n_last: int = 1) -> Float[Tensor, "row last token"]:
        """Of the tokens after the last of each prompt."""
        causal = self.seen.new_ones(self.seen.shape[1], self.seen.shape[1]).tril()
        diagonal = causal & causal.T  # so that padding attends to something
        return self._logits(self.ids, self.seen[:, None] & causal | diagonal, n_last)

    def next_logits(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row token"]:
        """Of the token after these."""
        self.seen = torch.cat([self.seen, self.seen.new_ones(len(tokens), 1)], dim=1)
        return self._logits(tokens[:, None], self.seen[:, None], 1)[:, 0]

    def keep(self, kept: Bool[Tensor, " row"]) -> None:
        """Go on with some of the rows."""
        self.seen, self.begun = self.seen[kept], self.begun.of_rows(kept)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[kept], layer.values[kept]

    def _logits(
        self, ids: Int[Tensor, "row new"], mask: Bool[Tensor, "row new column"], n_last: int
    ) -> Float[Tensor, "row last token"]:
        places = (self.begun.lengths[:, None] + self.seen.cumsum(1) - 1).clamp(min=0)

        def attend(call: AttentionCall) -> tuple[Tensor, None]:
            begun, seen, at = self.begun, mask, places
            if (n_rows := len(call.query)) > len(mask):  # one row that has become several
                begun = begun.of_rows(mask.new_zeros(n_rows, dtype=torch.long))
                seen, at = mask.expand(n_rows, -1, -1), places.expand(n_rows, -1)
            return _attend_after_beginning(call, begun, seen[:, None], at)

        model = self.loaded.model
        with torch.inference_mode(), redirect(model, attend):
            hidden = model.base_model(
                ids,
                attention_mask=self.anything[: len(ids)],
                position_ids=places[:, -ids.shape[1] :],
                past_key_values=self.cache,
            ).last_hidden_state
            return unembed(model, self.loaded.layout, hidden[:, -n_last:].contiguous())


def _continued(batch: _Batch, max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
    loaded = batch.loaded
    ends = _end_tokens(loaded)
    new: list[list[int]] = [[] for _ in batch.ids]
    running = list(range(len(new)))
    logits = batch.first_logits()[:, 0]
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1)
        going = []
        for row, token in zip(running, tokens.tolist(), strict=True):
            over = token in ends or _stops(loaded, [*new[row], token], stop)
            if not over:
                new[row].append(token)
            going.append(not over)
        if not any(going) or step + 1 == max_new_tokens:
            break
        if not all(going):
            kept = torch.tensor(going, device=tokens.device)
            running = [row for row, goes in zip(running, going, strict=True) if goes]
            tokens = tokens[kept]
            batch.keep(kept)
        logits = batch.next_logits(tokens)
    return new


def _end_tokens(loaded: LoadedModel) -> set[int]:
    end = loaded.model.generation_config.eos_token_id
    return set(end if isinstance(end, list) else [] if end is None else [end])


def _stops(loaded: LoadedModel, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    if not stop:
        return False
    text = loaded.decode(tokens)
    return any(mark in text for mark in stop)


def _digest(loaded: LoadedModel, rows: Sequence[list[int]], batch_size: int, options: tuple) -> str:
    job = [loaded.weights_sha256, loaded.dtype, loaded.device, rows, batch_size, options]
    return hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]


def _run_once(job: Path | None, number: int, run: Callable[[], list[T]]) -> list[T]:
    """What a part of a job comes to, from the job's folder where it was finished before."""
    if job is None:
        return run()
    file = job / f"{number:05}.json"
    if not file.exists():
        _write(file, json.dumps(run()))
    return json.loads(file.read_text(encoding="utf-8"))


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


def _attend_after_beginning(
    call: AttentionCall, begun: _Begun, mask: Bool[Tensor, "row 1 new column"], places: Int[Tensor, "row column"]
) -> tuple[Float[Tensor, "row new head d_head"], None]:
    """Attention to a beginning that some rows share, and to what each row holds itself."""
    n_rows, n_heads, n_new, d_head = call.query.shape
    n_columns, n_kv = mask.shape[-1], call.key.shape[1]
    grouped = (call.query * call.scaling).reshape(n_rows, n_kv, -1, d_head)  # a key/value head's, by position
    key, value = call.key[:, :, :n_columns], call.value[:, :, :n_columns]  # the rest of the cache is yet to be written
    scores = (grouped @ key.mT).view(n_rows, n_heads, n_new, n_columns)
    if begun.keys:
        n_before = begun.seen.shape[1]
        to_beginning = begun.times(grouped, begun.keys[call.layer].mT).view(n_rows, n_heads, n_new, n_before)
        scores = torch.cat([to_beginning, scores], dim=-1)
        mask = torch.cat([begun.seen[:, None, None].expand(-1, -1, n_new, -1), mask], dim=-1)
        before = torch.arange(n_before, device=places.device).expand(n_rows, -1)
        places = torch.cat([before, places], dim=1)
    pattern = call.normalise(scores, add_linear_bias(call, mask, places), lambda numbers: numbers[:, None, None])
    pattern = pattern.to(value.dtype).view(n_rows, n_kv, -1, pattern.shape[-1])
    if not begun.keys:
        mixed = pattern @ value
    else:
        to_beginning, to_own = pattern.split([n_before, n_columns], dim=-1)
        mixed = begun.times(to_beginning, begun.values[call.layer]) + to_own @ value
    return mixed.reshape(n_rows, n_heads, n_new, -1).transpose(1, 2).contiguous(), None
