"""A search for the circuit of indirect object identification that found what was put in."""

import numpy as np
import torch

from helpers import claims
from studies.ioi import roles

N = 6
PASSED = {("name mover", (3, 1)): 0.9, ("name mover", (3, 0)): 0.2, ("S-inhibition", (1, 2)): 0.5}


def average(values):
    return claims.average(np.asarray(values, dtype=float).tolist(), seed=0)


def search_with_movers():
    """Two movers and an S-inhibition head, of which one mover has most effect."""
    generator = torch.Generator().manual_seed(0)
    effect = 0.001 * torch.randn(4, 3, N, generator=generator)
    effect[3, 1] -= 2.0
    effect[3, 0] -= 1.0
    effect[2, 2] += 0.5
    stages = {stage: roles.Stage(effect, 0.5, 0.04) for stage in ("logits", "queries", "values")}
    scores = {name: torch.rand(4, 3) for role in roles.ROLES.values() for name in role.scores}
    scores |= {f"END attends {at}": torch.rand(4, 3) for at in ("IO", "S1", "S2")}
    by_role = dict.fromkeys(roles.ROLES, ()) | {"name mover": ((3, 1), (3, 0)), "S-inhibition": ((1, 2),)}
    limits = {(name, score): 0.5 for name, role in roles.ROLES.items() for score in role.scores}
    return roles.Search(torch.full((N,), 4.0), stages, scores, limits, by_role)
