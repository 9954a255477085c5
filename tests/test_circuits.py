"""What the parts of a model write adds up to what it says."""

import dataclasses

import pytest
import torch

from helpers import circuits, hooks, models


def difference(loaded, prompts, answers):
    logits = hooks.capture(loaded, prompts, "logits")["logits"][:, 0].gather(1, torch.tensor(answers))
    return logits[:, 0] - logits[:, 1]


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(250, (length,), generator=generator).tolist() for length in (5, 9, 7)]
    return prompts, [(1, 2), (30, 4), (5, 60)]


def test_the_parts_sum_to_the_logit_difference(tiny, data):
    parts = circuits.logit_attribution(tiny, *data)
    assert parts.heads.shape == (2, 4, 3)
    assert parts.mlps.shape == (2, 3)
    torch.testing.assert_close(parts.total, difference(tiny, *data), atol=1e-4, rtol=1e-4)
    assert parts.heads.abs().max() > 0.1


def test_a_part_is_what_is_missing_when_the_norm_stays_and_the_part_goes(tiny, data):
    """The second way: take a head's output out of the last residual stream, and leave the norm's scale."""
    prompts, answers = data
    parts = circuits.logit_attribution(tiny, prompts, answers)
    layer = circuits.layers(tiny.model)[1]
    captured = hooks.capture(tiny, prompts, ["head_z", "resid_post"])
    z, resid = captured["head_z"][:, 1, 0], captured["resid_post"][:, 1, 0]
    norm = getattr(tiny.model.base_model, circuits.family_of(tiny.config).final_norm)
    unembed = tiny.model.get_output_embeddings().weight
    direction = torch.stack([unembed[a] - unembed[b] for a, b in answers])
    for head in range(4):
        without = z.clone()
        without[:, head] = 0
        if layer.family.after_attention:
            continue  # its norm would change as well
        written = layer.attn_out(z) - layer.attn_out(without)
        centred, whole = written, resid
        if isinstance(norm, torch.nn.LayerNorm):
            centred, whole = (part - part.mean(-1, keepdim=True) for part in (written, resid))
        scaled = centred / (whole.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(parts.heads[1, head], (scaled * direction).sum(-1), atol=1e-3, rtol=1e-3)


def test_the_parts_of_the_real_model_sum_and_single_out_few_heads(embedded):
    names = [(" Mary", " John"), (" Tom", " Anna")]
    prompts = [f"When{a} and{b} went to the store,{b} gave a drink to" for a, b in names]
    parts = circuits.logit_attribution(embedded, prompts, names)
    tokens = circuits.answer_tokens(embedded, names).tolist()
    torch.testing.assert_close(parts.total, difference(embedded, prompts, tokens), atol=1e-3, rtol=1e-4)
    largest = parts.heads.mean(-1).flatten().sort(descending=True).values
    assert largest[:5].sum() > 3 * largest[5:50].mean() * 5


def test_bad_input_is_refused(load_tiny, data, refused):
    prompts, answers = data
    loaded = load_tiny("llama")
    with refused("2 answers for 3 prompts"):
        circuits.logit_attribution(loaded, prompts, answers[:2])
    with refused("'nnsight'", "'huggingface'"):
        circuits.logit_attribution(load_tiny("llama", "nnsight"), prompts, answers)
    capped = models.load(loaded.card.name)
    capped.model.config.final_logit_softcapping = 30.0
    with refused("llama bounds its logits"):
        circuits.logit_attribution(dataclasses.replace(capped), prompts, answers)
    with refused("BatchNorm1d", "RMSNorm"):
        circuits.before_norm(torch.nn.BatchNorm1d(4), torch.ones(1, 4), torch.ones(1, 4))
