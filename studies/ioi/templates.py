"""Prompts for indirect object identification from templates, names, places and objects, and their corruptions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Literal, get_args

from helpers import InputError
from helpers.folds import make_generator
from helpers.models import LoadedModel
from helpers.prompts import NAMES, as_count, encode_word, is_row, keep_single_tokens

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
    "During the party at the{PLACE},{A} danced with{B}, and then{S} gave a{OBJECT} to",
    "Nobody but{A} and{B} stayed at the{PLACE} that night, and{S} slid a{OBJECT} over to",
    "As soon as{A} and{B} arrived at the{PLACE},{S} presented a{OBJECT} to",
    "The children{A} and{B} played behind the{PLACE} until{S} tossed a{OBJECT} to",
    "In the morning{A} and{B} cleaned the{PLACE}, and in the evening{S} carried a{OBJECT} to",
    "Some years ago{A} and{B} opened a small{PLACE}, and this week{S} mailed a{OBJECT} to",
    "A photo shows{A} and{B} in front of the{PLACE}, where{S} is holding out a{OBJECT} to",
    "Even though{A} and{B} had met only once, at the{PLACE},{S} donated a{OBJECT} to",
    "If{A} and{B} are at the{PLACE} again,{S} will surely give a{OBJECT} to",
    "There was a queue at the{PLACE}, so{A} talked to{B}, and{S} sold a{OBJECT} to",
)
HELD_OUT_TEMPLATES = (
    "Before{A} and{B} said goodbye at the{PLACE},{S} promised a{OBJECT} to",
    "On the way to the{PLACE},{A} had a chat with{B}. Later{S} lent a{OBJECT} to",
    "Since{A} and{B} felt bored in the{PLACE},{S} threw a{OBJECT} to",
    "Outside the{PLACE},{A} sat down next to{B}. After a while{S} returned the{OBJECT} to",
    "Every Sunday{A} meets{B} at the{PLACE}, and this time{S} is going to show a{OBJECT} to",
    "Once{A} and{B} had found the{PLACE},{S} described the{OBJECT} to",
    "Only{A} and{B} were left in the{PLACE}, so{S} offered the last{OBJECT} to",
    "Although{A} and{B} never liked the{PLACE},{S} took a{OBJECT} from there to",
    "The teacher saw{A} and{B} behind the{PLACE}, just as{S} was handing a{OBJECT} to",
    "Last winter{A} wrote to{B} about the{PLACE}. Now{S} is sending a{OBJECT} to",
)
"""Other sentences, in which no head was looked for."""
# The sentences of Wang et al. (2023), appendix A, as in the `BABA_TEMPLATES` of their code (easy_transformer/
# ioi_dataset.py): data, quoted so that their figures can be compared. Names, places and objects are this book's.
PAPER_TEMPLATES = (
    "Then,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} had a lot of fun at the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} were working at the{PLACE}.{S} decided to give a{OBJECT} to",
    "Then,{A} and{B} were thinking about going to the{PLACE}.{S} wanted to give a{OBJECT} to",
    "Then,{A} and{B} had a long argument, and afterwards{S} said to",
    "After{A} and{B} went to the{PLACE},{S} gave a{OBJECT} to",
    "When{A} and{B} got a{OBJECT} at the{PLACE},{S} decided to give it to",
    "When{A} and{B} got a{OBJECT} at the{PLACE},{S} decided to give the{OBJECT} to",
    "While{A} and{B} were working at the{PLACE},{S} gave a{OBJECT} to",
    "While{A} and{B} were commuting to the{PLACE},{S} gave a{OBJECT} to",
    "After the lunch,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "Afterwards,{A} and{B} went to the{PLACE}.{S} gave a{OBJECT} to",
    "Then,{A} and{B} had a long argument. Afterwards{S} said to",
    "The{PLACE}{A} and{B} went to had a{OBJECT}.{S} gave it to",
    "Friends{A} and{B} found a{OBJECT} at the{PLACE}.{S} gave it to",
)
SENTENCES = {
    "own": (IOI_TEMPLATES, HELD_OUT_TEMPLATES),
    "paper": (  # sentences that are nearly the same stand on one side
        (*PAPER_TEMPLATES[:5], *PAPER_TEMPLATES[6:8], PAPER_TEMPLATES[12]),
        (PAPER_TEMPLATES[5], *PAPER_TEMPLATES[8:12], *PAPER_TEMPLATES[13:]),
    ),
}
"""Whose sentences → those that heads are looked for in, and others to test the circuit on."""
PLACES = "store school park office garden station hospital library market beach restaurant church museum hotel".split()
OBJECTS = "ring book letter drink gift key coin ball map flower picture basket phone bottle".split()
NameOrder = Literal["ABBA", "BABA"]
Corruption = Literal[
    "p_ABC", "random_names", "order_swapped", "S2_is_IO", "order_swapped_random_names", "order_swapped_S2_is_IO"
]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)


@dataclass(frozen=True)
class IOI:
    """Prompts of which the right continuation is the indirect object, as token ids with their parts.

    The task and the corruptions are those of Wang et al. (2023); for whose sentences see `SENTENCES`.
    """

    prompts: tuple[tuple[int, ...], ...]
    template: tuple[int, ...]
    order: tuple[NameOrder, ...]
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
    def forms(self) -> list[tuple[int, NameOrder]]:
        """For each prompt its template and order; prompts of one form have each part at the same position."""
        return list(zip(self.template, self.order, strict=True))

    def first(self, n_prompts: int) -> IOI:
        """The first so many prompts, or all there are."""
        names = ("prompts", "template", "order", "io", "subject", "others")
        positions = {name: numbers[:n_prompts] for name, numbers in self.positions.items()}
        return replace(self, positions=positions, **{name: getattr(self, name)[:n_prompts] for name in names})

    def corrupted(self, kind: Corruption) -> list[list[int]]:
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


def draw_ioi(
    loaded: LoadedModel,
    *,
    n_prompts: int,
    seed: int,
    templates: Sequence[str] = IOI_TEMPLATES,
    half: Literal[0, 1] | None = None,
) -> IOI:
    """Draw prompts for indirect object identification; templates take turns, and so do orders, within a template as
    within those of even and of odd numbers.

    Names, places and objects are those that are one token in the model at hand.

    Args:
        loaded: whose single tokens are chosen from.
        n_prompts: to draw.
        seed: of names, places and objects.
        templates: texts with the slots {A} and {B} for the two people, then {S} for the one who is named again, and
            {PLACE} and {OBJECT}, each the same word wherever it stands; whether a space stands before a slot makes no
            difference.
        half: of the names, so that samples of either half share none; by default all.

    Raises:
        InputError: no tokenizer, another half, too few words of single tokens, or a template that can't be filled.
    """
    n_prompts, generator = as_count(n_prompts, "n_prompts"), make_generator(seed)
    if not is_row(templates) or not templates:
        raise InputError(f"templates {str(templates)[:60]!r}: legal are texts with slots, at least one")
    templates = [_checked_template(template) for template in templates]
    lists = {"names": NAMES, "places": PLACES, "objects": OBJECTS}
    words = {kind: keep_single_tokens(loaded, choice) for kind, choice in lists.items()}
    if half not in (None, 0, 1):
        raise InputError(f"half {half!r} of the names: legal are 0, 1, or None for all")
    words["names"] = words["names"] if half is None else words["names"][half::2]
    for kind, needed in (("names", 5), ("places", 1), ("objects", 1)):
        if len(words[kind]) < needed:
            raise InputError(
                f"only {len(words[kind])} {kind} are single tokens of {loaded.card.name!r}: legal is at least {needed}"
            )
    drawn = []
    for i in range(n_prompts):
        turn, number = divmod(i, len(templates))
        order = get_args(NameOrder)[(turn + number + number // 2) % 2]
        io, subject, *others = generator.choice(words["names"], 5, replace=False).tolist()
        first, second = (io, subject) if order == "ABBA" else (subject, io)
        place, thing = (generator.choice(words[kind]) for kind in ("places", "objects"))
        slots = {"A": first, "B": second, "S": subject, "PLACE": place, "OBJECT": thing}
        text = templates[number].format_map({slot: f" {word}" for slot, word in slots.items()})
        drawn.append((number, order, text, *(encode_word(loaded, name) for name in (io, subject, *others))))
    numbers, orders, texts, io, subjects, *others = zip(*drawn, strict=True)
    rows = [tuple(loaded.encode(text)) for text in texts]
    for row, name, again, text in zip(rows, io, subjects, texts, strict=True):
        if (row.count(name), row.count(again)) != (1, 2):
            raise InputError(f"a name stands too often in {text!r}: legal are templates without names of their own")
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


def list_absent(loaded: LoadedModel, data: IOI) -> list[list[int]]:
    """For each prompt all names of a single token but the two that stand in it: as many for each."""
    names = [encode_word(loaded, name) for name in keep_single_tokens(loaded, NAMES)]
    return [[name for name in names if name not in pair] for pair in data.answers]


def _checked_template(template: str) -> str:
    """A template without spaces before its slots, whose words bring one along."""
    slots = []
    try:
        for before, slot, form, conversion in Formatter().parse(template):
            if slot is not None:
                slots.append((slot, before.strip(), form, conversion))
    except (TypeError, ValueError):
        raise InputError(f"template {template!r} can't be read: legal are texts with slots such as {{A}}") from None
    names = [slot for slot, *_ in slots]
    people = [slot for slot in names if slot not in ("PLACE", "OBJECT")]
    if people != ["A", "B", "S"]:
        raise InputError(f"template {template!r}: legal are {{A}} and {{B}}, then {{S}}, and {{PLACE}} and {{OBJECT}}")
    if not slots[0][1] or any(form or conversion for *_, form, conversion in slots):
        raise InputError(f"template {template!r}: legal are slots without formats, a word before the first")
    return re.sub(r" +(?=\{)", "", template)
