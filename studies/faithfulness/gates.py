"""Gates: what a label must pass before it is probed on a task, and the shortcuts that would give it away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from helpers import baselines
from helpers.claims import Estimate, average, shorten
from helpers.folds import assign_folds
from helpers.models import LoadedModel
from helpers.scores import tabulate

# What a label must pass

MINORITY, LEAST, SHORTCUT = 0.30, 0.60, 0.60
"""The least share of the rarer class and the least accuracy (chance is one half); the AUROC that no shortcut may
reach.
"""


@dataclass(frozen=True)
class Gate:
    """Whether a label may be probed on a task, and the figures behind it."""

    task: str
    n: int
    minority: float
    """The share of the rarer class."""
    accuracy: Estimate
    """Of the model on the very rows that are labelled, or the part of them where it should be right."""
    audited: str = ""
    """Why the audit refuses the label; empty where it does not."""
    shortcut: str = ""
    """The one that may come furthest; none where they were not looked for."""
    shortcut_auroc: float = 0.5
    """The upper bound of its AUROC, or of one less it."""

    @property
    def reasons(self) -> list[str]:
        """Why not; empty where it may."""
        found = []
        if self.minority < MINORITY:
            found.append(f"the rarer class is {self.minority:.2f} of it")
        if self.accuracy.low <= LEAST:
            found.append(f"accuracy may be {shorten(self.accuracy.low)}")
        if self.shortcut_auroc >= SHORTCUT:
            found.append(f"{self.shortcut} may reach {self.shortcut_auroc:.2f}")
        return [*found, self.audited] if self.audited else found


def measure_accuracy(rows: pd.DataFrame, *, seed: int) -> dict[str, Estimate]:
    """By task how often answers are right, with its interval over pairs where rows have one, else over questions.

    Args:
        rows: with two units of each task at least; a task with fewer is left out.
        seed: of the bootstrap.
    """
    of = "pairs" if "pair" in rows else "questions"
    shares = (rows["answer"] == rows["right"]).groupby([rows["task"], rows[of[:-1]]], sort=False).mean()
    by_task = {str(task): some.tolist() for task, some in shares.groupby(level=0, sort=False)}
    return {task: average(some, seed=seed, of=of, within=(0.0, 1.0)) for task, some in by_task.items() if len(some) > 1}


def judge(
    table: pd.DataFrame,
    labels: Sequence[bool],
    accuracy: Estimate,
    found: pd.DataFrame | None = None,
    *,
    audited: str = "",
) -> Gate:
    """Put the conditions together for the rows of one task.

    Args:
        table: rows of one task.
        labels: one for each row.
        accuracy: of the model on these rows, or where they are about a wrong answer, where nothing makes it wrong; of
            several forms of the question in that in which it is least.
        found: what `score_shortcuts` returned for these rows, if it was asked.
        audited: why `audit.audit` refuses the label, or this task of it.
    """
    (task,) = set(table["task"])
    share = sum(labels) / len(labels)
    whole = Gate(task, len(labels), min(share, 1 - share), accuracy, audited)
    if found is None:
        return whole
    reach = found[["auroc_high"]].assign(below=1 - found["auroc_low"]).max(axis=1)
    worst = found.loc[reach.idxmax()]
    return replace(whole, shortcut=str(worst["scores"]), shortcut_auroc=float(reach.max()))


def score_rules(table: pd.DataFrame) -> dict[str, list[float]]:
    """Scores that need no model: of the answer's place and count in the text before it, of the length, and of how the
    transcript was made.
    """
    scores: dict[str, list[float]] = {name: [] for name in ("first mention", "last mention", "last value", "count")}
    for row in table.to_dict("records"):
        before, meant = row["text"].rsplit("\nAnswer:", 1)[0], row["answer"]
        named = re.findall(rf"\b({re.escape(row['right'])}|{re.escape(row['other'])})\b", before)
        values = re.findall(r"\d+", before) if str(meant).isdigit() else named
        scores["first mention"].append(float(named[0] == meant) if named else 0.5)
        scores["last mention"].append(float(named[-1] == meant) if named else 0.5)
        scores["last value"].append(float(values[-1] == meant) if values else 0.5)
        scores["count"].append(2.0 * named.count(meant) - len(named))
    scores["length in tokens"] = [float(len(tokens)) for tokens in table["token_ids"]]
    made = [name for name in ("style", "order", "options", "answer") if name in table]
    for column in made:
        codes = table[column].astype(str).astype("category").cat.codes
        for code in sorted(set(codes)) if codes.nunique() > 1 else []:
            scores[f"{column} is {table[column].astype(str)[codes == code].iloc[0]}"] = (
                (codes == code).astype(float).tolist()
            )
    return scores


def score_shortcuts(loaded: LoadedModel, table: pd.DataFrame, labels: Sequence[bool], *, seed: int) -> pd.DataFrame:
    """What each shortcut makes of a label, the answer known: word and character n-grams, mean input embeddings, and
    `score_rules`.

    Args:
        loaded: on any backend.
        table: rows of one task; those of a question stay together in folds and in the bootstrap.
        labels: one for each row.
        seed: of folds and bootstrap.

    Returns:
        What `scores.tabulate` does: a row for each, with intervals.
    """
    groups = list(table["question"])
    folds = assign_folds(labels, groups, seed=seed)
    scores = baselines.score_text(loaded, list(table["text"]), labels, groups, folds=folds, seed=seed)
    scores |= {name: torch.tensor(values) for name, values in score_rules(table).items()}
    return tabulate(scores, labels, groups, folds=folds, seed=seed)
