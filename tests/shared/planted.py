"""Labels of words in sentences, and activations in which they are planted."""

import numpy as np
import torch

from helpers import hooks

N_WORDS, PER_WORD = 40, 4


def words(n_words=N_WORDS, per_word=PER_WORD):
    """Rows as in a data set of words in sentences: the label is that of the word."""
    groups = np.repeat(np.arange(n_words), per_word)
    return (groups % 2).astype(bool), groups.tolist()


def activations(labels, *, planted=(), n_layers=3, n_heads=0, n_features=8, strength=2.0, seed=0):
    """Noise of every word and row, with the label planted at some (layer, head or None)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_heads, n_features) if n_heads else (n_features,)
    values = torch.randn(len(labels), n_layers, 1, *shape, generator=generator)
    direction = torch.randn(n_features, generator=generator)
    push = torch.as_tensor(labels)[:, None] * strength * direction / direction.norm()
    for layer, head in planted:
        values[(slice(None), layer, 0, *(() if head is None else (head,)))] += push
    site = "head_z" if n_heads else "resid_post"
    return hooks.Captured(
        {site: values},
        {site: ("example", "layer", *hooks.SITES[site])},
        tuple(range(n_layers)),
        ("last",),
        torch.full((len(labels),), 5),
    )
