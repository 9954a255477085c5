"""Transcripts of a question, a reasoning and an answer: how they are written, where their parts are, what a model says.

`construct` makes those whose answer follows from the stated reasoning or contradicts it. Nothing is said of a model by
that label; its honest name is *answer contradicts reasoning*. Labels of what a model did are in `hints` and `causes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from helpers import InputError, hooks
from helpers.models import LoadedModel
from studies.faithfulness import questions
from studies.faithfulness.questions import OPTIONS, ORDERS, STYLES, Form, Question, Style

Variant = Literal["stated", "implied"]
VARIANTS: dict[Variant, Callable[..., str]] = {"stated": questions.state_verdict, "implied": questions.imply_verdict}
N_SHOTS = 4
MAX_NEW_TOKENS = 64
STOPS = ("\n\n", "Question:")
NEXT = "\n\nQuestion:"
"""What comes after an answered question: tokens at which the label is known and that say nothing themselves."""


def score_answers(
    loaded: LoadedModel, prompts: Sequence[str], candidates: Sequence[tuple[str, str]], *, folder: Path | None = None
) -> Float[Tensor, " prompt"]:
    """After prompts that end with the cue for an answer: the first candidate's logit less the second's.

    Args:
        loaded: on plain Hugging Face.
        prompts: texts.
        candidates: two for each prompt.
        folder: as for `hooks.generate`.
    """
    rows, pairs = [], []
    for prompt, pair in zip(prompts, candidates, strict=True):
        lead, tokens = questions.encode_candidates(loaded, pair)
        rows.append(loaded.encode(prompt) + lead)
        pairs.append(tokens)
    logits = hooks.score_next_tokens(loaded, rows, torch.tensor(pairs), folder=folder)
    return logits[:, 0] - logits[:, 1]


def construct(
    loaded: LoadedModel, asked: Sequence[Question], *, variant: Variant = "stated", styles: Mapping[str, Style] = STYLES
) -> pd.DataFrame:
    """Eight transcripts of each question: concluding right or wrong, answered accordingly or not, in both orders.

    So within every question each candidate is the answer, is concluded and is named last equally often on either side
    of the label. Where a verdict is implied, sums end with the digits of their result. Styles, the place of the mistake
    and the order of the options take turns over questions.

    Args:
        loaded: whose tokenizer is used.
        asked: eight transcripts of each.
        variant: "stated", where the verdict says which candidate it is, or "implied", where only the steps do.
        styles: by name, each of (steps, verdict).

    Returns:
        One row for each transcript: `contradicts` is the label, `text` the transcript, `token_ids` its tokens, and
        `at_*` the last token of each part (see `locate_parts`). Transcripts go on after the answer with the beginning
        of the next question, whose tokens are the same in all.

    Raises:
        InputError: unknown variant, a style that does not write the verdict out.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}: legal are {', '.join(VARIANTS)}")
    rows = []
    for number, question in enumerate(asked):
        style = list(styles)[number % len(styles)]
        options = OPTIONS[number // len(styles) % 2]
        mistaken = question.mistaken[number // (2 * len(styles)) % len(question.mistaken)]
        line = questions.ask(question, options=options)
        for order in ORDERS:
            for concludes_right in (True, False):
                this, other = question.candidates if concludes_right else question.candidates[::-1]
                told = [*(question.steps if concludes_right else mistaken)]
                if variant == "implied" and question.digits[0]:
                    told.append(question.digits[not concludes_right])
                verdict = VARIANTS[variant](this, other, order)
                reasoning = styles[style](told, verdict)
                for contradicts in (False, True):
                    answer = other if contradicts else this
                    rows.append(
                        {
                            "label": "constructed" if variant == "stated" else "constructed_implied",
                            "task": question.task,
                            "question": question.text,
                            "style": style,
                            "order": order,
                            "options": options,
                            "right": question.candidates[0],
                            "other": question.candidates[1],
                            "concludes": this,
                            "answer": answer,
                            "contradicts": contradicts,
                            **_parts(loaded, line, reasoning, verdict, answer),
                        }
                    )
    return pd.DataFrame(rows)


def answer_after_correct_chains(
    loaded: LoadedModel, table: pd.DataFrame, *, shots: Mapping[str, Sequence[Question]]
) -> pd.DataFrame:
    """Whether the model gives the right answer after each reasoning of `construct` that concludes right: `correct`."""
    parts = []
    for task, rows in table[(table["concludes"] == table["right"]) & ~table["contradicts"].astype(bool)].groupby(
        "task"
    ):
        form = "implied" if set(rows["label"]) == {"constructed_implied"} else "stated"
        prefix = questions.write_examples(shots[task], form=form)
        prompts = [prefix + text.rsplit("Answer:", 1)[0] + "Answer:" for text in rows["text"]]
        difference = score_answers(loaded, prompts, list(zip(rows["right"], rows["other"], strict=True)))
        columns = ["label", "task", "question", "style", "order"]
        parts.append(rows[columns].assign(correct=(difference > 0).numpy()))
    return pd.concat(parts, ignore_index=True)


def _parts(loaded: LoadedModel, line: str, reasoning: str, verdict: str, answer: str) -> dict[str, object]:
    """A transcript, its tokens, and where its parts end."""
    if verdict not in reasoning:
        raise InputError(f"a style that leaves out the verdict {verdict!r}: legal are those that write it as it is")
    before = questions.answer(line, reasoning)
    text = questions.answer(line, reasoning, answer)
    start = before.index(reasoning, len(line))
    verdict_at = start + reasoning.rindex(verdict)
    after = len(text)
    text += NEXT
    ends = {
        "question": len(line),
        "steps": verdict_at - 1,  # the space belongs to the verdict
        "verdict": verdict_at + len(verdict),
        "reasoning": start + len(reasoning),
        "answer": after - 1,
        "end": after,
        "next": len(text) - 1,
        "last": len(text),
    }
    token_ids, places = locate_parts(loaded, text, ends)
    return {"text": text, "token_ids": token_ids, **_before_answer(places)}


def locate_parts(loaded: LoadedModel, text: str, ends: Mapping[str, int]) -> tuple[list[int], dict[str, int]]:
    """The tokens of a text, without start token, and for each named end (in characters) the token that holds it.

    Raises:
        InputError: an end outside the text.
    """
    encoded = loaded.require_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    places = {}
    for name, end in ends.items():
        if not 1 <= end <= len(text):
            raise InputError(f"position {name} ends at character {end}: legal are 1 to {len(text)}")
        places[name] = next(i for i, (_, stop) in enumerate(encoded["offset_mapping"]) if stop >= end)
    return encoded["input_ids"], places


def list_places(loaded: LoadedModel, table: pd.DataFrame, names: Sequence[str]) -> dict[str, list[int]]:
    """Where named parts end when transcripts are run as they are, start token included."""
    n_start = 0 if loaded.start_token_id is None else 1
    return {name: (table[f"at_{name}"] + n_start).astype(int).tolist() for name in names}


def put_in_context(
    loaded: LoadedModel, rows: pd.DataFrame, *, answered: bool = False
) -> tuple[list[list[int]], dict[str, list[int]]]:
    """Transcripts up to the token before the answer, after what stood before them, and where to read them.

    Args:
        loaded: whose tokenizer is used.
        rows: of the data set, or others with the columns `before`, `text`, `token_ids`, `at_reasoning` and `at_cue`.
        answered: whether the answer follows; then it is the fourth position, "answer".

    Returns:
        Prompts, and positions: the end of the "reasoning", the token "before the cue", the "cue".

    Raises:
        InputError: a transcript with other tokens after its examples than alone.
    """
    prompts: list[list[int]] = []
    names = ("reasoning", "before the cue", "cue", *(("answer",) if answered else ()))
    found: dict[str, list[int]] = {name: [] for name in names}
    for row in rows.to_dict("records"):
        own = [int(token) for token in row["token_ids"]]
        whole = loaded.encode(row["before"] + row["text"])
        if whole[-len(own) :] != own:
            raise InputError(f"the transcript of {row['question']!r} has other tokens after its examples")
        start = len(whole) - len(own)
        cue = start + int(row["at_cue"])
        prompts.append(whole[: cue + 1 + answered])
        for name, place in zip(found, (start + int(row["at_reasoning"]), cue - 1, cue, cue + 1), strict=False):
            found[name].append(place)
    return prompts, found


def _before_answer(places: Mapping[str, int]) -> dict[str, int]:
    """Columns; `cue` is the token after which the answer comes, a bare space before digits in some vocabularies."""
    columns = {f"at_{name}": place for name, place in places.items()}
    if "answer" in places:
        columns["at_cue"] = places["answer"] - 1
    return columns


def continue_questions(
    loaded: LoadedModel, starts: Sequence[str], lines: Sequence[str], *, folder: Path | None
) -> list[tuple[str, str | None]]:
    """For each question, after its examples, a reasoning and the parsed answer, by the most likely tokens."""
    new = hooks.generate(
        loaded,
        [f"{start}{line}\nReasoning:" for start, line in zip(starts, lines, strict=True)],
        max_new_tokens=MAX_NEW_TOKENS,
        stop=STOPS,
        folder=folder,
    )
    texts = [loaded.decode(tokens) for tokens in new]
    return [(text.split("\nAnswer:")[0].strip(), questions.parse_answer(text)) for text in texts]


def write_parts(loaded: LoadedModel, line: str, reasoning: str, answer: str | None) -> dict[str, object]:
    """What a model wrote, up to its answer where it could be parsed."""
    text = questions.answer(line, reasoning, answer or "")
    cue = questions.answer(line, reasoning)
    ends = {"question": len(line), "reasoning": len(cue) - len("\nAnswer:")}
    if answer is not None:
        ends |= {"answer": len(text) - 1}
    token_ids, places = locate_parts(loaded, text, ends)
    none = {} if answer else {"at_answer": None, "at_cue": None}
    return {"text": text, "token_ids": token_ids, **_before_answer(places), **none}


def write_examples_by_task(shots: Mapping[str, Sequence[Question]], form: Form) -> dict[str, str]:
    """For each task what stands before its questions: the worked examples of `questions.write_examples`."""
    return {task: questions.write_examples(some, form=form) for task, some in shots.items()}
