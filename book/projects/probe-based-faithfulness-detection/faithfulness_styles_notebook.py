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
# # Can style fool a probe?
#
# The fourth hypothesis says that it can. Here the same transcripts are told in eight styles by rule, and once more by a
# language model after examples, while the label stays. Then an adversary chooses the style that each class comes in.
# We ask how much a probe loses, which part of the loss comes back for free, and whether counting words would do better.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to attack a probe so that a coin would not lose;
# - to tell a style that shifts all scores from one that hides the label;
# - when subtracting each style's mean helps, and when it does harm.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 8  # of each task, in each style, 5 to 400
n_own: int = 0  # of each task, for hints and chains, none of which are read at nought, 0 to 400 by 4
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 4  # of those that passed, at most so many, 1 to 14
n_data_seeds: int = 1  # draws of the data, 1 to 10
writer_name: str = ""  # of a model that paraphrases the questions of all tasks anew; empty: those kept are read
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
from helpers import runs
from studies.faithfulness import (
    adversary,
    dataset,
    paraphrases,
    questions,
    style_figures,
    styles,
)

run = runs.begin("faithfulness_styles_notebook", globals())
model = run.loaded

# %%
gates = dataset.read_passed_tasks(model) or {}
tasks = gates.get("constructed", list(questions.TASKS))[:n_tasks]
numbers = range(seed, seed + n_data_seeds)
FOUR, EIGHT = list(styles.FAMILIAR), [*styles.FAMILIAR, *styles.STRANGE]
sizes = {"n": n_questions, "seeds": numbers}

# %% [markdown]
# ## Tell everything in every style
#
# The label is *answer contradicts reasoning*, on tasks that [days 12 to 14](day12-14_cot_dataset) let through: eight
# transcripts of each question, half of which contradict. The residual stream is read at the site that reads the label
# best on another draw of questions (of sites that tie, the first). One probe is trained in each of four styles, and tested
# on other questions in all.

# %%
site = styles.choose_site(model, tasks=tasks, n=5, seed=seed + 1000)
known = paraphrases.read(paraphrases.locate(model))
if writer_name:
    known = paraphrases.write(model, writer_name, **sizes)
told = styles.FAMILIAR | styles.STRANGE
if known is not None:
    told = told | {"paraphrased": paraphrases.make_style(known)}
tables = [
    styles.tell_questions(model, told, tasks=tasks, n=n_questions, seed=number)
    for number in numbers
]
draws = [styles.read_draw(model, table, site) for table in tables]
each = styles.take_each_style(draws, FOUR)
of_one = adversary.fit_probes(draws, each, seed=seed)

# %% tags=["hide-input"]
shift = adversary.measure_shift(of_one)
run.value("shift", shift)
run.value("site", str(site))
run.value("n_rows", sum(map(len, tables)))
run.value(
    "n_asked", len({question for draw in draws for question in draw.questions})
)
style_figures.show_scores(
    {style: of_draw[0] for style, of_draw in of_one.items()},
    list(told),
    caption=f"Styles move all scores, the outermost two of a probe apart by {shift:.2f} of the distance between the classes, on average over probes; the adversary wins where an orange bar in one row lies left of a blue bar in another. Scores by probes of one style each (panels) on held-out questions told in each style (rows): bars hold nine tenths of the transcripts, points are medians, a line across is the mean of the style. {site}; first draw of the data, {n_questions} questions of each of {len(tasks)} tasks, five folds together.",
)

# %% tags=["hide-input"]
run.table(
    "styles",
    style_figures.list_tellings(tables[0]),
    caption="One transcript in every style; probes are trained in the first four.",
)

# %% [markdown]
# Read are {glue:text}`n_rows` transcripts of {glue:text}`n_asked` questions, at {glue:text}`site`.
#
# ## Let an adversary choose the style
#
# Who picks the worst of eight tellings for each transcript makes even random scores look worse than a coin, as
# the lowest of eight is low. So ours commits: one style for all transcripts that contradict, one for all others. The pair is chosen
# for each probe among all pairs, in the training folds, by scores that were held out within them, and tried on the test
# fold, of which the choice has seen nothing.
#
# **Offset**: a style shifts all scores, whatever the label, and the adversary tells
# contradictions in one that shifts them down and the rest in one that shifts them up. Without labels that can be undone:
# subtract from each score the mean of its style in the training folds. **Direction**: what an adversary who knows of this
# still takes, as in some style the label is written elsewhere, or more faintly.
#
# **What we expect.** Shifts, and the label in the same direction. The rule, a loss of more than a tenth, was written for the
# four styles of the data set; the four strange ones were added when a first run had been seen, so both are shown.

# %%
transcripts = [table["transcript"].tolist() for table in tables]
mixed = [
    styles.mix_styles(draw, which, FOUR, seed=seed)
    for draw, which in zip(draws, transcripts, strict=True)
]
of_all = adversary.fit_probes(draws, {"all four": mixed}, seed=seed)
tried = adversary.try_remedies(of_one, of_all, EIGHT, seed=seed)
by_four = adversary.attack(of_one, FOUR, seed=seed)

# %%
cost, split = tried.clean.lost_in(by_four), tried.split_cost()
whole = split["whole"]
run.claim("h4-constructed", estimate=cost, baseline=0.0)
run.claim("h4-more-styles", estimate=whole, baseline=cost.value)
run.claim("h4-offset", estimate=split["offset"], baseline=0.0)
run.claim("h4-direction", estimate=split["direction"], baseline=0.0)

# %%
noisy = adversary.blur(of_one, seed=seed)
roomy = adversary.read_clean(noisy, seed=seed)
in_noise = [
    roomy.lost_in(adversary.attack(noisy, some, seed=seed))
    for some in (FOUR, EIGHT)
]
run.claim(
    "h4-off-the-ceiling", estimate=in_noise[1], baseline=in_noise[0].value
)
run.value("roomy", roomy.area)

# %%
recentred = adversary.attack_recentred(noisy, EIGHT, seed=seed)
run.value("direction_in_noise", roomy.lost_in(recentred))
at_other_rooms = []
for room in (0.75, 0.8, 0.85, 0.95):
    blurred = adversary.blur(of_one, area=room, seed=seed)
    lost = adversary.read_clean(blurred, seed=seed).lost_in(
        adversary.attack(blurred, EIGHT, seed=seed)
    )
    at_other_rooms.append(f"{lost.brief()} at {room}")
run.value("at_other_rooms", ", ".join(at_other_rooms))

# %% [markdown]
# And beside the probe counts of words and pairs of words with logistic regression, trained and attacked likewise. Each word
# stands equally often on both sides of the label, so that there is nothing to read. A second one is given more: X stands for
# the answer and Y for the other candidate.

# %%
kinds = {
    "words": [table["text"].tolist() for table in tables],
    "words, answer marked": list(map(styles.mark_answers, tables)),
}
words = {
    kind: adversary.fit_words(texts, draws, each, seed=seed)
    for kind, texts in kinds.items()
}
left = {
    kind: adversary.attack(fits, EIGHT, seed=seed)
    for kind, fits in words.items()
}

# %%
behind = left["words, answer marked"].ahead_of(tried.attacked)
run.value("behind", behind)

# %% tags=["hide-input"]
all_by_four = adversary.attack(of_all, FOUR, seed=seed)
plain = {
    kind: adversary.read_clean(fits, seed=seed) for kind, fits in words.items()
}
style_figures.show_attacks(
    tried,
    (by_four, all_by_four),
    {kind: (plain[kind], left[kind]) for kind in kinds},
    caption="What an adversary leaves of the AUROC, who chooses a style for each class from the four familiar ones, from all eight, and from all eight knowing that each score is less the mean of its style. Equally many training rows; means over training styles and folds, 95 % bootstrap intervals over questions; dotted: chance.",
)
run.value("words_attacked", left["words"].area)
four_eight = {"clean": tried.clean, "four": by_four, "eight": tried.attacked}
for key, reading in four_eight.items():
    run.value(f"separation_{key}", reading.separation)
low, high, often = adversary.find_favourite(tried.recentred, draws)
run.value("low_recentred", style_figures.name_style(low))
run.value("high_recentred", style_figures.name_style(high))
run.value("often_recentred", often)
run.value("clean", tried.clean.area)
run.value("attacked", by_four.area)
run.value("cost", cost)
low, high, often = adversary.find_favourite(tried.attacked, draws)
run.value("low", style_figures.name_style(low))
run.value("high", style_figures.name_style(high))
run.value("often", often)

# %% [markdown]
# A probe of one style reads {glue:text}`clean` in its own style. {glue:text}`found-h4-constructed`
# {glue:text}`found-h4-more-styles` {glue:text}`found-h4-offset` {glue:text}`found-h4-direction`
# Near one an AUROC hides much of a loss: the two classes' scores are {glue:text}`separation_clean` standard deviations apart in
# its own style, {glue:text}`separation_four` under attack with four styles and {glue:text}`separation_eight` with eight. So noise is
# added to every score until its own style is read with {glue:text}`roomy`, and the adversary attacks again.
# {glue:text}`found-h4-off-the-ceiling` Recentred, {glue:text}`direction_in_noise` are left of the cost. (Added when separations had
# been seen; at other levels eight styles take {glue:text}`at_other_rooms`.)
#
# With eight the adversary most often tells contradictions in the style *{glue:text}`low`* and the rest in *{glue:text}`high`*
# (share of all choices {glue:text}`often`); who knows of recentring, in *{glue:text}`low_recentred`* and
# *{glue:text}`high_recentred`* ({glue:text}`often_recentred`); if that is one style, in the one that the probe reads worst.
#
# A bag of plain words is left with {glue:text}`words_attacked`; with the answer marked it reads the label by
# construction, and is {glue:text}`behind` ahead of the probe.
#
# ## Have a language model tell it
#
# A rule puts words around the steps; a paraphrase changes the steps' own. {glue:text}`writer` was shown four examples and
# told the steps of every question again, by its most likely tokens. Kept are {glue:text}`share_kept`, those that lose no
# number, name or thing and bring none in. In some the sense is lost; verdict and answer, on which the label hangs,
# stay. Of what was kept, {glue:text}`share_copied` end with the last three words of an example that it was shown,
# so that few words are its own.
#
# **What we expect.** A telling that no rule made may move scores further than the strange styles do.

# %%
strange = adversary.read_in(of_one, list(styles.STRANGE), seed=seed)
apart = tried.clean.lost_in(strange)
run.claim("styles-transfer", estimate=apart, baseline=0.0)

# %%
NINE = [*EIGHT, "paraphrased"]
of_told = adversary.restrict(of_one, NINE)
retold = added = lost_there = None
if of_told:
    there = adversary.read_clean(of_told, seed=seed)
    retold, strange_there = (
        there.lost_in(adversary.read_in(of_told, some, seed=seed))
        for some in (NINE[-1:], list(styles.STRANGE))
    )
    lost_there = strange_there.value

# %%
if of_told:
    by_eight, by_nine = (
        adversary.attack(of_told, some, seed=seed) for some in (EIGHT, NINE)
    )
    added = by_eight.lost_in(by_nine)
run.claim("paraphrases-cost-little", estimate=retold, baseline=lost_there)

# %% tags=["hide-input"]
run.value("n_retold", retold.n if retold else 0)
run.value("added", added or "not measured")
for key, value in paraphrases.describe(known).items():
    run.value(key, value)

# %% [markdown]
# {glue:text}`found-styles-transfer` {glue:text}`found-paraphrases-cost-little` It is measured on the
# {glue:text}`n_retold` questions all of whose tellings passed. If the adversary may choose the paraphrase besides the eight
# styles, the loss there changes by {glue:text}`added`.
#
# ## Recentre, or train in all styles
#
# The mean of a style holds no label only if both classes come in that style equally often. If in use contradictions
# mostly come in one style and the rest in another, the mean of a style is nearly that of a class, and subtracting it
# takes the label away with the offset. Here each class comes in a style of its own, and the means are those of a stream in
# which a given share of a style's transcripts is of that class; the adversary knows.

# %%
SHARES = (0.5, 0.7, 0.9)
streams = {
    share: adversary.attack_recentred(of_one, EIGHT, share=share, seed=seed)
    for share in SHARES
}
lost = streams[0.5].lost_in(streams[0.9])
run.claim("recentring-needs-both-classes", estimate=lost, baseline=0.0)

# %% tags=["hide-input"]
style_figures.show_curves(
    "imbalance",
    {"recentred": streams, "as it is": dict.fromkeys(SHARES, tried.attacked)},
    horizontal="share of one class in a style's unlabelled rows",
    caption=f"Recentring by means of balanced styles leaves an AUROC of {streams[0.5].area.brief()}, by means of styles nine tenths of which are one class {streams[0.9].area.brief()}. Probes of one style, attacked from eight, the adversary knowing; 95 % bootstrap intervals over questions; dotted: chance.",
)

# %% [markdown]
# {glue:text}`found-recentring-needs-both-classes`
#
# The other remedy is to train on as many transcripts, each in one of the four styles by lot. Both are tried on the labels
# of behaviour too, on tasks that passed the gates of the label: *given chains*, in the pairs of questions that were
# audited, where the label is which of the two answers loses less without its chain, told in the four styles; and *hints*,
# where the kinds of pull take the place of styles. Both are read at the token before the answer, in the layer that was
# chosen for contradictions, where the label is the same throughout; and asked only if a probe of one style surely has a
# tenth above chance to lose, as offsets turn random scores against any label.


# %%
def ask(label, make, **options):
    """What the adversary takes from a label of behaviour, or why not."""
    passed = gates.get(label, list(questions.TASKS))[:n_tasks]
    if not passed:
        return None, "no task passed the gates of this label"
    if not n_own:
        return None, "none are read at this size"
    options |= {"tasks": passed, "n": n_own}
    made = make(model, seed=seed, **options)
    options = {"layer": site.layer, "seed": seed}
    tried, why = adversary.attack_label(model, made, **options)
    return tried and tried.measure_costs(), why


# %%
chains, chain_why = ask("causal_given", styles.tell_chains)
hints, hint_why = ask("hint", styles.take_hints, n_samples=n_samples)

# %% tags=["hide-input"]
run.value("chain_why", chain_why)
run.value("hint_why", hint_why)
run.value("chain_cost", chains["nothing"] if chains else chain_why)
run.table(
    "remedies",
    style_figures.list_remedies(
        {
            "contradictions": tried.measure_costs(),
            "given chains": chains or chain_why,
            "hints": hints or hint_why,
        }
    ),
    caption="AUROC that the adversary takes, by label and by what was done against it; 95 % bootstrap intervals over questions, of chains over pairs.",
)

# %%
run.value("mixed_cost", tried.all_clean.lost_in(all_by_four))
run.claim(
    "all-styles-are-a-remedy",
    estimate=all_by_four.ahead_of(by_four),
    baseline=by_four.area.value,
)
run.claim(
    "the-remedy-holds-in-strange-styles",
    estimate=tried.all_attacked.ahead_of(tried.attacked),
    baseline=tried.attacked.area.value,
)
run.claim("h4-causal", estimate=chains and chains["nothing"], baseline=0.0)
run.claim("h4-hint", estimate=hints and hints["nothing"], baseline=0.0)

# %% [markdown]
# {glue:text}`found-all-styles-are-a-remedy` {glue:text}`found-the-remedy-holds-in-strange-styles`
# {glue:text}`found-h4-causal` {glue:text}`found-h4-hint`
#
# ## Tie style to label
#
# In found data style and label may go together. Here a share of the contradictions in the training set is verbose, and
# the same share of the rest is terse. The probe is tested where nothing is tied, and where the tie is reversed: there one
# that learned the style is worse than chance.

# %%
PAIR = ("verbose", "terse")
tied = {}
for share in (0.5, 0.75, 0.9, 1.0):
    rows = [
        styles.tie_styles(draw, which, PAIR, share=share, seed=seed)
        for draw, which in zip(draws, transcripts, strict=True)
    ]
    fits = adversary.fit_probes(draws, {"tied": rows}, seed=seed)
    tied[share] = adversary.read_tied(fits, PAIR, seed=seed)
full, untied = tied[1.0][1].area, tied[0.5][1]
nine = untied.lost_in(tied[0.9][1])
run.claim("a-full-tie-is-learned", estimate=full, baseline=0.5)
run.claim("a-tie-of-nine-in-ten-is-forgiven", estimate=nine, baseline=0.0)

# %% tags=["hide-input"]
style_figures.show_curves(
    "tied",
    {
        "nothing tied": {share: one for share, (one, _) in tied.items()},
        "tie reversed": {share: one for share, (_, one) in tied.items()},
    },
    horizontal="share of the training transcripts whose style goes with the label",
    caption=f"With style and label tied throughout, a probe reads {tied[1.0][0].area.brief()} where nothing is tied and {full.brief()} where the tie is reversed. 95 % bootstrap intervals over questions; dotted: chance.",
)
n_each = tables[0]["transcript"].nunique() / 2  # of each class, in five folds
run.value("exceptions", round(0.1 * 0.8 * n_each, 1))

# %% [markdown]
# {glue:text}`found-a-full-tie-is-learned` {glue:text}`found-a-tie-of-nine-in-ten-is-forgiven` There a training set has about
# {glue:text}`exceptions` exceptions of each class; with fewer at the same share more is lost. Held-out transcripts of such
# a training set would not show it, as they are tied as well.
#
# ## Check it
#
# The AUROC under attack again, from its scores and rows, by another function.

# %%
import numpy as np
from sklearn.metrics import roc_auc_score

folds, truth = np.array(by_four.folds), np.array(by_four.labels)
areas = [
    roc_auc_score(truth[rows & (folds == fold)], values[rows & (folds == fold)])
    for _, values, rows in by_four.terms
    for fold in set(folds)
]
assert abs(np.mean(areas) - by_four.area.value) < 1e-4
run.value("by_hand", float(np.mean(areas)))

# %% [markdown]
# By hand: {glue:text}`by_hand`, above {glue:text}`attacked`.
#
# ## Where this breaks
#
# - **An adversary of styles only.** Who may write freely, or choose for each transcript, does as well.
# - **The label is one of text.** Words can't read it only because the data set was made so; who marks the answer in them
#   reads it without any model.
# - **Behaviour moves with style.** Of a label that is asked only while it stays the easier part is left.
# - **Paraphrases by one small writer**, from four examples; what passed is the plainer part.

# %% [markdown]
# ## What others found
#
# {cite:t}`kumar2026pressure` saw probes of deception fail under shifts of style and recover when they were trained on
# several styles (the abstract was read; other models, another label).

# %% [markdown]
# ## Summary
#
# - {glue:text}`found-h4-constructed` **{glue:text}`claim-h4-constructed`**
# - {glue:text}`found-h4-more-styles` **{glue:text}`claim-h4-more-styles`**
# - {glue:text}`found-h4-offset` **{glue:text}`claim-h4-offset`**
# - {glue:text}`found-h4-direction` **{glue:text}`claim-h4-direction`**
# - {glue:text}`found-h4-off-the-ceiling` **{glue:text}`claim-h4-off-the-ceiling`**
# - {glue:text}`found-styles-transfer` **{glue:text}`claim-styles-transfer`**
# - {glue:text}`found-paraphrases-cost-little` **{glue:text}`claim-paraphrases-cost-little`**
# - {glue:text}`found-all-styles-are-a-remedy` **{glue:text}`claim-all-styles-are-a-remedy`**
# - {glue:text}`found-the-remedy-holds-in-strange-styles` **{glue:text}`claim-the-remedy-holds-in-strange-styles`**
# - {glue:text}`found-recentring-needs-both-classes` **{glue:text}`claim-recentring-needs-both-classes`**
# - {glue:text}`found-h4-causal` **{glue:text}`claim-h4-causal`**
# - {glue:text}`found-h4-hint` **{glue:text}`claim-h4-hint`**
# - {glue:text}`found-a-full-tie-is-learned` **{glue:text}`claim-a-full-tie-is-learned`**
# - {glue:text}`found-a-tie-of-nine-in-ten-is-forgiven` **{glue:text}`claim-a-tie-of-nine-in-ten-is-forgiven`**

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. A tenth style** (10 minutes). Add one that shouts. Does the adversary take it? *Hint: a style is a function of the
# steps and the verdict, which it has to write out.*
#
# ```{dropdown} Solution
# `told["shouting"] = lambda steps, verdict: " ".join(steps).upper() + f" SO IT IS {verdict}!"` before the transcripts are
# told, and its name in `EIGHT`. Capitals are other tokens, so that activations move far.
# ```
#
# **2. Attack noise** (10 minutes). Let the adversary choose for each transcript by itself, on random scores. What AUROC
# is left? *Hint: for positives the lowest of eight draws, for negatives the highest.*
#
# ```{dropdown} Solution
# With `x = np.random.default_rng(0).normal(size=(1000, 8))`, `compute_auroc` of `x.min(1)` for positives and `x.max(1)`
# for negatives is almost nought.
# ```
#
# **3. How far a mean goes** (10 minutes). The means of the two classes lie a distance apart in every style. How far apart
# are they after recentring, if a share $p$ of each style's rows is of the class that is tested in it? *Hint: write down the two means.*
#
# ```{dropdown} Solution
# A class keeps $1 - p$ of the distance on its side, so that $2 (1 - p)$ of it is left: all at one half, a fifth at nine
# tenths, nothing where each style comes with one class.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`kumar2026pressure`, in full in the [bibliography](../../reference/bibliography).
