"""Styles of telling (H4): the transcripts of a question in each of them, where they are read, and training sets.

Labels of behaviour are told in styles too: given chains, and hints, whose kinds of pull take the place of styles.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from helpers import InputError, hooks, probes
from helpers.folds import make_generator
from helpers.models import LoadedModel
from helpers.probes import Site
from studies.faithfulness import questions
from studies.faithfulness.causes import KEYS, is_settled, label_causes
from studies.faithfulness.dataset import APART, list_units, load_transcripts, select_unfaithful
from studies.faithfulness.hypotheses import Draw, Rows, _equal
from studies.faithfulness.paraphrases import UNTOLD
from studies.faithfulness.questions import Question, Style
from studies.faithfulness.transcripts import N_SHOTS, construct, list_places, put_in_context

FAMILIAR: dict[str, Style] = dict(questions.STYLES)
"""Those of the data set, in which probes are trained."""
STRANGE: dict[str, Style] = {
    "catechism": lambda steps, verdict: f"What do we know? {' '.join(steps)} And so? It is {verdict}.",
    "list": lambda steps, verdict: f"{' '.join(f'({i}) {step}' for i, step in enumerate(steps, 1))} => {verdict}.",
    "doubting": lambda steps, verdict: f"Wait. {' Hmm. '.join(steps)} No doubt any more: {verdict}.",
    "archaic": lambda steps, verdict: f"Hearken! {' Mark ye: '.join(steps)} Verily, it is {verdict}.",
}
"""In which none is trained."""
PLACES = ("answer", "end", "next", "last")
"""Parts of a transcript at whose end it is known whether the answer contradicts the reasoning."""


# What is told, and how it is read


def tell(loaded: LoadedModel, asked: Sequence[Question], styles: Mapping[str, Style]) -> pd.DataFrame:
    """The transcripts of `construct`, all of them in every style; those that differ in style alone share the number in
    the column `transcript`.

    Args:
        loaded: whose tokenizer is used.
        asked: eight transcripts of each in each style.
        styles: by name, each of (steps, verdict). Questions of which one has some telling `UNTOLD` are left out there.
    """
    parts = [construct(loaded, asked, styles={name: style}) for name, style in styles.items()]
    table = pd.concat([part.assign(transcript=part.index) for part in parts], ignore_index=True)
    untold = table["text"].str.contains(UNTOLD, regex=False)
    return table[~untold.groupby([table[key] for key in KEYS]).transform("any")].reset_index(drop=True)


def tell_questions(
    loaded: LoadedModel, styles: Mapping[str, Style], *, tasks: Sequence[str], n: int, seed: int
) -> pd.DataFrame:
    """`tell` of so many questions of each task."""
    return tell(loaded, questions.draw_questions(loaded, tasks=tasks, n=n, seed=seed), styles)


def mark_answers(table: pd.DataFrame) -> list[str]:
    """The texts with X for the candidate that is the answer and Y for the other, so that words can tell the two apart.

    Args:
        table: of `tell`.
    """
    others = table["other"].where(table["answer"] == table["right"], table["right"])
    return [
        re.sub(rf"\b{re.escape(other)}\b", "Y", re.sub(rf"\b{re.escape(answer)}\b", "X", text))
        for text, answer, other in zip(table["text"], table["answer"], others, strict=True)
    ]


def choose_site(loaded: LoadedModel, *, tasks: Sequence[str], n: int, seed: int) -> Site:
    """The first of the residual stream's sites after the answer that tie for reading contradiction best.

    Args:
        loaded: on plain Hugging Face.
        tasks: of `questions.TASKS`.
        n: questions of each task, of which each is told in one familiar style.
        seed: of a draw of its own.
    """
    table = construct(loaded, questions.draw_questions(loaded, tasks=tasks, n=n, seed=seed))
    options = {"positions": list_places(loaded, table, PLACES), "as_trees": True}
    states = hooks.capture(loaded, table["text"].tolist(), "resid_post", **options)
    labels, units = table["contradicts"].astype(bool).tolist(), list(zip(table["task"], table["question"], strict=True))
    return probes.sweep(states, labels, units, types=None, n_permutations=0, seed=seed).leading()


def read_draw(loaded: LoadedModel, table: pd.DataFrame, site: Site) -> Draw:
    """One site of the residual stream, where the label is whether the answer contradicts the reasoning.

    Args:
        loaded: on plain Hugging Face.
        table: of `tell`.
        site: whose position is a part of transcripts, as "answer".
    """
    ends = list_places(loaded, table, [site.position])[site.position]
    prompts = [loaded.encode(text)[: end + 1] for text, end in zip(table["text"], ends, strict=True)]
    states = hooks.capture(loaded, prompts, site.component, layers=[site.layer], as_trees=True)
    units = list(zip(table["task"], table["question"], strict=True))
    return Draw(
        states[site.component][:, 0, 0], table["contradicts"].astype(bool).tolist(), units, table["style"].tolist()
    )


def tell_chains(loaded: LoadedModel, *, tasks: Sequence[str], n: int, seed: int) -> pd.DataFrame:
    """The pairs of given chains that `dataset.pair_alike` makes, which the audit of the label is about, each chain told
    in every familiar style: `judge_pairs`.

    Args:
        loaded: on plain Hugging Face.
        tasks: of `questions.TASKS`, at least one.
        n: questions of each task, in pairs.
        seed: of the questions.
    """
    made = load_transcripts(loaded, "causal_given", tasks=tasks, n=n, seed=seed)
    paired = select_unfaithful(made, n=n)[0][["task", "question", "pair"]].drop_duplicates()
    if not len(paired):
        return made[:0]
    asked = questions.draw_questions(loaded, tasks=tasks, n=1 + int(made["number"].max()), seed=seed, or_all=True)
    known = set(paired["question"])
    shots = questions.draw_shots(loaded, tasks=tasks, n=N_SHOTS, seed=seed)
    told = label_causes(
        loaded,
        [question for question in asked if question.text in known],
        shots=shots,
        own=False,
        styles=list(FAMILIAR),
        early_only=True,
    )
    return judge_pairs(told.merge(paired, on=["task", "question"]))


def judge_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Which of two paired chains loses less without it, in each style by itself: the column `unfaithful`.

    Left out in a style are pairs that would be no pair there: an answer is not settled (`causes.is_settled`), one of
    the two is right and the other not, or they lie less than `APART` from each other.

    Args:
        rows: of `causes.label_causes`, with the column `pair`.
    """
    known = rows.assign(settled=is_settled(rows), rightly=rows["answer"] == rows["right"])
    of_pair = known.groupby(["pair", "style"])
    least, most = (of_pair["mean_lost_without"].transform(name) for name in ("min", "max"))
    alike = of_pair["settled"].transform("all") & (of_pair["rightly"].transform("nunique") == 1)
    return rows.assign(unfaithful=rows["mean_lost_without"] == least)[alike & (most - least >= APART)]


def take_hints(loaded: LoadedModel, *, tasks: Sequence[str], n: int, n_samples: int, seed: int) -> pd.DataFrame:
    """Hints of `dataset.load_transcripts` with their label, and the kind of pull in the place of the style.

    Args:
        loaded: on plain Hugging Face.
        tasks: of `questions.TASKS`, at least one.
        n: questions of each task.
        n_samples: draws of worked examples.
        seed: of the questions.
    """
    made = load_transcripts(loaded, "hint", tasks=tasks, n=n, n_samples=n_samples, seed=seed)
    rows, truth = select_unfaithful(made)
    return rows.assign(style=rows["pull"], unfaithful=truth) if len(rows) else rows


def select_steady(rows: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """The rows of questions on which a label of behaviour is the same in every style, and which share they are of
    those that have it in every style.

    Args:
        rows: of `tell_chains` or `take_hints`, with the label in the column `unfaithful`.
    """
    if not len(rows):
        return rows, 0.0
    of_question = rows.groupby(["task", "question"])
    complete = of_question["style"].transform("nunique") == rows["style"].nunique()
    same = complete & (of_question["unfaithful"].transform("nunique") == 1)
    return rows[same], float(same.sum() / max(complete.sum(), 1))


def read_cue(loaded: LoadedModel, rows: pd.DataFrame, *, layer: int) -> Draw:
    """The residual stream at the token before the answer, where the label is `unfaithful`.

    Args:
        loaded: on plain Hugging Face.
        rows: of `select_steady`, at least one.
        layer: that is read.
    """
    prompts, at = put_in_context(loaded, rows)
    options = {"layers": [layer], "positions": {"cue": at["cue"]}, "as_trees": True}
    states = hooks.capture(loaded, prompts, "resid_post", **options)
    return Draw(states["resid_post"][:, 0, 0], rows["unfaithful"].tolist(), list_units(rows), rows["style"].tolist())


# What is trained on


def take_each_style(draws: Sequence[Draw], styles: Sequence[str]) -> dict[str, list[Rows]]:
    """Training sets of one style each."""
    return {style: [_equal(draw.domains, style) for draw in draws] for style in styles}


def mix_styles(draw: Draw, transcripts: Sequence[Hashable], styles: Sequence[str], *, seed: int) -> Rows:
    """Of every transcript one of some styles by lot: a training set as large as one style's, of all of them.

    Args:
        draw: with every transcript in each of the styles.
        transcripts: of each row, which it is in one style or another.
        styles: to draw from.
        seed: of the lots.
    """
    generator = make_generator(seed)
    meant = {transcript: styles[int(generator.integers(len(styles)))] for transcript in dict.fromkeys(transcripts)}
    return np.array([meant[one] == style for one, style in zip(transcripts, draw.domains, strict=True)])


def tie_styles(draw: Draw, transcripts: Sequence[Hashable], pair: tuple[str, str], *, share: float, seed: int) -> Rows:
    """Of every transcript one of two styles, so that of each class so large a share has its own: the first style goes
    with the label, the second with its absence.

    Args:
        draw: with every transcript in both styles.
        transcripts: of each row, which it is in one style or another.
        pair: the two styles.
        share: of each class that has its own style.
        seed: of the lots.

    Raises:
        InputError: a share below one half or above one.
    """
    if not 0.5 <= share <= 1:
        raise InputError(f"share = {share}: legal are 0.5 to 1")
    generator = make_generator(seed)
    label_of = dict(zip(transcripts, map(bool, draw.labels), strict=True))
    meant = {}
    for label in (True, False):
        ones = [one for one in label_of if label_of[one] == label]
        for place, number in enumerate(generator.permutation(len(ones))):
            own = place < round(share * len(ones))
            meant[ones[int(number)]] = pair[0 if own == label else 1]
    return np.array([meant[one] == style for one, style in zip(transcripts, draw.domains, strict=True)])
