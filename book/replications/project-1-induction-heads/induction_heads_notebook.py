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
# # How does a model continue a sequence it has never seen?
#
# Give a language model fifty random tokens and then the same fifty again. Nothing in its training says what
# comes next, yet in the second half it knows. A handful of attention heads, the *induction heads* of
# {cite:t}`olsson2022context`, look up what followed the present token last time and copy it. They matter
# because they are the clearest case of an algorithm that was read off a trained network, and because
# learning from the context seems to rest on them.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s on
# {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to measure in-context copying with data that no model can have memorised;
# - to score every attention head for three jobs, and to tell attention to *content* from attention to a *position*;
# - to test by ablation whether the heads with the high scores are the ones that do the work.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
n_sequences: int = 16  # sequences in each sample, 2 to 1000
segment_length: int = 50  # random tokens that are then repeated, 8 to 1000
max_ablated_heads: int = 16  # the largest set that is ablated, 1 to 256
n_random_sets: int = 10  # random sets of heads to compare with, 10 to 200
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # "cpu", or "cuda" where there is a GPU

# %%
import numpy as np
import torch
from helpers import claims, hooks, models, plots, prompts, runs

parameters = runs.validate(
    model_name=(model_name, str),
    n_sequences=(n_sequences, range(2, 1001)),
    segment_length=(segment_length, range(8, 1001)),
    max_ablated_heads=(max_ablated_heads, range(1, 257)),
    n_random_sets=(n_random_sets, range(10, 201)),
    seed=(seed, range(1_000_000)),
    device=(device, str),
)
model = models.load(model_name, device=device)
run = runs.start(
    "replications/project-1-induction-heads/induction_heads_notebook",
    parameters,
    model,
)

# %% [markdown]
# ## Make sequences that can't be memorised
#
# Each sequence is a segment of random tokens, drawn without replacement, followed by the same segment. The
# comparison sequences are the same in every way but one: their second half is another random segment. Two
# samples are drawn. Heads are *selected* on the first, and everything reported about them is measured on the
# second, so that the luck of the selection can't flatter the result.


# %%
def draw(sample_seed):
    segments = prompts.random_segments(
        model,
        n_sequences=n_sequences,
        segment_length=segment_length,
        n_segments=2,
        seed=sample_seed,
    )
    first, second = segments[:, 0], segments[:, 1]
    repeated = prompts.with_start_token(model, torch.cat([first, first], dim=1))
    unrepeated = prompts.with_start_token(
        model, torch.cat([first, second], dim=1)
    )
    return repeated, unrepeated


selection_repeated, _ = draw(2 * seed)
repeated, unrepeated = draw(2 * seed + 1)
# 1 where the model has a start token, else 0.
start = repeated.shape[1] - 2 * segment_length

# %% [markdown]
# ## See the loss fall
#
# **What we expect.** The loss of a token is $-\log p(x_t \mid x_{<t})$. Random tokens can't be predicted, so
# in the first half its mean can't go below $\log V$ for a vocabulary of $V$ tokens. If the model copies, the loss
# drops as soon as the repetition begins, and not in the sequences without one.

# %%
# entry i is the loss of token i + 1
loss_repeated = hooks.next_token_losses(model, repeated)
loss_unrepeated = hooks.next_token_losses(model, unrepeated)

# tokens 2 to L: each has a token of its segment before it
first_half = slice(start, start + segment_length - 1)
second_half = slice(start + segment_length, start + 2 * segment_length - 1)


def half_means(loss):
    halves = loss[:, first_half], loss[:, second_half]
    return [half.mean(dim=1).numpy() for half in halves]


first, second = half_means(loss_repeated)
control_first, control_second = half_means(loss_unrepeated)

# %% tags=["hide-input"]
run.value("loss_first_half", claims.mean(first, seed=seed))
run.value("loss_second_half", claims.mean(second, seed=seed))
run.value("loss_second_half_unrepeated", claims.mean(control_second, seed=seed))
run.value("uniform_loss", float(np.log(model.config.vocab_size)))
run.claim(
    "repetition-lowers-loss",
    "The loss falls from the first half to the second because the second repeats the first.",
    rule="value > baseline",
    estimate=claims.mean(first - second, seed=seed),
    baseline=float((control_first - control_second).mean()),
    baseline_is="the fall where nothing repeats",
    tolerance=0.01,
)

# %% tags=["hide-input"]
position = np.arange(1, 2 * segment_length) + 1
with plots.figure(
    "loss-per-position",
    caption=f"Where the second half repeats the first its loss is {claims.short(second.mean())} nats, where it is new "
    f"{claims.short(control_second.mean())}. Mean loss of each token over {n_sequences} sequences; the bands are 1.96 "
    "standard errors, the dotted line is the loss of a uniform guess.",
    alt="Loss against position, one curve for sequences that repeat and one for sequences that do not.",
) as (_, axes):
    for loss, colour, label in (
        (loss_unrepeated, plots.GREY, "second half is new"),
        (loss_repeated, plots.BLUE, "second half repeats the first"),
    ):
        values = loss[:, start:].numpy()
        centre, error = (
            values.mean(axis=0),
            1.96 * values.std(axis=0, ddof=1) / np.sqrt(n_sequences),
        )
        axes.plot(position, centre, color=colour, label=label)
        axes.fill_between(
            position,
            centre - error,
            centre + error,
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
    axes.axhline(
        np.log(model.config.vocab_size),
        color=plots.INK,
        linestyle=":",
        linewidth=1,
    )
    axes.axvline(segment_length + 1, color=plots.INK, linewidth=0.6)
    axes.set(
        xlabel="position of the token", ylabel="loss (nats)", ylim=(0, None)
    )
    axes.legend()

# %% [markdown]
# **What it means.** In the first half the loss is {glue:text}`loss_first_half` nats. A uniform guess would have
# {glue:text}`uniform_loss`; a model that does worse expects language and is confidently wrong. In
# the repeated half it is {glue:text}`loss_second_half`. Where the second half is new it is
# {glue:text}`loss_second_half_unrepeated`: what is lost from one to the other is owed to the repetition, not the position.
# Verdict: **{glue:text}`claim-repetition-lowers-loss`**.

# %% [markdown]
# ## Score every head for three jobs
#
# Let $L$ be the length of the segment and $t$ a position in the second half. Three habits are easy to
# recognise from the attention pattern $A_{t,s}$, the weight that position $t$ gives to position $s$:
#
# $$
# \underbrace{A_{t,\,t-L+1}}_{\text{induction}} \qquad
# \underbrace{A_{t,\,t-L}}_{\text{duplicate token}} \qquad
# \underbrace{A_{t,\,t-1}}_{\text{previous token}}
# $$
#
# An induction head looks one place *after* the earlier copy of the present token, a duplicate-token head at the
# copy itself, a previous-token head at its neighbour. A head's score is the mean over the second half.
#
# **What we expect.** Few heads have a high induction score. A head that merely prefers the distance $L - 1$ would
# score as high; so every head is scored on the sequences without a repetition as well. There the same distance
# leads to a random token, and a head that follows content must fall to nothing.

# %%
DISTANCE = {
    "induction": segment_length - 1,
    "duplicate token": segment_length,
    "previous token": 1,
}


def job_scores(token_ids):
    """Attention in the second half to the place of each job: array of sequence, job, layer, head."""
    captured = hooks.capture(model, token_ids, "pattern", positions="all")
    scores = [
        captured["pattern"].diagonal(-distance, -2, -1)[..., -segment_length:]
        for distance in DISTANCE.values()
    ]
    return np.stack([score.mean(-1).numpy() for score in scores], axis=1)


selection_scores = job_scores(selection_repeated).mean(axis=0)
scores = job_scores(repeated)
control_scores = job_scores(unrepeated).mean(axis=0)


# %%
def top_heads(job_index, count):
    """The heads with the highest scores on the selection sample, best first."""
    order = np.argsort(-selection_scores[job_index], axis=None, kind="stable")
    return [divmod(int(place), model.n_heads) for place in order[:count]]


# %% tags=["hide-input"]
rows = []
for job_index, job in enumerate(DISTANCE):
    for layer, head in top_heads(job_index, 4):
        score = claims.mean(scores[:, job_index, layer, head], seed=seed)
        control = control_scores[job_index, layer, head]
        rows.append(
            {
                "job": job,
                "head": f"{layer}.{head}",
                "score": score,
                "without repetition": float(control),
            }
        )
run.table(
    "top_heads",
    rows,
    caption=f"The four best heads of each job, chosen on one sample and scored on another: mean over {n_sequences} "
    "sequences, 95 % bootstrap interval in brackets.",
)

# %% tags=["hide-input"]
best_layer, best_head = top_heads(0, 1)[0]
run.value("best_induction_head", f"{best_layer}.{best_head}")
run.value(
    "best_induction_score",
    claims.mean(scores[:, 0, best_layer, best_head], seed=seed),
)
run.value("highest_control_score", float(control_scores[0].max()))
run.value("heads_above_half", int((scores[:, 0].mean(axis=0) > 0.5).sum()))
run.value("heads_in_all", model.n_layers * model.n_heads)
run.value(
    "heads_with_two_jobs",
    int(((scores.mean(axis=0) > 0.5).sum(axis=0) > 1).sum()),
)
run.claim(
    "induction-heads-exist",
    "At least one head spends more than half of its attention on the token after the earlier copy.",
    rule="value > 0.5 and value > baseline",
    estimate=claims.mean(scores[:, 0, best_layer, best_head], seed=seed),
    baseline=float(control_scores[0].max()),
    baseline_is="the highest score of any head where nothing repeats",
    tolerance=0.01,
)

# %% tags=["hide-input"]
with plots.figure(
    "induction-scores",
    caption=f"{run.values['heads_above_half']} of {run.values['heads_in_all']} heads score above one half. Induction "
    f"score of every head, mean over {n_sequences} sequences.",
    alt="Heat map of induction scores by layer and head.",
    height=3.2,
) as (drawing, axes):
    image = axes.pcolormesh(
        scores[:, 0].mean(axis=0).T,
        cmap="viridis",
        vmin=0,
        vmax=1,
        edgecolors="none",
    )
    axes.set(
        xlabel="layer",
        ylabel="head",
        xticks=np.arange(0, model.n_layers, 5) + 0.5,
    )
    axes.set(
        xticklabels=np.arange(0, model.n_layers, 5),
        yticks=np.arange(model.n_heads) + 0.5,
    )
    axes.set(yticklabels=np.arange(model.n_heads))
    drawing.colorbar(image, label="induction score")

# %% tags=["hide-input"]
import pandas as pd
import plotly.express as px

heads = pd.DataFrame(scores.mean(axis=0).reshape(3, -1).T, columns=DISTANCE)
heads["head"] = [
    f"{layer}.{head}"
    for layer in range(model.n_layers)
    for head in range(model.n_heads)
]
drawing = px.scatter(
    heads.sort_values("duplicate token"),  # rare high ones are drawn on top
    x="previous token",
    y="induction",
    color="duplicate token",
    range_color=(0, 1),
    color_continuous_scale=[plots.GREY, plots.ORANGE],
    hover_name="head",
    hover_data={name: ":.2f" for name in DISTANCE},
    height=420,
)
drawing.update_traces(marker={"size": 8, "line": {"width": 0.5}})
drawing.update_layout(
    xaxis_title="previous-token score",
    yaxis_title="induction score",
    coloraxis_colorbar_title_text="duplicate-<br>token score",
)
plots.show_plotly(
    "jobs-of-heads",
    drawing,
    caption=f"{run.values['heads_with_two_jobs']} heads score above one half in two jobs. Every point is a head, its "
    f"three scores are means over {n_sequences} sequences; hover for its name.",
    alt="Scatter plot of heads: induction score against previous-token score, coloured by duplicate-token score.",
)

# %% [markdown]
# **What it means.** {glue:text}`heads_above_half` of {glue:text}`heads_in_all` heads give more than half of
# their attention to the token after the earlier copy. The best, head {glue:text}`best_induction_head`, scores
# {glue:text}`best_induction_score`; where nothing repeats, no head gets above
# {glue:text}`highest_control_score`. A score that is high
# with a repetition and low without one is about content, not distance; a previous-token head should keep
# its score (see the table), as its job *is* a matter of position. Heads that score above one
# half in two jobs: {glue:text}`heads_with_two_jobs`.
# Verdict: **{glue:text}`claim-induction-heads-exist`**.
#
# Here are the best heads at work on one short sequence.

# %% tags=["hide-input"]
shown = [*top_heads(0, 2), *top_heads(1, 1), *top_heads(2, 1)]
segment = selection_repeated[:1, start : start + 12]
example = prompts.with_start_token(model, torch.cat([segment, segment], dim=1))
pattern = hooks.capture(model, example, "pattern", positions="all")["pattern"]
plots.show_attention(
    "attention-of-best-heads",
    model.token_labels(example[0].tolist()),
    torch.stack([pattern[0, layer, head] for layer, head in shown]),
    [f"{layer}.{head}" for layer, head in shown],
    caption="The stripe of an induction head lies one place to the right of that of a duplicate-token head. From left "
    "to right: two induction heads, a duplicate-token head, a previous-token head, each the best by score. Rows "
    "are the positions that attend, columns those attended to; choose a head to enlarge it. One sequence.",
    alt="Attention patterns of four heads on twelve random tokens repeated once; each shows a diagonal stripe.",
)

# %% [markdown]
# ## Take the heads out
#
# Attention is not importance: a head may look at the right place and write nothing of use. So we remove heads and
# see what is lost. *Mean ablation* replaces a head's output by its mean over the selection sample, all
# positions, which keeps its size and takes away what it knows about the present token.
#
# **What we expect.** If induction heads do the copying, taking out the best $k$ raises the loss of the
# second half far more than taking out $k$ other heads *of the same layers*, and does not touch the first half.

# %%
z = hooks.capture(model, selection_repeated, "head_z", positions="mean")


def ablation(layer, head):
    return hooks.ablation(
        model, "head_z", layer, head=head, how="mean", reference=z
    )


def loss_increase(heads):
    """How much the loss of each half rises when `heads` are ablated, for each sequence."""
    with hooks.intervene(model, *(ablation(*head) for head in heads)):
        ablated_first, ablated_second = half_means(
            hooks.next_token_losses(model, repeated)
        )
    return ablated_first - first, ablated_second - second


# %%
increase, random_increase = {}, {}
for size in (4**power for power in range(5) if 4**power <= max_ablated_heads):
    best = top_heads(0, size)
    random_sets = hooks.layer_matched_sets(
        model, best, n_sets=n_random_sets, seed=seed
    )
    if random_sets:  # small models run out of other heads
        increase[size] = loss_increase(best)
        random_increase[size] = np.array(
            [
                [half.mean() for half in loss_increase(heads)]
                for heads in runs.progress(random_sets, f"{size} random heads")
            ]
        )

# %% tags=["hide-input"]
rows = [
    {
        "heads ablated": size,
        "best heads": claims.mean(increase[size][1], seed=seed),
        "random, median": float(np.median(random_increase[size][:, 1])),
        "random, largest": float(random_increase[size][:, 1].max()),
        "best heads, first half": claims.mean(increase[size][0], seed=seed),
    }
    for size in increase
]
run.table(
    "ablation",
    rows,
    caption=f"Rise of the loss (nats) in the second half, and in the first for comparison: mean over {n_sequences} "
    "sequences, 95 % bootstrap interval in brackets.",
)
largest = max(increase, default=0)
run.value("largest_set", largest)
run.value(
    "loss_second_half_ablated",
    claims.mean(second + increase[largest][1], seed=seed)
    if increase
    else "not measured",
)
run.claim(
    "induction-heads-cause-copying",
    "Ablating the best induction heads costs more in the repeated half than any random set of the same layers.",
    rule="value > baseline",
    estimate=claims.mean(increase[largest][1], seed=seed) if increase else None,
    baseline=float(random_increase[largest][:, 1].max()) if increase else None,
    baseline_is=f"the largest of {n_random_sets} layer-matched random sets of {largest}",
    tolerance=0.05,
)
run.claim(
    "ablation-spares-first-half",
    "The damage is to copying: the repeated half loses more than the first half does.",
    rule="value > baseline",
    estimate=claims.mean(increase[largest][1] - increase[largest][0], seed=seed)
    if increase
    else None,
    baseline=float(np.diff(random_increase[largest]).max())
    if increase
    else None,
    baseline_is="the largest difference for a random set",
    tolerance=0.05,
)

# %% tags=["hide-input"]
with plots.figure(
    "ablation",
    caption=f"The {largest} best induction heads cost the repeated half more than {n_random_sets} random sets of the same "
    f"layers do: {run.claims['induction-heads-cause-copying'].verdict}. Rise of its loss over {n_sequences} sequences "
    "(bars: 95 % bootstrap intervals); each point is a random set, the line their median.",
    alt="Rise of the loss against the number of ablated heads, for the best induction heads and for random sets.",
) as (_, axes):
    places = np.arange(len(increase))
    for place, size in enumerate(increase):
        estimate = claims.mean(increase[size][1], seed=seed)
        error = [
            [estimate.value - estimate.low],
            [estimate.high - estimate.value],
        ]
        label = "best induction heads" if place == 0 else None
        axes.errorbar(
            place - 0.1,
            estimate.value,
            error,
            fmt="o",
            color=plots.BLUE,
            capsize=4,
            label=label,
        )
        points = random_increase[size][:, 1]
        label = "random heads of the same layers" if place == 0 else None
        axes.plot(
            np.full(len(points), place + 0.1),
            points,
            "o",
            color=plots.ORANGE,
            alpha=0.6,
            ms=4,
            label=label,
        )
        axes.plot(
            [place + 0.03, place + 0.17],
            [np.median(points)] * 2,
            color=plots.ORANGE,
        )
    axes.axhline(0, color=plots.INK, linewidth=0.6)
    axes.set(
        xlabel="heads ablated",
        ylabel="rise of the loss (nats)",
        xticks=places,
        xticklabels=list(increase),
    )
    axes.legend(loc="upper left")

# %% [markdown]
# **What it means.** Without the {glue:text}`largest_set` best induction heads the loss of the second half is
# {glue:text}`loss_second_half_ablated` nats, where the intact model had {glue:text}`loss_second_half` and, with nothing
# to copy, {glue:text}`loss_second_half_unrepeated`. What random heads of the same
# layers cost is in the table. Verdict
# on the cause: **{glue:text}`claim-induction-heads-cause-copying`**; on the first half being spared:
# **{glue:text}`claim-ablation-spares-first-half`**. Where the table's last column is below zero, the first half even
# gained: one reading is that copying heads with nothing to copy do a little harm.

# %% [markdown]
# ## Compare with what was published
#
# For GPT-2 small, {cite:t}`wang2022interpretability` (Appendix H) name heads 5.5 and 6.9 among the five with the
# highest induction score, on a hundred random tokens repeated once. Heads of another model have other numbers, so
# elsewhere this claim can't be decided and says so.

# %%
in_top_five = None
if model.card.name == "gpt2-small":
    top_five = scores[:, 0].reshape(n_sequences, -1).argsort(axis=1)[:, -5:]
    published_heads = [
        layer * model.n_heads + head for layer, head in ((5, 5), (6, 9))
    ]
    in_top_five = claims.mean(
        [np.isin(published_heads, best).mean() for best in top_five], seed=seed
    )
run.claim(
    "published-induction-heads",
    "The induction heads named for GPT-2 small are among the five with the highest induction score.",
    rule="value >= published",
    estimate=in_top_five,
    published=claims.Published(
        value=1.0,
        model="gpt2-small",
        protocol="share of heads 5.5 and 6.9 among the top five, 100 random tokens twice",
        citation="wang2022interpretability",
    ),
)

# %% [markdown]
# ## Check it
#
# The score of the best head once more, read by another library: TransformerLens' bridge runs the same weights through its
# own hooks. The two must agree to float32 precision. (The bridge wants a tokenizer; a folder without one is not checked.)

# %%
difference = None
if model.tokenizer is not None:
    bridge = models.load(model_name, backend="transformer_lens", device=device)
    pattern_hook = f"blocks.{best_layer}.attn.hook_pattern"
    _, cache = bridge.model.run_with_cache(
        repeated[:1].to(device), names_filter=pattern_hook, prepend_bos=False
    )
    pattern = cache[pattern_hook][0, best_head].cpu()
    stripe = pattern.diagonal(-(segment_length - 1))[-segment_length:]
    score = scores[0, 0, best_layer, best_head]
    difference = abs(stripe.mean().item() - score)
    assert difference < 1e-4
run.value("check_difference", "none" if difference is None else difference)
print(f"difference between the two libraries: {difference}")

# %% [markdown]
# ## Where this breaks
#
# - **A score is no proof.** A head may match prefixes and write nothing. Whether the heads with the best scores are
#   also those whose removal hurts is a finding about one model (here: {glue:text}`claim-induction-heads-cause-copying`).
# - **Ablation has side effects.** With several heads gone, later layers see a residual stream that they never
#   met in training. The random sets bound how much of the damage that explains, and no more.
# - **Random tokens are not language.** The scores say what heads *can* do on bare repetitions, not what they
#   mostly do on text.
# - **One quantised model.** The default model's weights were rounded to four bits; `model_name` runs the
#   same page on others.

# %% [markdown]
# ## Summary
#
# - The model continues random sequences that it has seen once (`repetition-lowers-loss`:
#   {glue:text}`claim-repetition-lowers-loss`).
# - A few heads attend to the token after the earlier copy (`induction-heads-exist`:
#   {glue:text}`claim-induction-heads-exist`).
# - They cause the copying (`induction-heads-cause-copying`: {glue:text}`claim-induction-heads-cause-copying`) and
#   not a general loss of ability (`ablation-spares-first-half`: {glue:text}`claim-ablation-spares-first-half`).
# - The heads published for GPT-2 small (`published-induction-heads`): {glue:text}`claim-published-induction-heads`.

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Three times** (10 minutes). Repeat the segment twice instead of once. Does the loss fall further in the third
# copy? *Hint: `n_segments` need not change; concatenate `first` three times.*
#
# ```{dropdown} Solution
# Build `torch.cat([first, first, first], dim=1)` in `draw`, and average `next_token_losses` over the third segment as
# `half_means` does over the second. On the default model the loss falls again, and most of that fall is
# at the first few tokens: in the second copy they have to find out that this *is* a repetition, in the third that is
# settled. Plot the loss per position of both copies to see it.
# ```
#
# **2. A head for a distance** (15 minutes). Suppose a head always attends exactly $L - 1$ places back. Which numbers on
# this page would it fool, and which not? *Hint: look at the baseline of each claim.*
#
# ```{dropdown} Solution
# Its induction score would be 1 on the repeated sequences, and the heat map would show it as the best induction head.
# It would also be 1 where nothing repeats, so the baseline of `induction-heads-exist` would rise to 1 and the claim
# would fail. If it also copied what it attends to, ablation could not tell it from an induction head on sequences
# of one fixed length: for that, vary the length of the segment.
# ```
#
# **3. Zero instead of mean** (10 minutes). Let `ablation` put zeros there instead. Which ablation does more harm
# with random heads, and why? *Hint: think of heads whose output is nearly constant.*
#
# ```{dropdown} Solution
# `hooks.ablation(model, "head_z", layer, head=head, how="zero")`. Some heads write a nearly constant vector, which
# later layers rely on like a bias. Zero ablation takes it away and hurts for a reason that has nothing to do with
# copying; mean ablation leaves it. On the default model zero ablation of random heads costs more for most
# sets, and the difference is plainest in the first half, where there is nothing to copy.
# ```

# %% [markdown]
# ## References
#
# {cite:t}`olsson2022context` and {cite:t}`wang2022interpretability`, in full in the
# [bibliography](../../reference/bibliography).
