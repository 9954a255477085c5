"""Print the table of ratios and write it to `_build/bench.md` and `_build/bench.json`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from itertools import chain

import joblib
import torch

from benchmarks import capturing, generating, patching, probing
from benchmarks.pairs import Row
from helpers import ROOT, models

LARGER = "qwen2.5-coder-0.5b-instruct-q4"
"""Some of the work on this model too, where it has been fetched."""
HEADINGS = ("work", "ours", "peer", "its time", "ratio", "to reach", "", "floor", "ours / floor", "remarks")


def line(row: Row) -> str:
    floor = ("", "") if row.floor is None else (f"{row.floor:.2f}", f"{row.ours / row.floor:.2f}")
    cells = (row.work, f"{row.ours:.2f}", row.peer, f"{row.peer_seconds:.2f}", f"{row.ratio:.2f}×", row.target)
    return "| " + " | ".join((*cells, "yes" if row.reached else "**no**", *floor, row.note)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="smaller samples, one pair each")
    parser.add_argument(
        "--only", choices=("capturing", "patching", "probing", "generating"), help="one part of the table"
    )
    options = parser.parse_args()
    torch.set_num_threads(joblib.cpu_count())
    intro = (
        f"Seconds on {torch.get_num_threads()} threads, torch {torch.__version__}; medians of paired runs. A peer's "
        "sweep that is too long is timed on a random sample of its patches and scaled."
    )
    table = [intro, "", "| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    print("\n".join(table), flush=True)
    rows = []
    parts = [
        part
        for part in (capturing, patching, probing, generating)
        if options.only in (None, part.__name__.split(".")[-1])
    ]
    for part in parts:
        made = part.rows(options.quick)
        if part is not probing and models.is_cached(models.find(LARGER)):
            made = chain(made, (replace(row, work=f"{LARGER}: {row.work}") for row in part.rows(options.quick, LARGER)))
        for row in made:
            rows.append(row)
            table.append(line(row))
            print(table[-1], flush=True)
    folder = ROOT / "_build"
    folder.mkdir(exist_ok=True)
    (folder / "bench.md").write_text("\n".join(table) + "\n", encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    missed = [row.work for row in rows if not row.reached]
    print(f"{len(rows) - len(missed)} of {len(rows)} targets reached", file=sys.stderr)


if __name__ == "__main__":
    main()
