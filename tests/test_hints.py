"""Planted models that follow hints, or any named candidate, or none, are found out, and so is what they say of it."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from shared.transcripts import planted, read_options

from studies.faithfulness import hints, questions
from studies.faithfulness.hints import ARMS, HINTS, PULLS, ask_with_hints

TASKS = ["addition", "residence", "letters", "coin_flips"]


@pytest.fixture(scope="module")
def few(embedded):
    return questions.draw_questions(embedded, tasks=TASKS, n=3, seed=0)


@pytest.fixture
def ask(embedded, few, monkeypatch):
    """Rows of a planted model: `reply(before, line)` gives reasoning and answer, or an answer, or None for the right
    one."""

    def ask(reply, **options):
        right = {question.text: question.candidates[0] for question in few}

        def whole(before, line):
            given = reply(before, line)
            given = given if isinstance(given, tuple) else ("So.", given)
            return given[0], given[1] or next(answer for text, answer in right.items() if text in line)

        monkeypatch.setattr(hints, "continue_questions", planted(whole))
        return ask_with_hints(embedded, few, **({"n_samples": 2, "seed": 0} | options))

    return ask


def read_examples(before):
    """Line and answer of each worked example."""
    return [re.match(r"(.*)\n.*\nAnswer: (\w+)\.$", part).groups() for part in before.split("\n\n")[:-1]]


def follow_pulls(before, line):
    """Believes authorities, copies an answer to the same question, and learns where the right option stands."""
    if said := re.search(r"(?:professor says that the answer is|answer key says) (\w+)\.$", line):
        return said[1]
    examples = read_examples(before)
    firsts = [read_options(shown) and read_options(shown)[0] == answer for shown, answer in examples]
    return dict(examples).get(line) or (read_options(line)[0] if all(firsts) else None)


def follow_names(before, line):
    """Says again what was named last, whoever said it and of whatever, or else the option named first."""
    said, (shown, copied) = re.search(r"\? [^?]*\b(\w+)\.$", line), read_examples(before)[-1]
    if said:
        return said[1]
    return copied if shown in (line, f"Question: {hints.COPIED[0]}") else read_options(line)[0]


@pytest.mark.parametrize(
    ("reply", "pull", "twin"), [(follow_pulls, 1, 0), (follow_names, 1, 1), (lambda before, line: None, 0, 0)]
)
def test_only_who_follows_pulls_has_an_excess(ask, few, reply, pull, twin):
    found = hints.measure_excess(ask(reply))
    assert sorted(zip(found["question"], found["pull"], strict=True)) == sorted(
        (question.text, pull) for question, pull in product(few, PULLS)
    )
    assert (found["follows_pull"] == pull).all() and (found["follows_twin"] == twin).all()
    assert (found["excess"] == pull - twin).all()


def test_arms_differ_only_where_they_should(ask, few):
    found = ask(lambda before, line: None, n_samples=4)
    assert Counter(zip(found["pull"], found["arm"], strict=True)) == dict.fromkeys(product(PULLS, ARMS), 4 * len(few))
    found["line"] = found["text"].str.split("\n").str[0]
    for (_, pull, sample), rows in found.groupby(["question", "pull", "sample"]):
        none, twin, other = (rows[rows["arm"] == arm].iloc[0] for arm in ARMS)
        assert twin["named"] == other["named"] == other["other"] != other["right"]
        examples = {row["arm"]: read_examples(row["before"]) for row in (none, twin, other)}
        if pull == "sentence":
            assert none["before"] == twin["before"] == other["before"]
            for row in (twin, other):
                assert row["line"] == f"{none['line']} {row['hint']}"
                assert row["hint"] == HINTS[pull, row["arm"]][sample // 2].format(row["named"])
            counts = [
                len(re.findall(rf"\b{row['named']}\b", row["before"] + row["line"])) for row in (none, twin, other)
            ]
            assert counts[1] == counts[2] == counts[0] + 1
        elif pull == "example":
            assert none["line"] == twin["line"] == other["line"] and none["options"] == questions.OPTIONS[sample % 2]
            assert examples["none"][:3] == examples["twin"][:3] == examples["pull"][:3]
            assert examples["pull"][3] == (other["line"], other["named"])
            assert examples["twin"][3] == (f"Question: {hints.COPIED[0]}", other["named"])
            assert len(examples["none"]) == 4
        else:
            assert twin["line"] == other["line"] and read_options(twin["line"]) == (twin["other"], twin["right"])
            assert (read_options(none["line"])[0] == none["right"]) == (sample % 2 == 0)
            for shown, firsts in (("pull", 4), ("twin", 2), ("none", 2)):
                assert sum(read_options(line)[0] == answer for line, answer in examples[shown]) == firsts
            plain = [[line.split(" Is it ")[0] for line, _ in some] for some in examples.values()]
            assert plain[0] == plain[1] == plain[2]


def test_all_arms_stand_after_the_same_draws_of_examples(ask, embedded):
    found = ask(lambda before, line: None)
    first = found["before"].map(lambda before: tuple(line.split(" Is it ")[0] for line, _ in read_examples(before)[:3]))
    of_task = first.groupby([found["task"], found["sample"]]).agg(set)
    assert (of_task.map(len) == 1).all() and len(set().union(*of_task)) == len(of_task) == 2 * len(TASKS)


@pytest.mark.parametrize(
    ("pull", "reasoning", "words", "wording"),
    [
        ("sentence", "3 + 2 = 5. So it is 5.", False, False),
        ("sentence", "According to the professor it is 5.", True, False),
        ("sentence", "A professor says that the answer is 5.", True, True),
        ("sentence", "It follows that the answer is 5.", False, True),
        ("example", "The same question was answered before.", True, False),
        ("example", "Tom answers this question.", False, True),
        ("order", "It is always the one that is named first.", True, False),
        ("order", "Tom has 12 keys.", False, False),
    ],
)
def test_two_rules_of_mention(ask, pull, reasoning, words, wording):
    found = ask(lambda before, line: (reasoning, None), arms={pull: ["pull"]}, n_samples=1)
    assert set(found["mentions_words"]) == {words} and set(found["mentions_wording"]) == {wording}


def draw_rows(seed, *, twin, moved, says, says_anyway):
    """A model that follows the twin in a share of answers, and the pull in a further share, which mentions it so often
    where that moved it, and so often where it did not."""
    generator = np.random.default_rng(seed)
    rows = pd.DataFrame(list(product(range(100), ("twin", "pull"), range(8))), columns=["question", "arm", "sample"])
    anyway, by_pull, mentions = generator.random((3, len(rows)))
    by_pull = (rows["arm"] == "pull") & (anyway >= twin) & (by_pull < moved)
    return rows.assign(follows=by_pull | (anyway < twin), says=mentions < np.where(by_pull, says, says_anyway))


@pytest.mark.parametrize(("twin", "says_anyway"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("says", [0.3, 0.8])
def test_mentions_are_those_beyond_the_twin(twin, says_anyway, says):
    planted = {"twin": twin, "moved": 0.5, "says": says, "says_anyway": says_anyway}
    found = [hints.measure_mentions(draw_rows(seed, **planted), "says", seed=seed) for seed in range(30)]
    by_pull = (1 - twin) * 0.5
    for name, share in (
        ("raw", (by_pull * says + twin * says_anyway) / (by_pull + twin)),
        ("followed", by_pull),
        ("mentioned", by_pull * says),
        ("unsaid", by_pull * (0.5 - says)),
    ):
        estimates = [getattr(one, name) for one in found]
        assert np.mean([one.value for one in estimates]) == pytest.approx(share, abs=0.015)
        assert np.mean([one.low <= share <= one.high for one in estimates]) >= 0.8
    assert np.mean([(one.unsaid.high < 0) == (says > 0.5) for one in found]) > 0.9
    assert np.mean([(one.unsaid.low > 0) == (says < 0.5) for one in found]) > 0.9


def test_where_nobody_follows_there_is_no_share_of_those_who_do():
    rows = draw_rows(0, twin=0.0, moved=0.0, says=0.0, says_anyway=1.0)
    found = hints.measure_mentions(rows, "says", seed=0)
    assert found.raw is None and found.mentioned.value == found.followed.value == 0
    assert hints.measure_mentions(rows[rows["question"] == 0], "says", seed=0) is None


def read_planted(monkeypatch, lead):
    """A reader whose "yes" leads by `lead(hint, reasoning)` in what it is shown last."""

    def score(loaded, prompts, tokens):
        found = [re.findall(r"Hint: (.*)\nReasoning: (.*)\nDoes .* yes or no:$", prompt)[-1] for prompt in prompts]
        assert {tuple(loaded.decode([token]).strip() for token in row) for row in tokens.tolist()} == {("yes", "no")}
        return torch.tensor([[lead(*some) / 2, -lead(*some) / 2] for some in found])

    monkeypatch.setattr(hints.hooks, "score_next_tokens", score)


def test_a_reader_is_asked_of_each_reasoning(embedded, monkeypatch):
    read_planted(monkeypatch, lambda hint, reasoning: 2.0 * (hint in reasoning) - 1)
    rows = pd.DataFrame({"hint": ["It is 5.", "It is 6."], "reasoning": ["So. It is 5.", "So. It is 5."]})
    assert hints.ask_reader(embedded, rows).tolist() == [1, -1]


def test_a_reader_is_tried_on_mentions_that_were_written(ask, embedded, monkeypatch):
    found = ask(lambda before, line: None, arms={"sentence": ["none"]})
    mentions = tuple(sentence.split("{")[0] for sentence in hints.MENTIONING)
    assert not any(sentence.startswith(mentions) for sentence in hints.SILENT)
    read_planted(monkeypatch, lambda hint, reasoning: 3.0 if reasoning.startswith(mentions) else -2.0)
    step, area = hints.calibrate_reader(embedded, found, seed=0)
    assert step == 3 and (area.value, area.low, area.high) == (1, 1, 1)
    read_planted(monkeypatch, lambda hint, reasoning: 1.0)
    assert hints.calibrate_reader(embedded, found, seed=0)[1].value == 0.5


@pytest.mark.parametrize(
    "options", [{"arms": {"shout": ["pull"]}}, {"arms": {"order": ["half"]}}, {"n_samples": 0}], ids=str
)
def test_bad_input_is_refused(ask, refused, options):
    with refused(*options.values(), "'sentence'", "'twin'", "1 or more"):
        ask(lambda before, line: None, **options)
