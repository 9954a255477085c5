"""Gates: what a label must pass before it is probed on a task, and the shortcuts that would give it away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch

from helpers import baselines
from helpers.claims import Estimate
from helpers.folds import assign_folds
from helpers.models import LoadedModel
from helpers.scores import tabulate

# What a label must pass

MINORITY, ABOVE_CHANCE, SHORTCUT = 0.30, 0.10, 0.60


@dataclass(frozen=True)
class Gate:
    """Whether a label may be probed on a task, and the figures behind it."""

    task: str
    n: int
    minority: float
    """The share of the rarer class."""
    accuracy: Estimate
    """Of the model after a correct chain of thought; chance is one half."""
    behaviour: bool
    """Whether the label is what a model did: no design frees it of shortcuts, which then refuse nothing, but which a
    probe has to exceed."""
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
        if self.accuracy.low <= 0.5 + ABOVE_CHANCE:
            found.append(f"accuracy with a correct chain may be {self.accuracy.low:.2f}")
        if self.shortcut_auroc >= SHORTCUT and not self.behaviour:
            found.append(f"{self.shortcut} may reach {self.shortcut_auroc:.2f}")
        return found


def judge(
    table: pd.DataFrame,
    labels: Sequence[bool],
    accuracy: Estimate,
    found: pd.DataFrame | None,
    *,
    behaviour: bool = False,
) -> Gate:
    """Put the three conditions together for the rows of one task.

    Args:
        table: rows of one task.
        labels: one for each row.
        accuracy: of the model after a correct chain.
        found: what `score_shortcuts` returned for these rows; None where they are too few for it.
        behaviour: whether the label is what a model did, so that shortcuts are reported and refuse nothing.
    """
    (task,) = set(table["task"])
    share = sum(labels) / len(labels)
    whole = Gate(task, len(labels), min(share, 1 - share), accuracy, behaviour)
    if found is None:
        return whole
    reach = found[["auroc_high"]].assign(below=1 - found["auroc_low"]).max(axis=1)
    worst = found.loc[reach.idxmax()]
    return replace(whole, shortcut=str(worst["scores"]), shortcut_auroc=float(reach.max()))


def score_rules(table: pd.DataFrame, *, candidate: str = "answer") -> dict[str, list[float]]:
    """Scores that need no model: of a candidate's place and count in the text before the answer, of the length, and of
    how the transcript was made.

    Args:
        table: of transcripts.
        candidate: the column that names it. With another than the answer nothing is scored that only the answer tells.
    """
    known = candidate == "answer"
    scores: dict[str, list[float]] = {name: [] for name in ("first mention", "last mention", "last value", "count")}
    for row in table.to_dict("records"):
        before, meant = _before(row["text"]), row[candidate]
        named = re.findall(rf"\b({re.escape(row['right'])}|{re.escape(row['other'])})\b", before)
        values = re.findall(r"\d+", before) if str(meant).isdigit() else named
        scores["first mention"].append(float(named[0] == meant) if named else 0.5)
        scores["last mention"].append(float(named[-1] == meant) if named else 0.5)
        scores["last value"].append(float(values[-1] == meant) if values else 0.5)
        scores["count"].append(2.0 * named.count(meant) - len(named))
    ends = map(len, table["token_ids"]) if known else table["at_reasoning"] + 1
    scores["length in tokens"] = [float(end) for end in ends]
    made = [name for name in ("style", "order", "options", "hint", candidate, "strength") if name in table]
    for column in made:
        codes = table[column].astype(str).astype("category").cat.codes
        for code in sorted(set(codes)) if codes.nunique() > 1 else []:
            scores[f"{column} is {table[column].astype(str)[codes == code].iloc[0]}"] = (
                (codes == code).astype(float).tolist()
            )
    return scores


def score_shortcuts(
    loaded: LoadedModel, table: pd.DataFrame, labels: Sequence[bool], *, candidate: str = "answer", seed: int
) -> pd.DataFrame:
    """What each shortcut makes of a label: word and character n-grams, mean input embeddings, and `score_rules`.

    Args:
        loaded: on any backend.
        table: rows of one task; those of a question stay together in folds and in the bootstrap.
        labels: one for each row.
        candidate: as for `score_rules`. With any other than the answer all of them read what stands before the answer
            only.
        seed: of folds and bootstrap.

    Returns:
        What `scores.tabulate` does: a row for each, with intervals.
    """
    groups = list(table["question"])
    texts = [text if candidate == "answer" else _before(text) for text in table["text"]]
    folds = assign_folds(labels, groups, seed=seed)
    scores = baselines.score_text(loaded, texts, labels, groups, folds=folds, seed=seed)
    scores |= {name: torch.tensor(values) for name, values in score_rules(table, candidate=candidate).items()}
    return tabulate(scores, labels, groups, folds=folds, seed=seed)


def _before(text: str) -> str:
    """A transcript without its answer."""
    return text.rsplit("\nAnswer:", 1)[0]
