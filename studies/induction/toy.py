"""Attention-only transformers small enough to be trained in a chapter, on sequences that repeat themselves.

The model is that of Elhage et al. (2021): token and position embeddings, layers of attention heads that read the
residual stream and add to it, an unembedding; no MLPs, no norms, no biases. So every head is two matrices, what it
attends to (query-key) and what it moves (value-output), and how two heads compose can be read off their products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from helpers import InputError

BATCH = 32
LEARNING_RATE = 3e-3
WARM_UP = 50
"""Steps until the learning rate is reached."""
LEAST_LEARNED = 0.1
"""Nats; a model that gains less has learned nothing whose course could be told."""
HELD_OUT = 256
"""Sequences that a model is measured on and never trained on."""
Input = Literal["q", "k", "v"]
INPUTS: tuple[Input, ...] = get_args(Input)
KINDS: dict[str, dict[str, Any]] = {
    "one layer": {"n_layers": 1},
    "two layers": {"n_layers": 2},
    "one layer, smeared keys": {"n_layers": 1, "smeared": True},
}
"""The models that are compared, as arguments of `train`."""


@dataclass(frozen=True)
class Repeats:
    """Sequences that begin with a few other tokens and then repeat one segment until they end."""

    tokens: Int[Tensor, "sequence position"]
    period: Int[Tensor, " sequence"]
    """The length of the segment: another one in each sequence, so that no fixed distance leads to the copy."""
    repeated: Bool[Tensor, "sequence position"]
    """Where the token has occurred before. The token after such a position can be known, none before it."""


def draw_repeats(n_sequences: int, *, vocabulary_size: int, length: int, generator: torch.Generator) -> Repeats:
    """Draw random sequences; offset and length of the segment vary, and no token occurs twice before it repeats.

    Raises:
        InputError: too few tokens for that length.
    """
    if length < 16 or vocabulary_size < 3 * length // 4:
        raise InputError(
            f"{vocabulary_size} tokens and sequences of {length}: legal are 16 or more, of at least three quarters as "
            "many different tokens"
        )
    offset = torch.randint(0, length // 4, (n_sequences, 1), generator=generator)
    period = torch.randint(length // 5, length // 2, (n_sequences, 1), generator=generator)
    different = torch.rand(n_sequences, vocabulary_size, generator=generator).argsort(1)
    place = torch.arange(length).expand(n_sequences, -1)
    chosen = torch.where(place < offset, length // 2 + place, (place - offset) % period)
    return Repeats(different.gather(1, chosen), period[:, 0], place - offset >= period)


class AttentionOnly(nn.Module):
    """A transformer of attention heads alone; weights have the axes `layer head …`."""

    def __init__(
        self,
        n_layers: int,
        *,
        vocabulary_size: int,
        length: int,
        d_model: int = 64,
        n_heads: int = 4,
        smeared: bool = False,
        seed: int = 0,
    ) -> None:
        """Random weights.

        Args:
            n_layers: of attention heads.
            vocabulary_size: tokens it knows.
            length: positions it has.
            d_model: of the residual stream.
            n_heads: in each layer.
            smeared: whether each head mixes its keys with those of the position before, by a share that it learns
                (Olsson et al., 2022): then one layer can see what came before.
            seed: of the weights.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weights(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * scale)

        d_head, small = d_model // n_heads, d_model**-0.5
        self.W_E = weights(vocabulary_size, d_model, scale=0.3)
        self.W_pos = weights(length, d_model, scale=0.3)
        self.W_Q, self.W_K, self.W_V = (weights(n_layers, n_heads, d_model, d_head, scale=small) for _ in INPUTS)
        self.W_O = weights(n_layers, n_heads, d_head, d_model, scale=small)
        self.W_U = weights(d_model, vocabulary_size, scale=small)
        self.smear = nn.Parameter(torch.zeros(n_layers, n_heads)) if smeared else None
        """Before the logistic function; at zero half of a key is the one before."""

    def forward(
        self, tokens: Int[Tensor, "sequence position"], *, cut: tuple[int, Input] | None = None
    ) -> tuple[Float[Tensor, "sequence position token"], Float[Tensor, "layer sequence head query key"]]:
        """Logits and attention patterns.

        Args:
            tokens: at most as many as the model has positions.
            cut: (head, input): what this head of the first layer writes is taken out of what the heads of later layers
                read as "q", "k" or "v", and left everywhere else.
        """
        if cut is not None and (cut[1] not in INPUTS or not 0 <= cut[0] < self.W_Q.shape[1]):
            raise InputError(f"cut {cut!r}: legal are (0 to {self.W_Q.shape[1] - 1}, one of q, k, v)")
        if tokens.shape[1] > len(self.W_pos):
            raise InputError(f"sequences of {tokens.shape[1]} tokens: legal are at most {len(self.W_pos)}")
        resid = self.W_E[tokens] + self.W_pos[: tokens.shape[1]]
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        patterns, first_written = [], None
        for layer in range(len(self.W_Q)):
            q, k, v = (
                torch.einsum("npm,hmd->nhpd", self._read(resid, name, cut, first_written), weight[layer])
                for name, weight in zip(INPUTS, (self.W_Q, self.W_K, self.W_V), strict=True)
            )
            if self.smear is not None:
                share = self.smear[layer].sigmoid()[:, None, None]
                k = torch.cat([k[:, :, :1], (1 - share) * k[:, :, 1:] + share * k[:, :, :-1]], dim=2)
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            patterns.append(scores.masked_fill(later, -torch.inf).softmax(-1))
            z = patterns[-1] @ v
            if cut is not None and layer == 0:
                first_written = z[:, cut[0]] @ self.W_O[0, cut[0]]
            resid = resid + torch.einsum("nhpd,hdm->npm", z, self.W_O[layer])
        return resid @ self.W_U, torch.stack(patterns)

    @staticmethod
    def _read(resid: Tensor, name: Input, cut: tuple[int, Input] | None, first_written: Tensor | None) -> Tensor:
        return resid if first_written is None or cut is None or cut[1] != name else resid - first_written


def compare_rises(history: dict[int, Measured], plain: dict[int, Measured]) -> tuple[float, float]:
    """How fast a model learns what another never does, and how fast that one had learned what it knew by then.

    Both as shares of the same steps, those until the first has nine tenths of it, so that longer training in which
    neither learns on changes nothing: each is the time from a tenth to nine tenths. The first is that of a part of a
    fall and is counted for the whole, as else an even fall would look sudden for being looked at from half-way on.
    What gets steeper and steeper is sudden by this too. NaN where next to nothing is learned.

    Args:
        history: as `train` gives it.
        plain: of the model that learns less.
    """
    curves = [{step: float(at.in_context_learning.mean()) for step, at in one.items()} for one in (history, plain)]
    curve, other = curves
    begin, last = other[max(other)], curve[max(curve)]
    start, end = _find_rise(curve, begin)
    if isnan(end):
        return end, end
    plain_start, plain_end = _find_rise({step: score for step, score in other.items() if step <= end}, other[0])
    return (end - start) * (last - curve[0]) / (last - begin) / end, (plain_end - plain_start) / end


def _find_rise(curve: dict[int, float], begin: float) -> tuple[float, float]:
    """The steps at which a score has fallen a tenth and nine tenths of its way from where it begins."""
    import numpy as np

    steps, scores = np.array(list(curve)), np.array(list(curve.values()))
    if scores[-1] >= begin - LEAST_LEARNED:
        return float("nan"), float("nan")
    reached = np.maximum.accumulate((scores - begin) / (scores[-1] - begin))
    start, end = np.interp((0.1, 0.9), reached, steps)
    return float(start), float(end)


@dataclass(frozen=True)
class Measured:
    """A model on held-out sequences."""

    loss_new: Float[Tensor, " sequence"]
    """Mean loss (nats) of tokens that can't be known."""
    loss_repeated: Float[Tensor, " sequence"]
    """Of those that can: the tokens after one that has occurred before."""
    prefix_matching: Float[Tensor, "layer head"]
    """Mean attention from a repeated token to the tokens after its earlier occurrences, summed over these."""
    previous_token: Float[Tensor, "layer head"]
    """Mean attention to the token before."""

    @property
    def in_context_learning(self) -> Float[Tensor, " sequence"]:
        """Loss of the tokens that can be known less that of those that can't: below zero where the context helps."""
        return self.loss_repeated - self.loss_new


def measure(model: AttentionOnly, repeats: Repeats, *, cut: tuple[int, Input] | None = None) -> Measured:
    """What a model does with sequences that repeat, whole or with one path cut."""
    from torch.nn.functional import cross_entropy

    with torch.no_grad():
        logits, patterns = model(repeats.tokens, cut=cut)
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), repeats.tokens[:, 1:], reduction="none")
    known = repeats.repeated[:, :-1]
    tokens = repeats.tokens
    copies = (tokens[:, :, None] == tokens[:, None, :]).float().tril(-1)
    after = nn.functional.pad(copies, (1, 0))[..., :-1]  # sequence query key
    matching = torch.einsum("lnhqk,nqk->lnqh", patterns, after)
    return Measured(
        loss_new=(losses * ~known).sum(1) / (~known).sum(1),
        loss_repeated=(losses * known).sum(1) / known.sum(1),
        prefix_matching=matching[:, repeats.repeated].mean(1),
        previous_token=patterns.diagonal(-1, -2, -1).mean((1, 3)),
    )


def train_all(
    seeds: Iterable[int], *, n_steps: int
) -> dict[tuple[str, int], tuple[AttentionOnly, dict[int, Measured]]]:
    """Train a model of every kind for every seed, as many at a time as there are processors: (kind, seed) → `train`.

    Each has one thread of its own: a model this small is slower with two, and sums come out the same on any machine
    of its kind.
    """
    import joblib

    every = [(kind, seed) for kind in KINDS for seed in seeds]
    jobs = (joblib.delayed(_train_alone)(n_steps=n_steps, seed=seed, **KINDS[kind]) for kind, seed in every)
    return dict(zip(every, joblib.Parallel(n_jobs=joblib.cpu_count())(jobs), strict=True))


def _train_alone(**options: Any) -> tuple[AttentionOnly, dict[int, Measured]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(**options)
    finally:
        torch.set_num_threads(threads)


def train(
    n_layers: int,
    *,
    n_steps: int,
    seed: int,
    smeared: bool = False,
    n_measured: int = 80,
    vocabulary_size: int = 32,
    length: int = 32,
) -> tuple[AttentionOnly, dict[int, Measured]]:
    """Train a model from random weights; returns it with what it could do after some of the steps.

    Args:
        n_layers: of attention heads.
        n_steps: of one batch each.
        seed: of the weights and of the sequences; the held-out ones are the same for every seed.
        smeared: as for `AttentionOnly`.
        n_measured: how often it is measured on the way, at most.
        vocabulary_size: tokens that the sequences are made of.
        length: of the sequences, in tokens.
    """
    from torch.nn.functional import cross_entropy

    sizes = {"vocabulary_size": vocabulary_size, "length": length}
    model = AttentionOnly(n_layers, **sizes, smeared=smeared, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    generator = torch.Generator().manual_seed(seed)
    held_out = draw_held_out_repeats(**sizes)
    measured = {0: measure(model, held_out)}
    every = max(1, -(-n_steps // n_measured))
    for step in range(1, n_steps + 1):
        tokens = draw_repeats(BATCH, **sizes, generator=generator).tokens
        logits, _ = model(tokens)
        loss = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == n_steps:
            measured[step] = measure(model, held_out)
    return model, measured


def draw_held_out_repeats(*, vocabulary_size: int = 32, length: int = 32) -> Repeats:
    """The sequences that every model is measured on."""
    generator = torch.Generator().manual_seed(2**31)  # far from the seeds of chapters
    return draw_repeats(HELD_OUT, vocabulary_size=vocabulary_size, length=length, generator=generator)


def score_composition(model: AttentionOnly) -> dict[str, Float[Tensor, "sender receiver"]]:
    """How much of what a head of layer 0 writes is read by a head of layer 1 as q, k or v (Elhage et al., 2021).

    The Frobenius norm of the product of the two matrices, over the product of their norms.
    """
    return _composition(*(weight[:2] for weight in (model.W_Q, model.W_K, model.W_V, model.W_O)))


def score_random_composition(model: AttentionOnly, *, n_draws: int, seed: int) -> Float[Tensor, " draw"]:
    """The same for pairs of heads with random weights of the same shapes (the three kinds are alike then)."""
    generator = torch.Generator().manual_seed(seed)
    n_pairs = model.W_Q.shape[1] ** 2
    drawn = []
    for _ in range(-(-n_draws // n_pairs)):
        weights = [
            torch.randn(weight[:2].shape, generator=generator)
            for weight in (model.W_Q, model.W_K, model.W_V, model.W_O)
        ]
        drawn.append(_composition(*weights)["k"].flatten())
    return torch.cat(drawn)[:n_draws]


def _composition(W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor) -> dict[str, Float[Tensor, "sender receiver"]]:
    if len(W_Q) < 2:
        raise InputError("a model of one layer has no heads that compose: legal are two layers or more")
    written = W_V[0] @ W_O[0]  # sender m m
    readers = {"q": W_Q[1] @ W_K[1].transpose(-1, -2), "k": W_K[1] @ W_Q[1].transpose(-1, -2), "v": W_V[1] @ W_O[1]}
    with torch.no_grad():
        return {
            name: torch.einsum("smi,rij->srmj", written, reader).norm(dim=(-2, -1))
            / (written.norm(dim=(-2, -1))[:, None] * reader.norm(dim=(-2, -1)))
            for name, reader in readers.items()
        }
