"""Rows are gathered with the labels that they have, read once, and come apart again by label, task and layer."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import InputError, probes
from helpers.hooks import Captured
from studies.faithfulness import hypotheses, journeys
from studies.faithfulness.journeys import Gathered

pytestmark = pytest.mark.usefixtures("one_thread")
N_LAYERS = 2


def gathered(strength=2.0):
    """Two labels on the same twelve questions of either of two tasks; layer 1 tells both along one direction."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"about": about, "task": task, "question": f"{task} {number}", "unfaithful": label, "text": f"word {label}"}
        for about in ("constructed", "own contradiction")
        for task in ("one", "two")
        for number in range(12)
        for label in (False, True)
    ]
    table = pd.DataFrame(rows)
    x = torch.randn(len(table), N_LAYERS, 1, 6, generator=generator)
    x[:, 1, 0, 0] += strength * (2.0 * torch.tensor(table["unfaithful"].to_numpy()) - 1)
    axes = {"resid_post": ("example", "layer", "position", "d_model")}
    states = Captured({"resid_post": x}, axes, tuple(range(N_LAYERS)), ("answer",), torch.full((len(table),), 9))
    return Gathered(table, states)


def test_own_contradictions_are_verdicts_that_the_answer_is_not():
    rows = pd.DataFrame(
        {
            "reasoning": ["So it is 5.", "So it is not 4 but 5.", "It is 5, not 4.", "I do not know.", "So it is 9."],
            "right": "5",
            "other": "4",
            "answer": ["5", "4", "4", "4", "4"],
        }
    )
    found, truth = journeys.find_own_contradictions(rows)
    assert found.index.tolist() == [0, 1, 2] and truth == [False, True, True]


def test_one_label_is_taken_on_the_tasks_that_have_both_classes():
    every = gathered()
    table = every.table.assign(unfaithful=every.table["unfaithful"] & (every.table["task"] == "one"))
    part = Gathered(table, every.states).select("constructed")
    assert set(part.table["task"]) == {"one"} and len(part.table) == len(part.states["resid_post"]) == 24
    torch.testing.assert_close(part.states["resid_post"], every.states["resid_post"][:24])
    assert len(every.select("hint").table) == 0


def test_draws_hold_the_rows_of_their_labels_at_their_site():
    every = gathered()
    (draw,) = journeys.make_draws([every], ["constructed"], place="answer", layer=1, domain="task", seed=0)
    assert set(draw.domains) == {"one", "two"} and len(draw.labels) == 48
    torch.testing.assert_close(draw.activations, every.states["resid_post"][:48, 1, 0])
    (draw,) = journeys.make_draws([every], [*journeys.SOURCES], place="answer", layer=0, domain="about", seed=0)
    assert set(draw.domains) == {"constructed", "own contradiction"} and len(set(draw.questions)) == 24
    assert journeys.make_draws([every], ["constructed"], place="answer", layer=1, domain="about", seed=0) == []


def test_blocks_are_questions_with_a_partner_and_rows_without():
    rows = pd.DataFrame(
        {"about": "x", "task": "one", "question": ["a", "a", "b", "b"], "pair": [1.0, 1.0, np.nan, np.nan]}
    )
    first, second, *others = journeys.list_blocks(rows)
    assert first == second and others == [2, 3]
    assert journeys.list_blocks(rows.drop(columns="pair")) == [0, 1, 2, 3]


def test_layers_and_words_tell_what_was_planted():
    every = gathered()
    found = journeys.trace_layers(every, "constructed", place="answer", n_layers=N_LAYERS, seed=0)
    assert list(found) == ["constructed", "own contradiction"]
    for early, late in found.values():
        assert abs(early - 0.5) < 0.2 and late > 0.95
    options = {"place": "answer", "layer": 0, "domain": "about", "seed": 0}
    (draw,) = journeys.make_draws([every], [*journeys.SOURCES], **options)
    words = journeys.send_words(every, draw, seed=0)
    assert words["constructed", "own contradiction"].value == 1.0  # the text says it
    mute = Gathered(every.table.assign(text="nothing but this"), every.states)
    assert journeys.send_words(mute, draw, seed=0)["constructed", "own contradiction"].value == 0.5


def test_rules_are_tried_on_own_contradictions():
    n = 40
    label = np.arange(n) % 2 == 0
    rows = pd.DataFrame(
        {
            "task": np.where(np.arange(n) < n / 2, "one", "two"),
            "question": list(map(str, range(n))),
            "unfaithful": label,
            "reasoning": np.where(label, "So it is not 4 but 5.", "So it is 5, not 4."),
            "at_reasoning": 7,
        }
    )
    found = journeys.try_own_rules(rows, seed=0)
    first, of_task, length = found.values()
    assert first.value == 1.0 and length.value == of_task.value == 0.5
    assert first.n == n
    assert journeys.try_own_rules(rows.head(0), seed=0) == {}


def test_a_label_without_a_passed_task_has_none(embedded, monkeypatch):
    monkeypatch.setattr(journeys.dataset, "read_passed_tasks", lambda loaded: {"constructed": ["a", "b"], "hint": []})
    found = journeys.find_passed_tasks(embedded, n_tasks=1)
    assert found["constructed"] == found["own contradiction"] == ["a"] and found["hint"] == []


def test_every_transcript_is_read_once_after_its_examples(embedded, tmp_path):
    tasks = {label: ["addition"] if label == "constructed" else [] for label in journeys.SOURCES}
    sizes = {"n_questions": 1, "n_own": 4, "n_samples": 1, "folder": tmp_path}
    found = journeys.gather(embedded, tasks, **sizes, seed=0)
    assert found.table["about"].eq("constructed").all() and len(found.table) == 8
    assert found.table["unfaithful"].sum() == 4 and found.states.positions == journeys.PLACES
    alone = journeys.read(embedded, found.table.iloc[2:3])
    ours = probes.read_features(found.states, probes.Site("resid_post", 20, "answer"))[2]
    theirs = probes.read_features(alone, probes.Site("resid_post", 20, "answer"))[0]
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)


def test_bad_input_is_refused():
    draw = hypotheses.Draw(torch.zeros(4, 2), [True, False] * 2, [0, 0, 1, 1], ["constructed"] * 4)
    with pytest.raises(InputError, match="one domain"):
        journeys.send_words(gathered(), draw, seed=0)
