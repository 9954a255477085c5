"""Whether heads carry what the context of a text gives."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from helpers import baselines, claims
from helpers.baselines import AgainstControls


def compare_with_half(gain: Float[Tensor, "run passage"], *, seed: int) -> AgainstControls | None:
    """How much more than half of what the context gives is lost without some heads, beside what controls lose.

    The claim that heads do most of it holds where the lead over the strongest control is above zero: what they lose
    beyond that control is then more than half of the gain.

    Args:
        gain: loss of the same tokens with their context less that without it, in nats, so below zero where the context
            helps: intact in the first row, without the heads in the second, without each control in the others.
        seed: of the intervals.

    Returns nothing where the context surely gives nothing that could be lost, or may give none.
    """
    if claims.average(gain[0].tolist(), seed=seed, of="passages").high >= 0:
        return None
    lost = gain[1:] - gain[0]
    half = torch.cat([-0.5 * gain[:1], torch.zeros_like(lost[1:])])
    return baselines.compare_with_controls(lost - half, seed=seed, of="passages")
