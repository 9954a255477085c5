"""Prompts for indirect object identification have their parts where they say, with any tokenizer."""

import dataclasses
from collections import Counter

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import hooks, prompts
from studies.ioi import templates


def trained_tokenizer():
    """Trained on some of the words only, so that the others are several tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    words = [*prompts.NAMES[:9], *templates.PLACES[:3], *templates.OBJECTS[:2]]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word}" for word in words] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="module", params=["smollm2", "gpt2", "trained", "trained, with a start token"])
def tokenized(request, embedded):
    """Four conventions; only the tokenizer is used."""
    if request.param == "smollm2":
        return embedded
    tokenizer = request.getfixturevalue("gpt2_tokenizer") if request.param == "gpt2" else trained_tokenizer()
    start = tokenizer.bos_token_id if "start" in request.param else None
    return dataclasses.replace(embedded, tokenizer=tokenizer, start_token_id=start)


@settings(max_examples=20)
@given(n_prompts=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_every_part_of_an_ioi_prompt_is_where_it_is_said_to_be(tokenized, n_prompts, seed):
    drawn = templates.draw_ioi(tokenized, n_prompts=n_prompts, seed=seed)
    assert len(drawn.prompts) == n_prompts
    for i, row in enumerate(drawn.prompts):
        io, subject = drawn.answers[i]
        places = {name: positions[i] for name, positions in drawn.positions.items()}
        assert row[places["IO"]] == io
        assert row[places["S1"]] == row[places["S2"]] == subject
        assert (row.count(io), row.count(subject)) == (1, 2)
        assert places["S1"] < places["S1+1"] == places["S1"] + 1 <= places["S2"] < places["END"] == len(row) - 1
        assert (places["IO"] < places["S1"]) == (drawn.order[i] == "ABBA")
        assert len({io, subject, *drawn.others[i]}) == 5
        assert (row[0] == tokenized.start_token_id) == (tokenized.start_token_id is not None)
        text = tokenized.tokenizer.decode(row, skip_special_tokens=True)
        assert tokenized.encode(text) == list(row)
        assert text.endswith(" to")
    assert drawn == templates.draw_ioi(tokenized, n_prompts=n_prompts, seed=seed)


@pytest.mark.parametrize("sample", [0, 1])
@pytest.mark.parametrize("whose", templates.SENTENCES)
def test_every_sentence_can_be_filled_with_the_names_where_they_are_said_to_be(whose, sample, tokenized):
    sentences = templates.SENTENCES[whose][sample]
    drawn = templates.draw_ioi(tokenized, n_prompts=2 * len(sentences), seed=0, templates=sentences)
    assert len(set(drawn.forms)) == 2 * len(sentences)
    for i, row in enumerate(drawn.prompts):
        places = {name: positions[i] for name, positions in drawn.positions.items()}
        assert row[places["S1"]] == row[places["S2"]] == drawn.subject[i] and row[places["IO"]] == drawn.io[i]
        assert places["S1+1"] <= places["S2"] < places["END"] == len(row) - 1
        text = tokenized.tokenizer.decode(row, skip_special_tokens=True)
        assert text.endswith(" to") and "  " not in text and "{" not in text


def test_the_papers_sentences_are_fifteen_of_which_none_is_in_both_samples():
    assert len(set(templates.PAPER_TEMPLATES)) == 15
    for first, second in templates.SENTENCES.values():
        assert not {*first} & {*second}
    assert {*templates.SENTENCES["paper"][0]} | {*templates.SENTENCES["paper"][1]} == {*templates.PAPER_TEMPLATES}


def test_an_object_that_stands_twice_is_the_same_word(embedded):
    (twice,) = (one for one in templates.PAPER_TEMPLATES if one.count("{OBJECT}") == 2)
    drawn = templates.draw_ioi(embedded, n_prompts=6, seed=0, templates=[twice])
    for row in drawn.prompts:
        words = "".join(embedded.token_labels(list(row))).split()
        assert words[words.index("got") + 2] == words[words.index("the", words.index("give")) + 1]


def test_templates_and_orders_are_balanced(tokenized):
    n_templates = len(templates.IOI_TEMPLATES)
    drawn = templates.draw_ioi(tokenized, n_prompts=4 * n_templates, seed=0)
    pairs = Counter(zip(drawn.template, drawn.order, strict=True))
    assert len(pairs) == 2 * n_templates
    assert set(pairs.values()) == {2}


@pytest.mark.parametrize("kind", templates.CORRUPTIONS)
def test_a_corruption_changes_the_names_it_says_and_nothing_else(kind, tokenized):
    drawn = templates.draw_ioi(tokenized, n_prompts=30, seed=1)
    for i, (row, other) in enumerate(zip(drawn.prompts, drawn.corrupted(kind), strict=True)):
        io, subject = drawn.answers[i]
        a, b, c = drawn.others[i]
        expected = {
            "p_ABC": (a, b, c),
            "random_names": (a, b, b),
            "order_swapped": (subject, io, subject),
            "S2_is_IO": (io, subject, io),
            "order_swapped_random_names": (b, a, b),
            "order_swapped_S2_is_IO": (subject, io, io),
        }[kind]
        places = [drawn.positions[name][i] for name in ("IO", "S1", "S2")]
        assert tuple(other[place] for place in places) == expected
        assert len(other) == len(row)
        assert all(other[j] == row[j] for j in range(len(row)) if j not in places)


def test_absent_names_are_as_many_for_each_prompt_and_in_none_of_their_own(embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=12, seed=0)
    absent = templates.list_absent(embedded, drawn)
    assert len({len(names) for names in absent}) == 1 and len(absent[0]) >= 20
    assert not any({*row} & {*names} for row, names in zip(drawn.prompts, absent, strict=True))


@pytest.mark.slow
def test_the_real_model_names_the_indirect_object(embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=20, seed=3)
    answers = torch.tensor(drawn.answers)

    def difference(rows):
        logits = hooks.capture(embedded, rows, "logits")["logits"][:, 0].gather(1, answers)
        return logits[:, 0] - logits[:, 1]

    assert (difference(drawn.prompts) > 0).float().mean() > 0.8
    assert (difference(drawn.corrupted("S2_is_IO")) < 0).float().mean() > 0.8
    assert difference(drawn.corrupted("p_ABC")).mean().abs() < 1


def test_bad_ioi_input_is_refused(embedded, load_tiny, without_tokenizer, refused):
    with refused("n_prompts = 0", "at least 1"):
        templates.draw_ioi(embedded, n_prompts=0, seed=0)
    with refused("names", "single tokens", "at least 5"):
        templates.draw_ioi(load_tiny("llama"), n_prompts=1, seed=0)
    with refused("no tokenizer"):
        templates.draw_ioi(without_tokenizer, n_prompts=1, seed=0)
    with refused("'p_ABCD'", "p_ABC, random_names"):
        templates.draw_ioi(embedded, n_prompts=1, seed=0).corrupted("p_ABCD")


@pytest.mark.parametrize("n_templates", [1, 3, 10])
def test_any_number_of_first_prompts_has_both_orders_in_turn(n_templates, embedded):
    drawn = templates.draw_ioi(embedded, n_prompts=40, seed=0, templates=templates.IOI_TEMPLATES[:n_templates])
    for n_prompts in range(2, 41):
        orders = drawn.first(n_prompts).order
        assert abs(orders.count("ABBA") - orders.count("BABA")) <= (2 if n_templates == 3 else n_prompts % 2)
    for number in range(n_templates):
        of_template = [order for template, order in drawn.forms if template == number]
        assert abs(of_template.count("ABBA") - of_template.count("BABA")) <= 1
    if n_templates > 3:  # even and odd templates judge each other, so that order must not be what they differ in
        for half in (0, 1):
            once = [order for template, order in drawn.first(n_templates).forms if template % 2 == half]
            assert abs(once.count("ABBA") - once.count("BABA")) <= 1


@pytest.mark.parametrize(("whose", "sizes"), [("own", (40, 80, 200)), ("paper", (480, 40))])
def test_sizes_of_profiles_give_each_sentence_both_orders_as_often(whose, sizes, embedded):
    sentences, _ = templates.SENTENCES[whose]
    for n_prompts in sizes:
        drawn = templates.draw_ioi(embedded, n_prompts=n_prompts, seed=0, templates=sentences, half=0)
        counts = Counter(drawn.forms)
        assert len(counts) == 2 * len(sentences)
        if n_prompts % (2 * len(sentences)) == 0:
            assert len(set(counts.values())) == 1


def test_halves_of_the_names_share_none(embedded):
    halves = [templates.draw_ioi(embedded, n_prompts=60, seed=0, half=half) for half in (0, 1)]
    names = [{*data.io, *data.subject, *(name for row in data.others for name in row)} for data in halves]
    assert len(names[0]) > 20 and len(names[1]) > 20 and not names[0] & names[1]


def test_another_half_is_refused(embedded, refused):
    with refused("half 2", "legal are 0, 1, or None"):
        templates.draw_ioi(embedded, n_prompts=1, seed=0, half=2)
