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
# # Does the model use what a probe reads?
#
# A direction along which a label can be read need not be one that the model reads. So we add it, take it out and set it
# to what it is in the other class, at the last token before the answer, and see whether the model then contradicts its
# reasoning, or follows a hint, more than it does after random directions of the same length.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to tell a diagnostic direction from a causal one;
# - which controls a push must beat before it means anything;
# - what a push does besides what it was meant to do.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
dtype: str = "bfloat16"  # as in the data set, "bfloat16" or "float32"
n_questions: int = 6  # of each task, for the constructed label, 5 to 400
n_own: int = 16  # of each task, for hints, 4 to 400 by 4
n_samples: int = 2  # draws of worked examples for hints, 1 to 8
n_tasks: int = 4  # of those that passed, at most so many, 1 to 14
n_controls: int = 5  # directions of each kind of control, 2 to 100
seed: int = 0  # of all sampling, 0 to 999000
device: str = "cpu"  # cpu, or cuda where there is a GPU

# %%
import numpy as np
import torch
from helpers import ROOT, claims, folds, hooks, plots, probes, runs
from studies.faithfulness import dataset, hypotheses, questions
from studies.faithfulness.transcripts import (
    construct,
    list_places,
    put_in_context,
)

run = runs.begin("faithfulness_causes_notebook", globals())
model = run.loaded
passed = dataset.read_passed_tasks(model) or {}
tasks = (passed.get("constructed", []) or list(questions.TASKS))[:n_tasks]

# %% [markdown]
# ## Learn a direction, then act before the answer
#
# The direction of *answer contradicts reasoning* is learned after the answer, where it can be read, on one draw of
# questions. It acts on another draw, on transcripts with the right conclusion, at the last token before the answer: in
# the same layer, where no answer has been written yet. If the model had one representation of "what I say does not
# follow", and used it, a push should make it write the other candidate.
#
# **What we expect.** {cite:t}`cox2026decoding` turned answers along a direction that was learned before the reasoning.
# {cite:t}`yuan2026hidden` could move nothing along the direction of errors that they could read (the abstracts were read).
# Ours is learned from transcripts that the model did not write, and it may well be that it only notes what it read.

# %%
PLACES = ("answer", "end", "next", "last")


def transcripts(seed):
    asked = questions.draw_questions(
        model, tasks=tasks, n=n_questions, seed=seed
    )
    table = construct(model, asked)
    return table, list(zip(table["task"], table["question"], strict=True))


table, groups = transcripts(seed + 1000)
labels = table["contradicts"].astype(bool).tolist()
states = hooks.capture(
    model,
    table["text"].tolist(),
    "resid_post",
    positions=list_places(model, table, PLACES),
    as_trees=True,
)
sweep = probes.sweep(
    states, labels, groups, types=None, n_permutations=0, seed=seed
)
site = sweep.leading()
x = probes.read_features(states, site)
found = hypotheses.fit_directions(
    x, labels, groups, n_controls=n_controls, seed=seed
)
truth = torch.tensor(labels)

# %% [markdown]
# Now the acting. Every vector is as long as the distance between the means of the two classes, so that none is stronger
# for being longer. *Push* adds it; *ablate* sets what the residual stream has along it to the mean of both classes;
# *patch* to that of the class that contradicts, both as found where the direction was learned. The model's lead is the logit of the answer that follows less that of the other.
# One more direction shows that the method works at all: the difference of the two answers' columns of the unembedding.

# %%
fresh, _ = transcripts(seed)
fresh = fresh[~fresh["contradicts"] & (fresh["concludes"] == fresh["right"])]


def tokens_of(one, other):
    """The tokens of two candidates for each prompt."""
    pairs = zip(one, other, strict=True)
    return torch.tensor(
        [questions.encode_candidates(model, pair)[1] for pair in pairs]
    )


cues = list_places(model, fresh, ["cue"])["cue"]
prompts = [
    model.encode(text)[: cue + 1]
    for text, cue in zip(fresh["text"], cues, strict=True)
]
answers = tokens_of(fresh["right"], fresh["other"])
now = hooks.capture(
    model, prompts, "resid_post", layers=[site.layer], as_trees=True
)
now = now["resid_post"][:, 0, 0]


def vectors(unit, how, now, x, truth, length):
    """What is added to each prompt's last token."""
    if how == "push":
        return (length * unit).expand_as(now)
    goal = x.mean(0) if how == "ablate" else x[truth].mean(0)
    return ((goal - now) @ unit)[:, None] * unit


def effects(layer, directions, hows, prompts, answers, now, classes, own=()):
    """By how much the first answer's lead falls, for each direction, way and prompt, and how far the rest moves."""
    x, truth = classes
    length = (x[truth].mean(0) - x[~truth].mean(0)).norm()
    added = {
        (name, how): [
            vectors(unit, how, now, x, truth, length) for unit in some
        ]
        for name, some in directions.items()
        for how in hows
    }
    for name, each in dict(own).items():
        added[name, "push"] = [length * each / each.norm(dim=1, keepdim=True)]
    everything = [torch.zeros_like(now)]
    for each in added.values():
        everything += each
    result = hooks.nudge(
        model, prompts, answers, torch.stack(everything), layer=layer
    )
    lead = result.logits[..., 0] - result.logits[..., 1]
    counts = [1, *map(len, added.values())]
    plain, *leads = lead.split(counts)
    _, *moved = result.divergence.split(counts)
    fall = {key: plain - each for key, each in zip(added, leads, strict=True)}
    return plain[0], fall, dict(zip(added, moved, strict=True))


HOWS = ("push", "ablate", "patch")
UNEMBEDDING = "unembedding of the other answer"
columns = model.model.get_output_embeddings().weight
columns = columns.detach().float().cpu()
lead, fall, moved = effects(
    site.layer,
    found,
    HOWS,
    prompts,
    answers,
    now,
    (x, truth),
    {UNEMBEDDING: columns[answers[:, 1]] - columns[answers[:, 0]]},
)

# %% tags=["hide-input"]
of_question = list(zip(fresh["task"], fresh["question"], strict=True))


def over(values, units):
    """The mean of each question's prompts, then over questions."""
    means = {}
    for unit, value in zip(units, values.tolist(), strict=True):
        means.setdefault(unit, []).append(value)
    return claims.average(
        [float(np.mean(some)) for some in means.values()],
        seed=seed,
        of="questions",
    )


def shown(values, units):
    """One direction with its interval, several by the median and range of their means."""
    if len(values) == 1:
        return over(values[0], units)
    means = np.sort(values.mean(1).numpy())
    return f"{claims.shorten(float(np.median(means)))} ({claims.shorten(float(means[0]))} to {claims.shorten(float(means[-1]))})"


def turned(lead, values):
    return float(((lead > 0) & (lead - values[0] < 0)).float().mean())


run.value("site", str(site))
run.value("lead", over(lead, of_question))
run.value("n_prompts", len(prompts))
run.table(
    "contradiction",
    [
        {
            "direction": name,
            "number": len(fall[name, "push"]),
            **{
                f"{how}: lead falls by": shown(fall[name, how], of_question)
                if (name, how) in fall
                else "–"
                for how in HOWS
            },
            "push turns": turned(lead, fall[name, "push"]),
            "push: divergence": float(moved[name, "push"].mean()),
        }
        for name in (*found, UNEMBEDDING)
    ],
    caption=f"Acting on {len(prompts)} transcripts with the right conclusion at the token before the answer: by how much the lead of the answer that follows falls, in logits (without: {claims.shorten(float(lead.mean()))}). One direction: 95 % bootstrap interval over questions; several: median and range of their means. “Turns”: share of the answers that become the other (of several directions, by the first). Divergence: of the next token's distribution, in nats.",
)
CONTROLS = ("random", "random, same covariance", "probe of permuted labels")


def highest(fall, how):
    return max(float(fall[name, how].mean(1).max()) for name in CONTROLS)


run.claim(
    "a-push-makes-it-contradict",
    "Pushing along the probe's direction of contradiction lowers the lead of the answer that follows more than any control.",
    rule="value > baseline",
    estimate=over(fall["probe", "push"][0], of_question),
    baseline=highest(fall, "push"),
    baseline_is=f"the most of {len(CONTROLS) * n_controls} controls",
    tolerance=0.2,
)
run.claim(
    "means-make-it-contradict",
    "Pushing along the difference of means does.",
    rule="value > baseline",
    estimate=over(fall["difference of means", "push"][0], of_question),
    baseline=highest(fall, "push"),
    baseline_is=f"the most of {len(CONTROLS) * n_controls} controls",
    tolerance=0.2,
)
run.claim(
    "a-patch-makes-it-contradict",
    "Setting the probe's direction to what it is in transcripts that contradict does.",
    rule="value > baseline",
    estimate=over(fall["probe", "patch"][0], of_question),
    baseline=highest(fall, "patch"),
    baseline_is=f"the most of {len(CONTROLS) * n_controls} controls",
    tolerance=0.2,
)
run.claim(
    "the-method-can-move-answers",
    "A vector of the same length along the unembedding of the other answer lowers the lead more than any control.",
    rule="value > baseline",
    estimate=over(fall[UNEMBEDDING, "push"][0], of_question),
    baseline=highest(fall, "push"),
    baseline_is=f"the most of {len(CONTROLS) * n_controls} controls",
    tolerance=0.2,
)
with plots.draw_figure(
    "pushes",
    caption=f"A push along the probe lowers the lead by {claims.shorten(float(fall['probe', 'push'].mean()))} logits, along the unembedding by {claims.shorten(float(fall[UNEMBEDDING, 'push'].mean()))}. "
    f"Points: mean over {len(prompts)} transcripts, with 95 % bootstrap intervals over questions where there is one direction; grey: each control.",
    alt="By how much a push lowers the lead, for each kind of direction.",
    width=8.0,
) as (_, axes):
    kinds = [*found, UNEMBEDDING]
    for number, name in enumerate(kinds):
        values = fall[name, "push"]
        if len(values) == 1:
            plots.draw_interval(axes, number, over(values[0], of_question))
        else:
            axes.plot(
                [number] * len(values),
                values.mean(1).numpy(),
                "o",
                color=plots.GREY,
                alpha=0.6,
            )
    axes.axhline(0, color=plots.INK, linestyle=":", linewidth=1)
    names = [
        name.replace(" of ", "\nof ").replace(", ", ",\n") for name in kinds
    ]
    axes.set_xticks(range(len(kinds)), names, fontsize=8)
    axes.set(ylabel="lead falls by (logits)")

# %% [markdown]
# Site: {glue:text}`site`; {glue:text}`n_prompts` transcripts whose answer leads by {glue:text}`lead`. Push along the
# probe: **{glue:text}`claim-a-push-makes-it-contradict`**; along the difference of means:
# **{glue:text}`claim-means-make-it-contradict`**; patch: **{glue:text}`claim-a-patch-makes-it-contradict`**. That the
# method can move answers: **{glue:text}`claim-the-method-can-move-answers`**. Where the last holds and the others don't,
# the direction is diagnostic as far as this test goes: it can be read after the answer, and no use of it was found
# before.
#
# ## Push a hint
#
# The same for hints: the direction of *moved by a pull* is learned before the answer on one half of the questions,
# and acts on the other half, in the same place. Side effects are measured on the model's own chains without a hint.

# %%
hints = passed.get("hint", [])[:n_tasks]
enough = False
if hints:
    options = {"n": n_own, "n_samples": n_samples, "seed": seed}
    options["folder"] = ROOT / "_build" / "generated"
    of_hint, follows = dataset.select_unfaithful(
        dataset.load_transcripts(model, "hint", tasks=hints, **options)
    )
    follows = np.array(follows)
    asked = list(dict.fromkeys(of_hint["question"]))
    ours = of_hint["question"].isin(asked[::2]).to_numpy()
    enough = all(
        folds.can_fold(
            follows[side].tolist(),
            of_hint["question"][side].tolist(),
            seed=seed,
        )
        for side in (ours, ~ours)
    )

# %%
hint_fall = {}
if enough:
    hinted, _ = put_in_context(model, of_hint)
    hinted_answers = tokens_of(of_hint["right"], of_hint["named"])
    at_cue = hooks.capture(model, hinted, "resid_post", as_trees=True)
    learned = probes.sweep(
        at_cue.select(np.flatnonzero(ours)),
        follows[ours].tolist(),
        of_hint["question"][ours].tolist(),
        types=None,
        n_permutations=0,
        seed=seed,
    )
    hint_site = learned.leading()
    there = probes.read_features(at_cue, hint_site)
    known_truth = torch.tensor(follows)
    first, second = torch.tensor(ours), torch.tensor(~ours)
    hint_x, hint_truth = there[first], known_truth[first]
    hint_directions = hypotheses.fit_directions(
        hint_x,
        hint_truth.tolist(),
        of_hint["question"][ours].tolist(),
        n_controls=n_controls,
        seed=seed,
    )
    rest = np.flatnonzero(~ours)
    hint_lead, hint_fall, _ = effects(
        hint_site.layer,
        hint_directions,
        HOWS,
        [hinted[i] for i in rest],
        hinted_answers[rest],
        there[second],
        (hint_x, hint_truth),
    )
    plain = dataset.load_transcripts(
        model, "causal_own", tasks=hints, **options
    ).head(len(rest))
    if len(plain):
        unhinted, _ = put_in_context(model, plain)
        unhinted_answers = tokens_of(plain["right"], plain["other"])
        plain_now = hooks.capture(
            model,
            unhinted,
            "resid_post",
            layers=[hint_site.layer],
            as_trees=True,
        )["resid_post"][:, 0, 0]
        plain_lead, plain_fall, _ = effects(
            hint_site.layer,
            hint_directions,
            ("push",),
            unhinted,
            unhinted_answers,
            plain_now,
            (hint_x, hint_truth),
        )

# %% tags=["hide-input"]
units = of_hint["question"][~ours].tolist() if enough else []
run.table(
    "hints",
    [
        {
            "direction": name,
            "number": len(hint_directions[name]),
            **{
                f"{how}: lead falls by": shown(hint_fall[name, how], units)
                for how in HOWS
            },
            "without a hint, push": shown(
                plain_fall[name, "push"],
                list(zip(plain["task"], plain["question"], strict=True)),
            )
            if len(plain)
            else "–",
            "without a hint, push turns": turned(
                plain_lead, plain_fall[name, "push"]
            )
            if len(plain)
            else "–",
        }
        for name in (hint_directions if enough else ())
    ]
    or [{"direction": "too few hints that pass the gates on both halves"}],
    caption="By how much the lead of the right answer over the one that the hint names falls, in logits, on the half of the questions that the direction was not learned on; and what the same push does to chains without a hint. Intervals and ranges as above.",
)
run.claim(
    "a-push-makes-it-follow",
    "Pushing along the probe's direction of hint following lowers the lead of the right answer more than any control.",
    rule="value > baseline",
    estimate=over(hint_fall["probe", "push"][0], units) if enough else None,
    baseline=highest(hint_fall, "push") if enough else None,
    baseline_is=f"the most of {len(CONTROLS) * n_controls} controls",
    tolerance=0.2,
)
run.value("hint_lead", over(hint_lead, units) if enough else "not to be had")
run.value("hint_site", str(hint_site) if enough else "none")

# %% [markdown]
# At {glue:text}`hint_site` (lead without a push: {glue:text}`hint_lead`) a push along the probe makes the model follow
# more than any control: **{glue:text}`claim-a-push-makes-it-follow`**. The last two columns are the price: the same push
# where no hint was given.
#
# ## Check it
#
# One push by other hands: the whole prompt anew through `hooks.intervene`, without anything kept from another pass.

# %%
gap = (x[truth].mean(0) - x[~truth].mean(0)).norm()
vector = gap * found["probe"][0]
some = prompts[:8]
edit = hooks.Edit("resid_post", site.layer, vector, "add", position=-1)
with hooks.intervene(model, edit):
    logits = hooks.capture(model, some, "logits")["logits"][:, 0]
whole = logits.gather(1, answers[:8])
whole = lead[:8] - (whole[:, 0] - whole[:, 1])
gap_between = float((whole - fall["probe", "push"][0][:8]).abs().max())
step = float(logits.abs().max()) * torch.finfo(model.model.dtype).eps
assert gap_between < max(1e-2, 4 * step)

# %% tags=["hide-input"]
run.value("gap_between", gap_between)
run.value("step", step)

# %% [markdown]
# The two differ by at most {glue:text}`gap_between` logits; numbers of this size are rounded to {glue:text}`step`.
#
# ## Where this breaks
#
# - **One token, one layer.** A direction may act over several tokens, or in layers where it can't be read.
# - **Lengths are a choice.** All vectors are as long as the classes are apart. Longer ones move more, and break more.
# - **A push that works is not a use.** It shows that the model can be moved from there, not that it moves by itself;
#   ablation and patching come nearer to that.
# - **The direction comes from transcripts that the model did not write.** What it knows of its own contradictions may lie
#   elsewhere.

# %% [markdown]
# ## Summary
#
# - Contradiction: push (`a-push-makes-it-contradict`: {glue:text}`claim-a-push-makes-it-contradict`), difference of means
#   (`means-make-it-contradict`: {glue:text}`claim-means-make-it-contradict`), patch (`a-patch-makes-it-contradict`:
#   {glue:text}`claim-a-patch-makes-it-contradict`).
# - The method can move answers (`the-method-can-move-answers`: {glue:text}`claim-the-method-can-move-answers`).
# - Hints: push (`a-push-makes-it-follow`: {glue:text}`claim-a-push-makes-it-follow`).

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. How long?** (10 minutes). At which length does a random push turn as many answers as the unembedding does here?
# *Hint: `hooks.nudge` takes any vectors; multiply.*
#
# ```{dropdown} Solution
# Stack `length * found["random"][0]` for lengths of one to twenty times `gap`. Long before the answers turn the divergence
# grows: a push that breaks the model also changes its answer, which is why the side effects stand in the table.
# ```
#
# **2. Act later** (10 minutes). Push in the last layer instead. What becomes of the difference between the probe and
# the unembedding? *Hint: `layer=model.n_layers - 1`.*
#
# ```{dropdown} Solution
# In the last layer only the final norm and the unembedding follow, so that a vector moves the logits by its product
# with their columns. The unembedding's own direction is then the best there is, and every other moves the lead by its
# cosine with it.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`cox2026decoding` and {cite:t}`yuan2026hidden`, in full in the [bibliography](../../reference/bibliography).
