"""Heads carry most of what the context gives where that was planted, and on noise hardly ever."""

import numpy as np
import pytest
import torch

from helpers import claims
from studies.induction import text

N = 24


def gains(context, heads, control, *, spread=0.05, seed=0):
    """What the context gives, of which the heads lose a share and three controls another."""
    noise = torch.Generator().manual_seed(seed)
    lost = torch.tensor([0.0, heads, control, control / 2, 0.0])[:, None]
    return -context * (1 - lost) + spread * torch.randn(5, N, generator=noise)


def verdict(gain):
    against = text.compare_with_half(gain, seed=0)
    estimate = against.lead if against else None
    return claims.decide("a", "…", rule="value > 0", estimate=estimate).verdict


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ((1.0, 0.9, 0.1), "holds"),
        ((1.0, 0.3, 0.0), "fails"),
        ((1.0, 0.7, 0.4), "fails"),  # a control does as much
        ((1.0, 0.5, 0.0), "depends"),
        ((0.0, 0.9, 0.1), "not run"),  # there is nothing to lose
        ((-1.0, 0.9, 0.1), "not run"),
    ],
)
def test_heads_do_most_of_it_where_they_lose_more_than_half_beyond_every_control(planted, expected):
    assert verdict(gains(*planted)) == expected


def test_the_lead_is_what_is_lost_less_half_of_the_gain_and_less_the_strongest_control():
    against = text.compare_with_half(gains(2.0, 0.8, 0.1, spread=0.0) - torch.linspace(0, 1e-3, N), seed=0)
    assert against.lead.value == pytest.approx(1.6 - 1.0 - 0.2, abs=1e-3)
    assert against.strongest == pytest.approx(0.2, abs=1e-3)


def test_heads_that_lose_exactly_half_by_chance_are_rarely_said_to_do_most():
    held = [verdict(gains(1.0, 0.5, 0.0, spread=0.3, seed=seed)) == "holds" for seed in range(60)]
    assert np.mean(held) <= 0.05
