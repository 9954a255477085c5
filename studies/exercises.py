"""Exercises of a chapter that check themselves: the reader's guess beside what the run found."""

from __future__ import annotations


def check(guess: object, right: object, hint: str) -> str:
    """Say whether a guess is right.

    Numbers count as right within a tenth of the answer, texts whatever their case and outer spaces, heads as pairs.

    Args:
        guess: the reader's; None where there is none yet.
        right: what the run found.
        hint: where to look after a wrong one.

    >>> check("early", "late", hint="the curve's right end")
    "Not yet: look at the curve's right end."
    """
    if guess is None:
        return "Put your guess in and run the cell."
    return "Right." if _same(guess, right) else f"Not yet: look at {hint}."


def _same(guess: object, right: object) -> bool:
    if isinstance(guess, str) and isinstance(right, str):
        return guess.strip().lower() == right.strip().lower()
    if isinstance(right, float) and isinstance(guess, int | float):
        return abs(guess - right) <= 0.1 * abs(right)
    if isinstance(right, tuple) and isinstance(guess, list):
        return tuple(guess) == right
    return guess == right
