"""Times of two ways to do the same work, taken in turn, so that a machine's moods touch both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. All figures are medians over the pairs."""

    work: str
    ours: float
    """In seconds."""
    peer: str
    peer_seconds: float
    ratio: float
    """Peer's time over ours, pair by pair."""
    target: str
    reached: bool
    floor: float | None = None
    """Seconds that must be spent at the least."""
    note: str = ""


def timed(function: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one run; of a short one, the mean of several in a row."""
    time.sleep(0.2)  # until the threads of what ran before no longer wait for work, which takes processor time
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def paired(
    work: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    named: str,
    at_least: float,
    n_pairs: int,
    scale: float = 1.0,
    repeats: int = 1,
    once: Callable[[], object] | None = None,
    floor: Callable[[], float] | None = None,
    note: str = "",
) -> Row:
    """Run ours and the peer in turn.

    Args:
        at_least: the ratio to reach.
        scale: the peer's whole work over what `peer` runs of it.
        repeats: of ours and of the peer in a row, where one run is too short to be timed.
        once: what the peer does once besides, whatever the sample.
        floor: measured in each pair.
    """
    ours_seconds, peer_seconds, floors = [], [], []
    for _ in range(n_pairs):
        ours_seconds.append(timed(ours, repeats))
        peer_seconds.append(scale * timed(peer, repeats) + (timed(once) if once else 0))
        if floor:
            floors.append(floor())
    ratio = statistics.median(b / a for a, b in zip(ours_seconds, peer_seconds, strict=True))
    return Row(
        work=work,
        ours=statistics.median(ours_seconds),
        peer=named,
        peer_seconds=statistics.median(peer_seconds),
        ratio=ratio,
        target=f"≥ {at_least:g}×",
        reached=ratio >= at_least,
        floor=statistics.median(floors) if floors else None,
        note=note,
    )
