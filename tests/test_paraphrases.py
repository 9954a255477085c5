"""A paraphrase is kept only where names, numbers, sense and the place of the verdict are as they were."""

import pytest

from helpers import models
from studies.faithfulness import paraphrases, questions, styles
from studies.faithfulness.paraphrases import MARK, is_kept

STEPS = "Anna starts with 30 cups. Then Anna gets 12 more."


@pytest.mark.parametrize(
    ("retold", "kept"),
    [
        ("Having 30 cups, Anna gets 12 more: ANSWER.", True),
        ("Having 30 cups, Anna gets 12 more: ANSWER, then.", True),
        ("Having 30 cups, Anna gets a dozen more: ANSWER.", False),  # a number is gone
        ("Having 30 cups, Anna gets 12 more, 42 in all: ANSWER.", False),  # and one is new, a candidate
        ("Having 30 cups, she gets 12 more: ANSWER.", False),
        ("Having 30 cups, Anna gets 12 more from Paul: ANSWER.", False),
        ("Having 30 coins, Anna gets 12 more: ANSWER.", False),
        ("Having 30 cups, Anna loses 12: ANSWER.", False),
        ("Having 30 cups, Anna never gets 12 more: ANSWER.", False),
        ("Having 30 cups, Anna has ANSWER when she gets 12 more.", False),
        ("Having 30 cups, Anna gets 12 more: ANSWER or ANSWER.", False),
        ("Having 30 cups, Anna gets 12 more.", False),
        (f"{STEPS} {MARK}", False),  # the same words
    ],
)
def test_what_loses_or_brings_something_is_not_kept(retold, kept):
    assert is_kept(STEPS, retold, question="Anna has 30 cups.", candidates=("42", "41")) == kept


def test_neither_candidate_is_named_more_often():
    steps = "The key goes into the jar and the pen into the bowl."
    asked = {"question": "Paul has a key and a pen.", "candidates": ("jar", "bowl")}
    assert is_kept(steps, "Into the jar goes the key, into the bowl the pen: ANSWER.", **asked)
    assert is_kept(steps, "Into the jar goes the key of Paul, into the bowl the pen: ANSWER.", **asked)
    assert not is_kept(steps, "The key goes into the jar, the pen into the bowl, so look in the jar: ANSWER.", **asked)


def test_a_writer_is_asked_with_examples_that_pass_themselves(embedded, monkeypatch):
    for steps, retold in paraphrases.EXAMPLES.items():
        assert is_kept(steps.removesuffix(f" So it is {MARK}."), retold, question="", candidates=("7", "8"))
    asked = []
    monkeypatch.setattr(
        "helpers.hooks.generate", lambda loaded, prompts, **_: asked.extend(prompts) or [[1]] * len(prompts)
    )
    paraphrases.paraphrase(embedded, [STEPS])
    (prompt,) = asked
    assert prompt.endswith(f"Text: {STEPS} So it is {MARK}.\nIn other words:") and prompt.count("Text:") == 5


def test_every_telling_of_a_question_is_written_kept_with_its_writer_and_read_again(embedded, tmp_path, monkeypatch):
    asked = questions.draw_questions(embedded, tasks=["addition", "parity"], n=2, seed=0)
    monkeypatch.setattr(
        paraphrases,
        "paraphrase",
        lambda writer, steps, folder: [f"Look, {one} {MARK}" for one in steps[:-1]] + ["what?"],
    )
    monkeypatch.setenv("BOOK_OUTPUT", str(tmp_path))
    monkeypatch.setattr(models, "load", lambda name, dtype, device: embedded)
    monkeypatch.setattr(questions, "draw_questions", lambda loaded, n, seed: asked)
    assert paraphrases.read(tmp_path / paraphrases.FILE) is None
    known = paraphrases.write(embedded, "some-writer", n=2, seeds=[0])
    assert known.attrs["writer"] == embedded.record() and known.attrs["questions"] == {"n": 2, "seeds": [0]}
    assert set(known["steps"]) == {" ".join(one) for question in asked for one in (question.steps, *question.mistaken)}
    assert known["kept"].tolist() == [True] * (len(known) - 1) + [False]
    told = {"terse": styles.FAMILIAR["terse"], "paraphrased": paraphrases.make_style(known)}
    table = styles.tell(embedded, asked, told)
    (number,) = table["style"].value_counts().loc[["paraphrased"]]
    assert number in (24, 32), "a question of which a telling is missing is left out in that style alone"
    assert table[table["style"] == "terse"].shape[0] == 32
    there = table[table["style"] == "paraphrased"]
    same = there.merge(table[table["style"] == "terse"], on=["question", "transcript"])
    for column in ("contradicts", "answer", "concludes", "order", "options"):
        assert (same[f"{column}_x"] == same[f"{column}_y"]).all(), "only the style differs"
    assert there["text"].str.contains("Look, ").all() and not there["text"].str.contains(MARK).any()


def test_the_kept_paraphrases_are_those_of_the_questions_and_most_pass(embedded):
    known = paraphrases.read(paraphrases.locate(embedded))
    assert known is not None and known.attrs["writer"]["name"] != embedded.card.name
    assert known.attrs["prompt"] == paraphrases.write_prompt(MARK), "the prompt was changed: write them anew"
    asked = questions.draw_questions(embedded, n=5, seed=0)
    assert set(paraphrases.list_tellings(asked)["steps"]) <= set(known["steps"]) and known["steps"].is_unique
    assert 0.5 < known["kept"].mean() < 1 and known.groupby("task")["kept"].any().all()
    assert paraphrases.describe(known)["writer"] == known.attrs["writer"]["title"]
    assert paraphrases.describe(None)["share_kept"] == "none"
