"""Reasonings told again by a language model: written once and kept, checked by rule each time they are read.

A style of `questions.STYLES` puts words around the same steps; a paraphrase changes the steps' own words. A mark stands
in the place of the verdict, so that every verdict can be filled in as it is, and the label hangs on nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers import ROOT, hooks, models, runs
from helpers.claims import Estimate, average, share
from helpers.models import LoadedModel
from helpers.prompts import NAMES
from studies.faithfulness import questions
from studies.faithfulness.dataset import read_dataset, save_dataset
from studies.faithfulness.questions import Question, Style

FILE = "paraphrases.parquet"
MARK = "ANSWER"
"""Stands where the verdict will."""
UNTOLD = "[no paraphrase]"
"""Stands where there is no paraphrase that passed."""
EXAMPLES = {
    "Gus starts with 70 coins. Then Gus gets 15 more. So it is ANSWER.": (
        "At first there are 70 coins in the hands of Gus, and 15 are added to them, which leaves us with ANSWER."
    ),
    "Ida lives in Oslo. Otto lives in Lima. So it is ANSWER.": (
        "Oslo is the home of Ida, while Lima is where one finds Otto, and that is why we say ANSWER."
    ),
    "1200 cups make 600 pairs. Nothing is left over. So it is ANSWER.": (
        "If we put 1200 cups two by two we get 600 pairs, with nothing to spare: ANSWER, then."
    ),
    "Gus is older than Ida. Ida is older than Otto. So it is ANSWER.": (
        "Compared with Ida, Gus is older, and Ida in turn is older than Otto. This gives us ANSWER."
    ),
}
"""None is about what a question can be about."""
INSTRUCTION = "Each text is told again in other words. Every name, number and thing stays, and so does ANSWER."
MAX_NEW_TOKENS = 56
KEPT_WORDS = {
    word.lower().removesuffix("s")
    for words in (
        *(NAMES, questions.DAYS, questions.PLACES, questions.THINGS, questions.OBJECTS, questions.CITIES),
        *(questions.CONTAINERS, *questions.COMPARATIVES, ("heads", "tails", "odd", "even")),
    )
    for word in words
}
"""Beside numbers and single letters: what a paraphrase may not lose, nor have of its own; without a last s."""
REVERSING = (r"\b(no|not|none|nobody|nothing|never)\b|n't\b", r"\b(away|los\w+|less|fewer|minus|subtract\w*)\b")
"""Words that turn a sense round: each kind is in a paraphrase if it is in the steps, and only then."""


def list_tellings(asked: Sequence[Question]) -> pd.DataFrame:
    """What is to be paraphrased, the right steps of every question and those with each mistake, and what is asked."""
    return pd.DataFrame(
        {"task": question.task, "question": question.text, "steps": " ".join(steps), "right": right, "other": other}
        for question in asked
        for right, other in [question.candidates]
        for steps in (question.steps, *question.mistaken)
    )


def paraphrase(writer: LoadedModel, steps: Sequence[str], *, folder: Path | None = None) -> list[str]:
    """Each text of steps, with a mark for its verdict, in the writer's words, by the most likely tokens.

    Args:
        writer: on plain Hugging Face.
        steps: texts.
        folder: as for `hooks.generate`.
    """
    prompts = [write_prompt(questions.STYLES["terse"]([text], MARK)) for text in steps]
    new = hooks.generate(writer, prompts, max_new_tokens=MAX_NEW_TOKENS, stop=("\n",), folder=folder)
    return [writer.decode(tokens).strip() for tokens in new]


def write_prompt(text: str) -> str:
    """What the writer goes on from."""
    shown = [f"Text: {one}\nIn other words: {other}" for one, other in EXAMPLES.items()]
    return "\n\n".join([INSTRUCTION, *shown, f"Text: {text}\nIn other words:"])


def is_kept(steps: str, retold: str, *, question: str, candidates: tuple[str, str]) -> bool:
    """Whether a paraphrase has all numbers, names and things of the steps and none that the question does not name
    either, names neither candidate more often, reverses nothing, has other words, and ends with the mark. That it means
    the same is not checked.

    Args:
        steps: as they were.
        retold: in other words.
        question: that they belong to.
        candidates: for its answer.

    >>> steps, asked = "Anna has 30 cups. Then Anna gets 12 more.", {"question": "", "candidates": ("42", "41")}
    >>> is_kept(steps, "Anna, who has 30 cups, gets 12 more: ANSWER.", **asked)
    True
    >>> is_kept(steps, "Anna, who has 30 cups, gets 12 more, so 42 in all: ANSWER.", **asked)
    False
    """
    before, after, around = (
        re.findall(r"[A-Za-z]+|\d+", text.replace(MARK, " ")) for text in (steps, retold, question)
    )
    there, retained, asked = ({_stem(word) for word in words if _is_name(word)} for words in (before, after, around))
    first, second = (len(re.findall(rf"\b{re.escape(candidate)}\b", retold)) for candidate in candidates)
    turned, turns = ([bool(re.search(kind, text, re.IGNORECASE)) for kind in REVERSING] for text in (steps, retold))
    ends = retold.count(MARK) == 1 and re.search(rf"\b{MARK}\W*\w*\W*$", retold) is not None
    return ends and there <= retained <= there | asked and first == second and turned == turns and before != after


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")


def _is_name(word: str) -> bool:
    return word.isdigit() or _stem(word) in KEPT_WORDS or (len(word) == 1 and word.islower() and word not in "ais")


def write(loaded: LoadedModel, writer_name: str, *, n: int, seeds: Sequence[int]) -> pd.DataFrame | None:
    """Paraphrase every telling of a model's questions, of all tasks, and keep them beside the run's record, those that
    fail `is_kept` too.

    Args:
        loaded: whose questions they are; the writer is loaded in its precision, on its device.
        writer_name: as for `models.load`.
        n: questions of each task.
        seeds: of draws of questions.

    Returns:
        As `read`.
    """
    asked = [one for seed in seeds for one in questions.draw_questions(loaded, n=n, seed=seed)]
    table = list_tellings(asked).drop_duplicates("steps", ignore_index=True)
    writer = models.load(writer_name, dtype=loaded.dtype, device=loaded.device)
    table["retold"] = paraphrase(writer, table["steps"].tolist(), folder=ROOT / "_build" / "generated")
    about = {"writer": writer.record(), "questions": {"n": n, "seeds": list(seeds)}, "prompt": write_prompt(MARK)}
    save_dataset(table, runs.locate_output() / FILE, about=about)
    return read(runs.locate_output() / FILE)


def locate(loaded: LoadedModel) -> Path:
    """Where the paraphrases of a model's questions are kept with the book."""
    return runs.locate_results(loaded.card.name) / "datasets" / FILE


def read(path: Path) -> pd.DataFrame | None:
    """The paraphrases of a file, with `kept`: whether each passes `is_kept`; who wrote them is in their `attrs`. None
    where there is no file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        return None
    table = read_dataset(path)
    kept = [
        is_kept(row["steps"], row["retold"], question=row["question"], candidates=(row["right"], row["other"]))
        for row in table.to_dict(orient="records")
    ]
    return table.assign(kept=kept)


def describe(known: pd.DataFrame | None) -> dict[str, str | Estimate]:
    """Who wrote paraphrases, what share of a question's passed, and what share of those that did end with the last
    three words of one of `EXAMPLES`: `writer`, `share_kept` and `share_copied`.

    Args:
        known: of `read`.
    """
    if known is None:
        return {"writer": "no model", "share_kept": "none", "share_copied": "none"}
    endings = {_end(text) for text in EXAMPLES.values()}
    copied = [_end(text) in endings for text in known["retold"][known["kept"]]]
    kept = known["kept"].astype(float).tolist()
    of_question = average(kept, seed=0, groups=known["question"].tolist(), of="questions")
    of_kept = share(copied, of="paraphrases")
    return {"writer": known.attrs["writer"]["title"], "share_kept": of_question, "share_copied": of_kept}


def _end(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text)[-3:])


def make_style(known: pd.DataFrame) -> Style:
    """A style that tells steps in the words of a paraphrase that passed, and others as `UNTOLD`.

    Args:
        known: of `read`.
    """
    words = dict(zip(known["steps"][known["kept"]], known["retold"][known["kept"]], strict=True))

    def retell(steps: Sequence[str], verdict: str) -> str:
        told = words.get(" ".join(steps), f"{UNTOLD} {MARK}").replace(MARK, verdict)
        return told if told.endswith(".") else f"{told}."

    return retell
