"""Numbers with their uncertainty, and claims that a rule decides from them.

A claim's verdict is never typed. Its rule is a comparison in the words `value`, `baseline` and
`published`, decided over the whole interval of the estimate:

- `holds` or `fails` where it is true, or false, of every value in the interval,
- `depends` where it is not: the interval straddles the bound, so it depends on the sample,
- `not comparable` where the rule asks for a figure published for another model,
- `not run` where there is no estimate.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from types import CodeType
from typing import TYPE_CHECKING, Any, Literal, get_args

from helpers import InputError

if TYPE_CHECKING:
    import numpy as np

Verdict = Literal["holds", "fails", "depends", "out of reach", "not comparable", "not run"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NO_SIZE = {"device", "dtype", "save"}
"""Parameters that say where a run takes place or what it keeps; of the precision counts what was loaded."""
RULE_NAMES = {"value", "baseline", "published", "abs"}
RULE_NODES = (
    *(ast.Expression, ast.Compare, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant),
    *(ast.And, ast.USub, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
MOST_PARTS = 10_000
"""Of an interval that a rule is tried on before it is refused."""
FEWEST_RESAMPLED = 20
"""Samples from which on an interval is a bootstrap's: of fewer it is too narrow, and Student's is taken."""


@dataclass(frozen=True)
class Estimate:
    """A measured number, its 95 % interval and the number of independent units behind it."""

    value: float
    low: float
    high: float
    n: int
    of: str = "sequences"
    """What is counted in `n`."""
    bracket: str = field(default="95 % interval", repr=False)
    """What lies between low and high."""
    reach: tuple[float, float] | None = field(default=None, repr=False)
    """The least and the greatest value that there could have been: for an AUROC less another of b, -b and 1 - b."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.value, self.low, self.high)):
            raise InputError(
                f"an estimate must be finite, not {self.value} [{self.low}, {self.high}]: "
                "the model gave NaN or infinity"
            )

    def brief(self) -> str:
        """For tables, whose caption says what the brackets are: "0.916 [0.906, 0.922]"."""
        return f"{shorten(self.value)} [{shorten(self.low)}, {shorten(self.high)}]"

    def __str__(self) -> str:
        ends = f"{shorten(self.low)} to {shorten(self.high)}"
        return f"{shorten(self.value)} ({self.bracket} {ends}, n = {self.n} {self.of})"


@dataclass(frozen=True)
class Published:
    """A figure from the literature, which belongs to one model and one protocol."""

    value: float
    model: str
    """The registry's name of the model it was measured on."""
    protocol: str
    citation: str
    """A key of `book/references.bib`."""


@dataclass(frozen=True)
class Claim:
    """A sentence, the number behind it, and the verdict its rule gives."""

    id: str
    sentence: str
    rule: str
    verdict: Verdict
    reason: str
    estimate: Estimate | None
    baseline: float | None
    baseline_is: str
    tolerance: float | None
    """How far a re-run of the same size may lie from the record and still count as the same. None where only
    the verdict must be the same, as for models trained in the chapter: processors differ."""
    published: Published | None


@dataclass(frozen=True)
class Expected:
    """What a chapter's protocol says of a claim before it is run."""

    sentence: str
    evidence: dict[str, Any]
    """Of what `decide` takes the rule, what the baseline is, the tolerance and what was published."""
    readings: dict[str, str]
    """What each verdict means, in words that leave room for the run's values: "{value}", its "{size}" without sign,
    "{baseline}", "{a_key}"."""

    def read(self, claim: Claim, values: dict[str, str]) -> str:
        """The reading that the claim's verdict chooses; for a verdict without one, that the sentence is not decided.

        Args:
            claim: as decided.
            values: texts for the places that a reading leaves.

        Raises:
            InputError: a reading names a value that the run has not recorded.
        """
        reading = self.readings.get(claim.verdict)
        if reading is None:
            return f"Not decided here: {self.sentence}"
        own = {}
        if claim.estimate:
            value = claim.estimate.value
            own = {"value": shorten(value), "size": shorten(abs(value)), "n": str(claim.estimate.n)}
        own |= {"baseline": shorten(claim.baseline)} if claim.baseline is not None else {}
        try:
            return reading.format_map(values | own)
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(f"the reading of claim {claim.id!r} can't be filled ({error!r})") from None


def read_protocol(text: str) -> dict[str, Expected]:
    """A chapter's claims from YAML: under each id `claim`, `rule`, and a reading for each verdict, as `holds`.

    May have besides: `baseline` (what it is), `tolerance` (null where only the verdict must be the same) and
    `published` (`value`, `model`, `protocol`, `citation`).

    Raises:
        InputError: a key that is none of these, one that is missing, or a rule that can't be read.
    """
    import yaml

    found = {}
    for id, entry in (yaml.safe_load(text) or {}).items():
        known, needed = {"claim", "rule", "baseline", "tolerance", "published", *VERDICTS}, {"claim", "rule"}
        if unknown := set(entry) - known or needed - set(entry):
            raise InputError(
                f"claim {id!r}: {', '.join(sorted(unknown))} unknown or missing: legal are {', '.join(sorted(known))}"
            )
        _compile(entry["rule"])
        evidence = {
            "rule": entry["rule"],
            "baseline_is": entry.get("baseline", ""),
            "tolerance": entry.get("tolerance", 0.0),
        }
        if "published" in entry:
            evidence["published"] = Published(**entry["published"])
        readings = {verdict: " ".join(entry[verdict].split()) for verdict in VERDICTS if verdict in entry}
        found[id] = Expected(" ".join(entry["claim"].split()), evidence, readings)
    return found


def average(
    samples: Sequence[float],
    *,
    seed: int,
    of: str = "sequences",
    groups: Sequence[Hashable] | None = None,
    within: tuple[float, float] | None = None,
) -> Estimate:
    """The mean with its 95 % percentile bootstrap interval (`scipy.stats.bootstrap`, 10,000 resamples).

    Of fewer than `FEWEST_RESAMPLED` samples the interval is Student's, since a bootstrap of a handful is too narrow.
    Samples that share a group (a template, a seed of training) are no independent ones. With `groups` each group counts
    as one number, its mean, and the interval is Student's over these, however many there are.

    Args:
        samples: one number for each independent unit, or for each example, at least two.
        seed: of the resampling.
        of: what the independent units are, in the plural.
        groups: for each sample its group, of which there are at least two.
        within: the least and the most that a sample can be, where the interval ends. Where all are alike it has no
            width; with this it says how far the mean moves if as many lie at either end as may go unseen (Wilson's).

    Raises:
        InputError: fewer than two samples, one that is not finite, or another number of groups.

    >>> average([1.0, 2.0, 3.0], seed=0).value
    2.0
    """
    import numpy as np
    from scipy.stats import bootstrap, ttest_1samp

    from helpers.engine.inputs import as_list, check_seed

    numbers, seed = np.asarray(as_list(samples), dtype=float), check_seed(seed)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise InputError(f"an interval needs at least two samples in one row, not shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise InputError("a sample is NaN or infinite, so no mean can be given: the model's weights may be damaged")
    if groups is not None:
        numbers = average_groups(numbers, groups)
    if np.ptp(numbers) == 0:  # exactly, where a mean would round
        middle, unseen = numbers[0], 1 - share([True] * len(numbers)).low
        least, most = within or (middle, middle)
        low, high = middle - unseen * (middle - least), middle + unseen * (most - middle)
    elif groups is not None or len(numbers) < FEWEST_RESAMPLED:
        least, most = within or (-math.inf, math.inf)
        middle, interval = numbers.mean(), ttest_1samp(numbers, 0).confidence_interval()
        low, high = max(interval.low, least), min(interval.high, most)
    else:
        interval = bootstrap((numbers,), np.mean, n_resamples=10_000, method="percentile", rng=seed)
        middle, (low, high) = numbers.mean(), interval.confidence_interval
    return Estimate(float(middle), float(low), float(high), len(numbers), of)


def average_groups(numbers: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """The mean of each group, in the order in which groups first occur.

    Args:
        numbers: one for each sample.
        groups: for each sample its group, of which there are at least two.
    """
    import numpy as np

    names = list(groups)
    if len(names) != len(numbers) or len(set(names)) < 2:
        raise InputError(
            f"{len(set(names))} groups of {len(names)} samples for {len(numbers)}: legal is one for each, at least two "
            "different ones"
        )
    numbered = {name: number for number, name in enumerate(dict.fromkeys(names))}
    codes = [numbered[name] for name in names]
    return np.bincount(codes, numbers) / np.bincount(codes)


def bound(estimates: Sequence[Estimate]) -> Estimate:
    """The smallest of several estimates, each end of its interval the smallest of theirs.

    With a rule "value > 0" the smallest holds where all surely do, and fails where one surely does not, whichever has
    the smallest value. "Holds" needs no correction for looking at several. "Fails" does: upper ends are those of
    intervals that hold for all at once (Bonferroni, by Student's quantiles), as by chance one of ten seems to fail.

    Args:
        estimates: at least one, in one unit, with 95 % intervals.

    >>> bound([Estimate(0.5, -0.4, 1.4, 10), Estimate(0.3, 0.2, 0.4, 10)])
    Estimate(value=0.3, low=-0.4, high=0.418..., n=10, of='sequences')
    """
    if not estimates:
        raise InputError("no estimates to bound: legal is at least one")
    value, low = (min(getattr(one, name) for one in estimates) for name in ("value", "low"))
    high = min(widen(one, len(estimates)).high for one in estimates)
    return Estimate(value, low, high, min(one.n for one in estimates), estimates[0].of)


def widen(estimate: Estimate, n_looks: int) -> Estimate:
    """An estimate with an interval that holds though it is one of several that are looked at (Bonferroni).

    Args:
        estimate: with a 95 % interval.
        n_looks: how many there are.
    """
    from scipy.stats import t

    wider = float(t.ppf(1 - 0.025 / n_looks, estimate.n - 1) / t.ppf(0.975, estimate.n - 1)) if estimate.n > 1 else 1.0
    low, high = (estimate.value + wider * (end - estimate.value) for end in (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high)


def share(right: Sequence[bool], *, of: str = "prompts") -> Estimate:
    """How often something is so, with Wilson's 95 % interval, which has a width also where it is always or never so.

    Args:
        right: one for each independent unit, at least one.
        of: what these are, in the plural.

    >>> share([True] * 200)
    Estimate(value=1.0, low=0.98115..., high=1.0, n=200, of='prompts')
    """
    import numpy as np
    from scipy.stats import binomtest

    from helpers.engine.inputs import as_list

    chosen = np.asarray(as_list(right))
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype != bool:
        raise InputError(f"a share of {str(right)[:60]}: legal is True or False for each unit, at least one")
    interval = binomtest(int(chosen.sum()), len(chosen)).proportion_ci(method="wilson")
    return Estimate(float(chosen.mean()), float(interval.low), float(interval.high), len(chosen), of)


def decide(
    id: str,
    sentence: str,
    *,
    rule: str,
    estimate: Estimate | None,
    baseline: float | None = None,
    baseline_is: str = "",
    tolerance: float | None = 0.0,
    published: Published | None = None,
    model_name: str = "",
) -> Claim:
    """Make a claim and let its rule decide it. Over an estimate's reach a rule must have more than one outcome: else no
    data could decide it, and it is "out of reach".

    Args:
        id: short and unique within the chapter.
        sentence: what is claimed.
        rule: such as "value > baseline" or "abs(value - published) < 0.05".
        estimate: what was measured; None where it was not.
        baseline: a number to compare with.
        baseline_is: what that is, in words.
        tolerance: how far a re-run of the same size may lie from the record; None where only the verdict must be the
            same.
        published: a figure from the literature.
        model_name: the registry's name of the model at hand, to compare with `published.model`.

    Raises:
        InputError: a rule that can't be read or that names something else, a value out of its reach.
    """
    verdict, reason = _verdict(rule, estimate, baseline, published, model_name)
    return Claim(id, sentence, rule, verdict, reason, estimate, baseline, baseline_is, tolerance, published)


def _verdict(
    rule: str, estimate: Estimate | None, baseline: float | None, published: Published | None, model_name: str
) -> tuple[Verdict, str]:
    comparisons = _compile(rule)
    used = {name for code in comparisons for name in code.co_names}
    if published is not None and "published" in used and published.model != model_name:
        return "not comparable", f"published for {published.model}"
    if estimate is None:
        return "not run", ""
    names = {"baseline": baseline, "published": published.value if published else None, "abs": abs, "__builtins__": {}}
    for name in sorted(used):
        if name != "value" and not callable(names[name]) and (names[name] is None or not math.isfinite(names[name])):
            raise InputError(f"rule {rule!r} needs a finite {name}, not {names[name]}")
    reach = estimate.reach
    if reach and not reach[0] - 1e-6 <= estimate.value <= reach[1] + 1e-6:  # sums round
        raise InputError(f"value {estimate.value} is out of its reach: legal are {reach[0]} to {reach[1]}")
    try:
        turns, outcome = _turns(comparisons, names, estimate)
        could_turn = reach is None or _turns(comparisons, names, replace(estimate, low=reach[0], high=reach[1]))[0]
    except (ArithmeticError, TypeError) as error:
        raise InputError(f"rule {rule!r} can't be decided ({error})") from None
    if turns is None:
        raise InputError(f"rule {rule!r} can't be decided over an interval: legal is a simpler one")
    if could_turn is False:
        ends = " to ".join(map(shorten, reach or ()))
        return "out of reach", f"from {ends}, all that there could have been, the rule has one outcome"
    if turns:
        return "depends", "on the sample: the interval straddles the bound"
    return ("holds" if outcome else "fails"), ""


def _turns(comparisons: Sequence[CodeType], names: dict[str, Any], estimate: Estimate) -> tuple[bool | None, bool]:
    """Whether a rule has another outcome somewhere in the interval, by interval arithmetic on ever smaller parts.

    With the outcome at the value itself.
    """
    from mpmath import iv

    def holds(value: float) -> bool:
        return all(bool(eval(code, names | {"value": value})) for code in comparisons)

    outcome = holds(estimate.value)
    parts = [(min(estimate.low, estimate.value), max(estimate.high, estimate.value))]
    for low, high in parts:
        middle = (low + high) / 2
        if any(holds(value) != outcome for value in (low, middle, high)):
            return True, outcome
        # Each True, False or, where it is not the same all over the part, None.
        everywhere = [eval(code, names | {"value": iv.mpf([low, high])}) for code in comparisons]
        open_still = None in everywhere and not any(one is False for one in everywhere)
        if open_still and low < middle < high:  # else the part is one point, which has been tried
            parts += [(low, middle), (middle, high)]
        if len(parts) > MOST_PARTS:
            return None, outcome
    return False, outcome


def _compile(rule: str) -> list[CodeType]:
    """A rule as comparisons that must all be true: every node of its syntax tree is one of `RULE_NODES`."""
    try:
        tree = ast.parse(rule, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: thousands of signs
        tree = None
    if (
        tree is None
        or not _is_truth(tree.body)
        or not all(isinstance(node, RULE_NODES) for node in ast.walk(tree))
        or not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} <= RULE_NAMES
        or not all(type(node.value) in (int, float) for node in ast.walk(tree) if isinstance(node, ast.Constant))
    ):
        raise InputError(
            f"rule {rule!r} can't be decided: legal are comparisons of value, baseline and published, "
            "with numbers, + - * /, abs(), and"
        )
    return [compile(ast.Expression(one), "<rule>", "eval") for one in _take_apart(tree.body)]


def _take_apart(node: ast.expr) -> Iterator[ast.expr]:
    """What `and` joins, and `a < b < c` as `a < b` and `b < c`."""
    if isinstance(node, ast.BoolOp):
        for one in node.values:
            yield from _take_apart(one)
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for left, sign, right in zip(sides, node.ops, sides[1:], strict=False):
            yield ast.copy_location(ast.Compare(left, [sign], [right]), node)


def _is_truth(node: ast.expr) -> bool:
    """Whether an expression is true or false, and no number."""
    if isinstance(node, ast.BoolOp):
        return all(map(_is_truth, node.values))
    inside = (part for operand in ast.iter_child_nodes(node) for part in ast.walk(operand))
    return isinstance(node, ast.Compare) and not any(isinstance(part, (ast.Compare, ast.BoolOp)) for part in inside)


def as_record(claims: Iterable[Claim]) -> list[dict[str, Any]]:
    """Claims as plain JSON values."""
    return [asdict(claim) for claim in claims]


@dataclass(frozen=True)
class Comparison:
    """The claims of a run beside those on record."""

    why_not: str
    """Why the two can't be compared; empty where they are."""
    same: tuple[str, ...] = ()
    """Ids of the claims with the same verdict and a value within their tolerance."""
    others: tuple[str, ...] = ()
    """Ids of the rest, with those that only one of the two has."""
    largest: float = 0.0
    """The largest difference of two values as a share of their claim's tolerance, whatever its unit."""


def compare(run: dict[str, Any], record: dict[str, Any]) -> Comparison:
    """Compare a run with the one on record, where both are of the same size on the same weights.

    Args:
        run: as `runs.read_record` gives it.
        record: the same.
    """
    if run["model"]["weights_sha256"] != record["model"]["weights_sha256"]:
        return Comparison("other weights")
    if run["model"]["dtype"] != record["model"]["dtype"]:
        return Comparison(f"another precision: {run['model']['dtype']}, on record {record['model']['dtype']}")
    ours, theirs = (
        {name: value for name, value in one["parameters"].items() if name not in NO_SIZE} for one in (run, record)
    )
    if differing := [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]:
        return Comparison(
            "another size: "
            + ", ".join(f"{name} is {ours.get(name)}, on record {theirs.get(name)}" for name in differing)
        )
    claims, on_record = ({claim["id"]: claim for claim in one["claims"]} for one in (run, record))
    pairs = {id: (claims[id], on_record[id]) for id in claims if id in on_record}
    gaps = {
        id: abs(claim["estimate"]["value"] - other["estimate"]["value"])
        for id, (claim, other) in pairs.items()
        if claim["tolerance"] is not None and claim["estimate"] and other["estimate"]
    }
    tolerances = {id: claim["tolerance"] for id, (claim, _) in pairs.items()}
    shares = [gap and (gap / tolerances[id] if tolerances[id] else math.inf) for id, gap in gaps.items()]
    same = tuple(
        id
        for id, (claim, other) in pairs.items()
        if claim["verdict"] == other["verdict"] and gaps.get(id, 0.0) <= (claim["tolerance"] or 0.0)
    )
    others = tuple(sorted({*claims, *on_record} - set(same)))
    return Comparison("", same, others, max(shares, default=0.0))


def as_html(claims: Iterable[Claim]) -> str:
    """A table of claims; every text in it is escaped."""
    rows = "".join(
        f'<tr id="claim-{escape(claim.id)}"><td>{escape(claim.sentence)}</td>'
        f"<td>{escape(str(claim.estimate or '–'))}</td><td>{escape(_baseline(claim))}</td>"
        f"<td>{escape(_published(claim))}</td>"
        f'<td class="verdict"><strong>{escape(claim.verdict)}</strong> {escape(claim.reason)}'
        f"<br><small>{escape(claim.rule)}</small></td></tr>"
        for claim in claims
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Claim", "Measured", "Baseline", "Published", "Verdict"))
    return (
        f'<div class="wide-table"><table class="claims"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def as_line(claim: Claim, reading: str) -> str:
    """One claim as a line: its verdict, what that means, and the number behind it; every text in it is escaped."""
    numbers = [str(claim.estimate)] if claim.estimate else []
    numbers += [f"beside {_baseline(claim)}"] if claim.baseline is not None else []
    numbers += [f"published {_published(claim)}"] if claim.published else []
    numbers += [f"decided by: {claim.rule}"]
    return (
        f'<p class="finding" id="claim-{escape(claim.id)}"><strong>{escape(claim.verdict)}</strong> '
        f"{escape(reading)}<br><small>{escape('; '.join(numbers))}</small></p>"
    )


def shorten(number: float) -> str:
    """A number with three significant digits, without exponent where it stays readable."""
    if number == 0 or 1e-3 <= abs(number) < 1e5:
        digits = 2 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number))))
        return f"{number:.{digits}f}"
    return f"{number:.2e}"


def _baseline(claim: Claim) -> str:
    if claim.baseline is None:
        return "–"
    return f"{shorten(claim.baseline)} ({claim.baseline_is})" if claim.baseline_is else shorten(claim.baseline)


def _published(claim: Claim) -> str:
    if claim.published is None:
        return "–"
    figure = claim.published
    return f"{shorten(figure.value)} for {figure.model} ({figure.protocol}; {figure.citation})"
