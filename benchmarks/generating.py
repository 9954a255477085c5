"""32 questions after three examples: continuations beside transformers' `generate`, activations beside `hooks`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

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


def rows(quick: bool) -> Iterator[Row]:
    shots = "".join(SHOT.format(a=a, b=b, c=a + b) for a, b in ((3, 2), (4, 1), (2, 6)))
    questions = [
        shots + QUESTION.format(a=number % 8, b=number % 5, pears=("pears", "small green pears")[number % 2])
        for number in range(N_ROWS)
    ]
    loaded = {dtype: models.load(dtype=dtype) for dtype in ("float32", "bfloat16")}
    for one in loaded.values():  # no end before the last token, so that both do the same work
        one.model.generation_config.eos_token_id = None
        one.model.set_attn_implementation("sdpa")  # the faster choice for the peer
    for dtype, peer_dtype, at_least in (("bfloat16", "bfloat16", 1.5), ("bfloat16", "float32", 3)):
        yield paired(
            f"{N_ROWS} continuations of {N_NEW} tokens after three examples, {dtype}",
            lambda dtype=dtype: hooks.generate(loaded[dtype], questions, max_new_tokens=N_NEW, batch_size=N_ROWS),
            lambda dtype=peer_dtype: _by_transformers(loaded[dtype], questions),
            named=f"model.generate, {peer_dtype}",
            at_least=at_least,
            n_pairs=1 if quick else 5,
            note=f"{N_ROWS * N_NEW} new tokens, all prompts together {_n_tokens(loaded[dtype], questions)}",
        )

    rows = [row[:-1] for row in hooks.tokenize(loaded["float32"], questions)]
    in_trees = sum(len(tree.tokens) for tree in generation._trees(rows))
    yield paired(
        f"capture of resid_post, all layers, last position, {N_ROWS} questions after three examples, float32",
        lambda: hooks.capture(loaded["float32"], rows, "resid_post", as_trees=True),
        lambda: hooks.capture(loaded["float32"], rows, "resid_post"),
        named="hooks.capture, each prompt whole",
        at_least=2,
        n_pairs=1 if quick else 5,
        note=f"{in_trees} tokens instead of {sum(map(len, rows))}",
    )


def _n_tokens(loaded: LoadedModel, texts: list[str]) -> int:
    return sum(map(len, hooks.tokenize(loaded, texts)))


def _by_transformers(loaded: LoadedModel, texts: list[str]) -> None:
    loaded.tokenizer.padding_side = "left"
    loaded.tokenizer.pad_token = loaded.tokenizer.pad_token or loaded.tokenizer.eos_token
    batch = loaded.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        loaded.model.generate(**batch, max_new_tokens=N_NEW, do_sample=False)
