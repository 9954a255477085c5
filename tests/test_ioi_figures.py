"""Every figure can be drawn, and shows what is firm and what is not."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from shared.search import PASSED, N, average, search_with_movers

from studies.ioi import figures, roles


@pytest.fixture
def found():
    return search_with_movers()


@pytest.fixture
def svg(shown):
    def read(key):
        (html,) = [one.html for one in shown if f'id="{key}"' in one.html]
        return html

    return read


def test_the_lasting_layer_is_the_one_from_which_on_the_share_stays_above_the_bound():
    assert figures.find_lasting(torch.tensor([0.1, 0.6, 0.2, 0.9])) == 3
    assert figures.find_lasting(np.array([0.1, 0.4, 0.5]), least=0.3) == 1
    assert figures.find_lasting(torch.ones(3)) == 0
    assert figures.find_lasting(torch.tensor([0.9, 0.1])) == "none"


def test_a_circuit_is_described_with_how_many_of_its_heads_are_firm(found):
    assert figures.describe_circuit(found, PASSED).startswith("a circuit of 3 heads, of which 1 pass in most halves")
    nothing = replace(found, roles=dict.fromkeys(roles.ROLES, ()))
    assert figures.describe_circuit(nothing, {}) == "no circuit found"


EDGES = [
    ("S-inhibition", "name mover", "queries", average([-0.9, -1.1, -1.0])),
    ("S-inhibition", "name mover", "values", average([-0.5, -0.4, -0.45])),
    ("name mover", "logits", "directly", average([-3.0, -3.2, -2.9])),
    ("S-inhibition", "logits", "directly", average([0.1, -0.1, 0.0])),
]


def test_a_role_without_a_firm_head_is_dashed(found, svg):
    figures.show_circuit(found, EDGES, PASSED, caption="…")
    assert svg("circuit").count("stroke-dasharray") == 1, "the S-inhibition head alone is in no firm role"


def test_the_stages_have_one_scale_and_circles_that_show_on_any_ground(found, svg):
    figures.show_stages(found, caption="…")
    html = svg("stages")
    assert "share of the logit difference" in html
    circles = {colour: len(re.findall(rf"stroke: {colour}; stroke-width", html)) for colour in ("#ffffff", "#000000")}
    assert circles["#ffffff"] and circles["#ffffff"] == circles["#000000"]


def test_every_figure_can_be_drawn(found, svg):
    figures.show_circuit(found, EDGES, PASSED, caption="…")
    figures.show_where({"a": torch.rand(4, 2), "b": torch.rand(4, 2)}, ["S2", "END"], caption="…")
    curves = {name: np.random.default_rng(0).random((4, N)) for name in ("lens", "written", "baseline")}
    figures.show_writing(torch.rand(4, 3), curves, caption="…")
    some = {name: torch.rand(4, 3, N) for name in ("IO", "S")}
    figures.show_projection((3, 1), some, some, caption="…")
    kept = [average([1.0, 2.0]), average([2.0, 4.0])]
    figures.show_sizes([1, 2], kept, [kept[::-1]], {"whole": 4.0, "none": 0.5}, caption="…")
    for key in ("circuit", "where", "writing", "attention-and-projection", "sizes"):
        assert "<svg" in svg(key)
