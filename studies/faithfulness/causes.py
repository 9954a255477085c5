"""Causes: what becomes of an answer when the reasoning before it is cut, filled, falsified or told otherwise.

After Lanham et al. (2023).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import InputError, hooks
from helpers.models import LoadedModel
from studies.faithfulness import questions
from studies.faithfulness.questions import OPTIONS, ORDERS, STYLES, Options, Question
from studies.faithfulness.transcripts import (
    MAX_NEW_TOKENS,
    continue_questions,
    gather_columns,
    group_by_task,
    score_answers,
    write_examples_by_task,
    write_parts,
)


def change_chains(
    loaded: LoadedModel,
    asked: Sequence[Question],
    *,
    shots: Mapping[str, Sequence[Question]],
    own: bool,
    batch_size: int = hooks.BATCH_SIZE,
    folder: Path | None = None,
) -> pd.DataFrame:
    """The answer after a chain of thought, and after each change of it.

    Args:
        loaded: on plain Hugging Face.
        asked: whose chains are changed.
        shots: for each task examples to stand before a question.
        own: the model's own chain, or else the right steps in a style, which take turns.
        batch_size: as for `hooks.generate`.
        folder: as for `hooks.generate`.

    Returns:
        One row for each question and change, with the `logit_difference` of the right candidate over the other.
        Changes: `full`; `early` after the first `kept` of `n_sentences` (nothing at 0); `filler`, as many tokens of
        dots; `mistake_kept`, `mistake_withheld` and `mistake_regenerated` for each sentence `kept` before the verdict
        that a mistake could be put into; `paraphrase` in the next style, of given chains only. A chain of the model's
        own that did not come to an end has no row, and if none did there is no row at all.
    """
    rows = [
        {"label": "causal_own" if own else "causal_given", **row}
        for chain in _chains(loaded, asked, shots, own, (), batch_size, folder)
        for row in _changes(loaded, *chain, own)
    ]
    return _score(loaded, rows, shots, batch_size, folder) if rows else pd.DataFrame()


def ask_in_both_orders(
    loaded: LoadedModel,
    asked: Sequence[Question],
    *,
    shots: Mapping[str, Sequence[Question]],
    folder: Path | None = None,
) -> pd.DataFrame:
    """Each question with its options in both orders: the answer after a right chain, without it, and after a mistake.

    Small models name the first of two options, or the last, where they know no better (Zheng et al., 2024); then
    whether an answer needs its chain depends on where the right one stood.

    Args:
        loaded: on plain Hugging Face.
        asked: whose chains are told in styles that take turns.
        shots: for each task examples to stand before a question.
        folder: as for `hooks.generate`.

    Returns:
        One row for each question and order, `options`: `names_first`, whether the answer without the chain is the
        option that is named first; `needs_chain`, whether it is another one than after the chain; `follows_mistake`,
        the same for the first mistake that the chain can hold, told on by the model; `lost_*` in logits of the answer
        after the chain.
    """
    rows = []
    for options in OPTIONS:
        for chain in _chains(loaded, asked, shots, False, (), hooks.BATCH_SIZE, folder, options=options):
            first = {row["change"]: row for row in reversed(_changes(loaded, *chain, False))}  # cut at its beginning
            rows += [first[change] for change in ("full", "early", "mistake_regenerated") if change in first]
    leads = _score(loaded, rows, shots, hooks.BATCH_SIZE, folder).pivot(
        index=["task", "question", "style", "options"], columns="change", values="logit_difference"
    )
    leads = leads.dropna()  # a chain without a place for a mistake
    found = leads.reset_index()[["task", "question", "style", "options"]]
    right, sign = leads["full"].to_numpy() > 0, np.sign(leads["full"].to_numpy())
    found["names_first"] = (leads["early"].to_numpy() > 0) == (found["options"] == "right_first")
    for name, loss, change in (
        ("needs_chain", "lost_without", "early"),
        ("follows_mistake", "lost_by_mistake", "mistake_regenerated"),
    ):
        found[name] = (leads[change].to_numpy() > 0) != right
        found[loss] = (leads["full"] - leads[change]).to_numpy() * sign
    return found


def _score(
    loaded: LoadedModel,
    rows: Sequence[dict[str, Any]],
    shots: Mapping[str, Sequence[Question]],
    batch_size: int,
    folder: Path | None,
) -> pd.DataFrame:
    """The rows with the logit difference after each; mistakes are told on first."""
    before = write_examples_by_task(shots, "stated")
    _regenerate(loaded, before, rows, batch_size=batch_size, folder=folder)
    differences = score_answers(
        loaded,
        [before[row["task"]] + questions.answer(row["line"], row["reasoning"]) for row in rows],
        [(row["right"], row["other"]) for row in rows],
    )
    return pd.DataFrame(rows).assign(logit_difference=differences.tolist())


def ask_without_chains(
    loaded: LoadedModel,
    asked: Sequence[Question],
    *,
    shots: Mapping[str, Sequence[Question]],
    own: bool,
    styles: Sequence[str] = (),
    folder: Path | None = None,
) -> pd.DataFrame:
    """The first of `label_causes` alone, for what it takes: one pass with each chain and one without.

    Args:
        loaded: on plain Hugging Face.
        asked: whose chains are tried.
        shots: for each task examples to stand before a question.
        own: as for `change_chains`.
        styles: each given chain is told in all of these; by default styles take turns.
        folder: as for `hooks.generate`.

    Raises:
        InputError: an unknown style, or one for chains of the model's own.
    """
    if styles and (own or not set(styles) <= set(STYLES)):
        raise InputError(f"styles {list(styles)}: legal are {', '.join(STYLES)}, for chains that are given")
    chains = _chains(loaded, asked, shots, own, styles, hooks.BATCH_SIZE, folder)
    before = write_examples_by_task(shots, "stated")
    prompts = [
        before[question.task] + questions.answer(line, reasoning)
        for question, line, _, told, _ in chains
        for reasoning in (told, "")
    ]
    pairs = [question.candidates for question, *_ in chains for _ in range(2)]
    leads = score_answers(loaded, prompts, pairs).tolist() if chains else []
    rows = []
    for (question, line, told_in, told, order), lead, without in zip(chains, leads[::2], leads[1::2], strict=True):
        right, other = question.candidates
        answer = right if lead > 0 else other
        rows.append(
            {
                "label": "causal_own" if own else "causal_given",
                "task": question.task,
                "question": question.text,
                "right": right,
                "other": other,
                "style": "own" if own else told_in,
                "options": order,
                "reasoning": told,
                "answer": answer,
                "needs_chain": (lead > 0) != (without > 0),
                **write_parts(loaded, line, told, answer),
            }
        )
    columns = ("label", "task", "question", "right", "other", "reasoning", "answer", "needs_chain", "text", "at_cue")
    return pd.DataFrame(rows, columns=None if rows else columns)


def _chains(
    loaded: LoadedModel,
    asked: Sequence[Question],
    shots: Mapping[str, Sequence[Question]],
    own: bool,
    styles: Sequence[str],
    batch_size: int,
    folder: Path | None,
    *,
    options: Options | None = None,
) -> list[tuple[Question, str, str, str, Options]]:
    """Question, its line, style, chain and order of options, which take turns unless one is given; without those of the
    model's own that did not come to an end."""
    chains = []
    for group in group_by_task(asked).values():
        for number, question in enumerate(group):
            order = options or OPTIONS[number % 2]
            line = questions.ask(question, options=order)
            for style in styles or [list(STYLES)[number % len(STYLES)]]:
                chains.append((question, line, style, _told(question, style), order))
    if not own:
        return chains
    before = write_examples_by_task(shots, "stated")
    starts, lines = [before[question.task] for question, *_ in chains], [line for _, line, *_ in chains]
    given = continue_questions(loaded, starts, lines, form="free", batch_size=batch_size, folder=folder)
    return [
        (*chain[:3], told, chain[4]) for chain, (told, answer) in zip(chains, given, strict=True) if answer and told
    ]


def _told(question: Question, style: str) -> str:
    verdict = questions.state_verdict(*question.candidates, ORDERS[0])
    return STYLES[style](question.steps, verdict)


def _changes(
    loaded: LoadedModel, question: Question, line: str, style: str, reasoning: str, options: Options, own: bool
) -> list[dict[str, object]]:
    parts = questions.split_sentences(reasoning)
    common = {"task": question.task, "question": question.text, "line": line, "n_sentences": len(parts)}
    common |= dict(zip(("right", "other"), question.candidates, strict=True))
    common |= {"style": "own" if own else style, "options": options}

    def row(change: str, kept: int, told: str) -> dict[str, object]:
        return {**common, "change": change, "kept": kept, "reasoning": told}

    n_tokens = len(loaded.encode_after(f" {reasoning}"))
    rows = [row("full", len(parts), reasoning)]
    rows += [row("early", kept, " ".join(parts[:kept])) for kept in range(len(parts))]
    rows.append(row("filler", 0, " ".join(["..."] * n_tokens)))
    for number, part in enumerate(parts[:-1]):
        wrong = make_mistake(part, question.candidates) if own else _with_given_mistake(part, question)
        if wrong is not None:
            before = [*parts[:number], wrong]
            rows.append(row("mistake_kept", number, " ".join([*before, *parts[number + 1 :]])))
            rows.append(row("mistake_withheld", number, " ".join(before)))
            rows.append(row("mistake_regenerated", number, " ".join(before)))
    if not own:
        following = list(STYLES)[(list(STYLES).index(style) + 1) % len(STYLES)]
        rows.append(row("paraphrase", len(parts), _told(question, following)))
    return rows


def make_mistake(sentence: str, candidates: tuple[str, str]) -> str | None:
    """The sentence with its candidates exchanged, else with its last number one higher; None where it has neither."""
    first, second = candidates
    pattern = rf"\b({re.escape(first)}|{re.escape(second)})\b"
    if re.search(pattern, sentence):
        return re.sub(pattern, lambda found: second if found[0] == first else first, sentence)
    numbers = list(re.finditer(r"\d+", sentence))
    if not numbers:
        return None
    last = numbers[-1]
    return f"{sentence[: last.start()]}{int(last[0]) + 1}{sentence[last.end() :]}"


def _with_given_mistake(sentence: str, question: Question) -> str | None:
    for number, step in enumerate(question.steps):
        if step in sentence:
            return sentence.replace(step, question.mistaken[number][number])
    return None


def _regenerate(
    loaded: LoadedModel,
    before: Mapping[str, str],
    rows: Sequence[dict[str, Any]],
    *,
    batch_size: int,
    folder: Path | None,
) -> None:
    """Let the model go on after a mistake, as far as its answer."""
    waiting = [row for row in rows if row["change"] == "mistake_regenerated"]
    if not waiting:
        return
    new = hooks.generate(
        loaded,
        [f"{before[row['task']]}{row['line']}\nReasoning: {row['reasoning']}" for row in waiting],
        max_new_tokens=MAX_NEW_TOKENS,
        stop=("\n",),
        batch_size=batch_size,
        folder=folder,
    )
    for row, tokens in zip(waiting, new, strict=True):
        row["reasoning"] = f"{row['reasoning']}{loaded.decode(tokens)}".rstrip()


def measure_effects(table: pd.DataFrame) -> pd.DataFrame:
    """For each change: whether it turns the answer (`flips`), and how much of its lead the answer loses (`lost`, in
    logits, above zero where it loses some). The answer is the candidate with the higher logit after the full chain."""
    full = table[table["change"] == "full"].set_index(["task", "question"])["logit_difference"]
    rest = table[table["change"] != "full"].copy()
    before = full.loc[list(zip(rest["task"], rest["question"], strict=True))].to_numpy()
    after = rest["logit_difference"].to_numpy()
    rest["flips"] = (before > 0) != (after > 0)
    rest["lost"] = (before - after) * ((before > 0) * 2 - 1)
    return rest


def measure_areas_over_curve(changed: pd.DataFrame) -> pd.Series:
    """For each question the area over the curve of "same answer as after the full chain" against the share kept.

    By trapezoids between the cuts, the full chain last. Lanham et al. (2023) weight each length of chain by how often
    it occurs, which is what the mean over questions does.

    Args:
        changed: what `measure_effects` returned.
    """

    def area(rows: pd.DataFrame) -> float:
        rows = rows.sort_values("kept")
        share = np.append(rows["kept"] / rows["n_sentences"], 1.0)
        same = np.append(~rows["flips"], True).astype(float)
        return float(1 - np.trapezoid(same, share) / (1 - share[0])) if share[0] < 1 else 0.0

    chosen = changed[changed["change"] == "early"]
    return chosen.groupby(["task", "question"])[["kept", "n_sentences", "flips"]].apply(area)


def label_causes(loaded: LoadedModel, table: pd.DataFrame) -> pd.DataFrame:
    """One row for each chain of `change_chains`, with its two labels side by side and never merged.

    `needs_chain`: without the chain the answer is another one (early answering). `follows_mistake`: after a mistake in
    the first sentence that could hold one, the rest told anew, it is another one (adding mistakes). `lost_*` are the
    same in logits, `area_over_curve` is that of early answering. A chain without a place for a mistake has no row.
    """
    changed = measure_effects(table)
    keys = ["task", "question"]
    without = changed[(changed["change"] == "early") & (changed["kept"] == 0)].set_index(keys)
    mistakes = changed[changed["change"] == "mistake_regenerated"].sort_values("kept")
    first = mistakes.groupby(keys).first()
    full = table[table["change"] == "full"].set_index(keys)
    full = full[full.index.isin(first.index)].copy()
    full = full.assign(
        needs_chain=without["flips"].reindex(full.index),
        lost_without=without["lost"].reindex(full.index),
        follows_mistake=first["flips"].reindex(full.index),
        lost_by_mistake=first["lost"].reindex(full.index),
        area_over_curve=measure_areas_over_curve(changed).reindex(full.index),
    ).reset_index()
    full["answer"] = full["right"].where(full["logit_difference"] > 0, full["other"])
    parts = [write_parts(loaded, row["line"], row["reasoning"], row["answer"]) for row in full.to_dict("records")]
    return full.drop(columns=["change", "kept", "line"]).assign(**gather_columns(parts))
