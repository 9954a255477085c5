"""Sentences that judge a thing, from templates with adjectives of known valence, or from film reviews (SST-2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from helpers import InputError
from helpers.folds import make_generator
from helpers.models import LoadedModel
from helpers.prompts import encode_word, keep_single_tokens

Family = Literal["copula", "attributive", "opinion", "question", "negation"]
# One judgement a sentence; {THING} is what is judged, {WORD} the judging adjective. Families differ in how it is said;
# negation denies what copula and opinion say, in the same words.
TEMPLATES: dict[Family, tuple[str, ...]] = {
    "copula": ("The{THING} was{WORD} that day.", "In the end the{THING} turned out to be{WORD} for all of us."),
    "attributive": (
        "We still talk about the{WORD}{THING} from last year.",
        "That{WORD}{THING} was on everyone's mind afterwards.",
    ),
    "opinion": (
        "My sister found the{THING}{WORD} from start to finish.",
        "People here consider the{THING}{WORD} in every way.",
    ),
    "question": (
        "Do you remember how{WORD} the{THING} was last time?",
        "Who would have guessed how{WORD} the{THING} would be?",
    ),
    "negation": (
        "The{THING} was not{WORD} that day.",
        "In the end the{THING} did not turn out to be{WORD} for all of us.",
        "My sister never found the{THING}{WORD} from start to finish.",
        "People here do not consider the{THING}{WORD} in every way.",
    ),
}
CUE = " Overall, it was"
"""After each sentence, so that the model is about to say what it thinks."""
VERDICT_WORDS = ("good great excellent wonderful amazing".split(), "bad terrible awful horrible disappointing".split())
"""What the model may say then."""
THINGS = "film book hotel meal concert song party speech game trip show lesson story house garden play".split()
ADJECTIVES = (Path(__file__).parent / "data" / "adjectives.txt").read_text("utf-8").split()
"""Candidates; their sign is that of their valence in VADER's lexicon."""
SST2 = {
    "repo_id": "stanfordnlp/sst2",
    "filename": "data/validation-00000-of-00001.parquet",
    "revision": "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb",
}
SST2_SHA256 = "fb00fe008f6828f86ba2beda8415a4cf5da0c884f21c5f238c87131b5aa19529"


@dataclass(frozen=True)
class Sentiment:
    """Sentences that judge a thing by one word, each followed by a cue to judge it overall."""

    texts: tuple[str, ...]
    labels: tuple[bool, ...]
    """Whether the judgement is favourable; a negation turns that of the word round."""
    words: tuple[str, ...]
    valences: tuple[float, ...]
    """Of the words, from -4 to 4."""
    families: tuple[str, ...]
    templates: tuple[str, ...]
    positions: dict[str, tuple[int, ...]]
    """For each text the position of its `word`, of the `end` of its sentence, the `second_to_last` and the `last`."""

    def select(self, rows: Sequence[int]) -> Sentiment:
        """Some of the texts."""
        names = ("texts", "labels", "words", "valences", "families", "templates")
        taken = {name: tuple(getattr(self, name)[row] for row in rows) for name in names}
        return Sentiment(
            **taken, positions={name: tuple(at[row] for row in rows) for name, at in self.positions.items()}
        )

    def table(self) -> pd.DataFrame:
        """One row for each text, to read."""
        names = {"text": "texts", "favourable": "labels", "word": "words", "valence": "valences", "family": "families"}
        return pd.DataFrame({name: getattr(self, source) for name, source in names.items()} | self.positions)


def encode_verdicts(loaded: LoadedModel) -> tuple[list[int], list[int]]:
    """The first token of each word of praise, and of each of blame, as it stands within a text.

    Args:
        loaded: with a tokenizer.
    """
    praise, blame = ([encode_word(loaded, word) for word in side] for side in VERDICT_WORDS)
    return praise, blame


def draw_sentiment(
    loaded: LoadedModel, *, n_words: int, seed: int, families: Sequence[Family] | None = None
) -> Sentiment:
    """Each of `n_words` favourable and as many unfavourable adjectives once in every template of the families.

    The adjectives, and the things that they judge, are those that are one token in the model at hand, with a valence
    of at least 1 on either side of zero in the lexicon of VADER (Hutto and Gilbert, 2014).

    Args:
        loaded: whose single tokens are chosen from.
        n_words: on either side.
        seed: of words and things.
        families: of `TEMPLATES`; by default all but negation.

    Raises:
        InputError: unknown family, no tokenizer, too few adjectives that are single tokens.
    """
    families = [family for family in TEMPLATES if family != "negation"] if families is None else families
    if unknown := [family for family in families if family not in TEMPLATES]:
        raise InputError(f"unknown family {unknown[0]!r}: legal are {', '.join(TEMPLATES)}")
    valences = {word: valence for word, valence in _valences().items() if word in ADJECTIVES and abs(valence) >= 1}
    known = [word for word in dict.fromkeys(ADJECTIVES) if word in valences]
    generator = make_generator(seed)
    chosen = []
    single = keep_single_tokens(loaded, known)
    for side in (1, -1):
        words = [word for word in single if side * valences[word] > 0]
        if not 1 <= n_words <= len(words):
            kind = "favourable" if side > 0 else "unfavourable"
            raise InputError(
                f"{n_words} {kind} adjectives are asked for: legal are 1 to {len(words)}, those that are single "
                f"tokens of {loaded.card.name!r}"
            )
        chosen += generator.permutation(words)[:n_words].tolist()
    things = keep_single_tokens(loaded, THINGS)
    if not things:
        raise InputError(f"no thing to judge is a single token of {loaded.card.name!r}: legal is another tokenizer")
    rows = []
    for family in families:
        for template in TEMPLATES[family]:
            for word in chosen:
                thing = generator.choice(things)
                sentence = template.format(THING=f" {thing}", WORD=f" {word}")
                favourable = (valences[word] > 0) != (family == "negation")
                rows.append((sentence + CUE, favourable, word, valences[word], family, template))
    return _with_positions(loaded, rows, at_word=True)


def draw_sst2(loaded: LoadedModel, *, n_sentences: int, seed: int) -> Sentiment:
    """Sentences of film reviews from the validation set of SST-2 (Socher et al., 2013), as many of each class.

    They are of the family "SST-2", each is its own word and has no valence, and none has a position `word`. The file
    comes from the hub once, at a pinned revision, and is checked against its hash.

    Raises:
        InputError: an odd number, more than there are, or the file can't be had.
    """
    table = pd.read_parquet(_sst2_file())
    most = 2 * int(table["label"].value_counts().min())
    if not 2 <= n_sentences <= most or n_sentences % 2:
        raise InputError(f"{n_sentences} sentences of SST-2 are asked for: legal are even numbers from 2 to {most}")
    generator = make_generator(seed)
    rows = []
    for label in (0, 1):
        for sentence in generator.permutation(table["sentence"][table["label"] == label])[: n_sentences // 2]:
            rows.append((sentence.strip() + CUE, bool(label), sentence, 0.0, "SST-2", "SST-2"))
    return _with_positions(loaded, rows, at_word=False)


def _sst2_file() -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub_id, revision = SST2["repo_id"], SST2["revision"]
    place = {"repo_id": hub_id, "filename": SST2["filename"], "revision": revision}
    download = partial(hf_hub_download, **place, repo_type="dataset")
    try:
        try:
            file = Path(download(local_files_only=True))
        except LocalEntryNotFoundError:
            # One plain question first: without a network the download itself would try for half a minute.
            HfApi().dataset_info(hub_id, revision=revision, timeout=20)
            file = Path(download())
    except Exception as error:  # the hub's client raises errors of several libraries
        raise InputError(
            f"data set {hub_id!r} is not in the cache and could not be downloaded ({type(error).__name__}): "
            "connect to the network once, or ask for 0 of its sentences"
        ) from None
    if hashlib.sha256(file.read_bytes()).hexdigest() != SST2_SHA256:
        raise InputError(f"file {file} is damaged: delete it, and it will be downloaded again")
    return file


def _with_positions(
    loaded: LoadedModel, rows: Sequence[tuple[str, bool, str, float, str, str]], *, at_word: bool
) -> Sentiment:
    texts, labels, words, valences, families, templates = zip(*rows, strict=True)
    ids = [loaded.encode(text) for text in texts]
    n_cue = len(loaded.encode_after(CUE))
    positions = {
        "end": tuple(len(row) - n_cue - 1 for row in ids),
        "second_to_last": tuple(len(row) - 2 for row in ids),
        "last": tuple(len(row) - 1 for row in ids),
    }
    if at_word:
        word = tuple(row.index(encode_word(loaded, word)) for row, word in zip(ids, words, strict=True))
        positions = {"word": word} | positions
    return Sentiment(texts, labels, words, valences, families, templates, positions)


def _valences() -> dict[str, float]:
    """The mean valence of each word of VADER's lexicon, -4 to 4, by ten raters."""
    from importlib import resources

    text = (resources.files("vaderSentiment") / "vader_lexicon.txt").read_text(encoding="utf-8")
    return {row.split("\t")[0]: float(row.split("\t")[1]) for row in text.splitlines()}
