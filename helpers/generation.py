"""Continue many prompts that begin alike, and read what a model would say next.

What all prompts of a call have in common, such as examples before the question, runs once. Every other row attends
to those keys and values where they lie: nothing is copied for each row or moved at each step, and rows that have
finished leave the batch. For passes with taps or on other backends there is `hooks.generate`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import InputError, backends, hooks
from helpers.architectures import family_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from torch.nn import Module
    from transformers import StaticCache

    from helpers.hooks import Prompt
    from helpers.models import LoadedModel

BATCH_SIZE = 64
"""Rows. Part of what makes a run repeatable: in bfloat16 a sum's last bit depends on the shape of the batch."""


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    folder: Path | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, up to its end token or a stop, without them.

    Args:
        stop: texts that end a continuation; it is cut before the token that completes one.
        temperature: 0 takes the most likely token. Else each row has its own random numbers from `seed`, so that a
            row's tokens do not depend on the rows beside it.
        folder: where each finished batch is written, so that a job begun again with the same prompts and options
            goes on where it was interrupted and gives the same tokens.

    Raises:
        InputError: no prompt, nothing to generate, more than the model's context holds, a temperature below zero,
            another backend than plain transformers, an architecture whose attention is not known here.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    rows = hooks.token_ids(loaded, prompts)
    _check(loaded, rows, max_new_tokens, batch_size)
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature = {temperature}: legal is 0, for the most likely token, or above")
    uniform = torch.from_numpy(np.random.default_rng(seed).random((len(rows), max_new_tokens)))
    options = _Options(max_new_tokens, tuple(stop), temperature)
    job = None if folder is None else folder / _digest(loaded, rows, seed, batch_size, options)
    prefix = _shared_prefix(loaded, rows)
    new: list[list[int]] = [[] for _ in rows]
    with tqdm(total=len(rows), desc="generate", delay=2, mininterval=2, leave=False, file=sys.stderr) as bar:
        for number, batch in enumerate(_batches(rows, batch_size)):
            file = None if job is None else job / f"{number:05}.json"
            if file is not None and file.exists():
                found = json.loads(file.read_text())
            else:
                some = [rows[row][prefix.length :] for row in batch]
                found = _continued(loaded, prefix, some, uniform[batch], options)
                if file is not None:
                    _write(file, json.dumps(found))
            for row, tokens in zip(batch, found, strict=True):
                new[row] = tokens
            bar.update(len(batch))
    return new


def next_token_logits(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    tokens: Int[Tensor, "prompt choice"],
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "prompt choice"]:
    """The logits of some tokens, others for each prompt, after its last token; in float32.

    Raises:
        InputError: as `generate`; not one row of tokens for each prompt.
    """
    import torch

    rows = hooks.token_ids(loaded, prompts)
    _check(loaded, rows, 1, batch_size)
    if tokens.ndim != 2 or len(tokens) != len(rows):
        raise InputError(f"tokens of shape {list(tokens.shape)} for {len(rows)} prompts: legal is a row for each")
    prefix = _shared_prefix(loaded, rows)
    logits = torch.empty(tokens.shape)
    for batch in _batches(rows, batch_size):
        batch_of = _Batch(loaded, prefix, [rows[row][prefix.length :] for row in batch], 0)
        found = batch_of.first_logits()
        logits[batch] = found.gather(1, tokens[batch].to(found.device)).float().cpu()
    return logits


# How it is done


@dataclass(frozen=True)
class _Options:
    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float


@dataclass(frozen=True)
class _Prefix:
    """What all rows begin with: its keys and values in each layer."""

    length: int
    keys: tuple[Float[Tensor, "kv_head position d_head"], ...] = ()
    values: tuple[Float[Tensor, "kv_head position d_head"], ...] = ()


_PREFIX: ContextVar[_Prefix] = ContextVar("prefix")


def _check(loaded: LoadedModel, rows: Sequence[Sequence[int]], n_new: int, batch_size: int) -> None:
    if n_new < 1 or batch_size < 1:
        raise InputError(f"max_new_tokens = {n_new}, batch_size = {batch_size}: legal is at least 1 of each")
    if loaded.backend != "huggingface":
        raise InputError(f"backend {loaded.backend!r}: legal is 'huggingface'; hooks.generate runs on all")
    longest = max(map(len, rows)) + n_new
    if loaded.context_length and longest > loaded.context_length:
        raise InputError(
            f"{n_new} new tokens after a prompt of {longest - n_new}: the model takes {loaded.context_length} in all"
        )
    family_of(loaded.config)
    window = getattr(loaded.config, "sliding_window", None)
    if "sliding_attention" in (getattr(loaded.config, "layer_types", None) or ()) and longest > window:
        raise InputError(f"{longest} tokens with a sliding window of {window}: legal is at most the window")


def _shared_prefix(loaded: LoadedModel, rows: Sequence[Sequence[int]]) -> _Prefix:
    """Run the longest common beginning that leaves every row at least one token."""
    import torch
    from transformers import DynamicCache

    common = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))]
    length = min(len(common), min(map(len, rows)) - 1)
    if length == 0:
        return _Prefix(0)
    cache = DynamicCache(config=loaded.config)
    with torch.inference_mode(), _attention(loaded, "sdpa"):
        ids = torch.tensor([common[:length]], device=loaded.device)
        loaded.model.base_model(ids, past_key_values=cache)
    return _Prefix(
        length, tuple(layer.keys[0] for layer in cache.layers), tuple(layer.values[0] for layer in cache.layers)
    )


def _batches(rows: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Rows of similar length together."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class _Batch:
    """Rows on their way, padded on the left, with the keys and values of what comes after the prefix."""

    cache: StaticCache
    seen: Bool[Tensor, "row column"]
    """Columns that are no padding."""

    def __init__(self, loaded: LoadedModel, prefix: _Prefix, rows: Sequence[Sequence[int]], n_new: int) -> None:
        import torch
        from transformers import StaticCache

        self.loaded, self.prefix = loaded, prefix
        width = max(map(len, rows))
        self.cache = StaticCache(config=loaded.config, max_cache_len=width + n_new)
        padded = [[0] * (width - len(row)) + list(row) for row in rows]
        self.ids = torch.tensor(padded, device=loaded.device)
        lengths = torch.tensor([len(row) for row in rows], device=loaded.device)
        self.seen = torch.arange(width, device=loaded.device) >= (width - lengths)[:, None]

    def first_logits(self) -> Float[Tensor, "row token"]:
        """Of the token after each prompt."""
        causal = self.seen.new_ones(self.seen.shape[1], self.seen.shape[1]).tril()
        diagonal = causal & causal.T  # so that padding attends to something
        return self._logits(self.ids, self.seen[:, None] & causal | diagonal)

    def next_logits(self, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row token"]:
        """Of the token after these."""
        import torch

        self.seen = torch.cat([self.seen, self.seen.new_ones(len(tokens), 1)], dim=1)
        return self._logits(tokens[:, None], self.seen[:, None])

    def keep(self, kept: Bool[Tensor, " row"]) -> None:
        """Go on with some of the rows."""
        self.seen = self.seen[kept]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[kept], layer.values[kept]

    def _logits(self, ids: Int[Tensor, "row new"], mask: Bool[Tensor, "row new column"]) -> Float[Tensor, "row token"]:
        import torch

        places = self.prefix.length + self.seen.cumsum(1)[:, -ids.shape[1] :] - 1
        token = _PREFIX.set(self.prefix)
        try:
            with torch.inference_mode(), _attention(self.loaded, "shared_prefix"):
                hidden = self.loaded.model.base_model(
                    ids,
                    attention_mask=mask[:, None],
                    position_ids=places.clamp(min=0),
                    past_key_values=self.cache,
                ).last_hidden_state
                return backends.unembed(self.loaded.model, hidden[:, -1].contiguous())
        finally:
            _PREFIX.reset(token)


def _continued(
    loaded: LoadedModel,
    prefix: _Prefix,
    rows: Sequence[Sequence[int]],
    uniform: Float[Tensor, "row new"],
    options: _Options,
) -> list[list[int]]:
    import torch

    ends = _end_tokens(loaded)
    new: list[list[int]] = [[] for _ in rows]
    running = list(range(len(rows)))
    batch = _Batch(loaded, prefix, rows, options.max_new_tokens)
    logits = batch.first_logits()
    for step in range(options.max_new_tokens):
        tokens = _drawn(logits, uniform[running, step], options.temperature)
        going = []
        for row, token in zip(running, tokens.tolist(), strict=True):
            over = token in ends or _stops(loaded, [*new[row], token], options.stop)
            if not over:
                new[row].append(token)
            going.append(not over)
        if not any(going) or step + 1 == options.max_new_tokens:
            break
        if not all(going):
            kept = torch.tensor(going, device=tokens.device)
            running = [row for row, goes in zip(running, going, strict=True) if goes]
            tokens = tokens[kept]
            batch.keep(kept)
        logits = batch.next_logits(tokens)
    return new


def _drawn(
    logits: Float[Tensor, "row token"], uniform: Float[Tensor, " row"], temperature: float
) -> Int[Tensor, " row"]:
    """The most likely token, or the one at which the distribution function passes a uniform random number."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    passed = (cumulative <= uniform.to(cumulative)[:, None] * total).sum(-1)
    return passed.minimum((cumulative < total).sum(-1))  # should the product round to the total


def _end_tokens(loaded: LoadedModel) -> set[int]:
    end = loaded.model.generation_config.eos_token_id
    return set(end if isinstance(end, list) else [] if end is None else [end])


def _stops(loaded: LoadedModel, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    if not stop:
        return False
    text = loaded.tokenizer.decode(tokens)
    return any(mark in text for mark in stop)


def _digest(loaded: LoadedModel, rows: Sequence[Sequence[int]], seed: int, batch_size: int, options: _Options) -> str:
    job = [loaded.weights_sha256, loaded.dtype, loaded.device, rows, seed, batch_size, repr(options)]
    return hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


@contextmanager
def _attention(loaded: LoadedModel, implementation: str) -> Iterator[None]:
    """Another implementation of the attention, as long as the context lasts."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("shared_prefix", _shared_prefix_attention)
    AttentionMaskInterface.register("shared_prefix", eager_mask)
    config = loaded.model.config
    before, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def _shared_prefix_attention(
    module: Module,
    query: Float[Tensor, "row head new d_head"],
    key: Float[Tensor, "row kv_head column d_head"],
    value: Float[Tensor, "row kv_head column d_head"],
    attention_mask: Bool[Tensor, "row 1 new column"],
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention to a prefix that all rows share, and to what each row holds itself; softmax in float32."""
    import torch

    if softcap is not None:
        raise InputError("a model that caps its attention scores can't share a prefix: legal is hooks.generate")
    prefix = _PREFIX.get()
    n_rows, n_heads, n_new, d_head = query.shape
    n_columns, n_kv = attention_mask.shape[-1], key.shape[1]
    scaling = d_head**-0.5 if scaling is None else scaling
    grouped = (query * scaling).reshape(n_rows, n_kv, -1, d_head)  # the query heads of a key/value head, by position
    key, value = key[:, :, :n_columns], value[:, :, :n_columns]  # the rest of the cache is yet to be written
    scores = (grouped @ key.mT).view(n_rows, n_heads, n_new, n_columns).float()
    scores = scores.masked_fill(~attention_mask, float("-inf")).view(n_rows, n_kv, -1, n_columns)
    if not prefix.length:
        mixed = scores.softmax(-1).to(value.dtype) @ value
    else:  # rows side by side are one matrix for each key/value head
        keys, values = prefix.keys[module.layer_idx], prefix.values[module.layer_idx]
        to_prefix = grouped.transpose(0, 1).flatten(1, 2) @ keys.mT
        to_prefix = to_prefix.unflatten(1, (n_rows, -1)).transpose(0, 1).float()
        pattern = torch.cat([to_prefix, scores], dim=-1).softmax(-1).to(value.dtype)
        to_prefix, to_own = pattern.split([prefix.length, n_columns], dim=-1)
        mixed = to_prefix.transpose(0, 1).flatten(1, 2) @ values
        mixed = mixed.unflatten(1, (n_rows, -1)).transpose(0, 1) + to_own @ value
    return mixed.reshape(n_rows, n_heads, n_new, d_head).transpose(1, 2).contiguous(), None
