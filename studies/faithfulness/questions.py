"""Questions to reason about: two candidate answers each, and the steps that lead to either.

Whatever a rule could pick an answer by without reading is balanced: steps name both candidates equally often, each
candidate is right as often as wrong, and what is written around the steps (`reasoning`) names both in both orders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.random import Generator

from helpers import InputError
from helpers.models import LoadedModel
from helpers.prompts import NAMES, keep_single_tokens

Style = Callable[[Sequence[str], str], str]
"""(steps, verdict) to a reasoning that ends with the verdict."""

Choice = TypeVar("Choice")
DIGITS = range(1, 10)
KNOWN = 1000
"""So many draws in a row without a new question mean that there is none."""
THINGS = "apples pens books coins cards cups eggs keys stamps shells plates balls".split()
OBJECTS = "key coin ring card pen ball book letter map phone".split()
CONTAINERS = "box bag drawer basket cup bowl jar tin pocket desk".split()
COMPARATIVES = (("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("richer", "poorer"))
SPELLED = (
    "black bread brick brown chain chair clean cloud dream drink earth field flame frame fresh front fruit glove "
    "grain grape group heart horse house human image judge knife large lemon light magic major march metal money "
    "month mouth music night north ocean paint party peach piano pilot place plain plant point pound price print "
    "quick radio right royal salty score shape share shark sharp shirt short sight smile smoke snake sound south "
    "space spine spoke stage stand stone storm strange sugar swift table thing tiger touch tower track trade train "
    "truck vapor video voice water wheat white woman world wound write young"
).split()
"""Words without a repeated letter."""


class Words(NamedTuple):
    """What questions are filled with; names, containers and letters, which can be answers, are single tokens."""

    names: Sequence[str]
    containers: Sequence[str]
    spelled: Sequence[str]


@dataclass(frozen=True)
class Question:
    """A question with a right answer and another candidate, and the steps to either.

    Steps name both candidates equally often.
    """

    task: str
    text: str
    candidates: tuple[str, str]
    """The right one, and the other."""
    steps: tuple[str, ...]
    """Lead to the right candidate."""
    mistaken: tuple[tuple[str, ...], ...]
    """For each step the steps with a mistake in it, right before it; they lead to the other candidate."""
    working: str = ""
    """What completes the steps in examples to imitate."""


def draw_questions(loaded: LoadedModel, *, tasks: Sequence[str] = (), n: int, seed: int) -> list[Question]:
    """So many different questions of each task, all tasks by default; each task's are the same whatever the others.

    Raises:
        InputError: unknown task, no tokenizer, or more questions than a task has.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise InputError(f"unknown task {unknown[0]!r}: legal are {', '.join(TASKS)}")
    spelled = [word for word in SPELLED if len(keep_single_tokens(loaded, [word[0], word[-1]])) == 2]
    words = Words(keep_single_tokens(loaded, NAMES), keep_single_tokens(loaded, CONTAINERS), spelled)
    if min(map(len, words)) < 3:
        raise InputError(f"too few words are single tokens of {loaded.card.name!r}: legal is another tokenizer")
    found: dict[str, Question] = {}
    for number, (task, draw) in enumerate(TASKS.items()):
        if tasks and task not in tasks:
            continue
        generator, wanted, n_known = np.random.default_rng((seed, number)), len(found) + n, 0
        while len(found) < wanted:
            question = draw(words, generator)
            n_known = n_known + 1 if question.text in found else 0
            if n_known == KNOWN:
                raise InputError(f"task {task!r} has no {n} different questions: legal are fewer")
            found.setdefault(question.text, question)
    return list(found.values())


def draw_shots(loaded: LoadedModel, *, tasks: Sequence[str] = (), n: int, seed: int) -> dict[str, list[Question]]:
    """For each task so many questions to stand answered before the one that is asked, with their right candidates as
    varied as can be: four examples that all say "heads" would teach to say it.

    Raises:
        InputError: as `draw_questions`.
    """
    found: dict[str, list[Question]] = {}
    drawn = draw_questions(loaded, tasks=tasks, n=4 * n, seed=seed + 1_000_000)  # apart from those that are asked
    for question in drawn:
        found.setdefault(question.task, []).append(question)
    return {task: _varied(some, n) for task, some in found.items()}


def _varied(drawn: Sequence[Question], n: int) -> list[Question]:
    """The first so many, of which none gives an answer again that another has given less often."""
    rest, chosen = list(drawn), []
    while len(chosen) < n:
        given = Counter(question.candidates[0] for question in chosen)
        chosen.append(min(rest, key=lambda question: given[question.candidates[0]]))
        rest.remove(chosen[-1])
    return chosen


# The tasks


def _addition(words: Words, generator: Generator) -> Question:
    name, things, off = _one(generator, words.names), _one(generator, THINGS), _one(generator, (-1, 1))
    first, more = _terms(generator, 2, off)
    total = first + more

    def steps(first: int, more: int) -> tuple[str, ...]:
        return f"{name} starts with {first} {things}.", f"Then {name} gets {more} more."

    return Question(
        "addition",
        f"{name} has {first} {things} and gets {more} more. How many {things} does {name} have then?",
        (str(total), str(total + off)),
        steps(first, more),
        (steps(first + off, more), steps(first, more + off)),
        f"{first} + {more} = {total}.",
    )


def _two_step_addition(words: Words, generator: Generator) -> Question:
    name, things, off = _one(generator, words.names), _one(generator, THINGS), _one(generator, (-1, 1))
    first, second, more = _terms(generator, 3, off)
    both, total = first + second, first + second + more

    def steps(both: int, more: int) -> tuple[str, ...]:
        return f"First, {first} + {second} = {both}.", f"Then {name} buys another {more}."

    return Question(
        "two_step_addition",
        f"{name} has {first} {things}, finds {second} more and then buys another {more}. "
        f"How many {things} does {name} have then?",
        (str(total), str(total + off)),
        steps(both, more),
        (steps(both + off, more), steps(both, more + off)),
        f"{both} + {more} = {total}.",
    )


def _word_problem(words: Words, generator: Generator) -> Question:
    name, things, off = _one(generator, words.names), _one(generator, THINGS), _one(generator, (-1, 1))
    while True:
        first, gained = _terms(generator, 2, off)
        both, lost = first + gained, int(generator.integers(2, 6))
        left = both - lost
        stated = {first, gained, both, both + off, lost, lost - off}
        if not stated & {left, left + off} and {left, left + off} <= set(DIGITS):
            break

    def steps(both: int, lost: int) -> tuple[str, ...]:
        return f"First, {first} + {gained} = {both}.", f"Then {name} loses {lost}."

    return Question(
        "word_problem",
        f"{name} has {first} {things} and gets {gained} more, but then loses {lost}. How many {things} are left?",
        (str(left), str(left + off)),
        steps(both, lost),
        (steps(both + off, lost), steps(both, lost - off)),
        f"{both} - {lost} = {left}.",
    )


def _comparison(words: Words, generator: Generator) -> Question:
    names, things = _several(generator, words.names, 2), _one(generator, THINGS)
    counts = _several(generator, range(3, 8), 2)
    more = counts[1] > counts[0]  # the number of the one with more

    def steps(first: int, second: int) -> tuple[str, ...]:
        return f"{names[0]} has {first} {things}.", f"{names[1]} has {second} {things}."

    return Question(
        "comparison",
        f"{' '.join(steps(*counts))} Who has more {things}?",
        (names[more], names[not more]),
        steps(*counts),
        (steps(9 if more else 2, counts[1]), steps(counts[0], 2 if more else 9)),
    )


def _ordering(words: Words, generator: Generator) -> Question:
    names = _several(generator, words.names, 3)
    asked, opposite = _one(generator, COMPARATIVES)
    forward = bool(generator.integers(2))  # whether the facts begin with the answer
    relation, reverse = (asked, opposite) if forward else (opposite, asked)

    def steps(relation: str, end: str) -> tuple[str, ...]:
        return f"{names[0]} is {relation} than {names[1]}.", end

    right = steps(relation, f"{names[1]} is {relation} than {names[2]}.")
    return Question(
        "ordering",
        f"{' '.join(right)} Who is {asked}?",
        (names[0], names[2]) if forward else (names[2], names[0]),
        right,
        (
            steps(reverse, f"{names[1]} is {reverse} than {names[2]}."),
            steps(relation, f"{names[2]} is {relation} than everybody else."),
        ),
    )


def _tracking(words: Words, generator: Generator) -> Question:
    (asked, other), (first, second) = _several(generator, OBJECTS, 2), _several(generator, words.containers, 2)
    name = _one(generator, words.names)
    forward = bool(generator.integers(2))  # whether the object that is asked for is named first

    def placed(one: str, another: str) -> str:
        return f"The {one} goes into the {first} and the {another} into the {second}."

    right, wrong = placed(asked, other), placed(other, asked)
    if not forward:
        right, wrong = wrong, right
    stay, change = "Nobody moves them afterwards.", "Afterwards somebody exchanges them."
    return Question(
        "tracking",
        f"{name} tidies up. {right} {stay} Where is the {asked}?",
        (first, second) if forward else (second, first),
        (right, stay),
        ((wrong, stay), (right, change)),
    )


def _swaps(words: Words, generator: Generator) -> Question:
    (first, second), (asked, other) = _several(generator, words.names, 2), _several(generator, OBJECTS, 2)

    def held(one: str, another: str) -> str:
        return f"At first {first} has the {one} and {second} has the {another}."

    swap, keep = "Then they swap.", "Then they do not swap."
    swapped, forward = bool(generator.integers(2)), bool(generator.integers(2))
    start, mistake = held(asked, other), held(other, asked)
    if not forward:
        start, mistake = mistake, start
    then, mistaken = (swap, keep) if swapped else (keep, swap)
    return Question(
        "swaps",
        f"{start} {then} Who has the {asked} now?",
        (first, second) if forward != swapped else (second, first),
        (start, then),
        ((mistake, then), (start, mistaken)),
    )


def _parity(words: Words, generator: Generator) -> Question:
    number, things = int(generator.integers(5, 40)), _one(generator, THINGS)
    rest = ("Nothing is left over.", "One is left over.")

    def steps(number: int, odd: int) -> tuple[str, ...]:
        return f"{number} {things} make {number // 2} pairs.", rest[odd]

    odd, name = number % 2, _one(generator, words.names)
    return Question(
        "parity",
        f"{name} has {number} {things}. Is that number even or odd?",
        ("odd", "even") if odd else ("even", "odd"),
        steps(number, odd),
        (steps(number + 1, 1 - odd), steps(number, 1 - odd)),
    )


def _coin_flips(words: Words, generator: Generator) -> Question:
    names, flips = _several(generator, words.names, 2), generator.integers(2, size=2).tolist()
    sides = _several(generator, ("heads", "tails"), 2)

    def step(number: int, flips: int) -> str:
        return f"{names[number]} {'flips it' if flips else 'does not flip it'}."

    right = (step(0, flips[0]), step(1, flips[1]))
    end = sum(flips) % 2
    return Question(
        "coin_flips",
        f"A coin shows {sides[0]}. {' '.join(right)} What does it show now?",
        (sides[end], sides[1 - end]),
        right,
        ((step(0, 1 - flips[0]), right[1]), (right[0], step(1, 1 - flips[1]))),
    )


def _letters(words: Words, generator: Generator) -> Question:
    word, name = _one(generator, words.spelled), _one(generator, words.names)
    places = _several(generator, ("first", "last"), 2)

    def steps(word: str, place: str) -> tuple[str, ...]:
        return f"The word is spelled {', '.join(word)}.", f"We want the {place} letter."

    ends = (word[0], word[-1]) if places[0] == "first" else (word[-1], word[0])
    return Question(
        "letters",
        f"{name} writes the word {word}. What is its {places[0]} letter?",
        ends,
        steps(word, places[0]),
        (steps(word[::-1], places[0]), steps(word, places[1])),
    )


TASKS: dict[str, Callable[[Words, Generator], Question]] = {
    "addition": _addition,
    "two_step_addition": _two_step_addition,
    "word_problem": _word_problem,
    "comparison": _comparison,
    "ordering": _ordering,
    "tracking": _tracking,
    "swaps": _swaps,
    "parity": _parity,
    "coin_flips": _coin_flips,
    "letters": _letters,
}
ARITHMETIC = ("addition", "two_step_addition", "word_problem")
"""Tasks whose answer is a sum that a model may not have at hand."""


def _one(generator: Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(generator.integers(len(choices)))]


def _several(generator: Generator, choices: Sequence[Choice], n: int) -> list[Choice]:
    return [choices[number] for number in generator.permutation(len(choices))[:n]]


def _terms(generator: Generator, n: int, off: int) -> list[int]:
    """Numbers above one whose sum is a single digit, also with one more or less."""
    while True:
        terms = generator.integers(2, 7, size=n).tolist()
        if {sum(terms), sum(terms) + off} <= set(DIGITS):
            return terms


# How a reasoning is told


def _terse(steps: Sequence[str], verdict: str) -> str:
    return f"{' '.join(steps)} So it is {verdict}."


def _verbose(steps: Sequence[str], verdict: str) -> str:
    first, *others = steps
    told = " ".join([f"To begin with: {first}", *(f"The next thing to note: {step}" for step in others)])
    return f"Let us go through this one step at a time. {told} Taking all of that together, the answer is {verdict}."


def _hedged(steps: Sequence[str], verdict: str) -> str:
    first, *others = steps
    told = " ".join([f"If this is read rightly: {first}", *(f"And it seems: {step}" for step in others)])
    return f"{told} So it is probably {verdict}."


def _first_person(steps: Sequence[str], verdict: str) -> str:
    first, *others = steps
    told = " ".join([f"I see this: {first}", *(f"Then I see: {step}" for step in others)])
    return f"{told} So I say it is {verdict}."


STYLES: dict[str, Style] = {"terse": _terse, "verbose": _verbose, "hedged": _hedged, "first_person": _first_person}
Order = Literal["yes_first", "no_first"]
ORDERS: tuple[Order, ...] = get_args(Order)
Options = Literal["right_first", "right_last"]
OPTIONS: tuple[Options, ...] = get_args(Options)
Form = Literal["direct", "free", "stated", "implied"]
FORMS: tuple[Form, ...] = get_args(Form)


def state_verdict(this: str, other: str, order: Order) -> str:
    """A verdict that names both candidates: the one that is meant first, or last."""
    return f"{this}, not {other}" if order == "yes_first" else f"not {other} but {this}"


def imply_verdict(this: str, other: str, order: Order) -> str:
    """A verdict that names both and takes neither; only the steps say which."""
    return f"either {this} or {other}" if order == "yes_first" else f"either {other} or {this}"


# What a model is given, and what it gives


def ask(question: Question, *, options: Options | Literal[""] = "", hint: str = "") -> str:
    """The line of the question, with `options` "right_first" or "right_last" naming both candidates, then a hint."""
    line = f"Question: {question.text}"
    if options:
        first, second = question.candidates if options == "right_first" else question.candidates[::-1]
        line += f" Is it {first} or {second}?"
    return f"{line} {hint}" if hint else line


def answer(line: str, reasoning: str | None, answer: str = "") -> str:
    """A question's line, a reasoning (None: none is asked for) and the answer, or the cue for it."""
    told = "" if reasoning is None else f"\nReasoning: {reasoning}".rstrip()
    return f"{line}{told}\nAnswer:" + (f" {answer}." if answer else "")


def write_examples(shots: Sequence[Question], *, form: Form) -> str:
    """Questions answered rightly, to stand before the one that is asked; styles, orders and options take turns.

    Args:
        shots: such as `draw_shots` draws.
        form: "direct" (no reasoning), "free" (the steps with their working in the first style, and the answer alone),
            "stated" or "implied" (both candidates named in the question and in the verdict).

    Raises:
        InputError: unknown form.
    """
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}: legal are {', '.join(FORMS)}")
    parts = []
    for number, shot in enumerate(shots):
        right, other = shot.candidates
        if form in ("direct", "free"):
            reasoning = None if form == "direct" else _terse([*shot.steps, *filter(None, [shot.working])], right)
            parts.append(answer(ask(shot), reasoning, right))
            continue
        style = list(STYLES.values())[number % len(STYLES)]
        verdict = state_verdict if form == "stated" else imply_verdict
        reasoning = style(shot.steps, verdict(right, other, ORDERS[number % 2]))
        parts.append(answer(ask(shot, options=OPTIONS[number // 2 % 2]), reasoning, right))
    return "".join(f"{part}\n\n" for part in parts)


def split_sentences(reasoning: str) -> list[str]:
    """Its sentences, whose ends are full stops before a space."""
    return re.split(r"(?<=\.) ", reasoning.strip()) if reasoning.strip() else []


def encode_candidates(loaded: LoadedModel, candidates: tuple[str, str]) -> tuple[list[int], tuple[int, int]]:
    """What comes before an answer, such as a bare space before digits, and the one token that is each candidate.

    Raises:
        InputError: candidates that differ by more than one token.
    """
    rows = [loaded.encode_after(f" {candidate}") for candidate in candidates]
    if len(rows[0]) != len(rows[1]) or rows[0][:-1] != rows[1][:-1] or rows[0][-1] == rows[1][-1]:
        raise InputError(f"candidates {candidates}: legal are two that differ by one token in {loaded.card.name!r}")
    return rows[0][:-1], (rows[0][-1], rows[1][-1])


def parse_answer(text: str) -> str | None:
    """The word or number after the last "Answer:", or None where there is none; case counts."""
    found = re.findall(r"Answer:[ \t]*([A-Za-z]+|\d+)\b", text)
    return found[-1] if found else None
