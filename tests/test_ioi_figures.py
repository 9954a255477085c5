"""Tables hold the numbers that they were given, and every figure can be drawn from them."""

import re

import numpy as np
import pytest
import torch

from helpers import attribution, claims
from studies.ioi import figures, roles, templates

N = 6


def average(values):
    return claims.average(np.asarray(values, dtype=float).tolist(), seed=0)


@pytest.fixture
def found():
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


@pytest.fixture
def svg(shown):
    def read(key):
        (html,) = [one.html for one in shown if f'id="{key}"' in one.html]
        return html

    return read


def test_heads_have_their_names():
    assert figures.name_heads([(3, 1), (0, 12)]) == "3.1, 0.12"
    assert figures.name_heads([]) == "none"
    values = torch.tensor([[0.1, 5.0], [7.0, -9.0]])
    assert attribution.find_largest_heads(values, 2) == [(1, 0), (0, 1)]


def test_the_first_layer_is_the_first_one_above_the_bound():
    assert figures.find_first(torch.tensor([0.1, 0.6, 0.2, 0.9])) == 1
    assert figures.find_first(np.array([0.1, 0.4]), least=0.3) == 1
    assert figures.find_first(torch.zeros(3)) == "none"


def test_the_next_tokens_are_the_likeliest_in_order(load_tiny):
    loaded = load_tiny("llama")
    rows = figures.list_next(loaded, {"one": [1, 2, 3], "two": [4, 5]}, n=3)
    chances = [row["probability after one"] for row in rows]
    assert len(rows) == 3 and chances == sorted(chances, reverse=True)


def test_behaviour_is_a_mean_for_each_template_order_and_all():
    data = templates.IOI((), (0, 0, 1, 1), ("ABBA", "BABA") * 2, (), (), (), {})
    rows = figures.list_behaviour(data, {"gap": np.array([1.0, 3.0, 5.0, 7.0]), "right": np.ones(4)}, seed=0)
    assert {row["prompts"]: row["gap"] for row in rows[:2]} == {"template 1": 2.0, "template 2": 6.0}
    assert {row["prompts"]: row["gap"].value for row in rows[2:]} == {"ABBA": 3.0, "BABA": 5.0, "all": 4.0}
    assert [row["n"] for row in rows] == [2, 2, 2, 2, 4]


def test_a_head_with_a_direct_effect_and_no_role_is_unnamed(found):
    assert figures.list_unnamed(found) == [(2, 2)]
    rows = figures.list_roles(found, average)
    effects = {row["head"]: row["effect"].value for row in rows if row["head"] != "none"}
    assert effects["3.1"] == pytest.approx(-2, abs=0.01)
    assert len([row for row in rows if row["head"] == "none"]) == len(roles.ROLES) - 2


def test_edges_are_the_measured_sums_and_a_role_sends_nothing_to_itself(found):
    into = torch.zeros(4, 3, N)
    into[1, 2] = -0.7
    edges = figures.list_edges(found, {("name mover", "queries"): into}, average)
    by_ends = {edge[:3]: edge[3].value for edge in edges}
    assert by_ends["S-inhibition", "name mover", "queries"] == pytest.approx(-0.7)
    assert by_ends["name mover", "logits", "directly"] == pytest.approx(-3, abs=0.01)
    assert ("name mover", "name mover", "queries") not in by_ends
    assert ("name mover", "S-inhibition", "values") in by_ends and ("S-inhibition", "logits", "directly") not in by_ends


def test_attention_and_writing_are_correlated_within_each_name():
    looks = {"IO": torch.tensor([[[0.1, 0.2, 0.3]]]), "S": torch.tensor([[[0.7, 0.8, 0.9]]])}
    writes = {"IO": torch.tensor([[[1.0, 2.0, 3.0]]]), "S": torch.tensor([[[-8.0, -7.0, -6.0]]])}
    assert figures.correlate(looks, writes, (0, 0)) == pytest.approx(1)


def test_the_contrast_is_the_largest_difference():
    assert figures.find_contrast({"a_b": 1.0, "c": 5.0}, {"a_b": 2.5, "c": 4.0}) == "the a b"


def test_one_head_stands_beside_the_others_of_its_layer():
    values = torch.tensor([[1.0, 2.0, 3.0, 10.0]])
    (row,) = figures.list_head((0, 3), {"score": values}, {})
    assert row["head 0.3"] == 10.0
    assert row["others of its layer, median (min to max)"] == "2.00 (1.00 to 3.00)"


def test_the_stages_have_one_scale_and_circles_that_show_on_any_ground(found, svg):
    figures.show_stages(found, caption="…")
    html = svg("stages")
    assert "share of the logit difference" in html
    circles = {colour: len(re.findall(rf"stroke: {colour}; stroke-width", html)) for colour in ("#ffffff", "#000000")}
    assert circles["#ffffff"] and circles["#ffffff"] == circles["#000000"]


def test_every_figure_can_be_drawn(found, svg):
    edges = figures.list_edges(found, {}, average)
    figures.show_circuit(found, edges, caption="…")
    figures.show_where({"a": torch.rand(4, 2), "b": torch.rand(4, 2)}, ["S2", "END"], caption="…")
    curves = {name: np.random.default_rng(0).random((4, N)) for name in ("lens", "written", "baseline")}
    figures.show_writing(torch.rand(4, 3), curves, caption="…")
    some = {name: torch.rand(4, 3, N) for name in ("IO", "S")}
    figures.show_projection((3, 1), some, some, caption="…")
    kept = [average([1.0, 2.0]), average([2.0, 4.0])]
    figures.show_sizes([1, 2], kept, [kept[::-1]], {"whole": 4.0, "none": 0.5}, caption="…")
    for key in ("circuit", "where", "writing", "attention-and-projection", "sizes"):
        assert "<svg" in svg(key)
