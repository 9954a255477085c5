"""Find a model's layout by watching it run a few random tokens, and check that its parts add up.

Every tensor that goes in and out of a module is compared with what attention was handed and with the sums that a layer
must be. What is found is therefore true of the model at hand, whatever its family or its names; what isn't found is
missing, with the reason; and a model whose sums don't come out is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from helpers import InputError
from helpers.engine import backends
from helpers.engine.architectures import (
    BlockCall,
    LayerLayout,
    Layout,
    Point,
    SiteName,
    View,
    list_layers,
    record_block_calls,
    recording_block_calls,
    scale_logits,
)
from helpers.engine.attention import AnyModule, AttentionCall, has_linear_bias, is_plain, redirect
from helpers.engine.embedded import get_first_line

Found = TypeVar("Found")
N_TOKENS = 17
_SOURCES = ("architectures.py", "attention.py", "backends.py", "inspection.py", "bridges.py")
"""What is found holds as long as these are the same."""
KNOWN = ("s_aux", "position_ids", "cache_position")
"""Tensors that a model may hand to its attention function without the pattern being another one for it."""
TOLERANCE = 1e-4
"""How far two tensors may be apart, as a share of the larger; times 256 in half precision."""


def find_layout(model: AnyModule, weights_sha256: str) -> Layout:
    """The checked layout of a plain Hugging Face model; found once for given weights, then read from the cache.

    Raises:
        InputError: a model that can't be looked into; the sentence says why.
    """

    def read(found: Any) -> Layout:
        layers = [LayerLayout(points=as_points(one.pop("points")), **one) for one in found.pop("layers")]
        layout = Layout(layers=tuple(layers), hooks=as_points(found.pop("hooks")), **found)
        for layer in list_layers(model, layout):
            for point in layer.layout.points.values():
                layer.get_module(point)
        return layout

    return remember(model, [weights_sha256], lambda: dataclasses.asdict(_inspect_or_refuse(model)), read)


def remember(
    model: AnyModule, key: Sequence[str], find: Callable[[], dict[Any, Any]], read: Callable[[Any], Found]
) -> Found:
    """What was found once for a model as it is configured, by this version of the code and of its libraries."""
    import transformers

    source = b"".join((Path(__file__).parent / name).read_bytes() for name in _SOURCES)
    described = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    everything = [*key, described, str(model.dtype), transformers.__version__, torch.__version__]
    digest = hashlib.sha256(json.dumps(everything).encode() + source).hexdigest()[:32]
    file = _locate_cache() / f"{digest}.json"
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or not what was written there
        return read(json.loads(file.read_text("utf-8")))
    text = json.dumps(find())
    beside = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8")
        beside.replace(file)
    except OSError:  # a cache that can't be written costs a second, no more
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return read(json.loads(text))


def as_points(given: dict[SiteName, Any]) -> dict[SiteName, Point]:
    """Points as JSON has them."""
    return {site: Point(**point | {"sizes": tuple(point["sizes"])}) for site, point in given.items()}


def _inspect_or_refuse(model: AnyModule) -> Layout:
    """Whatever a family's own code makes of being run in parts, it ends in a sentence."""
    try:
        return inspect(model)
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"architecture {model.config.model_type!r} as configured here can't be run layer by layer "
            f"({type(error).__name__}: {get_first_line(error)}): legal are decoders that can"
        ) from None


def _locate_cache() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "layouts"


def inspect(model: AnyModule) -> Layout:
    """The layout of a plain Hugging Face model with eager attention, found and checked in a few passes.

    Raises:
        InputError: as `find_layout`.
    """
    model_type = model.config.get_text_config().model_type
    tokens = draw_tokens(model)
    if model.base_model is model:
        raise InputError(f"architecture {model_type!r} does not keep its layers apart from its unembedding")
    with torch.inference_mode():
        run = _watch(model, tokens)
        if not run.logits.isfinite().all():
            raise InputError(
                f"architecture {model_type!r} with these weights gives NaN or infinity on {len(tokens)} random tokens: "
                "legal are weights that give numbers"
            )
        blocks, calls = _find_blocks(model, run.calls, model_type)
        others = _check_causal(model, tokens, run.logits, blocks, model_type)
        base_names = {id(module): name for name, module in model.base_model.named_modules()}
        if besides := sorted({name for call in calls for name in call.others}):
            raise InputError(
                f"architecture {model_type!r} as configured here hands {', '.join(besides)} to its attention besides a "
                "mask, so that its pattern is not known: legal are models that hand it a mask alone"
            )
        layers, missing = [], {}
        for number, call in enumerate(calls):
            layer = _Block(run, f"{blocks}.{number}", base_names[id(call.module)], call, get_tolerance(model))
            layers.append(layer.describe(number, model_type))
            missing |= layer.missing
        final_norm, logit_scale = _find_end(model, run, f"{blocks}.{len(calls) - 1}", model_type)
        layout = Layout(
            model_type=model_type,
            blocks=blocks,
            final_norm=final_norm,
            n_heads=calls[0].query.shape[1],
            n_kv_heads=calls[0].key.shape[1],
            d_head=calls[0].query.shape[-1],
            d_value=calls[0].value.shape[-1],
            layers=tuple(layers),
            logit_scale=logit_scale,
            plain_attention=all(call.is_plain for call in calls),
            takes_positions=_takes_positions(model, run, tokens, calls[0]),
        )
        turned = _check_packed(model, layout, run, tokens, others)
    return replace(layout, missing=missing | _find_missing(layout, run, turned))


def draw_tokens(model: AnyModule) -> list[int]:
    """A prompt of random tokens, the same every time."""
    generator = torch.Generator().manual_seed(0)
    n_tokens = min(N_TOKENS, getattr(model.config.get_text_config(), "max_position_embeddings", None) or N_TOKENS)
    return torch.randint(0, model.get_input_embeddings().weight.shape[0], (n_tokens,), generator=generator).tolist()


# What was seen


@dataclass(frozen=True)
class _Seen:
    """A module that ran."""

    name: str
    order: int
    """Modules count when they end."""
    input: Tensor
    output: Tensor
    module: AnyModule


@dataclass(frozen=True)
class _Call:
    """A call of the attention function."""

    order: int
    module: AnyModule
    query: Float[Tensor, "1 head position d_head"]
    key: Float[Tensor, "1 kv_head position d_head"]
    value: Float[Tensor, "1 kv_head position d_value"]
    mixed: Float[Tensor, "1 position head d_value"]
    is_plain: bool
    mixes: bool
    """Whether what is mixed is the pattern times the values."""
    others: tuple[str, ...]
    """Tensors that the attention function is given besides, by name."""


@dataclass(frozen=True)
class _Run:
    """One prompt on its way through a model."""

    seen: list[_Seen]
    calls: list[_Call]
    head: _Seen
    """The unembedding."""
    logits: Float[Tensor, "1 position token"]

    def within(self, name: str) -> list[_Seen]:
        """The modules inside one, with names that begin there; itself has the empty name."""
        inside = [one for one in self.seen if one.name == name or one.name.startswith(f"{name}.")]
        return [replace(one, name=one.name.removeprefix(name).removeprefix(".")) for one in inside]


def _first_tensor(*given: Any) -> Tensor | None:
    """The residual stream, or what else a module reads or gives first."""
    for one in given:
        if isinstance(one, Tensor):
            return one
        if isinstance(one, tuple | list) and one and isinstance(one[0], Tensor):
            return one[0]
    return None


def _watch(model: AnyModule, tokens: Sequence[int]) -> _Run:
    seen: list[_Seen] = []
    heads: list[_Seen] = []
    calls: list[_Call] = []

    def keep(name: str, into: list[_Seen]) -> Any:
        def hook(module: AnyModule, given: tuple, options: dict, output: Any) -> None:
            read, gave = _first_tensor(*given, *options.values()), _first_tensor(output, *_as_values(output))
            if read is not None and gave is not None:  # kept as they are now: some models add in place
                into.append(_Seen(name, len(seen) + len(calls), read.clone(), gave.clone(), module))

        return hook

    def attend(call: AttentionCall) -> Any:
        mixed, pattern = call.run()
        q, k, v, z = (tensor.clone() for tensor in (call.query, call.key, call.value, mixed))
        mixes = pattern is not None and is_close(
            (pattern.float() @ v.float().repeat_interleave(q.shape[1] // v.shape[1], 1)).transpose(1, 2),
            z,
            get_tolerance(model),
        )
        others = tuple(name for name, one in call.options.items() if isinstance(one, Tensor) and name not in KNOWN)
        calls.append(_Call(len(seen) + len(calls), call.module, q, k, v, z, is_plain(call), mixes, others))
        return mixed, pattern

    head = model.get_output_embeddings()
    with ExitStack() as stack:
        for name, module in model.base_model.named_modules():
            stack.callback(module.register_forward_hook(keep(name, seen), with_kwargs=True).remove)
        if head is not None:
            stack.callback(head.register_forward_hook(keep("", heads), with_kwargs=True).remove)
        stack.enter_context(redirect(model, attend))
        logits = model(torch.tensor([tokens], device=model.device), use_cache=False).logits
    if not heads:
        raise InputError(
            f"architecture {model.config.model_type!r} has no unembedding matrix: legal are causal language models"
        )
    return _Run(seen, calls, heads[-1], logits)


def _as_values(output: Any) -> Sequence[Any]:
    return list(output.values()) if isinstance(output, Mapping) else ()


def _check_causal(
    model: AnyModule, tokens: Sequence[int], logits: Tensor, blocks: str, model_type: str
) -> list[BlockCall]:
    """Another last token must leave what was said before as it is; returned is what its blocks were called with."""
    other = (tokens[-1] + 1) % model.get_input_embeddings().weight.shape[0]
    with recording_block_calls(model, blocks) as calls:
        changed = model(torch.tensor([[*tokens[:-1], other]], device=model.device), use_cache=False).logits
    if not is_close(changed[:, :-1], logits[:, :-1], get_tolerance(model)):
        raise InputError(
            f"architecture {model_type!r} as configured here sees what follows (another last token changes what it "
            "predicts before): legal are models that read from left to right"
        )
    return calls


def _takes_positions(model: AnyModule, run: _Run, tokens: Sequence[int], call: _Call) -> bool:
    """Whether tokens can be told where they stand: another place changes what is said, or linear biases count it."""
    if has_linear_bias(call.module):
        return True
    places = torch.arange(len(tokens), device=model.device)[None]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * len(tokens)
    elsewhere = torch.cat([places[:, :1], (places[:, 1:] * 2).clamp(max=limit - 1)], dim=1)
    moved = model(torch.tensor([tokens], device=model.device), position_ids=elsewhere, use_cache=False).logits
    return not is_close(moved, run.logits, 1e-6)


def _find_blocks(model: AnyModule, calls: Sequence[_Call], model_type: str) -> tuple[str, list[_Call]]:
    """The list that holds the blocks, and the one attention call of each."""
    if not calls:
        raise InputError(
            f"architecture {model_type!r} has no attention that can be looked into here: legal are decoders whose "
            "layers each have one"
        )
    names = {id(module): name for name, module in model.base_model.named_modules()}
    places = []
    for call in calls:
        parts = names[id(call.module)].split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if at is None:
            raise InputError(f"architecture {model_type!r} keeps its layers in no list, so they can't be told apart")
        places.append((".".join(parts[:at]), int(parts[at])))
    (blocks, _), n_layers = places[0], len(model.base_model.get_submodule(places[0][0]))
    count = Counter(place for place in places)
    for number in range(n_layers):
        if (found := count[blocks, number]) != 1:
            raise InputError(
                f"layer {number} of architecture {model_type!r} as configured here calls attention {found} times: "
                "legal are decoders whose layers each have one attention"
            )
    numbers = [getattr(call.module, "layer_idx", getattr(call.module, "layer_id", None)) for call in calls]
    if numbers != [number for _, number in places]:
        raise InputError(f"architecture {model_type!r} numbers its layers otherwise than it keeps and runs them")
    return blocks, list(calls)


def get_tolerance(model: AnyModule) -> float:
    """How far tensors of a model may be apart in its precision."""
    return TOLERANCE * (1 if model.dtype == torch.float32 else 256)


def is_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors of the same numbers, maybe in other shapes, are close."""
    if one.numel() != other.numel():
        return False
    one, other = one.float().reshape(-1), other.float().reshape(-1)
    return bool((one - other).norm() <= tolerance * other.norm())


class _Block:
    """One block as it ran."""

    def __init__(self, run: _Run, name: str, attention: str, call: _Call, tolerance: float) -> None:
        everything = run.within(name)
        self.attention, self.call, self.tolerance = attention.removeprefix(f"{name}."), call, tolerance
        (self.block,) = (one for one in everything if not one.name)
        times = Counter(one.name for one in everything)
        self.inside = [one for one in everything if one.name and times[one.name] == 1]
        self.missing: dict[SiteName, str] = {}

    def describe(self, number: int, model_type: str) -> LayerLayout:
        sums = self._find_sums()
        if sums is None:
            raise InputError(
                f"layer {number} of architecture {model_type!r} as configured here does not add the outputs of "
                "attention and MLP to the residual stream (a norm after the sum, or a third part): legal are layers "
                "that do"
            )
        attn_out, mlp_out, parallel = sums
        points: dict[SiteName, Point] = {
            "resid_pre": Point("", "input"),
            "resid_post": Point(""),
            "attn_out": attn_out,
            "mlp_out": mlp_out,
        }
        sites: tuple[SiteName, ...] = ("q", "k", "v")
        for part, site in enumerate(sites):
            found = self._find_projected(part)
            if found is None:
                self.missing[site] = f"{model_type} has no module that gives {site} of its heads"
            else:
                points[site] = found
        z = self.call.mixed
        reader = next((one for one in self._after() if is_close(one.input, z, 1e-9)), None)
        after = None if reader is None else self._find_after(attn_out, reader)
        if reader is None or attn_out.module not in (reader.name, after):
            self.missing["head_z"] = f"{model_type} does more to head_z than a matrix, and maybe a norm, would"
        else:
            points["head_z"] = Point(reader.name, "input", "flat", (z.shape[-1],))
        return LayerLayout(
            attention=self.attention,
            points=points,
            projections=self._find_projections(),
            after_attention=after,
            parallel=parallel,
        )

    def _after(self) -> list[_Seen]:
        return [one for one in self.inside if one.order > self.call.order]

    def _in_attention(self, one: _Seen) -> bool:
        return one.name == self.attention or one.name.startswith(f"{self.attention}.")

    def _find_sums(self) -> tuple[Point, Point, bool] | None:
        """Which two outputs, each maybe times a constant, make `resid_post` of `resid_pre`, and which reads which."""
        pre, post = self.block.input.double(), self.block.output.double()
        written = (post - pre).flatten()
        candidates = [one for one in self.inside if one.output.numel() == pre.numel()]
        by_attention = [one for one in candidates if one.order > self.call.order and self._in_attention(one)]
        by_attention += [
            one
            for one in candidates
            if not self._in_attention(one) and any(is_close(one.input, a.output, 1e-9) for a in by_attention)
        ]
        others = [one for one in candidates if not self._in_attention(one)]
        for scaled in (False, True):
            fits = [self._fit(written, one, other, scaled) for one in by_attention for other in others]
            found = [fit for fit in fits if fit is not None and fit[0] <= 1]
            least = min(map(itemgetter(0), found), default=0.0)
            if found:  # of outputs that are the same, as a module's and its last part's, the first
                _, attention, other, scales = next(fit for fit in found if fit[0] <= 1.01 * least)
                first, second = self._point(attention, scales[0]), self._point(other, scales[1])
                mid = pre + first.scale * attention.output.double().view_as(pre)
                # Where attention writes next to nothing, the two can't be told apart, and need not be.
                rounding = 8 * torch.finfo(self.block.input.dtype).eps * pre.norm()
                return first, second, bool((mid - pre).norm() > rounding) and not self._is_read(mid)
        return None

    def _fit(
        self, written: Float[Tensor, " number"], one: _Seen, other: _Seen, scaled: bool
    ) -> tuple[float, _Seen, _Seen, list[float]] | None:
        """How much of what a block writes two outputs leave over, in units of what rounding may leave."""
        if one is other:
            return None
        parts = torch.stack([seen.output.double().flatten() for seen in (one, other)], dim=1)
        scales = torch.linalg.lstsq(parts, written).solution if scaled else written.new_ones(2)
        if scales.abs().min() < 1e-2:  # then it is no part at all
            return None
        sizes = sum(seen.double().abs().flatten() for seen in (self.block.input, self.block.output, *parts.T))
        allowed = (8 if scaled else 2) * torch.finfo(self.block.input.dtype).eps * sizes
        return float(((parts @ scales - written).abs() / allowed).max()), one, other, scales.tolist()

    def _is_read(self, resid_mid: Tensor) -> bool:
        """Whether something outside of attention reads it; rounded, it must not be taken for `resid_pre`."""
        pre = self.block.input.double().flatten()
        mid = resid_mid.flatten()
        read = [one.input.double().flatten() for one in self.inside if not self._in_attention(one)]
        return any(
            len(one) == len(mid) and is_close(one, mid, self.tolerance) and (one - mid).norm() < (one - pre).norm() / 4
            for one in read
        )

    def _point(self, one: _Seen, scale: float) -> Point:
        """With a constant as the block has it, where it is one of its numbers: in half precision that is finer."""
        constants = [1.0, *(value for value in vars(self.block.module).values() if isinstance(value, float))]
        near = min(constants, key=lambda constant: abs(constant - scale))
        return Point(
            one.name,
            scale=near if abs(near - scale) < self.tolerance * abs(scale) else scale,
            by_row=one.output.ndim == self.block.input.ndim - 1,
        )

    def _find_after(self, attn_out: Point, reader: _Seen) -> str | None:
        """What stands between the output matrix and the residual stream."""
        if attn_out.module == reader.name:
            return None
        (found,) = (one for one in self.inside if one.name == attn_out.module)
        return attn_out.module if is_close(found.input, reader.output, 1e-9) else None

    def _find_projected(self, part: int) -> Point | None:
        """Where queries, keys or values leave a module: the last one whose output is that of the attention call.

        Rotary embeddings leave position 0 as it is but for a factor; there queries and keys are compared.
        """
        n_kv, group = self.call.key.shape[1], self.call.query.shape[1] // self.call.key.shape[1]
        wanted = (self.call.query, self.call.key, self.call.value)[part][0].transpose(0, 1)
        n, heads, size = wanted.shape
        fused, place = (1, n, n_kv * (group + 2) * size), (part, n_kv, group, size)
        views: dict[View, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "flat": ((1, n, heads * size), (size,)),
            "heads": ((1, n, heads, size), ()),
            "heads_first": ((1, heads, n, size), ()),
            "grouped": (fused, place),
            "chunked": (fused, place),
        }
        compared, like = (slice(None), is_close) if part == 2 else (slice(1), _proportional)
        for one in reversed([one for one in self.inside if one.order < self.call.order and self._in_attention(one)]):
            for view, (shape, sizes) in views.items():
                point = Point(one.name, view=view, sizes=sizes)
                if one.output.shape == shape and like(
                    point.read(one.output, 1)[0][compared], wanted[compared], self.tolerance
                ):
                    return point
        return None

    def _find_projections(self) -> dict[str, int]:
        before = [one for one in self.inside if one.order < self.call.order and self._in_attention(one)]
        return {
            one.name: one.output.shape[-1]
            for one in before
            if getattr(getattr(one.module, "weight", None), "ndim", 0) == 2 and one.input.ndim == one.output.ndim
        }


def _proportional(one: Tensor, other: Tensor, tolerance: float) -> bool:
    one, other = one.double().flatten(), other.double().flatten()
    if not one.norm() or not other.norm():
        return False
    return bool((one / one.norm() - other / other.norm()).norm() <= tolerance)


def _find_end(model: AnyModule, run: _Run, last: str, model_type: str) -> tuple[str, float]:
    """The norm after the last block, and what the unembedding's output is multiplied by."""
    (block,) = (one for one in run.within(last) if not one.name)
    tolerance = get_tolerance(model)
    norm = next(
        (
            one
            for one in run.seen
            if one.order > block.order
            and is_close(one.input, block.output, 1e-6)
            and is_close(one.output, run.head.input, 1e-6)
        ),
        None,
    )
    raw = run.head.output
    scale = float((raw.double() * run.logits.double()).sum() / raw.double().square().sum())
    for logit_scale in (1.0, scale):
        if norm is not None and is_close(scale_logits(model, logit_scale, raw), run.logits, tolerance):
            return norm.name, logit_scale
    raise InputError(
        f"architecture {model_type!r} as configured here does not get its logits from its last norm and its "
        "unembedding alone: legal are models that do"
    )


def _find_missing(layout: Layout, run: _Run, turned: Sequence[bool]) -> dict[SiteName, str]:
    """Of sites that some models have and others don't."""
    missing: dict[SiteName, str] = {}
    name = layout.model_type
    if any(layer.parallel for layer in layout.layers):
        missing["resid_mid"] = f"{name} has parallel blocks, so there is no resid_mid: legal are resid_pre, resid_post"
    if not any(turned):
        for site in ("rot_q", "rot_k"):
            missing[site] = f"{name} has no rotary embedding, so there is no {site}: legal is {site[-1]}"
    for number, (call, layer) in enumerate(zip(run.calls, layout.layers, strict=True)):
        if (point := layer.points.get("q")) is not None and turned[number]:
            (seen,) = (one for one in run.within(f"{layout.blocks}.{number}") if one.name == point.module)
            if _proportional(point.read(seen.output, 1), call.query.transpose(1, 2), TOLERANCE):
                for site in ("q", "k"):
                    missing[site] = f"{name} has its norm of {site} after the rotary embedding: legal is rot_{site}"
    if not all(call.mixes for call in run.calls):
        missing["pattern"] = (
            f"{name} does more to its values than mix them by the pattern, so there is none to be changed"
        )
    if len({(call.query.shape, call.key.shape, call.value.shape) for call in run.calls}) > 1:
        with_heads: tuple[SiteName, ...] = ("q", "k", "v", "rot_q", "rot_k", "pattern", "head_z")
        missing |= {
            site: f"{name} has layers with heads of different numbers or sizes, so no {site}" for site in with_heads
        }
    return missing


def _check_packed(
    model: AnyModule, layout: Layout, run: _Run, tokens: Sequence[int], others: Sequence[BlockCall]
) -> list[bool]:
    """Each block again, on its tokens in another order and with the pattern from our own formula.

    Returned is for each layer whether its queries turn with their position.
    """
    calls = record_block_calls(model, layout, tokens)
    order = torch.arange(len(tokens), device=model.device).flip(0)
    turned = []
    number = 0

    def attend(call: AttentionCall) -> tuple[Tensor, None]:
        """Attention of all tokens to all, each at its place."""
        query, key, value = (part[:, :, order] for part in (call.query, call.key, call.value))
        queries.append(query)
        if len(queries) > 1:  # of the second run only these are needed
            backends.stop()
        mixed, _ = replace(call, query=query, key=key, value=value).attend(calls[number].mask)
        return mixed[:, order], None

    with redirect(model, attend):
        for number, layer in enumerate(list_layers(model, layout)):
            queries: list[Tensor] = []
            (block,) = (one for one in run.within(f"{layout.blocks}.{number}") if not one.name)
            again = layer.run(block.input[0][order], calls[number], order)
            if not _same(vars(calls[number]), vars(others[number])):
                raise InputError(
                    f"architecture {layout.model_type!r} as configured here gives its layers more than the residual "
                    "stream, or a mask, that depends on what is read: legal are models that give what depends on "
                    "positions alone"
                )
            if not _as_before(again[order], block.input[0], block.output[0], get_tolerance(model)):
                raise InputError(
                    f"layer {number} of architecture {layout.model_type!r} as configured here gives something else "
                    "when its parts are computed one by one: legal are layers whose attention is a softmax over "
                    "queries times keys"
                )
            with backends.stopping():
                layer.run(block.input[0], calls[number], torch.zeros_like(order))
            turned.append(not is_close(queries[1][:, :, order], queries[0], TOLERANCE))
    return turned


def _as_before(
    again: Float[Tensor, "token d_model"],
    resid_pre: Float[Tensor, "token d_model"],
    resid_post: Float[Tensor, "token d_model"],
    tolerance: float,
) -> bool:
    """Whether what is written is as before; in half precision for most tokens, as rounding may choose other experts."""
    errors = (again - resid_post).float().norm(dim=-1)
    rounding = 4 * torch.finfo(resid_post.dtype).eps * resid_post.float().norm(dim=-1)
    close = errors <= tolerance * (resid_post - resid_pre).float().norm(dim=-1) + rounding
    return bool(close.all() if resid_post.dtype == torch.float32 else close.float().mean() > 0.5)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping):
        return all(_same(one[name], other[name]) for name in one.keys() & other.keys())
    return True
