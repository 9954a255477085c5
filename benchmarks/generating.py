"""32 questions after three examples: continuations beside transformers' `generate`, activations of whole prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from transformers import DynamicCache

from benchmarks.pairs import Row, paired
from helpers import hooks, models
from helpers.engine import generation
from helpers.models import LoadedModel

N_ROWS, N_NEW = 32, 48
SHOT = (
    "Question: Anna has {a} apples and buys {b} more. How many apples does Anna have?\n"
    "Reasoning: Anna starts with {a} apples. She buys {b} more, and {a} + {b} = {c}. So it is {c}.\n"
    "Answer: {c}.\n\n"
)
QUESTION = "Question: Ben has {a} {pears} and buys {b} more. How many {pears} does Ben have?\nReasoning:"


def rows(quick: bool, name: str = models.DEFAULT_MODEL) -> Iterator[Row]:
    shots = "".join(SHOT.format(a=a, b=b, c=a + b) for a, b in ((3, 2), (4, 1), (2, 6)))
    questions = [
        shots + QUESTION.format(a=number % 8, b=number % 5, pears=("pears", "small green pears")[number % 2])
        for number in range(N_ROWS)
    ]
    loaded = {dtype: models.load(name, dtype=dtype) for dtype in ("float32", "bfloat16")}
    tokens = hooks.tokenize(loaded["float32"], questions)
    for dtype, one in loaded.items():
        one.model.generation_config.eos_token_id = None  # no end before the last token: both do the same work
        one.model.set_attn_implementation("sdpa")  # the faster choice for the peer
        yield paired(
            f"{N_ROWS} continuations of {N_NEW} tokens after three examples, {dtype}",
            lambda one=one: hooks.generate(one, questions, max_new_tokens=N_NEW, batch_size=N_ROWS),
            lambda one=one: _by_transformers(one, tokens),
            named="model.generate with a copied prefix cache",
            at_least=1.5,
            n_pairs=1 if quick else 5,
            note=f"{N_ROWS * N_NEW} new tokens, all prompts together {sum(map(len, tokens))}",
        )
    if name != models.DEFAULT_MODEL:
        return
    yield paired(
        f"capture of resid_post, all layers, last position, {N_ROWS} questions after three examples, float32",
        lambda: hooks.capture(loaded["float32"], tokens, "resid_post", as_trees=True),
        lambda: hooks.capture(loaded["float32"], tokens, "resid_post"),
        named="each prompt whole",
        at_least=2,
        n_pairs=1 if quick else 5,
        note=f"{sum(len(tree.tokens) for tree in generation._trees(tokens))} tokens instead of {sum(map(len, tokens))}",
    )


def _by_transformers(loaded: LoadedModel, tokens: list[list[int]]) -> None:
    """What the prompts begin with runs once and is copied for each row; padding stands between it and the rest."""
    model, width = loaded.model, max(map(len, tokens))
    begun = min(generation._n_common(tokens[0][:-1], row[:-1]) for row in tokens)
    ids = torch.tensor([row[:begun] + [0] * (width - len(row)) + row[begun:] for row in tokens])
    seen = torch.tensor([[1] * begun + [0] * (width - len(row)) + [1] * (len(row) - begun) for row in tokens])
    options = {"max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0, "attention_mask": seen}
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        model(ids[:1, :begun], past_key_values=cache)
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(tokens))
        model.generate(ids, past_key_values=cache, **options)
