"""Which chapters there are, with which parameters a profile runs them, and what each depends on."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from helpers import ROOT, InputError

PROFILES = ROOT / "workflow" / "profiles"
PACKAGES = ("helpers", "studies")
KEPT = {".parquet": "datasets", ".safetensors": "adapters"}
"""Where below `results/<model>/` what a run made is kept, by its suffix."""
INSTALLED_MB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6
UNMEASURED_GB = 4.0
"""Of a chapter that was never run here; the largest takes less on the default model."""


def all_chapters() -> list[str]:
    """Every chapter of `_toc.yml` that is a notebook, as its path below `book/` without suffix."""
    entries = re.findall(r"file:\s*book/(\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [entry for entry in entries if (ROOT / "book" / f"{entry}.py").is_file()]


def find_chapter(name: str) -> str:
    """The chapter that a name, a path or the last part of a path stands for.

    Raises:
        InputError: no chapter, or more than one, is so called.
    """
    wanted = name.removeprefix("./").removeprefix("book/").removesuffix(".py").removesuffix(".ipynb")
    matches = [chapter for chapter in all_chapters() if chapter == wanted or chapter.endswith("/" + wanted)]
    if len(matches) != 1:
        names = [chapter.rsplit("/", 1)[-1] for chapter in all_chapters()]
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"there is no chapter {name!r}: {hint}legal are {', '.join(names)}")
    return matches[0]


def profiles() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def split_run(run: str) -> tuple[str, int | None, str]:
    """Profile, seed and model of a run: "ci", "ci@a model", "ci+3@a model" (of a grid).

    >>> split_run("ci"), split_run("ci+3@organisation/name@revision")
    (('ci', None, ''), ('ci', 3, 'organisation/name@revision'))

    Raises:
        InputError: something else.
    """
    found = re.fullmatch(r"(?P<profile>[^@+]+)(\+(?P<seed>0|[1-9]\d*))?(@(?P<model>.+))?", run)
    if found is None:
        raise InputError(f"run {run!r}: legal are a profile, profile@model, and profile+seed@model")
    return found["profile"], None if found["seed"] is None else int(found["seed"]), found["model"] or ""


def name_folder(run: str) -> str:
    """What the folder of a run is called, below `_build/runs` and, for another model, `_build/sites`."""
    from helpers import runs

    name, at, model = run.partition("@")
    return f"{name}@{runs.locate_results(model).name}" if at else name


def run_parameters(run: str, chapter: str) -> dict[str, Any]:
    """The parameters that a run sets for a chapter: those of its profile, its seed and its model."""
    profile, seed, model = split_run(run)
    own = set(re.findall(r"^(model_name|seed)\b", "".join(_code_cells(chapter)), re.MULTILINE))
    besides = {"model_name": model or None, "seed": seed}
    besides = {name: value for name, value in besides.items() if name in own and value is not None}
    return profile_parameters(profile, chapter) | besides


def count_gpus(chapter: str, run: str) -> int:
    """How many GPUs a run asks for."""
    return int(str(run_parameters(run, chapter).get("device", "cpu")).startswith("cuda"))


def estimate_memory(chapter: str, run: str) -> int:
    """Megabytes that a run will take: as measured on the same model, else on another with the difference in weights."""
    from helpers import models

    def weigh(name: str) -> float:
        """Gigabytes of weights in float32; where nothing is known of them, all memory, so that it runs alone."""
        with contextlib.suppress(InputError, OSError):
            if parameters := models.find(name).parameters:
                return 4 * parameters / 1e9
            files = list(Path(name).expanduser().glob("*.safetensors"))
            if files:
                return 2 * sum(file.stat().st_size for file in files) / 1e9  # they may be in half precision
        return INSTALLED_MB / 1e3

    model = run_parameters(run, chapter).get("model_name", models.DEFAULT_MODEL)
    measured = {record["model"]["name"]: record["provenance"]["memory_gb"] for record in _read_runs(chapter)}
    if model in measured:
        gigabytes = measured[model]
    else:
        other, gigabytes = next(reversed(measured.items()), (models.DEFAULT_MODEL, UNMEASURED_GB))
        gigabytes += max(0.0, weigh(model) - weigh(other))
    return int(min(1200 * gigabytes, INSTALLED_MB))


def estimate_seconds(chapter: str) -> int:
    """How long the last run of a chapter took, on any model and size, else by the README; 0 where neither tells."""
    if runs := _read_runs(chapter):
        return int(runs[-1]["provenance"]["seconds"])
    readme = ROOT / "README.md"
    told = readme.read_text(encoding="utf-8") if readme.exists() else ""
    found = re.search(rf"\(book/{re.escape(chapter)}\.py\).*\| (\d+) s \|", told)
    return int(found[1]) if found else 0


def _read_runs(chapter: str) -> list[dict[str, Any]]:
    """The records of a chapter's runs here, on any model and size, the latest last."""
    found = sorted((ROOT / "_build" / "runs").glob(f"*/{chapter}.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def count_side_by_side(run: str) -> int:
    """How many chapters of a run go at a time: two where memory holds the largest two and they share no GPU, else one.

    Two that have half of the cores each get further than two that have all of them in turn: a model this small does
    not keep many busy.
    """
    needed = sorted(estimate_memory(chapter, run) for chapter in all_chapters())
    shares_gpu = any(count_gpus(chapter, run) for chapter in all_chapters())
    return 1 if shares_gpu or sum(needed[-2:]) > INSTALLED_MB else 2


def profile_parameters(profile: str, chapter: str) -> dict[str, Any]:
    """The parameters that a profile sets for a chapter; all others keep the chapter's own defaults.

    Raises:
        InputError: no such profile, or its file is no table of chapters, each with a table of parameters.
    """
    if profile not in profiles():
        raise InputError(f"there is no profile {profile!r}: legal are {', '.join(profiles())}")
    settings = _read_yaml((PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"), f"profile {profile!r}") or {}
    if not isinstance(settings, dict) or not all(isinstance(table, dict) for table in settings.values()):
        raise InputError(f"profile {profile!r} must hold `parameter: value` under each chapter, not {settings!r}")
    return settings.get(chapter, {})


def parse_parameters(text: str) -> dict[str, Any]:
    """Read "n_sequences=8 seed=1" into a dictionary; a value with a space goes between quotation marks.

    Raises:
        InputError: a word without an equals sign, a value that is not YAML, or a lone quotation mark.

    >>> parse_parameters("n_sequences=8 model_name='a folder'")
    {'n_sequences': 8, 'model_name': 'a folder'}
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"parameters {text!r} can't be read ({error})") from None
    if broken := [word for word in words if not re.match(r"[A-Za-z_]\w*=.", word)]:
        raise InputError(f"{broken[0]!r} is no parameter: legal are words like n_sequences=8, separated by spaces")
    pairs = (word.split("=", 1) for word in words)
    return {name: _read_yaml(value, f"parameter {name} = {value!r}") for name, value in pairs}


def code_digest(chapter: str) -> str:
    """A hash of the chapter's code cells; prose does not count."""
    return hashlib.sha256("".join(_code_cells(chapter)).encode()).hexdigest()[:16]


def input_files(chapter: str, run: str) -> list[str]:
    """The code that a chapter imports, directly or through one another, what this names of data, and its protocol.

    A run that makes a data set (its parameter `save`) does not hang on the one that is kept in `results/`.

    Raises:
        InputError: the chapter or a module can't be parsed.
    """
    codes = {f"book/{chapter}.py": "".join(_code_cells(chapter))}
    waiting = _imported(*codes.popitem())
    while waiting:
        file = waiting.pop()
        codes[file] = (ROOT / file).read_text(encoding="utf-8")
        waiting |= _imported(file, codes[file]) - set(codes)
    makes_data = run_parameters(run, chapter).get("save", False)
    named = {name for file, code in codes.items() for name in _file_names(file, code)}
    protocol = f"book/{chapter}.claims.yaml"
    own = [protocol] if (ROOT / protocol).is_file() else []
    return sorted(codes) + own + [file for file in _data_files(kept=not makes_data) if Path(file).name in named]


def _read_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def _code_cells(chapter: str) -> list[str]:
    source = (ROOT / "book" / f"{chapter}.py").read_text(encoding="utf-8")
    _, *parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    return [body for header, body in zip(parts[::2], parts[1::2], strict=True) if "[markdown]" not in header]


def _imported(file: str, source: str) -> set[str]:
    """The files of `PACKAGES` that importing what a file imports would run, packages above them included."""
    names: set[str] = set()
    for node in ast.walk(_parsed(file, source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = file.split("/")[: -node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.split(".")[0] in PACKAGES]
    paths = {"/".join(part[:end]) for part in parts for end in range(1, len(part) + 1)}
    files = {f"{path}{ending}" for path in paths for ending in (".py", "/__init__.py")}
    return {file for file in files if (ROOT / file).is_file()}


def _file_names(file: str, source: str) -> set[str]:
    """What a file's strings would be as names of files."""
    strings = (node.value for node in ast.walk(_parsed(file, source)) if isinstance(node, ast.Constant))
    return {string.rsplit("/", 1)[-1] for string in strings if isinstance(string, str)}


def _data_files(*, kept: bool) -> list[str]:
    """Files in the packages that are no code, and the data sets and adapters that are kept with the book."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*.*") if path.is_file()]
    found = [path for path in found if path.suffix not in (".py", ".pyc", ".md")]
    found += [path for folder in KEPT.values() for path in (ROOT / "results").glob(f"*/{folder}/*")] if kept else []
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _parsed(file: str, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{file} can't be parsed: {error.msg} at {(error.text or '').strip()!r}") from None
