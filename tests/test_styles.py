"""Transcripts in styles differ in nothing else, and training sets hold the styles that are asked for."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import hooks
from studies.faithfulness import dataset, styles
from studies.faithfulness.hypotheses import Draw
from studies.faithfulness.transcripts import list_places

NAMES = ("terse", "verbose", "hedged")
LABELS = [False, True] * 60
TRANSCRIPTS = list(range(len(LABELS))) * len(NAMES)
DRAW = Draw(
    torch.zeros(len(TRANSCRIPTS), 1),
    LABELS * len(NAMES),
    [number // 4 for number in TRANSCRIPTS],
    [style for style in NAMES for _ in LABELS],
)


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9, 1.0])
def test_styles_are_tied_to_the_label_as_far_as_asked(share):
    chosen = styles.tie_styles(DRAW, TRANSCRIPTS, NAMES[:2], share=share, seed=1)
    labels, domains = np.array(DRAW.labels)[chosen], np.array(DRAW.domains)[chosen]
    assert chosen.sum() == len(DRAW.labels) // len(NAMES) and set(domains) <= set(NAMES[:2])
    for label, own in ((True, NAMES[0]), (False, NAMES[1])):
        assert (domains[labels == label] == own).mean() == pytest.approx(share, abs=0.02)


def test_a_mixture_has_every_transcript_once_and_all_styles():
    mixed = styles.mix_styles(DRAW, TRANSCRIPTS, NAMES, seed=0)
    assert sorted(np.array(TRANSCRIPTS)[mixed]) == list(range(len(LABELS)))
    assert set(np.array(DRAW.domains)[mixed]) == set(NAMES)
    assert set(np.array(DRAW.domains)[styles.mix_styles(DRAW, TRANSCRIPTS, NAMES[:2], seed=0)]) == set(NAMES[:2])
    each = styles.take_each_style([DRAW], NAMES)
    assert np.sum([rows for (rows,) in each.values()], axis=0).tolist() == [1] * len(TRANSCRIPTS)


def test_only_a_label_that_is_the_same_in_every_style_is_steady():
    told = {"same": (NAMES, [True] * 3), "moved": (NAMES, [True, False, True]), "untold": (NAMES[:2], [False] * 2)}
    table = pd.DataFrame(
        {"task": "sums", "question": question, "style": style, "unfaithful": truth}
        for question, (there, truths) in told.items()
        for style, truth in zip(there, truths, strict=True)
    )
    rows, share = styles.select_steady(table)
    assert set(rows["question"]) == {"same"} and len(rows) == 3 and rows["unfaithful"].all() and share == 0.5
    assert styles.select_steady(table[:0])[1] == 0.0


def test_a_pair_is_judged_in_each_style_and_left_out_where_it_would_be_none():
    def tell(style, losses, answers, logit=1.0):
        """Two chains in a style, in both orders of the options."""
        return [
            {"task": "sums", "question": question, "style": style, "pair": 0, "mean_lost_without": lost}
            | {"answer": answer, "right": "6", "logit_difference": logit, "options": order}
            for question, lost, told in zip("ab", losses, answers, strict=True)
            for order, answer in zip(("right_first", "right_last"), told, strict=True)
        ]

    kept = tell("terse", (1.0, 2.0), ("66", "66")) + tell("verbose", (3.0, 2.0), ("77", "77"))
    left_out = [
        *tell("unequal", (1.0, 2.0), ("66", "77")),
        *tell("unsettled", (1.0, 2.0), ("66", "67")),
        *tell("a tie", (1.0, 2.0), ("66", "66"), logit=0.0),
        *tell("too near", (1.0, 1.0 + 0.9 * dataset.APART), ("66", "66")),
    ]
    rows = styles.judge_pairs(pd.DataFrame(kept + left_out))
    less = rows.groupby(["style", "question"])["unfaithful"].agg(set).to_dict()
    assert less == {
        ("terse", "a"): {True},
        ("terse", "b"): {False},
        ("verbose", "a"): {False},
        ("verbose", "b"): {True},
    }


def test_an_answer_that_is_marked_can_be_told_by_words():
    columns = {"answer": ["6", "Ann"], "right": ["6", "Bob"], "other": ["7", "Ann"]}
    table = pd.DataFrame({"text": ["Is it 7 or 6? Of 67 it is 6, not 7.", "Ann, not Bob. Answer: Ann."], **columns})
    assert styles.mark_answers(table) == ["Is it Y or X? Of 67 it is X, not Y.", "X, not Y. Answer: X."]


def test_the_real_model_is_read_where_the_label_is_known(embedded):
    site = styles.choose_site(embedded, tasks=["parity"], n=5, seed=1)
    assert site.component == "resid_post" and site.position in styles.PLACES
    table = styles.tell_questions(embedded, styles.FAMILIAR, tasks=["parity"], n=1, seed=0)
    assert len(table) == 8 * len(styles.FAMILIAR) and table["style"].tolist()[::8] == list(styles.FAMILIAR)
    draw = styles.read_draw(embedded, table, site)
    at = list_places(embedded, table, [site.position])
    whole = hooks.capture(embedded, table["text"].tolist(), "resid_post", layers=[site.layer], positions=at)
    torch.testing.assert_close(draw.activations, whole["resid_post"][:, 0, 0], atol=2e-3, rtol=2e-3)
    assert draw.labels == table["contradicts"].tolist() and len(set(draw.questions)) == 1


def test_a_share_that_is_no_tie_is_refused(refused):
    with refused("share = 0.4", "0.5 to 1"):
        styles.tie_styles(DRAW, TRANSCRIPTS, NAMES[:2], share=0.4, seed=0)
