"""Llama's names for the modules of any family, so that one piece of nnsight code reads them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.models import LoadedModel


def gather_renames(loaded: LoadedModel) -> dict[str, str]:
    """What a family calls otherwise than Llama does, for nnsight's argument `rename`.

    Args:
        loaded: on plain Hugging Face, of a family that `explain_difference` has nothing against.
    """
    layout, model = loaded.layout, loaded.model
    layer, head = layout.layers[0], model.get_output_embeddings()
    names = {
        model.base_model_prefix: "model",
        layout.blocks: "layers",
        layout.final_norm: "norm",
        layer.attention: "self_attn",
        layer.points["head_z"].module: f"{layer.attention}.o_proj",
        _find_mlp(loaded): "mlp",
        next(name for name, module in model.named_modules() if module is head): "lm_head",
    }
    return {theirs: name for theirs, name in names.items() if theirs.split(".")[-1] != name.split(".")[-1]}


def explain_difference(loaded: LoadedModel) -> str | None:
    """Why code written for Llama's modules can't read this family's, or None where it can.

    It takes layers and MLPs to give a tensor, attention to give a tuple of a tensor and the pattern, and the outputs of
    heads to go straight into one matrix.

    Args:
        loaded: on plain Hugging Face.
    """
    if "head_z" in loaded.layout.missing:
        return loaded.layout.missing["head_z"]
    seen = _watch(loaded)
    for part, wanted in {"layer": 3, "MLP": 3}.items():
        if not isinstance(seen[part], Tensor) or seen[part].ndim != wanted:
            return f"the {part} of {loaded.layout.model_type} does not give one tensor of example, position, d_model"
    if not isinstance(seen["attention"], tuple) or not isinstance(seen["attention"][1], Tensor):
        return f"the attention of {loaded.layout.model_type} does not give its output with the pattern"
    return None


def _find_mlp(loaded: LoadedModel) -> str:
    """The name of the part of a block in which `mlp_out` arises."""
    return (
        "mlp" if hasattr(_get_block(loaded), "mlp") else loaded.layout.layers[0].points["mlp_out"].module.split(".")[0]
    )


def _get_block(loaded: LoadedModel) -> Any:
    return loaded.model.base_model.get_submodule(loaded.layout.blocks)[0]


def _watch(loaded: LoadedModel) -> dict[str, Any]:
    """What the first block and its parts give."""
    block = _get_block(loaded)
    parts = {"layer": "", "attention": loaded.layout.layers[0].attention, "MLP": _find_mlp(loaded)}
    seen: dict[str, Any] = {}
    handles = [
        block.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, part=part: seen.update({part: output})
        )
        for part, name in parts.items()
    ]
    try:
        with torch.inference_mode():
            loaded.model(torch.tensor([[0, 1]], device=loaded.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen
