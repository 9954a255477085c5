"""What is to be had without a probe or a circuit: from the text alone, from the model's output, by random heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError, hooks
from helpers.engine import backends
from helpers.engine.inputs import as_count, as_list, as_tensor, as_whole, as_wholes, is_row, make_generator
from helpers.engine.sites import Positions, Prompts, check_site, locate_positions
from helpers.folds import Folds, Groups, Labels, check_labels, resolve_folds
from helpers.hooks import Head
from helpers.models import LoadedModel
from helpers.probes import PENALTIES, cross_validate, standardise_site


def read_output(
    loaded: LoadedModel,
    prompts: Prompts,
    positive: Sequence[int],
    negative: Sequence[int],
    *,
    positions: Positions = "last",
) -> Float[Tensor, "row position"]:
    """The model's own answer where a probe reads: log p(any of the positive tokens) - log p(any of the negative).

    Args:
        loaded: on any backend.
        prompts: texts, or token ids of any lengths.
        positive: token ids.
        negative: others.
        positions: where to read, as for `hooks.capture`.

    Raises:
        InputError: no token, one on both sides, or one that the model does not have.
    """
    logits = hooks.capture(loaded, prompts, "logits", positions=positions)["logits"]
    positive, negative = as_wholes(positive), as_wholes(negative)
    for tokens in (positive, negative):
        if not tokens or not all(0 <= token < logits.shape[2] for token in tokens):
            raise InputError(f"answer tokens {list(tokens)}: legal are 0 to {logits.shape[2] - 1}, at least one")
    if both := set(positive) & set(negative):
        raise InputError(f"answer token {min(both)} is on both sides")
    return logits[..., list(positive)].logsumexp(-1) - logits[..., list(negative)].logsumexp(-1)


def score_baselines(
    loaded: LoadedModel,
    texts: Sequence[str],
    labels: Labels,
    groups: Groups,
    *,
    answers: tuple[Sequence[int], Sequence[int]],
    rules: Mapping[str, Sequence[float]],
    positions: Positions = "last",
    folds: int | Folds = 5,
    seed: int,
) -> dict[str, Float[Tensor, " row"]]:
    """Scores that are to be had without the model's inside, on the folds of a sweep with the same groups and seed.

    The majority class of the training folds; TF-IDF of word and of character n-grams with logistic regression; the
    mean of the model's own input embeddings with ridge; each of `rules`, a score for each row; and the model's own
    output (`read_output`) at each position. The last two are less the median of the training folds, so that
    zero is a threshold. `scores.tabulate` makes a table of them.

    Args:
        loaded: on any backend.
        texts: one for each row.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        answers: positive and negative tokens, as for `read_output`.
        rules: by name, each with a score for each row.
        positions: where to read, as for `hooks.capture`.
        folds: how many, at least three, or the number of each row's.
        seed: of the folds.

    Raises:
        InputError: as `scores.evaluate` and `read_output`.
    """
    checked, _ = check_labels(labels, groups)
    folds = resolve_folds(checked, groups, folds, seed)
    scores = {"majority class": _majority(checked, folds)}
    scores |= score_text(loaded, texts, checked, groups, folds=folds, seed=seed)
    if not isinstance(rules, Mapping):
        raise InputError(f"rules {str(rules)[:60]}: legal are scores by name")
    unfitted = {f"rule: {name}": as_tensor(values, f"rule {name!r}").float() for name, values in rules.items()}
    output = read_output(loaded, texts, *answers, positions=positions)
    names = locate_positions(positions, torch.tensor([len(loaded.encode(text)) for text in texts]))[0]
    unfitted |= {f"the model's output at {name}": column for name, column in zip(names, output.T, strict=True)}
    for name, values in unfitted.items():
        if values.shape != (len(checked),) or not values.isfinite().all():
            raise InputError(f"{name}: scores of shape {list(values.shape)}: legal are {len(checked)} finite numbers")
        middle = torch.stack([values[folds != fold].median() for fold in range(int(folds.max()) + 1)])
        scores[name] = values - middle[folds]
    return scores


def _majority(labels: np.ndarray, folds: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    signs = torch.from_numpy(labels).float() * 2 - 1
    means = torch.stack([signs[folds != fold].mean() for fold in range(int(folds.max()) + 1)])
    return means[folds]


def score_text(
    loaded: LoadedModel, texts: Sequence[str], labels: Labels, groups: Groups, *, folds: int | Folds = 5, seed: int
) -> dict[str, Float[Tensor, " row"]]:
    """Those of `score_baselines` that are fitted to the text: n-grams, and the mean of the input embeddings.

    Args:
        loaded: on any backend.
        texts: one for each row.
        labels: True or False for each row.
        groups: rows with equal ones are never on both sides of a split.
        folds: how many, at least three, or the number of each row's.
        seed: of the folds.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline

    checked, _ = check_labels(labels, groups)
    texts = as_list(texts)
    if not is_row(texts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"texts {str(texts)[:60]!r}: legal is a text for each label")
    if len(texts) != len(checked):
        raise InputError(f"{len(texts)} texts for {len(checked)} labels: legal is one for each")
    folds = resolve_folds(checked, groups, folds, seed)
    kinds = {
        "word n-grams": {"ngram_range": (1, 2), "token_pattern": r"\S+"},
        "character n-grams": {"analyzer": "char_wb", "ngram_range": (2, 4)},
    }
    scores = {
        name: torch.from_numpy(
            cross_val_predict(
                make_pipeline(TfidfVectorizer(**options), LogisticRegression(max_iter=1000)),
                list(texts),
                checked,
                cv=PredefinedSplit(folds.numpy()),
                method="decision_function",
            )
        ).float()
        for name, options in kinds.items()
    }
    z = standardise_site(_mean_embedding(loaded, texts), len(checked))
    tasks = torch.from_numpy(checked)[:, None]
    scores["mean of the input embeddings"] = cross_validate(z, tasks, folds, "ridge", PENALTIES["ridge"]).scores[0]
    return scores


def _mean_embedding(loaded: LoadedModel, texts: Sequence[str]) -> Float[Tensor, "row d_model"]:
    table = backends.get_huggingface_model(loaded).get_input_embeddings().weight
    return torch.stack([table[torch.tensor(loaded.encode(text))].float().mean(0).cpu() for text in texts])


def draw_layer_matched_sets(
    loaded: LoadedModel, heads: Sequence[Head], *, n_sets: int, seed: int, disjoint: bool = True
) -> list[list[Head]]:
    """Random sets to compare with: as many heads in every layer as `heads` has there, none of them in `heads`.

    Args:
        loaded: on any backend.
        heads: as (layer, head).
        n_sets: to draw.
        seed: of the draws.
        disjoint: if not, they are drawn from all heads of the layer, so that they may share some with `heads`.

    Returns no set at all where a layer has too few other heads, or where `heads` are all that could be drawn.
    """
    pairs = as_list(heads)
    if not is_row(pairs) or not all(is_row(as_list(pair)) and len(pair) == 2 for pair in pairs):
        raise InputError(f"heads {str(pairs)[:60]}: legal are pairs of layer and head")
    heads = [(as_whole(layer), as_whole(head)) for layer, head in map(as_list, pairs)]
    for layer, head in heads:
        check_site(loaded, "head_z", layer, (head,))
    if len(set(heads)) < len(heads):
        raise InputError("a head is given twice: legal are different ones")
    generator, n_sets = make_generator(seed), as_count(n_sets, "n_sets", 0)
    taken = {layer: [head for other, head in heads if other == layer] for layer, _ in heads}
    free = {layer: np.setdiff1d(np.arange(loaded.n_heads), taken[layer]) for layer in taken}
    if taken and all(len(taken[layer]) == loaded.n_heads for layer in taken):
        return []
    if not disjoint:
        free = {layer: np.arange(loaded.n_heads) for layer in taken}
    if any(len(free[layer]) < len(taken[layer]) for layer in taken):
        return []
    return [
        [
            (layer, int(head))
            for layer in sorted(taken)
            for head in generator.choice(free[layer], len(taken[layer]), replace=False)
        ]
        for _ in range(n_sets)
    ]
