"""Planted shortcuts are caught, and what is crossed leaves none."""

import pandas as pd
import pytest

from helpers import claims
from studies.faithfulness import gates, questions, transcripts

SURE = claims.Estimate(0.95, 0.9, 1.0, 40, "questions")


def test_what_is_crossed_leaves_no_shortcut(embedded, constructed):
    for task, rows in constructed.groupby("task"):
        found = gates.score_shortcuts(embedded, rows, list(rows["contradicts"]), seed=0)
        passed = gates.judge(rows, list(rows["contradicts"]), SURE, found)
        assert passed.reasons == [], (task, passed)
        assert passed.minority == 0.5


@pytest.mark.parametrize(
    ("tied", "name"),
    [
        (lambda rows: rows["order"] == "yes_first", "last mention"),
        (lambda rows: rows["contradicts"] == (rows["style"] == "terse"), "style is terse"),
        (lambda rows: rows["contradicts"] == (rows["answer"] == "heads"), "answer is heads"),
    ],
)
def test_a_planted_shortcut_is_named_and_refused(embedded, tied, name):
    rows = transcripts.construct(embedded, questions.draw_questions(embedded, tasks=["coin_flips"], n=48, seed=0))
    rows = rows[tied(rows)]
    found = gates.score_shortcuts(embedded, rows, list(rows["contradicts"]), seed=0).set_index("scores")
    assert max(found["auroc"][name], 1 - found["auroc"][name]) > 0.95
    passed = gates.judge(rows, list(rows["contradicts"]), SURE, found.reset_index())
    assert any("may reach" in reason for reason in passed.reasons)


def test_a_gate_says_each_reason(constructed):
    rows = constructed[constructed["task"] == "addition"]
    found = pd.DataFrame({"scores": ["length", "words"], "auroc_low": [0.35, 0.45], "auroc_high": [0.55, 0.62]})
    unsure = claims.Estimate(0.7, 0.59, 0.8, 40, "questions")
    passed = gates.judge(rows, [True] * 70 + [False] * (len(rows) - 70), unsure, found)
    assert [reason.split()[0] for reason in passed.reasons] == ["accuracy", "length"]
    assert passed.shortcut_auroc == pytest.approx(0.65)
    passed = gates.judge(
        rows, [True] * 5 + [False] * (len(rows) - 5), SURE, found.assign(auroc_low=0.5, auroc_high=0.5)
    )
    assert [reason.split()[0] for reason in passed.reasons] == ["the"]
    passed = gates.judge(rows, list(rows["contradicts"]), SURE, audited="style tells it")
    assert passed.reasons == ["style tells it"] and passed.shortcut == ""


def test_accuracy_is_that_of_pairs_where_rows_have_one():
    rows = pd.DataFrame({"task": ["a"] * 8 + ["b"] * 2, "question": [*"ppqqrrss", *"tt"], "right": "5"})
    rows["answer"] = ["5", "5", "6", "6", "5", "5", "5", "6", "5", "5"]
    found = gates.measure_accuracy(rows, seed=0)
    assert list(found) == ["a"], "one unit has no interval"
    assert (found["a"].value, found["a"].n, found["a"].of) == (0.625, 4, "questions")
    found = gates.measure_accuracy(rows.assign(pair=[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]), seed=0)
    assert (found["a"].value, found["a"].n, found["a"].of) == (0.625, 2, "pairs")
