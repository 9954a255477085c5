"""What people give: the same thing in any form, or one sentence that says what is legal; never another meaning."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from shared.five_prompts import assert_close
from shared.tiny import prefixing_tokenizer

from helpers import InputError, attribution, baselines, claims, folds, hooks, models, patching, probes, prompts, scores
from helpers.engine import inputs
from helpers.hooks import Edit
from helpers.patching import Node
from studies.ioi import templates

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["the cat sat on", "the mat it was"]
BASE, SOURCE = [[5, 6, 7, 8], [9, 8, 7, 6]], [[5, 6, 7, 9], [9, 8, 7, 5]]
ANSWERS = [(7, 8), (8, 7)]


@pytest.fixture(scope="module")
def loaded(load_tiny):
    return load_tiny("llama")


@pytest.fixture(scope="module")
def with_start(load_tiny):
    """A model whose tokenizer puts a token before every text."""
    loaded = load_tiny("llama")
    return dataclasses.replace(loaded, start_token_id=loaded.tokenizer.convert_tokens_to_ids("<|start|>"))


# Prompts


def test_what_a_tokenizer_returns_is_its_prompts_without_padding(loaded):
    tokenizer = loaded.tokenizer
    rows = [loaded.encode(text) for text in ("the cat", "on the mat")]
    width = max(map(len, rows))
    for side in ("left", "right"):
        gaps = [[0] * (width - len(row)) for row in rows]
        pads = [gap + row if side == "left" else row + gap for gap, row in zip(gaps, rows, strict=True)]
        seen = [[0] * len(gap) + [1] * len(row) for gap, row in zip(gaps, rows, strict=True)]
        seen = seen if side == "left" else [mask[::-1] for mask in seen]
        padded = {"input_ids": torch.tensor(pads), "attention_mask": torch.tensor(seen)}
        assert hooks.tokenize(loaded, padded) == rows
    assert hooks.tokenize(loaded, tokenizer(["the cat", "on the mat"])) == rows
    assert hooks.tokenize(loaded, [tokenizer("the cat"), "on the mat"]) == rows
    assert hooks.tokenize(loaded, tokenizer("the cat")) == rows[:1]


def test_a_chat_is_run_as_its_template_renders_it(with_start):
    tokenizer = with_start.tokenizer
    template = "<|start|>{% for one in messages %}{{ one.content }}{% endfor %}"
    chat = [{"role": "user", "content": "the cat"}]
    wanted = [[with_start.start_token_id, *with_start.encode("the cat", start=False)]]
    for returned in (
        tokenizer.apply_chat_template(chat, chat_template=template),
        tokenizer.apply_chat_template(chat, chat_template=template, return_tensors="pt"),
        [tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)],
        [tokenizer.apply_chat_template(chat, chat_template=template, return_dict=False)],
    ):
        assert hooks.tokenize(with_start, returned) == wanted


@pytest.mark.parametrize(
    "prompts",
    [
        {"a": "one", "b": "two"},
        [{"role": "user", "content": "hi"}],
        [[{"role": "user", "content": "hi"}]],
        {"one", "two"},
        [b"one"],
        [[True, False]],
        [[1.0, 2.0]],
        torch.tensor([[1.0]]),
        torch.tensor([1, 2]),
        torch.tensor([[[1, 2]]]),
        pd.DataFrame({"text": ["one"]}),
        "one",
        [1, 2],
        None,
        3,
        [],
        {"input_ids": []},
    ],
)
def test_what_are_no_prompts_is_refused(prompts, loaded, refused):
    with refused():
        hooks.tokenize(loaded, prompts)


# Positions, layers, heads


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, pd.Series])
def test_a_position_for_each_prompt_means_the_same_everywhere(form, loaded):
    each = [1, 3]
    plain = hooks.capture(loaded, BASE, "resid_post", positions="all")["resid_post"]
    found = hooks.capture(loaded, BASE, "resid_post", positions=form(each))["resid_post"]
    named = hooks.capture(loaded, BASE, "resid_post", positions={"there": form(each)})["resid_post"]
    for one in (found, named):
        assert_close(one[:, :, 0], torch.stack([plain[i, :, position] for i, position in enumerate(each)]))
    with hooks.intervene(loaded, Edit("resid_post", 1, 100.0, position=form(each))):
        changed = hooks.capture(loaded, BASE, "resid_post", positions="all")["resid_post"][:, 1]
    assert ((changed == 100).all(-1)).nonzero().tolist() == [[0, 1], [1, 3]]
    options = {"site": "resid_pre", "answers": ANSWERS}
    patched = patching.patch_positions(loaded, BASE, SOURCE, positions=form(each), **options).values
    everywhere = patching.patch_positions(loaded, BASE, SOURCE, **options).values
    assert_close(patched[:, 0], torch.stack([everywhere[:, p, i] for i, p in enumerate(each)], dim=1))


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_layers_and_heads_come_in_any_form(form, loaded):
    plain = hooks.capture(loaded, BASE, "head_z")["head_z"]
    assert torch.equal(hooks.capture(loaded, BASE, "head_z", layers=form([1, 0]))["head_z"], plain[:, [1, 0]])
    with hooks.intervene(loaded, Edit("head_z", 0, 0.0, head=form([2, 0]))):
        found = hooks.capture(loaded, BASE, "head_z", layers=0)["head_z"][:, 0, 0]
    assert torch.equal(found == 0, torch.tensor([True, False, True, False])[None, :, None].expand_as(found))


NO_POSITIONS = [1.5, [0.5, 0.5], True, [True, False], "third", [0, 1, 2], [0], {}, {"x": 1.5}, {"x": None}, [[0, 1]]]


@pytest.mark.parametrize("position", [*NO_POSITIONS, {"x": [[0, 1], [0, 1]]}, None, torch.tensor([[0, 1]])])
def test_what_are_no_positions_is_refused(position, loaded, refused):
    with refused():
        hooks.capture(loaded, BASE, "resid_post", positions=position)
    if position is not None:
        with refused():
            patching.patch_positions(loaded, BASE, SOURCE, answers=ANSWERS, positions=position)
    if position is not None and not isinstance(position, dict):
        with refused(), hooks.intervene(loaded, Edit("resid_post", 0, position=position)):
            hooks.capture(loaded, BASE, "resid_post")


@pytest.mark.parametrize("layer", [1.5, [0.5], True, [True], "0", -1, 2, [], None])
def test_what_is_no_layer_is_refused(layer, loaded, refused):
    if layer is not None:
        with refused():
            hooks.capture(loaded, BASE, "resid_post", layers=layer)
    with refused(), hooks.intervene(loaded, Edit("resid_post", layer)):
        pass
    with refused():
        patching.patch_sets(loaded, BASE, SOURCE, [[Node("resid_post", layer)]], answers=ANSWERS)


@pytest.mark.parametrize("head", [1.5, [0.5], True, "0", -1, 4, [4], [], {0}, [1, 1]])
def test_what_is_no_head_is_refused(head, loaded, refused):
    with refused(), hooks.intervene(loaded, Edit("head_z", 0, head=head)):
        pass
    with refused():
        patching.patch_sets(loaded, BASE, SOURCE, [[Node("head_z", 0, head)]], answers=ANSWERS)


@pytest.mark.parametrize("position", [1.5, [0, 1], True, "last", 4, -5])
def test_what_is_no_position_of_a_node_is_refused(position, loaded, refused):
    with refused():
        patching.patch_sets(loaded, BASE, SOURCE, [[Node("head_z", 0, 0, position)]], answers=ANSWERS)


# The rest of a call


@pytest.mark.parametrize("value", ["a", None, True, torch.tensor([1j]), [[1.0], [1.0, 2.0]]])
def test_a_value_that_is_no_number_is_refused(value, loaded, refused):
    with refused("replace resid_post"), hooks.intervene(loaded, Edit("resid_post", 0, value)):
        pass


CALLS = {
    "sites": [lambda m, v: hooks.capture(m, BASE, v), ["resid", [], None, 3, [3], {"resid_post"}]],
    "edits": [lambda m, v: hooks.intervene(m, v).__enter__(), ["x", [Edit("resid_post", 0)], None]],
    "max_new_tokens": [lambda m, v: hooks.generate(m, BASE, max_new_tokens=v), [1.5, True, "3", 0, None]],
    "batch_size": [lambda m, v: hooks.generate(m, BASE, max_new_tokens=1, batch_size=v), [1.5, True, 0]],
    "stop": [lambda m, v: hooks.generate(m, BASE, max_new_tokens=1, stop=v), [None, 5, [""], ["a", 3]]],
    "losses": [hooks.measure_losses, [[[1, 2], [1, 2, 3]], "a", torch.tensor([1, 2])]],
    "entries": [lambda m, v: hooks.measure_losses(m, BASE, entries=v), [[0.5], True, [9], "a"]],
    "choices": [lambda m, v: hooks.score_next_tokens(m, BASE, v), [[[1, 2]], [[1, 999]] * 2, [[1, -1]] * 2, [1, 2]]],
    "ragged choices": [lambda m, v: hooks.score_next_tokens(m, BASE, v), [[[1], [1, 2]], [[1.5], [2.5]], None]],
    "answers": [
        lambda m, v: patching.patch_sets(m, BASE, SOURCE, [], answers=v),
        [[7, 8], "ab", [(7,)] * 2, [(7.5, 8)] * 2, [(True, False)] * 2, [(7, 7)] * 2, [(7, 999)] * 2, [(7, 8)], 3],
    ],
    "metric": [
        lambda m, v: patching.patch_sets(m, BASE, SOURCE, [[Node("resid_pre", 0)]], metric=v),
        [lambda logits, _: logits.mean(), lambda logits, _: [1.0], "loss"],
    ],
    "sets": [
        lambda m, v: patching.patch_sets(m, BASE, SOURCE, v, answers=ANSWERS),
        [Node("q", 0), [Node("q", 0)], None, [[("q", 0)]], [[(0, 1)]], "q"],
    ],
    "receivers": [
        lambda m, v: patching.patch_paths(m, BASE, SOURCE, v, answers=ANSWERS),
        [Node("q", 0), [], None, "q", [("q", 0)], [Node("head_z", 0)], [Node("q", 0, 0, [0, 1])]],
    ],
    "senders": [
        lambda m, v: patching.patch_paths(m, BASE, SOURCE, "logits", senders=v, answers=ANSWERS),
        [[], (0, 1), [(0, 9)], [(9, 0)], [(0, -1)], [(0,)], [(0, 1, 2)], [(0.5, 1)], [(True, 1)], "ab", 5],
    ],
    "groups": [
        lambda m, v: patching.ablate(m, BASE, groups=v, answers=ANSWERS),
        ["ab", 5, [[0], [0]], [{}, {}], ["a"]],
    ],
    "seed": [
        lambda m, v: patching.ablate(m, BASE, how="resample", seed=v, answers=ANSWERS),
        [1.5, "a", None, -1, True],
    ],
    "copied tokens": [
        lambda m, v: attribution.measure_copy_rates(m, v, torch.zeros(2, 16)),
        [[1, 2, 3], [1, 999], [0.5, 1], "ab"],
    ],
    "top": [lambda m, v: attribution.measure_copy_rates(m, [1, 2], torch.zeros(2, 16), top=v), [0, 1.5, True, 10_000]],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, (_, values) in CALLS.items() for value in values])
def test_anything_else_is_refused_in_a_sentence(kind, value, loaded, refused):
    with refused():
        CALLS[kind][0](loaded, value)


def test_groups_come_in_any_form(loaded):
    options = {"how": "mean", "answers": ANSWERS}
    wanted = patching.ablate(loaded, BASE, groups=["a", "b"], **options).values
    for groups in (("a", "b"), np.array(["a", "b"]), torch.tensor([0, 1]), pd.Series([("x", 1), ("x", 2)])):
        assert torch.equal(patching.ablate(loaded, BASE, groups=groups, **options).values, wanted)


# Probes, folds, scores, baselines, prompts

N = 40
LABELS, GROUPS = [i % 2 == 0 for i in range(N)], [i // 2 for i in range(N)]
X = torch.randn(N, 3, 1, 8, generator=torch.Generator().manual_seed(0))
CAPTURED = hooks.Captured(
    {"resid_post": X},
    {"resid_post": ("example", "layer", "position", "d_model")},
    (0, 1, 2),
    ("last",),
    torch.full((N,), 5),
)
SWEEP = {"types": None, "seed": 0, "n_permutations": 3}
NO_SEEDS = [None, 1.5, -1, True, "0", 2**32]
NO_PENALTIES = [[], ["a"], [-1.0], 0.0, [float("nan")], [float("inf")], [True], "1"]
NO_GROUPS = [None, GROUPS[:-1], [[g] for g in GROUPS], 5, "ab" * 20, np.array(GROUPS)[:, None]]


def sweep(**options):
    given = {"activations": CAPTURED, "labels": LABELS, "groups": GROUPS} | SWEEP | options
    return probes.sweep(**given)


def cross_train(**options):
    return probes.cross_train(**{"activations": X[:, 0, 0], "labels": LABELS, "groups": GROUPS, "seed": 0} | options)


def curve(**options):
    given = {"activations": X[:, 0, 0], "labels": LABELS, "groups": GROUPS, "sizes": [2], "n_draws": 2, "seed": 0}
    return probes.trace_learning_curve(**given | options)


def transfer(domains):
    return probes.transfer(X[:, 0, 0], LABELS, GROUPS, domains, seed=0, folds=3)


MORE_CALLS = {
    "labels": [lambda v: sweep(labels=v), [None, [2, 3] * 20, ["a", "b"] * 20, LABELS[:-1], [0.5] * N, "ab" * 20]],
    "groups of a sweep": [lambda v: sweep(groups=v), NO_GROUPS],
    "seed of a sweep": [lambda v: sweep(seed=v), NO_SEEDS],
    "penalties": [lambda v: sweep(penalties=v), NO_PENALTIES],
    "penalty": [lambda v: curve(penalty=v), [0.0, "a", None, float("nan")]],
    "folds": [
        lambda v: sweep(folds=v),
        [2, 2.5, True, None, [0.5] * N, [0] * N, "5", [-1 + i // 2 % 5 for i in range(N)]],
    ],
    "n_permutations": [lambda v: sweep(n_permutations=v), [-1, 1.5, True, None, "3"]],
    "n_control": [lambda v: sweep(n_control=v, types=GROUPS), [-1, 1.5, None]],
    "types": [lambda v: sweep(types=v), [GROUPS[:-1], 5, [[g] for g in GROUPS]]],
    "activations": [lambda v: sweep(activations=v), [None, "x", CAPTURED.values]],
    "device": [lambda v: sweep(device=v), ["x", None]],
    "domains": [transfer, [["a"], 5, None, [["a"]] * N]],
    "training": [
        lambda v: cross_train(training=v),
        [[True] * N, {"all": [True]}, {"all": ["a"] * N}, {"all": [0.5] * N}, {"all": list(range(N))}, {"all": None}],
    ],
    "sizes": [lambda v: curve(sizes=v), [[0], 1.5, [999], "ab", [True], None]],
    "n_draws": [lambda v: curve(n_draws=v), [0, 1.5, None]],
    "scores": [
        lambda v: scores.evaluate(v, LABELS, GROUPS, seed=0),
        [["a"] * N, [float("nan")] * N, None, [1j] * N, 3.0, torch.randn(N - 1)],
    ],
    "seed of scores": [lambda v: scores.evaluate(X[:, 0, 0, 0], LABELS, GROUPS, seed=v), NO_SEEDS],
    "rows of a term": [
        lambda v: scores.combine([(1.0, X[:, 0, 0, 0], v)], LABELS, GROUPS, seed=0),
        [[2] * N, [True] * 3, None, list(range(N))],
    ],
    "bins": [
        lambda v: scores.measure_calibration_error(X[:, 0, 0, 0], LABELS, GROUPS, n_bins=v, seed=0),
        [0, -1, 1.5, True, N + 1],
    ],
    "logits": [
        lambda v: scores.measure_calibration_error(v, LABELS, GROUPS, seed=0),
        [torch.zeros(N - 1), None, ["a"] * N, [float("nan")] * N],
    ],
    "fitted rows": [
        lambda v: probes.fit(v, torch.tensor(LABELS)[:, None], method="ridge", penalties=[1.0]),
        [X[:, 0, 0], X[None], [[[1.0, 2.0]]], torch.full((1, N, 2), torch.nan)],
    ],
    "fitted labels": [
        lambda v: probes.fit(X[:, 0, 0][None], v, method="ridge", penalties=[1.0]),
        [LABELS, torch.tensor(LABELS), torch.tensor(LABELS)[:-1, None]],
    ],
    "n_folds": [lambda v: folds.assign_folds(LABELS, GROUPS, n_folds=v, seed=0), [2, 2.5, True, 999, None, "5"]],
    "strata": [lambda v: folds.assign_stratified_folds(v, GROUPS, seed=0), [LABELS[:-1], None, 5, []]],
    "stratified folds": [
        lambda v: folds.assign_stratified_folds(LABELS, GROUPS, n_folds=v, seed=0),
        [0, 1, 2.5, 999, True, None],
    ],
    "shared folds": [lambda v: folds.assign_shared_folds(GROUPS, n_folds=v, seed=0), [0, 1, 2.5, -1, None]],
    "no types": [lambda v: folds.assign_shared_folds(v, seed=0), [[], None]],
    "permutations": [lambda v: folds.permute_labels(LABELS, GROUPS, n_permutations=v, seed=0), [-1, 1.5, None, True]],
    "draws": [lambda v: folds.draw_control_labels(GROUPS, n_draws=v, seed=0), [0, -1, 1.5, None]],
}


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, (_, values) in MORE_CALLS.items() for value in values]
)
def test_what_probes_and_scores_can_not_use_is_refused_in_a_sentence(kind, value, refused):
    with refused():
        MORE_CALLS[kind][0](value)


MODEL_CALLS = {
    "answer tokens": [
        lambda m, v: baselines.read_output(m, TEXTS, v, [2]),
        [[], [True], [1.5], [2], [-1], [999], "a", None],
    ],
    "heads": [
        lambda m, v: baselines.draw_controls(m, v, n_sets=2, seed=0),
        [[(0, 9)], [(9, 0)], [(0, -1)], [(0, 1), (0, 1)], (0, 1), [(0.5, 1)], None, "ab", [(0, 1, 2)], [(True, 1)]],
    ],
    "sets": [lambda m, v: baselines.draw_controls(m, [(0, 1)], n_sets=v, seed=0), [-1, 1.5, None, True]],
    "seed of sets": [lambda m, v: baselines.draw_controls(m, [(0, 1)], n_sets=2, seed=v), NO_SEEDS],
    "n_sequences": [lambda m, v: segments(m, n_sequences=v), [0, -1, 1.5, True, None, "2"]],
    "segment_length": [lambda m, v: segments(m, segment_length=v), [0, -1, 1.5, True, None, "2", 9999]],
    "n_segments": [lambda m, v: segments(m, n_segments=v), [0, -1, 1.5, True, None, "2", 9999]],
    "seed of segments": [lambda m, v: segments(m, seed=v), NO_SEEDS],
    "n_passages": [lambda m, v: prompts.read_passages(m, n_passages=v, n_tokens=5), [0, 1.5, True, None, "2", 9999]],
    "n_tokens": [lambda m, v: prompts.read_passages(m, n_passages=1, n_tokens=v), [0, 1.5, True, None, "2", 9999]],
    "sequences": [prompts.prepend_start_token, [torch.tensor([1, 2]), torch.zeros(2, 99).long()]],
    "words": [prompts.keep_single_tokens, ["ab", [3], None, [""], [" "]]],
    "word": [prompts.encode_word, ["", " ", 3, None]],
    "n_prompts": [lambda m, v: templates.draw_ioi(m, n_prompts=v, seed=0), [0, -1, 1.5, True, None, "2"]],
    "seed of prompts": [lambda m, v: templates.draw_ioi(m, n_prompts=2, seed=v), NO_SEEDS],
    "templates": [
        lambda m, v: templates.draw_ioi(m, n_prompts=2, seed=0, templates=v),
        [[], "When{A} and{B}{S}", None, [3]],
    ],
    "template": [
        lambda m, v: templates.draw_ioi(m, n_prompts=2, seed=0, templates=[v]),
        [
            *("When {A} and {C}, {S} to", "{A} and {B}, {S} to", "When {A} and {B} left", "When {A} {A} {B} {S}"),
            *(
                "When {} and {B} {S}",
                "When {A and {B} {S}",
                "plain",
                "When {A!r} and {B}, {S} to",
                "With {A:>9}, {B}, {S}",
            ),
            *("When {B} and {A}, {S} to", "When {S}, {A} and {B} to", "In {PLACE} {PLACE} {A} and {B}, {S} to"),
        ],
    ],
}


def segments(loaded, **options):
    return prompts.draw_segments(
        loaded, **{"n_sequences": 2, "segment_length": 3, "n_segments": 2, "seed": 0} | options
    )


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, (_, values) in MODEL_CALLS.items() for value in values]
)
def test_what_prompts_can_not_be_made_of_is_refused_in_a_sentence(kind, value, loaded, refused):
    with refused():
        MODEL_CALLS[kind][0](loaded, value)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, pd.Series])
def test_labels_groups_and_folds_come_in_any_form(form):
    numbers = [i // 2 % 5 for i in range(N)]
    wanted = sweep(folds=numbers)
    found = sweep(
        labels=form(LABELS), groups=form(GROUPS), folds=form(numbers), penalties=form([*probes.PENALTIES["ridge"]])
    )
    assert torch.equal(found.auroc, wanted.auroc)
    domains = [group % 2 for group in GROUPS]
    assert len(transfer(form(domains))) == 4
    assert torch.equal(
        cross_train(training={"all": form([True] * N)})["all"], cross_train(training={"all": [1] * N})["all"]
    )


def test_one_penalty_may_stand_alone():
    assert torch.equal(sweep(penalties=10.0).auroc, sweep(penalties=[10.0]).auroc)


# Templates and vocabularies


def test_a_space_before_a_slot_makes_no_difference(prefixing):
    close, open_ = (
        "Then{A} and{B} left the{PLACE},{S} gave a{OBJECT} to",
        "Then {A} and {B} left the  {PLACE}, {S} gave a {OBJECT} to",
    )
    options = {"n_prompts": 4, "seed": 0}
    found = [templates.draw_ioi(prefixing, **options, templates=[one]).prompts for one in (close, open_)]
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def prefixing(load_tiny):
    """A model whose vocabulary puts a space before each text, of whose words names, places and objects are tokens."""
    words = [*prompts.NAMES, *templates.PLACES, *templates.OBJECTS]
    return dataclasses.replace(large_vocabulary(load_tiny("llama")), tokenizer=prefixing_tokenizer(words))


def large_vocabulary(loaded):
    model = copy.deepcopy(loaded.model)
    model.resize_token_embeddings(4000)
    return dataclasses.replace(loaded, model=model)


def test_words_are_looked_up_as_they_stand_in_a_text(prefixing):
    alone = prefixing.encode(" Mary", start=False)
    assert len(alone) == 2, "what such a vocabulary does with a word that is looked up alone"
    assert len(prompts.keep_single_tokens(prefixing, prompts.NAMES)) == len(prompts.NAMES)
    text = prefixing.encode("then Mary and John")
    assert prompts.encode_word(prefixing, "Mary") in text and prompts.encode_word(prefixing, "John") == text[-1]
    assert patching.encode_answers(prefixing, [(" Mary", " John")]).tolist() == [
        [prompts.encode_word(prefixing, "Mary"), prompts.encode_word(prefixing, "John")]
    ]


def test_prompts_of_such_a_vocabulary_have_their_parts_in_their_places(prefixing):
    drawn = templates.draw_ioi(prefixing, n_prompts=6, seed=1)
    for i, row in enumerate(drawn.prompts):
        assert row[drawn.positions["IO"][i]] == drawn.io[i]
        assert row[drawn.positions["S2"][i]] == drawn.subject[i] == row[drawn.positions["S1"][i]]
        assert drawn.positions["END"][i] == len(row) - 1


@pytest.mark.parametrize("words", [["at", "a", "t", "as", "ball", "cat", "the"], ["a", ":t", ":b", "t", "b"]])
def test_a_word_without_a_space_is_looked_up_without_one(words, load_tiny):
    loaded = dataclasses.replace(large_vocabulary(load_tiny("llama")), tokenizer=prefixing_tokenizer(words))
    letters = [loaded.encode_after(letter) for letter in "tbs"]
    assert [loaded.tokenizer.convert_ids_to_tokens(ids) for ids in letters] == [["t"], ["b"], ["s"]]


# Found by trying

GAP = range(10, 10 + N)
"""Row numbers of a table that was filtered: none is zero."""


def test_a_column_of_a_filtered_table_is_its_values():
    column, values = pd.Series(X[:, 0, 0, 0].tolist(), index=GAP), X[:, 0, 0, 0]
    labels, groups = pd.Series(LABELS, index=GAP), pd.Series(GROUPS, index=GAP)
    found = scores.evaluate(column, labels, groups, seed=0)["auroc"]
    assert found == scores.evaluate(values, LABELS, GROUPS, seed=0)["auroc"]
    assert float(scores.compute_auroc(column, labels)) == pytest.approx(float(scores.compute_auroc(values, LABELS)))
    assert scores.subtract(column, values, labels, groups, seed=0).value == 0
    assert torch.equal(
        cross_train(labels=labels, groups=groups, training={"a": pd.Series([True] * N, GAP)})["a"],
        cross_train(training={"a": [True] * N})["a"],
    )


def test_rows_are_selected_by_number_or_by_mask():
    some = [i % 3 == 0 for i in range(N)]
    wanted = CAPTURED.select([i for i, one in enumerate(some) if one])["resid_post"]
    for mask in (some, torch.tensor(some), np.array(some), pd.Series(some, GAP)):
        assert torch.equal(CAPTURED.select(mask)["resid_post"], wanted)
    for rows in (0, [N], "01", [0.5], [True, False], torch.tensor([True, False]), None):
        with pytest.raises(InputError):
            CAPTURED.select(rows)


def test_one_position_has_one_name_in_any_form(loaded):
    for position in (2, np.array(2), torch.tensor(2), np.int64(2)):
        assert hooks.capture(loaded, BASE, "resid_post", positions=position).positions == ("2",)


def test_a_site_that_was_not_captured_is_not_read():
    for site in (
        probes.Site("resid_post", 0, "last", 1),
        probes.Site("resid_post", 9, "last"),
        probes.Site("resid_post", 0, "x"),
    ):
        with pytest.raises(InputError, match="no activations of"):
            probes.read_features(CAPTURED, site)


def test_prompts_of_an_ablation_come_in_any_form(loaded):
    wanted = patching.ablate(loaded, BASE, answers=ANSWERS).values
    for how in ({"input_ids": torch.tensor(BASE)}, (row for row in BASE), torch.tensor(BASE)):
        assert torch.equal(patching.ablate(loaded, how, answers=ANSWERS).values, wanted)
    zero = patching.ablate(loaded, {"input_ids": torch.tensor(BASE)}, how="zero", answers=ANSWERS).values
    assert torch.equal(zero, patching.ablate(loaded, BASE, how="zero", answers=ANSWERS).values)
    assert patching.encode_answers(loaded, zip([7, 8], [8, 7], strict=True)).tolist() == [[7, 8], [8, 7]]


TRIED = {
    "mask": [
        lambda m, v: hooks.tokenize(m, {"input_ids": [[1, 2, 3]], "attention_mask": v}),
        [[[0.0, 0.0, -1e9]], [[1]], [[1, 1, 1], [1, 1, 1]], torch.ones(1, 1, 3, 3)],
    ],
    "input_ids": [lambda m, v: hooks.tokenize(m, {"input_ids": v}), [3, "a", None]],
    "nudges": [
        lambda m, v: hooks.nudge(m, BASE, [[1], [2]], v, layer=0),
        [torch.randn(1, 2, 1), torch.full((1, 2, 16), torch.nan), torch.randn(1, 2, 5), "abc", None],
    ],
    "copied": [
        lambda m, v: attribution.score_copying(m, BASE, v),
        [
            torch.zeros(3, 2, 4, 16),
            torch.zeros(2, 2, 1, 16),
            torch.full((2, 2, 4, 16), torch.nan),
            torch.zeros(2, 3, 4, 16),
        ],
    ],
    "copied ids": [
        lambda m, v: attribution.score_copying(m, v, torch.zeros(2, 2, 2, 16)),
        [[[1, -1], [1, 2]], [[1, 999]] * 2],
    ],
    "resid": [
        lambda m, v: attribution.measure_copy_rates(m, [1, 2], v),
        [torch.full((2, 16), torch.nan), torch.zeros(2, 5), torch.zeros(3, 16)],
    ],
    "texts": [lambda m, v: baselines.score_text(m, v, LABELS, GROUPS, seed=0), ["a" * N, [3] * N, None]],
    "rules": [
        lambda m, v: baselines.score_baselines(
            m, [f"a {i}" for i in range(N)], LABELS, GROUPS, answers=([1], [2]), rules=v, seed=0
        ),
        [[[1.0] * N], {"r": "x"}, {"r": [float("nan")] * N}],
    ],
    "folder": [lambda m, v: hooks.generate(m, BASE, max_new_tokens=1, folder=v), [5, ["a"]]],
    "fitted": [
        lambda m, v: probes.fit(v, torch.tensor(LABELS)[:, None], method="ridge", penalties=[1.0]),
        [None, "a", {}],
    ],
    "table": [lambda m, v: scores.tabulate(v, LABELS, GROUPS, seed=0), [None, [[1.0] * N], "a"]],
    "term": [
        lambda m, v: scores.combine([v], LABELS, GROUPS, seed=0),
        [None, (1.0, [0.5] * N), ("a", [0.5] * N, [True] * N)],
    ],
    "mean": [lambda m, v: claims.average([1.0, 2.0], seed=v), NO_SEEDS],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, (_, values) in TRIED.items() for value in values])
def test_what_broadcasts_or_can_not_be_read_is_refused_in_a_sentence(kind, value, loaded, refused):
    with refused():
        TRIED[kind][0](loaded, value)


# One by one


def test_whole_numbers_are_whole_numbers_of_any_library():
    for one in (3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)):
        assert inputs.as_whole(one) == 3 and inputs.as_wholes(one) == (3,)
        assert type(inputs.as_whole(one)) is int
    for several in (
        [1, 2],
        (1, 2),
        range(1, 3),
        np.array([1, 2]),
        torch.tensor([1, 2]),
        [np.int64(1), torch.tensor(2)],
    ):
        assert inputs.as_wholes(several) == (1, 2)
    for other in (True, np.True_, torch.tensor(True), 1.0, np.float32(1), "1", None, [1], {1}, b"1"):
        with pytest.raises(InputError, match="is no whole number"):
            inputs.as_whole(other)


def test_a_seed_makes_the_same_numbers_again():
    draws = [inputs.make_generator(seed).random(3).tolist() for seed in (4, np.int64(4), 5)]
    assert draws[0] == draws[1] != draws[2]


def test_a_text_that_begins_with_the_start_token_gets_no_second_one(with_start):
    start = with_start.start_token_id
    assert (
        with_start.encode("<|start|>the cat")
        == with_start.encode("the cat")
        == [start, *with_start.encode("the cat", start=False)]
    )
    assert models.LoadedModel.encode(with_start, "<|start|>the", start=False)[0] == start
