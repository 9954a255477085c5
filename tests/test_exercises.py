"""A guess is right, wrong or missing, and the reader is told which."""

import pytest

from studies import exercises

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
