"""The toy transformers do what their algebra says, and two layers learn what one can't."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studies.induction import toy

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"vocabulary_size": 32, "length": 32}
SMALL = {"vocabulary_size": 12, "length": 8, "d_model": 16}
DRAWS = {"seed": st.integers(0, 10_000), "length": st.integers(16, 48), "spare": st.integers(0, 20)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(n_sequences, *, seed=0, length=32, spare=8):
    """Sequences of as few different tokens as there may be, and `spare` more."""
    size = 3 * length // 4 + spare
    return toy.draw_repeats(n_sequences, vocabulary_size=size, length=length, generator=seeded(seed))


def tokens_for(sizes, n_sequences=3, seed=0):
    return torch.randint(sizes["vocabulary_size"], (n_sequences, sizes["length"]), generator=seeded(seed))


# Sequences


@given(**DRAWS)
def test_tokens_differ_until_the_first_repetition_and_then_equal_those_one_period_earlier(seed, length, spare):
    repeats = draw(5, seed=seed, length=length, spare=spare)
    assert repeats.tokens.shape == repeats.repeated.shape == (5, length)
    assert repeats.tokens.min() >= 0 and repeats.tokens.max() < 3 * length // 4 + spare
    for row, period, repeated in zip(repeats.tokens.tolist(), repeats.period.tolist(), repeats.repeated, strict=True):
        first = int(repeated.nonzero()[0])
        assert len(set(row[:first])) == first >= period
        assert row[first:] == row[first - period : -period]


@given(**DRAWS)
def test_repeated_is_where_the_token_has_occurred_before(seed, length, spare):
    repeats = draw(5, seed=seed, length=length, spare=spare)
    for row, repeated in zip(repeats.tokens.tolist(), repeats.repeated.tolist(), strict=True):
        assert repeated == [token in row[:place] for place, token in enumerate(row)]


@given(seed=st.integers(0, 1000), length=st.sampled_from([16, 20, 32, 48]))
def test_no_fixed_distance_leads_to_the_copy_and_no_fixed_place_begins_it(seed, length):
    repeats = draw(500, seed=seed, length=length)
    n_before = (~repeats.repeated).sum(1) - repeats.period
    for drawn in (repeats.period, n_before):
        assert drawn.bincount().max() < 250
    for distance in range(1, length):  # a multiple of the period leads to a copy as well
        same = repeats.tokens[:, distance:] == repeats.tokens[:, :-distance]
        known = repeats.repeated[:, distance:]
        assert (same | ~known).all(1)[known.any(1)].sum() < 250


@given(seed=st.integers(0, 1000))
def test_the_same_seed_draws_the_same_sequences_and_another_seed_others(seed):
    first, again, other = (draw(4, seed=one).tokens for one in (seed, seed, seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_token_is_drawn_about_equally_often():
    counts = draw(3000, length=32, spare=8).tokens.flatten().bincount(minlength=32)
    assert counts.min() > 0.9 * counts.float().mean()
    assert counts.max() < 1.1 * counts.float().mean()


@pytest.mark.parametrize(("size", "length"), [(32, 15), (11, 16), (23, 32), (0, 16), (32, 0)])
def test_sequences_that_are_too_short_or_have_too_few_tokens_are_refused(size, length, refused):
    with refused(f"{size} tokens", f"sequences of {length}", "legal", "16", "three quarters"):
        toy.draw_repeats(2, vocabulary_size=size, length=length, generator=seeded())


# The model


@torch.no_grad()
def naive(model, tokens, cut=None):
    """Logits and patterns (layer, head, query, key) of one sequence, one head and one query at a time."""
    n, (n_layers, n_heads, _, d_head) = len(tokens), model.W_Q.shape
    resid = torch.stack([model.W_E[token] + model.W_pos[place] for place, token in enumerate(tokens)])
    patterns, cut_off = torch.zeros(n_layers, n_heads, n, n, dtype=resid.dtype), torch.zeros_like(resid)
    for layer in range(n_layers):
        written = torch.zeros(n_heads, *resid.shape, dtype=resid.dtype)
        for head in range(n_heads):
            reads = {name: resid - cut_off if cut and cut[1] == name else resid for name in "qkv"}
            q, k = reads["q"] @ model.W_Q[layer, head], reads["k"] @ model.W_K[layer, head]
            moved = reads["v"] @ model.W_V[layer, head] @ model.W_O[layer, head]
            for query in range(n):
                scores = [math.exp(q[query] @ k[key] / d_head**0.5) for key in range(query + 1)]
                for key, score in enumerate(scores):
                    patterns[layer, head, query, key] = score / sum(scores)
                    written[head, query] += score / sum(scores) * moved[key]
        if cut and layer == 0:
            cut_off = written[cut[0]]
        resid = resid + written.sum(0)
    return resid @ model.W_U, patterns


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_forward_pass_is_that_of_each_head_in_plain_algebra(n_layers):
    model, tokens = toy.AttentionOnly(n_layers, **SMALL, seed=1).double(), tokens_for(SMALL)
    logits, patterns = model(tokens)
    assert patterns.shape == (n_layers, 3, 4, 8, 8)
    for i, row in enumerate(tokens):
        wanted_logits, wanted_patterns = naive(model, row)
        torch.testing.assert_close(logits[i], wanted_logits)
        torch.testing.assert_close(patterns[:, i], wanted_patterns)


@pytest.mark.parametrize("name", toy.INPUTS)
@pytest.mark.parametrize("n_layers", [2, 3])
def test_a_cut_takes_one_head_out_of_one_input_of_the_later_layers(n_layers, name):
    model, tokens = toy.AttentionOnly(n_layers, **SMALL, seed=1).double(), tokens_for(SMALL)
    whole, _ = model(tokens)
    for head in range(4):
        logits, patterns = model(tokens, cut=(head, name))
        assert (logits - whole).abs().max() > 1e-3
        for i, row in enumerate(tokens):
            wanted_logits, wanted_patterns = naive(model, row, (head, name))
            torch.testing.assert_close(logits[i], wanted_logits)
            torch.testing.assert_close(patterns[:, i], wanted_patterns)


@pytest.mark.parametrize("name", toy.INPUTS)
def test_a_cut_of_what_nothing_reads_changes_nothing(name):
    one_layer, silent = toy.AttentionOnly(1, **SMALL), toy.AttentionOnly(2, **SMALL)
    silent.W_O.data[0, 2] = 0
    for model in (one_layer, silent):
        whole, cut = model(tokens_for(SMALL)), model(tokens_for(SMALL), cut=(2, name))
        assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])


@pytest.mark.parametrize("cut", [(4, "k"), (-1, "k"), (0, "o"), (0, "")])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_a_bad_cut_is_refused(cut, n_layers, refused):
    with refused(cut, "0 to 3", "q, k, v"):
        toy.AttentionOnly(n_layers, **SMALL)(tokens_for(SMALL), cut=cut)


@given(seed=st.integers(0, 1000), place=st.integers(1, 7), n_layers=st.integers(1, 3))
def test_a_later_token_changes_nothing_before_it(seed, place, n_layers):
    model, tokens = toy.AttentionOnly(n_layers, **SMALL, seed=seed), tokens_for(SMALL, seed=seed)
    other = tokens.clone()
    other[:, place] = (tokens[:, place] + 1) % SMALL["vocabulary_size"]
    (logits, patterns), (changed, changed_patterns) = model(tokens), model(other)
    torch.testing.assert_close(changed[:, :place], logits[:, :place])
    torch.testing.assert_close(changed_patterns[..., :place, :], patterns[..., :place, :])
    assert (changed[:, place:] - logits[:, place:]).abs().max() > 1e-3


def test_patterns_sum_to_one_over_the_keys_so_far():
    _, patterns = toy.AttentionOnly(2, **SIZES)(tokens_for(SIZES))
    torch.testing.assert_close(patterns.sum(-1), torch.ones(2, 3, 4, 32))
    assert patterns.triu(1).abs().max() == 0
    assert patterns.min() >= 0


def test_shorter_sequences_are_read_from_the_first_position_on():
    model, tokens = toy.AttentionOnly(2, **SMALL), tokens_for(SMALL)
    torch.testing.assert_close(model(tokens[:, :5])[0], model(tokens)[0][:, :5])


# What is measured

ROWS = [[9, 1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4, 1, 2, 3, 4], [7, 8, 0, 5, 6, 0, 5, 6]]
PERIODS = [3, 4, 3]


@pytest.fixture(scope="module")
def written_down():
    """Three sequences written by hand."""
    repeated = torch.tensor([[token in row[:place] for place, token in enumerate(row)] for row in ROWS])
    return toy.Repeats(torch.tensor(ROWS), torch.tensor(PERIODS), repeated)


def model_that_gives(logits, patterns):
    return lambda tokens, cut=None: (logits, patterns)


def pattern_to(place_of):
    """Patterns (sequence, query, key) that look at one place only."""
    patterns = torch.zeros(len(ROWS), 8, 8)
    for i, row in enumerate(ROWS):
        for query in range(8):
            patterns[i, query, place_of(row, query)] = 1
    return patterns


def test_planted_attention_is_measured_as_one(written_down):
    def after_the_latest_copy(row, query):
        earlier = [place for place in range(query) if row[place] == row[query]]
        return earlier[-1] + 1 if earlier else query

    patterns = torch.eye(8).repeat(2, 3, 2, 1, 1)
    patterns[1, :, 0] = pattern_to(after_the_latest_copy)
    patterns[0, :, 1] = pattern_to(lambda row, query: max(query - 1, 0))
    measured = toy.measure(model_that_gives(torch.zeros(3, 8, 10), patterns), written_down)
    assert measured.prefix_matching.tolist() == [[0, 0], [1, 0]]
    assert measured.previous_token.tolist() == [[0, 1], [0, 0]]


@given(seed=st.integers(0, 1000))
def test_attention_is_averaged_over_the_places_that_count(written_down, seed):
    patterns = torch.rand(2, 3, 4, 8, 8, generator=seeded(seed)).tril()
    measured = toy.measure(model_that_gives(torch.zeros(3, 8, 10), patterns), written_down)
    for layer in range(2):
        for head in range(4):
            one = patterns[layer, :, head]
            matching = [
                sum(one[i, query, key + 1] for key in range(query) if row[key] == row[query])
                for i, row in enumerate(ROWS)
                for query in range(8)
                if row[query] in row[:query]
            ]
            previous = [one[i, query, query - 1] for i in range(3) for query in range(1, 8)]
            torch.testing.assert_close(measured.prefix_matching[layer, head], torch.stack(matching).mean())
            torch.testing.assert_close(measured.previous_token[layer, head], torch.stack(previous).mean())


@given(seed=st.integers(0, 1000))
def test_losses_of_known_and_of_new_tokens_are_those_computed_from_the_logits(written_down, seed):
    logits = torch.randn(3, 8, 10, generator=seeded(seed)) * 3
    measured = toy.measure(model_that_gives(logits, torch.zeros(1, 3, 1, 8, 8)), written_down)
    for i, row in enumerate(ROWS):
        losses = {True: [], False: []}
        for place in range(7):
            probability = logits[i, place].double().softmax(-1)[row[place + 1]]
            losses[row[place] in row[:place]].append(-math.log(probability))
        new, known = (sum(losses[kind]) / len(losses[kind]) for kind in (False, True))
        assert float(measured.loss_new[i]) == pytest.approx(new, rel=1e-4)
        assert float(measured.loss_repeated[i]) == pytest.approx(known, rel=1e-4)
        assert float(measured.in_context_learning[i]) == pytest.approx(known - new, abs=1e-4)


def test_a_model_that_copies_knows_the_repeated_tokens_and_no_other(written_down):
    logits = torch.zeros(3, 8, 10)
    for i, row in enumerate(ROWS):
        for place in range(7):
            if row[place] in row[:place]:
                logits[i, place, row[row.index(row[place]) + 1]] = 30
    measured = toy.measure(model_that_gives(logits, torch.zeros(1, 3, 1, 8, 8)), written_down)
    torch.testing.assert_close(measured.loss_repeated, torch.zeros(3))
    torch.testing.assert_close(measured.loss_new, torch.full((3,), math.log(10)))


def test_a_measured_cut_is_that_of_the_model():
    model, repeats = toy.AttentionOnly(2, **SIZES), draw(20)
    _, patterns = model(repeats.tokens, cut=(1, "k"))
    cut, whole = toy.measure(model, repeats, cut=(1, "k")), toy.measure(model, repeats)
    torch.testing.assert_close(cut.previous_token, patterns.diagonal(-1, -2, -1).mean((1, 3)).detach())
    assert torch.equal(cut.previous_token[0], whole.previous_token[0])
    assert not torch.equal(cut.previous_token[1], whole.previous_token[1])
    assert not cut.loss_new.requires_grad


# Composition


def test_scores_are_the_norm_of_the_product_over_the_product_of_the_norms():
    model = toy.AttentionOnly(2, **SIZES, seed=3)
    scores = toy.score_composition(model)
    W_Q, W_K, W_V, W_O = (weight.detach() for weight in (model.W_Q, model.W_K, model.W_V, model.W_O))
    for sender in range(4):
        for receiver in range(4):
            written = W_V[0, sender] @ W_O[0, sender]
            attends = W_Q[1, receiver] @ W_K[1, receiver].T
            readers = {"q": attends, "k": attends.T, "v": W_V[1, receiver] @ W_O[1, receiver]}
            for name, reader in readers.items():
                wanted = (written @ reader).norm() / written.norm() / reader.norm()
                torch.testing.assert_close(scores[name][sender, receiver], wanted)


@pytest.mark.parametrize("name", toy.INPUTS)
def test_a_planted_pair_scores_higher_than_all_others_and_than_chance(name):
    model = toy.AttentionOnly(2, **SIZES)
    directions = torch.linalg.qr(torch.randn(64, 16, generator=seeded()))[0]
    model.W_O.data[0, 2] = directions.T
    getattr(model, f"W_{name.upper()}").data[1, 1] = directions
    scores, by_chance = toy.score_composition(model), toy.score_random_composition(model, n_draws=500, seed=0)
    planted = float(scores[name][2, 1])
    scores[name][2, 1] = 0
    assert planted > 1.5 * max(float(kind.max()) for kind in scores.values())
    assert planted > 1.5 * float(by_chance.quantile(0.95))


def test_a_head_that_reads_only_what_another_writes_along_one_direction_scores_one():
    model = toy.AttentionOnly(2, **SIZES)
    model.W_O.data[0, 0, 1:] = 0
    model.W_K.data[1, 3] = 0
    model.W_K.data[1, 3, :, 0] = model.W_O.data[0, 0, 0]
    torch.testing.assert_close(toy.score_composition(model)["k"][0, 3], torch.tensor(1.0))


@given(
    name=st.sampled_from(["W_Q", "W_K", "W_V", "W_O"]),
    layer=st.integers(0, 1),
    head=st.integers(0, 3),
    scale=st.floats(0.01, 100) | st.floats(-100, -0.01),
)
def test_scores_do_not_change_when_a_weight_is_scaled(name, layer, head, scale):
    model = toy.AttentionOnly(2, **SIZES)
    before = toy.score_composition(model)
    getattr(model, name).data[layer, head] *= scale
    for kind, found in toy.score_composition(model).items():
        torch.testing.assert_close(found, before[kind], rtol=1e-4, atol=1e-5)


def test_a_model_of_one_layer_has_no_composition(refused):
    model = toy.AttentionOnly(1, **SIZES)
    with refused("one layer", "legal", "two"):
        toy.score_composition(model)
    with refused("one layer", "legal", "two"):
        toy.score_random_composition(model, n_draws=3, seed=0)


@pytest.mark.parametrize("n_draws", [1, 16, 17, 50])
def test_as_many_random_scores_are_drawn_as_were_asked_for(n_draws):
    model = toy.AttentionOnly(2, **SIZES)
    found, again = (toy.score_random_composition(model, n_draws=n_draws, seed=4) for _ in range(2))
    assert found.shape == (n_draws,)
    assert torch.equal(found, again)
    assert len(found.unique()) == n_draws
    assert not torch.equal(found, toy.score_random_composition(model, n_draws=n_draws, seed=5))


def test_random_scores_are_like_those_of_a_model_that_was_not_trained():
    models = [toy.AttentionOnly(2, **SIZES, seed=seed) for seed in range(20)]
    by_chance = toy.score_random_composition(models[0], n_draws=320, seed=0)
    for name in toy.INPUTS:  # with a spread of 0.007 and 320 scores each, means differ by 0.0006
        fresh = torch.stack([toy.score_composition(model)[name] for model in models])
        assert float(fresh.mean()) == pytest.approx(float(by_chance.mean()), abs=0.004)
        assert float(fresh.std()) == pytest.approx(float(by_chance.std()), rel=0.3)


# Training


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    with torch.random.fork_rng():
        trained = []
        for seed in (5, 5, 6):
            trained.append(toy.train(2, n_steps=20, seed=seed, n_measured=len(trained) + 1)[0])
            torch.manual_seed(len(trained))
    first, again, other = (model.state_dict() for model in trained)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_every_model_is_measured_on_the_same_sequences_at_the_start_and_the_end(monkeypatch):
    seen, real = [], toy.measure

    def measure(model, repeats):
        seen.append(repeats)
        return real(model, repeats)

    monkeypatch.setattr(toy, "measure", measure)
    for seed, n_steps, n_measured in ((0, 5, 2), (1, 3, 40)):
        _, measured = toy.train(1, n_steps=n_steps, seed=seed, n_measured=n_measured)
        assert list(measured) == {5: [0, 3, 5], 3: [0, 1, 2, 3]}[n_steps]
    assert len(seen) == 7
    for repeats in seen:
        assert torch.equal(repeats.tokens, toy.draw_held_out_repeats().tokens)
        assert repeats.tokens.shape == (toy.HELD_OUT, 32)


@pytest.fixture(scope="module")
def trained(one_thread):
    """Models of one and of two layers after the phase change, with what they could do on the way."""
    return {n_layers: toy.train(n_layers, n_steps=800, seed=0, n_measured=4) for n_layers in (1, 2)}


@pytest.mark.slow
def test_two_layers_learn_to_look_up_what_followed_and_one_does_not(trained):
    (_, one), (_, two) = trained[1], trained[2]
    assert list(one) == list(two) == [0, 200, 400, 600, 800]
    learnt = {n_layers: float(trained[n_layers][1][800].in_context_learning.mean()) for n_layers in (1, 2)}
    assert learnt[2] < 2 * learnt[1] < 0
    assert two[800].prefix_matching[1].max() > 0.4 > 2 * one[800].prefix_matching.max()
    assert two[800].previous_token[0].max() > 0.3 > 2 * one[800].previous_token.max()
    assert two[200].prefix_matching.max() < 0.2
    assert abs(float(two[0].in_context_learning.mean())) < 0.2


@pytest.mark.slow
def test_the_learnt_lookup_needs_the_keys_that_the_previous_token_head_writes(trained):
    model, measured = trained[2]
    held_out, sender = toy.draw_held_out_repeats(), int(measured[800].previous_token[0].argmax())
    loss = {
        (head, name): float(toy.measure(model, held_out, cut=(head, name)).loss_repeated.mean())
        for head in range(4)
        for name in toy.INPUTS
    }
    whole = float(measured[800].loss_repeated.mean())
    assert loss.pop((sender, "k")) > whole + 1
    assert max(loss.values()) < whole + 0.3
    scores, by_chance = toy.score_composition(model), toy.score_random_composition(model, n_draws=500, seed=0)
    assert scores["k"][sender].max() > 1.3 * by_chance.quantile(0.95)
    assert int(scores["k"].max(1).values.argmax()) == sender


def test_longer_sequences_than_the_model_has_positions_for_are_refused(refused):
    model = toy.AttentionOnly(1, vocabulary_size=12, length=16)
    with refused("17 tokens", "at most 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


# Smeared keys


@torch.no_grad()
def test_a_smeared_key_is_the_mean_of_itself_and_the_one_before_at_first():
    options = {"vocabulary_size": 8, "length": 6, "d_model": 8, "n_heads": 2, "seed": 3}
    plain, smeared = toy.AttentionOnly(1, **options), toy.AttentionOnly(1, **options, smeared=True)
    tokens = torch.tensor([[1, 5, 2, 7]])
    resid = plain.W_E[tokens[0]] + plain.W_pos[:4]
    for head in range(2):
        queries, keys = resid @ plain.W_Q[0, head], resid @ plain.W_K[0, head]
        mixed = torch.cat([keys[:1], (keys[1:] + keys[:-1]) / 2])
        scores = (queries @ mixed.T / 2).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(smeared(tokens)[1][0, 0, head], scores.softmax(-1))


@torch.no_grad()
def test_a_key_that_is_hardly_smeared_is_a_plain_one():
    options = {"vocabulary_size": 8, "length": 6, "d_model": 8, "n_heads": 2, "seed": 3}
    plain, smeared = toy.AttentionOnly(2, **options), toy.AttentionOnly(2, **options, smeared=True)
    smeared.smear -= 50.0
    tokens = torch.tensor([[1, 5, 2, 7]])
    torch.testing.assert_close(smeared(tokens)[0], plain(tokens)[0])


@pytest.mark.slow
def test_with_smeared_keys_one_layer_learns_to_look_up_what_followed():
    _, measured = toy.train(1, n_steps=600, seed=0, smeared=True, n_measured=2)
    assert float(measured[600].in_context_learning.mean()) < -3
    assert float(measured[600].prefix_matching.max()) > 0.5


@pytest.mark.slow
def test_models_trained_side_by_side_are_those_trained_one_by_one():
    threads = torch.get_num_threads()
    trained = toy.train_all(range(1), n_steps=8)
    assert torch.get_num_threads() == threads
    assert list(trained) == [(kind, 0) for kind in toy.KINDS]
    for kind, options in toy.KINDS.items():
        torch.set_num_threads(1)
        alone, _ = toy.train(n_steps=8, seed=0, **options)
        torch.set_num_threads(threads)
        for ours, theirs in zip(trained[kind, 0][0].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


# The course of learning


def course(scores):
    """A history of models that have these in-context-learning scores at even steps."""
    zero = torch.zeros(1)
    return {
        100 * i: toy.Measured(zero, torch.tensor([score]), zero[None], zero[None]) for i, score in enumerate(scores)
    }


EVEN = [-0.1 * x for x in range(101)]
SLOWING = [10 * (math.exp(-0.05 * x) - 1) for x in range(101)]
RAMP = [-0.1 * min(x, 60) for x in range(101)]


@pytest.mark.parametrize("scores", [EVEN, SLOWING, RAMP])
@pytest.mark.parametrize("deeper", [1.5, 3])
@pytest.mark.parametrize("faster", [1, 2])
def test_the_same_course_deeper_or_faster_is_not_sudden(scores, deeper, faster):
    rise, of_plain = toy.compare_rises(
        course([deeper * scores[min(faster * x, 100)] for x in range(101)]), course(scores)
    )
    assert rise > of_plain - 0.02


@pytest.mark.parametrize("scores", [EVEN, SLOWING])
def test_a_late_step_is_sudden_however_long_training_goes_on(scores):
    found = []
    for more in (0, 100, 300):
        plain = [*scores, *[scores[-1]] * more]
        found.append(toy.compare_rises(course([*scores[:60], *[-30.0] * (41 + more)]), course(plain)))
    assert all(rise < of_plain - 0.3 for rise, of_plain in found)
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])


def test_a_model_that_learns_nothing_has_no_rise():
    assert all(map(math.isnan, toy.compare_rises(course([0.0, -0.05, 0.02]), course([0.0, 0.0, 0.0]))))
    assert all(map(math.isnan, toy.compare_rises(course([0.0, -1.0]), course([0.0, -1.0]))))
    assert math.isnan(toy.compare_rises(course([0.0, 0.0, -1.0]), course([0.0, 0.0, 0.0]))[1])
