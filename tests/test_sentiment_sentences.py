"""Sentences that judge: every adjective once in every template, and as many of SST-2's of each class."""

import dataclasses
import hashlib
from collections import Counter

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import hooks, prompts
from studies.sentiment import sentences
from studies.sentiment.sentences import CUE, VERDICT_WORDS, draw_sentiment, draw_sst2


@pytest.fixture(scope="module", params=["smollm2", "gpt2"])
def judging(request, embedded):
    """Two tokenizers that have enough adjectives."""
    if request.param == "smollm2":
        return embedded
    return dataclasses.replace(embedded, tokenizer=request.getfixturevalue("gpt2_tokenizer"))


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


@pytest.mark.slow
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


# SST-2


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A file as SST-2's, and what its hash would be."""
    file = tmp_path / "reviews.parquet"
    texts = [f"number {i} is a film . " for i in range(9)]
    pd.DataFrame({"idx": range(9), "sentence": texts, "label": [0, 1] * 4 + [0]}).to_parquet(file)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: str(file))
    monkeypatch.setattr(sentences, "SST2_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
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
