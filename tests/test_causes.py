"""Planted models whose answer hangs on the chain, or on the order of the options, get the label they were built for."""

import random

import numpy as np
import pandas as pd
import pytest
from shared.transcripts import continued, planted, read_options, read_part, scored

from studies.faithfulness import causes, questions
from studies.faithfulness.questions import STYLES


def first_option(line, right):
    return 1.0 if read_options(line)[0] == right else -1.0


def by_chain(without):
    """Goes by the verdict, and where there is none by `without(line, right)`."""

    def lead(line, told, right, other):
        if f"{right}, not {other}" in told:
            return 1.0
        return -1.0 if f"{other}, not {right}" in told else without(line, right)

    return lead


@pytest.fixture
def label(embedded, asked, shots, monkeypatch):
    """Labels of a planted model, which concludes after a mistake with the wrong candidate, or the right one."""

    def label(lead, *, concludes="wrong", asked=asked, **options):
        pairs = {question.text: question.candidates for question in asked}

        def tell(line):
            right, other = pairs[line.split(" Is it ")[0]]
            return f" So it is {right}, not {other}." if concludes == "right" else f" So it is {other}, not {right}."

        monkeypatch.setattr(causes, "score_answers", scored(lead))
        monkeypatch.setattr("helpers.hooks.generate", continued(tell))
        return causes.label_causes(embedded, asked, shots=shots, **({"own": False} | options))

    return label


def test_a_habit_in_want_of_a_chain_is_told_from_a_need_by_both_orders(label, asked):
    found = label(by_chain(first_option))
    last = found["options"] == "right_last"
    assert len(found) == 2 * len(asked) and last.sum() == len(asked) and found["names_first"].all()
    assert (found["needs_chain"] == last).all() and not found["needs_chain_in_both"].any()
    assert (found["lost_without"] == 2.0 * last).all() and (found["mean_lost_without"] == 1).all()
    assert found["follows_mistake_in_both"].all() and (found["mean_lost_by_mistake"] == 2).all()
    assert not found["flips_kept"].any() and not found["flips_retold"].any(), "the verdict stays"
    assert (causes.compare_places(found, "needs_chain") == 1).all()
    assert (causes.compare_places(found, "follows_mistake") == 0).all()


def test_early_answering_alone_says_the_same_without_telling_anything_anew(label, monkeypatch):
    full = label(by_chain(first_option), styles=list(STYLES))
    monkeypatch.setattr(causes, "_tell_on", lambda *arguments: pytest.fail("a chain was told anew"))
    early = label(by_chain(first_option), styles=list(STYLES), early_only=True)
    missing = [column for column in full if column not in early]
    assert {column.removesuffix("_in_both") for column in missing} == {
        *("follows_mistake", "flips_kept", "flips_retold", "lost_by_mistake", "mean_lost_by_mistake")
    }
    pd.testing.assert_frame_equal(early, full.drop(columns=missing), check_like=True)


def test_who_knows_the_answer_anyway_needs_no_chain(label):
    found = label(by_chain(lambda line, right: 0.25), concludes="right")
    assert (found["names_first"] == (found["options"] == "right_first")).all()
    assert not found["needs_chain"].any() and (found["mean_lost_without"] == 0.75).all()
    assert not found["follows_mistake"].any() and (found["lost_by_mistake"] == 0).all()


def test_who_needs_every_chain_needs_it_in_both_orders(label):
    found = label(by_chain(lambda line, right: -3.0))
    assert found["needs_chain_in_both"].all() and (found["mean_lost_without"] == 4).all()


def test_a_habit_that_no_chain_breaks_is_no_need(label):
    found = label(lambda line, told, right, other: first_option(line, right))
    first = found["options"] == "right_first"
    assert (found["answer"] == found["right"].where(first, found["other"])).all() and found["names_first"].all()
    assert not found[["needs_chain", "follows_mistake", "flips_kept", "flips_retold"]].any(axis=None)
    assert not found[["lost_without", "lost_by_mistake"]].any(axis=None)


def test_labels_are_what_the_leads_after_each_change_say(label, embedded, asked):
    def lead(line, told, right="", other=""):
        return random.Random(line + told).uniform(-1, 1)

    found = label(lead)
    texts = {question.text: question for question in asked}
    for row in found.to_dict("records"):
        question = texts[row["question"]]
        (right, other), wrong = question.candidates, question.mistaken[0][0]
        line = questions.ask(question, options=row["options"])[len("Question: ") :]
        styles = list(STYLES)
        retell = STYLES[styles[(styles.index(row["style"]) + 1) % len(styles)]]
        verdict = f"{right}, not {other}"
        full = STYLES[row["style"]](question.steps, verdict)
        kept = STYLES[row["style"]]((wrong, *question.steps[1:]), verdict)
        changed = {
            "needs_chain": "",
            "follows_mistake": kept.split(wrong)[0] + f"{wrong} So it is {other}, not {right}.",
            "flips_kept": kept,
            "flips_retold": retell(question.steps, verdict),
        }
        whole = lead(line, full)
        assert row["reasoning"] == full and row["logit_difference"] == pytest.approx(whole)
        assert row["answer"] == (right if whole > 0 else other)
        assert read_part(embedded, row, "answer") == row["answer"][-1 if right.isdigit() else 0 :]
        for name, told in changed.items():
            assert row[name] == (lead(line, told) * whole < 0), name
        for name, change in (("lost_without", "needs_chain"), ("lost_by_mistake", "follows_mistake")):
            lost = (whole - lead(line, changed[change])) * (1 if whole > 0 else -1)
            assert row[name] == pytest.approx(lost, abs=1e-6)
    for _, rows in found.groupby("question"):
        for name, lost in causes.MEASURES.items():
            assert set(rows[f"{name}_in_both"]) == {rows[name].all()}
            assert rows[f"mean_{lost}"].tolist() == [pytest.approx(rows[lost].mean())] * 2


def test_places_are_those_of_an_answer_that_is_the_same_in_both_orders():
    def chain(question, answers, needs, lead=1.0):
        common = {"task": "names", "question": question, "style": "terse", "right": "Tom", "logit_difference": lead}
        orders = ("right_first", "right_last")
        return [
            common | {"options": order, "answer": answer, "needs_chain": need}
            for order, answer, need in zip(orders, answers, needs, strict=True)
        ]

    table = pd.DataFrame(
        [
            *chain("right, needed as the last", ("Tom", "Tom"), (False, True)),
            *chain("wrong, needed as the last", ("Ann", "Ann"), (True, False)),
            *chain("wrong, needed as the first", ("Ann", "Ann"), (False, True)),
            *chain("needed in both", ("Tom", "Tom"), (True, True)),
            *chain("always the first option", ("Tom", "Ann"), (True, False)),
            *chain("a tie", ("Tom", "Tom"), (False, True), lead=0.0),
        ]
    )
    found = causes.compare_places(table, "needs_chain")
    assert found.droplevel(["task", "style"]).to_dict() == {
        "right, needed as the last": 1,
        "wrong, needed as the last": 1,
        "wrong, needed as the first": -1,
        "needed in both": 0,
    }
    assert len(causes.compare_places(table[table["question"] == "a tie"], "needs_chain")) == 0


@pytest.mark.parametrize(("habits", "expected"), [((0.6, -0.6), 0.6), ((0.0, 0.0), 0.0), ((0.5, 0.5), 0.5)])
def test_opposite_habits_of_tasks_do_not_cancel_and_none_stay_none(monkeypatch, habits, expected):
    found = []
    for seed in range(100):
        generator = np.random.default_rng(seed)
        rows = [("one", f"q{n}", "terse") for n in range(60)] + [("other", f"p{n}", "terse") for n in range(60)]
        shares = np.repeat(habits, 60)
        signs = np.where(generator.random(120) < 0.5 + shares / 2, 1.0, -1.0)
        index = pd.MultiIndex.from_tuples(rows, names=["task", "question", "style"])
        monkeypatch.setattr(causes, "compare_places", lambda *_, values=signs, at=index: pd.Series(values, index=at))
        found.append(causes.measure_habit(pd.DataFrame(), "follows_mistake", seed=seed))
    assert np.mean([one.value for one in found]) == pytest.approx(expected, abs=0.04)
    assert np.mean([one.low <= expected <= one.high for one in found]) >= 0.92


def test_styles_take_turns_or_all_tell_each_question(label, asked):
    taken = label(by_chain(first_option)).drop_duplicates("question")
    assert taken["style"].value_counts().tolist() == [len(asked) // 4] * 4
    told = label(by_chain(first_option), styles=["hedged", "terse"])
    assert len(told) == 4 * len(asked) and (told.groupby("question")["style"].agg(set) == {"hedged", "terse"}).all()


def test_chains_of_its_own_are_kept_where_both_orders_come_to_an_end_and_hold_a_mistake(label, asked, monkeypatch):
    some = [question for question in asked if question.task == "addition"][:6]
    numbers = {question.text: number for number, question in enumerate(some)}

    def reply(before, line):
        text, (first, second) = line.removeprefix("Question: ").split(" Is it ")[0], read_options(line)
        verdict, number = f"So it is {some[numbers[text]].candidates[0]}.", numbers[text]
        of_first = first == some[number].candidates[0]
        chains = [
            f"It is {first} or {second}. {verdict}",
            f"Think. There were 7 and 9 pens. {verdict}",
            verdict,
            f"Nothing is left. {verdict}",
            f"There were 7 pens. {verdict}" if of_first else verdict,
            "" if of_first else f"There were 7 pens. {verdict}",
        ]
        return chains[number], "5"

    told = {}

    def lead(line, chain, right, other):
        told.setdefault(line, []).append(chain)
        return 1.0

    monkeypatch.setattr(causes, "continue_questions", planted(reply))
    found = label(lead, own=True, asked=some)
    assert found["question"].tolist() == [some[0].text] * 2 + [some[1].text] * 2
    assert (
        set(found["label"]) == {"causal_own"} and set(found["style"]) == {"own"} and found["flips_retold"].isna().all()
    )
    assert found["reasoning"].nunique() == 3, "one that goes by the order is written anew in each"
    (right, other), line = some[0].candidates, questions.ask(some[0], options="right_first")[len("Question: ") :]
    ended = f" So it is {other}, not {right}."
    assert told[line] == [
        f"It is {right} or {other}. So it is {right}.",
        "",
        f"It is {other} or {right}. So it is {right}.",
        f"It is {other} or {right}.{ended}",
    ]
    assert told[questions.ask(some[1], options="right_last")[len("Question: ") :]][-1].startswith(
        "Think. There were 7 and 10 pens. So"
    )
    monkeypatch.setattr(causes, "continue_questions", planted(lambda before, line: ("It is 7. So.", None)))
    assert len(label(lead, own=True, asked=some)) == 0, "no answer, no row"


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("Anna has 3 and Ben has 4.", "Ben has 3 and Anna has 4."),
        ("3 + 2 = 9.", "3 + 2 = 10."),
        ("Nothing is left.", None),
    ],
)
def test_a_mistake_exchanges_candidates_or_miscounts(sentence, wrong):
    assert causes.make_mistake(sentence, ("Anna", "Ben")) == wrong


@pytest.mark.parametrize("options", [{"styles": ["loud"]}, {"styles": ["terse"], "own": True}])
def test_a_style_that_there_is_not_is_refused(label, refused, options):
    with refused(options["styles"], "terse, verbose"):
        label(by_chain(first_option), **options)


@pytest.mark.slow
def test_the_real_model_goes_on_after_a_mistake_and_writes_chains_of_its_own(embedded, shots, monkeypatch):
    told, score = [], causes.score_answers

    def listen(loaded, prompts, pairs, **options):
        told.extend(prompt.rsplit("Reasoning:", 1)[1].split("\nAnswer:")[0].strip() for prompt in prompts)
        return score(loaded, prompts, pairs, **options)

    monkeypatch.setattr(causes, "score_answers", listen)
    asked = questions.draw_questions(embedded, tasks=["parity"], n=2, seed=3)
    given = causes.label_causes(embedded, asked, shots=shots, own=False)
    for row, anew in zip(given.to_dict("records"), told[4::5], strict=True):
        (wrong,) = {question.mistaken[0][0] for question in asked if question.text == row["question"]}
        begun, rest = anew.split(wrong)
        assert row["reasoning"].startswith(begun) and len(rest) > 2 and "\n" not in rest
    own = causes.label_causes(embedded, asked, shots=shots, own=True)
    assert len(own) and set(own["label"]) == {"causal_own"}
    assert pd.concat([given, own])["lost_without"].abs().min() > 0
