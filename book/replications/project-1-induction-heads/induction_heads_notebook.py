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
# Give a language model {glue:text}`segment_length` random tokens, and then the same again. Nothing in its training says what comes
# next, yet in the second round its likeliest next token is the right one in {glue:text}`top_one` of all places. A few attention heads, the *induction heads* of {cite:t}`olsson2022context`, look up what followed last time:
# a clear case of an algorithm that was read off a trained network.
#
# *This page shows a run of the profile {glue:text}`profile`, which took {glue:text}`seconds` s and
# {glue:text}`memory` GB of memory on {glue:text}`threads` CPU threads. Model: {glue:text}`model`.*
#
# You will learn
#
# - to recognise an induction head by where it looks and by what it writes;
# - to watch one appear in a model of two layers, and to say why one layer does not do;
# - to test by ablation and patching whether the heads with the high scores do the work, on random tokens and on text.

# %% tags=["parameters"]
model_name: str = "smollm2-135m-instruct-q4"  # a name from `python -m helpers.models list`, a folder or a hub id
n_sequences: int = 12  # random sequences in each sample, 4 to 1000
segment_length: int = 20  # random tokens that are then repeated, 8 to 1000
n_passages: int = 6  # passages of English text, 2 to 96
passage_length: int = 512  # tokens of each passage, 48 to 600
max_ablated_heads: int = 8  # the largest set that is ablated, 1 to 256
n_random_sets: int = 10  # random sets of heads to compare with, 10 to 200
n_text_sets: int = 3  # of these, on text, 2 to 200
n_training_steps: int = 800  # of each toy model, 1 to 20000
n_training_seeds: int = 3  # toy models of each kind, 2 to 10
seed: int = 0  # of all sampling, 0 to 999999
device: str = "cpu"  # cpu, or cuda where there is a GPU
dtype: str = ""  # of the weights: "float32", "bfloat16" or "float16"; "" for the model's own

# %%
import numpy as np
import torch
from helpers import attribution, claims, hooks, patching, plots, prompts, runs
from studies.induction import figures, text, toy

run = runs.begin("induction_heads_notebook", globals())
model = run.loaded

# %% [markdown]
# ## See one at work
#
# Attention is a weight that each token gives to every earlier one, by each head. Twelve random tokens, then the first
# eight of them again: a head that finds where the present token stood before, and looks at what *followed* it there,
# is easy to recognise. (One that looks at the copy itself is a *duplicate-token head*.) We score every head for that
# and look at the best, {glue:text}`best_head`: layer, then head.


# %%
def draw(sample_seed, length=segment_length, n_copies=2):
    """Sequences of copies of one segment of random tokens, and as long ones in which nothing repeats."""
    segments = prompts.draw_segments(
        model,
        n_sequences=n_sequences,
        segment_length=length,
        n_segments=n_copies,
        seed=sample_seed,
    )
    both = segments[:, :1].expand(-1, n_copies, -1), segments
    return [
        prompts.prepend_start_token(model, some.flatten(1)) for some in both
    ]


# %%
copied_length = min(25, ((model.context_length or 101) - 1) // 4)
selection, _ = draw(4 * seed + 2, copied_length, 4)
start = selection.shape[1] - 4 * copied_length  # 1 with a start token, else 0
selected_by = attribution.score_attention_to_repeats(model, selection)
matching_score = selected_by["induction"].mean(0)  # layer, head


def name(head):
    return attribution.name_heads([head])


def share_of(values, of="sequences"):
    return claims.average(values, seed=seed, of=of, within=(0, 1))


# %% tags=["hide-input"]
known = draw(4 * seed, 12)[0][:, start : start + 12]  # no head was chosen here
rows = torch.cat([known, known[:, :8]], dim=1)  # twelve tokens, eight again
after = prompts.prepend_start_token(model, rows)
guesses = hooks.capture(model, after, "logits")["logits"][:, 0].softmax(-1)
gets_right = guesses.argmax(-1) == known[:, 8]
one = int(gets_right.int().argmax())  # the first that the model gets right
example = after[[one]]
after_others = torch.cat([known[one - 1], known[one, :8]])[None]
unseen = prompts.prepend_start_token(model, after_others)
logits = hooks.capture(model, unseen, "logits")["logits"]
guesses_unseen = logits[0, 0].softmax(-1)
run.table(
    "next_tokens",
    [
        {
            "likeliest next token": model.token_labels([int(token)])[0],
            "is the right one": "yes" if token == known[one, 8] else "",
            "probability": float(guesses[one, token]),
            "after other tokens": float(guesses_unseen[token]),
        }
        for token in guesses[one].topk(5).indices
    ],
    caption=f"What the model expects after {' '.join(model.token_labels(example[0].tolist()))}, and with what probability "
    f"where the first twelve tokens are others, so that nothing repeats. One sequence, the first that the model gets right if there is any: it gets {int(gets_right.sum())} of {n_sequences}.",
)
shown = attribution.find_largest_heads(matching_score, 2)
shown += attribution.find_largest_heads(
    selected_by["duplicate token"].mean(0), 1
)
pattern = hooks.capture(model, example, "pattern", positions="all")["pattern"]
plots.show_attention(
    "attention-of-best-heads",
    model.token_labels(example[0].tolist()),
    torch.stack([pattern[0, layer, head] for layer, head in shown]),
    [*map(name, shown)],
    caption="The two heads with the best score for looking from a repeated token at the one after its earlier copy, and the best at the copy "
    "itself, one place to the left. Rows are the tokens that attend, columns those attended to; the first column takes what "
    "finds nothing. Choose a head to enlarge it. One sequence.",
    alt="Attention patterns of three heads on twelve random tokens of which eight are repeated.",
)

# %% [markdown]
# Over {glue:text}`n_sequences` sequences the likeliest next token of the second round is right in
# {glue:text}`top_one` of the places; where nothing repeats, in {glue:text}`top_one_unrepeated`.

# %%
repeated, unrepeated = draw(4 * seed + 1)
# entry i of the losses is that of token i + 1, which position i predicts
ends = start + segment_length - 1, start + 2 * segment_length - 1
halves = slice(start, ends[0]), slice(ends[0] + 1, ends[1])
places = {str(i): i for i in range(ends[0] + 1, ends[1])}


def share_right(row):
    """In what share of the second half's places the likeliest next token is the right one."""
    logits = hooks.capture(model, row[None], "logits", positions=places)
    return (logits["logits"][0].argmax(-1) == row[1:][halves[1]]).float().mean()


right = [*map(share_right, repeated)]
right_unrepeated = [*map(share_right, unrepeated)]

# %% tags=["hide-input"]
run.value("n_sequences", n_sequences)
run.value("segment_length", segment_length)
run.value("copied_length", copied_length)
run.value("top_one", share_of(right))
run.value("top_one_unrepeated", float(np.mean(right_unrepeated)))

# %% [markdown]
# ## See the loss fall
#
# **What we expect.** The loss of a token is $-\log p(x_t \mid x_{<t})$. Random tokens can't be predicted: in the first
# half its mean can't go below about $\log V$, here {glue:text}`uniform_loss` nats. If the model copies, it drops as soon
# as the repetition begins. Position is ruled out by sequences that are alike in all but having a new second half.

# %%
losses = [hooks.measure_losses(model, rows) for rows in (repeated, unrepeated)]


def half_means(loss):
    """The mean loss of each half: half, then as before."""
    return torch.stack([loss[..., half].mean(-1) for half in halves])


first, second = half_means(losses[0])
first_unrepeated, second_unrepeated = half_means(losses[1])
unrelated = first_unrepeated - second_unrepeated  # the fall without repetition

# %%
uniform = float(np.log(model.config.vocab_size))
run.value("uniform_loss", uniform)
run.value("loss_first_half", claims.average(first, seed=seed))
run.value("loss_second_half", claims.average(second, seed=seed))
new_half = claims.average(second_unrepeated, seed=seed)
run.value("loss_second_half_unrepeated", new_half)
run.claim(
    "repetition-lowers-loss",
    estimate=claims.average(first - second - unrelated, seed=seed),
    baseline=float(unrelated.mean()),
)
from_start = (loss[:, start:] for loss in losses)
figures.show_losses(*from_start, segment_length=segment_length, uniform=uniform)

# %% [markdown]
# From {glue:text}`loss_first_half` nats the loss falls to {glue:text}`loss_second_half`; with a new second half it stays
# at {glue:text}`loss_second_half_unrepeated`.
#
# ## Score every head
#
# Three habits show in the pattern $A_{t,s}$, the weight that position $t$ gives to position $s$. On
# {glue:text}`copied_length` random tokens that come four times:
#
# - *prefix matching*, the mark of an **induction head**: the weight on the tokens *after* earlier copies of the present
#   one, $\sum_{s:\,x_{s-1}=x_t} A_{t,s}$. ({cite:t}`olsson2022context` speak of the average over copies; the sum is what
#   can reach one.)
# - **duplicate token**: the weight on the earlier copies themselves;
# - **previous token**: $A_{t,t-1}$, on text.
#
# The fourth is about what a head writes directly: **copying** is the share, of all by which a head that attends to a token
# raises tokens of the sequence, that falls to this token; by chance near {glue:text}`copying_by_chance`.
#
# **What we expect.** Few heads match. One that merely prefers a distance would score as high, so every head is also
# scored at the same places where nothing repeats.

# %%
four_times, never = draw(4 * seed + 3, copied_length, 4)
scores = attribution.score_attention_to_repeats(model, four_times)
control = attribution.score_attention_to_repeats(
    model, never, places_of=four_times
)

length = min(passage_length, model.context_length or passage_length)
prose = four_times  # of a model without a tokenizer
if model.tokenizer is not None:
    few = {"n_passages": min(n_passages, 16), "n_tokens": min(128, length)}
    prose = prompts.read_passages(model, **few)


# %%
def score_previous(rows):
    """Attention to the token before, but for the start token: row, layer, head."""
    weights = hooks.capture(model, rows, "pattern", positions="all")["pattern"]
    return weights.diagonal(-1, -2, -1)[..., start:].mean(-1)


scores["previous token"] = score_previous(prose)
segment = four_times[:, start : start + copied_length]
copying = attribution.score_copying(model, segment)
scores["copying"] = (copying + 1) / 2  # from 0 to 1, as the others
score = {job: values.mean(0) for job, values in scores.items()}


def measure(job, head):
    return share_of(scores[job][:, *head].numpy())


# %% [markdown]
# An induction head is commonly defined by *two* habits: it looks at what followed last time, and it writes what it
# looks at. So we decide head by head whether those that match (above one half on the first sample) also copy: surely more
# than the 95th percentile of the heads that match nothing.

# %%
candidates = attribution.find_largest_heads(matching_score, max_ablated_heads)
best_head = candidates[0]
matches = matching_score > 0.5
matching = [tuple(head) for head in matches.nonzero().tolist()]
match_nothing = score["copying"][matching_score < 0.1].numpy()
limit = float(np.quantile(match_nothing, 0.95))  # of all there are, no sample


def copies(head):
    copying = measure("copying", head)
    if copying.low > limit:
        return "yes"
    return "no" if copying.high < limit else "undecided"


# %%
run.value("best_head", name(best_head))
run.claim(
    "induction-heads-exist",
    estimate=measure("induction", best_head),
    baseline=float(control["induction"].mean(0).max()),
)
kinds = [copies(head) for head in matching]
keys = {"yes": "both", "no": "only_match", "undecided": "undecided"}
for kind, key in keys.items():
    so = [
        head for head, one in zip(matching, kinds, strict=True) if one == kind
    ]
    run.value(key, f"{len(so)} ({attribution.name_heads(so)})")

# %%
chance = 1 / copied_length
above = [head for head in matching if measure("copying", head).low > chance]
run.value("above_chance", f"{len(above)} ({attribution.name_heads(above)})")
bounds = kinds.count("yes"), len(kinds) - kinds.count("no")
low, high = (count / max(len(kinds), 1) for count in bounds)
share = low, high, len(kinds), "heads", "undecided heads as not, and as so:"
both = claims.Estimate(low, *share) if kinds else None
run.claim("matching-heads-copy", estimate=both, baseline=0.05)

# %% tags=["hide-input"]
run.value("copying_by_chance", chance)
run.table(
    "induction_heads",
    [
        {
            "head": name(head),
            "prefix matching": measure("induction", head),
            "where nothing repeats": float(
                control["induction"][:, *head].mean()
            ),
            "copying": measure("copying", head),
            "copies": kind,
        }
        for head, kind in zip(matching, kinds, strict=True)
    ],
    caption="Every head whose prefix matching was above one half on the first sample, scored on the second. It copies if surely more than "
    f"{claims.shorten(limit)}, the 95th percentile of the {len(match_nothing)} heads that match nothing. Mean over {n_sequences} sequences, 95 % interval in brackets.",
)
figures.show_scores(
    score,
    caption=f"{len(matching)} of {matches.numel()} heads match prefixes. Four scores of every head, means over {n_sequences} random sequences "
    f"(previous token: {len(prose)} passages).",
)

# %% [markdown]
# Both habits have {glue:text}`both`; {glue:text}`only_match` match and copy surely less than the bar, the best twentieth of those that match
# nothing; {glue:text}`undecided` can't be decided. Surely above mere chance ({glue:text}`copying_by_chance`)
# copy {glue:text}`above_chance`. Below, heads are chosen by where they look, the best {glue:text}`n_ablated` ({glue:text}`best_heads`); what they do
# in sentences with names stands in [the other
# replication](../project-2-indirect-object-identification/IOI_notebook).
#
# ## Grow one from scratch
#
# Why should this take two layers? What stands *after* the earlier copy does not say what came before it, unless an
# earlier head wrote that down: a *previous-token head*. Then the induction head can look for the *key* "the token
# before me was the present one" (K-composition). {cite:t}`olsson2022context` had a second argument: let each key of a
# single layer mix in the key before it, and the one layer should do it too.
#
# We train attention-only models (no MLPs, no norms, four heads a layer) on sequences that repeat a segment of changing
# length, so that no fixed distance helps. Their in-context-learning score is the loss of tokens that the repetition
# determines less that of tokens that nothing does.
#
# **What we expect.** All learn that one of the tokens seen will come again. Two layers and smeared keys get further, and
# suddenly.

# %%
from itertools import product

toy_seeds = range(seed, seed + n_training_seeds)
trained = toy.train_all(toy_seeds, n_steps=n_training_steps)
last = {key: history[n_training_steps] for key, (_, history) in trained.items()}
final = {
    kind: np.array(
        [float(last[kind, one].in_context_learning.mean()) for one in toy_seeds]
    )
    for kind in toy.KINDS
}


# %%
def over_models(values):
    """The mean over trained models, with Student's interval."""
    return claims.average(list(values), seed=seed, of="trained models")


def rises(kind):
    """Its rise and that of one layer, as shares of the steps until then."""
    curves = {key: history for key, (_, history) in trained.items()}
    return np.array(
        [
            toy.compare_rises(curves[kind, one], curves["one layer", one])
            for one in toy_seeds
        ]
    ).T


# %%
two, plain = rises("two layers")
smeared, _ = rises("one layer, smeared keys")
gain = {kind: over_models(final[kind] - final["one layer"]) for kind in final}
alone = {"baseline": float(final["one layer"].mean())}
run.claim("two-layers-learn-induction", estimate=gain["two layers"], **alone)
of_smeared = gain["one layer, smeared keys"]
run.claim("smeared-keys-suffice", estimate=of_smeared, **alone)
known = bool(np.isfinite(smeared).all())
run.value("smeared_rise", over_models(smeared) if known else "not measured")
sudden = {"estimate": None}
if np.isfinite([two, plain]).all():
    sudden = {"estimate": over_models(two - plain)}
    run.value("two_rise", over_models(two))
    sudden["baseline"] = float(plain.mean())
run.claim("two-layers-learn-suddenly", **sudden)

# %% tags=["hide-input"]
figures.show_training(
    trained,
    caption=f"Two layers end {claims.shorten(gain['two layers'].value)} nats from one, smeared keys {claims.shorten(gain['one layer, smeared keys'].value)}. Scores of {n_training_seeds} "
    f"models of each kind on {toy.HELD_OUT} held-out sequences (left), and attention of the best heads of the first with two layers (right).",
)

# %% [markdown]
# Do the two heads compose, and through the keys? The composition score of {cite:t}`elhage2021mathematical`,
# $\lVert W_{OV}^s W_{QK}^{r\top}\rVert / (\lVert W_{OV}^s\rVert\,\lVert W_{QK}^r\rVert)$, is high if what head $s$ writes
# is what head $r$ reads. A score of weights is no cause, so we also *cut* each path: what a head of layer 0 writes is
# taken out of what layer 1 reads as keys, queries or values, and left everywhere else.

# %%
held_out = toy.draw_held_out_repeats()
by_chance = toy.score_random_composition(
    trained["two layers", seed][0], n_draws=2000, seed=seed
)
cuts = {}  # (head of layer 0, input of layer 1) → rise of the loss, by model
for path in product(range(4), toy.INPUTS):
    for one in toy_seeds:
        network, whole = trained["two layers", one][0], last["two layers", one]
        without = toy.measure(network, held_out, cut=path).loss_repeated
        rise = float((without - whole.loss_repeated).mean())
        cuts.setdefault(path, []).append(rise)

# %%
fits, leads, through_keys, ranked = [], [], [], []
for i, one in enumerate(toy_seeds):
    at = last["two layers", one]
    ranked.append(at.previous_token[0].argsort(descending=True).tolist())
    sender, receiver = ranked[i][0], int(at.prefix_matching[1].argmax())
    composition = toy.score_composition(trained["two layers", one][0])
    fit = float(composition["k"][sender, receiver])
    composition["k"][sender] = 0  # what is left is of other senders
    fits.append((fit, float(composition["k"].max())))
    by_path = {path: rise[i] for path, rise in cuts.items()}
    through_keys.append(by_path.pop((sender, "k")))
    leads.append(through_keys[-1] - max(by_path.values()))

# %%
run.value("random_composition", float(by_chance.quantile(0.95)))
fit, next_best = np.array(fits).T
run.claim(
    "composition-above-chance",
    estimate=over_models(fit - next_best),
    baseline=float(next_best.mean()),
)
run.claim(
    "induction-composes-through-keys",
    estimate=over_models(leads),
    baseline=float(np.mean(through_keys)),
)

# %% tags=["hide-input"]
run.table(
    "cuts",
    [
        {"head of layer 0, by attention to the previous token": rank + 1}
        | {
            f"cut from {long}": over_models(
                [cuts[heads[rank], short][i] for i, heads in enumerate(ranked)]
            )
            for short, long in zip(
                toy.INPUTS, ("queries", "keys", "values"), strict=True
            )
        }
        for rank in range(4)
    ],
    caption=f"Rise of the loss (nats) of tokens that the repetition determines when one path into layer 1 is cut: mean over {n_training_seeds} models of two layers, 95 % interval over models in brackets ({toy.HELD_OUT} held-out sequences each).",
)

# %% [markdown]
# ## Take the heads out
#
# Back to the language model. We remove heads and see what is lost. No filling of the gap is innocent: *zero* also
# removes what a head always writes, *mean* leaves that, *resample* puts in what it wrote on another sequence. And a
# head's absence changes where later heads look; {cite:t}`olsson2022context` therefore keep all attention patterns as they
# were in the intact run, our fourth row (there filled by the mean).
#
# **What we expect.** Without the best heads the second half loses far more than without as many *other heads of the same
# layers*, whatever fills the gap; what needs no copying changes little.

# %%
from helpers import baselines

all_heads = list(np.ndindex(model.n_layers, model.n_heads))
options = {"n_sets": n_random_sets, "seed": seed}
options["avoid"] = list({*candidates, *matching})
drawn = {
    size: baselines.draw_controls(model, candidates[:size], **options)
    for size in range(1, len(candidates) + 1)
}
# as many as leave other heads to compare with
n_ablated = max((size for size in drawn if drawn[size].sets), default=0)
best = candidates[:n_ablated]
several = [best, *drawn[n_ablated].sets] if best else []


# %%
def ablate(rows, sets, how="mean", reference=None):
    """The rise of each token's loss without each set of heads: set, sequence, token."""
    sets = [*map(patching.list_nodes, sets)]
    options = {"how": how, "seed": seed, "metric": "losses"}
    options["reference"] = reference
    return patching.ablate(model, rows, sets, **options).effect


# %%
kept = hooks.capture(model, repeated, ["pattern", "head_z"], positions="all")
mean_z = kept["head_z"].mean((0, 2))  # layer, head, d_head
patterns = [
    hooks.Edit("pattern", layer, kept["pattern"][:, layer].transpose(1, 2))
    for layer in range(model.n_layers)
]


def ablate_keeping_patterns(heads):
    """The same by the mean for one set, with every pattern kept as it was."""
    gaps = [hooks.Edit("head_z", at[0], mean_z[at], head=at[1]) for at in heads]
    with hooks.intervene(model, *patterns, *gaps):
        return hooks.measure_losses(model, repeated) - losses[0]


# %%
rise = {}  # by what fills the gap: half, set, sequence
for how in ("mean", "zero", "resample") if best else ():
    rise[how] = half_means(ablate(repeated, several, how))
if best:  # half the controls, as each takes a pass of its own
    some = several[: 1 + len(several) // 2]
    frozen = torch.stack([*map(ablate_keeping_patterns, some)])
    rise["mean, patterns kept"] = half_means(frozen)
    new = half_means(ablate(unrepeated, [best], reference=repeated))[:, 0]


def compare(effects, of="sequences"):
    return baselines.compare_with_controls(effects, seed=seed, of=of)


beside = {how: compare(effects[1]) for how, effects in rise.items()}

# %%
nothing = {"estimate": None}
run.value("n_ablated", n_ablated)
run.value("best_heads", attribution.name_heads(best))
main = beside["mean"].evidence if best else nothing
run.claim("induction-heads-cause-copying", **main)
leads = [against.lead for against in beside.values()]
least = claims.bound(leads) if best else None
run.claim("cause-holds-for-any-filling", estimate=least)
harmed = best and all(found[1, 0].mean() > 0 for found in rise.values())


# %%
def spare(change, damage):
    """By how much a change falls short of a tenth of the damage."""
    change = change * change.mean().sign()
    return claims.average(0.1 * damage - change, seed=seed)


novel = {how: found[:, 0] for how, found in rise.items()}  # change and damage
novel |= {"a new half": [new[1], rise["mean"][1, 0]]} if best else {}
unhurt = {how: spare(*both) for how, both in novel.items()}
if best:
    worst = min(unhurt, key=lambda how: unhurt[how].value)
    changed = claims.average(novel[worst][0], seed=seed)
    run.value("novel_change", f"{changed.brief()} nats ({worst})")
hit = claims.bound([*unhurt.values()]) if harmed else None
run.claim("ablation-hits-copying", estimate=hit)

# %% tags=["hide-input"]
run.value("controls", str(drawn[n_ablated]) if best else "none")
if best:
    all_rows = {how: against.row for how, against in beside.items()}
    all_rows["mean, a new second half"] = compare(new[1:]).row
    at_first = [*(x[0, 0] for x in rise.values()), new[0]]
    run.table(
        "ablation",
        [
            {"filled with": how, **row}
            | {"first half": claims.average(first, seed=seed)}
            for (how, row), first in zip(
                all_rows.items(), at_first, strict=True
            )
        ],
        caption=f"Rise of the loss (nats) in the second half without {n_ablated} heads, and in the first for comparison: mean over {n_sequences} "
        f"sequences, 95 % interval in brackets. Controls: {drawn[n_ablated]}; with patterns kept half of them. In the last row nothing repeats, so that nothing can be copied.",
    )
    plots.show_against_controls(
        "ablation",
        beside,
        unit="rise of the loss of the second half (nats)",
        own=f"the {n_ablated} best prefix-matching heads",
        caption=f"Without the best prefix-matching heads the repeated half loses {claims.shorten(beside['mean'].own.value)} nats, without the most harmful control {claims.shorten(beside['mean'].strongest)} "
        f"(means). Rows: what fills the gap; {n_sequences} sequences, bars are 95 % intervals.",
        alt="Rise of the loss for four ways of ablation, for the best heads and for their controls.",
    )

# %% [markdown]
# ## Ask whether it matters on text
#
# The thesis of {cite:t}`olsson2022context` is bolder: induction heads do most of *in-context learning*, which they
# measure as the loss of a text's 500th token less that of its 50th (-0.4 nats in their models). We take
# {glue:text}`n_around` tokens around each, in beginnings of chapters of *Moby-Dick* (data sheet: `helpers/data/README.md`). As the two
# windows hold *different* tokens, the late ones are also predicted with a context cut to what the early ones had.
#
# **What we expect.** Without the heads the late tokens lose more than the early ones, and more than with controls
# removed.

# %%
half = max(1, length // 51)
centres = length * 50 // 512, length - 2 - half
windows = [list(range(at - half, at + half)) for at in centres]
sets = [*map(patching.list_nodes, several[: 1 + n_text_sets])]
run.value("n_text_controls", max(len(sets) - 1, 0))
run.value("n_around", 2 * half)


def lose(rows):
    """The loss of each token, intact and without each set: intact first, passage, token."""
    options = {"metric": "losses", "reference": of_means}
    found = patching.ablate(model, rows, sets or [[]], **options)
    return torch.cat([found.base[None], found.values])


# %%
texts = None
if model.tokenizer is not None:
    texts = prompts.read_passages(
        model, n_passages=n_passages + 4, n_tokens=length
    )
    texts, of_means = texts[:-4], texts[-4:]  # for the means of ablated heads
    shift = windows[1][0] - windows[0][0]
    cut = texts[:, shift : windows[1][-1] + 2].clone()
    cut[:, :start] = texts[:, :start]
    by_token = lose(texts)
    early, late = (by_token[..., window].mean(-1) for window in windows)
    late_cut = lose(cut)[..., windows[0]].mean(-1)

# %%
of_text, on_text, serving, most = {}, {}, nothing, None
if texts is not None:
    measured = {"late": late, "early": early, "late, context cut": late_cut}
    measured |= {"the score": late - early, "the gain": late - late_cut}
    for what, x in measured.items():
        of_text[what] = claims.average(x[0], seed=seed, of="passages")
        if best:
            on_text[what] = compare(x[1:] - x[0], "passages")
if on_text:
    serving = on_text["the score"].evidence
    most = text.compare_with_half(measured["the gain"], seed=seed)

# %%
run.value("text_score", of_text.get("the score", "not measured"))
run.value("text_gain", of_text.get("the gain", "not measured"))
run.claim("late-tokens-are-easier", estimate=of_text.get("the score"))
run.claim("long-context-lowers-loss", estimate=of_text.get("the gain"))
run.claim("induction-heads-serve-text", **serving)
half_or_more = {"estimate": None}
if most and most.lead:
    half_or_more = {"estimate": most.lead, "baseline": most.strongest}
    run.value("gain_lost", on_text["the gain"].own)
run.claim("induction-heads-do-most-of-it", **half_or_more)

# %% tags=["hide-input"]
if on_text:
    plots.show_against_controls(
        "text-ablation",
        on_text,
        unit="rise on text (nats)",
        own=f"the {n_ablated} best prefix-matching heads",
        caption=f"Without the {n_ablated} heads the in-context-learning score rises by {claims.shorten(on_text['the score'].own.value)} nats and the gain from the longer context shrinks by {claims.shorten(on_text['the gain'].own.value)}, of {claims.shorten(-of_text['the gain'].value)}. "
        f"Rows: loss of late tokens, of early ones, of late ones with their context cut; late less early; late less cut. {n_passages} passages of {length} tokens; bars are 95 % intervals; controls are {len(sets) - 1} sets of other heads of the same layers.",
        alt="Rise of five losses on text, for the best heads and for controls.",
    )

# %% [markdown]
# Late less early tokens: {glue:text}`text_score` nats. Late tokens with their context less the same with it cut to what early
# ones have: {glue:text}`text_gain`.
#
# ## Trace what one token changes
#
# Ablation breaks something; patching moves one piece of information. Two random sequences differ in one token: … A **B**
# … A and … A **C** … A. A model that copies expects B after the first and C after the second. We run the second,
# put in what one head wrote at the *last* token of the first, and read the logit difference B minus C.

# %%
few_tokens = draw(2_000_000 + seed, 10)[0][:, start : start + 10]
generator = torch.Generator().manual_seed(seed)
place = torch.randint(2, 5, (n_sequences,), generator=generator)  # of B
row = torch.arange(n_sequences)
with_b = few_tokens[:, :8].clone()
with_b[row, -1] = with_b[row, place - 1]  # it ends on A
with_c, without_a = with_b.clone(), with_b.clone()
with_c[row, place] = few_tokens[:, 8]
without_a[row, place - 1] = few_tokens[:, 9]  # B follows another token
pairs = torch.stack([with_b[row, place], with_c[row, place]], 1).tolist()

# %%
in_b, in_c, in_d = (
    prompts.prepend_start_token(model, rows)
    for rows in (with_b, with_c, without_a)
)
alone = [[head] for head in all_heads]
sets = [patching.list_nodes(some, position=-1) for some in alone + several]
patched = patching.patch_sets(model, in_c, in_b, sets, answers=pairs)
single = patched.effect[: len(all_heads)].unflatten(0, (model.n_layers, -1))
joint = compare(patched.effect[len(all_heads) :], "pairs") if best else None
effect = single.mean(-1)
apart = float((patched.source - patched.base).mean())
run.value("apart", apart)
run.value("joint", joint.own if best else "not measured")

# %% [markdown]
# Most heads neither match nor matter, so a correlation over all says little. We compare each head that matches with the
# others of its layer.

# %%
shared = model.n_heads // hooks.count_heads(model, "k")  # query heads on a key
lead_of = {}
for layer, head in matching:
    others = effect[layer][~matches[layer]]
    if len(others):
        lead_of[layer, head] = float(effect[layer, head] - others.mean())
lead = None
if len({(layer, head // shared) for layer, head in lead_of}) > 1:
    groups = [(layer, head // shared) for layer, head in lead_of]
    options = {"of": "key/value heads", "groups": groups}
    lead = claims.average([*lead_of.values()], seed=seed, **options)
together = joint.evidence if best else nothing
run.claim("induction-heads-carry-the-token", **together)
run.claim("score-predicts-effect", estimate=lead)

# %% tags=["hide-input"]
odd, even = single[..., 1::2], single[..., ::2].mean(-1)
strongest = attribution.find_largest_heads(even, 5)  # chosen on even pairs
opposed = [
    f"{name(head)} by {claims.average(odd[*head].numpy(), seed=seed).brief()}"
    for head in matching
    if even[head] < -0.01 * abs(apart)
]
run.value("strongest", name(strongest[0]))
moved = claims.average(odd[*strongest[0]].numpy(), seed=seed)
run.value("strongest_effect", moved)
run.value("strongest_matches", float(score["induction"][strongest[0]]))
run.value("opposed", ", ".join(opposed) or "none")
run.table(
    "patching",
    [
        {
            "patched": f"head {name(head)}",
            "effect": claims.average(odd[*head].numpy(), seed=seed),
            "prefix matching": float(score["induction"][head]),
            "copying": float(score["copying"][head]),
        }
        for head in strongest
    ],
    caption=f"The five heads that move the logit difference most towards B on every other pair, with what they move it by on the rest, in logits, where the unpatched runs are {claims.shorten(apart)} apart: mean over {n_sequences // 2} pairs, 95 % interval in brackets.",
)
figures.show_effects(
    score,
    effect,
    [*map(name, all_heads)],
    caption=f"Effect of patching a head against its score. Scores are means over {n_sequences} sequences, effects over {n_sequences} pairs; each point is a head, hover for its name.",
)

# %% [markdown]
# Heads that look at B and move the prediction the *other* way:
# {glue:text}`opposed`. The strongest patch, that of head {glue:text}`strongest`, moves {glue:text}`strongest_effect`
# logits; its prefix matching is {glue:text}`strongest_matches`; the strongest head without a role among names is
# {glue:text}`../project-2-indirect-object-identification/IOI_notebook.py::unnamed_first:s`.
#
# Now the toy's circuit, in the language model. If the keys at B say "A came before", some head wrote that. So we change A
# before B, but let the change travel on one path only: from one head's output into the *keys* of the prefix-matching heads
# at B (path patching: all else stays as it was), and, for comparison, into their *values*. The sender is chosen on every
# other sequence.

# %%
receivers = sorted({(layer, head // shared) for layer, head in matching})
size = model.n_layers, model.n_heads, n_sequences
into = {site: torch.zeros(size) for site in ("k", "v")}  # what B loses
for at in place.unique().tolist() if receivers else ():
    some = (place == at).nonzero()[:, 0]
    here = [(*head, start + at) for head in receivers]
    nodes = [[patching.Node(site, *one) for one in here] for site in into]
    rows, right = (in_b[some], in_d[some]), [pairs[i] for i in some]
    found = patching.patch_paths_to_each(model, *rows, nodes, answers=right)
    for site, effect in zip(into, -found.effect, strict=True):
        into[site][..., some] = effect

# %%
(sender,) = attribution.find_largest_heads(into["k"][..., ::2].mean(-1), 1)
others = [head for head in all_heads if head != sender]
measured = torch.stack([into["k"][*head, 1::2] for head in (sender, *others)])
fed = compare(measured).evidence if receivers else nothing
to_one_before = scores["previous token"][:, *sender]
run.value("sender", name(sender))
run.claim("one-head-feeds-the-keys", **fed)
run.claim(
    "it-attends-to-the-previous-token",
    estimate=share_of(to_one_before, "passages") if receivers else None,
    baseline=float(score["previous token"].median()),
)

# %% tags=["hide-input"]
run.table(
    "into_keys",
    [
        {
            "head": name(head),
            "B loses through keys": claims.average(
                into["k"][*head, 1::2], seed=seed
            ),
            "through values": claims.average(into["v"][*head, 1::2], seed=seed),
            "previous token": float(score["previous token"][head]),
        }
        for head in attribution.find_largest_heads(
            into["k"][..., ::2].mean(-1), 5
        )
    ],
    caption=f"The five heads whose path into the keys of the {len(receivers)} receivers (each shared by query heads) matters most on every other sequence, with what B loses against an absent token on the rest, in logits: mean over {n_sequences // 2} sequences, 95 % interval in brackets.",
)

# %% [markdown]
# ## Compare with what was published
#
# {cite:t}`wang2022interpretability` (Appendices H and I) name the heads of GPT-2 small by the same scores, on a hundred
# random tokens that come twice: 5.5 and 6.9 (induction), 4.11 and 2.2 (previous token), 3.0 and 0.1 (duplicate token).

# %%
PUBLISHED = {  # heads, and among how many of the best they are looked for
    "induction": ({(5, 5), (6, 9)}, 5),
    "previous token": ({(4, 11), (2, 2)}, 2),
    "duplicate token": ({(3, 0), (0, 1)}, 3),
}
on_twice = {}
if model.card.name == "gpt2-small":
    on_twice = attribution.score_attention_to_repeats(model, repeated)
    on_twice["previous token"] = score_previous(repeated)
for job, (heads, count) in PUBLISHED.items():
    rows = on_twice.get(job, ())
    largest = [attribution.find_largest_heads(one, count) for one in rows]
    shares = [len(heads & {*some}) / len(heads) for some in largest]
    estimate = claims.average(shares, seed=seed) if shares else None
    run.claim(f"published-{job.replace(' ', '-')}-heads", estimate=estimate)

# %% [markdown]
# ## Check it
#
# The best head's score and patch once more, by another library: TransformerLens runs the same weights through its own
# hooks.


# %%
def score_again(bridge):
    site = f"blocks.{best_head[0]}.attn.hook_pattern"
    options = {"names_filter": site, "prepend_bos": False}
    rows = four_times[:1].to(device)
    _, cache = bridge.run_with_cache(rows, **options)
    weights = cache[site][0, best_head[1]].cpu()
    later = range(start + copied_length, rows.shape[1])
    at = [range(t - copied_length + 1, start, -copied_length) for t in later]
    total = sum(
        weights[t, s] for t, each in zip(later, at, strict=True) for s in each
    )
    return float(total / len(later))


# %%
from studies import checks

rows = in_c[0].tolist(), in_b[0].tolist()
patch_again = checks.patch_again(*rows, best_head, pairs[0], position=-1)
by_us = float(scores["induction"][0, *best_head])
patched_by_us = float((single + patched.base)[*best_head, 0])
both_ways = (score_again, by_us, 1e-4), (patch_again, patched_by_us, 1e-2)
score_apart, patch_apart = checks.compare(model, both_ways)
run.value("check_score", score_apart)
run.value("check_patch", patch_apart)

# %% [markdown]
# The libraries differ by {glue:text}`check_score` in the score and by {glue:text}`check_patch` logits in the patched run.
#
# ## Where this breaks
#
# Are the heads the model's or our sequences'? The best five once more: another seed, with or without a start token,
# tokens drawn as often as in a book, each once at most.

# %%
variants = {"another seed": draw(4 * seed + 7, copied_length, 4)[0]}
bos = model.tokenizer.bos_token_id if model.tokenizer is not None else None
if start:
    variants["without the start token"] = four_times[:, start:]
elif bos is not None:
    first_column = torch.full((n_sequences, 1), bos)
    variants["with a start token"] = torch.cat([first_column, four_times], 1)
words, counts = prose[:, start:].unique(return_counts=True)
if model.tokenizer is not None and len(words) >= copied_length:
    chances = counts.double().expand(n_sequences, -1)
    picks = torch.multinomial(chances, copied_length, generator=generator)
    like_a_book = words[picks].repeat(1, 4)
    variants["tokens of a book"] = prompts.prepend_start_token(
        model, like_a_book
    )

# %% tags=["hide-input"]
reference = attribution.find_largest_heads(score["induction"], 5)
rows = []
for sample, tokens in variants.items():
    found = attribution.score_attention_to_repeats(model, tokens)["induction"]
    best_five = attribution.find_largest_heads(found.mean(0), 5)
    rows.append(
        {
            "sample": sample,
            f"score of head {name(best_head)}": share_of(found[:, *best_head]),
            "best head": name(best_five[0]),
            "of the best five, the same": len({*best_five} & {*reference}),
        }
    )
run.table(
    "variants",
    rows,
    caption=f"Prefix matching on other samples of {n_sequences} sequences, 95 % interval in brackets.",
)
same = min(row["of the best five, the same"] for row in rows)
run.value("same_five_at_least", same)

# %% [markdown]
# - **The sample may matter**: at least {glue:text}`same_five_at_least` of the best five are the same on each.
# - **Ablation has side effects.** Later layers see a stream that they never met in training. The controls ({glue:text}`controls`)
#   bound how much of the damage that explains, and no more.
# - **Random tokens are not language**, and a famous novel may be in the training data: its loss is not that of unseen
#   text.
# - **The toy is a toy.** Two layers suffice there; the language model's heads may have come about otherwise.
# - **One model.** `model_name` runs the page on others. (The default's weights were rounded to four bits.)
#
# ## Summary
#
# - {glue:text}`found-repetition-lowers-loss` **{glue:text}`claim-repetition-lowers-loss`**
# - {glue:text}`found-induction-heads-exist` **{glue:text}`claim-induction-heads-exist`**
# - {glue:text}`found-matching-heads-copy` **{glue:text}`claim-matching-heads-copy`**
# - {glue:text}`found-two-layers-learn-induction` **{glue:text}`claim-two-layers-learn-induction`**
# - {glue:text}`found-two-layers-learn-suddenly` **{glue:text}`claim-two-layers-learn-suddenly`**
# - {glue:text}`found-smeared-keys-suffice` **{glue:text}`claim-smeared-keys-suffice`**
# - {glue:text}`found-composition-above-chance` **{glue:text}`claim-composition-above-chance`**
# - {glue:text}`found-induction-composes-through-keys` **{glue:text}`claim-induction-composes-through-keys`**
# - {glue:text}`found-induction-heads-cause-copying` **{glue:text}`claim-induction-heads-cause-copying`**
# - {glue:text}`found-cause-holds-for-any-filling` **{glue:text}`claim-cause-holds-for-any-filling`**
# - {glue:text}`found-ablation-hits-copying` **{glue:text}`claim-ablation-hits-copying`**
# - {glue:text}`found-late-tokens-are-easier` **{glue:text}`claim-late-tokens-are-easier`**
# - {glue:text}`found-long-context-lowers-loss` **{glue:text}`claim-long-context-lowers-loss`**
# - {glue:text}`found-induction-heads-serve-text` **{glue:text}`claim-induction-heads-serve-text`**
# - {glue:text}`found-induction-heads-do-most-of-it` **{glue:text}`claim-induction-heads-do-most-of-it`**
# - {glue:text}`found-induction-heads-carry-the-token` **{glue:text}`claim-induction-heads-carry-the-token`**
# - {glue:text}`found-score-predicts-effect` **{glue:text}`claim-score-predicts-effect`**
# - {glue:text}`found-one-head-feeds-the-keys` **{glue:text}`claim-one-head-feeds-the-keys`**
# - {glue:text}`found-it-attends-to-the-previous-token` **{glue:text}`claim-it-attends-to-the-previous-token`**
# - {glue:text}`found-published-induction-heads` **{glue:text}`claim-published-induction-heads`**
# - {glue:text}`found-published-previous-token-heads` **{glue:text}`claim-published-previous-token-heads`**
# - {glue:text}`found-published-duplicate-token-heads` **{glue:text}`claim-published-duplicate-token-heads`**

# %%
run.finish()

# %% [markdown]
# ## Exercises
#
# **1. Guess the stripe**, easy (5 minutes). In a segment of five tokens that comes twice, from position 7 (counted from
# 0, no start token): which position does an induction head look at? *Hint: the present token stood five places back.*
#
# ```{dropdown} Solution
# Position 7 holds the third token of the segment, whose copy is at 2; the head looks at what followed, position 3.
# ```
#
# **2. Guess the deeper one**, medium (10 minutes). Of previous-token and induction heads, which lie in later layers of
# this model, by the mean layer of those above one half? *Hint: who has to have written before whom can read?*
#
# ```{dropdown} Solution
# An induction head reads what a previous-token head wrote, so it can't come first; the maps of scores show where each
# lies. A previous-token head in a late layer serves something else.
# ```
#
# **3. Starve the toy**, hard (20 minutes). Give the toy sequences a segment of fixed length and train one layer. What
# in-context-learning score does it end with? *Hint: assign to `toy.draw_repeats` a copy of it in which `period` is
# constant, and call `toy.train`.*
#
# ```{dropdown} Solution
# Far below that of the one-layer models on this page: the next token always stands at the same distance, so position alone
# finds it. A score that does not vary the distance can't tell such a head from an induction head.
# ```

# %%
from studies import exercises

my_position, my_job = None, None  # your guesses: a number; a text
my_score = None  # of the last measurement, its mean in nats
twice = 2 * [*range(5)]
looks_at = twice.index(twice[7]) + 1
print(exercises.check(my_position, looks_at, hint="what followed the copy"))
depth = {
    job: float((score[job] > 0.5).nonzero()[:, 0].double().mean())
    for job in ("induction", "previous token")
}
deeper = max(depth, key=depth.__getitem__)
print(exercises.check(my_job, deeper, hint="the maps of scores"))
lower = my_score and my_score < final["one layer"].mean() - 1
print(exercises.check(lower, True, hint="whether the period is constant"))

# %% [markdown]
# ## References
#
# {cite:t}`olsson2022context`, {cite:t}`elhage2021mathematical` and {cite:t}`wang2022interpretability`, in full in the
# [bibliography](../../reference/bibliography).
