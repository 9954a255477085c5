"""Exact activation patching and ablation of many sites, at the cost of what a patch can change.

Activations of a `source` prompt are put into the run on a `base` prompt of the same token length, one
patch at a time, and a metric is read: from the logits of the last position, or the loss of every token.
(Denoising: base is the corrupted prompt, source the clean one. Noising: the other way round.)

Every patch is exact: the numbers are those of a full forward pass with a hook. What makes it fast is what
is left out. A patch in layer l at position p changes nothing in the layers before l, nor at the positions
before p; so only the rest is computed again, with the keys and values of the positions before p taken
from the unpatched run. And all patches go through the model together: at each layer those that begin
there join the batch. Positions before the first token in which base and source differ hold the same
activations in both, so that a patch there has no effect and is not run.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError, hooks
from helpers.engine import backends
from helpers.engine.architectures import (
    BlockCall,
    get_final_norm,
    list_layers,
    recording_block_calls,
    scale_logits,
    unembed,
)
from helpers.engine.attention import AttentionCall, redirect
from helpers.engine.edges import Graph, Receiver, make_graph, make_patches, run_circuit
from helpers.engine.inputs import as_list, as_names, as_whole, as_wholes, is_row, make_generator
from helpers.engine.propagation import (
    TOKENS_AT_ONCE,
    Change,
    Kept,
    Key,
    Part,
    Patch,
    cut,
    get_step_size,
    propagate,
    read_block,
    run_senders,
)
from helpers.engine.sites import Captured, Positions, Prompts, check_site, count_heads, locate_positions, tokenize
from helpers.hooks import Head, SiteName
from helpers.models import LoadedModel

Answers = Sequence[tuple[str | int, str | int]]
"""For each prompt the right and the wrong next token, as text that is one token, or as its id."""
Metric = Callable[[Float[Tensor, "example token"], Int[Tensor, " example"]], Float[Tensor, " example"]]
"""One number for each example, from the logits of its last position and its number among the prompts."""

Ablation = Literal["zero", "mean", "resample"]


@dataclass(frozen=True)
class Node:
    """A site of one layer that a patch replaces: whole, or one head of it, or one position."""

    site: SiteName
    layer: int
    head: int | None = None
    """A query head; of `k`, `rot_k`, `v` a key/value head."""
    position: int | None = None
    """A number in the prompt, negative ones from the end; of a pattern, the query. None: all positions."""


def list_nodes(heads: Iterable[Head], *, position: int | None = None) -> list[Node]:
    """The output of each head as a node of a patch.

    Args:
        heads: as (layer, head).
        position: as of `Node`; by default all.

    >>> list_nodes([(3, 1)], position=-1)
    [Node(site='head_z', layer=3, head=1, position=-1)]
    """
    return [Node("head_z", layer, head, position) for layer, head in heads]


@dataclass(frozen=True)
class Effects:
    """What each patch does, example by example, in units of the metric (logits, by default).

    `transformer_lens.utilities.statistics` takes `effect` as it is: the last axis is the examples.
    """

    values: Float[Tensor, "*patch example"]
    """The metric of each patched run; NaN where a prompt has no such position."""
    axes: tuple[str, ...]
    base: Float[Tensor, " example"]
    """The metric of the unpatched runs."""
    source: Float[Tensor, " example"] | None
    """The metric of the runs that the activations come from; None for an ablation."""
    positions: tuple[str, ...] = ()

    @property
    def effect(self) -> Float[Tensor, "*patch example"]:
        """The change that each patch makes."""
        return self.values - self.base

    @property
    def recovered(self) -> Float[Tensor, "*patch"]:
        """The mean effect as a share of the mean difference between source and base, over the same examples."""
        if self.source is None:
            raise InputError("an ablation has no source run, so no share of a difference: legal is `effect`")
        difference = (self.source - self.base).expand_as(self.effect)
        return self.effect.nanmean(-1) / difference.masked_fill(self.effect.isnan(), float("nan")).nanmean(-1)


@dataclass(frozen=True)
class EdgeEffects(Effects):
    """What each edge does; axes `edge example`."""

    edges: tuple[tuple[str, str], ...] = ()
    """As (sender, receiver)."""


def patch_positions(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    *,
    site: SiteName = "resid_pre",
    answers: Answers | None = None,
    metric: Metric | None = None,
    positions: Positions | None = None,
) -> Effects:
    """Patch a site of every layer at every position, or at named ones; axes `layer position example`.

    Args:
        loaded: on plain Hugging Face.
        base: prompts to run, as texts or token ids.
        source: prompts whose activations are put in: one for each of `base`, as long in tokens.
        site: of the residual stream, `attn_out` or `mlp_out`; or a site of heads, all of them together.
        answers: the metric is the logit of the first less that of the second.
        metric: or any function of the last position's logits.
        positions: as for `hooks.capture`; by default all, counted from the first token.

    Raises:
        InputError: prompts of unequal token lengths, an answer that is not one token, NaN in an activation.
    """
    sweep = _Sweep(loaded, base, source, answers, _one_number(metric))
    names, columns = _locate("all" if positions is None else positions, sweep.lengths)
    nodes = [[Node(site, layer)] for layer in range(loaded.n_layers) for _ in names]
    at = columns.T.expand(loaded.n_layers, -1, -1).flatten(0, 1)
    values = sweep.run(nodes, at).view(loaded.n_layers, len(names), -1)
    values = torch.where((columns >= 0).T, values, torch.nan)
    return Effects(values, ("layer", "position", "example"), sweep.base, sweep.source, names)


def patch_heads(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    *,
    site: SiteName = "head_z",
    answers: Answers | None = None,
    metric: Metric | None = None,
    positions: Positions | None = None,
) -> Effects:
    """Patch every head of every layer; axes `layer head example`, with positions `layer head position example`.

    Args:
        loaded: on plain Hugging Face.
        base: as for `patch_positions`.
        source: as for `patch_positions`.
        site: `head_z`, `pattern`, `q` or `rot_q` (query heads); `k`, `rot_k` or `v` (key/value heads, so that all query
            heads that share one are changed).
        answers: as for `patch_positions`.
        metric: as for `patch_positions`.
        positions: as for `patch_positions`; by default all positions of a prompt are patched together.
    """
    sweep = _Sweep(loaded, base, source, answers, _one_number(metric))
    shape = (loaded.n_layers, count_heads(loaded, site))
    heads = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    if positions is None:
        values = sweep.run([[Node(site, *head)] for head in heads]).view(*shape, -1)
        return Effects(values, ("layer", "head", "example"), sweep.base, sweep.source)
    names, columns = _locate(positions, sweep.lengths)
    at = columns.T.expand(len(heads), -1, -1).flatten(0, 1)
    values = sweep.run([[Node(site, *head)] for head in heads for _ in names], at).view(*shape, len(names), -1)
    values = torch.where((columns >= 0).T, values, torch.nan)
    return Effects(values, ("layer", "head", "position", "example"), sweep.base, sweep.source, names)


def patch_sets(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    sets: Sequence[Sequence[Node]],
    *,
    answers: Answers | None = None,
    metric: Metric | Literal["losses"] | None = None,
) -> Effects:
    """Patch all nodes of a set together, for each set; axes `set example`.

    Args:
        loaded: on plain Hugging Face.
        base: as for `patch_positions`.
        source: as for `patch_positions`.
        sets: nodes that are patched together.
        answers: as for `patch_positions`.
        metric: or "losses": the cross-entropy of every token but the first, in nats, as by `hooks.measure_losses`; the
            axes are then `set example position`, with NaN after a shorter prompt's end.
    """
    sweep = _Sweep(loaded, base, source, answers, metric)
    return Effects(sweep.run(sets), sweep.axes, sweep.base, sweep.source)


def ablate(
    loaded: LoadedModel,
    prompts: Prompts,
    sets: Sequence[Sequence[Node]] | None = None,
    *,
    how: Ablation = "mean",
    reference: Prompts | Captured | None = None,
    groups: Sequence[Hashable] | None = None,
    reference_groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    answers: Answers | None = None,
    metric: Metric | Literal["losses"] | None = None,
) -> Effects:
    """Take sets of nodes away; axes `set example`. Without sets each head alone, `layer head example`.

    Args:
        loaded: on plain Hugging Face.
        prompts: texts, or token ids.
        sets: nodes that are taken away together; by default each head's `head_z`.
        how: "zero"; "mean" over all tokens of the reference prompts; or "resample", the activations of another prompt
            of the same token length, drawn with `seed`.
        reference: by default the prompts themselves. For means of groups also what `hooks.capture` kept of prompts at
            all layers and positions, so that several calls need them once.
        groups: a name for each prompt, such as its template. The mean is then taken position by position over the
            reference prompts of the same name, as in Wang et al. (2023).
        reference_groups: the same for the reference prompts; by default reference prompt i has the name of prompt i.
        seed: of "resample".
        answers: as for `patch_positions`.
        metric: as for `patch_sets`.

    Raises:
        InputError: unknown kind, a prompt for which there is no other one of its length, groups or activations that do
            not fit.
    """
    if how not in get_args(Ablation):
        raise InputError(f"unknown ablation {how!r}: legal are {', '.join(get_args(Ablation))}")
    every_head = sets is None
    if sets is None:
        sets = [[Node("head_z", layer, head)] for layer in range(loaded.n_layers) for head in range(loaded.n_heads)]
    prompts = tokenize(loaded, prompts)
    if not isinstance(reference, Captured):
        reference = prompts if reference is None else tokenize(loaded, reference)
    elif groups is None:
        raise InputError("activations are given without groups: legal are prompts, or groups too")
    groups, reference_groups = (
        None if names is None else as_names(names, "groups") for names in (groups, reference_groups)
    )
    if groups is not None and how != "mean":
        raise InputError(f"groups are given for {how} ablation: legal is mean")
    if how == "resample":
        assert not isinstance(reference, Captured)  # they come with groups, and groups with means alone
        source = _others(prompts, reference, seed)
    else:
        source = _constants(loaded, reference, sets, how, groups, reference_groups)
    sweep = _Sweep(loaded, prompts, source, answers, metric)
    values, axes = sweep.run(sets), sweep.axes
    if every_head:
        values, axes = values.unflatten(0, (loaded.n_layers, loaded.n_heads)), ("layer", "head", *axes[1:])
    return Effects(values, axes, sweep.base, None)


def patch_paths(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    receivers: Sequence[Node] | Literal["logits"],
    *,
    senders: Sequence[Head] | None = None,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> Effects:
    """Path patching from every head to a set of receivers; axes `layer head example`, of some heads `sender example`.

    As Wang et al. (2023) do it: (1) on the base prompt the sender's `head_z` is that of the source, all other
    heads are frozen to what they are on the base prompt, MLPs and norms are recomputed, and what then reaches
    the receivers is written down; (2) the base prompt runs again with just that put into the receivers.

    Args:
        loaded: on plain Hugging Face.
        base: as for `patch_positions`.
        source: as for `patch_positions`.
        receivers: "logits", for the direct effect; or nodes at the sites `q`, `k`, `v`.
        senders: heads, each for itself; by default every one.
        answers: as for `patch_positions`.
        metric: as for `patch_positions`.
    """
    check_site(loaded, "head_z", 0)
    sweep = _Sweep(loaded, base, source, answers, _one_number(metric))
    values, axes = sweep.run_paths([receivers], senders)
    return Effects(values[0], axes[1:], sweep.base, sweep.source)


def patch_paths_to_each(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    receivers: Sequence[Sequence[Node]],
    *,
    senders: Sequence[Head] | None = None,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> Effects:
    """`patch_paths` to several sets of receivers, each for itself; the first axis is `set`.

    What the senders send is the same whoever receives it and is computed once.

    Args:
        loaded: on plain Hugging Face.
        base: as for `patch_positions`.
        source: as for `patch_positions`.
        receivers: sets of nodes at the sites `q`, `k`, `v`, at least one.
        senders: as for `patch_paths`.
        answers: as for `patch_positions`.
        metric: as for `patch_positions`.
    """
    check_site(loaded, "head_z", 0)
    if not is_row(receivers) or not receivers or not all(map(is_row, receivers)):
        raise InputError(f"receivers {str(receivers)[:60]}: legal are lists of nodes, at least one list")
    sweep = _Sweep(loaded, base, source, answers, _one_number(metric))
    values, axes = sweep.run_paths(receivers, senders)
    return Effects(values, axes, sweep.base, sweep.source)


def patch_edges(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    edges: Sequence[tuple[str, str]] | None = None,
    *,
    grouped: bool = True,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> EdgeEffects:
    """The exact effect of edges, each for itself; axes `edge example`.

    An edge's receiver reads the residual stream with the sender's output exchanged for that on the source prompt, and
    everything after it is computed again; no other part reads the exchange (edge patching, as in Hanna et al. 2024).
    Senders are the embedding, heads and MLPs; receivers queries, keys and values of each head, MLPs and the logits.
    Names are those of the Mechanistic Interpretability Benchmark, such as ("a3.h0", "a5.h1<q>"). Where a norm stands
    behind attention, a head sends what exchanging it alone changes there.

    Args:
        loaded: on plain Hugging Face.
        base: as for `patch_positions`.
        source: as for `patch_positions`.
        edges: as (sender, receiver); by default all, as `list_edges` names them.
        grouped: whether query heads that share keys and values share these inputs: "a5.g1<k>" is that of key/value
            head 1, where they don't, "a5.h1<k>" is that of query head 1 alone.
        answers: as for `patch_positions`.
        metric: as for `patch_positions`.

    Raises:
        InputError: as for `patch_positions`; an edge that the model does not have.
    """
    sweep, graph = _Sweep(loaded, base, source, answers, _one_number(metric)), make_graph(loaded, grouped=grouped)
    edges = check_edges(graph, edges)
    numbers = {edge: number for number, edge in enumerate(dict.fromkeys(edges))}  # an edge may be asked for twice
    values = sweep.run_edges(graph, graph.find(list(numbers)))[[numbers[edge] for edge in edges]]
    return EdgeEffects(values, ("edge", "example"), sweep.base, sweep.source, edges=tuple(edges))


def run_circuits(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    circuits: Sequence[Sequence[tuple[str, str]]],
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> Effects:
    """The metric where only the edges of a circuit carry what the base prompt gives; axes `circuit example`.

    All other edges carry what their sender gives on the source prompt. So a circuit of all edges is the model on the
    base prompt, one of none the model on the source prompt, and all edges but one is that one's `patch_edges`.

    Args:
        loaded: on plain Hugging Face, without norms behind attention.
        base: as for `patch_positions`.
        source: as for `patch_positions`.
        circuits: of edges as for `patch_edges`, of grouped inputs.
        answers: as for `patch_positions`.
        metric: as for `patch_positions`.

    Raises:
        InputError: as for `patch_edges`; a model with a norm behind attention, whose heads' outputs are no sum.
    """
    sweep, graph = _Sweep(loaded, base, source, answers, _one_number(metric)), make_graph(loaded)
    if any(layer.after_attention for layer in loaded.layout.layers):
        raise InputError(f"{loaded.config.model_type} has norms behind attention: legal are models without")
    if not is_row(circuits) or not circuits or not all(map(is_row, circuits)):
        raise InputError(f"circuits {str(circuits)[:60]}: legal are lists of edges, at least one list")
    found = [graph.find(edges) for edges in circuits]
    return Effects(sweep.run_circuits(graph, found), ("circuit", "example"), sweep.base, sweep.source)


def check_edges(graph: Graph, edges: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """The edges as a list, by default all of a graph.

    Raises:
        InputError: none, or one that is no pair of names, sender before receiver.
    """
    if edges is None:
        return graph.list_edges()
    if not is_row(edges) or not edges:
        raise InputError(f"edges {str(edges)[:60]}: legal are pairs of sender and receiver, at least one")
    graph.find(edges)
    return [(sender, receiver) for sender, receiver in edges]


def list_edges(loaded: LoadedModel, *, grouped: bool = True) -> list[tuple[str, str]]:
    """Every edge of a model, as (sender, receiver); arguments as for `patch_edges`."""
    return make_graph(loaded, grouped=grouped).list_edges()


def encode_answers(loaded: LoadedModel, answers: Answers) -> Int[Tensor, "example 2"]:
    """Token ids of (right, wrong) answers.

    Raises:
        InputError: an answer that is not a single token of this model, or that it does not have; two that are one.
    """

    def token(answer: str | int) -> int:
        if isinstance(answer, str):
            if loaded.tokenizer is None:
                raise InputError(f"answer {answer!r} can't be read without a tokenizer: legal are token ids")
            ids = loaded.encode_after(answer)
            if len(ids) != 1:
                raise InputError(f"answer {answer!r} is {len(ids)} tokens here: legal is a text of one token")
            return ids[0]
        number = as_whole(answer)
        if not 0 <= number < loaded.config.vocab_size:
            raise InputError(f"answer {answer} is no token: legal are 0 to {loaded.config.vocab_size - 1}")
        return number

    answers = as_list(answers)
    encoded = []
    for pair in map(as_list, answers if is_row(answers) else [answers]):
        if not is_row(pair) or len(pair) != 2:
            raise InputError(f"answers {pair!r}: legal is a right and a wrong one for each prompt")
        encoded.append([token(answer) for answer in pair])
        if encoded[-1][0] == encoded[-1][1]:
            raise InputError(f"answers {pair!r} are one token: legal are two")
    return torch.tensor(encoded)


# How it is done


class _Sweep:
    """The prompts and the metric of one call; gathers the metric of the unpatched runs as it goes."""

    def __init__(
        self,
        loaded: LoadedModel,
        base: Prompts,
        source: Prompts | _Constants,
        answers: Answers | None,
        metric: Metric | Literal["losses"] | None,
    ) -> None:
        if loaded.backend != "huggingface":
            raise InputError(f"backend {loaded.backend!r} can't be patched here: legal is 'huggingface'")
        if (answers is None) == (metric is None):
            raise InputError("the metric is missing or given twice: legal is either answers or metric")
        if isinstance(metric, str) and metric != "losses":
            raise InputError(f"unknown metric {metric!r}: legal are 'losses' and functions of the last logits")
        self.loaded, self.metric, self.losses = loaded, metric, metric == "losses"
        if backends.is_tapped(loaded):
            raise InputError("edits are in place: legal is patching outside of hooks.intervene")
        self.layers = list_layers(loaded.model, loaded.layout)
        self.final_norm = get_final_norm(loaded.model, loaded.layout)
        self.rows = tokenize(loaded, base)
        self.lengths = torch.tensor([len(row) for row in self.rows])
        self.constants = source if isinstance(source, _Constants) else None
        self.source_rows = self.rows if isinstance(source, _Constants) else tokenize(loaded, source)
        _check_pairs(self.rows, self.source_rows)
        self.answers = None if answers is None else encode_answers(loaded, answers).to(loaded.device)
        if self.answers is not None and len(self.answers) != len(self.rows):
            raise InputError(f"{len(self.answers)} answers for {len(self.rows)} prompts: legal is a pair for each")
        if self.constants is not None and len(self.constants.group) not in (1, len(self.rows)):
            raise InputError(f"{len(self.constants.group)} groups for {len(self.rows)} prompts: legal is one for each")
        self.axes = ("set", "example", "position") if self.losses else ("set", "example")
        self.shape = (len(self.rows), int(self.lengths.max()) - 1) if self.losses else (len(self.rows),)
        self.base, self.source = torch.full((2, *self.shape), torch.nan)

    def run(self, sets: Sequence[Sequence[Node]], at: Int[Tensor, "patch example"] | None = None) -> Tensor:
        """The metric of each patch, `patch example`; `at` gives all nodes of a patch a position in each example."""
        sets = _check_nodes(self.loaded, sets, int(self.lengths.min()))
        sets = [[_as_resid_pre(node) for node in nodes] for nodes in sets]
        keys: set[Key] = {(node.site, node.layer) for nodes in sets for node in nodes}
        starts = {node.layer for nodes in sets for node in nodes}
        values = torch.empty((len(sets), *self.shape))
        for part in self._parts(starts, keys):
            columns = [None] * len(sets) if at is None else at[:, part.examples].to(self.loaded.device)
            patches = [_patch(part, *patch) for patch in zip(range(len(sets)), sets, columns, strict=True)]
            self._fill(values, part, [patch for patch in patches if patch is not None])
        return values

    def run_paths(
        self, receivers: Sequence[Sequence[Node] | Literal["logits"]], senders: Sequence[Head] | None
    ) -> tuple[Tensor, tuple[str, ...]]:
        """The metric of path patching from heads to each set of receivers, and its axes."""
        every = product(range(self.loaded.n_layers), range(self.loaded.n_heads))
        chosen = list(every) if senders is None else _check_senders(self.loaded, senders)
        in_order = sorted(set(chosen))
        values = self._run_paths(receivers, in_order)[:, [in_order.index(head) for head in chosen]]
        if senders is not None:
            return values, ("set", "sender", "example")
        return values.unflatten(1, (self.loaded.n_layers, -1)), ("set", "layer", "head", "example")

    def _run_paths(
        self, receivers: Sequence[Sequence[Node] | Literal["logits"]], senders: Sequence[Head]
    ) -> Float[Tensor, "set sender example"]:
        sets = [_check_receivers(self.loaded, some, int(self.lengths.min())) for some in receivers]
        nodes = [node for some in sets for node in some]
        n_layers = self.loaded.n_layers
        values = torch.empty((len(sets) * len(senders), len(self.rows)))
        starts = {node.layer for node in nodes}
        last = max((node.layer for node in nodes), default=n_layers)
        frozen: set[Key] = {(site, layer) for site in ("resid_pre", "head_z") for layer in range(last)}
        for part in self._parts(starts, {("head_z", layer) for layer in range(last)}, frozen):
            if nodes:
                self._fill(values, part, self._through_receivers(part, sets, senders))
            else:
                *_, (_, state) = run_senders(self.loaded, self.layers, part, slice(-1, None), n_layers, senders)
                values[:, part.examples] = self.read(state[:, :, 0], part)
        return values.view(len(sets), len(senders), -1)

    def run_edges(self, graph: Graph, edges: Sequence[tuple[int, Receiver]]) -> Float[Tensor, "edge example"]:
        """The metric where each edge alone sends what it does on the source prompt."""
        values = torch.empty((len(edges), len(self.rows)))
        for part in self._parts_of_graph(graph):
            self._fill(values, part, ())  # what is not run has no effect
            if part.first == part.length:
                continue
            waiting: list[Patch] = []
            for patches in make_patches(self.loaded, self.layers, part, graph, edges):
                waiting += patches
                if len(waiting) * len(part.examples) * (part.length - part.first) > TOKENS_AT_ONCE:
                    self._put(values, part, waiting)
                    waiting = []
            self._put(values, part, waiting)
        return values

    def run_circuits(
        self, graph: Graph, circuits: Sequence[Sequence[tuple[int, Receiver]]]
    ) -> Float[Tensor, "circuit example"]:
        """The metric of each circuit."""
        values = torch.empty((len(circuits), len(self.rows)))
        for part in self._parts_of_graph(graph):
            if part.first == part.length:  # whoever is heard writes the same
                values[:, part.examples] = self.base[part.examples]
                continue
            ends = [run_circuit(self.loaded, self.layers, part, graph, edges) for edges in circuits]
            values[:, part.examples] = self.read(torch.stack(ends), part)
        return values

    def _parts_of_graph(self, graph: Graph) -> Iterator[Part]:
        """Parts that hold what all senders write and receivers read, of so few prompts that it can be kept at once."""
        layers = range(self.loaded.n_layers)
        written: set[Key] = {(site, layer) for site in ("resid_pre", "head_z", "mlp_out") for layer in layers}
        return self._parts({0}, written, written, n_tokens=TOKENS_AT_ONCE // len(graph.senders))

    def read(self, final: Float[Tensor, "patch example d_model"], part: Part) -> Float[Tensor, "patch example"]:
        """The metric, from the residual stream that leaves the last layer at the last position."""
        model = self.loaded.model
        normed = self.final_norm(final)
        if self.answers is not None:
            embedding, answers = model.get_output_embeddings(), self.answers[part.examples]
            logits = torch.einsum("pnd,nad->pna", normed, embedding.weight[answers])
            if embedding.bias is not None:
                logits = logits + embedding.bias[answers]
            logits = scale_logits(model, self.loaded.layout.logit_scale, logits).float().cpu()
            return logits[..., 0] - logits[..., 1]
        assert callable(self.metric)
        found = [
            torch.as_tensor(self.metric(unembed(model, self.loaded.layout, one).float(), part.examples))
            for one in normed
        ]
        for values in found:
            if values.shape != part.examples.shape:
                raise InputError(f"the metric gave shape {list(values.shape)}: legal is {list(part.examples.shape)}")
        return torch.stack(found).float().cpu()

    def read_losses(
        self, final: Float[Tensor, "example read d_model"], rows: Sequence[Sequence[int]]
    ) -> Float[Tensor, "example read-1"]:
        """The loss of each token after the first that is read, from the residual stream that leaves the last layer."""
        n_read = final.shape[1]
        tokens = torch.tensor([row[-n_read:] for row in rows], device=final.device)
        return backends.compute_token_losses(self.loaded, self.final_norm(final[:, :-1]), tokens[:, 1:]).cpu()

    def _fill(self, values: Float[Tensor, "patch example *position"], part: Part, patches: Sequence[Patch]) -> None:
        values[:, part.examples] = self.base[part.examples]  # a patch that is not run has no effect
        self._put(values, part, patches)

    def _put(self, values: Float[Tensor, "patch example *position"], part: Part, patches: Sequence[Patch]) -> None:
        rows = [self.rows[i] for i in part.examples.tolist()]
        for batch in cut(sorted(patches, key=lambda patch: patch.layer), part):
            final = propagate(self.loaded, self.layers, part, batch, only_last=not self.losses)
            if self.losses:
                for patch, one in zip(batch, final, strict=True):
                    read = slice(part.length - one.shape[1], part.length - 1)
                    values[patch.number, part.examples, read] = self.read_losses(one, rows)
                continue
            numbers = torch.tensor([patch.number for patch in batch])
            values[numbers[:, None], part.examples] = self.read(torch.stack(final)[:, :, -1], part)

    def _parts(
        self, starts: set[int], source: set[Key], base: Set[Key] = frozenset(), n_tokens: int | None = None
    ) -> Iterator[Part]:
        """Run the prompts unpatched, part by part of about so many tokens; `starts` are the layers in which patches
        begin."""
        from tqdm import tqdm

        n_layers = self.loaded.n_layers
        end: Key = ("resid_pre", n_layers)
        wanted: set[Key] = {*base, end, *(("resid_pre", layer) for layer in starts)}
        first = min(starts, default=n_layers)
        differ = torch.tensor([_first_difference(*pair) for pair in zip(self.rows, self.source_rows, strict=True)])
        if self.constants is not None:
            differ = torch.zeros_like(differ)
        order = torch.tensor(sorted(range(len(self.rows)), key=lambda i: (len(self.rows[i]), int(differ[i]))))
        parts = [
            examples
            for length in self.lengths.unique().tolist()
            for examples in order[self.lengths[order] == length].split(
                max(1, (n_tokens or get_step_size(self.loaded.model.device)) // length)
            )
        ]
        for examples in tqdm(parts, desc="patch", delay=2, leave=False, file=sys.stderr):
            chosen, n_rows = examples.tolist(), len(examples)
            rows = [self.rows[i] for i in chosen]
            if self.constants is None:  # base and source go through together
                both, met, calls = _record(
                    self.loaded, rows + [self.source_rows[i] for i in chosen], wanted | source, first
                )
                ran = {key: kept[:n_rows] for key, kept in both.items()}
                origin = {key: kept[n_rows:] for key, kept in both.items()}
            else:
                ran, met, calls = _record(self.loaded, rows, wanted, first)
                origin = self.constants.of(examples, len(rows[0]))
            met = {layer: (key[:n_rows], value[:n_rows]) for layer, (key, value) in met.items()}
            part = Part(examples, len(rows[0]), int(differ[examples].min()), ran, origin, met, calls)
            for found, run, tokens in ((self.base, ran, self.rows), (self.source, origin, self.source_rows)):
                if end in run and self.losses:
                    found[examples, : part.length - 1] = self.read_losses(run[end], [tokens[i] for i in chosen])
                elif end in run:
                    found[examples] = self.read(run[end][None, :, -1], part)[0]
            yield part

    def _through_receivers(
        self, part: Part, receivers: Sequence[Sequence[Node]], senders: Sequence[Head]
    ) -> list[Patch]:
        """What reaches each set of receivers from each sender, as patches of the receivers."""
        every = [(node, at, of) for of, some in enumerate(receivers) for node, at in _place(some, part)]
        if not every:
            return []
        first = min(part.first if position is None else position for _, position, _ in every)
        end = max(part.length if position is None else position + 1 for _, position, _ in every)
        last = max(node.layer for node, *_ in every)
        changes: dict[int, list[Change]] = defaultdict(list)
        for number, state in run_senders(self.loaded, self.layers, part, slice(first, end), last, senders):
            here = [one for one in every if one[0].layer == number]
            if not here or not len(state):
                continue
            sites: list[SiteName] = sorted({node.site for node, *_ in here})
            found = read_block(self.loaded, number, self.layers[number], part.calls[number], state, sites, first)
            for node, position, of in here:
                values = found[node.site]
                values = values if node.head is None else values[..., node.head, :]
                at = first if position is None else position
                written = values[:, :, at - first : None if position is None else at - first + 1]
                for sender, one in enumerate(written, of * len(senders)):
                    changes[sender].append(Change(node.site, number, node.head, one, at))
        return [
            Patch(number, min(c.layer for c in made), min(map(_first_written, made)), tuple(made))
            for number, made in changes.items()
        ]


def _record(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], keys: Set[Key], first: int
) -> tuple[Kept, dict[int, tuple[Tensor, Tensor]], list[BlockCall]]:
    """Run equally long prompts; keep sites whole, on the model's device, keys and values from a layer on, and calls."""
    kept: dict[Key, Tensor] = {}
    met: dict[int, tuple[Tensor, Tensor]] = {}

    def tap(site: SiteName, layer: int) -> tuple[SiteName, int, backends.Tap]:
        def keep(tensor: Tensor) -> None:
            if not tensor.isfinite().all():
                raise InputError(
                    f"{site} of layer {layer} holds NaN or infinity: legal are prompts whose activations are finite"
                )
            kept[site, layer] = tensor.clone()  # some models go on to add to it in place

        return (site, layer, keep) if layer < loaded.n_layers else ("resid_post", layer - 1, keep)

    def attend(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        if call.layer >= first:
            met[call.layer] = call.key.transpose(1, 2), call.value.transpose(1, 2)
        return call.run()

    with (
        backends.tap(loaded, [tap(*key) for key in sorted(keys)]),
        redirect(loaded.model, attend),
        recording_block_calls(loaded.model, loaded.layout.blocks) as calls,
    ):
        backends.forward(
            loaded, backends.make_batch(rows, loaded.device), stop_after=max(layer for _, layer in keys) - 1
        )
    return kept, met, calls


def _patch(part: Part, number: int, nodes: Sequence[Node], at: Int[Tensor, " example"] | None) -> Patch | None:
    """The changes of a patch; None where it can have no effect."""
    changes = [change for node in nodes if (change := _change(part, node, at)) is not None]
    if not changes or (len(changes) == 1 and _changes_nothing(part, changes[0])):
        return None
    start = min(_first_written(change) for change in changes)
    return Patch(number, min(change.layer for change in changes), start, tuple(changes))


def _change(part: Part, node: Node, at: Int[Tensor, " example"] | None) -> Change | None:
    values = part.source[node.site, node.layer]
    if node.head is not None:
        values = values[:, :, node.head]
    first, end, position = part.first, part.length, node.position
    if at is not None:
        effective = at >= part.first
        if not effective.any():
            return None
        if (at != at[0]).any():
            values = values[torch.arange(len(at), device=at.device), at.clamp(min=0)][:, None]
            return Change(node.site, node.layer, node.head, values, torch.where(effective, at, -1))
        position = int(at[0])
    if position is not None:
        position %= part.length
        first, end = max(first, position), position + 1
    return Change(node.site, node.layer, node.head, values[:, first:end], first) if first < end else None


def _changes_nothing(part: Part, change: Change) -> bool:
    """Whether just these numbers stand there already, as at the start of layer 0 where the tokens are equal."""
    before = part.base.get((change.site, change.layer))
    if before is None or change.head is not None or not isinstance(change.first, int):
        return False
    return torch.equal(before[:, change.first : change.first + change.values.shape[1]], change.values)


def _place(nodes: Sequence[Node], part: Part) -> list[tuple[Node, int | None]]:
    """The nodes that a patch can change, with their positions counted from the first token."""
    placed = [(node, None if node.position is None else node.position % part.length) for node in nodes]
    return [(node, position) for node, position in placed if position is None or position >= part.first]


def _first_written(change: Change) -> int:
    first = change.first
    return first if isinstance(first, int) else int(first[first >= 0].min())


# Small things


def _locate(positions: Positions, lengths: Int[Tensor, " example"]) -> tuple[tuple[str, ...], Int[Tensor, "example p"]]:
    if isinstance(positions, str) and positions == "mean":
        raise InputError("positions 'mean' can't be patched: legal are all, last, numbers, or several by name")
    return locate_positions(positions, lengths)


def _as_resid_pre(node: Node) -> Node:
    """The end of one layer is the beginning of the next; that of the last counts as one layer more."""
    return replace(node, site="resid_pre", layer=node.layer + 1) if node.site == "resid_post" else node


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def _one_number(metric: Metric | None) -> Metric | None:
    if isinstance(metric, str):
        raise InputError(f"metric {metric!r} is no function: legal is one of the last logits, here")
    return metric


def _check_pairs(base: Sequence[Sequence[int]], source: Sequence[Sequence[int]]) -> None:
    if len(base) != len(source):
        raise InputError(f"{len(base)} base and {len(source)} source prompts: legal is one source for each base")
    for i, (one, other) in enumerate(zip(base, source, strict=True)):
        if len(one) != len(other):
            raise InputError(
                f"prompt {i} has {len(one)} tokens as base and {len(other)} as source: legal are equally long pairs"
            )


def _check_nodes(loaded: LoadedModel, sets: Sequence[Sequence[Node]], shortest: int) -> list[list[Node]]:
    """The sets, with plain numbers."""
    if not is_row(sets) or not all(map(is_row, sets)):
        raise InputError(f"sets {str(sets)[:80]}: legal are lists of nodes, one list for each set")
    return [[_check_node(loaded, node, shortest) for node in nodes] for nodes in sets]


def _check_node(loaded: LoadedModel, node: Node, shortest: int) -> Node:
    if not isinstance(node, Node):
        raise InputError(f"{node!r} is no node: legal are patching.Node(site, layer, …)")
    head, position = (None if number is None else as_whole(number) for number in (node.head, node.position))
    check_site(loaded, node.site, node.layer, () if head is None else (head,))
    if position is not None and not -shortest <= position < shortest:
        raise InputError(f"position {position} is out of range: legal are {-shortest} to {shortest - 1}")
    return Node(node.site, as_whole(node.layer), head, position)


def _check_receivers(loaded: LoadedModel, receivers: Sequence[Node] | Literal["logits"], shortest: int) -> list[Node]:
    if receivers == "logits":
        return []
    if not is_row(receivers) or not receivers:
        raise InputError(f"receivers {receivers!r} are none: legal are 'logits' or nodes at the sites q, k, v")
    (nodes,) = _check_nodes(loaded, [receivers], shortest)
    for node in nodes:
        if node.site not in ("q", "k", "v"):
            raise InputError(f"receiver at {node.site!r}: legal are the sites q, k, v")
    return nodes


def _check_senders(loaded: LoadedModel, senders: Sequence[Head]) -> list[Head]:
    given = as_list(senders)
    heads = [tuple(as_wholes(head)) for head in given] if is_row(given) else []
    if not heads or not all(len(head) == 2 for head in heads):
        raise InputError(f"senders {str(senders)[:60]}: legal are heads as (layer, head), at least one")
    for layer, head in heads:
        if not 0 <= layer < loaded.n_layers or not 0 <= head < loaded.n_heads:
            legal = f"layers 0 to {loaded.n_layers - 1} and heads 0 to {loaded.n_heads - 1}"
            raise InputError(f"sender ({layer}, {head}): legal are {legal}")
    return [(layer, head) for layer, head in heads]


def _others(rows: Sequence[Sequence[int]], reference: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    """For each prompt a random other one of its token length."""
    generator = make_generator(seed)
    chosen = []
    for i, row in enumerate(rows):
        others = [other for other in reference if len(other) == len(row) and list(other) != list(row)]
        if not others:
            raise InputError(
                f"no other prompt has the {len(row)} tokens of prompt {i}: legal are at least two of a length"
            )
        chosen.append(list(others[generator.integers(len(others))]))
    return chosen


@dataclass(frozen=True)
class _Constants:
    """What an ablation puts in place of a site, for each group of prompts."""

    values: Kept
    """Of each group instead of each example; one position where all are alike."""
    group: Int[Tensor, " example"]
    """One entry where all prompts are one group."""

    def of(self, examples: Int[Tensor, " row"], length: int) -> Kept:
        group = self.group[examples] if len(self.group) > 1 else self.group
        return {
            key: one[group, :length].expand(len(examples), length, *one.shape[2:]) for key, one in self.values.items()
        }


def _constants(
    loaded: LoadedModel,
    reference: Prompts | Captured,
    sets: Sequence[Sequence[Node]],
    how: Ablation,
    groups: Sequence[Hashable] | None,
    reference_groups: Sequence[Hashable] | None,
) -> _Constants:
    """For each site and layer what takes its place: zeros, the mean over all tokens, or that of a group's position."""
    keys: set[Key] = {(node.site, node.layer) for nodes in sets for node in nodes}
    if any(site == "pattern" for site, _ in keys):
        raise InputError("a pattern has no mean over tokens and is no pattern when zero: legal is resample")
    sites: list[SiteName] = sorted({site for site, _ in keys})
    if isinstance(reference, Captured):
        found = reference
        whole = found.layers == tuple(range(loaded.n_layers)) and len(found.positions) == int(found.lengths.max())
        if not set(sites) <= set(found.values) or not whole:
            raise InputError(
                f"activations of {list(found.values)} at {len(found.layers)} layers and {len(found.positions)} "
                f"positions: legal are those of {sites} at all"
            )
    else:
        depth = max((layer for _, layer in keys), default=0) + 1
        prompts = reference if how == "mean" else reference[:1]  # of which only the shapes are needed
        positions = "mean" if groups is None else "all"
        found = hooks.capture(loaded, prompts, sites or "resid_pre", layers=range(depth), positions=positions)
    if groups is None:
        group, members = torch.zeros(1, dtype=torch.long), {}
    else:
        members = _members(groups if reference_groups is None else reference_groups, found.lengths)
        if lacking := sorted(map(str, set(groups) - set(members))):
            raise InputError(f"group {lacking[0]!r} has no reference prompt: legal is at least one for each group")
        group = torch.tensor([list(members).index(name) for name in groups])
    constants = {}
    for site, layer in keys:
        values = found[site][:, layer]
        if groups is None:
            means = (values.movedim(0, -1) @ (found.lengths / found.lengths.sum()))[None]
        else:
            means = torch.stack([values[some].mean(0) for some in members.values()])
        means = means.to(loaded.device, loaded.model.dtype)
        node = _as_resid_pre(Node(site, layer))
        constants[node.site, node.layer] = means if how == "mean" else means * 0
    return _Constants(constants, group)


def _members(groups: Sequence[Hashable], lengths: Int[Tensor, " example"]) -> dict[Hashable, list[int]]:
    """The reference prompts of each group."""
    if len(groups) != len(lengths):
        raise InputError(f"{len(groups)} groups for {len(lengths)} reference prompts: legal is one for each")
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, name in enumerate(groups):
        members[name].append(i)
    for name, some in members.items():
        if len(set(lengths[some].tolist())) > 1:
            raise InputError(f"the prompts of group {name!r} differ in token length: legal is one length in a group")
    return dict(members)
