"""Edges: one part of a model sends what it would on another prompt to one input of a later part, and to no other.

The receiver reads the stream with the sender's output exchanged, and what it then writes goes on through the model. Of
its layer only that is computed again: what one head mixes from other queries, keys or values, or the MLP. The streams
that leave the layer are patches of the next one's `resid_pre`. Positions before the first at which the prompts differ
hold the same in both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError
from helpers.engine import backends
from helpers.engine.architectures import Layer, SiteName
from helpers.engine.attention import AttentionCall, redirect
from helpers.engine.cards import LoadedModel
from helpers.engine.propagation import Change, Kept, Key, Part, Patch, get_step_size, mix, run_frozen

INPUTS: tuple[SiteName, ...] = ("q", "k", "v")


class Receiver(NamedTuple):
    """An input of a layer."""

    layer: int
    """That of the logits is one more than the last."""
    site: str
    """Of `INPUTS`, "mlp" or "logits"."""
    heads: range = range(0)
    """The query heads that read through it."""


@dataclass(frozen=True)
class Graph:
    """The senders and receivers of a model, by the names of the Mechanistic Interpretability Benchmark.

    Senders are "input", heads such as "a3.h0" and MLPs such as "m3"; receivers "a3.h0<q>", "a3.h0<k>", "a3.h0<v>",
    "m3" and "logits". Where query heads share keys and values, these inputs are "a3.g0<k>" and "a3.g0<v>".
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: tuple[bool, ...]
    """By layer, whether its MLP does not read what its heads write."""
    grouped: bool = True
    """Whether query heads share these inputs as they share keys and values."""

    @cached_property
    def senders(self) -> dict[str, int]:
        """By name the number of each, in the order in which they write."""
        rows = [[*(f"a{layer}.h{head}" for head in range(self.n_heads)), f"m{layer}"] for layer in range(self.n_layers)]
        return {name: number for number, name in enumerate(("input", *(name for row in rows for name in row)))}

    @cached_property
    def receivers(self) -> dict[str, Receiver]:
        """By name, in the order in which they read."""
        found = {}
        for layer in range(self.n_layers):
            for site in INPUTS:
                n = self.n_kv_heads if self.grouped and site != "q" else self.n_heads
                kind, size = "h" if n == self.n_heads else "g", self.n_heads // n
                for i in range(n):
                    found[f"a{layer}.{kind}{i}<{site}>"] = Receiver(layer, site, range(i * size, (i + 1) * size))
            found[f"m{layer}"] = Receiver(layer, "mlp")
        return found | {"logits": Receiver(self.n_layers, "logits")}

    def count_senders(self, receiver: Receiver) -> int:
        """How many of the senders, the first ones, write before a receiver reads.

        >>> graph = Graph(2, 4, 2, (False, False))
        >>> [graph.count_senders(graph.receivers[name]) for name in ("a1.h0<q>", "m1", "logits")]
        [6, 10, 11]
        """
        before = 1 + receiver.layer * (self.n_heads + 1)
        return before + (self.n_heads if receiver.site == "mlp" and not self.parallel[receiver.layer] else 0)

    def list_edges(self) -> list[tuple[str, str]]:
        """Every sender with every receiver after it."""
        senders = list(self.senders)
        return [(sender, name) for name, one in self.receivers.items() for sender in senders[: self.count_senders(one)]]

    def find(self, edges: Sequence[tuple[str, str]]) -> list[tuple[int, Receiver]]:
        """The numbers of senders, and receivers.

        Raises:
            InputError: an edge that the model does not have.
        """
        found = []
        for edge in edges:
            sender, name = edge if isinstance(edge, tuple | list) and len(edge) == 2 else ("", "")
            number, receiver = self.senders.get(sender), self.receivers.get(name)
            if number is None or receiver is None or number >= self.count_senders(receiver):
                told = "sender before receiver" + ", keys and values by group (a1.g0<k>)" * self._shares
                raise InputError(f"edge {edge!r}: legal are pairs such as ('a0.h0', 'a1.h0<q>'), {told}")
            found.append((number, receiver))
        return found

    @property
    def _shares(self) -> bool:
        return self.grouped and self.n_kv_heads < self.n_heads


def make_graph(loaded: LoadedModel, *, grouped: bool = True) -> Graph:
    """The graph of a model."""
    layout = loaded.layout
    parallel = tuple(layer.parallel for layer in layout.layers)
    return Graph(loaded.n_layers, layout.n_heads, layout.n_kv_heads, parallel, grouped)


# What is sent


def exchange_heads(
    z: Float[Tensor, "example position head d_head"], new: Float[Tensor, "example position head d_head"]
) -> Float[Tensor, "head example position head d_head"]:
    """The outputs of all heads with one of them exchanged, for each."""
    given = z.repeat(z.shape[2], 1, 1, 1, 1)
    for head in range(z.shape[2]):
        given[head, :, :, head] = new[:, :, head]
    return given


def list_sent(
    found: Sequence[Layer], base: Kept, source: Kept, first: int = 0
) -> Float[Tensor, "sender example position d_model"]:
    """What each sender writes on the source prompts less what it writes on the base prompts; where a norm stands behind
    attention, of one head at a time.

    Args:
        found: the model's layers.
        base: `resid_pre` of layer 0, `head_z` and `mlp_out` of all.
        source: the same.
        first: the first position that is wanted.
    """

    def exchanged(key: Key) -> Tensor:
        return (source[key] - base[key])[:, first:]

    own = exchanged(("resid_pre", 0))
    n_heads = base["head_z", 0].shape[2]
    sent = own.new_empty(1 + len(found) * (n_heads + 1), *own.shape)
    sent[0] = own
    for number, (layer, of_layer) in enumerate(zip(found, sent[1:].split(n_heads + 1), strict=True)):
        z, new = (kept["head_z", number][:, first:] for kept in (base, source))
        of_layer[:-1] = layer.add_to_stream(exchange_heads(z, new)) - layer.add_to_stream(z)
        of_layer[-1] = exchanged(("mlp_out", number))
    return sent


# How a receiver reads


def meet(
    loaded: LoadedModel,
    layer: Layer,
    number: int,
    part: Part,
    streams: Float[Tensor, "stream example position d_model"],
) -> tuple[AttentionCall, dict[str, Float[Tensor, "stream example position head d_head"]]]:
    """Queries, keys and values that a layer makes of some streams, and the call in which it would mix them."""
    calls: list[AttentionCall] = []

    def keep(call: AttentionCall) -> tuple[Tensor, None]:
        calls.append(call)
        return backends.stop()

    with redirect(loaded.model, keep), backends.stopping():
        layer.run(streams.flatten(0, -2), part.calls[number], _list_places(part, streams))
    inputs = (calls[0].query, calls[0].key, calls[0].value)
    return calls[0], {
        site: x[0].transpose(0, 1).unflatten(0, streams.shape[:-1]) for site, x in zip(INPUTS, inputs, strict=True)
    }


def run_mlp(
    loaded: LoadedModel,
    layer: Layer,
    number: int,
    part: Part,
    resid_pre: Float[Tensor, "*many position d_model"],
    written: Float[Tensor, "*many position d_model"],
) -> Float[Tensor, "*many position d_model"]:
    """`mlp_out` of one layer where what its attention's output matrix writes is given."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> None:
        kept.append(tensor[0].clone())  # some blocks add to it in place

    with backends.tap(loaded, [("mlp_out", number, keep)]):
        places = _list_places(part, resid_pre)
        run_frozen(loaded, layer, part.calls[number], resid_pre.flatten(0, -2), written.flatten(0, -2), places)
    return kept[0].view(resid_pre.shape)


def _list_places(part: Part, streams: Float[Tensor, "*many position d_model"]) -> Int[Tensor, " token"]:
    """The positions of streams that end with the prompts."""
    places = torch.arange(part.length - streams.shape[-2], part.length, device=streams.device)
    return places.repeat(streams.shape[:-2].numel())


def make_patches(
    loaded: LoadedModel, found: Sequence[Layer], part: Part, graph: Graph, edges: Sequence[tuple[int, Receiver]]
) -> Iterator[list[Patch]]:
    """Edges as patches of the stream that leaves the receiver's layer, of as many senders at a time as a step has room
    for.

    Args:
        loaded: on plain Hugging Face.
        found: its layers.
        part: with `resid_pre`, `head_z` and `mlp_out` of all layers, of base and source.
        graph: of the model.
        edges: different ones, of `Graph.find`; a patch has the number of its edge.
    """
    sent = list_sent(found, part.base, part.source, part.first)
    by_layer: dict[int, dict[Receiver, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for number, (sender, receiver) in enumerate(edges):
        by_layer[receiver.layer][receiver][sender] = number
    at_once = max(1, get_step_size(sent.device) // sent[0, ..., 0].numel())
    for layer, receivers in sorted(by_layer.items()):
        if layer == graph.n_layers:
            ends = part.base["resid_pre", layer][:, part.first :]
            (numbers,) = receivers.values()
            yield [_as_patch(part, number, layer, (ends + sent[one])[:, -1:]) for one, number in numbers.items()]
            continue
        reader = _Reader(loaded, found[layer], part, layer, graph)
        senders = sorted({sender for numbers in receivers.values() for sender in numbers})
        for start in range(0, len(senders), at_once):
            some = senders[start : start + at_once]
            yield [
                _as_patch(part, receivers[receiver][sender], layer + 1, stream)
                for receiver, streams in reader.read(sent, some, receivers)
                for sender, stream in streams
            ]


def _as_patch(part: Part, number: int, layer: int, stream: Float[Tensor, "example position d_model"]) -> Patch:
    first = part.length - stream.shape[1]
    return Patch(number, layer, first, (Change("resid_pre", layer, None, stream, first),))


@dataclass(frozen=True)
class _Reader:
    """One layer, whose inputs read one after the other what they are sent."""

    loaded: LoadedModel
    layer: Layer
    part: Part
    number: int
    graph: Graph

    def get(self, site: SiteName, layer: int | None = None) -> Float[Tensor, "example position ..."]:
        """What a site holds on the base prompts, from the first position that differs on."""
        return self.part.base[site, self.number if layer is None else layer][:, self.part.first :]

    def read(
        self,
        sent: Float[Tensor, "sender example position d_model"],
        senders: Sequence[int],
        wanted: Mapping[Receiver, Mapping[int, int]],
    ) -> Iterator[tuple[Receiver, list[tuple[int, Float[Tensor, "example position d_model"]]]]]:
        """For each receiver its senders among these, with the stream that then leaves the layer."""
        sites = {receiver.site for receiver in wanted}
        mixed = self.mix(sent[senders], sites & {*INPUTS}) if sites & {*INPUTS} else {}
        for receiver, numbers in wanted.items():
            mine = [sender for sender in senders if sender in numbers]
            if not mine:
                continue
            if receiver.site == "mlp":
                streams = self.read_mlp(sent[mine], mine)
            else:
                at = [senders.index(sender) for sender in mine]
                new = self.get("head_z").repeat(len(mine), 1, 1, 1, 1)
                heads = list(receiver.heads)
                new[..., heads, :] = mixed[receiver.site][at][..., heads, :]
                streams = self.leave(new)
            yield receiver, list(zip(mine, streams, strict=True))

    def mix(
        self, sent: Float[Tensor, "sender example position d_model"], sites: set[str]
    ) -> dict[str, Float[Tensor, "sender example position head d_head"]]:
        """What every head mixes where its queries, keys or values alone are read from what is sent."""
        base = self.get("resid_pre")
        call, inputs = meet(self.loaded, self.layer, self.number, self.part, torch.cat([base[None], base + sent]))
        before = slice(None, self.part.first)
        base_k, base_v = (kept[:, before] for kept in self.part.met[self.number])
        found = {}
        for site in sites:
            q, k, v = (x[1:] if name == site else x[:1].expand_as(x[1:]) for name, x in inputs.items())
            found[site] = mix(call, q, k, v, base_k, base_v, self.part.calls[self.number].mask)
        return found

    def leave(
        self, z: Float[Tensor, "sender example position head d_head"]
    ) -> Float[Tensor, "sender example position d_model"]:
        """The stream that leaves the layer where its heads give `z`."""
        resid = self.get("resid_pre").expand(len(z), -1, -1, -1)
        call, places = self.part.calls[self.number], _list_places(self.part, resid)
        written = self.layer.write(z).flatten(0, -2)
        return run_frozen(self.loaded, self.layer, call, resid.flatten(0, -2), written, places).view(resid.shape)

    def read_mlp(
        self, sent: Float[Tensor, "sender example position d_model"], senders: Sequence[int]
    ) -> Float[Tensor, "sender example position d_model"]:
        """The stream that leaves the layer where its MLP alone reads what is sent, by heads of the layer too."""
        z, new = self.get("head_z"), self.part.source["head_z", self.number][:, self.part.first :]
        written, each = self.layer.write(z), self.layer.write(exchange_heads(z, new))
        inside = [sender - 1 - self.number * (self.graph.n_heads + 1) for sender in senders]
        before = torch.tensor([head < 0 for head in inside], device=sent.device)[:, None, None, None]
        resid = self.get("resid_pre") + sent * before
        adds = torch.stack([written if head < 0 else each[head] for head in inside])
        out = run_mlp(self.loaded, self.layer, self.number, self.part, resid, adds)
        return self.get("resid_pre", self.number + 1) + (out - self.get("mlp_out"))


def run_circuit(
    loaded: LoadedModel, found: Sequence[Layer], part: Part, graph: Graph, edges: Sequence[tuple[int, Receiver]]
) -> Float[Tensor, "example d_model"]:
    """The last stream at the last position where some edges carry what this run gives, and all others what the source
    prompts give: every input reads the source's stream, with the senders that it hears exchanged.

    Args:
        loaded: on plain Hugging Face, without norms behind attention.
        found: its layers.
        part: with `resid_pre`, `head_z` and `mlp_out` of all layers, of base and source.
        graph: of the model.
        edges: of `Graph.find`.
    """

    def get(site: SiteName, layer: int) -> Float[Tensor, "example position ..."]:
        return part.source[site, layer][:, part.first :]

    own = part.base["resid_pre", 0][:, part.first :] - get("resid_pre", 0)
    numbers = {receiver: i for i, receiver in enumerate(graph.receivers.values())}
    hears = own.new_zeros(len(numbers), len(graph.senders))
    for sender, receiver in edges:
        hears[numbers[receiver], sender] = 1
    sent = own.new_zeros(len(graph.senders), *own.shape)  # what each writes here less what it writes on the source
    sent[0] = own
    by_layer = hears[:-1].split(len(numbers) // graph.n_layers)
    for number, (layer, heard, of_layer) in enumerate(
        zip(found, by_layer, sent[1:].split(graph.n_heads + 1), strict=True)
    ):
        n_before = 1 + number * (graph.n_heads + 1)
        arrives = torch.einsum("rs,sntd->rntd", heard[:, :n_before], sent[:n_before])
        streams = get("resid_pre", number) + arrives
        call, inputs = meet(loaded, layer, number, part, streams[:-1])
        q, k, v = _take_own(inputs)
        base_k, base_v = (kept[:, : part.first] for kept in part.met[number])
        (new,) = mix(call, q, k, v, base_k, base_v, part.calls[number].mask)
        z = get("head_z", number)
        of_layer[:-1] = layer.add_to_stream(exchange_heads(z, new)) - layer.add_to_stream(z)
        inside = heard[-1, n_before : n_before + graph.n_heads]
        written = layer.write(z + (new - z) * inside[:, None])
        of_layer[-1] = run_mlp(loaded, layer, number, part, streams[-1], written) - get("mlp_out", number)
    ends = get("resid_pre", graph.n_layers)[:, -1]
    return ends + torch.einsum("s,snd->nd", hears[-1], sent[:, :, -1])


def _take_own(
    inputs: Mapping[str, Float[Tensor, "stream example position head d_head"]],
) -> Iterator[Float[Tensor, "1 example position head d_head"]]:
    """Of each head the queries, keys or values of its own stream; streams are in the order of these."""
    first = 0
    for x in inputs.values():
        n = x.shape[3]
        yield torch.stack([x[first + head, :, :, head] for head in range(n)], dim=2)[None]
        first += n
