"""Patching sweeps beside TransformerLens' and beside the floor, on IOI prompts of 15 tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from transformer_lens import patching as peers

from benchmarks.pairs import Row, paired, timed
from helpers import hooks, models, patching
from helpers.hooks import Edit
from helpers.patching import Node

NAMES = [" Mary", " John", " Tom", " James", " Anna", " Sarah", " David", " Paul", " Emma", " Peter"]
PLACES = [" store", " school", " park", " office"]
SEED = 0


@dataclass(frozen=True)
class Prompts:
    """Clean prompts, with the same prompts corrupted in two ways."""

    clean: list[list[int]]
    s2_swapped: list[list[int]]
    """The second subject is the indirect object, so that the answer changes sides."""
    p_abc: list[list[int]]
    """Three other names."""
    answers: list[tuple[str, str]]


def prompts(loaded: models.LoadedModel, n_prompts: int) -> Prompts:
    chooser = random.Random(SEED)

    def encode(first: str, second: str, subject: str, place: str) -> list[int]:
        return loaded.encode(f"When{first} and{second} went to the big{place},{subject} gave a drink to")

    made = Prompts([], [], [], [])
    for i in range(n_prompts):
        io, subject, *others = chooser.sample(NAMES, 5)
        pair = (io, subject) if i % 2 else (subject, io)
        place = chooser.choice(PLACES)
        made.clean.append(encode(*pair, subject, place))
        made.s2_swapped.append(encode(*pair, io, place))
        made.p_abc.append(encode(*others, place))
        made.answers.append((io, subject))
    lengths = {len(row) for rows in (made.clean, made.s2_swapped, made.p_abc) for row in rows}
    assert lengths == {15}, lengths
    return made


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


def rows(quick: bool) -> Iterator[Row]:
    """The table's lines; `quick` takes smaller samples of the peers and one pair each."""
    loaded, bridge = models.load(), models.load(backend="transformer_lens")
    data = prompts(loaded, 32)
    n_pairs = 1 if quick else 3
    n_layers, length = loaded.n_layers, 15
    later = sum(n_layers - layer for layer in range(n_layers))
    floor = Floor(loaded, length)
    for corruption, corrupted, targets in (
        ("S2 swapped", data.s2_swapped, (40, 20, 6)),
        ("p_ABC", data.p_abc, (None, 5, 2.5)),
    ):
        start = first_difference(data.clean, corrupted)
        suffixes = sum(length - position for position in range(start, length))
        for n_prompts, target in zip((1, 32), targets, strict=False):
            if target is not None:
                clean, base, answers = (part[:n_prompts] for part in (data.clean, corrupted, data.answers))
                yield _against_transformer_lens(
                    f"residual patching, {n_layers} layers × {length} positions, {n_prompts} prompts, {corruption}",
                    lambda c=clean, b=base, a=answers: patching.patch_positions(loaded, b, c, answers=a),
                    _Peer(bridge, clean, base, patching.encode_answers(loaded, answers), "resid_pre"),
                    unpatched=lambda c=clean, b=base, a=answers: patching.patch_sets(loaded, b, c, [], answers=a),
                    n_patches=n_layers * length,
                    sample=10 if quick else 30 if n_prompts == 1 else 15,
                    at_least=target,
                    n_pairs=1 if quick else 5 if n_prompts == 1 else 3,
                    floor=lambda n=n_prompts, s=suffixes: floor.layer_tokens(n * s * later),
                )
        yield _against_transformer_lens(
            f"head patching, {n_layers * loaded.n_heads} heads, 32 prompts, {corruption}",
            lambda b=corrupted: patching.patch_heads(loaded, b, data.clean, answers=data.answers),
            _Peer(bridge, data.clean, corrupted, patching.encode_answers(loaded, data.answers), "z"),
            unpatched=lambda b=corrupted: patching.patch_sets(loaded, b, data.clean, [], answers=data.answers),
            n_patches=n_layers * loaded.n_heads,
            sample=8 if quick else 15,
            at_least=targets[-1],
            n_pairs=n_pairs,
            floor=lambda s=length - start: floor.layer_tokens(32 * s * loaded.n_heads * later),
        )
    yield _path_patching(loaded, data, floor, n_pairs=n_pairs, sample=2 if quick else 5)


class _Peer:
    """TransformerLens' sweep as its documentation calls it, on a random sample of its patches."""

    def __init__(
        self,
        bridge: models.LoadedModel,
        clean: Sequence[Sequence[int]],
        corrupted: Sequence[Sequence[int]],
        answers: torch.Tensor,
        activation: str,
    ) -> None:
        self.model, self.activation = bridge.model, activation
        self.clean, self.corrupted, self.answers = torch.tensor(clean), torch.tensor(corrupted), answers
        self.n_heads = bridge.n_heads

    def cache(self) -> None:
        with torch.inference_mode():
            _, self.clean_cache = self.model.run_with_cache(self.clean, prepend_bos=False)

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        chosen = logits[:, -1].gather(1, self.answers)
        return (chosen[:, 0] - chosen[:, 1]).mean()

    def sweep(self, sample: pd.DataFrame) -> torch.Tensor:
        setter = {"resid_pre": peers.layer_pos_patch_setter, "z": peers.layer_head_vector_patch_setter}
        with torch.inference_mode():
            return peers.generic_activation_patch(
                self.model,
                self.corrupted,
                self.clean_cache,
                self.metric,
                patch_setter=setter[self.activation],
                activation_name=self.activation,
                index_df=sample,
            )

    def sample(self, n_patches: int, sample: int) -> pd.DataFrame:
        width = self.clean.shape[1] if self.activation == "resid_pre" else self.n_heads
        column = "pos" if self.activation == "resid_pre" else "head"
        chosen = sorted(random.Random(SEED).sample(range(n_patches), sample))
        return pd.DataFrame([divmod(i, width) for i in chosen], columns=["layer", column])


def _against_transformer_lens(
    work: str,
    ours: Callable[[], patching.Effects],
    peer: _Peer,
    *,
    unpatched: Callable[[], patching.Effects],
    n_patches: int,
    sample: int,
    at_least: float,
    n_pairs: int,
    floor: Callable[[], float],
) -> Row:
    chosen = peer.sample(n_patches, sample)
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
        scale=n_patches / sample,
        once=peer.cache,
        floor=floor,
        note=f"peer timed on {sample} of {n_patches} patches; largest difference of a mean {difference:.0e}; the two "
        f"unpatched runs, {timed(unpatched):.2f} s of ours, are not in the floor",
    )


def _path_patching(loaded: models.LoadedModel, data: Prompts, floor: Floor, *, n_pairs: int, sample: int) -> Row:
    """All heads into the queries of one set of receivers at the last position."""
    receivers = [Node("q", 18, 6, -1), Node("q", 20, 0, -1), Node("q", 20, 4, -1)]
    n_layers, n_heads, n_prompts = loaded.n_layers, loaded.n_heads, len(data.clean)
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    chosen = sorted(random.Random(SEED).sample([head for head in heads if head[0] < 20], sample))
    frozen = hooks.capture(loaded, data.clean, "head_z", positions="all")["head_z"]
    corrupted = hooks.capture(loaded, data.p_abc, "head_z", positions="all")["head_z"]
    answers = patching.encode_answers(loaded, data.answers)

    def naive(sender: tuple[int, int]) -> torch.Tensor:
        number, head = sender
        edits = [Edit("head_z", layer, frozen[:, layer]) for layer in range(20)]
        edits.append(Edit("head_z", number, corrupted[:, number, :, head], head=head))
        with hooks.intervene(loaded, *edits):
            queries = hooks.capture(loaded, data.clean, "q", layers=sorted({node.layer for node in receivers}))
        edits = [
            Edit(
                "q",
                node.layer,
                queries["q"][:, queries.layers.index(node.layer), 0, node.head],
                "replace",
                node.head,
                -1,
            )
            for node in receivers
        ]
        with hooks.intervene(loaded, *edits):
            logits = hooks.capture(loaded, data.clean, "logits")["logits"][:, 0].gather(1, answers)
        return logits[:, 0] - logits[:, 1]

    def ours() -> patching.Effects:
        return patching.patch_paths(loaded, data.clean, data.p_abc, receivers, answers=data.answers)

    def unpatched() -> patching.Effects:
        return patching.patch_sets(loaded, data.clean, data.p_abc, [], answers=data.answers)

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
