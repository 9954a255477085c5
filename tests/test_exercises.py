"""A guess is right, wrong or missing, and the reader is told which, also by the cells of the replications."""

import ast
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shared.notebooks import read_notebook
from shared.search import average, search_with_movers

from studies import exercises
from studies.ioi import figures, roles
from workflow import chapters

HINT = "the table of roles"


@pytest.mark.parametrize(
    ("guess", "right"),
    [
        ("S-inhibition", "S-inhibition"),
        (" negative ", "Negative"),
        (2.0, 2.1),
        (2, 2.1),
        ((23, 3), (23, 3)),
        ([23, 3], (23, 3)),
        (True, True),
    ],
)
def test_a_right_guess_is_right(guess, right):
    assert exercises.check(guess, right, HINT) == "Right."


@pytest.mark.parametrize(
    ("guess", "right"),
    [("name mover", "negative"), (1.5, 2.1), (-2.1, 2.1), ((3, 23), (23, 3)), (False, True), ("2.1", 2.1)],
)
def test_a_wrong_guess_is_told_where_to_look(guess, right):
    assert exercises.check(guess, right, HINT) == "Not yet: look at the table of roles."


@pytest.mark.parametrize("right", ["negative", 2.1, (23, 3), False])
def test_without_a_guess_one_is_asked_for(right):
    assert exercises.check(None, right, HINT) == "Put your guess in and run the cell."


def run_cells(chapter, names, guesses, capsys):
    """Every cell of a chapter that checks guesses, with these in place of its own; returns what it says."""
    for cell in read_notebook(chapters.find_chapter(chapter)).cells:
        if cell.cell_type != "code" or "exercises.check(" not in cell.source:
            continue
        tree = ast.parse(cell.source)
        asked = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id.startswith("my_")}
        assert asked <= set(guesses), "a guess of the chapter is not tried here"
        if guesses[next(iter(asked))] is not None:
            tree.body = [line for line in tree.body if not ast.unparse(line).startswith("my_")]
        exec(compile(tree, chapter, "exec"), names := names | guesses)
    return capsys.readouterr().out.splitlines()


def ioi():
    """What the chapter knows when it comes to its exercises: of the heads that were found one is strong and firm."""
    found = search_with_movers()
    lost = {name: SimpleNamespace(own=average([at, at + 0.1])) for name, at in (("name mover", 2), ("negative", -1))}
    known = {"lost": lost, "circuit": found.heads, "found": found, "firm": [(3, 1)], "roles": roles, "figures": figures}
    known |= {
        "out": SimpleNamespace(without=lambda sets: np.array([[-1.0, -2.0]])),
        "share_read": np.array([0.1, 0.2, 0.9]),
    }
    known |= {"repeated": {"END": [average([at, at + 0.01]) for at in (0.1, 0.3, 0.8)]}}
    return known, {"my_role": "name mover", "my_name": "S", "my_layer": 2, "my_lens": "there", "my_number": 1}


def induction():
    scores = {"induction": torch.eye(4), "previous token": torch.zeros(4, 4)}
    scores["previous token"][0] = 0.9
    known = {"score": scores, "final": {"one layer": np.array([-1.2, -1.3])}}
    return known, {"my_position": 3, "my_job": "induction", "my_score": -3.0}


@pytest.mark.parametrize(
    ("chapter", "known"), [("IOI_notebook", ioi), ("induction_heads_notebook", induction)], ids=["names", "induction"]
)
def test_every_exercise_of_a_replication_can_be_answered(chapter, known, capsys):
    names, right = known()
    assert run_cells(chapter, names, right, capsys) == ["Right."] * len(right)
    asked = run_cells(chapter, names, dict.fromkeys(right), capsys)
    assert asked == ["Put your guess in and run the cell."] * len(right)
    wrong = dict.fromkeys(right, "neither") | {"my_score": 0.5}
    assert all(line.startswith("Not yet") for line in run_cells(chapter, names, wrong, capsys))
