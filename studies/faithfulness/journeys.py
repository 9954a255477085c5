"""What probes are sent to: the rows of every label, read in the same places after their own worked examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from helpers import hooks, probes, scores
from helpers.claims import Estimate
from helpers.hooks import Captured
from helpers.models import LoadedModel
from studies.faithfulness import dataset, hypotheses, questions, transcripts
from studies.faithfulness.hypotheses import Draw

SOURCES: dict[str, Literal["constructed"] | dataset.Behaviour] = {
    "constructed": "constructed",
    "own contradiction": "causal_own",
    "hint": "hint",
    "given chain": "causal_given",
    "own chain": "causal_own",
}
"""By label whose transcripts it is read from."""
WHERE = {
    "constructed": "answer",
    "own contradiction": "answer",
    "hint": "cue",
    "given chain": "cue",
    "own chain": "cue",
}
"""The token at which a label is read: the first at which it can be known."""
PLACES = ("reasoning", "cue", "answer")
"""The end of the chain, the token before the answer, and the answer."""
VERDICT = r"(?:not \w+ but (\w+)|(\w+), not \w+|it is (\w+))\.$"
"""At the end of a chain that the model wrote."""


def find_passed_tasks(loaded: LoadedModel, *, n_tasks: int) -> dict[str, list[str]]:
    """For each label at most so many of the tasks that its audit let through; of all where a model has no data set."""
    gates = dataset.read_passed_tasks(loaded) or {}
    audits = SOURCES | {"own contradiction": "constructed"}
    return {label: gates.get(audit, list(questions.TASKS))[:n_tasks] for label, audit in audits.items()}


def find_own_contradictions(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[bool]]:
    """The model's own chains that end with one of the candidates, and whether its answer is the other one.

    Args:
        rows: of `causes.label_causes`, own chains.
    """
    verdict = rows["reasoning"].str.extract(VERDICT).bfill(axis=1)[0]
    stated = (verdict == rows["right"]) | (verdict == rows["other"])
    return rows[stated], (verdict != rows["answer"])[stated].tolist()


class Gathered(NamedTuple):
    """One draw of the data: a row for each transcript of each label."""

    table: pd.DataFrame
    """With the label's name as `about`, and whether it calls the row `unfaithful`."""
    states: Captured

    def select(self, label: str) -> Gathered:
        """The rows of one label, on the tasks that have both classes."""
        both = self.table.groupby(["about", "task"])["unfaithful"].transform("nunique") == 2
        chosen = np.flatnonzero(both & (self.table["about"] == label)).tolist()
        return Gathered(self.table.iloc[chosen].reset_index(drop=True), self.states.select(chosen))


def gather(
    loaded: LoadedModel,
    tasks: Mapping[str, Sequence[str]],
    *,
    n_questions: int,
    n_own: int,
    n_samples: int,
    seed: int,
    folder: Path,
) -> Gathered:
    """Draw the transcripts of every label that has a task, and read each once.

    Args:
        loaded: on plain Hugging Face.
        tasks: of each label.
        n_questions: of each task, for constructed transcripts.
        n_own: the same for what the model did.
        n_samples: draws of worked examples for hints.
        seed: of the questions.
        folder: of `hooks.generate`.
    """
    parts = []
    for source in dict.fromkeys(SOURCES.values()):
        labels = [label for label in tasks if SOURCES[label] == source and tasks[label]]
        wanted = sorted({task for label in labels for task in tasks[label]})
        if not wanted:
            continue
        if source == "constructed":
            rows = construct(loaded, wanted, n=n_questions, seed=seed)
        else:
            options = {"n": n_own, "n_samples": n_samples, "seed": seed, "folder": folder}
            rows = dataset.load_transcripts(loaded, source, tasks=wanted, **options)
            rows = rows[rows["at_cue"].notna()]
        for label in labels:
            asked = rows[rows["task"].isin(tasks[label])]
            if label == "own contradiction":
                rows_of, truth = find_own_contradictions(asked[asked["number"] < n_own])
            else:
                rows_of, truth = dataset.select_unfaithful(asked, n=n_own)
            parts.append(rows_of.assign(about=label, unfaithful=np.array(truth, dtype=bool)))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    again = table.groupby(["before", "text"], sort=False).ngroup().to_numpy()
    first = table.drop_duplicates(["before", "text"])
    return Gathered(table, read(loaded, first).select(again.tolist()))


def construct(loaded: LoadedModel, tasks: Sequence[str], *, n: int, seed: int) -> pd.DataFrame:
    """Contradictions that are put in, of so many questions of each task, and the worked examples before them."""
    asked = questions.draw_questions(loaded, tasks=tasks, n=n, seed=seed)
    shots = questions.draw_shots(loaded, tasks=tasks, n=transcripts.N_SHOTS, seed=seed)
    rows = transcripts.construct(loaded, asked)
    return rows.assign(before=rows["task"].map(transcripts.write_examples_by_task(shots, "stated")))


def read(loaded: LoadedModel, rows: pd.DataFrame, places: Sequence[str] = PLACES) -> Captured:
    """The residual stream after every layer at some of `PLACES`, after what stood before each transcript."""
    prompts, at = transcripts.put_in_context(loaded, rows, answered=True)
    return hooks.capture(loaded, prompts, "resid_post", positions={place: at[place] for place in places}, as_trees=True)


def make_draws(
    gathered: Sequence[Gathered], labels: Sequence[str], *, place: str, layer: int, domain: str, seed: int
) -> list[Draw]:
    """The rows of some labels at one site, as domains, where each has enough of both classes (`drop_unfilled`).

    Args:
        gathered: a draw of the data each.
        labels: to be read.
        place: of `PLACES`.
        layer: to be read.
        domain: the column that names the domains, "task" or "about".
        seed: of the folds.
    """
    found = []
    for table, states in gathered:
        chosen = np.flatnonzero(table["about"].isin(labels))
        rows = table.iloc[chosen]
        x = probes.read_features(states, probes.Site("resid_post", layer, place))[chosen]
        labels_of, units = rows["unfaithful"].tolist(), dataset.list_units(rows)
        found.append(Draw(x, labels_of, units, rows[domain].tolist(), list_blocks(rows)))
    return hypotheses.drop_unfilled(found, seed=seed)


def list_blocks(rows: pd.DataFrame) -> list[object]:
    """What has one label whatever it is: the rows of a question that has a partner, and every other row by itself."""
    pairs = rows["pair"] if "pair" in rows else pd.Series(np.nan, index=rows.index)
    keys = zip(rows["about"], rows["task"], rows["question"], strict=True)
    return [key if known else number for number, (key, known) in enumerate(zip(keys, pairs.notna(), strict=True))]


def trace_layers(gathered: Gathered, trained: str, *, place: str, n_layers: int, seed: int) -> dict[str, list[float]]:
    """What probes of one label make of every label that has rows enough: by label the AUROC in each layer.

    Args:
        gathered: one draw of the data.
        trained: the label that is learned.
        place: of `PLACES`.
        n_layers: of the model.
        seed: of the folds.
    """
    found: dict[str, list[float]] = {}
    for layer in range(n_layers):
        for draw in make_draws([gathered], [*SOURCES], place=place, layer=layer, domain="about", seed=seed):
            training = {trained: np.array(draw.domains) == trained}
            for (_, label), area in hypotheses.measure_areas(draw, training, seed=seed).items():
                found.setdefault(label, []).append(area)
    return found


def send_words(gathered: Gathered, draw: Draw, *, seed: int) -> dict[tuple[str, str], Estimate]:
    """The same journeys with counts of words and pairs of words instead of activations.

    Args:
        gathered: one draw of the data.
        draw: made of it, with labels as domains.
        seed: of folds and bootstrap.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    rows = gathered.table[gathered.table["about"].isin(draw.domains)]
    counted = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", min_df=2)
    counts = counted.fit_transform(rows["text"].str.removesuffix(transcripts.NEXT)).toarray()
    return hypotheses.measure_transfer([draw._replace(activations=torch.tensor(counts).float())], seed=seed).pairs


def try_own_rules(rows: pd.DataFrame, *, seed: int) -> dict[str, Estimate | None]:
    """What could tell the model's own contradictions without a probe, as nobody balanced them: AUROC by rule.

    Args:
        rows: of `Gathered.table`, with both classes or none.
        seed: of the bootstrap over questions.
    """
    truth = rows["unfaithful"].astype(float)
    of_task = truth.groupby(rows["task"]).transform("mean")
    rules = {
        "the verdict says first what it is not": rows["reasoning"].str.contains(r"not \w+ but \w+\.$"),
        "how often the task goes wrong (upper bound, by these rows)": of_task,
        "length in tokens": rows["at_reasoning"],
    }
    known = rows["unfaithful"].tolist(), dataset.list_units(rows)
    found = {
        name: scores.evaluate(torch.tensor(values.astype(float).to_numpy()), *known, seed=seed)["auroc"]
        for name, values in (rules.items() if len(rows) else ())
    }
    return {name: area and replace(area, of="questions or pairs") for name, area in found.items()}
