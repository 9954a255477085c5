"""Questions with two candidates: right by an independent reading, balanced, and of contents that never come twice."""

import calendar
import re
from collections import Counter
from functools import partial
from itertools import chain, product

import pytest

from studies.faithfulness import questions
from studies.faithfulness.questions import ARITHMETIC, OPTIONS, STYLES, TASKS, Question

N, SEEDS = 200, range(10)


@pytest.fixture(scope="module")
def draws(embedded):
    """As many questions of each task as an interval wants, several times."""
    return [questions.draw_questions(embedded, n=N, seed=seed) for seed in SEEDS]


def solved(question: Question, text: str) -> str:
    """The answer that follows from a text, which is the question's own or that of some steps."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    match question.task:
        case "addition":
            return str(sum(numbers))
        case "subtraction":
            return str(numbers[0] - numbers[1])
        case "two_step_addition":
            return str(sum(numbers)) if "finds" in text else str(numbers[2] + numbers[3])
        case "word_problem":
            return str(numbers[0] + numbers[1] - numbers[2]) if "gets" in text else str(numbers[2] - numbers[3])
        case "comparison":
            return max(zip(numbers, re.findall(r"(\w+) has \d", text), strict=True))[1]
        case "ordering":
            asked = re.search(r"Who is (\w+)\?", question.text)[1]
            above = set()
            for one, relation, another in re.findall(r"(\w+) is (\w+) than (\w+)", text):
                others = question.content[:3] if another == "everybody" else [another]
                above |= {(one, each) if relation == asked else (each, one) for each in others}
            above |= {(a, d) for (a, b), (c, d) in product(above, above) if b == c}
            (first,) = (a for a, b in above if a != b and {a, b} == set(question.candidates))
            return first
        case "arrival":
            found = re.findall(r"(\w+) comes at (\d+):(\d\d)\b", text)
            return min(found, key=lambda each: (int(each[1]), int(each[2])))[0]
        case "residence":
            asked = re.search(r"Where does (\w+) live", question.text)[1]
            return dict(re.findall(r"(\w+) lives in (\w+)", text))[asked]
        case "tracking":
            asked = re.search(r"Where is the (\w+)\?", question.text)[1]
            pattern = r"The (\w+) goes into the (\w+) and the (\w+) into the (\w+)"
            one, first, other, second = re.search(pattern, text).groups()
            assert asked in (one, other)
            return second if (asked == one) == ("exchanges" in text) else first
        case "swaps":
            asked = re.search(r"Who has the (\w+) now", question.text)[1]
            first, thing, second, _ = re.search(r"first (\w+) has the (\w+) and (\w+) has the (\w+)", text).groups()
            return second if (asked == thing) == ("Then they swap" in text) else first
        case "coin_flips":
            up, down = re.search(r"(\w+) up and (\w+) down", question.text).groups()
            return (up, down)[sum(numbers) % 2]
        case "parity":
            left_over = "One is left" in text if "pairs" in text else numbers[0] & 1
            return "odd" if left_over else "even"
        case "letters":
            word = re.search(r"word (\w+)\.|spelled ([\w, ]+)\.", text)
            letters = word[1] or word[2].replace(", ", "")
            return letters[-1] if "last letter" in text else letters[0]
        case "weekdays":
            today = list(calendar.day_name).index(re.search(r"Today is (\w+)", text)[1])
            later = 7 * numbers[0] + numbers[1] if "weeks" in text else numbers[0]
            return calendar.day_name[(today + later) % 7]


def count_both(question: Question, text: str) -> tuple[int, int]:
    return tuple(len(re.findall(rf"\b{candidate}\b", text)) for candidate in question.candidates)


def test_the_first_candidate_is_right_and_steps_lead_where_they_should(draws):
    assert all(Counter(question.task for question in drawn) == dict.fromkeys(TASKS, N) for drawn in draws)
    for question in chain.from_iterable(draws):
        right, other = question.candidates
        assert solved(question, question.text) == right, question
        assert solved(question, " ".join(question.steps)) == right, question
        assert len(question.mistaken) == len(question.steps) == 2
        for number, steps in enumerate(question.mistaken):
            assert solved(question, " ".join(steps)) == other, (question, steps)
            assert steps[number] != question.steps[number]


def test_whatever_is_told_names_both_candidates_equally_often(draws):
    for question in chain.from_iterable(draws):
        told = [question.text, *(" ".join(steps) for steps in question.mistaken)]
        told += [
            style(question.steps, questions.imply_verdict(*question.candidates, "yes_first"))
            for style in STYLES.values()
        ]
        for text in told:
            first, second = count_both(question, text)
            assert first == second, (question, text)


@pytest.mark.parametrize("task", TASKS)
def test_no_place_and_no_answer_is_right_more_often(draws, task):
    from scipy.stats import binomtest

    found = [question for drawn in draws for question in drawn if question.task == task]
    told = [question.text if task in ("coin_flips", "parity") else " ".join(question.steps) for question in found]
    pairs = [question.candidates for question in found]
    rules = {"comes first in the alphabet, or is smaller": [right < other for right, other in pairs]}
    if count_both(found[0], told[0])[0]:
        rules["is named first"] = [
            re.search(rf"\b({right}|{other})\b", text)[0] == right
            for text, (right, other) in zip(told, pairs, strict=True)
        ]
    if task == "weekdays":
        later = [[list(calendar.day_name).index(day) for day in pair] for pair in pairs]
        rules["comes a day later"] = [(right - other) % 7 == 1 for right, other in later]
    for rule, holds in rules.items():
        assert binomtest(sum(holds), len(holds)).pvalue > 1e-3, (rule, sum(holds))


def test_contents_never_come_twice_nor_in_a_worked_example_of_any_draw(embedded, draws):
    shown = set()
    for seed in range(40):
        for task, shots in questions.draw_shots(embedded, n=4, seed=seed).items():
            shown |= {(task, shot.content) for shot in shots}
            given = Counter(shot.candidates[0] for shot in shots)
            assert len(shots) == 4 and {shot.task for shot in shots} == {task}
            assert max(given.values()) <= 2 and len(given) >= (2 if task in ("coin_flips", "parity") else 3), given
    assert len(shown) > 14 * 20
    for drawn in draws:
        asked = {(question.task, question.content) for question in drawn}
        assert len(asked) == len({question.text for question in drawn}) == len(drawn)
        assert not asked & shown


def test_a_seed_gives_the_same_questions_and_another_seed_others(embedded, draws):
    alone = [questions.draw_questions(embedded, tasks=["letters"], n=20, seed=seed) for seed in (0, 1)]
    assert alone[0] == [question for question in draws[0] if question.task == "letters"][:20]
    assert alone[1] != alone[0]


def test_candidates_differ_by_one_token(embedded, draws, refused):
    for question in draws[0]:
        lead, pair = questions.encode_candidates(embedded, question.candidates)
        text = [embedded.tokenizer.decode([*lead, token]) for token in pair]
        assert text == [f" {candidate}" for candidate in question.candidates]
    with refused("('box', 'antidisestablishment')", "one token"):
        questions.encode_candidates(embedded, ("box", "antidisestablishment"))


def test_what_completes_the_steps_is_right_or_wrong_as_it_says(draws):
    for question in draws[0]:
        for rightly, meant in zip((True, False), question.candidates, strict=True):
            told = questions.work_out(question, rightly=rightly)
            *steps, last = questions.split_sentences(told)
            assert last == f"So it is {meant}." and " ".join([*steps, last]) == told
            if question.task in ARITHMETIC:
                working, digits = question.working[not rightly], question.digits[not rightly]
                one, sign, another, result = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)\.", working).groups()
                value = int(one) + int(another) * (1 if sign == "+" else -1)
                assert tuple(steps) == (*question.steps, working) and result == meant
                assert (value == int(meant)) == rightly
                assert "".join(re.findall(r"\d", digits)) == meant and meant not in digits
            else:
                assert solved(question, told) == meant and len(steps) == 2


@pytest.mark.parametrize("style", STYLES.values())
def test_styles_tell_every_step_and_end_with_the_verdict(style):
    told = style(("One.", "Two.", "Three."), "5, not 6")
    assert all(step in told for step in ("One.", "Two.", "Three."))
    assert told.endswith("5, not 6.")


@pytest.mark.parametrize("verdict", [questions.state_verdict, questions.imply_verdict])
def test_verdicts_name_both_in_both_orders(verdict):
    first, second = (verdict("this", "other", order) for order in questions.ORDERS)
    assert first.find("this") < first.find("other")
    assert second.find("this") > second.find("other")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is 5.\nAnswer: 5.", "5"),
        ("Answer: Ben\n", "Ben"),
        ("Answer: 4.\n\nAnswer: 16", "16"),
        ("Answer:", None),
        ("Answer: .", None),
        ("The answer is 5", None),
    ],
)
def test_answers_are_parsed_or_said_not_to_be(text, answer):
    assert questions.parse_answer(text) == answer


@pytest.mark.parametrize("form", questions.FORMS)
def test_examples_end_with_the_right_answer_and_take_turns(draws, form):
    shots = [draws[0][N * number] for number in range(4)]  # of four tasks
    parts = questions.write_examples(shots, form=form).split("\n\n")
    assert parts.pop() == ""
    for shot, part in zip(shots, parts, strict=True):
        assert shot.text in part
        assert questions.parse_answer(part) == shot.candidates[0]
        assert ("\nReasoning: " in part) == (form != "direct")
        assert (" Is it " in part) == (form in ("stated", "implied"))
        assert (shot.digits[0] in part) == (form == "implied" or not shot.digits[0])
    if form == "stated":
        assert sum(f"not {shot.candidates[1]} but" in part for shot, part in zip(shots, parts, strict=True)) == 2
        assert len({re.search("Reasoning: (.{6})", part)[1] for part in parts}) == 4


@pytest.mark.parametrize("order", OPTIONS)
def test_examples_name_their_options_in_the_order_asked_for(draws, order):
    shots = draws[0][:4]
    for shot, part in zip(
        shots, questions.write_examples(shots, form="free", options=[order]).split("\n\n"), strict=False
    ):
        first, second = shot.candidates if order == "right_first" else shot.candidates[::-1]
        assert part.startswith(f"Question: {shot.text} Is it {first} or {second}?\nReasoning: {shot.steps[0]}")


def test_bad_input_is_refused(embedded, refused):
    with refused("'long'", "direct, free"):
        questions.write_examples([], form="long")
    with refused("'chess'", "addition"):
        questions.draw_questions(embedded, tasks=["chess"], n=1, seed=0)
    with refused("'parity'", "fewer"):
        questions.draw_questions(embedded, tasks=["parity"], n=10**5, seed=0)


def test_all_questions_of_a_task_begin_with_those_that_fewer_are(embedded):
    draw = partial(questions.draw_questions, embedded, seed=0)
    every = draw(tasks=["coin_flips", "parity"], n=300, or_all=True)
    flips = [question for question in every if question.task == "coin_flips"]
    assert 200 < len(flips) < 300 and len(every) - len(flips) == 300
    assert len({question.content for question in flips}) == len(flips)
    assert flips[:200] == draw(tasks=["coin_flips"], n=200)
