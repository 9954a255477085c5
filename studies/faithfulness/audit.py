"""The design audit: what a label can be told by that it is not about.

Whatever a design varies is a factor, whether it was stored or not: a label that a factor tells, in questions that were
not used to find out how, bears that factor's name. Nothing is waived: a label is refused, or asked only within cells
in which the factor can't vary.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from helpers import InputError, baselines
from helpers.engine.inputs import make_generator
from helpers.folds import assign_stratified_folds
from helpers.models import LoadedModel
from helpers.scores import bootstrap_intervals, compute_auroc

BOUND = 0.60
"""The AUROC that no factor may reach, by the upper end of its interval."""
CHANCE = 0.5
NEAR = 0.1
"""Factors that tell so little less than the first are as good a name for it, and the simplest kind is better."""
DRAWS, APART = 4, 1_000_000
"""Of folds, which an AUROC is a mean over, so that the luck of one decides less; and between their seeds."""
LUCK = 1.5
"""How much wider an interval is than the bootstrap's, which draws test rows anew and knows nothing of the luck of
training: of random labels the AUROCs spread 1.2 to 1.5 times as far as it says, by factor (157 draws)."""
FEWEST = 15
"""Rows of the rarer class that a task must have: with fewer, chance passes the bound."""
PERIODS, BLOCKS = range(2, 13), (7, 8, 10, 12, 16, 20, 24, 32)
"""A question's place in its task is a factor modulo each: alternations, also those in blocks of up to six; and larger
blocks, by turns, as batches are; of the place of a question by its length only the blocks are."""
ORDER = "the right option is named first"
LARGER = "the right candidate is the larger number"
PLACE = "place in the task"
WITH = ", with "
NO_TASK = "no task is left"
OF_PAIR = ", more than its partner"
TEXT = ("word n-grams", "character n-grams", "mean of the input embeddings")
BINS = 5
"""Levels of a factor that is a number, by its quantiles within the task."""
FEW_LEVELS = 12
"""A column of numbers with more is put into bins, a factor with more is not crossed with another in that task."""
QUESTION, CHAIN = "the question's ", "the chain's "
NAMES, NUMBERS = 4, 3
"""Of a text, how many of its capitalised words, which hold all names, and of its numbers are factors each."""
KINDS = ("design", "length", "answer", "place", "wording", "two together", "text")
"""What was varied on purpose or can be seen in a transcript; where its parts end; what the model answered; the
question's place; names and numbers of a text; two of the first kind, or of them and the place; a text itself."""
OF_CHAINS = (
    *(changes + orders for changes in ("needs_chain", "follows_mistake") for orders in ("", "_in_both")),
    *("flips_kept", "flips_retold", "names_first"),
)
LABEL_COLUMNS = {
    "constructed": ("contradicts",),
    "constructed_implied": ("contradicts",),
    "hint": ("follows", "mentions_words", "mentions_wording"),
    "causal_given": OF_CHAINS,
    "causal_own": OF_CHAINS,
}
"""Columns of truth and falsehood that say what a model did or what was written, as they were measured."""
COLUMNS = ["factor", "kind", "auroc", "low", "high", "surely", "n"]
MEASURED = re.compile(
    r"label|task|question|number|pair|text|before|token_ids|line|reasoning|contradicts|follows|names_first|logit_difference"
    r"|(needs_chain|follows_mistake)(_in_both)?|flips_.*|(mean_)?lost_.*|mentions_.*"
)
"""Columns that are no factors: what an item is, what was written for it alone, and what was measured. Any other is."""


@dataclass(frozen=True)
class Audit:
    """What the factors of a design make of a label."""

    cells: pd.DataFrame
    """What each factor tells in each task: `task`, `factor`, its `kind`, `auroc` `low` to `high`, `n` questions, and
    `surely`, the lower end where looking at all the factors is paid for (Bonferroni)."""
    factors: pd.DataFrame
    """What each may tell on the tasks that are left, furthest first; the same columns but the task."""
    too_few: tuple[str, ...]
    """Tasks in which there was too little to look at."""
    untested: tuple[str, ...]
    """Columns that are no factor, as they differ from row to row or can't be compared."""

    @property
    def tasks(self) -> pd.DataFrame:
        """Of each task the factor that surely tells most, or of those that tell nearly as much the simplest."""
        return pd.DataFrame(
            [_find_worst(rows) for _, rows in self.cells.groupby("task", sort=False)], columns=["task", *COLUMNS]
        )

    @property
    def refused_tasks(self) -> dict[str, str]:
        """Why a task must not be used: some factor surely tells its label, and may beyond the bound, or there is too
        little."""
        told = self.tasks[_is_told(self.tasks)]
        refused = {task: f"fewer than {FEWEST} rows of the rarer class, or of five questions" for task in self.too_few}
        return refused | {row["task"]: _describe(row) for row in told.to_dict("records")}

    @property
    def refused(self) -> str:
        """Why the label must not be used on what is left; empty where no factor can reach the bound."""
        if not len(self.factors):
            return NO_TASK
        first = self.factors.iloc[0]
        return _describe(first) if first["high"] >= BOUND else ""


def audit(
    loaded: LoadedModel,
    table: pd.DataFrame,
    labels: Sequence[bool],
    *,
    own: bool = False,
    besides: Sequence[str] = (),
    seed: int,
) -> Audit:
    """Try every factor of the design on a label, within tasks, in folds of questions.

    A factor's score is the share of the label among training rows of the same task and level, and an AUROC compares
    rows of one task and fold only, so that what tasks differ in counts for nothing. Factors of few levels are tried two
    at a time as well. Word and character n-grams, and the mean of the input embeddings, are fitted in the same folds.
    Rows of one question stay together; where a column `pair` says which questions were matched, those of one pair do,
    as else what the two have in common would tell the opposite of the label. Folds are drawn several times, since near
    the bound one draw lets a label through that the next refuses.

    A task alone has too few questions to bound so many factors: it is refused where one surely tells its label, all
    factors counted, and may beyond the bound; the tasks that are left are asked together whether any may. What is told
    by a factor that is not listed, or too weakly in one task alone, passes; and with some hundred questions in all the
    second test refuses chance as well: it asks for some seven hundred.

    Args:
        loaded: whose tokenizer and embeddings are used.
        table: of transcripts; every column is a factor but those of `MEASURED`. A column `number` says at which place
            each question was asked in its task (`number_questions`); without it that of the rows is taken.
        labels: one for each row.
        own: whether the model wrote the chain, so that only what stands before it is the design's.
        besides: further columns that are no factors, as the answer where the label is a statement about it.
        seed: of folds and bootstrap.

    Raises:
        InputError: not one label for each row, or no row.
    """
    if len(labels) != len(table) or not len(table):
        raise InputError(f"{len(labels)} labels for {len(table)} rows: legal is one for each, and at least one row")
    table, truth = table.reset_index(drop=True), np.asarray(labels, dtype=bool)
    levels = list_factors(table, own=own, besides=besides)
    varied = [column for column in table.columns if table[column].astype(str).nunique() > 1]
    untested = tuple(
        column for column in varied if _is_factor(column, own=own, besides=besides) and column not in levels
    )
    units = table["pair" if "pair" in table else "question"]
    groups = (table["task"].astype(str) + " " + units.astype(str)).to_numpy()
    parts, cells, too_few = [], [], []
    for task, rows in table.groupby("task", sort=False):
        place = rows.index.to_numpy()
        draws = [_assign_folds(truth[place], groups[place], seed + APART * draw) for draw in range(DRAWS)]
        scored = []
        for folds in (some for some in draws if some is not None):
            held, folds = place[folds >= 0], folds[folds >= 0]
            scores = {name: _encode(of_rows[held], truth[held], folds) for name, of_rows in levels.items()}
            scores |= _score_texts(loaded, table.iloc[held], truth[held], folds, own=own, seed=seed)
            scored.append((held, folds, scores))
        if not scored:
            too_few.append(str(task))
            continue
        place, folds, scores = _join_draws(scored)
        parts.append((task, place, folds, scores))
        cells.append(_evaluate(scores, truth[place], groups[place], folds, seed).assign(task=task))
    empty = pd.DataFrame(columns=["task", *COLUMNS])
    found = Audit(pd.concat(cells, ignore_index=True) if cells else empty, empty[COLUMNS], tuple(too_few), untested)
    left = [part for part in parts if part[0] not in found.refused_tasks]
    if not left:
        return found
    place = np.concatenate([rows for _, rows, *_ in left])
    numbers = pd.factorize(pd.Series([(task, fold) for task, _, folds, _ in left for fold in folds]))[0]
    pooled = {name: np.concatenate([scores[name] for *_, scores in left]) for name in left[0][3]}
    together = _evaluate(pooled, truth[place], groups[place], numbers, seed)
    return replace(found, factors=together.sort_values("high", ascending=False, ignore_index=True))


def audit_columns(loaded: LoadedModel, table: pd.DataFrame, *, seed: int) -> list[dict[str, Any]]:
    """`audit` of every one of `LABEL_COLUMNS`, as it was measured, a row for each.

    Args:
        loaded: whose tokenizer and embeddings are used.
        table: the data set, with the column `label`; of hints only the rows with a pull are asked, and rows without a
            value are left out.
        seed: of folds and bootstrap.

    Returns:
        In how many tasks a factor surely tells the column, which one in most of these and how far at most, and what
        may tell it on the others together, empty where no listed factor can.
    """
    rows = []
    for label, column in ((label, column) for label, some in LABEL_COLUMNS.items() for column in some):
        of_label = table[table["label"] == label].dropna(axis=1, how="all")
        if column not in of_label:
            continue
        chosen = of_label[of_label[column].notna() & (of_label.get("arm", "pull") == "pull")]
        if not len(chosen):
            continue
        options = {
            "own": label in ("hint", "causal_own"),
            "besides": ["answer"] if label == "hint" else [],
            "seed": seed,
        }
        found = audit(loaded, chosen, chosen[column].astype(bool).tolist(), **options)
        told = found.tasks[_is_told(found.tasks)]
        names = told["factor"].value_counts()
        rows.append(
            {
                "label": label,
                "column": column,
                "tasks asked": len(found.tasks),
                "told in": len(told),
                "mostly by": f"{names.index[0]} ({names.iloc[0]})" if len(names) else "–",
                "AUROC up to": float(told["auroc"].max()) if len(told) else None,
                "the other tasks together": found.refused,
            }
        )
    return rows


def number_questions(table: pd.DataFrame) -> pd.Series:
    """The place of each row's question in its task, by the order of the rows; to be taken before rows are chosen."""
    return table.groupby("task", sort=False)["question"].transform(lambda some: pd.factorize(some)[0])


def list_factors(table: pd.DataFrame, *, own: bool = False, besides: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The level of every row in every factor that varies: those stored, and those that only the text or the order show.

    Args:
        table: as for `audit`.
        own: as for `audit`.
        besides: as for `audit`.
    """
    found: dict[str, pd.Series] = {
        column: table[column]
        for column in table.columns
        if _is_factor(column, own=own, besides=besides) and _is_plain(table[column])
    }
    told = _read_design(table, own=own)
    found["characters of the text"] = told.str.len()
    asked = told.str.extract(r" Is it (\S+) or (\S+)\?", expand=True)
    found[ORDER] = (asked[0] == table["right"]).where(asked[0].notna(), "no options")
    found[LARGER] = compare_candidates(table)
    if "answer" in table and "answer" not in besides:
        found["the answer is named first"] = (asked[0] == table["answer"]).where(asked[0].notna(), "no options")
    ends = [_find_ends(*row) for row in zip(told, table["right"].astype(str), table["other"].astype(str), strict=True)]
    for name, of_name in zip(("named first", "named last"), zip(*ends, strict=True), strict=True):
        found[f"the right candidate is {name}"] = pd.Series(of_name, index=table.index)
    question = told.str.extract(r"(?:Question: )?([^\n]*?)(?: Is it |\n|$)")[0].fillna("")
    found |= read_wording(question, QUESTION)
    if not own:
        found |= read_wording(told.str.extract(r"\nReasoning: ([^\n]*)")[0], CHAIN)
    number = table["number"] if "number" in table else number_questions(table)
    if "pair" in table:
        of_rows = {f"{QUESTION}number {i + 1}": question.str.findall(r"\d+").str[i] for i in range(NUMBERS)}
        of_rows |= {"right": table["right"], "characters of the text": told.str.len(), PLACE: number}
        for name, values in of_rows.items():
            values = pd.to_numeric(values, errors="coerce")
            between = values - values.groupby([table["task"], table["pair"]]).transform("mean")
            found[name + OF_PAIR] = between.map(np.sign).fillna(0).astype(str)
    levels = {name: _as_levels(values, table["task"]) for name, values in found.items()}
    levels |= {
        f"{name} is odd": (values % 2).astype(str).to_numpy()
        for name, values in found.items()
        if _is_fine(values) and (values % 1 == 0).all()
    }
    lengths = found["characters of the text"].groupby([table["task"], table["question"]]).mean()
    places = lengths.groupby("task").rank(method="first") - 1
    by_length = pd.Series(places.loc[[*zip(table["task"], table["question"], strict=True)]].to_numpy(), table.index)
    by_place = {f"{PLACE}, modulo {period}": number % period for period in PERIODS}
    by_place |= {f"{PLACE}, blocks of {size}": number // size % 2 for size in BLOCKS}
    by_place = {name: values.astype(str).to_numpy() for name, values in by_place.items()}
    few = {
        name: _join_many(values, table["task"])
        for name, values in levels.items()
        if _name_kind(name) == "design" and not name.endswith(OF_PAIR)
    }
    few = {name: values for name, values in few.items() if len(set(values)) > 1}
    either = few | by_place
    together = [*combinations(few, 2), *product(by_place, [name for name in (ORDER, "style", LARGER) if name in few])]
    crossed = {
        f"{one}{WITH}{other}": np.char.add(np.char.add(either[one].astype(str), "/"), few[other].astype(str))
        for one, other in together
    }
    levels |= by_place | {f"{PLACE}, early or late": _as_bins(number, table["task"])}
    levels |= {
        f"characters of the text, blocks of {size}": (by_length // size % 2).astype(str).to_numpy() for size in BLOCKS
    }
    levels = {name: values for name, values in (levels | crossed).items() if 1 < len(set(values)) <= len(table) / 2}
    return dict(sorted(levels.items(), key=lambda item: KINDS.index(_name_kind(item[0]))))


def read_wording(texts: pd.Series, of: str) -> dict[str, pd.Series]:
    """Which names a text has, and whether its numbers, the sum of its digits and the numbers of its words and
    characters are odd.

    >>> found = read_wording(pd.Series(["Ann has 21 keys.", "Bob has 30 keys."]), "its ")
    >>> [(name, list(values)) for name, values in found.items() if values.nunique() > 1]
    [('its capitalised word 1', ['Ann', 'Bob']), ('its number 1 is odd', ['True', 'False'])]

    Args:
        texts: one for each row.
        of: what the names of the factors begin with.
    """
    texts = texts.fillna("").astype(object)
    words, names, numbers = (texts.str.findall(kind) for kind in (r"[^\W\d]+", r"\b[A-Z][a-z]+", r"\d+"))
    found = {
        f"{of}capitalised word {place + 1}": names.str[place].astype(object).fillna("none") for place in range(NAMES)
    }
    for place in range(NUMBERS):
        value = pd.to_numeric(numbers.str[place], errors="coerce")
        found[f"{of}number {place + 1} is odd"] = (value % 2 == 1).astype(str).where(value.notna(), "none")
    digits = texts.str.replace(r"\D", "", regex=True).map(lambda run: sum(map(int, run)))
    found[f"{of}digits add up to odd"] = digits % 2
    found[f"{of}number of words is odd"] = words.str.len() % 2
    found[f"{of}number of characters is odd"] = texts.str.len() % 2
    return found


def compare_candidates(table: pd.DataFrame) -> pd.Series:
    """Of each row whether the right candidate is the larger number, or that they are no numbers."""
    right, other = (pd.to_numeric(table[name], errors="coerce") for name in ("right", "other"))
    return (right > other).astype(str).where(right.notna() & other.notna(), "no numbers")


def match_cells(
    table: pd.DataFrame, labels: Sequence[bool], *, by: Sequence[str], seed: int
) -> Bool[np.ndarray, " row"]:
    """Rows that hold as many of either label in every cell, so that what spans the cells tells nothing.

    Args:
        table: of transcripts.
        labels: one for each row.
        by: columns that span the cells.
        seed: of which rows of the commoner label are kept.

    Raises:
        InputError: no such column.
    """
    if missing := [column for column in by if column not in table]:
        raise InputError(f"no column {missing[0]!r}: legal are {', '.join(map(str, table.columns))}")
    generator, truth = make_generator(seed), np.asarray(labels, dtype=bool)
    kept = np.zeros(len(table), dtype=bool)
    cells = pd.factorize(pd.Series(zip(*(table[column].astype(str) for column in by), strict=True)))[0]
    for cell in range(cells.max(initial=-1) + 1):
        of_label = [np.flatnonzero((cells == cell) & (truth == label)) for label in (True, False)]
        for rows in of_label:
            kept[generator.permutation(rows)[: min(map(len, of_label))]] = True
    return kept


def _find_ends(text: str, right: str, other: str) -> tuple[str, str]:
    """Whether the first and the last mention of a candidate is the right one."""
    mentions = re.findall(rf"\b({re.escape(right)}|{re.escape(other)})\b", text)
    return (str(mentions[0] == right), str(mentions[-1] == right)) if mentions else ("neither", "neither")


def _read_design(table: pd.DataFrame, *, own: bool) -> pd.Series:
    """What the model was given: up to its answer, or up to the chain that it wrote itself."""
    return table["text"].str.rsplit("\nAnswer:", n=1).str[0].str.split("\nReasoning:" if own else "\0", n=1).str[0]


def _is_plain(values: pd.Series) -> bool:
    return all(isinstance(value, Hashable) for value in values)


def _is_factor(name: str, *, own: bool, besides: Sequence[str]) -> bool:
    """Whether a column is one; of a chain that the model wrote neither its length nor what comes after is."""
    after = name == "n_sentences" or (name.startswith("at_") and name != "at_question")
    return not (MEASURED.fullmatch(name) or name in besides or (own and after))


def _is_fine(values: pd.Series) -> bool:
    """Whether a column holds numbers of many values."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return numeric and values.nunique() > FEW_LEVELS


def _as_levels(values: pd.Series, tasks: pd.Series) -> np.ndarray:
    """Names as they are, and numbers of many values in bins; what is missing is a level."""
    if _is_fine(values):
        return _as_bins(values, tasks)
    return values.astype(object).where(values.notna(), "missing").astype(str).to_numpy()


def _join_many(values: np.ndarray, tasks: pd.Series) -> np.ndarray:
    """The levels of a factor, all one in tasks where there are too many to be crossed with another's."""
    many = pd.Series(values).groupby(tasks.to_numpy()).transform("nunique") > FEW_LEVELS
    return np.where(many, "many", values.astype(object)).astype(str)


def _as_bins(values: pd.Series, tasks: pd.Series) -> np.ndarray:
    shares = values.groupby(tasks.to_numpy()).rank(method="average", pct=True)
    return np.ceil(shares * BINS).fillna(0).astype(int).astype(str).to_numpy()


def _name_kind(name: str) -> str:
    if name in TEXT:
        return "text"
    if WITH in name:
        return "two together"
    if name.startswith(PLACE):
        return "place"
    if name.startswith((QUESTION, CHAIN)):
        return "wording"
    if name.startswith(("at_", "characters")):
        return "length"
    return "answer" if name == "answer" else "design"


def _find_worst(rows: pd.DataFrame) -> pd.Series:
    told = rows[_is_told(rows)] if _is_told(rows).any() else rows
    near = told[told["surely"] >= told["surely"].max() - NEAR]
    simplest = min(near["kind"], key=KINDS.index)
    return near.loc[near.loc[near["kind"] == simplest, "surely"].idxmax()]


def _is_told(rows: pd.DataFrame) -> pd.Series:
    return (rows["surely"] > CHANCE) & (rows["high"] >= BOUND)


def _describe(row: Mapping[Hashable, Any] | pd.Series) -> str:
    told = "tells it, maybe" if row["surely"] > CHANCE else "may tell it"
    told = "tells it" if row["surely"] >= BOUND else f"{told} beyond {BOUND:.2f}, over {row['n']} questions or pairs"
    return f"{row['factor']} {told}: AUROC {row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _assign_folds(truth: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray | None:
    """Folds of the questions of one task, -1 where one lacks a class; none where there is too little for three."""
    if min(truth.sum(), (~truth).sum()) < FEWEST or len(set(groups)) < 5:
        return None
    folds = assign_stratified_folds(truth.tolist(), groups.tolist(), seed=seed).numpy()
    both = [fold for fold in sorted(set(folds)) if len(set(truth[folds == fold])) == 2]
    numbers = {fold: number for number, fold in enumerate(both)}
    return np.array([numbers.get(fold, -1) for fold in folds]) if len(both) > 2 else None


def _join_draws(
    scored: Sequence[tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]],
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Rows, folds and scores of several draws of folds as those of one, whose folds are those of all."""
    firsts = np.cumsum([0, *(folds.max() + 1 for _, folds, _ in scored[:-1])])
    return (
        np.concatenate([place for place, *_ in scored]),
        np.concatenate([first + folds for first, (_, folds, _) in zip(firsts, scored, strict=True)]),
        {name: np.concatenate([scores[name] for *_, scores in scored]) for name in scored[0][2]},
    )


def _encode(levels: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> Float[np.ndarray, " row"]:
    """For each row the share of the label among the other folds' rows of its level, drawn a little to that of all."""
    codes, scores = pd.factorize(levels)[0], np.empty(len(truth))
    for fold in set(folds):
        held = folds == fold
        sums = np.bincount(codes[~held], truth[~held].astype(float), codes.max() + 1)
        counts = np.bincount(codes[~held], minlength=codes.max() + 1)
        scores[held] = ((sums + truth[~held].mean()) / (counts + 1))[codes[held]]
    return scores


def _evaluate(
    scores: Mapping[str, np.ndarray], truth: np.ndarray, groups: np.ndarray, folds: np.ndarray, seed: int
) -> pd.DataFrame:
    """The AUROC of each score, a mean over folds, with its interval by bootstrap over groups, widened by `LUCK`."""
    from scipy.stats import norm

    values, labels = torch.tensor(np.stack(list(scores.values()))).float(), torch.tensor(truth)
    intervals = bootstrap_intervals(values, labels, groups.tolist(), torch.tensor(folds), seed)["auroc"]
    of_fold = [compute_auroc(values[:, folds == fold], labels[folds == fold]) for fold in range(folds.max() + 1)]
    kinds = [_name_kind(name) for name in scores]
    auroc = torch.stack(of_fold).mean(0)[:, None]
    found = torch.cat([auroc, (auroc + LUCK * (intervals - auroc)).clamp(0, 1)], dim=1)
    table = pd.DataFrame(found.tolist(), columns=["auroc", "low", "high"])
    wider = norm.ppf(1 - 0.025 / len(table)) / norm.ppf(0.975)
    table["surely"] = table["auroc"] - wider * (table["auroc"] - table["low"])
    return table.assign(factor=list(scores), kind=kinds, n=len(set(groups)))[COLUMNS]


def _score_texts(
    loaded: LoadedModel, table: pd.DataFrame, truth: np.ndarray, folds: np.ndarray, *, own: bool, seed: int
) -> dict[str, Float[np.ndarray, " row"]]:
    """Scores fitted to what the model was given."""
    options = {"folds": folds.tolist(), "seed": seed}
    found = baselines.score_text(
        loaded, _read_design(table, own=own).tolist(), truth, table["question"].tolist(), **options
    )
    return {name: values.numpy() for name, values in found.items()}
