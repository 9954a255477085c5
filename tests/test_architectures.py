"""Tensors that hold a site among others, and what a block is called with."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.engine.architectures import Point, list_layers, record_block_calls
from helpers.engine.propagation import read_block

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    view=st.sampled_from(["grouped", "chunked"]),
    part=st.integers(0, 2),
    n_kv=st.integers(1, 3),
    group=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_a_part_of_a_fused_tensor_is_read_and_written_where_it_lies(view, part, n_kv, group, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(2, 5, n, 4, generator=generator) for n in (n_kv * group, n_kv, n_kv)]
    points = [Point("", view=view, sizes=(number, n_kv, group, 4)) for number in range(3)]
    fused = torch.empty(2, 5, n_kv * (group + 2) * 4)
    if view == "chunked":
        fused = torch.cat([one.flatten(-2) for one in parts], dim=-1)
    else:
        q, k, v = parts
        rows = [torch.cat([q[:, :, i * group : (i + 1) * group], k[:, :, [i]], v[:, :, [i]]], 2) for i in range(n_kv)]
        fused = torch.cat(rows, dim=2).flatten(-2)
    for point, one in zip(points, parts, strict=True):
        assert torch.equal(point.read(fused, 2), one)
    new = torch.randn(parts[part].shape, generator=generator)
    changed = points[part].merge(fused, new)
    for number, (point, one) in enumerate(zip(points, parts, strict=True)):
        assert torch.equal(point.read(changed, 2), new if number == part else one)


@pytest.mark.parametrize(
    ("point", "shape"),
    [
        (Point("", view="flat", sizes=(4,)), (2, 5, 12)),
        (Point("", view="heads"), (2, 5, 3, 4)),
        (Point("", view="heads_first"), (2, 3, 5, 4)),
    ],
)
def test_a_site_is_the_same_however_a_tensor_is_laid_out(point, shape):
    site = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    raw = {"flat": site.flatten(-2), "heads": site, "heads_first": site.transpose(1, 2)}[point.view]
    assert raw.shape == shape
    assert torch.equal(point.read(raw, 2), site)
    assert torch.equal(point.merge(raw, site), raw)


def test_a_part_of_the_residual_stream_counts_as_it_is_added():
    raw = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    point = Point("", scale=0.5, by_row=True)
    assert torch.equal(point.read(raw, 2), raw.view(2, 5, 7) / 2)
    torch.testing.assert_close(point.merge(raw, point.read(raw, 2)), raw)


def test_a_blocks_arguments_are_taken_at_the_positions_asked_for(tiny):
    """Queries at shuffled positions, in one block call, are those of whole prompts."""
    tokens = torch.randint(300, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    calls = record_block_calls(tiny.model, tiny.layout, tokens)
    shorter = record_block_calls(tiny.model, tiny.layout, tokens[:4])
    resid = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    for number, layer in enumerate(list_layers(tiny.model, tiny.layout)):
        late = read_block(tiny, number, layer, calls[number], resid, ["q", "v"], first=5)
        early = read_block(tiny, number, layer, shorter[number], resid, ["q", "v"])
        assert late["q"].shape == (4, 4, tiny.layout.d_head)
        for site in ("q", "v"):  # before the rotary embedding, so that nothing depends on the position
            torch.testing.assert_close(late[site], early[site])
