"""Gradients of a metric: at sites of every layer, and at the stream as each input of a layer reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.engine import backends
from helpers.engine.architectures import SiteName, list_layers, unembed
from helpers.engine.cards import LoadedModel
from helpers.engine.edges import INPUTS, Graph, run_mlp
from helpers.engine.propagation import Key, Part, read_block


@dataclass(frozen=True)
class Point:
    """A run, and what a small change of it would do."""

    values: Mapping[Key, Float[Tensor, "example position ..."]]
    """Of `resid_pre`, `head_z` and `mlp_out`."""
    gradients: Mapping[Key, Float[Tensor, "example position ..."]]
    """Of the metric of the same example at `q`, `k`, `v` and `mlp_out`, and at the last layer's `resid_post`."""


def run_with_gradients(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    measure: Callable[[Float[Tensor, "example token"]], Float[Tensor, " example"]],
    start: Float[Tensor, "example position d_model"] | None = None,
) -> Point:
    """Run prompts of one length.

    Args:
        loaded: on plain Hugging Face.
        rows: tokens.
        measure: the metric of each example, from its last logits.
        start: what takes the place of the first layer's `resid_pre`.
    """
    values: dict[Key, Tensor] = {}
    added: dict[Key, Tensor] = {}

    def keep(key: Key, tensor: Tensor) -> Tensor | None:
        tensor = start if start is not None and key == ("resid_pre", 0) else tensor
        values[key] = tensor.detach().clone()  # some blocks add to it in place
        return tensor if tensor is start else None

    def move(key: Key, tensor: Tensor) -> Tensor:
        """With nothing added, whose gradient is that of the site, however it is cut out of a module's output."""
        if key[0] == "mlp_out":
            keep(key, tensor)
        added[key] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + added[key]

    taps: list[tuple[SiteName, int, backends.Tap]] = []
    for layer in range(loaded.n_layers):
        kept: list[Key] = [("resid_pre", layer), ("head_z", layer)]
        moved: list[Key] = [*((site, layer) for site in INPUTS), ("mlp_out", layer)]
        taps += [(*key, partial(keep, key)) for key in kept] + [(*key, partial(move, key)) for key in moved]
    end: Key = ("resid_post", loaded.n_layers - 1)
    taps.append((*end, partial(move, end)))
    tokens = torch.tensor([list(row) for row in rows], device=loaded.device)
    with backends.tap(loaded, taps), torch.enable_grad():
        last = loaded.model.base_model(tokens, use_cache=False)[0][:, -1]
        metric = measure(unembed(loaded.model, loaded.layout, last).float())
        found = torch.autograd.grad(metric.sum(), list(added.values()))
    return Point(values, dict(zip(added, found, strict=True)))


def pull_to_receivers(
    loaded: LoadedModel, graph: Graph, part: Part, point: Point
) -> Iterator[Float[Tensor, "example position d_model"]]:
    """For each receiver of a graph, in order, the gradient at the stream that it reads, all others left as they are."""
    for number, layer in enumerate(list_layers(loaded.model, loaded.layout)):
        resid, written = point.values["resid_pre", number], layer.write(point.values["head_z", number])
        with torch.enable_grad():
            stream = resid.clone().requires_grad_()
            read = read_block(loaded, number, layer, part.calls[number], stream, [*INPUTS])
            for site in INPUTS:
                towards = point.gradients[site, number]
                shared = graph.n_heads // towards.shape[2]  # query heads on each
                for receiver in graph.receivers.values():
                    if (receiver.layer, receiver.site) == (number, site):
                        own = sorted({head // shared for head in receiver.heads})
                        chosen = torch.zeros_like(towards)
                        chosen[:, :, own] = towards[:, :, own]
                        yield torch.autograd.grad(read[site], stream, chosen, retain_graph=True)[0]
            more = torch.zeros_like(resid, requires_grad=True)
            out = run_mlp(loaded, layer, number, part, resid + more, written)
            (found,) = torch.autograd.grad(out, more, point.gradients["mlp_out", number])
        yield found
    yield point.gradients["resid_post", graph.n_layers - 1]
