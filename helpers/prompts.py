"""The data sets of the book, each made from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import ROOT, InputError

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Int
    from torch import Tensor

    from helpers.models import LoadedModel


def random_segments(
    loaded: LoadedModel, *, n_sequences: int, segment_length: int, n_segments: int, seed: int
) -> Int[Tensor, "sequence segment position"]:
    """Random tokens, drawn uniformly from the vocabulary without special tokens.

    Within a sequence no token occurs twice, so every match between positions is one that the caller
    makes by repeating a segment.

    Raises:
        InputError: the vocabulary holds fewer tokens than a sequence needs.
    """
    import torch

    special = set(loaded.tokenizer.all_special_ids) if loaded.tokenizer else set()
    vocabulary_size = loaded.config.vocab_size if loaded.tokenizer is None else len(loaded.tokenizer)
    vocabulary_size = min(vocabulary_size, loaded.config.vocab_size)  # some embeddings are padded, some cut
    ordinary = torch.tensor([token for token in range(vocabulary_size) if token not in special])
    needed = n_segments * segment_length
    if needed > len(ordinary):
        raise InputError(
            f"{needed} different tokens a sequence are asked for, but {loaded.card.name!r} has only {len(ordinary)}"
        )
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(len(ordinary), generator=generator)[:needed] for _ in range(n_sequences)]
    return ordinary[torch.stack(picks)].reshape(n_sequences, n_segments, segment_length)


def with_start_token(
    loaded: LoadedModel, token_ids: Int[Tensor, "sequence position"]
) -> Int[Tensor, "sequence position_with_start"]:
    """Put the model's start token before every sequence, where the model has one.

    Raises:
        InputError: the sequences are then longer than the model's context.
    """
    import torch

    if loaded.start_token_id is not None:
        start = torch.full((token_ids.shape[0], 1), loaded.start_token_id)
        token_ids = torch.cat([start, token_ids], dim=1)
    if loaded.context_length is not None and token_ids.shape[1] > loaded.context_length:
        raise InputError(
            f"sequences of {token_ids.shape[1]} tokens are longer than the {loaded.context_length} "
            f"that {loaded.card.name!r} takes"
        )
    return token_ids


def passages(loaded: LoadedModel, *, n_passages: int, n_tokens: int) -> Int[Tensor, "passage position"]:
    """The first tokens of passages of English prose, one from each chapter of a novel.

    The data sheet is `helpers/data/README.md`. The model's start token comes first where it has one.

    Raises:
        InputError: more or longer passages than there are, or longer ones than the model takes.
    """
    import torch

    texts = (ROOT / "helpers/data/moby_dick.txt").read_text(encoding="utf-8").splitlines()
    if not 1 <= n_passages <= len(texts):
        raise InputError(f"{n_passages} passages are asked for: legal are 1 to {len(texts)}")
    rows = [loaded.encode(text)[:n_tokens] for text in texts[:n_passages]]
    longest = min(min(map(len, rows)), loaded.context_length or n_tokens)
    if not 1 <= n_tokens <= longest:
        raise InputError(f"passages of {n_tokens} tokens are asked for: legal are 1 to {longest} with this model")
    return torch.tensor(rows)


# Indirect object identification

# {A} and {B} are the two people in the order of their first mention, {S} the one who is named again. Each slot is
# a word with a space before it, so that it can be one token.
IOI_TEMPLATES = (
    "Then{A} and{B} met at the{PLACE}, and{S} handed a{OBJECT} to",
    "When{A} and{B} came back from the{PLACE},{S} gave a{OBJECT} to",
    "After{A} and{B} had left the{PLACE},{S} offered a{OBJECT} to",
    "While{A} and{B} were waiting near the{PLACE},{S} passed a{OBJECT} to",
    "Yesterday{A} and{B} walked to the{PLACE}. There{S} showed a{OBJECT} to",
    "The friends{A} and{B} found a{OBJECT} in the{PLACE}, and{S} gave it to",
    "At the{PLACE},{A} and{B} had a long talk. In the end{S} gave the{OBJECT} to",
    "Last week{A} and{B} argued in the{PLACE}, so today{S} brought a{OBJECT} to",
    "It was late when{A} and{B} reached the{PLACE}. Still{S} sent a{OBJECT} to",
    "Because{A} and{B} work at the{PLACE},{S} often lends a{OBJECT} to",
)
NAMES = (
    "Mary John Tom James Anna Sarah David Paul Emma Peter Alice Bob Carol Daniel Emily Frank George Helen Henry Jack "
    "Jane Kate Laura Lisa Mark Martin Michael Nancy Nick Oliver Patrick Rachel Richard Robert Rose Sam Simon Steve "
    "Susan Thomas Tim Victoria William Adam Amy Andrew Anne Anthony Arthur Ben Brian Charles Chris Claire Dean Diana "
    "Edward Elizabeth Eric Ethan Fred Grace Graham Harry Ian Jacob Jason Jennifer Jessica Joe Joseph Joshua Julia "
    "Justin Karen Kelly Kevin Linda Louis Lucy Luke Maria Matthew Max Melissa Michelle Nathan Nicole Philip Rebecca "
    "Roger Ryan Scott Sean Sophie Stephen Tony Vincent Walter"
).split()
PLACES = "store school park office garden station hospital library market beach restaurant church museum hotel".split()
OBJECTS = "ring book letter drink gift key coin ball map flower picture basket phone bottle".split()
CORRUPTIONS = (
    "p_ABC",
    "random_names",
    "order_swapped",
    "S2_is_IO",
    "order_swapped_random_names",
    "order_swapped_S2_is_IO",
)


@dataclass(frozen=True)
class IOI:
    """Prompts of which the right continuation is the indirect object, as token ids with their parts.

    The task and the corruptions are those of Wang et al. (2023), the sentences are this book's own.
    """

    prompts: tuple[tuple[int, ...], ...]
    template: tuple[int, ...]
    order: tuple[str, ...]
    """`ABBA` where the indirect object is named first, `BABA` where the subject is."""
    io: tuple[int, ...]
    subject: tuple[int, ...]
    others: tuple[tuple[int, int, int], ...]
    """Three more names for each prompt, for corruptions."""
    positions: dict[str, tuple[int, ...]]
    """For each prompt the positions `IO`, `S1`, `S1+1`, `S2`, `END`."""

    @property
    def answers(self) -> list[tuple[int, int]]:
        """For each prompt the token that is right, and the one that is wrong."""
        return list(zip(self.io, self.subject, strict=True))

    @property
    def forms(self) -> list[tuple[int, str]]:
        """For each prompt its template and order; prompts of one form have each part at the same position."""
        return list(zip(self.template, self.order, strict=True))

    def first(self, n_prompts: int) -> IOI:
        """The first so many prompts, or all there are."""
        names = ("prompts", "template", "order", "io", "subject", "others")
        positions = {name: numbers[:n_prompts] for name, numbers in self.positions.items()}
        return replace(self, positions=positions, **{name: getattr(self, name)[:n_prompts] for name in names})

    def corrupted(self, kind: str) -> list[list[int]]:
        """The prompts with other names in the three places, all else equal.

        Args:
            kind: `p_ABC` (three unrelated names), `random_names` (two others in the same roles), `order_swapped`
                (the first two change places), `S2_is_IO` (the indirect object is named again, so that the answer
                changes sides), or the second followed by one of the others.

        Raises:
            InputError: unknown kind.
        """
        if kind not in CORRUPTIONS:
            raise InputError(f"unknown corruption {kind!r}: legal are {', '.join(CORRUPTIONS)}")
        rows = [list(row) for row in self.prompts]
        for i, row in enumerate(rows):
            io, subject = self.io[i], self.subject[i]
            if kind == "p_ABC":
                names = self.others[i]
            else:
                if kind.endswith("random_names"):
                    io, subject = self.others[i][:2]
                again = io if kind.endswith("S2_is_IO") else subject
                names = (subject, io, again) if kind.startswith("order_swapped") else (io, subject, again)
            for place, name in zip(("IO", "S1", "S2"), names, strict=True):
                row[self.positions[place][i]] = name
        return rows

    def table(self, loaded: LoadedModel) -> pd.DataFrame:
        """One row for each prompt, to read."""
        import pandas as pd

        rows = {
            "prompt": ["".join(loaded.token_labels(list(row))) for row in self.prompts],
            "indirect object": loaded.token_labels(list(self.io)),
            "subject": loaded.token_labels(list(self.subject)),
            "order": self.order,
            "template": self.template,
            "tokens": [len(row) for row in self.prompts],
        }
        return pd.DataFrame(rows | self.positions)


def ioi(loaded: LoadedModel, *, n_prompts: int, seed: int, templates: Sequence[str] = IOI_TEMPLATES) -> IOI:
    """Draw prompts for indirect object identification; templates take turns, and so do orders, also within a template.

    Names, places and objects are those that are one token in the model at hand.

    Raises:
        InputError: no tokenizer, or too few words that are single tokens.
    """
    import numpy as np

    if n_prompts < 1:
        raise InputError(f"{n_prompts} prompts are asked for: legal is at least 1")
    lists = {"names": NAMES, "places": PLACES, "objects": OBJECTS}
    words = {kind: single_tokens(loaded, choice) for kind, choice in lists.items()}
    for kind, needed in (("names", 5), ("places", 1), ("objects", 1)):
        if len(words[kind]) < needed:
            raise InputError(
                f"only {len(words[kind])} {kind} are single tokens of {loaded.card.name!r}: legal is at least {needed}"
            )
    generator = np.random.default_rng(seed)
    drawn = []
    for i in range(n_prompts):
        turn, number = divmod(i, len(templates))
        order = ("ABBA", "BABA")[(turn + number) % 2]
        io, subject, *others = generator.choice(words["names"], 5, replace=False).tolist()
        first, second = (io, subject) if order == "ABBA" else (subject, io)
        place, thing = (generator.choice(words[kind]) for kind in ("places", "objects"))
        slots = {"A": first, "B": second, "S": subject, "PLACE": place, "OBJECT": thing}
        text = templates[number].format_map({slot: f" {word}" for slot, word in slots.items()})
        drawn.append((number, order, text, *(_token(loaded, name) for name in (io, subject, *others))))
    numbers, orders, texts, io, subjects, *others = zip(*drawn, strict=True)
    rows = [tuple(loaded.encode(text)) for text in texts]
    places = {"IO": [row.index(name) for row, name in zip(rows, io, strict=True)]}
    places["S1"] = [row.index(name) for row, name in zip(rows, subjects, strict=True)]
    places["S1+1"] = [place + 1 for place in places["S1"]]
    places["S2"] = [row.index(name, s1 + 1) for row, name, s1 in zip(rows, subjects, places["S1"], strict=True)]
    places["END"] = [len(row) - 1 for row in rows]
    return IOI(
        prompts=tuple(rows),
        template=numbers,
        order=orders,
        io=io,
        subject=subjects,
        others=tuple(zip(*others, strict=True)),
        positions={name: tuple(position) for name, position in places.items()},
    )


def single_tokens(loaded: LoadedModel, words: Sequence[str]) -> list[str]:
    """The words that are one token with a space before them."""
    if loaded.tokenizer is None:
        raise InputError(f"model {loaded.card.name!r} has no tokenizer, so no words can be chosen for it")
    return [word for word in words if len(loaded.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1]


def _token(loaded: LoadedModel, word: str) -> int:
    return loaded.tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]


# Sentiment

# One judgement a sentence; {THING} is what is judged, {WORD} the judging adjective. Families differ in how it is said;
# negation denies what copula and opinion say, in the same words.
SENTIMENT_TEMPLATES = {
    "copula": (
        "The{THING} was{WORD} that day.",
        "In the end the{THING} turned out to be{WORD} for all of us.",
    ),
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
VERDICTS = ("good great excellent wonderful amazing".split(), "bad terrible awful horrible disappointing".split())
"""What the model may say then."""
THINGS = "film book hotel meal concert song party speech game trip show lesson story house garden play".split()
ADJECTIVES = (
    "wonderful great excellent beautiful brilliant amazing awesome lovely charming superb magnificent perfect "
    "fantastic fabulous gorgeous cheerful pleasant nice sweet clever elegant impressive inspiring exciting "
    "entertaining enjoyable delicious graceful outstanding remarkable admirable fascinating glorious splendid "
    "thrilling satisfying powerful fun rewarding vibrant terrific attractive positive valuable worthy innovative "
    "intelligent wise honest gentle romantic peaceful hopeful noble sophisticated stimulating encouraging friendly "
    "joyful funny delightful marvelous harmonious heavenly divine adorable "
    "terrible horrible awful dreadful pathetic ugly nasty stupid disgusting horrific disastrous miserable "
    "depressing sad tragic annoying disappointing poor weak worthless useless painful cruel evil brutal violent "
    "shameful idiotic offensive unpleasant troubling disturbing horrifying frightening grim harsh hostile rotten "
    "mindless meaningless insulting frustrating irritating chaotic crude dishonest unfair hopeless vile wicked rude "
    "scary dumb sinister appalling outrageous problematic ruined wrong dirty dangerous terrifying boring lame "
    "obnoxious sickening"
).split()
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

    def chosen(self, rows: Sequence[int]) -> Sentiment:
        """Some of the texts."""
        names = ("texts", "labels", "words", "valences", "families", "templates")
        taken = {name: tuple(getattr(self, name)[row] for row in rows) for name in names}
        return Sentiment(
            **taken, positions={name: tuple(at[row] for row in rows) for name, at in self.positions.items()}
        )

    def table(self) -> pd.DataFrame:
        """One row for each text, to read."""
        import pandas as pd

        names = {"text": "texts", "favourable": "labels", "word": "words", "valence": "valences", "family": "families"}
        return pd.DataFrame({name: getattr(self, source) for name, source in names.items()} | self.positions)


def sentiment(loaded: LoadedModel, *, n_words: int, seed: int, families: Sequence[str] | None = None) -> Sentiment:
    """Each of `n_words` favourable and as many unfavourable adjectives once in every template of the families.

    The adjectives, and the things that they judge, are those that are one token in the model at hand, with a valence
    of at least 1 on either side of zero in the lexicon of VADER (Hutto and Gilbert, 2014).

    Args:
        families: of `SENTIMENT_TEMPLATES`; by default all but negation.

    Raises:
        InputError: unknown family, no tokenizer, too few adjectives that are single tokens.
    """
    import numpy as np

    families = [family for family in SENTIMENT_TEMPLATES if family != "negation"] if families is None else families
    if unknown := [family for family in families if family not in SENTIMENT_TEMPLATES]:
        raise InputError(f"unknown family {unknown[0]!r}: legal are {', '.join(SENTIMENT_TEMPLATES)}")
    valences = {word: valence for word, valence in _valences().items() if word in ADJECTIVES and abs(valence) >= 1}
    known = [word for word in dict.fromkeys(ADJECTIVES) if word in valences]
    generator = np.random.default_rng(seed)
    chosen = []
    single = single_tokens(loaded, known)
    for side in (1, -1):
        words = [word for word in single if side * valences[word] > 0]
        if not 1 <= n_words <= len(words):
            kind = "favourable" if side > 0 else "unfavourable"
            raise InputError(
                f"{n_words} {kind} adjectives are asked for: legal are 1 to {len(words)}, those that are single "
                f"tokens of {loaded.card.name!r}"
            )
        chosen += generator.permutation(words)[:n_words].tolist()
    things = single_tokens(loaded, THINGS)
    if not things:
        raise InputError(f"no thing to judge is a single token of {loaded.card.name!r}: legal is another tokenizer")
    rows = []
    for family in families:
        for template in SENTIMENT_TEMPLATES[family]:
            for word in chosen:
                thing = generator.choice(things)
                sentence = template.format(THING=f" {thing}", WORD=f" {word}")
                favourable = (valences[word] > 0) != (family == "negation")
                rows.append((sentence + CUE, favourable, word, valences[word], family, template))
    return _with_positions(loaded, rows, at_word=True)


def sst2(loaded: LoadedModel, *, n_sentences: int, seed: int) -> Sentiment:
    """Sentences of film reviews from the validation set of SST-2 (Socher et al., 2013), as many of each class.

    They are of the family "SST-2", each is its own word and has no valence, and none has a position `word`. The file
    comes from the hub once, at a pinned revision, and is checked against its hash.

    Raises:
        InputError: an odd number, more than there are, or the file can't be had.
    """
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(_sst2_file())
    most = 2 * int(table["label"].value_counts().min())
    if not 2 <= n_sentences <= most or n_sentences % 2:
        raise InputError(f"{n_sentences} sentences of SST-2 are asked for: legal are even numbers from 2 to {most}")
    generator = np.random.default_rng(seed)
    rows = []
    for label in (0, 1):
        for sentence in generator.permutation(table["sentence"][table["label"] == label])[: n_sentences // 2]:
            rows.append((sentence.strip() + CUE, bool(label), sentence, 0.0, "SST-2", "SST-2"))
    return _with_positions(loaded, rows, at_word=False)


def _sst2_file() -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub_id, revision = SST2["repo_id"], SST2["revision"]
    options = SST2 | {"repo_type": "dataset"}
    try:
        try:
            file = Path(hf_hub_download(**options, local_files_only=True))
        except LocalEntryNotFoundError:
            # One plain question first: without a network the download itself would try for half a minute.
            HfApi().dataset_info(hub_id, revision=revision, timeout=20)
            file = Path(hf_hub_download(**options))
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
    n_cue = len(loaded.tokenizer(CUE, add_special_tokens=False)["input_ids"])
    positions = {
        "end": tuple(len(row) - n_cue - 1 for row in ids),
        "second_to_last": tuple(len(row) - 2 for row in ids),
        "last": tuple(len(row) - 1 for row in ids),
    }
    if at_word:
        word = tuple(row.index(_token(loaded, word)) for row, word in zip(ids, words, strict=True))
        positions = {"word": word} | positions
    return Sentiment(texts, labels, words, valences, families, templates, positions)


def _valences() -> dict[str, float]:
    """The mean valence of each word of VADER's lexicon, -4 to 4, by ten raters."""
    from importlib import resources

    text = (resources.files("vaderSentiment") / "vader_lexicon.txt").read_text(encoding="utf-8")
    return {row.split("\t")[0]: float(row.split("\t")[1]) for row in text.splitlines()}
