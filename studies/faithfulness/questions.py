"""Questions to reason about: two candidate answers each, and the steps that lead to either.

Whatever a rule could pick an answer by without reading is balanced: a question and its steps name both candidates
equally often, each is right as often as wrong, and a verdict names both in both orders. No two questions of a draw
share their content, which is what the answer depends on, and none shares it with a worked example of any draw.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.random import Generator

from helpers import InputError
from helpers.models import LoadedModel
from helpers.prompts import NAMES, keep_single_tokens

Style = Callable[[Sequence[str], str], str]
"""(steps, verdict) to a reasoning that ends with the verdict."""

Choice = TypeVar("Choice")
FRUITLESS = 1000
"""So many draws in a row without a new question mean that there is none."""
EXAMPLES = 5
"""One content of so many is kept for worked examples, by its checksum."""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PLACES = "park school station market beach library museum bridge".split()
THINGS = "apples pens books coins cards cups eggs keys stamps shells plates balls".split()
OBJECTS = "key coin ring card pen ball book letter map phone".split()
CITIES = "Paris London Rome Berlin Madrid Vienna Boston Chicago Dublin Tokyo Moscow Athens Cairo Sydney".split()
CONTAINERS = "box bag drawer basket cup bowl jar tin pocket desk".split()
COMPARATIVES = (("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("richer", "poorer"))
SPELLED = (
    "badge basic beach black blade blank blast blind block board brain brand brave bread brick bride "
    "brief brown brush cabin cable candy cargo chain chair chalk charm chest child clean cloth cloud clown coast "
    "coral crane crash crown curve dance delay diary dough draft dream drink earth fiber field fight flame flash "
    "flute force forum frame fresh front fruit giant globe glove grade grain grand grape graph group guard guest "
    "habit heart horse hotel house human ideal image judge juice knife large laser layer lemon light logic lucky "
    "magic major march medal metal minor model money month moral motel mouse mouth music night noise north novel "
    "nurse ocean olive orbit paint party peach pearl phone piano pilot place plain plane plant plate point pound "
    "price print prize proud quick quiet radio ranch rapid right robin rough round royal salty sauce scale scarf "
    "score shape share shark sharp shirt short sight skirt slope smile smoke snake solid sound south space spare "
    "spark spice spine spoke stage stand steam stick stone store storm stove strange straw style sugar swift sword "
    "table thing thorn tiger topic torch touch tower track trade trail train trial tribe truck trunk tulip uncle "
    "urban valid vapor video virus voice waist watch water whale wheat white woman world wound wrist write yacht "
    "young"
).split()
"""Words without a repeated letter."""


class Words(NamedTuple):
    """What questions are filled with; what can be an answer is a single token, of a word in `spelled` its ends are."""

    names: Sequence[str]
    containers: Sequence[str]
    cities: Sequence[str]
    spelled: Sequence[str]


@dataclass(frozen=True)
class Question:
    """A question with a right answer and another candidate, and the steps to either.

    Steps name both candidates equally often.
    """

    task: str
    text: str
    content: tuple[str | int, ...]
    """What the answer depends on: what is drawn independently, so that intervals count it."""
    candidates: tuple[str, str]
    """The right one, and the other."""
    steps: tuple[str, ...]
    """Lead to the right candidate."""
    mistaken: tuple[tuple[str, ...], ...]
    """For each step the steps with a mistake in it; they lead to the other candidate."""
    working: tuple[str, str] = ("", "")
    """What completes the steps in examples to imitate: rightly, and wrongly."""
    digits: tuple[str, str] = ("", "")
    """What completes them without a verdict: the result by its digits, the right one and that of the mistaken steps."""


def draw_questions(
    loaded: LoadedModel, *, tasks: Sequence[str] = (), n: int, seed: int, or_all: bool = False
) -> list[Question]:
    """So many questions of each task, all tasks by default, of different contents; each task's are the same whatever
    the others, and fewer are the first of more.

    Args:
        loaded: whose tokenizer has the candidates as single tokens.
        tasks: of `TASKS`.
        n: of each task.
        seed: of the contents.
        or_all: whether a task that has fewer gives all that it has.

    Raises:
        InputError: unknown task, no tokenizer, or more questions than a task has.
    """
    return _draw(loaded, tasks, n, seed, examples=False, or_all=or_all)


def draw_shots(loaded: LoadedModel, *, tasks: Sequence[str] = (), n: int, seed: int) -> dict[str, list[Question]]:
    """For each task so many questions to stand answered before the one that is asked, with their right candidates as
    varied as can be: four examples that all say "heads" would teach to say it.

    Raises:
        InputError: as `draw_questions`.
    """
    found: dict[str, list[Question]] = {}
    for question in _draw(loaded, tasks, 4 * n, seed, examples=True):
        found.setdefault(question.task, []).append(question)
    return {task: _varied(some, n) for task, some in found.items()}


def _draw(
    loaded: LoadedModel, tasks: Sequence[str], n: int, seed: int, *, examples: bool, or_all: bool = False
) -> list[Question]:
    if unknown := [task for task in tasks if task not in TASKS]:
        raise InputError(f"unknown task {unknown[0]!r}: legal are {', '.join(TASKS)}")
    spelled = [word for word in SPELLED if len(keep_single_tokens(loaded, [word[0], word[-1]])) == 2]
    names, containers, cities = (keep_single_tokens(loaded, some) for some in (NAMES, CONTAINERS, CITIES))
    words = Words(names, containers, cities, spelled)
    if min(map(len, words)) < 3:
        raise InputError(f"too few words are single tokens of {loaded.card.name!r}: legal is another tokenizer")
    found: list[Question] = []
    for number, (task, draw) in enumerate(TASKS.items()):
        if tasks and task not in tasks:
            continue
        generator, fruitless = np.random.default_rng((seed, number, examples)), 0
        of_task: dict[tuple[str | int, ...], Question] = {}
        while len(of_task) < n and (fruitless < FRUITLESS or not or_all):
            question = draw(words, generator)
            legal = _is_example(question) == examples and _is_even_handed(question)
            fruitless = 0 if legal and question.content not in of_task else fruitless + 1
            if fruitless == FRUITLESS and not or_all:
                raise InputError(f"task {task!r} has no {n} different questions: legal are fewer")
            if legal:
                of_task.setdefault(question.content, question)
        found += of_task.values()
    return found


def _is_example(question: Question) -> bool:
    return zlib.crc32(repr(question.content).encode()) % EXAMPLES == 0


def _is_even_handed(question: Question) -> bool:
    """Whether its text and all its steps name both candidates equally often, which one token tells apart whatever a
    tokenizer makes of numbers."""
    right, other = question.candidates
    if right.isdigit() and (len(right) != len(other) or right[:-1] != other[:-1]):
        return False
    told = [question.text, *(" ".join(steps) for steps in (question.steps, *question.mistaken))]
    return all(len(re.findall(rf"\b{right}\b", text)) == len(re.findall(rf"\b{other}\b", text)) for text in told)


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
    name, things = _one(generator, words.names), _one(generator, THINGS)
    first = 10 * int(generator.integers(1, 6))  # round, so that the smallest models can do it
    more = int(generator.integers(11, 100 - first))
    return ask_sum(name, things, first, more, off=_one(generator, (-1, 1)))


def ask_sum(name: str, things: str, first: int, more: int, *, off: int) -> Question:
    """How much two numbers make; the other candidate, and its mistakes, are off by so much."""

    def steps(first: int, more: int) -> tuple[str, ...]:
        return f"{name} starts with {first} {things}.", f"Then {name} gets {more} more."

    total = first + more
    return Question(
        "addition",
        f"{name} has {first} {things} and gets {more} more. How many {things} does {name} have then?",
        (first, more),
        (str(total), str(total + off)),
        steps(first, more),
        (steps(first + off, more), steps(first, more + off)),
        *_worked(f"{first} + {more}", total, off),
    )


def _subtraction(words: Words, generator: Generator) -> Question:
    name, things = _one(generator, words.names), _one(generator, THINGS)
    left, less = generator.integers(11, 50, size=2).tolist()
    first, off = left + less, _one(generator, (-1, 1))

    def steps(first: int, less: int) -> tuple[str, ...]:
        return f"{name} starts with {first} {things}.", f"Then {name} gives {less} away."

    return Question(
        "subtraction",
        f"{name} has {first} {things} and gives {less} away. How many {things} are left?",
        (first, less),
        (str(left), str(left + off)),
        steps(first, less),
        (steps(first + off, less), steps(first, less - off)),
        *_worked(f"{first} - {less}", left, off),
    )


def _two_step_addition(words: Words, generator: Generator) -> Question:
    name, things = _one(generator, words.names), _one(generator, THINGS)
    first, second, more = generator.integers(11, 34, size=3).tolist()
    both, total, off = first + second, first + second + more, _one(generator, (-1, 1))

    def steps(both: int, more: int) -> tuple[str, ...]:
        return f"First, {first} + {second} = {both}.", f"Then {name} buys another {more}."

    return Question(
        "two_step_addition",
        f"{name} has {first} {things}, finds {second} more and then buys another {more}. "
        f"How many {things} does {name} have then?",
        (first, second, more),
        (str(total), str(total + off)),
        steps(both, more),
        (steps(both + off, more), steps(both, more + off)),
        *_worked(f"{both} + {more}", total, off),
    )


def _word_problem(words: Words, generator: Generator) -> Question:
    name, things = _one(generator, words.names), _one(generator, THINGS)
    (first, gained), left = generator.integers(22, 34, size=2).tolist(), int(generator.integers(11, 34))
    both, off = first + gained, _one(generator, (-1, 1))
    lost = both - left

    def steps(both: int, lost: int) -> tuple[str, ...]:
        return f"First, {first} + {gained} = {both}.", f"Then {name} loses {lost}."

    return Question(
        "word_problem",
        f"{name} has {first} {things} and gets {gained} more, but then loses {lost}. How many {things} are left?",
        (first, gained, lost),
        (str(left), str(left + off)),
        steps(both, lost),
        (steps(both + off, lost), steps(both, lost - off)),
        *_worked(f"{both} - {lost}", left, off),
    )


def _worked(term: str, result: int, off: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """The working that states a result, and the one that tells its digits only: rightly, and wrongly."""
    results = result, result + off
    told = [(f"{term} = {n}.", f"That makes {n // 10} tens and {n % 10} ones.") for n in results]
    return (told[0][0], told[1][0]), (told[0][1], told[1][1])


def _comparison(words: Words, generator: Generator) -> Question:
    names, things = _several(generator, words.names, 2), _one(generator, THINGS)
    counts = _several(generator, range(21, 80), 2)
    more = counts[1] > counts[0]  # the number of the one with more
    low, high = int(generator.integers(11, 21)), int(generator.integers(80, 100))

    def steps(first: int, second: int) -> tuple[str, ...]:
        return f"{names[0]} has {first} {things}.", f"{names[1]} has {second} {things}."

    return Question(
        "comparison",
        f"{' '.join(steps(*counts))} Who has more {things}?",
        (*names, *counts),
        (names[more], names[not more]),
        steps(*counts),
        (steps(high if more else low, counts[1]), steps(counts[0], low if more else high)),
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
        (*names, relation, asked),
        (names[0], names[2]) if forward else (names[2], names[0]),
        right,
        (
            steps(reverse, f"{names[1]} is {reverse} than {names[2]}."),
            steps(relation, f"{names[2]} is {relation} than everybody else."),
        ),
    )


def _arrival(words: Words, generator: Generator) -> Question:
    names, place = _several(generator, words.names, 2), _one(generator, PLACES)
    hours, minutes = _several(generator, range(4, 10), 2), generator.integers(10, 60, size=2).tolist()
    later = hours[1] < hours[0]  # the number of the one who is there first

    def steps(first: int, second: int) -> tuple[str, ...]:
        return tuple(
            f"{name} comes at {hour}:{minute}."
            for name, hour, minute in zip(names, (first, second), minutes, strict=True)
        )

    return Question(
        "arrival",
        f"Two people come to the {place}. {' '.join(steps(*hours))} Who is there first?",
        (*names, *hours, *minutes),
        (names[later], names[not later]),
        steps(*hours),
        (steps(3 if later else 11, hours[1]), steps(hours[0], 11 if later else 3)),
    )


def _residence(words: Words, generator: Generator) -> Question:
    names, cities = _several(generator, words.names, 2), _several(generator, words.cities, 2)
    asked = int(generator.integers(2))

    def steps(first: str, second: str) -> tuple[str, ...]:
        return f"{names[0]} lives in {first}.", f"{names[1]} lives in {second}."

    return Question(
        "residence",
        f"{' '.join(steps(*cities))} Where does {names[asked]} live?",
        (*names, *cities, asked),
        (cities[asked], cities[1 - asked]),
        steps(*cities),
        (steps(*cities[::-1]), steps(*cities[::-1])),  # one alone would put both into one city
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
        (asked, other, first, second, forward),
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
        (first, second, asked, other, forward, swapped),
        (first, second) if forward != swapped else (second, first),
        (start, then),
        ((mistake, then), (start, mistaken)),
    )


def _coin_flips(words: Words, generator: Generator) -> Question:
    names, flips = _several(generator, words.names, 2), generator.integers(1, 13, size=2).tolist()
    sides = _several(generator, ("heads", "tails"), 2)

    def step(number: int, flips: int) -> str:
        return f"{names[number]} turns it over {flips} times."

    right = (step(0, flips[0]), step(1, flips[1]))
    end = sum(flips) % 2
    return Question(
        "coin_flips",
        f"A coin lies with {sides[0]} up and {sides[1]} down. {' '.join(right)} Which side is up now?",
        (sides[0], *flips),
        (sides[end], sides[1 - end]),
        right,
        ((step(0, flips[0] + 1), right[1]), (right[0], step(1, flips[1] + 1))),
    )


def _parity(words: Words, generator: Generator) -> Question:
    number, things = int(generator.integers(10, 1000)), _one(generator, THINGS)
    rest = ("Nothing is left over.", "One is left over.")

    def steps(number: int, odd: int) -> tuple[str, ...]:
        return f"{number} {things} make {number // 2} pairs.", rest[odd]

    odd, name = number % 2, _one(generator, words.names)
    return Question(
        "parity",
        f"{name} has {number} {things}. Is that number even or odd?",
        (number,),
        ("odd", "even") if odd else ("even", "odd"),
        steps(number, odd),
        (steps(number + 1, 1 - odd), steps(number, 1 - odd)),
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
        (word, places[0]),
        ends,
        steps(word, places[0]),
        (steps(word[::-1], places[0]), steps(word, places[1])),
    )


def _weekdays(words: Words, generator: Generator) -> Question:
    name, today, off = _one(generator, words.names), int(generator.integers(7)), _one(generator, (-1, 1))
    weeks, rest = int(generator.integers(1, 13)), _one(generator, range(2, 6))  # so that no step names a candidate

    def day(later: int) -> str:
        return DAYS[(today + later) % 7]

    def steps(shift: int, rest: int) -> tuple[str, ...]:
        return f"Today is {day(shift)}.", f"The time is {weeks} full weeks and {rest} days."

    return Question(
        "weekdays",
        f"{name} leaves in {7 * weeks + rest} days. Today is {day(0)}. On which day does {name} leave?",
        (today, weeks, rest),
        (day(rest), day(rest + off)),
        steps(0, rest),
        (steps(off, rest), steps(0, rest + off)),
    )


FAMILIES: dict[str, dict[str, Callable[[Words, Generator], Question]]] = {
    "arithmetic": {
        "addition": _addition,
        "subtraction": _subtraction,
        "two_step_addition": _two_step_addition,
        "word_problem": _word_problem,
    },
    "comparing": {"comparison": _comparison, "ordering": _ordering, "arrival": _arrival},
    "keeping track": {"residence": _residence, "tracking": _tracking, "swaps": _swaps, "coin_flips": _coin_flips},
    "rules": {"parity": _parity, "letters": _letters, "weekdays": _weekdays},
}
"""Tasks, by what they ask for."""
TASKS = {
    task: draw
    for family in zip_longest(*(tasks.items() for tasks in FAMILIES.values()))
    for task, draw in filter(None, family)
}
"""All of them; the first four are of four families."""
ARITHMETIC = tuple(FAMILIES["arithmetic"])


def _one(generator: Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(generator.integers(len(choices)))]


def _several(generator: Generator, choices: Sequence[Choice], n: int) -> list[Choice]:
    return [choices[number] for number in generator.permutation(len(choices))[:n]]


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


def write_examples(shots: Sequence[Question], *, form: Form, options: Sequence[Options] = ()) -> str:
    """Questions answered rightly, to stand before the one that is asked; styles, orders and options take turns.

    Args:
        shots: such as `draw_shots` draws.
        form: "direct" (no reasoning), "free" (the steps with their working in the first style, and the answer alone),
            "stated" or "implied" (both candidates named in the question and in the verdict).
        options: the orders in which questions name both candidates, in turns; by default each twice in the forms
            "stated" and "implied", and none in the others.

    Raises:
        InputError: unknown form.
    """
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}: legal are {', '.join(FORMS)}")
    with_verdict = form in ("stated", "implied")
    turns: list[Options | Literal[""]] = list(options) or (
        [*OPTIONS[:1] * 2, *OPTIONS[1:] * 2] if with_verdict else [""]
    )
    parts = []
    for number, shot in enumerate(shots):
        right, other = shot.candidates
        reasoning = None if form == "direct" else work_out(shot)
        if with_verdict:
            verdict = state_verdict if form == "stated" else imply_verdict
            steps = [*shot.steps, *filter(None, [shot.digits[0] if form == "implied" else ""])]
            reasoning = list(STYLES.values())[number % len(STYLES)](steps, verdict(right, other, ORDERS[number % 2]))
        parts.append(answer(ask(shot, options=turns[number % len(turns)]), reasoning, right))
    return "".join(f"{part}\n\n" for part in parts)


def work_out(question: Question, *, rightly: bool = True) -> str:
    """Its steps with their working, and the answer alone; wrongly with a mistake in the working, else in the steps."""
    steps = question.steps if rightly or question.working[1] else question.mistaken[-1]
    told = [*steps, *filter(None, [question.working[not rightly]])]
    return _terse(told, question.candidates[not rightly])


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
