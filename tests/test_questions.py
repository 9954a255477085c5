"""Questions with two candidates: right by an independent reading, balanced, and told from their text by no count."""

import re
from collections import Counter

import pytest

from studies.faithfulness import questions
from studies.faithfulness.questions import TASKS, Question

N = 60


@pytest.fixture(scope="module")
def drawn(embedded):
    return questions.draw_questions(embedded, n=N, seed=0)


def solved(question: Question, text: str) -> str:
    """The answer that follows from a text, which is the question's own or that of some steps."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    match question.task:
        case "addition":
            return str(sum(numbers))
        case "two_step_addition":
            return str(sum(numbers)) if "finds" in text else str(numbers[2] + numbers[3])
        case "word_problem":
            return str(numbers[0] + numbers[1] - numbers[2]) if "gets" in text else str(numbers[2] - numbers[3])
        case "comparison":
            names = re.findall(r"(\w+) has", text)[:2]
            return names[numbers[1] > numbers[0]]
        case "ordering":
            asked = re.search(r"Who is (\w+)\?", question.text)[1]
            facts = re.findall(r"(\w+) is (\w+) than (\w+)", text)
            if facts[-1][2] == "everybody":
                top = facts[-1][0]
                last = facts[-1][1] != asked
                return facts[0][0] if last else top
            first, relation, _ = facts[0]
            return first if relation == asked else facts[1][2]
        case "tracking":
            asked = re.search(r"Where is the (\w+)\?", question.text)[1]
            one, first, other, second = re.search(
                r"The (\w+) goes into the (\w+) and the (\w+) into the (\w+)", text
            ).groups()
            assert asked in (one, other)
            return second if (asked == one) == ("exchanges" in text) else first
        case "swaps":
            asked = re.search(r"Who has the (\w+) now", question.text)[1]
            first, thing, second, _ = re.search(r"first (\w+) has the (\w+) and (\w+) has the (\w+)", text).groups()
            return second if (asked == thing) == ("Then they swap" in text) else first
        case "parity":
            if "pairs" in text:
                return "odd" if "One is left over" in text else "even"
            return "odd" if numbers[0] % 2 else "even"
        case "coin_flips":
            start = re.search(r"shows (\w+)", question.text)[1]
            flips = len(re.findall("flips it", text))
            return start if flips % 2 == 0 else {"heads": "tails", "tails": "heads"}[start]
        case "letters":
            word = re.search(r"word (\w+)\.|spelled ([\w, ]+)\.", text)
            letters = word[1] or word[2].replace(", ", "")
            return letters[-1] if "last" in text else letters[0]


def test_the_first_candidate_is_right_and_steps_lead_where_they_should(drawn, n=N):
    assert Counter(question.task for question in drawn) == dict.fromkeys(TASKS, n)
    for question in drawn:
        right, other = question.candidates
        assert solved(question, question.text) == right, question
        assert solved(question, " ".join(question.steps)) == right, question
        assert len(question.mistaken) == len(question.steps)
        for number, steps in enumerate(question.mistaken):
            assert solved(question, " ".join(steps)) == other, (question, steps)
            assert steps[:number] == question.steps[:number]
            assert steps[number] != question.steps[number]


def test_invariants_hold_over_thousands_of_seeds(embedded, drawn, monkeypatch):
    known = {word: True for word in questions.keep_single_tokens(embedded, questions.NAMES + questions.CONTAINERS)}
    monkeypatch.setattr(
        questions, "keep_single_tokens", lambda _, words: [w for w in words if w in known or len(w) == 1]
    )
    for seed in range(2000):
        found = questions.draw_questions(embedded, n=1, seed=seed)
        assert [question.task for question in found] == list(TASKS)
        test_the_first_candidate_is_right_and_steps_lead_where_they_should(found, 1)
        test_steps_name_both_candidates_equally_often(found)


def test_steps_name_both_candidates_equally_often(drawn):
    for question in drawn:
        for steps in (question.steps, *question.mistaken):
            counts = Counter(re.findall(r"[A-Za-z]+|\d+", " ".join(steps)))
            assert counts[question.candidates[0]] == counts[question.candidates[1]], question


@pytest.mark.parametrize("task", TASKS)
def test_no_place_and_no_answer_is_right_more_often(embedded, task):
    from scipy.stats import binomtest

    found = questions.draw_questions(embedded, tasks=[task], n=300, seed=1)
    if all(question.candidates[0].isdigit() for question in found):
        first = [int(question.candidates[0]) < int(question.candidates[1]) for question in found]
    else:
        lines = [
            " ".join(question.steps) if task != "letters" else "".join(sorted(question.candidates))
            for question in found
        ]
        pairs = [question.candidates for question in found]
        first = [
            line.find(right) < line.find(other) if right in line else right in ("even", "heads")
            for line, (right, other) in zip(lines, pairs, strict=True)
        ]
    assert binomtest(sum(first), len(first)).pvalue > 1e-3, sum(first)


def test_a_seed_gives_the_same_questions_and_another_seed_others(embedded, drawn):
    assert questions.draw_questions(embedded, n=N, seed=0) == drawn
    assert questions.draw_questions(embedded, tasks=["letters"], n=N, seed=0) == drawn[-N:]
    assert questions.draw_questions(embedded, tasks=["letters"], n=N, seed=1) != drawn[-N:]
    assert len({question.text for question in drawn}) == len(drawn)


def test_candidates_differ_by_one_token(embedded, drawn, refused):
    for question in drawn:
        lead, pair = questions.encode_candidates(embedded, question.candidates)
        text = [embedded.tokenizer.decode([*lead, token]) for token in pair]
        assert text == [f" {candidate}" for candidate in question.candidates]
    with refused("('box', 'antidisestablishment')", "one token"):
        questions.encode_candidates(embedded, ("box", "antidisestablishment"))


@pytest.mark.parametrize("style", questions.STYLES.values())
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
        ("Answer: 12", "12"),
        ("Answer: 4.\n\nAnswer: 6", "6"),
        ("Answer:", None),
        ("Answer: .", None),
        ("The answer is 5", None),
        ("", None),
    ],
)
def test_answers_are_parsed_or_said_not_to_be(text, answer):
    assert questions.parse_answer(text) == answer


@pytest.mark.parametrize("form", questions.FORMS)
def test_examples_end_with_the_right_answer_and_take_turns(drawn, form):
    shots = drawn[:4]
    parts = questions.write_examples(shots, form=form).split("\n\n")
    assert parts.pop() == ""
    for shot, part in zip(shots, parts, strict=True):
        assert shot.text in part
        assert questions.parse_answer(part) == shot.candidates[0]
        assert ("\nReasoning: " in part) == (form != "direct")
        assert (" or " in part) == (form in ("stated", "implied"))
    if form == "stated":
        assert sum(f"not {shot.candidates[1]} but" in part for shot, part in zip(shots, parts, strict=True)) == 2
        starts = [re.search("Reasoning: (.{6})", part)[1] for part in parts]
        assert len(set(starts)) == 4


@pytest.mark.parametrize("seed", range(20))
def test_shots_answer_variously(embedded, seed):
    for task, shots in questions.draw_shots(embedded, n=4, seed=seed).items():
        given = Counter(question.candidates[0] for question in shots)
        assert len(shots) == 4 and {question.task for question in shots} == {task}
        assert max(given.values()) <= 2, (task, given)
        assert len(given) >= (2 if task in ("coin_flips", "parity") else 3), (task, given)


def test_shots_are_none_of_the_questions(embedded, drawn):
    shots = {question.text for some in questions.draw_shots(embedded, n=4, seed=0).values() for question in some}
    assert not shots & {question.text for question in drawn}


def test_sentences_make_up_the_reasoning(drawn):
    for question in drawn:
        reasoning = questions._terse(question.steps, question.candidates[0])
        assert " ".join(questions.split_sentences(reasoning)) == reasoning
        assert len(questions.split_sentences(reasoning)) == len(question.steps) + 1
    assert questions.split_sentences("") == []


def test_bad_input_is_refused(embedded, refused):
    with refused("'long'", "direct, free"):
        questions.write_examples([], form="long")
    with refused("'chess'", "addition"):
        questions.draw_questions(embedded, tasks=["chess"], n=1, seed=0)
    with refused("'parity'", "fewer"):
        questions.draw_questions(embedded, tasks=["parity"], n=10**5, seed=0)
