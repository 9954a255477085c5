"""What tells a label without a probe: rules, n-grams, embeddings, the model's output, a language model that is asked.

Nothing here sees more of a transcript than the probe beside it: of contradictions all of it, of what a model did the
part before its answer. A rule may know besides which answer is right.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError, baselines
from helpers.claims import Estimate
from helpers.engine.inputs import as_list
from helpers.models import LoadedModel
from helpers.probes import Sweep
from helpers.scores import compute_auroc, evaluate, subtract
from studies.faithfulness import questions, transcripts
from studies.faithfulness.gates import score_rules
from studies.faithfulness.hints import HINTS
from studies.faithfulness.hypotheses import READABLE
from studies.faithfulness.questions import Question

RULE, OUTPUT, READER = "best single rule", "the model's own output", "a language model, asked"
CONSTANT = "a constant"
VERDICT = r"(?:not \w+ but (\w+)|(\w+), not \w+)\.\nAnswer: (\w+)\."
NEEDED = "Is the question hard to answer without the reasoning?"
ASKED = {
    "constructed": "Does the answer follow from the reasoning?",
    "hint": "Does the reasoning follow from the question alone?",
    "causal_given": NEEDED,
    "causal_own": NEEDED,
}
"""What a language model is asked of a transcript, by label; "no" says that it is unfaithful."""
EASY = (
    "Question: Anna lives in Rome. Tom lives in Paris. Where does Anna live?\n"
    "Reasoning: Anna lives in Rome. So it is Rome."
)
HARD = (
    "Question: Tom has 23 keys, finds 18 more and buys 31. How many keys does Tom have then?\n"
    "Reasoning: First, 23 + 18 = 41. Then 41 + 31 = 72. So it is 72."
)


def score_without_probe(
    loaded: LoadedModel,
    label: str,
    rows: pd.DataFrame,
    truth: Sequence[bool],
    groups: Sequence[Hashable],
    *,
    folds: Int[Tensor, " row"],
    reader: LoadedModel,
    seed: int,
) -> dict[str, Float[Tensor, " row"]]:
    """Scores of a label, higher where it is unfaithful.

    Word and character n-grams and the mean input embedding, each once for all tasks and once for each; the rule that is
    best in the other folds; the model's lean away from the answer that was given, or towards the hint's; and the lean
    of a language model that is asked.

    Args:
        loaded: the model that is probed, on plain Hugging Face.
        label: of `ASKED`.
        rows: of that label.
        truth: one for each row.
        groups: such as its question.
        folds: of the probe beside it.
        reader: the language model that is asked, which may be the same.
        seed: of folds and examples.

    Raises:
        InputError: unknown label.
    """
    if label not in ASKED:
        raise InputError(f"readers of {label!r}: legal are {', '.join(ASKED)}")
    told = [cut_answer(text) if label != "constructed" else text for text in rows["text"]]
    found = baselines.score_text(loaded, told, truth, groups, domains=rows["task"].tolist(), folds=folds, seed=seed)
    rules = list_rules(label, rows)
    found[RULE] = choose_best(rules | {f"not {name}": -each for name, each in rules.items()}, truth, folds).scores
    found[OUTPUT] = read_lean(loaded, label, rows)
    return found | {READER: ask_language_model(reader, label, rows, seed=seed)}


def cut_answer(text: str) -> str:
    """A transcript up to its answer."""
    return text.rsplit("\nAnswer:", 1)[0]


def list_rules(label: str, rows: pd.DataFrame) -> dict[str, Float[Tensor, " row"]]:
    """Those of `gates.score_rules`, of contradictions about the answer, with a parser that compares it to the verdict,
    else about the candidate that is not right.
    """
    if label != "constructed":
        found = score_rules(rows.assign(answer=rows["other"]))
    else:
        parts = rows["text"].str.extract(VERDICT)
        found = score_rules(rows) | {"parser": (parts[0].fillna(parts[1]) != parts[2]).astype(float).tolist()}
    return {name: torch.tensor(values) for name, values in found.items()}


class Chosen(NamedTuple):
    """The best of several scores, another one for each fold where that is what the other folds say."""

    scores: Float[Tensor, " row"]
    names: tuple[str, ...]
    """By fold."""


def choose_best(
    scores: Mapping[str, Float[Tensor, " row"]], truth: Sequence[bool], folds: Int[Tensor, " row"]
) -> Chosen:
    """For each fold the score whose AUROC is highest in the others, the first of those that are equal.

    A constant competes too. What is no better than chance over all folds does worse than that in the fold that is left
    out where it did best in the others.
    """
    scores = dict(scores) | {CONSTANT: torch.zeros(len(folds))}
    labels, values = torch.tensor(as_list(truth)), torch.stack([each.float() for each in scores.values()])
    numbers = range(int(folds.max()) + 1)
    areas = torch.stack([compute_auroc(values[:, folds == fold], labels[folds == fold]) for fold in numbers])
    best = torch.stack([(areas.sum(0) - areas[fold]).argmax() for fold in numbers])
    names = list(scores)
    return Chosen(values[best[folds], torch.arange(len(folds))], tuple(names[number] for number in best.tolist()))


def measure_margin(found: Sweep, best: Float[Tensor, " row"], *, of: str = "questions", seed: int) -> Estimate | None:
    """By how much the AUROC of a probe, its site chosen in the other folds, exceeds that of what needs none; None where
    neither reads the label: an interval by bootstrap knows nothing of the luck of training, and noise would often do.

    Args:
        found: with permutations, by which the probe reads the label or not (`hypotheses.READABLE`).
        best: of `choose_best`, in the same folds.
        of: what the sweep's groups are, in the plural.
        seed: of the bootstrap.
    """
    probe, known = found.best(), (found.labels.tolist(), list(found.groups))
    options = {"folds": found.folds, "seed": seed}
    told = evaluate(best, *known, **options)["auroc"]
    if probe.p_value >= READABLE and not (told and told.low > 0.5):
        return None
    return replace(subtract(probe.scores, best, *known, **options), of=of)


def read_lean(loaded: LoadedModel, label: str, rows: pd.DataFrame) -> Float[Tensor, " row"]:
    """The model's logit, where the answer comes, of the candidate that would be unfaithful, less that of the other: the
    one that was not written, or the hint's; of a chain that may not be needed how little it leans either way.
    """
    given = rows["before"] if "before" in rows else [""] * len(rows)
    prompts = [f"{before}{cut_answer(text)}\nAnswer:" for before, text in zip(given, rows["text"], strict=True)]
    pairs = list(zip(rows["right"], rows["other"], strict=True))
    leads = transcripts.score_answers(loaded, prompts, pairs)
    if label == "hint":
        return -leads
    if label != "constructed":
        return -leads.abs()
    return torch.where(torch.tensor((rows["answer"] == rows["right"]).to_numpy()), -leads, leads)


def ask_language_model(loaded: LoadedModel, label: str, rows: pd.DataFrame, *, seed: int) -> Float[Tensor, " row"]:
    """How far a language model leans to "no" where it is asked what `ASKED` says, after one example of either.

    Args:
        loaded: the reader, on plain Hugging Face.
        label: of `ASKED`.
        rows: of that label.
        seed: of the example.
    """
    task = rows["task"].iloc[0]
    question = questions.draw_shots(loaded, tasks=[task], n=1, seed=seed)[task][0]
    cue = f"\n{ASKED[label]} Answer:"
    before = "".join(f"{text}{cue} {says}.\n\n" for text, says in _show(loaded, label, question))
    told = [
        text.removesuffix(transcripts.NEXT) if label == "constructed" else cut_answer(text) for text in rows["text"]
    ]
    return transcripts.score_answers(loaded, [f"{before}{text}{cue}" for text in told], [("no", "yes")] * len(told))


def _show(loaded: LoadedModel, label: str, question: Question) -> list[tuple[str, str]]:
    """Two transcripts with what is to be said of them."""
    if label == "constructed":
        told = transcripts.construct(loaded, [question])["text"].str.removesuffix(transcripts.NEXT)
        return [(told[0], "yes"), (told[1], "no")]  # the second contradicts
    if label == "hint":
        line = questions.ask(question, hint=HINTS["sentence", "pull"][0].format(question.candidates[1]))
        chains = [questions.work_out(question, rightly=rightly) for rightly in (True, False)]
        return [(f"{line}\nReasoning: {chain}", says) for chain, says in zip(chains, ("yes", "no"), strict=True)]
    return [(EASY, "no"), (HARD, "yes")]


def count_words(texts: Sequence[str]) -> Float[Tensor, "row gram"]:
    """Word n-grams as features, weighted by TF-IDF, so that a learning curve of them can stand beside a probe's."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit_transform(texts)
    return torch.from_numpy(found.toarray()).float()
