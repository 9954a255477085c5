"""Where a model keeps the parts of a layer, under one set of names: a layout, found by `inspection` and used by all.

A layer adds two things to the residual stream:

    resid_mid  = resid_pre + attn_out
    resid_post = resid_mid + mlp_out       (with parallel blocks: resid_pre + attn_out + mlp_out)

Nothing here knows a family by name. What stands in a layout was found in the model itself and checked there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers.engine.attention import AnyModule, AttentionCall, redirect

SiteName = Literal[
    "resid_pre", "q", "k", "v", "rot_q", "rot_k", "pattern", "head_z", "attn_out", "resid_mid", "mlp_out", "resid_post"
]
"""In the order of the forward pass."""
FORWARD_ORDER: tuple[SiteName, ...] = get_args(SiteName)
View = Literal["whole", "flat", "heads", "heads_first", "grouped", "chunked"]
"""How a tensor holds a site: as it is; heads side by side; with an axis of heads, after or before the positions; or
queries, keys and values in one, for each key/value head together or one after the other."""


@dataclass(frozen=True)
class Point:
    """A module's input or output that holds a site, maybe among other things."""

    module: str
    """Its name within the block; empty for the block itself."""
    side: Literal["input", "output"] = "output"
    view: View = "whole"
    sizes: tuple[int, ...] = ()
    """Of views with heads: how many numbers a head has. Of fused ones: (number of the part, key/value heads, query
    heads of each, numbers of a head)."""
    scale: float = 1.0
    """What it is multiplied by before it is added to the residual stream."""
    by_row: bool = False
    """Whether examples and positions are one axis there."""

    def read(self, raw: Tensor, n_examples: int) -> Float[Tensor, "example position ..."]:
        """The site in a module's tensor."""
        raw = raw.unflatten(0, (n_examples, -1)) if self.by_row else raw
        if self.view == "flat":
            return raw.unflatten(-1, (-1, *self.sizes))
        if self.view == "heads_first":
            return raw.transpose(1, 2)
        if self.view in ("grouped", "chunked"):
            return self._split(raw)[self.sizes[0]]
        return raw if self.scale == 1 else raw * self.scale

    def merge(self, raw: Tensor, new: Float[Tensor, "example position ..."]) -> Tensor:
        """A module's tensor with another value of the site."""
        if self.view == "flat":
            new = new.flatten(-2)
        elif self.view == "heads_first":
            new = new.transpose(1, 2)
        elif self.view in ("grouped", "chunked"):
            parts = list(self._split(raw))
            parts[self.sizes[0]] = new
            new = self._join(parts)
        elif self.scale != 1:
            new = new / self.scale
        return new.reshape(raw.shape) if self.by_row else new

    def _split(self, fused: Float[Tensor, "... qkv"]) -> tuple[Float[Tensor, "... heads d_head"], ...]:
        _, n_kv, group, size = self.sizes
        if self.view == "grouped":
            together = fused.unflatten(-1, (n_kv, group + 2, size))
            return together[..., :group, :].flatten(-3, -2), together[..., group, :], together[..., group + 1, :]
        parts = fused.unflatten(-1, (-1, size))
        return parts.split([n_kv * group, n_kv, n_kv], dim=-2)

    def _join(self, parts: Sequence[Float[Tensor, "... heads d_head"]]) -> Float[Tensor, "... qkv"]:
        _, n_kv, _, _ = self.sizes
        if self.view == "chunked":
            return torch.cat(list(parts), dim=-2).flatten(-2)
        q, k, v = parts
        return torch.cat([q.unflatten(-2, (n_kv, -1)), k.unsqueeze(-2), v.unsqueeze(-2)], dim=-2).flatten(-3)


@dataclass(frozen=True)
class LayerLayout:
    """The parts of one layer; names are those within its block."""

    attention: str
    points: Mapping[SiteName, Point]
    projections: Mapping[str, int]
    """The matrices before the attention function, and how many numbers each gives."""
    after_attention: str | None = None
    """A norm between the output matrix and the residual stream."""
    parallel: bool = False
    """Whether attention and MLP both read `resid_pre`, so that there is no `resid_mid`."""


@dataclass(frozen=True)
class Layout:
    """What was found in a model, and what is missing there."""

    model_type: str
    blocks: str
    """The list of blocks, by its name in the base model."""
    final_norm: str
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int
    layers: tuple[LayerLayout, ...]
    missing: Mapping[SiteName, str] = field(default_factory=dict)
    """Why a site can't be had."""
    logit_scale: float = 1.0
    """What the unembedding's output is multiplied by."""
    plain_attention: bool = True
    """Whether PyTorch's fused attention does the same."""
    takes_positions: bool = True
    """Whether a token can be told where it stands, so that prompts can share what they begin with."""
    hooks: Mapping[SiteName, Point] = field(default_factory=dict)
    """Where TransformerLens has its hooks, by their names within a block; empty on other backends."""

    def count_heads(self, site: SiteName) -> int:
        return self.n_kv_heads if site in ("k", "rot_k", "v") else self.n_heads

    def get_width(self, site: SiteName) -> int:
        """How many numbers a head has at a site."""
        return self.d_value if site in ("v", "head_z") else self.d_head


@dataclass(frozen=True)
class Layer:
    """One layer of a plain Hugging Face model."""

    block: AnyModule
    layout: LayerLayout

    def get_module(self, point: Point) -> AnyModule:
        return self.block.get_submodule(point.module)

    @cached_property
    def attention(self) -> AnyModule:
        return self.block.get_submodule(self.layout.attention)

    @cached_property
    def out(self) -> AnyModule:
        """What reads `head_z`."""
        return self.get_module(self.layout.points["head_z"])

    def write(self, head_z: Float[Tensor, "*many head d_head"]) -> Float[Tensor, "*many d_model"]:
        """What attention's output matrix writes; by its forward, as an edit of `head_z` takes a call for a pass."""
        return self.out.forward(head_z.flatten(-2).contiguous())

    def add_to_stream(self, head_z: Float[Tensor, "*many head d_head"]) -> Float[Tensor, "*many d_model"]:
        """What attention adds to the residual stream."""
        written = self.write(head_z)
        if self.layout.after_attention is not None:
            written = self.block.get_submodule(self.layout.after_attention)(written)
        return written * self.layout.points["attn_out"].scale

    def run(
        self, resid_pre: Float[Tensor, "token d_model"], called: BlockCall, positions: Int[Tensor, " token"]
    ) -> Float[Tensor, "token d_model"]:
        """`resid_post` of tokens of many prompts at once, each at its position; attention must be redirected."""
        arguments, options = called.at(positions)
        found = self.block(resid_pre[None], *arguments, **options)
        return (found[0] if isinstance(found, tuple) else found)[0]


def list_layers(model: AnyModule, layout: Layout) -> list[Layer]:
    """The layers of a plain Hugging Face model, first to last."""
    return [
        Layer(block, one)
        for block, one in zip(model.base_model.get_submodule(layout.blocks), layout.layers, strict=True)
    ]


def get_final_norm(model: AnyModule, layout: Layout) -> AnyModule:
    return model.base_model.get_submodule(layout.final_norm)


def unembed(
    model: AnyModule, layout: Layout, normed: Float[Tensor, "... d_model"], tokens: Int[Tensor, " token"] | None = None
) -> Float[Tensor, "... token"]:
    """Logits of what left the final norm, of all tokens or of some."""
    unembedding = model.get_output_embeddings()
    if tokens is None:
        return scale_logits(model, layout.logit_scale, unembedding(normed))
    bias = getattr(unembedding, "bias", None)
    raw = torch.nn.functional.linear(normed, unembedding.weight[tokens], None if bias is None else bias[tokens])
    return scale_logits(model, layout.logit_scale, raw)


def scale_logits(model: AnyModule, logit_scale: float, raw: Tensor) -> Tensor:
    """Logits of what the unembedding gave: times a constant, and within Gemma's soft bound, where a model has these."""
    logits = raw if logit_scale == 1 else raw * logit_scale
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


@dataclass(frozen=True)
class BlockCall:
    """What a model hands to a block besides the residual stream, for one prompt of a length."""

    length: int
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    mask: Float[Tensor, "head_or_1 query key"] | None
    """What is added to the scores of its attention."""

    def at(self, positions: Int[Tensor, " token"]) -> tuple[list[Any], dict[str, Any]]:
        """The same for tokens at any positions: whatever has an entry for each position is taken there."""

        def take(given: Any) -> Any:
            if isinstance(given, tuple):
                return tuple(map(take, given))
            if not isinstance(given, Tensor):
                return given
            if given.ndim == 1 and len(given) == self.length:
                return given[positions]
            return given[:, positions] if given.ndim > 1 and given.shape[:2] == (1, self.length) else given

        return [take(given) for given in self.arguments], {name: take(given) for name, given in self.options.items()}


@contextmanager
def recording_block_calls(model: AnyModule, blocks: str) -> Iterator[list[BlockCall]]:
    """While the context lasts, what each block is called with, for prompts of one length without padding."""
    calls: list[BlockCall] = []

    def of_one(given: Any, shape: tuple[int, int]) -> Any:
        """For one prompt of several, which are all alike in what they get besides the residual stream."""
        if isinstance(given, tuple):
            return tuple(of_one(one, shape) for one in given)
        return given[:1] if isinstance(given, Tensor) and given.shape[:2] == shape else given

    def begin(_: AnyModule, given: tuple, options: dict[str, Any]) -> None:
        stream = given[0] if given else options["hidden_states"]
        shape = (stream.shape[0], stream.shape[1])
        named = {name: of_one(one, shape) for name, one in options.items() if name != "hidden_states"}
        calls.append(BlockCall(shape[1], of_one(given[1:], shape), named, None))

    def attend(call: AttentionCall) -> Any:
        mask = call.mask
        calls[-1] = replace(calls[-1], mask=None if mask is None else mask[0])
        return call.run()

    with ExitStack() as stack:
        for block in model.base_model.get_submodule(blocks):
            stack.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.enter_context(redirect(model, attend))
        yield calls


def record_block_calls(model: AnyModule, layout: Layout, tokens: Sequence[int]) -> list[BlockCall]:
    """What each block is called with when the model runs a prompt."""
    with torch.no_grad(), recording_block_calls(model, layout.blocks) as calls:  # gradients may pass what is recorded
        model.base_model(torch.tensor([list(tokens)], device=model.device), use_cache=False)
    return calls


@contextmanager
def attention_given(layer: Layer, written: Float[Tensor, "token d_model"]) -> Iterator[None]:
    """While the context lasts, attention's matrices cost nothing: the output's gives `written`, all others zeros."""

    def give_zeros(width: int) -> Callable[[Tensor], Tensor]:
        return lambda inputs: inputs.new_zeros(*inputs.shape[:-1], width)

    forwards = {layer.block.get_submodule(name): give_zeros(size) for name, size in layer.layout.projections.items()}
    forwards[layer.out] = lambda inputs: written.view(*inputs.shape[:-1], -1)
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own
