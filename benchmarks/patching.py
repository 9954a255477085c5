"""Patching sweeps beside TransformerLens' and beside the floor, on IOI prompts of 15 tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
import torch
from transformer_lens import patching as peers

from benchmarks.pairs import Row, paired, timed
from helpers import hooks, models, patching
from helpers.hooks import Edit
from helpers.patching import Node
from studies.ioi.templates import IOI, Corruption, draw_ioi

TEMPLATE = "When{A} and{B} went to the big{PLACE},{S} gave a drink to"
SEED = 0


class Floor:
    """What must be computed at the least, times what it costs in a plain forward pass here and now.

    The cost is that of a forward pass of as many tokens as the sweep has in a layer, on average, up to 1024:
    a product with few rows costs more for each.
    """

    def __init__(self, loaded: models.LoadedModel, length: int) -> None:
        self.base, self.n_layers, self.length = loaded.model.base_model, loaded.n_layers, length
        self.d_model = loaded.config.hidden_size

    def layer_tokens(self, number: int) -> float:
        """Seconds for so many tokens through one layer each."""
        n_rows = max(1, min(1024, number // self.n_layers) // self.length)
        tokens = torch.randint(1000, 2000, (n_rows, self.length))
        with torch.inference_mode():
            seconds = timed(lambda: [self.base(tokens, use_cache=False) for _ in range(3)]) / 3
        return seconds * number / (self.n_layers * tokens.numel())

    def mlp_tokens(self, number: int) -> float:
        """Seconds for so many tokens through one MLP each."""
        states = torch.randn(max(1, min(1024, number // self.n_layers)), self.d_model)
        with torch.inference_mode():
            seconds = timed(lambda: [layer.mlp(states) for layer in self.base.layers])
        return seconds * number / (self.n_layers * len(states))


def first_difference(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> int:
    return min(
        next(i for i, (a, b) in enumerate(zip(*rows, strict=True)) if a != b) for rows in zip(one, other, strict=True)
    )


def rows(quick: bool, name: str = models.DEFAULT_MODEL) -> Iterator[Row]:
    """The table's lines; `quick` takes smaller samples of the peers and one pair each. Of a larger model the first."""
    loaded, bridge = models.load(name), models.load(name, backend="transformer_lens")
    data = draw_ioi(loaded, n_prompts=32, seed=SEED, templates=[TEMPLATE])
    n_layers, length = loaded.n_layers, len(data.prompts[0])
    later = sum(n_layers - layer for layer in range(n_layers))
    floor = Floor(loaded, length)
    for kind, targets in (("S2_is_IO", (40, 20, 6)), ("p_ABC", (None, 5, 2.5))):
        start = first_difference(data.prompts, data.corrupted(kind))
        suffixes = sum(length - position for position in range(start, length))
        for n_prompts, target in zip((1, 32), targets, strict=False):
            if target is not None:
                yield _against_transformer_lens(
                    f"residual patching, {n_layers} layers × {length} positions, {n_prompts} prompts, {kind}",
                    patching.patch_positions,
                    _Peer(bridge, data.first(n_prompts), kind, "resid_pre"),
                    loaded,
                    sample=10 if quick else 30 if n_prompts == 1 else 15,
                    at_least=target,
                    n_pairs=1 if quick else 5 if n_prompts == 1 else 3,
                    floor=lambda n=n_prompts, s=suffixes: floor.layer_tokens(n * s * later),
                )
            if name != models.DEFAULT_MODEL:
                return
        yield _against_transformer_lens(
            f"head patching, {n_layers * loaded.n_heads} heads, 32 prompts, {kind}",
            patching.patch_heads,
            _Peer(bridge, data, kind, "z"),
            loaded,
            sample=8 if quick else 15,
            at_least=targets[-1],
            n_pairs=1 if quick else 3,
            floor=lambda s=length - start: floor.layer_tokens(32 * s * loaded.n_heads * later),
        )
    yield _path_patching(loaded, data, floor, n_pairs=1 if quick else 3, sample=2 if quick else 5)
    for kind, target in (("S2_is_IO", 15), ("p_ABC", 6)):
        yield _edges(loaded, data.first(1), kind, floor, at_least=target, share=0.02 if quick else 1.0)


class _Peer:
    """TransformerLens' sweep as its documentation calls it, on a random sample of its patches."""

    def __init__(self, bridge: models.LoadedModel, data: IOI, kind: str, activation: str) -> None:
        self.model, self.activation, self.data, self.kind = bridge.model, activation, data, kind
        self.clean, self.corrupted = torch.tensor(data.prompts), torch.tensor(data.corrupted(kind))
        self.answers = torch.tensor(data.answers)
        self.width = self.clean.shape[1] if activation == "resid_pre" else bridge.n_heads
        self.n_patches = bridge.n_layers * self.width

    def cache(self) -> None:
        with torch.inference_mode():
            _, self.clean_cache = self.model.run_with_cache(self.clean, prepend_bos=False)

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        chosen = logits[:, -1].gather(1, self.answers)
        return (chosen[:, 0] - chosen[:, 1]).mean()

    def sweep(self, sample: pd.DataFrame) -> torch.Tensor:
        setter = {"resid_pre": peers.layer_pos_patch_setter, "z": peers.layer_head_vector_patch_setter}[self.activation]
        options = {"patch_setter": setter, "activation_name": self.activation, "index_df": sample}
        with torch.inference_mode():
            return peers.generic_activation_patch(self.model, self.corrupted, self.clean_cache, self.metric, **options)

    def sample(self, sample: int) -> pd.DataFrame:
        chosen = sorted(random.Random(SEED).sample(range(self.n_patches), sample))
        columns = ["layer", "pos" if self.activation == "resid_pre" else "head"]
        return pd.DataFrame([divmod(i, self.width) for i in chosen], columns=columns)


def _against_transformer_lens(
    work: str,
    sweep: Callable[..., patching.Effects],
    peer: _Peer,
    loaded: models.LoadedModel,
    *,
    sample: int,
    at_least: float,
    n_pairs: int,
    floor: Callable[[], float],
) -> Row:
    base, data = peer.data.corrupted(peer.kind), peer.data

    def ours() -> patching.Effects:
        return sweep(loaded, base, data.prompts, answers=data.answers)

    def unpatched() -> patching.Effects:
        return patching.patch_sets(loaded, base, data.prompts, [], answers=data.answers)

    chosen = peer.sample(sample)
    peer.cache()
    theirs = torch.as_tensor(peer.sweep(chosen)).flatten()
    mine = ours().values.mean(-1)[tuple(torch.tensor(chosen.to_numpy()).T)]
    difference = float((mine - theirs).abs().max())
    assert difference < 1e-3, f"{work}: the two differ by {difference}"
    name = "get_act_patch_resid_pre" if peer.activation == "resid_pre" else "get_act_patch_attn_head_out_all_pos"
    return paired(
        work,
        ours,
        lambda: peer.sweep(chosen),
        named=f"TransformerLens {name}",
        at_least=at_least,
        n_pairs=n_pairs,
        scale=peer.n_patches / sample,
        once=peer.cache,
        floor=floor,
        note=f"peer timed on {sample} of {peer.n_patches} patches; largest difference of a mean {difference:.0e}; the "
        f"two unpatched runs, {timed(unpatched):.2f} s of ours, are not in the floor",
    )


def _path_patching(loaded: models.LoadedModel, data: IOI, floor: Floor, *, n_pairs: int, sample: int) -> Row:
    """All heads into the queries of one set of receivers at the last position."""
    receivers = [Node("q", 18, 6, -1), Node("q", 20, 0, -1), Node("q", 20, 4, -1)]
    n_layers, n_heads, n_prompts = loaded.n_layers, loaded.n_heads, len(data.prompts)
    p_abc, answers = data.corrupted("p_ABC"), torch.tensor(data.answers)
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    chosen = sorted(random.Random(SEED).sample([head for head in heads if head[0] < 20], sample))
    frozen = hooks.capture(loaded, data.prompts, "head_z", positions="all")["head_z"]
    corrupted = hooks.capture(loaded, p_abc, "head_z", positions="all")["head_z"]

    def naive(sender: tuple[int, int]) -> torch.Tensor:
        number, head = sender
        edits = [Edit("head_z", layer, frozen[:, layer]) for layer in range(20)]
        edits.append(Edit("head_z", number, corrupted[:, number, :, head], head=head))
        with hooks.intervene(loaded, *edits):
            queries = hooks.capture(loaded, data.prompts, "q", layers=sorted({node.layer for node in receivers}))
        found = {node: queries["q"][:, queries.layers.index(node.layer), 0, node.head] for node in receivers}
        edits = [Edit("q", node.layer, value, head=node.head, position=-1) for node, value in found.items()]
        with hooks.intervene(loaded, *edits):
            logits = hooks.capture(loaded, data.prompts, "logits")["logits"][:, 0].gather(1, answers)
        return logits[:, 0] - logits[:, 1]

    def ours() -> patching.Effects:
        return patching.patch_paths(loaded, data.prompts, p_abc, receivers, answers=data.answers)

    def unpatched() -> patching.Effects:
        return patching.patch_sets(loaded, data.prompts, p_abc, [], answers=data.answers)

    found = ours().values
    difference = max(float((found[sender] - naive(sender)).abs().max()) for sender in chosen)
    assert difference < 1e-3, f"path patching differs from its naive form by {difference}"
    # Senders in layers 0 to 17 reach all receivers, those in 18 and 19 the last two. First the MLPs from the
    # sender to the last receiver, then all layers from the first receiver on; one position each.
    first_pass = n_prompts * n_heads * sum(20 - layer for layer in range(20))
    second_pass = n_prompts * n_heads * (18 * (n_layers - 18) + 2 * (n_layers - 20))
    return paired(
        f"path patching, {len(heads)} heads into the queries of {len(receivers)} at END, {n_prompts} prompts, p_ABC",
        ours,
        lambda: [naive(sender) for sender in chosen],
        named="the naive two passes, hooked",
        at_least=20,
        n_pairs=n_pairs,
        scale=len(heads) / sample,
        floor=lambda: floor.mlp_tokens(first_pass) + floor.layer_tokens(second_pass),
        note=f"peer timed on {sample} senders; largest difference of an effect {difference:.0e}; the two unpatched "
        f"runs, {timed(unpatched):.2f} s of ours, are not in the floor",
    )


def _edges(
    loaded: models.LoadedModel, data: IOI, kind: Corruption, floor: Floor, *, at_least: float, share: float
) -> Row:
    """Every edge on one prompt, or a random share of them; of the peer the pass after the receiver alone."""
    every, (answers,), source = patching.list_edges(loaded), data.answers, data.corrupted(kind)
    edges = random.Random(SEED).sample(every, round(share * len(every)))
    chosen = [edge for edge in edges if "<" in edge[1]][:30]
    queries = hooks.capture(loaded, data.prompts, ["q", "k", "v"], positions="all")

    def naive(edge: tuple[str, str]) -> torch.Tensor:
        layer, head, site = re.match(r"a(\d+)\.[gh](\d+)<(\w)>", edge[1]).groups()  # any value takes as long
        value = queries[site][:, int(layer), :, int(head)]
        with hooks.intervene(loaded, Edit(site, int(layer), value, head=int(head))):
            logits = hooks.capture(loaded, data.prompts, "logits")["logits"][0, 0]
        return logits[answers[0]] - logits[answers[1]]

    def ours() -> patching.Effects:
        return patching.patch_edges(loaded, data.prompts, source, edges, answers=data.answers)

    width = len(data.prompts[0]) - first_difference(data.prompts, source)
    after = [
        loaded.n_layers - (int(re.split(r"[am.]", other)[1]) if other != "logits" else loaded.n_layers)
        for _, other in edges
    ]
    return paired(
        f"exact edges, {len(edges)} of {len(every)}, one prompt, {kind}",
        ours,
        lambda: [naive(edge) for edge in chosen],
        named="one hooked forward pass an edge",
        at_least=at_least,
        n_pairs=1,
        scale=len(edges) / len(chosen),
        floor=lambda: floor.layer_tokens(width * sum(after)),
        note=f"peer timed on {len(chosen)} random edges, what arrives at the receiver given to it; that "
        "both agree is in tests/test_edges.py; the two unpatched runs are not in the floor",
    )
