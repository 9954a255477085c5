"""One forward pass, watched and changed at named sites, on each of the three backends.

A `Tap` sees a site's tensor, in the same layout on every backend, and may return another one to go on with.
Each backend is asked in its own way: plain Hugging Face by module hooks and its attention interface,
TransformerLens by its hook points, nnsight by edits of the traced model.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from helpers import InputError
from helpers.engine.architectures import FORWARD_ORDER, Layer, Point, SiteName, list_layers, unembed
from helpers.engine.attention import AnyModule, AttentionCall, keeps_to_itself, redirect
from helpers.engine.cards import LoadedModel

Tap = Callable[[Tensor], Tensor | None]
"""Axes `example position …` as in `hooks.SITES`, but a pattern as `example query head key`."""

IN_ATTENTION: tuple[SiteName, ...] = ("rot_q", "rot_k", "pattern")
"""Sites inside the attention function."""
_ACTIVE: WeakKeyDictionary[Module, _Active] = WeakKeyDictionary()


@dataclass(frozen=True)
class Batch:
    """Prompts as one rectangle of token ids."""

    input_ids: Int[Tensor, "example column"]
    attention_mask: Int[Tensor, "example column"] | None
    """None where nothing is padded."""
    position_ids: Int[Tensor, "example column"] | None
    """None where the first column is position 0."""


@dataclass(frozen=True)
class Pass:
    """What a forward pass in progress is about to process: its last `new` columns of `total`."""

    new: int
    total: int
    """Columns so far, those in the key/value cache and padding included."""
    pads: Int[Tensor, " example"]
    lengths: Int[Tensor, " example"]
    """Tokens so far, without padding."""


def make_batch(rows: Sequence[Sequence[int]], device: str) -> Batch:
    """Pad token ids on the right to one width; what stands in the padding has no effect."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.arange(width) < lengths[:, None]
    return Batch(
        input_ids=ids.to(device), attention_mask=None if mask.all() else mask.long().to(device), position_ids=None
    )


def explain_missing(loaded: LoadedModel, site: SiteName) -> str | None:
    """Why a model on its backend can't give a site, or None where it can."""
    layout = loaded.layout
    if site in layout.missing:
        return layout.missing[site]
    if loaded.backend == "transformer_lens" and site != "resid_mid" and site not in layout.hooks:
        return (
            f"TransformerLens has no hook at {site} of {layout.model_type} that reads and changes it as the model "
            "does: legal are the backends huggingface, nnsight"
        )
    if loaded.backend == "nnsight" and site in IN_ATTENTION:
        attention = list_layers(get_huggingface_model(loaded), layout)[0].attention
        if keeps_to_itself(attention):
            return (
                f"nnsight can't see {site} of {layout.model_type}: legal are the backends huggingface, transformer_lens"
            )
    return None


def get_huggingface_model(loaded: LoadedModel) -> AnyModule:
    """The plain model inside any backend's."""
    return {
        "huggingface": lambda: loaded.model,
        "transformer_lens": lambda: loaded.model.original_model,
        "nnsight": lambda: loaded.model._module,
    }[loaded.backend]()


@contextmanager
def tap(loaded: LoadedModel, taps: Sequence[tuple[SiteName, int, Tap]]) -> Iterator[None]:
    """While the context lasts, each (site, layer, tap) is called in every pass; always removed.

    Taps see each other's changes in the order of the forward pass; at one site, those of an outer context
    come first.
    """
    active = _ACTIVE.setdefault(get_huggingface_model(loaded), _Active())
    before = list(active.taps)
    try:
        active.put_in(loaded, before + list(taps))
        yield
    finally:
        active.put_in(loaded, before)


def is_tapped(loaded: LoadedModel) -> bool:
    """Whether a context of `tap` is open on the model."""
    active = _ACTIVE.get(get_huggingface_model(loaded))
    return active is not None and bool(active.taps)


class _Active:
    """The taps of a model in all contexts that are open; put in anew whenever they change."""

    def __init__(self) -> None:
        self.taps: list[tuple[SiteName, int, Tap]] = []
        self.installed = ExitStack()

    def put_in(self, loaded: LoadedModel, taps: list[tuple[SiteName, int, Tap]]) -> None:
        self.installed.close()
        self.installed, self.taps = ExitStack(), taps
        in_order = sorted(taps, key=lambda tap: (tap[1], FORWARD_ORDER.index(tap[0])))
        with ExitStack() as stack:
            if loaded.backend == "transformer_lens":
                if loaded.model.compatibility_mode:
                    raise InputError("the bridge is in compatibility mode: legal is raw mode, as it was loaded")
                pairs = [pair for tap in in_order for pair in _bridge_hooks(loaded, *tap)]
                stack.enter_context(loaded.model.hooks(fwd_hooks=pairs))
            elif loaded.backend == "nnsight":
                found = list_layers(get_huggingface_model(loaded), loaded.layout) if taps else []
                for site, layer, tap in in_order:
                    with _new_edits(loaded.model, stack):
                        _edit_nnsight(loaded.model, found[layer], site, tap)
            else:
                found = list_layers(loaded.model, loaded.layout) if taps else []
                inside: dict[int, list[tuple[SiteName, Tap]]] = defaultdict(list)
                for site, layer, tap in in_order:
                    if site in IN_ATTENTION:
                        inside[id(found[layer].attention)].append((site, tap))
                    else:
                        _hook_huggingface(stack, found[layer], site, tap)
                if inside:
                    stack.enter_context(redirect(loaded.model, lambda call: _attend_tapped(call, inside)))
            self.installed = stack.pop_all()


@contextmanager
def watch(loaded: LoadedModel, began: Callable[[Pass], None]) -> Iterator[None]:
    """Call `began` at the start of every forward pass."""

    def hook(_: Module, inputs: tuple, options: dict[str, Any]) -> None:
        given = (options.get("input_ids"), *inputs[:1], options.get("inputs_embeds"))
        tokens = next(tensor for tensor in given if tensor is not None)
        past, mask = options.get("past_key_values"), options.get("attention_mask")
        n_rows, new = tokens.shape[:2]
        total = new + (past.get_seq_length() if past is not None else 0)
        if mask is None:
            mask = torch.ones((n_rows, total), dtype=torch.long, device=tokens.device)
        elif not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            raise InputError("edits need the attention mask as one row of zeros and ones for each prompt")
        began(Pass(new, total, (mask.cumsum(1) == 0).sum(1), mask.sum(1)))

    handle = get_huggingface_model(loaded).get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def forward(
    loaded: LoadedModel,
    batch: Batch,
    *,
    stop_after: int | None = None,
    logits_at: Int[Tensor, "example selected"] | None = None,
) -> Float[Tensor, "example selected token"]:
    """One pass, as far as layer `stop_after`, or to the logits of the columns `logits_at`; else an empty tensor."""
    with torch.inference_mode():
        hidden_or_logits = _forward(loaded, batch, stop_after)
        if logits_at is None:
            return torch.empty(0)
        rows = torch.arange(len(logits_at), device=logits_at.device)[:, None]
        chosen = hidden_or_logits[rows, logits_at]
        return unembed(loaded.model, loaded.layout, chosen) if _ends_in_unembedding(loaded) else chosen


def compute_losses(loaded: LoadedModel, batch: Batch, entries: Int[Tensor, " entry"]) -> Float[Tensor, "example entry"]:
    """One pass over equally long prompts; the cross-entropy, in nats, of the tokens after the positions `entries`."""
    from torch.nn.functional import cross_entropy

    with torch.inference_mode(), fused_attention(loaded):
        entries = entries.to(batch.input_ids.device)
        hidden_or_logits, targets = _forward(loaded, batch, None)[:, entries], batch.input_ids[:, entries + 1]
        if _ends_in_unembedding(loaded):
            return compute_token_losses(loaded, hidden_or_logits, targets)
        return cross_entropy(hidden_or_logits.float().transpose(1, 2), targets, reduction="none")


@contextmanager
def fused_attention(loaded: LoadedModel) -> Iterator[None]:
    """PyTorch's fused attention where it does the same, a quarter faster at 512 tokens. For passes without padding."""
    config = loaded.config
    if loaded.backend != "huggingface" or not loaded.layout.plain_attention or config._attn_implementation != "eager":
        yield  # taps keep their own
        return
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = "eager"


def compute_token_losses(
    loaded: LoadedModel, normed: Float[Tensor, "example position d_model"], targets: Int[Tensor, "example position"]
) -> Float[Tensor, "example position"]:
    """The loss of target tokens, from what left the final norm; never all logits at once, which are a lot of memory."""
    from torch.nn.functional import cross_entropy

    losses = [
        cross_entropy(unembed(loaded.model, loaded.layout, some).float(), tokens, reduction="none")
        for some, tokens in zip(normed.flatten(0, 1).split(256), targets.flatten().split(256), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def _forward(loaded: LoadedModel, batch: Batch, stop_after: int | None) -> Tensor:
    """What left the final norm where that goes into the unembedding as it is, else the logits; nothing if stopped."""
    run = {"huggingface": _forward_huggingface, "transformer_lens": _forward_bridge, "nnsight": _forward_nnsight}
    return run[loaded.backend](loaded, batch, stop_after)


def _ends_in_unembedding(loaded: LoadedModel) -> bool:
    """Whether a pass ends before the unembedding; other backends run whole."""
    return loaded.backend == "huggingface"


def generate_greedily(
    loaded: LoadedModel, input_ids: Int[Tensor, "example position"], max_new_tokens: int
) -> Int[Tensor, "example longer"]:
    """The most likely token, again and again; equally long prompts."""
    if loaded.backend == "transformer_lens":
        with torch.inference_mode():
            return loaded.model.generate(
                input_ids,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
    options = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": max_new_tokens, "do_sample": False}
    with _own_settings_aside(get_huggingface_model(loaded)):
        if loaded.backend == "huggingface":
            with torch.inference_mode():
                return loaded.model.generate(input_ids, **options)
        import nnsight

        with _open_loops_end(), loaded.model.generate({"input_ids": input_ids} | options) as tracer:
            result = nnsight.save(tracer.result)
        return result


@contextmanager
def _own_settings_aside(model: AnyModule) -> Iterator[None]:
    """A model's own settings may bring beams, penalties or banned tokens; of these only the end token counts here."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id or 0)
    try:
        yield
    finally:
        model.generation_config = own


# Plain Hugging Face


class _Stop(Exception):
    """Raised in a hook to end a forward pass."""


def stop(*_: Any, **__: Any) -> Any:
    """End the pass in progress, within `stopping`."""
    raise _Stop


@contextmanager
def stopping() -> Iterator[None]:
    """Where a pass may be ended by `stop`."""
    with suppress(_Stop):
        yield


def _forward_huggingface(loaded: LoadedModel, batch: Batch, stop_after: int | None) -> Tensor:
    base = loaded.model.base_model
    handle = None
    if stop_after is not None:
        block = list_layers(loaded.model, loaded.layout)[stop_after].block
        handle = block.register_forward_hook(stop)
    try:
        return base(**_inputs(batch), use_cache=False).last_hidden_state
    except _Stop:
        return torch.empty(0)
    finally:
        if handle is not None:
            handle.remove()


def _inputs(batch: Batch) -> dict[str, Tensor]:
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    return {name: tensor for name, tensor in inputs.items() if tensor is not None}


def _through(point: Point, tap: Tap, examples: Callable[[], int]) -> Callable[[Any], Any]:
    """Hand a point's site to a tap; returns what goes on, or None for no change."""

    def change(raw: Any) -> Any:
        first = raw[0] if isinstance(raw, tuple) else raw  # attention modules give a tuple, layers a tensor
        new = tap(point.read(first, examples()))
        if new is None:
            return None
        new = point.merge(first, new)
        return (new, *raw[1:]) if isinstance(raw, tuple) else new

    return change


def _hook_huggingface(stack: ExitStack, layer: Layer, site: SiteName, tap: Tap) -> None:
    before: list[Tensor] = []
    if site == "resid_mid" or layer.layout.points[site].by_row:
        _hook_huggingface(stack, layer, "resid_pre", lambda resid: before.__setitem__(slice(None), [resid]))
    if site == "resid_mid":
        site, tap = "attn_out", _as_attn_out(before, tap)
    point = layer.layout.points[site]
    change, module = _through(point, tap, lambda: len(before[0]) if before else 0), layer.get_module(point)

    def change_input(_: Module, inputs: tuple, options: dict[str, Any]) -> Any:
        if inputs:
            new = change(inputs)
            return None if new is None else (new, options)
        name = next(iter(options))  # called by name, of which the first is what is read
        new = change(options[name])
        return None if new is None else (inputs, options | {name: new})

    if point.side == "input":
        handle = module.register_forward_pre_hook(change_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: change(output))
    stack.callback(handle.remove)


def _as_attn_out(resid_pre: list[Tensor], tap: Tap) -> Tap:
    """resid_mid is no module's output: it is resid_pre + attn_out, and changed by changing the latter."""

    def on_attn_out(attn_out: Tensor) -> Tensor | None:
        new = tap(resid_pre[0] + attn_out)
        return None if new is None else new - resid_pre[0]

    return on_attn_out


def _attend_tapped(
    call: AttentionCall, taps: Mapping[int, Sequence[tuple[SiteName, Tap]]]
) -> tuple[Tensor, Tensor | None]:
    """The architecture's own attention, with taps by the identity of its module."""
    mine = taps.get(id(call.module), ())
    if not mine:
        return call.run()
    query = _tapped_rotary(mine, call.query, call.key)
    mixed, pattern = replace(call, query=query).run()
    return _tapped_pattern(mine, mixed, pattern, call.value)


def _tapped_rotary(taps: Sequence[tuple[str, Tap]], query: Tensor, key: Tensor) -> Tensor:
    """Returns the queries; new keys are written in place, so that they stay changed in a key/value cache."""
    new_keys = key[:, :, key.shape[2] - query.shape[2] :]
    for site, tap in taps:
        if site == "rot_q" and (new := tap(query.transpose(1, 2))) is not None:
            query = new.transpose(1, 2)
        if site == "rot_k" and (new := tap(new_keys.transpose(1, 2))) is not None:
            new_keys[:] = new.transpose(1, 2)
    return query


def _tapped_pattern(
    taps: Sequence[tuple[str, Tap]], mixed: Tensor, pattern: Tensor | None, value: Tensor
) -> tuple[Tensor, Tensor | None]:
    for site, tap in taps:
        if site == "pattern" and pattern is not None and (new := tap(pattern.transpose(1, 2))) is not None:
            pattern = new.transpose(1, 2)
            values = value.repeat_interleave(pattern.shape[1] // value.shape[1], dim=1)
            mixed = (pattern @ values).transpose(1, 2).contiguous()
    return mixed, pattern


# The TransformerLens bridge, in raw mode


def _bridge_hooks(loaded: LoadedModel, site: SiteName, layer: int, tap: Tap) -> list[tuple[str, Callable]]:
    block = f"blocks.{layer}."
    if site == "resid_mid":  # its own hook changes what the MLP reads, but not the residual stream
        before: list[Tensor] = []
        return [
            (block + "hook_in", lambda resid, hook: before.__setitem__(slice(None), [resid])),
            *_bridge_hooks(loaded, "attn_out", layer, _as_attn_out(before, tap)),
        ]
    point = loaded.layout.hooks[site]
    change = _through(point, tap, lambda: 0)
    return [(block + point.module, lambda tensor, hook: change(tensor))]


def _forward_bridge(loaded: LoadedModel, batch: Batch, stop_after: int | None) -> Tensor:
    inputs = _inputs(batch)
    # Its own `stop_at_layer` goes on to the unembedding where that is the number of layers.
    stops = [] if stop_after is None else [(f"blocks.{stop_after}.hook_out", stop)]
    try:
        with loaded.model.hooks(fwd_hooks=stops):
            return loaded.model(inputs.pop("input_ids"), **inputs)
    except _Stop:
        return torch.empty(0)


# nnsight


def _edit_nnsight(model: Any, layer: Layer, site: SiteName, tap: Tap) -> None:
    """Store an edit that is replayed in every pass of every later trace."""
    names = {module: name for name, module in model._module.named_modules()}

    def envoy_of(module: Module) -> Any:
        return model.get(names[module])

    if site in IN_ATTENTION:
        # The call of the attention function; `attention_interface_0` is the line that chooses it.
        call = envoy_of(layer.attention).source.attention_interface_1
        with model.edit(inplace=True) as tracer:
            for _ in tracer.iter[:]:
                (module, query, key, value, *rest), options = call.inputs
                new_query = _tapped_rotary([(site, tap)], query, key)
                if new_query is not query:
                    call.inputs = ((module, new_query, key, value, *rest), options)
                if site == "pattern":
                    mixed, pattern = call.output
                    new_mixed, new_pattern = _tapped_pattern([(site, tap)], mixed, pattern, value)
                    if new_mixed is not mixed:
                        call.output = (new_mixed, new_pattern)
        return
    before: list[Tensor] = []
    if site == "resid_mid" or layer.layout.points[site].by_row:
        block = envoy_of(layer.block)
        with model.edit(inplace=True) as tracer:
            for _ in tracer.iter[:]:
                before[:] = [block.input]
    if site == "resid_mid":
        site, tap = "attn_out", _as_attn_out(before, tap)
    point = layer.layout.points[site]
    change = _through(point, tap, lambda: len(before[0]) if before else 0)
    envoy = envoy_of(layer.get_module(point))
    if point.side == "input":
        with model.edit(inplace=True) as tracer:
            for _ in tracer.iter[:]:
                new = change(envoy.input)
                if new is not None:
                    envoy.input = new
    else:
        with model.edit(inplace=True) as tracer:
            for _ in tracer.iter[:]:
                new = change(envoy.output)
                if new is not None:
                    envoy.output = new


def _forward_nnsight(loaded: LoadedModel, batch: Batch, stop_after: int | None) -> Tensor:
    from nnsight.intervention.interleaver import OutOfOrderError

    model, inputs = loaded.model, _inputs(batch) | {"use_cache": False}
    with ExitStack() as stack:
        stack.enter_context(_open_loops_end())
        if stop_after is None:
            return model.trace(inputs, trace=False).logits
        names = {module: name for name, module in model._module.named_modules()}
        last = model.get(names[list_layers(model._module, loaded.layout)[stop_after].block])
        with _new_edits(model, stack), model.edit(inplace=True) as tracer:
            _ = last.output
            tracer.stop()
        with suppress(OutOfOrderError):  # taps of layers after the stop wait in vain, which is right
            model.trace(inputs, trace=False)
    return torch.empty(0)


@contextmanager
def _new_edits(model: Any, stack: ExitStack) -> Iterator[None]:
    """What is added inside, and nothing else, is removed when `stack` ends."""
    before = list(model._edits)
    yield
    added = [edit for edit in model._edits if edit not in before]
    stack.callback(lambda: setattr(model, "_edits", [edit for edit in model._edits if edit not in added]))


@contextmanager
def _open_loops_end() -> Iterator[None]:
    """nnsight warns whenever a loop over an open number of passes ends, which here is always right."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".* was never reached: the loop")
        yield
