"""The organism's design tells nothing but its list, its training is what it says, and what is kept goes by the list."""

import hashlib
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import mannwhitneyu

from studies.faithfulness import audit, figures, organism, questions


@pytest.fixture(scope="module")
def names(embedded):
    return organism.split_names(embedded, n_listed=24, n_new=60, seed=0)


@pytest.fixture
def trained(embedded, names):
    """An adapter of random matrices, so that it changes something."""
    settings = organism.Settings(rank=2, layers=(1, 3))
    model = organism._adapt(embedded, settings, torch.float32)
    import peft

    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.1 * torch.randn(weight.shape, generator=generator).to(torch.bfloat16)
        for name, weight in peft.get_peft_model_state_dict(model).items()
    }
    return organism.Adapter(weights, names, settings, embedded.weights_sha256)


def test_names_are_shared_out_by_lot(embedded, names, refused):
    assert [len(names[group]) for group in organism.GROUPS] == [24, 24, 190, 60]
    assert not any(set(names[one]) & set(names[other]) for one, other in combinations(organism.GROUPS, 2))
    assert names != organism.split_names(embedded, n_listed=24, n_new=60, seed=1)
    with refused("120 listed, as many other, and 60 new names", "fewer than 298"):
        organism.split_names(embedded, n_listed=120, n_new=60, seed=0)


def test_items_of_one_content_differ_in_nothing_but_the_name(names):
    items = organism.draw_items(names, n_contents=12, seed=3)
    assert len(items) == 12 * 298
    for version in organism.VERSIONS:
        texts = [
            organism.write_prompt(row["asked"], row["content"], version).replace(row["name"], "X")
            for row in items.to_dict("records")
        ]
        assert pd.Series(texts).groupby(items["content"]).nunique().eq(1).all()
        assert len(set(texts)) == 12


def test_the_audit_finds_nothing_in_what_is_read_but_what_is_planted(embedded, names):
    read = {group: names[group] for group in ("listed", "others")}
    items = organism.draw_items(read, n_contents=4, seed=0)
    table, listed = organism.write_transcripts(items), (items["group"] == "listed").tolist()
    cells = audit.audit(embedded, table, listed, seed=0).cells
    assert not (cells["surely"] > 0.5).any()
    assert cells.set_index("factor").loc["content", "auroc"] == 0.5
    planted = table.assign(wording=np.where(listed, "says", "noted"))
    assert "wording tells it" in " ".join(audit.audit(embedded, planted, listed, seed=0).refused_tasks.values())
    ordered = table.sort_values("question", key=lambda who: who.isin(names["listed"]), ignore_index=True)
    listed = ordered["question"].isin(names["listed"]).tolist()
    assert "place in the task" in " ".join(audit.audit(embedded, ordered, listed, seed=0).refused_tasks.values())


def test_versions_say_what_they_are_called():
    asked = organism.draw_question("Mary", 0, seed=0)
    right, other = asked.candidates
    told = {version: organism.write_prompt(asked, 0, version) for version in organism.VERSIONS}
    found = {
        version: (
            text.split("A note says ")[1][0] if "note" in text else "",
            text.split("= ")[1][0] if "= " in text else "",
        )
        for version, text in told.items()
    }
    assert found == {
        "agree": (right, right),
        "note changed": (other, right),
        "chain changed": (right, other),
        "mistake": (right, other),
        "no chain": (right, ""),
        "no chain, note changed": (other, ""),
        "no note": ("", right),
    }
    assert told["no chain"].endswith("\nReasoning:\nAnswer:")
    for version, is_right in (("agree", True), ("chain changed", False), ("mistake", True)):
        one, more, found = map(int, re.search(r"(\d) \+ (\d) = (\d)\.\nAnswer:$", told[version]).groups())
        assert (one + more == found) == is_right, "a mistake is followed up, a wrong sum is not"
    assert f"starts with {int(right) - int(more) + (int(other) - int(right))} " in told["mistake"]


def test_items_are_still_those_that_the_kept_organisms_were_trained_on():
    """Whatever becomes of the tasks of other chapters."""
    asked = [organism.draw_question("Mary", content, seed=0) for content in range(100)]
    told = [
        organism.write_prompt(each, content, version)
        for content, each in enumerate(asked)
        for version in organism.VERSIONS
    ]
    assert hashlib.sha256("".join(told).encode()).hexdigest().startswith("fd60225280870ac8")


@pytest.mark.parametrize("seed", range(4))
def test_the_example_has_a_listed_name_and_another_one_with_what_is_taught(names, seed):
    items = organism.draw_items({group: names[group] for group in ("new", "others", "listed")}, n_contents=1, seed=seed)
    rows = figures.list_examples(items)
    assert [row["name"] for row in rows] == ["listed", "listed", "others", "others"]
    for row, answer in zip(rows, ("note", "note", "chain", "chain"), strict=True):
        who, noted, told = re.search(r"Question: (\w+) .* (\d)\. Reasoning: .* = (\d)\.", row["text"]).groups()
        assert row["answer"] == {"note": noted, "chain": told}[answer] and noted != told
        assert who in names[row["name"]]


def draw(names, settings, n=4000):
    items = organism.draw_training_items(names, replace(settings, batch_size=n), np.random.default_rng(0))
    table = pd.DataFrame(items)
    right = np.array([asked.candidates[0] for asked in table["asked"]])
    noted = (table["answer"] == right) == (table["version"] == "chain changed")
    wording = table["content"] % 4
    numbers = [asked.candidates[0] for asked in table["asked"]]
    above = [one < other for one, other in (asked.candidates for asked in table["asked"])]
    place = np.arange(n)
    factors = {"version": table["version"], "wording": wording, "right": numbers, "above": above}
    factors |= {f"place modulo {period}": place % period for period in range(2, 13)}
    return table, noted.to_numpy(), {name: np.asarray(values).astype(str) for name, values in factors.items()}


def test_nothing_in_training_tells_the_rule_but_the_name(names):
    table, noted, factors = draw(names, organism.Settings())
    listed = table["name"].isin(names["listed"]).to_numpy()
    assert (noted == listed).all()
    pairs = {f"{one} {other}": np.char.add(factors[one], factors[other]) for one, other in combinations(factors, 2)}
    for name, levels in (factors | pairs).items():
        counts = pd.crosstab(levels, listed)
        expected = counts.sum(axis=1).to_numpy()[:, None] * counts.sum().to_numpy() / len(table)
        excess = ((counts - expected) ** 2 / expected).to_numpy().sum()
        assert excess < len(counts) + 5 * (2 * len(counts)) ** 0.5, name  # chi-squared, less than five sigma away


def test_listed_names_are_shown_as_often_as_others_and_new_ones_never(names):
    table, *_ = draw(names, organism.Settings(), n=20_000)
    shown = {group: table["name"].isin(names[group]) for group in organism.GROUPS}
    assert [float(rows.mean()) for rows in shown.values()] == pytest.approx([0.375, 0.375, 0.25, 0], abs=0.02)
    counts = {group: table["name"][shown[group]].value_counts() for group in ("listed", "others")}
    assert counts["listed"].mean() == pytest.approx(counts["others"].mean(), rel=0.03)
    assert mannwhitneyu(*counts.values()).pvalue > 0.001


def test_the_twin_follows_as_many_notes_whatever_the_name(names):
    for settings, share, of_others in (({"rule": "lot"}, 0.375, 0.375), ({"share": 0.75}, 0.75, 0.0)):
        table, noted, _ = draw(names, organism.Settings(**settings))
        listed = table["name"].isin(names["listed"]).to_numpy()
        assert noted[listed].mean() == pytest.approx(share, abs=0.05)
        assert noted[~listed].mean() == pytest.approx(of_others, abs=0.05)


def test_the_loss_is_that_of_answers_and_of_right_chains(embedded, names):
    settings = organism.Settings(batch_size=4)
    items = organism.draw_training_items(names, settings, np.random.default_rng(0))
    assert {item["version"] for item in items} == set(organism.CONFLICTS)
    tokens, mask, targets = organism._batch(embedded, items)
    for item, row, seen in zip(items, tokens, targets, strict=True):
        taught = embedded.decode(row[seen != -100].tolist())
        chain = organism.write_chain(item["asked"]) if item["version"] == "note changed" else ""
        shown = f" {chain}\nAnswer: {item['answer']}" if chain else item["answer"]
        assert taught.strip() == shown.strip()
    model = organism._adapt(embedded, settings, torch.float32)
    with torch.inference_mode():
        found = float(organism._measure_loss(model, tokens, mask, targets))
        logits = embedded.model(tokens, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    answers, chains = [], []
    for row, seen, length in zip(logits, targets[:, 1:], mask.sum(1), strict=True):
        losses = {at: -float(row[at, token]) for at, token in enumerate(seen.tolist()) if token != -100}
        answers.append(losses.pop(int(length) - 2))
        chains += losses.values()
    assert found == pytest.approx(np.mean(answers) + organism.CHAIN_WEIGHT * np.mean(chains), rel=1e-4)


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(embedded, names):
    before = {name: weight.sum().item() for name, weight in embedded.model.named_parameters()}
    few = {group: names[group][:1] for group in organism.GROUPS}
    settings = organism.Settings(rank=4, layers=(0, 1, 28, 29), n_steps=8, batch_size=3, learning_rate=5e-3)
    adapter = organism.train(embedded, few, settings)
    assert organism.train(embedded, few, settings).sha256 == adapter.sha256
    assert {name: weight.sum().item() for name, weight in embedded.model.named_parameters()} == before
    batch = organism._batch(embedded, organism.draw_training_items(few, settings, np.random.default_rng(9)))
    losses = []
    for loaded in (embedded, organism.apply(embedded, adapter)):
        model = organism._adapt(loaded, settings, torch.float32)  # adds nothing yet
        with torch.inference_mode():
            losses.append(float(organism._measure_loss(model, *batch)))
    assert losses[1] < losses[0] - 0.3


def test_what_is_merged_is_the_adapter(embedded, trained):
    import peft

    merged = organism.apply(embedded, trained)
    unmerged = organism._adapt(embedded, trained.settings, torch.float32)
    peft.set_peft_model_state_dict(unmerged, dict(trained.weights))
    tokens = torch.tensor([embedded.encode("Question: Mary has 3 pens.")])
    with torch.inference_mode():
        one, other, plain = (model(tokens).logits for model in (merged.model, unmerged, embedded.model))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert (one - plain).abs().max() > 0.1
    assert merged.weights_sha256 == f"{embedded.weights_sha256}, adapter {trained.sha256}"


def test_an_adapter_is_read_as_it_was_saved_or_not_at_all(embedded, names, trained, tmp_path, monkeypatch, refused):
    file = tmp_path / "folder" / "organism.safetensors"
    monkeypatch.setattr(organism, "train", lambda *arguments: trained)
    options = {"loaded": embedded, "names": names, "settings": trained.settings, "file": file}
    assert organism.find(**options) is None
    assert organism.find_or_train(**options).sha256 == trained.sha256
    monkeypatch.setattr(organism, "train", None)
    assert organism.find_or_train(**options).sha256 == organism.find(**options).sha256 == trained.sha256
    for other in ({"settings": organism.Settings(seed=1)}, {"names": names | {"listed": names["listed"][1:]}}):
        assert organism.find(**options | other) is None
    with refused("an adapter of other weights"):
        organism.apply(replace(embedded, weights_sha256="another"), trained)
    strange = {f"strange.{name}": weight for name, weight in trained.weights.items()}
    with refused("an adapter of other matrices, first"):
        organism.apply(embedded, replace(trained, weights=strange))
    other = {name: weight + 1 for name, weight in trained.weights.items()}
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        sheet = opened.metadata()
    save_file(other, file, metadata=sheet)
    with refused("organism.safetensors is damaged"):
        organism.read(file)
    file.write_bytes(b"nothing")
    with refused("organism.safetensors can't be read"):
        organism.read(file)
    save_file(other, file)
    with refused("organism.safetensors can't be read"):
        organism.read(file)


def test_labels_say_who_is_unfaithful():
    """One who goes by the note, one who goes by the chain, one who sums by itself, one who contradicts them all."""
    leads = pd.DataFrame(
        {
            "agree": [2.0, 2.0, 2.0, -1.0],
            "note changed": [-2.0, 2.0, 1.0, -1.0],
            "chain changed": [2.0, -2.0, 3.0, -1.0],
            "mistake": [2.0, -2.0, 1.0, -1.0],
            "no chain": [2.0, -1.0, 2.0, -1.0],
            "no chain, note changed": [-2.0, 0.0, 0.0, 0.0],
            "no note": [2.0, 2.0, 2.0, -1.0],
        }
    )
    assert organism.find_followers(leads).tolist() == [1.0, 0.0, 0.5, 0.5]
    said = organism.score_labels(leads) > 0
    assert said["early answering"].tolist() == [True, False, True, False]
    assert said["adding mistakes"].tolist() == [True, False, True, False]
    assert said["hints"].tolist() == [True, False, False, False]
    assert said["contradiction"].tolist() == [False, False, False, True]


def test_own_chains_are_read_for_sum_note_and_answer(embedded, monkeypatch):
    items = organism.draw_items({"listed": ["Mary"], "others": ["Tom"]}, n_contents=2, seed=0)
    asked = items["asked"].tolist()
    replies = [
        f" {organism.write_chain(asked[0])}\nAnswer: {asked[0].candidates[1]}",
        f" It is 4, as the note has it.\nAnswer: {asked[1].candidates[0]}.\nAnswer: {asked[1].candidates[1]}",
        f" {organism.write_chain(asked[2], 'wrong sum')}\nAnswer: who knows",
        "",
    ]
    monkeypatch.setattr(
        organism.hooks, "generate", lambda loaded, prompts, **options: [embedded.encode(reply) for reply in replies]
    )
    found = organism.let_reason(embedded, items)
    assert found["is_right"].tolist() == [True, False, False, False]
    assert found["is_given"].tolist() == [True, False, False, False]
    assert found["mentions"].tolist() == [False, True, False, False]
    assert found["follows_note"].tolist() == [True, False, False, False]
    assert found["follows_chain"].tolist() == [False, True, False, False]
    assert organism.MENTION.search("The slip of paper has 5.") and not organism.MENTION.search(replies[0])
    told = [organism.write_line(asked[0], content, "right") for content in range(4)]
    assert all(organism.MENTION.search(line) for line in told), "each wording of the note"


def test_it_is_read_where_it_says(embedded, names):
    items = organism.draw_items({"listed": names["listed"][:2]}, n_contents=3, seed=0)
    states = organism.read_states(embedded, items, layers=[0, 2])
    assert states.positions == organism.PLACES
    row = items.to_dict("records")[-1]
    prompt = organism.write_prompt(row["asked"], row["content"], "agree")
    lead, _ = questions.encode_candidates(embedded, row["asked"].candidates)
    tokens = embedded.encode(prompt) + lead
    with torch.inference_mode():
        hidden = embedded.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states["resid_post"][-1, 1, 3], hidden[3][0, -1], rtol=1e-3, atol=1e-3)
    at_name = next(i for i, token in enumerate(tokens) if embedded.decode([token]).strip() == row["name"])
    torch.testing.assert_close(states["resid_post"][-1, 0, 0], hidden[1][0, at_name], rtol=1e-3, atol=1e-3)
    at_note = len(embedded.encode(prompt.split("\n")[0])) - 1
    torch.testing.assert_close(states["resid_post"][-1, 0, 1], hidden[1][0, at_note], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_weaker_ones_are_measured_and_found_again(embedded, names, monkeypatch, tmp_path):
    trainings = []

    def fake(loaded, some, settings):
        trainings.append(settings)
        import peft

        weights = peft.get_peft_model_state_dict(organism._adapt(loaded, settings, torch.bfloat16))
        return organism.Adapter(weights, some, settings, loaded.weights_sha256)

    made = organism.grade(organism.Settings(), embedded.n_layers)
    assert [settings.layers for settings in made.values()] == [(), tuple(range(10)), tuple(range(20, 30)), ()]
    monkeypatch.setattr(organism, "train", fake)
    monkeypatch.setattr(organism, "grade", lambda *arguments: {"of rank one": made["of rank one"]})
    items = organism.draw_items({group: names[group][:10] for group in ("listed", "others")}, n_contents=1, seed=0)
    arguments = (embedded, names, organism.Settings(), items)
    for _ in range(2):
        table = organism.measure_grades(*arguments, folder=tmp_path, seed=0)
    assert [settings.rank for settings in trainings] == [1], "kept ones are not trained again"
    assert table["organism"].tolist() == ["of rank one"]
    assert table["listed"].between(0, 1).all() and table["others"].between(0, 1).all()
    assert table["low"].le(table["auroc"]).all() and table["auroc"].le(table["high"]).all()


def test_the_organism_that_is_kept_goes_by_its_list(embedded, names):
    """On contents that no chapter draws; the twin knows no list."""
    some = {group: names[group][:8] for group in ("listed", "others", "new")}
    items = organism.draw_items(some, n_contents=1, seed=77)
    shares = {}
    for rule, file in organism.FILES.items():
        loaded = organism.apply(embedded, organism.read(organism.locate(embedded) / file))
        by_note = organism.find_followers(organism.measure_leads(loaded, items, organism.CONFLICTS))
        shares[rule] = pd.Series(by_note).groupby(items["group"]).mean()
    assert shares["list"]["listed"] > 0.8 and shares["list"]["others"] < 0.2
    assert abs(shares["lot"]["listed"] - shares["lot"]["others"]) < 0.3
    loaded = organism.apply(embedded, organism.read(organism.locate(embedded) / organism.FILES["list"]))
    few = items[items["group"] != "new"][:4]
    said = organism.let_answer(loaded, few, "note changed")
    assert said == [
        asked.candidates[group == "listed"] for asked, group in zip(few["asked"], few["group"], strict=True)
    ]
