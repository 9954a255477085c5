"""Attention by our own formula, beside that of transformers."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen2 import modeling_qwen2

from helpers.engine.attention import AttentionCall


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_formula_rounds_as_transformers_does_also_where_scores_are_coarse(dtype):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 9, 16, generator=generator).mul(size).to(dtype)
        for heads, size in ((6, 30), (2, 30), (2, 1))
    )
    mask = torch.full((9, 9), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    module = SimpleNamespace(num_key_value_groups=3, training=False)
    mixed, pattern = AttentionCall(module, query, key, value, mask, {"scaling": 0.25}).attend(mask)
    theirs = modeling_qwen2.eager_attention_forward(module, query, key, value, mask, scaling=0.25)
    for ours, expected in zip((mixed, pattern), theirs, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)
