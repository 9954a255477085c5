import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers import InputError, claims
from helpers.claims import Estimate, Published

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)
MIDDLE = Estimate(0.5, 0.4, 0.6, 10)
ELSEWHERE = Published(0.5, model="gpt2-small", protocol="as published", citation="someone2022")


def decide(rule, estimate=MIDDLE, **evidence):
    return claims.decide("an-id", "A sentence.", rule=rule, estimate=estimate, **evidence)


# Means and their intervals


OF = {"of": "sequences", "bracket": "95 % interval", "reach": None}


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        estimate = claims.average(generator.exponential(size=20) + generator.normal(2, 1, size=20), seed=seed)
        covered += estimate.low <= 3 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_is_as_wide_as_the_standard_error_says():
    samples = np.random.default_rng(0).normal(5, 2, size=400)
    estimate = claims.average(samples, seed=0)
    error = samples.std() / 20
    assert estimate.value == pytest.approx(samples.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert (estimate.n, estimate.of) == (400, "sequences")


@pytest.mark.parametrize("n_groups", [3, 10])
def test_with_groups_the_interval_covers_and_without_it_does_not(n_groups):
    generator, covered = np.random.default_rng(0), np.zeros(2)
    groups = np.repeat(np.arange(n_groups), 20)
    for _ in range(300):
        samples = generator.normal(size=n_groups)[groups] + 0.5 * generator.normal(size=len(groups))
        for number, some in enumerate((groups.tolist(), None)):
            found = claims.average(samples, seed=0, groups=some)
            covered[number] += found.low <= 0 <= found.high
    assert 0.92 < covered[0] / 300 < 0.98
    assert covered[1] / 300 < 0.7


def test_each_group_counts_as_one_however_many_samples_it_has():
    found = claims.average([1, 1, 1, 1, 5], seed=0, groups=["a"] * 4 + [("b", 1)], of="templates")
    assert (found.value, found.n, found.of) == (3.0, 2, "templates")


@pytest.mark.parametrize("groups", [[1, 1, 1], [1, 2], []])
def test_groups_that_do_not_fit_are_refused(groups, refused):
    with refused("groups of", "at least two different ones"):
        claims.average([1.0, 2.0, 3.0], seed=0, groups=groups)


@pytest.mark.parametrize(
    ("estimates", "verdict"),
    [
        ([(0.5, 0.4, 0.6), (0.3, 0.2, 0.4)], "holds"),
        ([(0.5, -0.4, 1.4), (-0.3, -0.4, -0.2)], "fails"),
        ([(-0.5, -1.4, 0.4), (-0.3, -0.4, -0.2)], "fails"),
        ([(0.1, -0.4, 0.6), (0.3, 0.2, 0.4)], "depends"),
    ],
)
def test_a_bound_is_decided_as_all_of_its_estimates_are(estimates, verdict):
    smallest = claims.bound([Estimate(*one, 10) for one in estimates])
    assert decide("value > 0", smallest).verdict == verdict


def test_one_of_ten_that_seems_to_fail_is_no_failure():
    generator = np.random.default_rng(0)
    fails = {"once": 0, "of ten": 0}
    for seed in range(400):
        draws = generator.normal(size=(10, 10))
        each = [claims.average(row, seed=seed, groups=range(10)) for row in draws]
        fails["once"] += each[0].high < 0
        fails["of ten"] += claims.bound(each).high < 0
    assert fails["once"] / 400 < 0.05 and fails["of ten"] / 400 < 0.05
    ten = [Estimate(-0.3, -0.5, -0.1, 10)] + [Estimate(0.5, 0.3, 0.7, 10)] * 9
    assert decide("value > 0", claims.bound(ten[:1])).verdict == "fails"
    assert decide("value > 0", claims.bound(ten)).verdict == "depends"


@pytest.mark.parametrize(
    ("value", "other", "verdict"),
    [(0.10, 0.6, "holds"), (-0.1, 0.6, "fails"), (0.03, 0.6, "depends"), (0.0, 0.999, "out of reach")],
)
def test_a_rule_that_no_data_decide_is_out_of_reach(value, other, verdict):
    """The AUROC of one probe less that of another, which leaves it 1 - other at most."""
    ends = max(value - 0.02, -other), min(value + 0.02, 1 - other)
    estimate = Estimate(value, *ends, 10, reach=(-other, 1 - other))
    assert decide("value > 0.02", estimate).verdict == verdict
    assert decide("value > -2", estimate).verdict == "out of reach", "nor what can't fail"


def test_a_value_out_of_its_reach_is_refused(refused):
    with refused("value 0.5 is out of its reach", "0.0 to 0.4"):
        decide("value > 0.02", Estimate(0.5, 0.4, 0.6, 10, reach=(0.0, 0.4)))


def test_no_estimates_have_no_bound(refused):
    with refused("no estimates"):
        claims.bound([])


def test_a_share_has_wilsons_interval():
    always = claims.share([True] * 200)
    assert (always.value, always.high) == (1.0, 1.0) and always.low == pytest.approx(200 / (200 + 1.959964**2))
    generator, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        found = claims.share(generator.random(30) < 0.9)
        covered += found.low <= 0.9 <= found.high
    assert 0.93 < covered / 1000 < 0.99


@pytest.mark.parametrize("bad", [[], [1, 0], [[True]], "yes"])
def test_a_share_of_what_is_not_true_or_false_is_refused(bad, refused):
    with refused("True or False"):
        claims.share(bad)


def test_the_seed_alone_decides_the_interval():
    samples = np.random.default_rng(0).normal(size=20)
    np.random.seed(1)
    first = claims.average(samples, seed=3)
    np.random.seed(2)
    assert claims.average(samples, seed=3) == first
    assert claims.average(samples, seed=4) != first


@given(samples=SAMPLES)
def test_the_mean_lies_in_its_interval_and_that_of_a_bootstrap_in_the_samples(samples):
    least, most, slack = min(samples), max(samples), 1e-9 * max(map(abs, samples))
    for within in (None, (least, most)):
        estimate = claims.average(samples, seed=0, within=within)
        assert estimate.low - slack <= estimate.value <= estimate.high + slack
        if within or len(samples) >= claims.FEWEST_RESAMPLED:
            assert least - slack <= estimate.low and estimate.high <= most + slack


@pytest.mark.parametrize("n", [2, 6, 12, 19, 20, 40])
def test_an_interval_of_few_samples_covers_as_often_as_one_of_many(n):
    generator = np.random.default_rng(n)
    found = [claims.average(generator.normal(size=n), seed=seed) for seed in range(300)]
    assert 0.9 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99


@given(number=st.floats(-1e6, 1e6), n=st.integers(2, 50))
def test_constants_give_an_interval_of_no_width(number, n):
    estimate = claims.average([number] * n, seed=0)
    assert estimate.low == estimate.value == estimate.high == number


def test_constants_within_known_ends_have_wilsons_interval():
    found = claims.average([1.0] * 16, seed=0, within=(-1.0, 1.0))
    unseen = 1 - claims.share([True] * 16).low
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(1 - 2 * unseen)
    middle = claims.average([0.0] * 16, seed=0, within=(-1.0, 1.0))
    assert (middle.low, middle.high) == (pytest.approx(-unseen), pytest.approx(unseen))
    few = claims.average([0.0] * 16, seed=0, groups=range(16), within=(0.0, 1.0))
    assert (few.low, few.high) == (0.0, pytest.approx(unseen))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_is_refused(bad, refused):
    with refused("NaN or infinite"):
        claims.average([1.0, bad, 2.0], seed=0)


@pytest.mark.parametrize(("samples", "shape"), [([], "(0,)"), ([1.0], "(1,)"), ([[1.0, 2.0]], "(1, 2)"), (1.0, "()")])
def test_fewer_than_two_samples_in_a_row_are_refused(samples, shape, refused):
    with refused("at least two samples", shape):
        claims.average(samples, seed=0)


@pytest.mark.parametrize("numbers", [(math.nan, 0, 1), (0, -math.inf, 1), (0, 0, math.inf)])
def test_an_estimate_that_is_not_finite_is_refused(numbers, refused):
    with refused("must be finite", *numbers):
        Estimate(*numbers, n=2)


# Verdicts


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("value > 0.3", "holds"),
        ("value > 0.45", "depends"),
        ("value > 0.55", "depends"),
        ("value > 0.6", "fails"),
        ("value >= 0.4", "holds"),
        ("value < 0.4", "fails"),
        ("0.3 < value < 0.7", "holds"),
        ("0.45 < value < 0.7", "depends"),
        ("value > baseline", "holds"),
        ("value > 2 * baseline + 0.1", "depends"),
        ("value - baseline > 0.5", "fails"),
        ("abs(value - published) < 0.2", "holds"),
        ("abs(value - published) < 0.05", "depends"),
        ("value > baseline and value > published", "depends"),
    ],
)
def test_a_rule_is_decided_over_the_interval(rule, verdict):
    claim = decide(rule, baseline=0.2, published=ELSEWHERE, model_name="gpt2-small")
    assert claim.verdict == verdict
    assert ("straddles" in claim.reason) == (verdict == "depends")


@pytest.mark.parametrize(
    ("rule", "estimate", "verdict"),
    [
        ("abs(value) > 0.1", (0.5, -1, 1), "depends"),  # true of the value and both ends, false of zero
        ("abs(value - 0.5) < 0.15", (0.9, 0, 1), "depends"),  # false of all three, true of 0.5
        ("abs(value) > 0.1", (0.5, 0.2, 1), "holds"),
        ("value * value > 0.25", (1, -1, 2), "depends"),
        ("value > 0.2 and value < 0.3 and abs(value - 0.25) > 0.001", (0.26, 0.21, 0.29), "depends"),
    ],
)
def test_a_rule_that_turns_inside_the_interval_depends(rule, estimate, verdict):
    assert decide(rule, Estimate(*estimate, 40)).verdict == verdict


@given(*(st.floats(low, high) for low, high in ((-2, 2), (0, 2), (0, 2), (-2, 2), (0.01, 2))))
def test_a_band_is_decided_by_where_the_interval_lies(value, below, above, center, radius):
    low, high = value - below, value + above
    bounds = center - radius, center + radius
    assume(min(abs(end - bound) for end in (low, high) for bound in bounds) > 1e-9)
    inside, outside = bounds[0] < low and high < bounds[1], high < bounds[0] or low > bounds[1]
    band = Published(radius, model="gpt2-small", protocol="as published", citation="someone2022")
    evidence = {"baseline": center, "published": band, "model_name": "gpt2-small"}
    claim = decide("abs(value - baseline) < published", Estimate(value, low, high, 5), **evidence)
    assert claim.verdict == ("holds" if inside else "fails" if outside else "depends")


@pytest.mark.parametrize(
    "rule", ["value > 0 and value > baseline", "value > baseline and value > 0", "0 < value > baseline"]
)
def test_what_one_half_of_a_rule_refuses_everywhere_fails_however_the_other_turns(rule):
    assert decide(rule, Estimate(0.2, -0.1, 0.5, 4), baseline=0.9).verdict == "fails"
    assert decide(rule, Estimate(0.2, -0.1, 0.5, 4), baseline=-0.9).verdict == "depends"
    assert decide(rule, Estimate(0.2, 0.1, 0.5, 4), baseline=-0.9).verdict == "holds"


def test_bounds_that_meet_leave_nothing_between_them():
    assert decide("value > baseline and value < 0", Estimate(0.2, -0.1, 0.5, 4), baseline=0.0).verdict == "fails"


@given(*(st.floats(low, high) for low, high in ((-1, 1), (0, 1), (0, 1), (-1, 1), (-1, 1))))
def test_two_bounds_are_decided_as_on_a_fine_grid(value, below, above, one, other):
    low, high = value - below, value + above
    bound = Published(other, model="gpt2-small", protocol="as published", citation="someone2022")
    assume(min(abs(end - edge) for end in (low, high, value) for edge in (one, other)) > 1e-3)
    rule, evidence = "value > baseline and value < published", {"baseline": one, "published": bound}
    found = decide(rule, Estimate(value, low, high, 5), **evidence, model_name="gpt2-small").verdict
    places = [low + (high - low) * step / 4000 for step in range(4001)] + [value]
    outcomes = {one < place < other for place in places}
    assume(not 0 < other - one < 2e-3)  # so narrow that the grid may miss it
    assert found == ("depends" if len(outcomes) == 2 else "holds" if outcomes == {True} else "fails")


def test_a_rule_that_interval_arithmetic_cannot_decide_is_refused(refused):
    with refused("value - value >= 0", "a simpler one"):
        decide("value - value >= 0")


@pytest.mark.parametrize(
    "rule",
    [
        "value > 0.9 or value < 0.7",
        "not value > 0.7",
        "value == 0.5",
        "value != 0.5",
        "(value > 1) < 1",
        f"value > {'-' * 9000}1",
    ],
)
def test_a_rule_that_has_no_meaning_over_an_interval_is_refused(rule, refused):
    with refused(repr(rule), "comparisons of value, baseline and published"):
        decide(rule)


def test_without_an_estimate_a_claim_is_not_run():
    assert decide("value > 0.3", estimate=None).verdict == "not run"


def test_a_figure_published_for_another_model_is_not_comparable():
    rule = "abs(value - published) < 0.2"
    other = decide(rule, published=ELSEWHERE, model_name="smollm2-135m-instruct-q4")
    assert (other.verdict, other.reason) == ("not comparable", "published for gpt2-small")
    assert decide(rule, estimate=None, published=ELSEWHERE, model_name="other").verdict == "not comparable"
    assert decide(rule, published=ELSEWHERE, model_name="gpt2-small").verdict == "holds"
    # A rule that does not ask for the figure is decided all the same.
    assert decide("value > 0.3", published=ELSEWHERE, model_name="other").verdict == "holds"


@given(value=st.floats(-10, 10), below=st.floats(0, 5), above=st.floats(0, 5), bound=st.floats(-10, 10))
def test_the_verdict_is_what_comparing_the_three_numbers_gives(value, below, above, bound):
    estimate = Estimate(value, value - below, value + above, 5)
    outcomes = [number > bound for number in (estimate.low, estimate.value, estimate.high)]
    expected = "holds" if all(outcomes) else "depends" if any(outcomes) else "fails"
    assert decide("value > baseline", estimate, baseline=bound).verdict == expected


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "value >",
        "valu > 0.3",
        "value > 'a'",
        "value = 3",
        "value > 0.1\nvalue > 0.2",
        "lambda: 1",
        "@value > 0.1",
        "__import__('os').getcwd()",
        "open('/etc/passwd')",
        "value.__class__",
        "value.hex()",
        "value.is_integer()",
        "value.__class__.__mro__[1].__subclasses__()",
        "().__class__.__base__.__subclasses__() == 1",
        "value.__class__.__base__.__subclasses__().__len__() > 3",
        "value > baseline.real",
    ],
)
def test_a_rule_that_is_no_plain_comparison_is_refused(rule, refused):
    with refused(repr(rule), "comparisons of value, baseline and published"):
        decide(rule, baseline=0.2)


@pytest.mark.parametrize("rule", ["value", "value + 1", "1", "'a'", "True", "None", "[value]"])
def test_a_rule_that_compares_nothing_is_refused(rule, refused):
    with refused(repr(rule), "comparisons of value, baseline and published"):
        decide(rule)


def test_a_rule_runs_no_code(tmp_path, refused):
    marker = tmp_path / "marker"
    importer = "[c for c in value.__class__.__base__.__subclasses__() if c.__name__ == 'BuiltinImporter'][0]"
    for rule in (
        f"open('{marker}', 'w')",
        f"__import__('os').mkdir('{marker}')",
        f"{importer}.load_module('os').mkdir('{marker}')",
    ):
        with refused("can't be decided"):
            decide(rule)
    assert not marker.exists()


@pytest.mark.parametrize("word", ["baseline", "published"])
def test_a_rule_that_asks_for_a_number_that_is_missing_is_refused(word, refused):
    with refused(f"'value > {word}'"):
        decide(f"value > {word}")


@pytest.mark.parametrize("rule", ["value > baseline", "value < baseline", "value > 0 and value < baseline"])
def test_a_baseline_that_is_nan_is_refused_and_gives_no_verdict(rule, refused):
    with refused("nan"):
        decide(rule, baseline=math.nan)


# What is written


def test_a_record_of_claims_is_plain_json_with_all_that_was_decided():
    claim = decide("value > published", published=ELSEWHERE, model_name="gpt2-small", baseline=0.1, tolerance=0.01)
    (record,) = json.loads(json.dumps(claims.as_record([claim])))
    assert record["estimate"] == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10} | OF
    assert record["published"]["model"] == "gpt2-small"
    expected = {"id": "an-id", "rule": "value > published", "verdict": "depends", "baseline": 0.1, "tolerance": 0.01}
    assert record | expected == record


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.ids = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_the_table_shows_every_text_and_none_of_it_as_html():
    evil = "<script>alert('&amp;')</script>\"><b onclick='x'>"
    published = Published(0.5, model=evil, protocol=evil, citation=evil)
    claim = claims.decide(
        evil,
        evil,
        rule="value < published",
        estimate=Estimate(0.5, 0.4, 0.6, 10, of=evil),
        baseline=0.25,
        baseline_is=evil,
        published=published,
        model_name="other",
    )
    page = Page(claims.as_html([claim, decide("value < 3")]))
    assert set(page.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "strong", "br", "small"}
    assert page.ids == [f"claim-{evil}", "claim-an-id"]
    text = "\n".join(page.texts)
    for part in (evil, f"0.250 ({evil})", f"n = 10 {evil}", f"published for {evil}", "not comparable", "value < 3"):
        assert part in text
    assert "holds" in page.texts


def test_a_claim_that_was_not_run_is_shown_without_numbers():
    page = Page(claims.as_html([decide("value > 0.3", estimate=None)]))
    assert "not run" in page.texts
    assert "None" not in "".join(page.texts)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.00"),
        (0.5, "0.500"),
        (-3.14159, "-3.14"),
        (12.345, "12.3"),
        (123.4, "123"),
        (45678.9, "45679"),
        (0.001, "0.00100"),
        (0.00012345, "1.23e-04"),
        (1234567, "1.23e+06"),
    ],
)
def test_short_gives_three_digits_and_an_exponent_only_where_needed(number, text):
    assert claims.shorten(number) == text


@given(st.floats(-1e12, 1e12))
def test_short_is_right_to_half_a_percent(number):
    text = claims.shorten(number)
    assert float(text) == pytest.approx(number, rel=0.005, abs=0)
    assert len(text) <= 10
    digits = re.sub(r"e.*|[-.]", "", text).lstrip("0")
    assert number == 0 or len(digits) >= 3


def test_estimates_are_written_with_their_interval_and_count():
    estimate = Estimate(0.91567, 0.9061, 0.9221, 16, of="heads")
    assert str(estimate) == "0.916 (95 % interval 0.906 to 0.922, n = 16 heads)"
    assert estimate.brief() == "0.916 [0.906, 0.922]"


# Comparison with the record


def recorded(*, seed=1, device="cpu", dtype="", weights="a", precision="float32", **values):
    made = [
        decide("value > 0.5", Estimate(value, value - 0.01, value + 0.01, 10), tolerance=0.02)
        if not isinstance(value, claims.Claim)
        else value
        for value in values.values()
    ]
    return {
        "model": {"weights_sha256": weights, "dtype": precision},
        "parameters": {"seed": seed, "device": device, "dtype": dtype},
        "claims": [claim | {"id": id} for id, claim in zip(values, claims.as_record(made), strict=True)],
    }


def test_a_run_is_the_same_as_the_record_within_the_tolerance_of_each_claim():
    found = claims.compare(recorded(near=0.71, far=0.9), recorded(near=0.7, far=0.8))
    assert (found.why_not, found.same, found.others) == ("", ("near",), ("far",))
    assert found.largest == pytest.approx(0.1 / 0.02)  # a share of the tolerance, since units differ


def test_any_difference_is_too_large_without_leeway():
    far, near = (decide("value > 0.5", Estimate(value, value, value, 10)) for value in (0.7, 0.8))
    assert claims.compare(recorded(one=far), recorded(one=near)).largest == math.inf
    assert claims.compare(recorded(one=far), recorded(one=far)).largest == 0


def test_a_verdict_that_turned_is_no_match_however_near_the_value():
    found = claims.compare(recorded(one=0.515), recorded(one=0.505))
    assert found.others == ("one",) and found.largest == pytest.approx(0.01 / 0.02)


def test_a_claim_without_tolerance_is_compared_by_its_verdict_alone():
    trained = [decide("value > 0.5", Estimate(value, value, value, 10), tolerance=None) for value in (0.6, 90.0, 0.1)]
    assert claims.compare(recorded(one=trained[1]), recorded(one=trained[0])).same == ("one",)
    assert claims.compare(recorded(one=trained[1]), recorded(one=trained[0])).largest == 0
    assert claims.compare(recorded(one=trained[2]), recorded(one=trained[0])).others == ("one",)


def test_claims_that_one_of_the_two_lacks_are_others():
    assert claims.compare(recorded(one=0.7, new=0.7), recorded(one=0.7, old=0.7)).others == ("new", "old")
    unmeasured = decide("value > 0.5", None)
    assert claims.compare(recorded(one=unmeasured), recorded(one=unmeasured)).same == ("one",)
    assert claims.compare(recorded(one=unmeasured), recorded(one=0.7)).others == ("one",)


@pytest.mark.parametrize(
    ("difference", "why"),
    [
        ({"weights": "b"}, "other weights"),
        ({"seed": 2}, "seed is 2, on record 1"),
        ({"precision": "bfloat16"}, "bfloat16, on record float32"),
        ({"device": "cuda"}, ""),
        ({"dtype": "float32"}, ""),
    ],
)
def test_only_runs_of_equal_size_on_equal_weights_are_compared(difference, why):
    found = claims.compare(recorded(one=0.7, **difference), recorded(one=0.7))
    assert why in found.why_not and bool(found.why_not) == bool(why)
    assert found.same == (() if why else ("one",))


PROTOCOL = """
grows:
  claim: It grows.
  rule: value > baseline
  baseline: what it was
  tolerance: null
  holds: It grows by {value} (size {size}) over {n} units, from {baseline}, on {where}.
  fails: It does not.
published:
  claim: As published.
  rule: abs(value - published) < 0.1
  published: {value: 2.0, model: other, protocol: theirs, citation: olsson2022context}
"""


@pytest.mark.parametrize(
    ("low", "high", "verdict", "reading"),
    [
        (1.0, 1.5, "holds", "It grows by 1.20 (size 1.20) over 5 units, from 0.500, on Mars."),
        (0.1, 0.2, "fails", "It does not."),
        (0.1, 1.5, "depends", "Not decided here: It grows."),
    ],
)
def test_the_verdict_chooses_the_reading(low, high, verdict, reading):
    expected = claims.read_protocol(PROTOCOL)["grows"]
    value = min(max(1.2, low), high)
    estimate = claims.Estimate(value, low, high, 5, "units")
    claim = claims.decide("grows", expected.sentence, estimate=estimate, baseline=0.5, **expected.evidence)
    assert claim.verdict == verdict and claim.tolerance is None
    assert expected.read(claim, {"where": "Mars"}) == reading
    line = claims.as_line(claim, "<b>" + reading)
    assert "&lt;b&gt;" in line and f"<strong>{verdict}</strong>" in line and "value &gt; baseline" in line


def test_a_protocol_says_what_was_published():
    expected = claims.read_protocol(PROTOCOL)["published"]
    claim = claims.decide("published", expected.sentence, estimate=None, model_name="mine", **expected.evidence)
    assert claim.verdict == "not comparable"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {claim: A., rule: value > 0, hold: yes}", "claim 'a': hold unknown or missing"),
        ("a: {rule: value > 0}", "claim 'a': claim unknown or missing"),
        ("a: {claim: A., rule: valu > 0}", "rule 'valu > 0' can't be decided"),
    ],
)
def test_a_protocol_with_a_fault_is_refused(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        claims.read_protocol(text)


def test_a_reading_with_a_value_that_was_not_recorded_is_refused():
    expected = claims.read_protocol(PROTOCOL)["grows"]
    claim = claims.decide(
        "grows", "It grows.", estimate=claims.Estimate(2.0, 1.9, 2.1, 5), baseline=0.5, **expected.evidence
    )
    with pytest.raises(InputError, match=r"reading of claim 'grows' can't be filled .*where"):
        expected.read(claim, {})
