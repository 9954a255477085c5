"""One thing measured once more, on the same weights, by another library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from helpers import InputError, models
from helpers.hooks import Head
from helpers.models import LoadedModel

Check = tuple[Callable[[Any], float], float, float]
"""What measures it on TransformerLens' model, our own number, and how far the two may be apart in float32."""


def compare(loaded: LoadedModel, checks: Sequence[Check]) -> list[float | str]:
    """How far each number is from TransformerLens', or "not measured, as …" for a model that it can't run.

    Args:
        loaded: on plain Hugging Face.
        checks: of one model, so that it is built once.
    """
    try:
        bridge = models.view(loaded, "transformer_lens").model
        apart = [abs(measure(bridge) - ours) for measure, ours, _ in checks]
    except InputError as error:  # another family, or no tokenizer
        return [f"not measured, as {error}"] * len(checks)
    if loaded.dtype == "float32":
        assert all(gap < within for gap, (*_, within) in zip(apart, checks, strict=True)), apart
    return list(apart)


def patch_again(
    base: Sequence[int], source: Sequence[int], head: Head, answers: Sequence[int], *, position: int | None
) -> Callable[[Any], float]:
    """What measures on TransformerLens' model, by its own hooks, the logit difference of one prompt when a head's
    output is put in from another.

    Args:
        base: the prompt that runs, as token ids.
        source: the prompt that the output is taken from, of the same length.
        head: whose.
        answers: the right and the wrong next token.
        position: where it is put in; None for all.
    """
    layer, number = head
    site, options = f"blocks.{layer}.attn.hook_z", {"prepend_bos": False}
    at = slice(None) if position is None else position

    def measure(bridge: Any) -> float:
        rows = torch.tensor([list(base), list(source)], device=bridge.cfg.device)
        _, cache = bridge.run_with_cache(rows[1:], names_filter=site, **options)

        def put_in(z: torch.Tensor, hook: object) -> torch.Tensor:
            z[:, at, number] = cache[site][:, at, number]
            return z

        logits = bridge.run_with_hooks(rows[:1], fwd_hooks=[(site, put_in)], **options)[0, -1]
        return float(logits[answers[0]] - logits[answers[1]])

    return measure
