"""Gradients of a metric: at sites of every layer, and at the stream as each input of a layer reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.engine import backends
from helpers.engine.architectures import BlockCall, Layer, SiteName, list_layers, record_block_calls
from helpers.engine.cards import LoadedModel
from helpers.engine.edges import INPUTS, Graph
from helpers.engine.propagation import Key, read_block, run_frozen

MOVED: tuple[SiteName, ...] = (*INPUTS, "head_z", "mlp_out", "resid_post")
"""Where gradients are taken."""


@dataclass(frozen=True)
class Point:
    """A run, and what a small change of it would do."""

    values: Mapping[Key, Float[Tensor, "example position ..."]]
    """Of `resid_pre` and `head_z`."""
    gradients: Mapping[Key, Float[Tensor, "example position ..."]]
    """By site and layer, of the metric of the same example."""
    metric: Float[Tensor, " example"]


def run_with_gradients(
    loaded: LoadedModel,
    embeddings: Float[Tensor, "example position d_model"],
    measure: Callable[[Float[Tensor, "example token"]], Float[Tensor, " example"]],
) -> Point:
    """Run prompts of one length from their embeddings.

    Args:
        loaded: on plain Hugging Face.
        embeddings: of the tokens.
        measure: the metric of each example, from its last logits.
    """
    added: dict[Key, Tensor] = {}
    values: dict[Key, Tensor] = {}

    def move(key: Key) -> backends.Tap:
        def tap(tensor: Tensor) -> Tensor:
            values[key] = tensor.detach()
            added[key] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + added[key]  # whose gradient is that of the site, however it is cut out of a module's output

        return tap

    def keep(layer: int, tensor: Tensor) -> None:
        values["resid_pre", layer] = tensor.detach()

    taps: list[tuple[SiteName, int, backends.Tap]] = []
    for layer in range(loaded.n_layers):
        taps.append(("resid_pre", layer, partial(keep, layer)))
        for site in MOVED:
            taps.append((site, layer, move((site, layer))))
    with backends.tap(loaded, taps), torch.enable_grad():
        metric = measure(loaded.model(inputs_embeds=embeddings, use_cache=False).logits[:, -1].float())
        found = torch.autograd.grad(metric.sum(), list(added.values()))
    return Point(values, dict(zip(added, found, strict=True)), metric.detach())


def pull_to_readers(
    loaded: LoadedModel, graph: Graph, calls: Sequence[BlockCall], point: Point
) -> Iterator[tuple[str, Float[Tensor, "example position d_model"]]]:
    """For each receiver, in order, the gradient at the stream that it reads, all other readers left as they are."""
    for number, layer in enumerate(list_layers(loaded.model, loaded.layout)):
        resid = point.values["resid_pre", number]
        with torch.enable_grad():
            stream = resid.clone().requires_grad_()
            read = read_block(loaded, number, layer, calls[number], stream, [*INPUTS])
            for site in INPUTS:
                towards = point.gradients[site, number]
                size = towards.shape[2] // graph.count_inputs(site)
                for head in range(graph.count_inputs(site)):
                    chosen = torch.zeros_like(towards)
                    chosen[:, :, head * size : (head + 1) * size] = towards[:, :, head * size : (head + 1) * size]
                    (found,) = torch.autograd.grad(read[site], stream, chosen, retain_graph=True)
                    yield f"a{number}.h{head}<{site}>", found
        yield f"m{number}", _pull_through_mlp(loaded, layer, calls[number], number, point)
    yield "logits", point.gradients["resid_post", graph.n_layers - 1]


def _pull_through_mlp(
    loaded: LoadedModel, layer: Layer, call: BlockCall, number: int, point: Point
) -> Float[Tensor, "example position d_model"]:
    resid, z = point.values["resid_pre", number], point.values["head_z", number]
    written = layer.out.forward(z.flatten(-2).contiguous()).flatten(0, 1)
    places = torch.arange(resid.shape[1], device=resid.device).repeat(len(resid))
    with torch.enable_grad():
        more = torch.zeros_like(resid, requires_grad=True)
        out = run_frozen(loaded, layer, call, (resid + more).flatten(0, 1), written, places)
        towards = point.gradients["mlp_out", number]
        (found,) = torch.autograd.grad(out.view(resid.shape) - more, more, towards)
    return found


def record_calls(loaded: LoadedModel, tokens: Sequence[int]) -> list[BlockCall]:
    """What each block is called with, so that gradients can pass."""

    def copy(given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(map(copy, given))
        return given.clone() if isinstance(given, Tensor) else given

    return [
        replace(call, arguments=copy(call.arguments), options={name: copy(one) for name, one in call.options.items()})
        for call in record_block_calls(loaded.model, loaded.layout, tokens)
    ]
