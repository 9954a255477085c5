"""Generation after shared beginnings: transformers' own tokens, whatever is beside a row, also when interrupted."""

from itertools import combinations, pairwise
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import hooks
from helpers.engine import backends, generation

PREFIX = [5, 9, 120, 33, 7, 81, 14] * 4
OTHER = [5, 9, 121, 3] * 5
SUFFIXES = [[40, 41], [7], [9, 9, 200, 17, 3], [250, 6, 6], [40, 41, 42, 43]]
SHARED = [PREFIX + suffix for suffix in SUFFIXES]
FAMILIES = [row for suffix in SUFFIXES for row in (PREFIX + suffix, OTHER + suffix[::-1], suffix)]
pytestmark = pytest.mark.usefixtures("one_thread")


def by_transformers(loaded, rows, n_new):
    """Row by row, so that nothing is padded; cut at the end token."""
    found = []
    for row in rows:
        ids = torch.tensor([row])
        options = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0}
        new = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(row) :].tolist()
        ends = generation._end_tokens(loaded)
        found.append(new[: next((i for i, token in enumerate(new) if token in ends), len(new))])
    return found


def within_window(loaded, rows, n_new):
    """As many new tokens as the model's sliding window leaves."""
    window = getattr(loaded.config, "sliding_window", None)
    return n_new if window is None else min(n_new, window - max(map(len, rows)))


@pytest.fixture
def wide(tiny):
    """A model of each family; the one with a sliding window gets a wide one, as in real models."""
    if getattr(tiny.config, "sliding_window", None) is None:
        yield tiny
        return
    layers = [module for module in tiny.model.modules() if getattr(module, "sliding_window", None) is not None]
    before = tiny.config.sliding_window
    for thing in (tiny.config, *layers):
        thing.sliding_window = 60
    yield tiny
    for thing in (tiny.config, *layers):
        thing.sliding_window = before


def test_the_rows_below_have_families():
    assert [(length, len(rows)) for length, rows in generation._families(FAMILIES)] == [(20, 5), (28, 5)]
    assert generation._families(SUFFIXES) == generation._families([PREFIX, [*PREFIX, 3]]) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(lambda row: [9] * 40 + row), max_size=7))
def test_no_other_split_saves_more(rows):
    def saved(members):
        shortest = min(map(len, members)) - 1
        length = next((i for i in range(shortest) if len({row[i] for row in members}) > 1), shortest)
        return (len(members) - 1) * length - generation.PASS

    order = sorted(rows)
    cuts = [[0, *middle, len(rows)] for n in range(len(rows)) for middle in combinations(range(1, len(rows)), n)]
    splits = [[order[a:b] for a, b in pairwise(cut)] for cut in cuts]
    best = max((sum(saved(part) for part in split if len(part) > 1) for split in splits), default=0)
    found = generation._families(rows)
    assert sum((len(members) - 1) * length - generation.PASS for length, members in found) == best
    for length, members in found:
        assert len({tuple(rows[row][:length]) for row in members}) == 1
        assert all(len(rows[row]) > length for row in members)


@pytest.mark.parametrize("rows", [SHARED, SUFFIXES, FAMILIES, [PREFIX], [PREFIX] * 4])
def test_the_same_tokens_as_transformers(wide, rows):
    n_new = within_window(wide, rows, 12)
    assert hooks.generate(wide, rows, max_new_tokens=n_new) == by_transformers(wide, rows, n_new)


@pytest.mark.parametrize("tree_size", [40, 1024])
@pytest.mark.parametrize("rows", [SHARED, SUFFIXES, FAMILIES, [PREFIX, PREFIX, PREFIX[:9]]])
def test_the_same_logits_as_capture(wide, rows, tree_size, monkeypatch):
    monkeypatch.setattr(generation, "TREE_SIZE", tree_size)
    tokens = torch.arange(300).expand(len(rows), -1)
    found = hooks.score_next_tokens(wide, rows, tokens)
    torch.testing.assert_close(found, hooks.capture(wide, rows, "logits")["logits"][:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tree_size", [40, 1024])
def test_trees_have_the_activations_of_whole_prompts(wide, tree_size, monkeypatch):
    monkeypatch.setattr(generation, "TREE_SIZE", tree_size)
    for rows in (SHARED, SUFFIXES, FAMILIES):
        positions = {"first": 0, "other": [len(row) // 2 for row in rows], "last": -1}
        outside = [site for site in hooks.SITES if site not in ("rot_q", "rot_k", "pattern")]
        sites = [site for site in outside if not backends.explain_missing(wide, site)]
        found = hooks.capture(wide, rows, sites, positions=positions, as_trees=True)
        expected = hooks.capture(wide, rows, sites, positions=positions)
        for site in sites:
            torch.testing.assert_close(found[site], expected[site], atol=1e-4, rtol=1e-4)
        assert (found.layers, found.positions, found.axes) == (expected.layers, expected.positions, expected.axes)
        assert torch.equal(found.lengths, expected.lengths)
    early = hooks.capture(wide, SHARED, "resid_post", layers=[0], as_trees=True)
    torch.testing.assert_close(early["resid_post"], hooks.capture(wide, SHARED, "resid_post", layers=[0])["resid_post"])


@pytest.mark.parametrize("layer", [0, 1])
def test_a_nudge_is_what_an_edit_makes_of_a_whole_pass(wide, layer):
    tokens = torch.tensor([[40, 41], [7, 9], [3, 4], [250, 6], [40, 43]])
    vectors = torch.randn(3, len(SHARED), wide.config.hidden_size, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0
    found = hooks.nudge(wide, SHARED, tokens, vectors, layer=layer)
    whole = [hooks.capture(wide, SHARED, "logits")["logits"][:, 0]]
    for vector in vectors[1:]:
        with hooks.intervene(wide, hooks.Edit("resid_post", layer, vector, "add", position=-1)):
            whole.append(hooks.capture(wide, SHARED, "logits")["logits"][:, 0])
    for logits, expected in zip(found.logits, whole, strict=True):
        torch.testing.assert_close(logits, expected.gather(1, tokens), atol=1e-4, rtol=1e-4)
    logs = torch.stack(whole).log_softmax(-1)
    expected = torch.nn.functional.kl_div(logs, logs[:1].expand_as(logs), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.divergence, expected, atol=1e-4, rtol=1e-3)
    assert found.divergence[1:].min() > 1e-4 > found.divergence[0].abs().max()


def test_a_nudge_of_several_tokens_and_layers_is_what_edits_make_of_whole_passes(wide):
    tokens, then, counts = torch.tensor([[40, 41]] * len(SHARED)), [[5, 6, 7]] * len(SHARED), [1, 2, 1, 3, 2]
    vectors = torch.randn(2, len(SHARED), wide.config.hidden_size, generator=torch.Generator().manual_seed(0))
    layers = [0, wide.n_layers - 1]
    found = hooks.nudge(wide, SHARED, tokens, vectors, layer=layers, n_last=counts, then=then)
    for number, (layer, vector) in enumerate(zip(layers, vectors, strict=True)):
        for row, (prompt, count) in enumerate(zip(SHARED, counts, strict=True)):
            places = range(len(prompt) - count, len(prompt))
            edits = [hooks.Edit("resid_post", layer, vector[row], "add", position=place) for place in places]
            with hooks.intervene(wide, *edits):
                losses = hooks.measure_losses(wide, [[*prompt, *then[row]]])[0, -3:]
                logs = hooks.capture(wide, [prompt], "logits")["logits"][0, 0].log_softmax(-1)
            torch.testing.assert_close(found.loss[number, row], losses.mean(), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.mass[number, row], logs[tokens[row]].exp().sum(), atol=1e-5, rtol=1e-4)
    alone = hooks.nudge(wide, SHARED, tokens, vectors, layer=layers, n_last=counts)
    torch.testing.assert_close(alone.logits, found.logits, atol=1e-4, rtol=1e-4)
    assert alone.loss.isnan().all()
    apart = torch.stack([(vectors * part) for part in (5, -3, 1)], dim=2)  # one for each of three last tokens
    apart[:, :, :2] = 0
    one = hooks.nudge(wide, SHARED, tokens, apart, layer=layers, n_last=3)
    torch.testing.assert_close(one.logits, hooks.nudge(wide, SHARED, tokens, vectors, layer=layers).logits)


def test_what_prompts_share_runs_once(load_tiny, monkeypatch):
    loaded, seen = load_tiny("llama"), []
    handle = loaded.model.base_model.register_forward_pre_hook(
        lambda _, args, options: seen.append((*args, options.get("input_ids"))[0].numel()), with_kwargs=True
    )
    try:
        hooks.score_next_tokens(loaded, SHARED, torch.zeros(len(SHARED), 1, dtype=torch.long))
        in_tree = {tuple(row[:stop]) for row in SHARED for stop in range(1, len(row) + 1)}
        hooks.capture(loaded, SHARED, "resid_post", as_trees=True)
        assert seen == [len(in_tree)] * 2
        seen.clear()
        hooks.generate(loaded, SHARED, max_new_tokens=1)
        assert seen == [len(PREFIX), len(SUFFIXES) * max(map(len, SUFFIXES))]
    finally:
        handle.remove()


def test_the_model_is_left_as_it_was(load_tiny, monkeypatch):
    loaded = load_tiny("llama")
    before = loaded.model.config._attn_implementation
    monkeypatch.setattr(backends, "forward", Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        hooks.score_next_tokens(loaded, SHARED, torch.zeros((len(SHARED), 1), dtype=torch.long))
    assert loaded.model.config._attn_implementation == before


def test_a_row_does_not_depend_on_those_beside_it(load_tiny):
    together = hooks.generate(load_tiny("llama"), FAMILIES, max_new_tokens=10)
    for batch_size in (1, 2, 7):
        assert hooks.generate(load_tiny("llama"), FAMILIES, max_new_tokens=10, batch_size=batch_size) == together


def without_sharing(loaded):
    """A context in which nothing is shared: an edit that changes nothing is in place."""
    return hooks.intervene(loaded, hooks.Edit("resid_pre", 0, 0.0, "add"))


@pytest.mark.parametrize("rows", [SHARED, SUFFIXES, FAMILIES, [PREFIX] * 4])
def test_the_same_tokens_where_nothing_is_shared(wide, rows, monkeypatch):
    n_new, ran = within_window(wide, rows, 12), []
    run = generation.continue_rows
    monkeypatch.setattr(generation, "continue_rows", lambda *given: ran.append(1) or run(*given))
    shared = hooks.generate(wide, rows, max_new_tokens=n_new)
    with without_sharing(wide):
        assert hooks.generate(wide, rows, max_new_tokens=n_new) == shared
    assert len(ran) == 1
    assert len({tuple(row) for row in shared}) >= min(3, len({tuple(row) for row in rows}))


@pytest.mark.parametrize("place", [0, 2, 6])
def test_a_stop_cuts_before_the_token_that_completes_it_on_both_paths(wide, place):
    whole = hooks.generate(wide, SHARED, max_new_tokens=8)
    stop = [wide.tokenizer.decode(row[place : place + 2]) for row in whole[:2]]
    assert all(stop)
    options = {"max_new_tokens": 8, "stop": stop}
    cut = hooks.generate(wide, SHARED, **options)
    with without_sharing(wide):
        assert hooks.generate(wide, SHARED, **options) == cut

    def is_over(tokens):
        return any(mark in wide.tokenizer.decode(tokens) for mark in stop)

    lengths = [next((n for n in range(len(row)) if is_over(row[: n + 1])), len(row)) for row in whole]
    assert cut == [row[:n] for row, n in zip(whole, lengths, strict=True)]
    assert len(cut[0]) < len(whole[0])


def test_a_row_ends_at_its_end_token_on_both_paths(load_tiny, monkeypatch):
    loaded = load_tiny("llama")
    whole = hooks.generate(loaded, SHARED, max_new_tokens=8)
    ends = [whole[0][3], whole[1][1]]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", ends)
    found = hooks.generate(loaded, SHARED, max_new_tokens=8)
    with without_sharing(loaded):
        assert hooks.generate(loaded, SHARED, max_new_tokens=8) == found
    for row, new in zip(whole, found, strict=True):
        stops = [i for i, token in enumerate(row) if token in ends]
        assert new == row[: stops[0] if stops else len(row)]


def test_an_interrupted_job_goes_on_and_gives_the_same_tokens(load_tiny, tmp_path, monkeypatch):
    loaded, options = load_tiny("llama"), {"max_new_tokens": 6, "batch_size": 2}
    whole = hooks.generate(loaded, SHARED, **options)
    run, calls = generation._continued, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(generation, "_continued", killed)
    with pytest.raises(KeyboardInterrupt):
        hooks.generate(loaded, SHARED, folder=tmp_path, **options)
    assert hooks.generate(loaded, SHARED, folder=tmp_path, **options) == whole
    assert len(calls) == 2 + 2  # three batches, of which the first was not run again
    assert hooks.generate(loaded, SHARED, folder=tmp_path, **options) == whole
    assert len(calls) == 4
    shorter = hooks.generate(loaded, SHARED, folder=tmp_path, **options | {"max_new_tokens": 4})
    assert shorter == [row[:4] for row in whole]  # another job, which takes nothing from this one
    assert len(calls) == 7
    assert not list(tmp_path.rglob(f"*.{generation.os.getpid()}"))


def test_interrupted_scores_go_on_and_come_out_the_same(load_tiny, tmp_path, monkeypatch):
    loaded, tokens = load_tiny("llama"), torch.tensor([[1, 2]] * len(SHARED))
    monkeypatch.setattr(generation, "TREE_SIZE", 2)  # so that hardly two prompts share a tree
    whole = hooks.score_next_tokens(loaded, SHARED, tokens)
    run, calls = generation.backends.forward, []

    def killed(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **options)

    monkeypatch.setattr(generation.backends, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        hooks.score_next_tokens(loaded, SHARED, tokens, folder=tmp_path)
    assert hooks.score_next_tokens(loaded, SHARED, tokens, folder=tmp_path).equal(whole)
    n_trees = len(calls) - 1  # the second ran twice, the first once
    assert n_trees == len(generation._trees(generation.tokenize(loaded, SHARED))) > 2
    assert hooks.score_next_tokens(loaded, SHARED, tokens, folder=tmp_path).equal(whole)
    assert len(calls) == n_trees + 1
    hooks.score_next_tokens(loaded, SHARED, tokens + 1, folder=tmp_path)  # another job
    assert len(calls) == 2 * n_trees + 1


def test_a_job_that_can_not_go_on_from_a_folder_is_refused(load_tiny, tmp_path, refused):
    loaded = load_tiny("llama")
    with refused(tmp_path, "edits are in place", "legal is no folder"), without_sharing(loaded):
        hooks.generate(loaded, SHARED, max_new_tokens=1, folder=tmp_path)
    with refused(tmp_path, "backend 'nnsight'", "legal is no folder"):
        hooks.generate(load_tiny("llama", "nnsight"), SHARED, max_new_tokens=1, folder=tmp_path)
    with refused(tmp_path, "window of 8", "legal is no folder"):
        hooks.generate(load_tiny("gemma3_text"), SHARED, max_new_tokens=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_shared_the_tokens_are_still_those_of_transformers(load_tiny, load_decoder, refused):
    tokens = torch.zeros(len(SHARED), 1, dtype=torch.long)
    unshared = {"window of 8": load_tiny("gemma3_text"), "tokens exceed the 16": load_decoder("llama-longrope")}
    for why_not, loaded in unshared.items():
        assert hooks.generate(loaded, SHARED, max_new_tokens=4) == by_transformers(loaded, SHARED, 4)
        with refused(why_not, "hooks.capture and generate"):
            hooks.score_next_tokens(loaded, SHARED, tokens)
    with refused("'nnsight'", "hooks.capture and generate"):
        hooks.score_next_tokens(load_tiny("llama", "nnsight"), SHARED, tokens)


def test_bad_input_is_refused(load_tiny, refused):
    loaded = load_tiny("llama")
    with refused("max_new_tokens = 0", "at least 1"):
        hooks.generate(loaded, SHARED, max_new_tokens=0)
    with refused("batch_size = 0", "at least 1"):
        hooks.generate(loaded, SHARED, max_new_tokens=1, batch_size=0)
    with refused("40 new tokens", "64 in all"):
        hooks.generate(loaded, SHARED, max_new_tokens=40)
    with refused("prompts"):
        hooks.generate(loaded, [], max_new_tokens=1)
    with refused("[[0], [0]]", "5 prompts"):
        hooks.score_next_tokens(loaded, SHARED, torch.zeros(2, 1, dtype=torch.long))
    for site in ("pattern", "logits"):
        with refused("outside the attention function"):
            hooks.capture(loaded, SHARED, site, as_trees=True)
    for positions in ("all", "mean"):
        with refused("by number"):
            hooks.capture(loaded, SHARED, "resid_post", positions=positions, as_trees=True)
    with refused("no layer 9"):
        hooks.capture(loaded, SHARED, "resid_post", layers=[9], as_trees=True)
    with refused("edits are in place"), without_sharing(loaded):
        hooks.capture(loaded, SHARED, "resid_post", as_trees=True)
    with refused("last 1 tokens of a prompt of 1", "not all"):
        hooks.nudge(loaded, [[5]], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 16), layer=0)
    with refused("shape [1, 2, 16] for 1 prompts", "1 prompts"):
        hooks.nudge(loaded, [[5, 6]], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 2, 16), layer=0)
    with refused("layer 9"):
        hooks.nudge(loaded, [[5, 6]], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 16), layer=9)
    with refused("last 2 tokens of a prompt of 2", "not all"):
        hooks.nudge(loaded, [[5, 6]], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 16), layer=0, n_last=2)
    with refused("2 layers", "one for each"):
        hooks.nudge(loaded, [[5, 6]], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 16), layer=[0, 1])


@pytest.mark.slow
def test_the_real_model_says_what_transformers_says(embedded):
    shots = "Question: What is 2 + 2?\nAnswer: 4\n\nQuestion: What is 1 + 2?\nAnswer: 3\n\n"
    rows = [embedded.encode(f"{shots}Question: {question}") for question in ("What is 1 + 1?", "Who wrote Hamlet?")]
    assert hooks.generate(embedded, rows, max_new_tokens=8) == by_transformers(embedded, rows, 8)
