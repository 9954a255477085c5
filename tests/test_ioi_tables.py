"""Tables hold the numbers that they were given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from shared.search import PASSED, N, average, search_with_movers

from helpers import claims
from studies.ioi import roles, tables, templates


@pytest.fixture
def found():
    return search_with_movers()


def test_the_next_tokens_are_the_likeliest_in_order(load_tiny):
    loaded = load_tiny("llama")
    rows = tables.list_next(loaded, {"one": [1, 2, 3], "two": [4, 5]}, n=3)
    chances = [row["probability after one"] for row in rows]
    assert len(rows) == 3 and chances == sorted(chances, reverse=True)


def test_behaviour_is_a_mean_for_each_template_order_and_all():
    data = templates.IOI((), (0, 0, 1, 1), ("ABBA", "BABA") * 2, (), (), (), {})
    rows = tables.list_behaviour(data, {"gap": np.array([1.0, 3.0, 5.0, 7.0]), "right": np.ones(4)}, seed=0)
    assert {row["prompts"]: row["gap"] for row in rows[:2]} == {"template 1": 2.0, "template 2": 6.0}
    assert {row["prompts"]: row["gap"].value for row in rows[2:]} == {"ABBA": 3.0, "BABA": 5.0, "all": 4.0}
    assert [row["n"] for row in rows] == [2, 2, 2, 2, 4]


def test_a_head_with_a_direct_effect_and_no_role_is_unnamed(found):
    assert tables.list_unnamed(found) == [(2, 2)]
    rows = tables.list_roles(found, PASSED, average)
    effects = {row["head"]: row["effect"].value for row in rows if row["head"] != "none"}
    assert effects["3.1"] == pytest.approx(-2, abs=0.01)
    assert len([row for row in rows if row["head"] == "none"]) == len(roles.ROLES) - 2


def test_attention_and_writing_are_correlated_within_each_name():
    looks = {"IO": torch.tensor([[[0.1, 0.2, 0.3]]]), "S": torch.tensor([[[0.7, 0.8, 0.9]]])}
    writes = {"IO": torch.tensor([[[1.0, 2.0, 3.0]]]), "S": torch.tensor([[[-8.0, -7.0, -6.0]]])}
    assert tables.correlate(looks, writes, (0, 0)) == pytest.approx({"IO": 1, "S": 1})


def test_the_contrast_is_the_largest_difference():
    assert tables.find_contrast({"a_b": 1.0, "c": 5.0}, {"a_b": 2.5, "c": 4.0}) == "the a b"


def test_one_head_stands_beside_the_others_of_its_layer():
    values = torch.tensor([[1.0, 2.0, 3.0, 10.0]])
    (row,) = tables.list_head((0, 3), {"score": values}, {})
    assert row["head 0.3"] == 10.0
    assert row["others of its layer, median (min to max)"] == "2.00 (1.00 to 3.00)"


def test_only_paths_are_drawn_that_are_sure_after_all_looks(found):
    """Of twenty paths of noise one often looks sure alone; a strong one is drawn, a tiny one is not, however sure."""
    generator, alone, drawn = torch.Generator().manual_seed(0), [], []
    for _ in range(100):
        noise = [("a", "b", "queries", average(torch.randn(N, generator=generator))) for _ in range(20)]
        alone.append(any(edge[3].low * edge[3].high > 0 for edge in noise))
        drawn.append(bool(tables.choose_edges(found, noise)))
    assert np.mean(drawn) <= 0.08 < 0.4 < np.mean(alone)
    strong = ("c", "d", "keys", average(-2.0 + 0.05 * torch.randn(N, generator=generator)))
    tiny = ("e", "f", "keys", average(0.01 + 1e-6 * torch.randn(N, generator=generator)))
    assert tables.choose_edges(found, [strong, tiny]) == [strong]
    open_ = ("c", "d", "values", average(torch.tensor([-9.0, 9.0] * (N // 2)) + 1.0))
    assert tables.find_open_edges(found, [strong, tiny, open_]) == [open_]


def test_most_paths_drawn_are_beyond_the_hundredth_where_many_are_a_little_below(found):
    """Real paths of less than a hundredth and large ones of chance alone: the two must not be mixed by the drawing."""
    generator, wrong = torch.Generator().manual_seed(0), []
    least = roles.SMALLEST_SHARE * float(found.logit_difference.mean())
    for _ in range(50):
        tiny = [average(0.9 * least + 0.05 * least * torch.randn(N, generator=generator)) for _ in range(40)]
        null = [average(9 * least * torch.randn(N, generator=generator)) for _ in range(27)]
        wrong.append(bool(tables.choose_edges(found, [("a", "b", "keys", one) for one in (*tiny, *null)])))
    assert np.mean(wrong) <= 0.1, "none of them exceeds the hundredth, so that any that is drawn is false"


def test_a_role_says_in_how_many_halves_its_heads_pass(found):
    rows = {row["head"]: row["halves passed"] for row in tables.list_roles(found, PASSED, average)}
    assert rows["3.1"] == 0.9 and rows["1.2"] == 0.5 and rows["none"] == "–"


def test_every_head_of_the_circuit_stands_beside_its_best_rival_on_both_tasks(found):
    score = torch.zeros(2, 4, 3)
    score[:, 3, 1], score[:, 3, 2], score[:, 1, 2] = 0.9, 0.4, 0.1
    costs = {"words": [average(torch.arange(N) + i) for i in range(3)]}
    rows = tables.list_tasks(found, {"matching": score}, costs)
    assert [row["head"] for row in rows] == ["1.2", "3.0", "3.1"]
    assert rows[2]["matching (best rival)"] == "0.900 (0.400, 3.2)" and rows[2]["role"] == "name mover"
    assert rows[1]["lost without it: words"].value == pytest.approx(3.5)


def test_heads_are_idle_where_they_surely_add_too_little_and_doubtful_where_it_can_not_be_told():
    heads = [("name mover", (3, 0)), ("name mover", (3, 1)), ("induction", (1, 2))]
    beyond = [claims.Estimate(at, at - wide, at + wide, 10) for at, wide in ((-1, 0.1), (0.0, 0.5), (1, 0.1))]
    assert tables.describe_needs(heads, beyond) == {"idle_heads": "3.0", "doubtful_heads": "3.1"}
    twice = [heads[1], ("negative", heads[1][1])]
    assert tables.describe_needs(twice, [beyond[1]] * 2)["doubtful_heads"] == "3.1", "a head of two roles is one"
    assert tables.describe_needs(heads[2:], beyond[2:]) == {"idle_heads": "none", "doubtful_heads": "none"}


def test_attention_is_told_with_its_change_head_by_head_and_role_by_role(found):
    before = {end: torch.full((4, 3, N), 0.5) for end in ("IO", "S1", "S2")}
    after = before | {"IO": before["IO"] - 0.25 + 0.01 * torch.arange(N)}
    rows = tables.list_attention(found, before, after, average)
    assert [row["head"] for row in rows] == ["3.1", "3.0"]
    change = float((after["IO"] - before["IO"])[3, 1].mean())
    assert rows[0]["to IO"] == 0.5 and rows[0]["to IO, change"].value == pytest.approx(change)
    after |= {"S1": before["S1"] + 0.125, "S2": before["S2"] - 0.375}
    told = tables.describe_looks(found, before, after, average)
    assert told.startswith("Without S-inhibition attention from END changes: that of name movers by ")
    assert f"by {average(np.full(N, -0.25)).brief()} for S (both mentions)" in told
    nothing = replace(found, roles=dict.fromkeys(roles.ROLES, ()))
    assert tables.describe_looks(nothing, before, after, average) == ""


def test_what_is_told_of_heads_says_so_where_there_is_nothing_to_tell(found):
    one = average([1.0, 2.0, 3.0])
    told = {name: one for name in ("END", "the names", "IO", "S")}
    assert tables.describe_unnamed([(2, 2), (0, 1)], told).startswith("It is 2.2 (of 2.2, 0.1), which spends 2.00 [")
    assert tables.describe_unnamed([], {}) == "Here there is none."
    assert "a share of" not in tables.describe_rest(None, {}, one)
    assert "without name movers 2.00 [" in tables.describe_rest(one, {"name mover": one}, one)
    assert tables.describe_losses(None, {}) == tables.describe_losses((2, 2), {}) == ""
    assert "without name movers" in tables.describe_losses((2, 2), {"name mover": one})


def test_heads_are_told_by_what_they_surely_cost_on_each_task(found):
    up, none, down = (average([at - 0.1, at, at + 0.1]) for at in (1.0, 0.0, -1.0))
    told = tables.describe_costs(found, {"sentences": [up, up, none], "repeats": [up, none, down]})
    names = [tables.name_heads([head]) for head in found.heads]
    assert f"on both tasks: {names[0]}; on sentences, not surely elsewhere: {names[1]}; " in told
    assert f"helping on repeats when gone: {names[2]}." in told
    assert "are none" in tables.describe_costs(found, {"sentences": [none] * 3, "repeats": [none] * 3})


def test_orders_are_compared_only_where_every_sentence_comes_in_both():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    for order, compared in ((("ABBA", "BABA") * 2, True), (("ABBA", "ABBA", "BABA", "BABA"), False)):
        data = templates.IOI((), (0, 0, 1, 1), order, (), (), (), {})
        (row,) = tables.list_faithfulness({"all": (values, "–")}, values, data, average)
        assert ("ratio of means, ABBA" in row) == compared
        told = {row["prompts"] for row in tables.list_behaviour(data, {"gap": values}, seed=0)}
        assert ({"ABBA", "BABA"} <= told) == compared
