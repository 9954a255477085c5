"""Five prompts of different lengths, and what is made of them to compare it with what is computed by hand."""

from contextlib import contextmanager

import pytest
import torch

from helpers import hooks
from helpers.engine import backends

LENGTHS = (5, 12, 1, 9, 12)  # longer than Gemma's sliding window
PROMPTS = [
    torch.randint(1, 300, (length,), generator=torch.Generator().manual_seed(i)).tolist()
    for i, length in enumerate(LENGTHS)
]
PROMPTS[1][0] = PROMPTS[1][3] = PROMPTS[3][8] = 0  # what stands in the padding may also stand in a prompt
N_NEW = 4


def pad_left(rows):
    """A batch as somebody else may make it."""
    width = max(map(len, rows))
    pads = torch.tensor([width - len(row) for row in rows])
    column = torch.arange(width)
    return backends.Batch(
        input_ids=torch.tensor([[0] * (width - len(row)) + list(row) for row in rows]),
        attention_mask=(column >= pads[:, None]).long(),
        position_ids=(column - pads[:, None]).clamp(min=0),
    )


@contextmanager
def batches_of(n_tokens):
    """While it lasts, batches hold so many tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "TOKENS_PER_BATCH", n_tokens)
        yield


def capture_in_batches(loaded, prompts, sites, **options):
    """As `hooks.capture`; of PROMPTS three batches, in another order."""
    with batches_of(24):
        return hooks.capture(loaded, prompts, sites, **options)


def sites_of(loaded):
    return [site for site in hooks.SITES if not backends.explain_missing(loaded, site)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def part(captured, site, example):
    """One prompt's tokens at all positions, laid out as in `expected`."""
    n, tensor = int(captured.lengths[example]), captured[site][example]
    if site == "logits":
        return tensor[:n]
    return tensor.transpose(1, 2)[:, :n, :, :n] if site == "pattern" else tensor[:, :n]


def assert_close(found, wanted, limit=1e-4):
    assert found.shape == wanted.shape
    assert float((found - wanted).norm()) <= limit * float(wanted.norm())


def assert_all_as_by_hand(captured, expected, loaded, *edits, but=()):
    for example, tokens in enumerate(PROMPTS):
        for site, wanted in expected(loaded, tokens, *edits, example=example).items():
            if site in captured.values and site not in but:
                assert_close(part(captured, site, example), wanted)


def plainly(loaded, expected, prompt, *edits, n_new=N_NEW, example=0):
    """Greedy generation that runs the whole text again for every token."""
    tokens = list(prompt)
    ends = backends.get_huggingface_model(loaded).generation_config.eos_token_id
    for _ in range(n_new):
        token = int(expected(loaded, tokens, *edits, example=example)["logits"][-1].argmax())
        if token == ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
