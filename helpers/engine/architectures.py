"""Where each family of transformers keeps the parts of a layer, under one set of names.

A layer adds two things to the residual stream:

    resid_mid  = resid_pre + attn_out
    resid_post = resid_mid + mlp_out       (with parallel blocks: resid_pre + attn_out + mlp_out)

`Layer` gives the pieces of that sum as functions of plain tensors whose leading axes are free, so that
tokens of many sequences can go through together. Each piece calls the model's own modules: biases,
norms and activations are those of the model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from helpers import InputError

AnyModule = Any
"""A module or a model of PyTorch, whose parts are looked up by name: which there are depends on the family."""


@dataclass(frozen=True)
class Family:
    """Names of modules; those of attention are looked up inside its attention module."""

    layers: str = "layers"
    final_norm: str = "norm"
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    after_attention: str | None = None
    """A norm between attention and the residual stream."""
    after_mlp: str | None = None
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """One name where one module gives all three, side by side or, if `interleaved`, head by head."""
    interleaved: bool = False
    head_norms: tuple[str, str] | None = None
    """Norms on each query and each key, before the rotary embedding."""
    out: str = "o_proj"
    rotary: bool = True

    @property
    def key_site(self) -> Literal["rot_k", "k"]:
        """The site at which keys meet queries, and are kept in a key/value cache."""
        return "rot_k" if self.rotary else "k"


FAMILIES = {
    "gpt2": Family(
        layers="h",
        final_norm="ln_f",
        attention="attn",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        projections=("c_attn",),
        out="c_proj",
        rotary=False,
    ),
    "llama": Family(),
    "qwen2": Family(),
    "gemma3_text": Family(
        mlp_norm="pre_feedforward_layernorm",
        after_attention="post_attention_layernorm",
        after_mlp="post_feedforward_layernorm",
        head_norms=("q_norm", "k_norm"),
    ),
    "gpt_neox": Family(
        final_norm="final_layer_norm",
        attention="attention",
        projections=("query_key_value",),
        interleaved=True,
        out="dense",
    ),
}


def find_family(config: Any) -> Family:
    """The family of a text model's configuration.

    Raises:
        InputError: a family that is laid out otherwise, with its name.
    """
    if config.model_type not in FAMILIES:
        raise InputError(f"architecture {config.model_type!r} is not known here: legal are {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def is_parallel(config: Any) -> bool:
    """Whether attention and MLP both read `resid_pre`, so that there is no `resid_mid`."""
    return config.model_type == "gpt_neox" and config.use_parallel_residual


def list_layers(model: AnyModule) -> list[Layer]:
    """The layers of a plain Hugging Face model, first to last."""
    config = model.config.get_text_config()
    family = find_family(config)
    return [
        Layer(block, family, config.num_attention_heads, is_parallel(config))
        for block in getattr(model.base_model, family.layers)
    ]


@dataclass(frozen=True)
class Layer:
    """One layer of a model, as functions. Shapes: `...` are any leading axes; `kv_head` ≤ `head`."""

    block: AnyModule
    family: Family
    n_heads: int
    parallel: bool

    @cached_property
    def attention(self) -> AnyModule:
        return getattr(self.block, self.family.attention)

    @cached_property
    def d_head(self) -> int:
        return getattr(self.attention, "head_dim", None) or self.attention.head_size

    @property
    def sliding_window(self) -> int | None:
        """How many tokens back a query may look, itself included; None for all."""
        return getattr(self.attention, "sliding_window", None)

    def qkv(
        self, resid_pre: Float[Tensor, "... d_model"]
    ) -> tuple[
        Float[Tensor, "... head d_head"], Float[Tensor, "... kv_head d_head"], Float[Tensor, "... kv_head d_head"]
    ]:
        """`q`, `k` (both before the rotary embedding) and `v`."""
        normed = getattr(self.block, self.family.attention_norm)(resid_pre)
        outputs = [getattr(self.attention, name)(normed) for name in self.family.projections]
        q, k, v = outputs if len(outputs) == 3 else self.split_qkv(outputs[0])
        q, k, v = (part.unflatten(-1, (-1, self.d_head)) for part in (q, k, v))
        if self.family.head_norms:
            q, k = (
                getattr(self.attention, name)(part) for name, part in zip(self.family.head_norms, (q, k), strict=True)
            )
        return q, k, v

    def split_qkv(self, fused: Float[Tensor, "... qkv"]) -> list[Float[Tensor, "... head*d_head"]]:
        """The three parts of one module's output."""
        if not self.family.interleaved:
            return list(fused.chunk(3, dim=-1))
        return [part.flatten(-2) for part in fused.unflatten(-1, (self.n_heads, 3, -1)).unbind(-2)]

    def join_qkv(self, parts: list[Float[Tensor, "... head*d_head"]]) -> Float[Tensor, "... qkv"]:
        """The inverse of `split_qkv`."""
        if not self.family.interleaved:
            return torch.cat(parts, dim=-1)
        return torch.stack([part.unflatten(-1, (self.n_heads, -1)) for part in parts], dim=-2).flatten(-3)

    def rotate(
        self,
        q: Float[Tensor, "token head d_head"],
        k: Float[Tensor, "token kv_head d_head"],
        cos_sin: tuple[Float[Tensor, "token rotary"], Float[Tensor, "token rotary"]] | None,
    ) -> tuple[Float[Tensor, "token head d_head"], Float[Tensor, "token kv_head d_head"]]:
        """`rot_q` and `rot_k`: the model's own rotary embedding, or nothing where it has none."""
        if cos_sin is None:
            return q, k
        return sys.modules[type(self.attention).__module__].apply_rotary_pos_emb(q, k, *cos_sin, unsqueeze_dim=1)

    def attn_out(self, head_z: Float[Tensor, "... head d_head"]) -> Float[Tensor, "... d_model"]:
        """What attention adds to the residual stream."""
        out = getattr(self.attention, self.family.out)(head_z.flatten(-2))
        return out if self.family.after_attention is None else getattr(self.block, self.family.after_attention)(out)

    def mlp_out(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What the MLP adds to the residual stream, from `resid_mid` (parallel blocks: from `resid_pre`)."""
        out = self.block.mlp(getattr(self.block, self.family.mlp_norm)(resid))
        return out if self.family.after_mlp is None else getattr(self.block, self.family.after_mlp)(out)


def compute_rotary_tables(
    model: AnyModule, n_positions: int
) -> list[tuple[Float[Tensor, "position rotary"], Float[Tensor, "position rotary"]] | None]:
    """For each layer the cosines and sines of its rotary embedding, or None."""
    base, config = model.base_model, model.config.get_text_config()
    if not find_family(config).rotary:
        return [None] * config.num_hidden_layers
    positions = torch.arange(n_positions, device=model.device)[None]
    like = torch.empty(0, dtype=model.dtype, device=model.device)

    def table(*kind: str) -> tuple[Tensor, Tensor]:
        cos, sin = base.rotary_emb(like, positions, *kind)
        return cos[0], sin[0]

    if not hasattr(base.rotary_emb, "layer_types"):  # Gemma 3 has a table for each kind of layer
        return [table()] * config.num_hidden_layers
    tables = {kind: table(kind) for kind in set(config.layer_types)}
    return [tables[kind] for kind in config.layer_types]
