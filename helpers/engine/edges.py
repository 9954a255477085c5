"""Edges: one part of a model sends what it would on another prompt to one input of a later part, and to no other.

The receiver reads `resid_pre` with the sender's output exchanged, and what it then writes goes on through the model. Of
a layer's readers only what they read is computed from that: queries, keys or values of one head, mixed with all that
stayed as it was, or the MLP. The streams that leave the layer are patches of the next one's `resid_pre`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from helpers import InputError
from helpers.engine import backends
from helpers.engine.architectures import Layer
from helpers.engine.attention import AttentionCall, redirect
from helpers.engine.cards import LoadedModel
from helpers.engine.propagation import TOKENS_AT_ONCE, Change, Kept, Key, Part, Patch, get_step_size, mix, run_frozen

INPUTS = ("q", "k", "v")


@dataclass(frozen=True)
class Graph:
    """The senders and receivers of a model, by the names of the Mechanistic Interpretability Benchmark.

    Senders are "input", heads such as "a3.h0" and MLPs such as "m3"; receivers "a3.h0<q>", "a3.h0<k>", "a3.h0<v>",
    "m3" and "logits".
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: tuple[bool, ...]
    """By layer, whether its MLP does not read what its heads write."""
    grouped: bool = True
    """Whether query heads that share keys and values share these inputs, which then count as key/value heads do."""

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """In the order in which they write."""
        rows = [[*(f"a{layer}.h{head}" for head in range(self.n_heads)), f"m{layer}"] for layer in range(self.n_layers)]
        return ("input", *(name for row in rows for name in row))

    def make_mask(self, edges: Sequence[tuple[int, int]]) -> Bool[Tensor, "receiver sender"]:
        """Which receiver hears from which sender, by edges of `find`."""
        mask = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        for sender, receiver in edges:
            mask[receiver, sender] = True
        return mask

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """In the order in which they read."""
        return (*(name for layer in range(self.n_layers) for name in self.list_readers(layer)), "logits")

    def count_inputs(self, site: str) -> int:
        """How many inputs of a kind a layer has."""
        return self.n_heads if site == "q" or not self.grouped else self.n_kv_heads

    def list_readers(self, layer: int) -> list[str]:
        """The inputs of a layer."""
        heads = [f"a{layer}.h{head}<{site}>" for site in INPUTS for head in range(self.count_inputs(site))]
        return [*heads, f"m{layer}"]

    def count_senders(self, receiver: str) -> int:
        """How many of the senders, the first ones, write before a receiver reads.

        >>> Graph(2, 4, 2, (False, False)).count_senders("a1.h0<q>"), Graph(2, 4, 2, (False, False)).count_senders("m1")
        (6, 10)
        """
        if receiver == "logits":
            return len(self.senders)
        layer = int(receiver[1:].split(".")[0])
        inside = self.n_heads if receiver[0] == "m" and not self.parallel[layer] else 0
        return 1 + layer * (self.n_heads + 1) + inside

    def list_edges(self) -> list[tuple[str, str]]:
        """Every sender with every receiver after it."""
        return [(one, other) for other in self.receivers for one in self.senders[: self.count_senders(other)]]

    def find(self, edges: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        """The numbers of senders and receivers.

        Raises:
            InputError: an edge that the model does not have.
        """
        senders, receivers = ({name: i for i, name in enumerate(names)} for names in (self.senders, self.receivers))
        found = []
        for edge in edges:
            one, other = edge if isinstance(edge, tuple | list) and len(edge) == 2 else (None, None)
            if one not in senders or other not in receivers or senders[one] >= self.count_senders(other):
                raise InputError(
                    f"edge {edge!r}: legal are pairs such as ('a0.h0', 'a1.h0<q>'), sender before receiver"
                )
            found.append((senders[one], receivers[other]))
        return found


def make_graph(loaded: LoadedModel, *, grouped: bool = True) -> Graph:
    """The graph of a model."""
    layout = loaded.layout
    parallel = tuple(layer.parallel for layer in layout.layers)
    return Graph(loaded.n_layers, layout.n_heads, layout.n_kv_heads, parallel, grouped)


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

    sent = [exchanged(("resid_pre", 0))[None]]
    for number, layer in enumerate(found):
        z, new = (kept["head_z", number][:, first:] for kept in (base, source))
        given = z.repeat(1 + z.shape[2], 1, 1, 1, 1)
        for head in range(z.shape[2]):
            given[1 + head, :, :, head] = new[:, :, head]
        written = _add_to_stream(layer, given)
        sent += [written[1:] - written[:1], exchanged(("mlp_out", number))[None]]
    return torch.cat(sent)


def _add_to_stream(layer: Layer, z: Float[Tensor, "... head d_head"]) -> Float[Tensor, "... d_model"]:
    """What attention adds to the stream where its heads give `z`."""
    out = _apply_output(layer, z)
    if layer.layout.after_attention is not None:
        out = layer.block.get_submodule(layer.layout.after_attention).forward(out)
    return out * layer.layout.points["attn_out"].scale


def _apply_output(layer: Layer, z: Float[Tensor, "... head d_head"]) -> Float[Tensor, "... d_model"]:
    """What attention's output matrix writes."""
    return layer.out.forward(z.flatten(-2).contiguous())


def make_patches(
    loaded: LoadedModel, found: Sequence[Layer], part: Part, graph: Graph, edges: Sequence[tuple[int, int]]
) -> Iterator[list[Patch]]:
    """The edges as patches of the stream that leaves the receiver's layer, a few at a time; those to the logits too.

    Args:
        loaded: on plain Hugging Face.
        found: its layers.
        part: with `resid_pre`, `head_z` and `mlp_out` of all layers, of base and source.
        graph: of the model.
        edges: of `Graph.find`; a patch has the number of its edge.
    """
    sent = list_sent(found, part.base, part.source, part.first)
    n_layers, width = graph.n_layers, part.length - part.first
    by_receiver: dict[str, dict[int, int]] = {name: {} for name in graph.receivers}
    for number, (sender, receiver) in enumerate(edges):
        by_receiver[graph.receivers[receiver]][sender] = number
    for layer in range(n_layers):
        wanted = {name: by_receiver[name] for name in graph.list_readers(layer) if by_receiver[name]}
        senders = sorted({sender for of_it in wanted.values() for sender in of_it})
        at_once = max(1, TOKENS_AT_ONCE // (len(part.examples) * width * max(1, len(wanted))))
        for start in range(0, len(senders), at_once):
            some = senders[start : start + at_once]
            reader = _Reader(loaded, found[layer], part, layer, graph)
            streams = reader.read(sent[some], some, wanted)
            yield [
                _as_patch(part, of_it[some[i]], layer + 1, stream[i])
                for (name, of_it), stream in zip(wanted.items(), streams, strict=True)
                for i in range(len(some))
                if some[i] in of_it
            ]
    if by_receiver["logits"]:
        end = part.base["resid_pre", n_layers][:, part.first :]
        yield [_as_patch(part, number, n_layers, end + sent[one]) for one, number in by_receiver["logits"].items()]


def _as_patch(part: Part, number: int, layer: int, stream: Float[Tensor, "example position d_model"]) -> Patch:
    return Patch(number, layer, part.first, (Change("resid_pre", layer, None, stream, part.first),))


@dataclass(frozen=True)
class _Reader:
    """One layer, whose inputs read one after the other what they are sent."""

    loaded: LoadedModel
    layer: Layer
    part: Part
    number: int
    graph: Graph

    def read(
        self, sent: Float[Tensor, "sender example position d_model"], senders: Sequence[int], wanted: Iterable[str]
    ) -> Iterator[Float[Tensor, "sender example position d_model"]]:
        """For each receiver the stream that leaves the layer."""
        base = self.part.base["resid_pre", self.number][:, self.part.first :]
        z = self.part.base["head_z", self.number][:, self.part.first :]
        heads = [name for name in wanted if "<" in name]
        mixed = self.mix(base + sent, base, {name[-2] for name in heads}) if heads else {}
        for name in wanted:
            if name not in heads:
                yield self.read_mlp(base, z, sent, senders)
                continue
            head, site = int(name.split(".h")[1].split("<")[0]), name[-2]
            size = self.graph.n_heads // self.graph.count_inputs(site)
            new = z.expand(len(sent), *z.shape).clone()
            new[..., head * size : (head + 1) * size, :] = mixed[site][..., head * size : (head + 1) * size, :]
            yield self.run(base.expand(len(sent), *base.shape), _apply_output(self.layer, new))

    def mix(
        self, changed: Float[Tensor, "sender example position d_model"], base: Tensor, sites: set[str]
    ) -> dict[str, Float[Tensor, "sender example position head d_head"]]:
        """What every head mixes where its queries, keys or values alone are read from the changed streams."""
        part, number = self.part, self.number
        streams = torch.cat([base[None], changed])
        kept: dict[str, Tensor] = {}

        def attend(call: AttentionCall) -> tuple[Tensor, None]:
            inputs = dict(zip(INPUTS, (call.query, call.key, call.value), strict=True))
            inputs = {site: x[0].transpose(0, 1).unflatten(0, streams.shape[:-1]) for site, x in inputs.items()}
            base_k, base_v = (one[:, : part.first] for one in part.met[number])
            for site in sites:
                q, k, v = (x[1:] if name == site else x[:1].expand_as(x[1:]) for name, x in inputs.items())
                kept[site] = mix(call, q, k, v, base_k, base_v, part.calls[number].mask)
            backends.stop()
            raise AssertionError("stopped")

        with redirect(self.loaded.model, attend), backends.stopping():
            self.layer.run(streams.flatten(0, -2), part.calls[number], self.count_places(streams))
        return kept

    def read_mlp(
        self, base: Tensor, z: Tensor, sent: Float[Tensor, "sender example position d_model"], senders: Sequence[int]
    ) -> Float[Tensor, "sender example position d_model"]:
        """The stream that leaves the layer where its MLP alone reads what is sent."""
        first_inside = self.graph.count_senders(f"a{self.number}.h0<q>")
        written = _apply_output(self.layer, z)
        written = written.expand(len(sent), *written.shape).clone()
        inside = [sender - first_inside if sender >= first_inside else None for sender in senders]
        before = torch.tensor([head is None for head in inside], device=sent.device)[:, None, None, None]
        new = self.part.source["head_z", self.number][:, self.part.first :]
        for i, head in enumerate(inside):
            if head is not None and head < self.graph.n_heads:
                of_head = z.clone()
                of_head[:, :, head] = new[:, :, head]
                written[i] = _apply_output(self.layer, of_head)
        return self.run(base + sent * before, written) - sent

    def run(
        self, resid_pre: Float[Tensor, "sender example position d_model"], written: Tensor
    ) -> Float[Tensor, "sender example position d_model"]:
        """`resid_post` where attention is given, in steps that a processor's caches hold."""
        call, places = self.part.calls[self.number], self.count_places(resid_pre)
        step = get_step_size(resid_pre.device)
        parts = [part.split(step) for part in (resid_pre.flatten(0, -2), written.flatten(0, -2), places)]
        return torch.cat([run_frozen(self.loaded, self.layer, call, *some) for some in zip(*parts, strict=True)]).view(
            resid_pre.shape
        )

    def count_places(self, streams: Float[Tensor, "*many position d_model"]) -> Tensor:
        places = torch.arange(self.part.first, self.part.length, device=streams.device)
        return places.repeat(streams.shape[:-2].numel())


def run_circuit(
    loaded: LoadedModel, found: Sequence[Layer], part: Part, graph: Graph, mask: Bool[Tensor, "receiver sender"]
) -> Float[Tensor, "example d_model"]:
    """The last stream at the last position where some edges carry what this run gives, and all others what the source
    prompts give: every input reads the source's stream, with the senders that it hears exchanged.

    Args:
        loaded: on plain Hugging Face, without norms behind attention.
        found: its layers.
        part: with `resid_pre`, `head_z` and `mlp_out` of all layers, of base and source.
        graph: of the model.
        mask: of `Graph.make_mask`.
    """
    own = part.base["resid_pre", 0] - part.source["resid_pre", 0]
    sent = own.new_zeros(len(graph.senders), *own.shape)  # what each writes here less what it writes on the source
    sent[0] = own
    n_done, n_heads = 1, graph.n_heads
    hears = mask.to(own)
    for number, layer in enumerate(found):
        names = graph.list_readers(number)
        first = graph.receivers.index(names[0])
        source, z = (part.source[site, number] for site in ("resid_pre", "head_z"))
        streams = source + torch.einsum("rs,sntd->rntd", hears[first : first + len(names), :n_done], sent[:n_done])
        new = _mix_streams(loaded, layer, part, number, graph, streams[:-1])
        apart = torch.diag_embed((new - z).movedim(2, -1)).movedim(-2, 0)  # head example position d_head head
        heads = _apply_output(layer, apart.transpose(-1, -2)) - _apply_output(layer, torch.zeros_like(z))
        sent[n_done : n_done + n_heads] = heads * layer.layout.points["attn_out"].scale
        inside = hears[first + len(names) - 1, n_done : n_done + n_heads]
        written = _apply_output(layer, z + (new - z) * inside[:, None])
        kept: list[Tensor] = []
        with backends.tap(loaded, [("mlp_out", number, kept.append)]):
            places = torch.arange(part.length, device=own.device).repeat(len(own))
            run_frozen(loaded, layer, part.calls[number], streams[-1].flatten(0, 1), written.flatten(0, 1), places)
        sent[n_done + n_heads] = kept[0].view_as(own) - part.source["mlp_out", number]
        n_done += n_heads + 1
    ends = part.source["resid_pre", graph.n_layers][:, -1]
    return ends + torch.einsum("s,snd->nd", hears[-1], sent[:, :, -1])


def _mix_streams(
    loaded: LoadedModel,
    layer: Layer,
    part: Part,
    number: int,
    graph: Graph,
    streams: Float[Tensor, "input example position d_model"],
) -> Float[Tensor, "example position head d_head"]:
    """What each head mixes where queries, keys and values are read from a stream each."""
    found: list[Tensor] = []

    def attend(call: AttentionCall) -> tuple[Tensor, None]:
        at, own = 0, []
        for x in (call.query, call.key, call.value):
            given, n = x[0].transpose(0, 1).unflatten(0, streams.shape[:-1]), x.shape[1]
            own.append(torch.stack([given[at + head, :, :, head] for head in range(n)], dim=2)[None])
            at += n
        q, k, v = own
        found.append(mix(call, q, k, v, k[0, :, :0], v[0, :, :0], part.calls[number].mask)[0])
        backends.stop()
        raise AssertionError("stopped")

    places = torch.arange(part.length, device=streams.device).repeat(streams.shape[:2].numel())
    with redirect(loaded.model, attend), backends.stopping():
        layer.run(streams.flatten(0, -2), part.calls[number], places)
    return found[0]
