"""Which chapters there are, with which parameters a profile runs them, and what each depends on."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
import shlex
from typing import Any

import yaml

from helpers import ROOT, InputError

PROFILES = ROOT / "workflow" / "profiles"


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


def read_by_others() -> list[str]:
    """The chapters that write a data set which others read, so they are run first."""
    codes = ["".join(_code_cells(chapter)) for chapter in all_chapters()]
    return [find_chapter("day12-14_cot_dataset")] if any("faithfulness.passed(" in code for code in codes) else []


def helper_files(chapter: str) -> list[str]:
    """The files of `helpers` that a chapter imports, directly or through one another.

    Raises:
        InputError: the chapter or a helper can't be parsed.
    """
    found = {"helpers/__init__.py"}
    waiting = _imported_helpers(f"book/{chapter}.py", "".join(_code_cells(chapter)))
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting |= _imported_helpers(file, (ROOT / file).read_text(encoding="utf-8"))
    return sorted(found)


def _read_yaml(text: str, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def _code_cells(chapter: str) -> list[str]:
    source = (ROOT / "book" / f"{chapter}.py").read_text(encoding="utf-8")
    _, *parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    return [body for header, body in zip(parts[::2], parts[1::2], strict=True) if "[markdown]" not in header]


def _imported_helpers(file: str, source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{file} can't be parsed: {error.msg} at {(error.text or '').strip()!r}") from None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "helpers":
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "helpers"}
    files = {name.replace(".", "/") + ".py" for name in names}
    return {file for file in files if (ROOT / file).is_file()}
