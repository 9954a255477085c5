"""The five families once more, in plain algebra on their weights: one prompt, no padding, no cache, no hooks.

`run` shows every site to `at` on the way, position first (`pattern` as `query head key`), and goes on with what
`at` returns, if anything. `edits` is such an `at`, written with loops over positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import gelu, layer_norm, pad, silu


@dataclass
class Parts:
    """One layer, as functions of one prompt's residual stream."""

    qkv: Any
    out: Any
    mlp: Any


def linear(module, x, *, transposed=False):
    weight = module.weight if transposed else module.weight.T
    return x @ weight if module.bias is None else x @ weight + module.bias


def norm(module, x, plus=0.0):
    """LayerNorm where there is a bias, else RMSNorm."""
    if getattr(module, "bias", None) is not None:
        return layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (plus + module.weight)


def heads(x, d_head):
    return x.unflatten(-1, (-1, d_head))


def gpt2_parts(block, d_head):
    attn, mlp = block.attn, block.mlp

    def qkv(x):
        return [heads(part, d_head) for part in linear(attn.c_attn, norm(block.ln_1, x), transposed=True).split(16, -1)]

    def feed_forward(x):
        hidden = linear(mlp.c_fc, norm(block.ln_2, x), transposed=True)
        return linear(mlp.c_proj, gelu(hidden, approximate="tanh"), transposed=True)

    return Parts(qkv, lambda z: linear(attn.c_proj, z, transposed=True), feed_forward)


def neox_parts(block, d_head):
    attn, mlp = block.attention, block.mlp

    def qkv(x):
        fused = linear(attn.query_key_value, norm(block.input_layernorm, x))
        return [  # head by head: its queries, its keys, its values
            torch.stack([fused[:, (3 * head + i) * d_head : (3 * head + i + 1) * d_head] for head in range(4)], dim=1)
            for i in range(3)
        ]

    def feed_forward(x):
        hidden = linear(mlp.dense_h_to_4h, norm(block.post_attention_layernorm, x))
        return linear(mlp.dense_4h_to_h, gelu(hidden))

    return Parts(qkv, lambda z: linear(attn.dense, z), feed_forward)


def llama_parts(block, d_head):
    attn, mlp = block.self_attn, block.mlp

    def qkv(x):
        x = norm(block.input_layernorm, x)
        return [heads(linear(module, x), d_head) for module in (attn.q_proj, attn.k_proj, attn.v_proj)]

    def feed_forward(x):
        x = norm(block.post_attention_layernorm, x)
        return linear(mlp.down_proj, silu(linear(mlp.gate_proj, x)) * linear(mlp.up_proj, x))

    return Parts(qkv, lambda z: linear(attn.o_proj, z), feed_forward)


def gemma_parts(block, d_head):
    attn, mlp = block.self_attn, block.mlp

    def qkv(x):
        x = norm(block.input_layernorm, x, plus=1)
        q, k, v = (heads(linear(module, x), d_head) for module in (attn.q_proj, attn.k_proj, attn.v_proj))
        return norm(attn.q_norm, q, plus=1), norm(attn.k_norm, k, plus=1), v

    def feed_forward(x):
        x = norm(block.pre_feedforward_layernorm, x, plus=1)
        hidden = gelu(linear(mlp.gate_proj, x), approximate="tanh") * linear(mlp.up_proj, x)
        return norm(block.post_feedforward_layernorm, linear(mlp.down_proj, hidden), plus=1)

    return Parts(qkv, lambda z: norm(block.post_attention_layernorm, linear(attn.o_proj, z), plus=1), feed_forward)


PARTS = {
    "gpt2": gpt2_parts,
    "llama": llama_parts,
    "qwen2": llama_parts,
    "gemma3_text": gemma_parts,
    "gpt_neox": neox_parts,
}


def rotate(x, theta, width):
    """Turn pairs of coordinates by angles that grow with the position; coordinates from `width` on stay."""
    half = width // 2
    angles = torch.arange(len(x))[:, None] * theta ** -(torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b, rest = x.split([half, half, x.shape[-1] - width], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


@torch.no_grad()
def run(model, tokens, at=lambda site, layer, tensor: None):
    """The logits of one prompt, `position token`."""
    config, base, n = model.config, model.base_model, len(tokens)
    kind = config.model_type
    d_head = 8 if kind == "gemma3_text" else 4
    scale = config.query_pre_attn_scalar**-0.5 if kind == "gemma3_text" else d_head**-0.5
    rotary_width = 2 if kind == "gpt_neox" else d_head

    def see(site, layer, tensor):
        new = at(site, layer, tensor)
        return tensor if new is None else new

    x = base.get_input_embeddings().weight[tokens]
    if kind == "gpt2":
        x = x + base.wpe.weight[:n]
    if kind == "gemma3_text":
        x = x * 16**0.5
    back = torch.arange(n)[:, None] - torch.arange(n)
    for layer, block in enumerate(base.h if kind == "gpt2" else base.layers):
        is_local = kind == "gemma3_text" and layer == 0
        theta = 1e6 if kind == "gemma3_text" and not is_local else 1e4
        parts = PARTS[kind](block, d_head)
        pre = see("resid_pre", layer, x)
        q, k, v = (see(site, layer, part) for site, part in zip("qkv", parts.qkv(pre), strict=True))
        if kind != "gpt2":
            q = see("rot_q", layer, rotate(q, theta, rotary_width))
            k = see("rot_k", layer, rotate(k, theta, rotary_width))
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
        scores = torch.einsum("qhd,khd->qhk", q, k) * scale
        allowed = (back >= 0) & (back < (8 if is_local else n))
        pattern = see("pattern", layer, scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1))
        z = see("head_z", layer, torch.einsum("qhk,khd->qhd", pattern, v))
        attn_out = see("attn_out", layer, parts.out(z.flatten(1)))
        if kind == "gpt_neox" and config.use_parallel_residual:
            x = pre + attn_out + see("mlp_out", layer, parts.mlp(pre))
        else:
            mid = see("resid_mid", layer, pre + attn_out)
            x = mid + see("mlp_out", layer, parts.mlp(mid))
        x = see("resid_post", layer, x)
    final = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(kind, "norm")
    return linear(model.get_output_embeddings(), norm(getattr(base, final), x, plus=float(kind == "gemma3_text")))


def edits(*wanted, example=0):
    """An `at` for `run` that makes the changes of `hooks.Edit`s to the example of that number."""

    def at(site, layer, tensor):
        for edit in wanted:
            if (edit.site, edit.layer) == (site, layer):
                tensor = changed(edit, tensor, example)
        return tensor

    return at


def changed(edit, tensor, example):
    n, positions = len(tensor), edit.position
    has_axis = positions is None or isinstance(positions, range)  # a range of an edit by hand: all of these
    if isinstance(positions, torch.Tensor | list | tuple):
        positions = int(positions[example])
    positions = range(n) if positions is None else positions if has_axis else [positions]
    new = tensor.clone()
    for number, position in enumerate(positions):
        if not -n <= position < n:
            continue
        head = list(edit.head) if isinstance(edit.head, tuple) else edit.head
        where = position if head is None else (position, head)
        old, value = tensor[where], torch.as_tensor(edit.value).to(new)
        if value.ndim == 1 + has_axis + old.ndim:
            value = value[example if len(value) > 1 else 0]
        if has_axis and value.ndim == 1 + old.ndim:
            if number >= len(value) > 1:
                continue  # a generated token, for which no value was given
            value = value[number if len(value) > 1 else 0]
        if edit.site == "pattern" and value.ndim and value.shape[-1] > 1:
            value = pad(value, (0, n - value.shape[-1]))
        new[where] = {"replace": value.expand_as(old), "add": old + value, "scale": old * value}[edit.how]
    return new
