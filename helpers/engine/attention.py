"""Where queries, keys and values meet: the one call inside each attention module, to be watched or answered otherwise.

transformers hands queries, keys and values to a function that a model's configuration names (its attention interface),
after norms and rotary embeddings. A few older families do the same sums within their module; `open_up` makes these ask
the interface too. `redirect` puts functions of ours in its place for a while.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

AnyModule = Any
"""A module or a model of PyTorch, whose parts are looked up by name: which there are depends on the family."""

Attend = Callable[["AttentionCall"], tuple[Tensor, Tensor | None]]
"""Gives what each head mixes together, `example query head d_head`, and maybe the pattern."""

Mask = Float[Tensor, "example head_or_1 query key"] | None

_STACKS: dict[int, list[Attend]] = defaultdict(list)
"""The functions in place, by the identity of the configuration that names them; the last is asked first."""


@dataclass(frozen=True)
class AttentionCall:
    """What a module hands to its attention function."""

    module: AnyModule
    query: Float[Tensor, "example head query d_head"]
    key: Float[Tensor, "example kv_head key d_head"]
    value: Float[Tensor, "example kv_head key d_head"]
    given_mask: Mask | Callable[[], Mask]
    options: dict[str, Any]
    inner: tuple[Attend, ...] = ()

    @property
    def mask(self) -> Mask:
        """What is added to the scores: large negative numbers for keys that are not seen, and linear biases."""
        return _get_mask(self.given_mask)

    @property
    def layer(self) -> int:
        number = getattr(self.module, "layer_idx", None)
        return self.module.layer_id if number is None else number

    @property
    def scaling(self) -> float:
        given = self.options.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else given

    def run(self) -> tuple[Float[Tensor, "example query head d_head"], Float[Tensor, "example head query key"] | None]:
        """Ask the function that stands below, in the end the architecture's own, which gives the pattern too."""
        if self.inner:
            return self.inner[-1](replace(self, inner=self.inner[:-1]))
        eager = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", _attend)
        return eager(self.module, self.query, self.key, self.value, self.given_mask, **self.options)

    def attend(
        self, mask: Tensor | None
    ) -> tuple[Float[Tensor, "example query head d_head"], Float[Tensor, "example head query key"]]:
        """By our own formula, in full: what is mixed under a mask, as `normalise` takes one, and the pattern."""
        group = self.query.shape[1] // self.key.shape[1]
        key, value = (part.repeat_interleave(group, 1) for part in (self.key, self.value))
        scores = self.query @ key.mT * self.scaling  # in the model's precision, as its own code has them
        pattern = self.normalise(scores, mask, lambda numbers: numbers[:, None, None]).to(value.dtype)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    def normalise(
        self,
        scores: Float[Tensor, "*axes key"],
        mask: Tensor | None,
        by_head: Callable[[Float[Tensor, " head"]], Float[Tensor, "*axes 1"]],
    ) -> Float[Tensor, "*axes key"]:
        """The pattern of scaled scores, as the model has it: bounded, masked, and with sinks where there are some.

        A mask is bool (what is seen) or is added; `by_head` puts one number for each head where the scores have it.
        """
        if (cap := self.options.get("softcap")) is not None:
            scores = cap * (scores / cap).tanh()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        if (sinks := getattr(self.module, "sinks", None)) is None:
            return scores.softmax(-1)
        column = by_head(sinks).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, column.to(scores)], dim=-1).softmax(-1)[..., :-1]


@contextmanager
def redirect(model: AnyModule, attend: Attend) -> Iterator[None]:
    """While the context lasts, `attend` is asked wherever queries, keys and values of the model meet."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register("redirected", _redirected)
    AttentionMaskInterface.register("redirected", eager_mask)
    config = model.config.get_text_config()
    stack, before = _STACKS[id(config)], config._attn_implementation
    stack.append(attend)
    config._attn_implementation = "redirected"
    try:
        yield
    finally:
        stack[:] = [one for one in stack if one is not attend]
        config._attn_implementation = before
        if not stack:
            del _STACKS[id(config)]


def _redirected(
    module: AnyModule, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    return AttentionCall(module, query, key, value, attention_mask, options, tuple(_STACKS[id(module.config)])).run()


# Families that keep their attention to themselves


def open_up(model: AnyModule) -> AnyModule:
    """Let attention modules that do their sums themselves ask the interface, as all others do."""
    from transformers import PreTrainedModel

    config = model.config.get_text_config()
    if model.base_model is model:  # Llama 4 names another attribute than it has
        inside = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
        model.base_model_prefix = inside[0] if len(inside) == 1 else model.base_model_prefix
    for module in model.modules():
        changes = _OWN_ATTENTION.get(type(module).__name__, {})
        for name, function in changes.items():
            setattr(module, name, MethodType(function, module))
        if changes:
            module.config = config  # some don't keep it
    return model


def add_linear_bias(
    call: AttentionCall, mask: Bool[Tensor, "row head_or_1 query key"], places: Int[Tensor, "row key"]
) -> Tensor:
    """A mask of what is seen, with the bias that some families give keys by where they stand in the prompt."""
    bias = _LINEAR_BIASES[type(call.module).__name__](call.module, places) if has_linear_bias(call.module) else None
    return mask if bias is None else bias[:, :, None].masked_fill(~mask, -torch.inf)


def has_linear_bias(module: AnyModule) -> bool:
    """Whether keys are weighed by where they stand, instead of by embeddings of positions."""
    return type(module).__name__ in _LINEAR_BIASES and getattr(module.config, "alibi", True)


def keeps_to_itself(module: AnyModule) -> bool:
    """Whether an attention module asks the interface only since it was opened up."""
    return type(module).__name__ in _OWN_ATTENTION


def is_plain(call: AttentionCall) -> bool:
    """Whether the pattern is a softmax over scores of which some are masked, and nothing else."""
    return (
        not keeps_to_itself(call.module) and call.options.get("softcap") is None and not hasattr(call.module, "sinks")
    )


def _ask(
    module: AnyModule, query: Tensor, key: Tensor, value: Tensor, make_mask: Callable[[], Mask], scaling: float
) -> tuple[Tensor, Tensor | None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, _attend)
    return attention_interface(module, query, key, value, make_mask, scaling=scaling)


def _get_mask(given: Mask | Callable[[], Mask]) -> Mask:
    """A mask that was handed on as it is, or is made only where it is asked for."""
    return given() if callable(given) else given


def _attend(
    module: AnyModule, query: Tensor, key: Tensor, value: Tensor, given_mask: Any, *, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """For families whose source has no such function, and takes scores in float32."""
    call = AttentionCall(module, query.float(), key.float(), value, given_mask, {"scaling": scaling})
    return call.attend(call.mask)


def _attn(
    module: AnyModule, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, *, scaling: Any
) -> tuple[Tensor, Tensor | None]:
    """In place of the method `_attn` of GPT-J, CodeGen and GPT-Neo; the last keeps its mask as a buffer."""

    def make_mask() -> Mask:
        if (seen := getattr(module, "bias", None)) is None:
            return attention_mask
        n_queries, n_keys = query.shape[2], key.shape[2]
        own = _hide(~seen[:, :, n_keys - n_queries : n_keys, :n_keys])
        return own if attention_mask is None else torch.minimum(attention_mask, own)

    mixed, pattern = _ask(module, query, key, value, make_mask, scaling(module))
    return mixed.transpose(1, 2), pattern


def _bloom(
    module: AnyModule,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    if layer_past is not None:
        key, value = layer_past.update(key, value, module.layer_idx)

    def make_mask() -> Mask:
        return _add_bias(attention_mask, alibi.view(-1, module.num_heads, 1, alibi.shape[-1]))

    mixed, pattern = _ask(module, query, key, value, make_mask, module.inv_norm_factor)
    return module.dense(mixed.flatten(2)) + residual, pattern


def _falcon(
    module: AnyModule,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Any = None,
    layer_past: Any = None,
    position_embeddings: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    query, key, value = (part.transpose(1, 2) for part in module._split_heads(module.query_key_value(hidden_states)))
    if module.new_decoder_architecture:  # which repeats each key and value for all queries of its group
        group = module.num_heads // module.num_kv_heads
        key, value = key[:, ::group], value[:, ::group]
    if alibi is None:
        rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
        query, key = rotate(query, key, *position_embeddings)
    if layer_past is not None:
        key, value = layer_past.update(key, value, module.layer_idx)
    # The mask holds linear biases already. transformers' eager attention adds them twice, its fused one once.
    mixed, pattern = _ask(module, query, key, value, lambda: attention_mask, module.inv_norm_factor)
    return module.dense(mixed.flatten(2)), pattern


def _mpt(
    module: AnyModule,
    hidden_states: Tensor,
    position_bias: Tensor | None,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    fused = module.Wqkv(hidden_states)
    if module.clip_qkv:
        fused = fused.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    query, key, value = (part.unflatten(-1, (module.n_heads, -1)).transpose(1, 2) for part in fused.chunk(3, dim=2))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, module.layer_idx)

    def make_mask() -> Mask:
        mask = None if attention_mask is None else _hide(attention_mask)  # here True is what is not seen
        return mask if position_bias is None else _add_bias(mask, position_bias[None, ..., -key.shape[2] :])

    mixed, pattern = _ask(module, query, key, value, make_mask, module.softmax_scale)
    return module.out_proj(mixed.flatten(2)), pattern


def _hide(hidden: Bool[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, torch.finfo(torch.float32).min)


def _add_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Where a key is hidden it stays so, whatever its bias."""
    return bias if mask is None else torch.where(mask < -1e4, mask, mask + bias)


def _bloom_bias(module: AnyModule, places: Tensor) -> Float[Tensor, "row head key"]:
    tensor = sys.modules[type(module).__module__].build_alibi_tensor(
        places.new_ones(1, 2), module.num_heads, torch.float32
    )
    return tensor[:, 0, 1:] * places[:, None]


def _falcon_bias(module: AnyModule, places: Tensor) -> Float[Tensor, "row head key"]:
    """As the source has it, products rounded to bfloat16."""
    tensor = sys.modules[type(module).__module__].build_alibi_tensor(
        places.new_ones(1, 2), module.num_heads, torch.float32
    )
    return (tensor[:, 0, 1:].bfloat16() * places[:, None]).float() * module.inv_norm_factor


def _mpt_bias(module: AnyModule, places: Tensor) -> Float[Tensor, "row head key"]:
    tensor = sys.modules[type(module).__module__].build_mpt_alibi_tensor(module.n_heads, 2, device=places.device)
    return (tensor[:, 0, 1:] - tensor[:, 0, :1]) * places[:, None]


_LINEAR_BIASES: dict[str, Callable[[AnyModule, Tensor], Tensor]] = {
    "BloomAttention": _bloom_bias,
    "FalconAttention": _falcon_bias,
    "MptAttention": _mpt_bias,
}
_OWN_ATTENTION: dict[str, dict[str, Callable]] = {
    "GPTJAttention": {"_attn": partial(_attn, scaling=lambda module: 1 / module.scale_attn)},
    "CodeGenAttention": {"_attn": partial(_attn, scaling=lambda module: 1 / float(module.scale_attn))},
    "GPTNeoSelfAttention": {"_attn": partial(_attn, scaling=lambda module: 1.0)},
    "BloomAttention": {"forward": _bloom},
    "FalconAttention": {"forward": _falcon},
    "MptAttention": {"forward": _mpt},
}
