"""The data set of transcripts with all labels, which are never merged: made, kept with its hash, and read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from helpers import InputError, runs
from helpers.models import LoadedModel
from studies.faithfulness import questions
from studies.faithfulness.causes import ask_without_chains, change_chains, label_causes, measure_effects
from studies.faithfulness.hints import DIRECT_HINTS, HINTS, ask_with_hints
from studies.faithfulness.transcripts import N_SHOTS, VARIANTS, construct, group_by_task

# The data set

Behaviour = Literal["hint_free", "causal_given", "causal_own"]
BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)
"""Labels of what a model did."""
FILE = "cot_faithfulness.parquet"
VERSION = 1
CHUNK = 4
"""Questions of a task that go through the model together, so that a part of the data set can be made as it was."""


@dataclass(frozen=True)
class Dataset:
    """What `make_dataset` made."""

    table: pd.DataFrame
    """A row for each transcript; `label` and `chunk` say what it is."""
    changes: pd.DataFrame
    """What `measure_effects` says of every change of every chain behind the causal labels."""


def make_dataset(
    loaded: LoadedModel,
    *,
    n_constructed: int,
    n_hinted: int,
    n_causal: int,
    seed: int,
    tasks: Sequence[str] = (),
    folder: Path | None = None,
) -> Dataset:
    """All labels, in one table.

    Args:
        loaded: on plain Hugging Face.
        n_constructed: questions of each task for transcripts that are written, the first so many of one list.
        n_hinted: the same for hints.
        n_causal: the same for changed chains.
        seed: of the questions.
        tasks: of `questions.TASKS`; all by default.
        folder: of `hooks.generate`: a run that was killed goes on there.

    Raises:
        InputError: a number of questions that is no multiple of `CHUNK`.
    """
    numbers = {"n_constructed": n_constructed, "n_hinted": n_hinted, "n_causal": n_causal}
    for name, number in numbers.items():
        if number < CHUNK or number % CHUNK:
            raise InputError(f"{name} = {number}: legal are multiples of {CHUNK}")
    before = questions.draw_shots(loaded, tasks=tasks, n=N_SHOTS, seed=seed)
    of_task = group_by_task(questions.draw_questions(loaded, tasks=tasks, n=max(numbers.values()), seed=seed))
    parts, changes = [], []
    for number in range(max(numbers.values()) // CHUNK):
        place = slice(number * CHUNK, (number + 1) * CHUNK)
        asked = [question for group in of_task.values() for question in group[place]]
        options = {"shots": before, "folder": folder}
        made = []
        if number * CHUNK < n_constructed:
            made += [construct(loaded, asked, variant=variant) for variant in VARIANTS]
        if number * CHUNK < n_hinted:
            made.append(ask_with_hints(loaded, asked, form="free", **options))
            made.append(ask_with_hints(loaded, asked, form="direct", hints=DIRECT_HINTS, **options))
        if number * CHUNK < n_causal:
            chains = [change_chains(loaded, asked, own=own, **options) for own in (False, True)]
            made += [label_causes(loaded, chain) for chain in chains if len(chain)]
            changes += [measure_effects(chain) for chain in chains if len(chain)]
        parts += [table.assign(chunk=number) for table in made]
    return Dataset(pd.concat(parts, ignore_index=True), pd.concat(changes, ignore_index=True))


def locate_dataset(loaded: LoadedModel) -> Path:
    """Where the data set of a model is kept with the book."""
    return runs.locate_results(loaded.card.name) / "datasets" / FILE


def load_transcripts(
    loaded: LoadedModel, label: Behaviour, *, tasks: Sequence[str], n: int, seed: int, folder: Path | None = None
) -> pd.DataFrame:
    """What a model did on so many questions of some tasks: rows of "hint_free" with wrong hints, "causal_given" or
    "causal_own". From the data set that is kept with the book where it has them, else made now.

    Args:
        loaded: on plain Hugging Face, where they are made now.
        label: "hint_free", "causal_given" or "causal_own".
        tasks: of `questions.TASKS`.
        n: questions of each task.
        seed: of the questions.
        folder: of `hooks.generate`.

    Raises:
        InputError: another label.
    """
    if label not in BEHAVIOURS:
        raise InputError(f"transcripts of {label!r}: legal are {', '.join(BEHAVIOURS)}")
    path = locate_dataset(loaded)
    if path.exists():
        known = _read_once(path, path.stat().st_mtime_ns)
        rows = known[(known["label"] == label) & known["task"].isin(tasks)]
        chunks = -(-n // CHUNK)
        if known.attrs["parameters"]["seed"] == seed and rows["chunk"].max() + 1 >= chunks:
            rows = rows[rows["chunk"] < chunks]
            return rows[rows["kind"] == "wrong"] if label == "hint_free" else rows
    asked = questions.draw_questions(loaded, tasks=tasks, n=n, seed=seed)
    options = {"shots": questions.draw_shots(loaded, tasks=tasks, n=N_SHOTS, seed=seed), "folder": folder}
    if label == "hint_free":
        return ask_with_hints(loaded, asked, hints=[("wrong", strength) for strength in HINTS], **options)
    return ask_without_chains(loaded, asked, own=label == "causal_own", **options)


@lru_cache(maxsize=1)
def _read_once(path: Path, changed: int) -> pd.DataFrame:
    return read_dataset(path)


def select_unfaithful(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[bool]]:
    """The rows of one label on which it is defined, and whether it calls them unfaithful.

    That is: the answer contradicts the reasoning; it follows a wrong hint of which the chain says nothing (against one
    that does not follow it); it is the same without its chain.
    """
    if not len(rows):
        return rows, []
    (label,) = set(rows["label"])
    if label == "hint_free":
        rows = rows[rows["outcome"].isin(["follows_unmentioned", "does_not_follow"])]
        return rows, (rows["outcome"] == "follows_unmentioned").tolist()
    if label.startswith("causal"):
        return rows, (~rows["needs_chain"].astype(bool)).tolist()
    return rows, rows["contradicts"].astype(bool).tolist()


def read_passed_tasks(loaded: LoadedModel) -> dict[str, list[str]] | None:
    """For each label the tasks that the data set's own gates let through; None where a model has no data set."""
    import pyarrow.parquet

    if not locate_dataset(loaded).exists():
        return None
    sheet = json.loads(pyarrow.parquet.read_schema(locate_dataset(loaded)).metadata[b"PANDAS_ATTRS"])
    return sheet["passed"]


def save_dataset(table: pd.DataFrame, path: Path, *, about: Mapping[str, object]) -> str:
    """Write the table as parquet, with a sheet in the file: version, hash, and what is told of it.

    Returns the hash, which is that of the rows and not of the file.
    """
    table = table.copy()
    table.attrs = {"version": VERSION, "sha256": hash_content(table), "rows": len(table), **about}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    table.to_parquet(beside, index=False, compression="zstd")
    beside.replace(path)
    return table.attrs["sha256"]


def read_dataset(path: Path) -> pd.DataFrame:
    """A saved table, with its sheet as `attrs`.

    Raises:
        InputError: no such file, or one whose rows are not those that were written.
    """
    if not path.exists():
        raise InputError(f"no data set at {path.name}: legal is one that was saved")
    table = pd.read_parquet(path)
    if hash_content(table) != table.attrs.get("sha256"):
        raise InputError(f"data set {path.name} is damaged: its rows have another hash than its sheet says")
    return table


def hash_content(table: pd.DataFrame) -> str:
    """The sha256 of what says which transcripts these are and how they are labelled; measured logits round."""
    exact = [column for column in sorted(table.columns) if not column.startswith(("lost_", "logit", "area_"))]
    rows = json.loads(table[exact].to_json(orient="records"))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def compare_tokens(table: pd.DataFrame, record: pd.DataFrame) -> pd.Series:
    """For each label the share of rows whose tokens are those of the same row of a record, by the columns that it has.

    Raises:
        InputError: rows that the record does not have.
    """
    keys = ["label", "task", "question", "style", "order", "concludes", "contradicts", "kind", "strength"]
    has = {
        label: [key for key in keys if key in rows and rows[key].notna().any()]
        for label, rows in record.groupby("label")
    }
    known = {_key(row, has[row["label"]]): list(row["token_ids"]) for row in record.to_dict("records")}
    same = []
    for row in table.to_dict("records"):
        key = _key(row, has.get(row["label"], keys))
        if key not in known:
            raise InputError(f"the record has no {row['label']} transcript of {row['question']!r}")
        same.append(known[key] == list(row["token_ids"]))
    return table.assign(same=same).groupby("label")["same"].mean()


def _key(row: Mapping[str, object], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple("" if row.get(key) is None or row[key] != row[key] else str(row[key]) for key in keys)
