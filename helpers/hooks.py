"""Read and change what attention heads do, in plain Hugging Face models.

`head_z` is a head's output before the output projection: the attention-weighted sum of its values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from helpers import InputError
from helpers.models import token_batches

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor
    from torch.nn import Module

    from helpers.models import LoadedModel

    Head = tuple[int, int]
    """(layer, query head)"""


def attention_patterns(
    loaded: LoadedModel, token_ids: Int[Tensor, "sequence position"]
) -> Iterator[Float[Tensor, "layer head query key"]]:
    """The attention of every head, one sequence at a time; each row over keys sums to one.

    Raises:
        InputError: the architecture gives no attention patterns.
    """
    import torch

    base = _base_model(loaded)
    for batch in token_batches(token_ids.to(loaded.device)):
        with torch.inference_mode():
            outputs = base(batch, output_attentions=True, use_cache=False)
        patterns = [pattern for pattern in getattr(outputs, "attentions", None) or [] if pattern is not None]
        if len(patterns) != loaded.n_layers:
            raise InputError(f"architecture {loaded.config.model_type!r} gives no attention pattern for every layer")
        yield from torch.stack(patterns, dim=1).float().cpu()


def mean_head_z(loaded: LoadedModel, token_ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "layer head d_head"]:
    """The mean of `head_z` over all sequences and positions, for mean ablation."""
    import torch

    totals: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))

    def add_up(layer: int, z: Tensor) -> None:
        totals[layer] = totals[layer] + z.float().sum(dim=(0, 1)).unflatten(-1, (loaded.n_heads, -1)).cpu()

    with ExitStack() as hooks, torch.inference_mode():
        for layer, projection in enumerate(output_projections(loaded)):
            hooks.enter_context(_on_input(projection, lambda z, layer=layer: add_up(layer, z)))
        for batch in token_batches(token_ids.to(loaded.device)):
            _base_model(loaded)(batch, use_cache=False)
    return torch.stack([totals[layer] for layer in range(loaded.n_layers)]) / token_ids.numel()


@contextmanager
def ablate_heads(
    loaded: LoadedModel, heads: Iterable[Head], values: Float[Tensor, "layer head d_head"]
) -> Iterator[None]:
    """While the context lasts, `head_z` of the given heads is the given constant at every position.

    The hooks are removed when the context ends, also after an exception.

    Args:
        heads: (layer, query head) pairs.
        values: what to put there, such as `mean_head_z` (mean ablation) or zeros (zero ablation).

    Raises:
        InputError: no such layer or head.
    """
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        if not (0 <= layer < loaded.n_layers and 0 <= head < loaded.n_heads):
            raise InputError(
                f"no head {layer}.{head}: legal are layers 0 to {loaded.n_layers - 1}, heads 0 to {loaded.n_heads - 1}"
            )
        by_layer[layer].append(head)

    def ablate(layer: int, z: Tensor) -> Tensor:
        z = z.unflatten(-1, (loaded.n_heads, -1)).clone()
        z[:, :, by_layer[layer]] = values[layer, by_layer[layer]].to(z)
        return z.flatten(-2)

    projections = output_projections(loaded)
    with ExitStack() as hooks:
        for layer in by_layer:
            hooks.enter_context(_on_input(projections[layer], lambda z, layer=layer: ablate(layer, z)))
        yield


def layer_matched_sets(loaded: LoadedModel, heads: Sequence[Head], *, n_sets: int, seed: int) -> list[list[Head]]:
    """Random sets to compare with: as many heads in every layer as `heads` has there, none of them in `heads`.

    Returns no set at all where a layer has too few other heads.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    taken = {layer: [head for other, head in heads if other == layer] for layer, _ in heads}
    free = {layer: np.setdiff1d(np.arange(loaded.n_heads), taken[layer]) for layer in taken}
    if any(len(free[layer]) < len(taken[layer]) for layer in taken):
        return []
    return [
        [
            (layer, int(head))
            for layer in sorted(taken)
            for head in generator.choice(free[layer], len(taken[layer]), replace=False)
        ]
        for _ in range(n_sets)
    ]


def output_projections(loaded: LoadedModel) -> list[Module]:
    """The module of each layer that takes the concatenated `head_z` of all its query heads.

    Raises:
        InputError: an architecture that is laid out otherwise, with its name.
    """
    base = _base_model(loaded)
    layers = getattr(base, "layers", None) or getattr(base, "h", None) or []
    names = (
        "self_attn.o_proj",
        "attn.c_proj",
        "attention.dense",
    )  # Llama and Qwen and Gemma; GPT-2; GPT-NeoX
    found = []
    for layer in layers:
        modules = dict(layer.named_modules())
        found += [modules[name] for name in names if name in modules][:1]
    if len(found) != loaded.n_layers:
        raise InputError(
            f"architecture {loaded.config.model_type!r} is not known here: legal are the GPT-2, Llama, Qwen2, Gemma 3 "
            "and GPT-NeoX families"
        )
    return found


def _base_model(loaded: LoadedModel) -> Module:
    if loaded.backend != "huggingface":
        raise InputError(f"backend {loaded.backend!r} can't be hooked here: legal is 'huggingface'")
    return loaded.model.base_model


@contextmanager
def _on_input(module: Module, change) -> Iterator[None]:
    """Hand a module's input to `change`; what that returns, if anything, goes in instead."""

    def hook(_, inputs):
        changed = change(inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
