"""Which chapters there are and what each depends on, with the real Snakefile; a new one in a copy of the checkout."""

import json
import shutil
import subprocess
import sys

import pytest

from helpers import ROOT, InputError, models, runs
from workflow import chapters

pytestmark = pytest.mark.slow


def in_copy(folder, *command):
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)


def test_a_chapter_is_found_by_any_of_its_names():
    whole = chapters.all_chapters()[0]
    short = whole.rsplit("/", 1)[-1]
    for name in (whole, short, f"book/{whole}.py", f"./book/{whole}.ipynb"):
        assert chapters.find_chapter(name) == whole
    with pytest.raises(InputError, match="there is no chapter"):
        chapters.find_chapter("")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: chapters.find_chapter("IOI_notebok"),
            "there is no chapter 'IOI_notebok': did you mean 'IOI_notebook'?",
        ),
        (lambda: runs.validate(count=("many", range(1, 10))), "parameter count must be a whole number, not 'many'"),
        (lambda: runs.validate(count=(99, range(1, 10))), "parameter count = 99 is out of range: legal are 1 to 9"),
        (lambda: chapters.parse_parameters("count"), "'count' is no parameter"),
        (lambda: chapters.parse_parameters("count=[3"), "parameter count = '[3' is not YAML: while parsing a flow"),
        (lambda: chapters.profile_parameters("huge", "any"), "there is no profile 'huge': legal are ci, embedded"),
        (lambda: models.find("gpt2-smal"), "unknown model 'gpt2-smal': did you mean 'gpt2-small'?"),
    ],
)
def test_bad_input_is_told_by_whoever_reads_it(call, sentence):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("first: {count: 3\n", "profile 'ci' is not YAML: while parsing a flow mapping"),
        ("first: 3\n", "profile 'ci' must hold `parameter: value` under each chapter, not {'first': 3}"),
    ],
)
def test_a_profile_that_cannot_be_read_is_named(text, sentence, tmp_path, monkeypatch):
    (tmp_path / "ci.yaml").write_text(text)
    monkeypatch.setattr(chapters, "PROFILES", tmp_path)
    with pytest.raises(InputError) as caught:
        chapters.profile_parameters("ci", "first")
    assert str(caught.value).startswith(sentence)


STUB = """import pathlib, sys
_, command, chapter, profile = sys.argv
for suffix in ("ipynb", "json"):
    target = pathlib.Path("_build/runs", profile, f"{chapter}.{suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text('{"model": {"name": "m"}, "provenance": {"seconds": 1, "memory_gb": 1}}')
with open("ran.txt", "a") as log:
    log.write(chapter + chr(10))
"""
TREE = {
    "_toc.yml": "root: book/index\nchapters:\n- file: book/one\n- file: book/two\n",
    "requirements.lock": "",
    "book/one.py": "# %% [markdown]\n# Prose.\n# %%\nfrom helpers import prompts\nfrom helpers.deep import below\n",
    "book/two.py": "# %%\nimport studies.some.data as data\n# %% [markdown]\n",
    "helpers/__init__.py": "from pathlib import Path\nROOT = Path.cwd()\nclass InputError(ValueError): ...\n",
    "helpers/prompts.py": 'TEXTS = "data/texts.txt"\n',
    "helpers/data/texts.txt": "One.\n",
    "helpers/data/others.txt": "Two.\n",
    "helpers/deep/__init__.py": "",
    "helpers/deep/below.py": "from . import deeper\n",
    "helpers/deep/deeper.py": "from ..late import late\n",
    "helpers/late.py": "late = 1\n",
    "helpers/models.py": 'DEFAULT_MODEL = "m"\ndef find(name):\n    raise OSError\n',
    "helpers/nobody.py": "",
    "studies/__init__.py": "",
    "studies/some/__init__.py": "",
    "studies/some/data.py": 'from helpers import late\nKEPT = "kept.parquet", "kept.safetensors"\n',
    "results/a-model/datasets/kept.parquet": "rows",
    "results/a-model/datasets/other.parquet": "rows",
    "results/a-model/adapters/kept.safetensors": "matrices",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two chapters with the real Snakefile, whose executions only leave a trace; returns what a change runs."""
    folder = tmp_path_factory.mktemp("tree")
    for name, text in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    (folder / "workflow" / "book.py").write_text(STUB)
    for profile in (folder / "workflow" / "profiles").glob("*.yaml"):
        profile.write_text("# nothing\n")

    def ran(*edited):
        for name in edited:
            with (folder / name).open("a") as file:
                file.write("two: {count: 5}\n" if name.endswith("embedded.yaml") else "# edited\n")
        (folder / "ran.txt").write_text("")
        options = ("--snakefile", "workflow/Snakefile", "--cores", "2", "--nolock", "--quiet", "all")
        result = in_copy(folder, "snakemake", "runs", *options)
        assert result.returncode == 0, result.stderr
        return sorted((folder / "ran.txt").read_text().split())

    assert ran() == ["one", "two"]
    return ran


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        # What nobody imports or names; of book/two.py the last cell, which is prose.
        (("helpers/nobody.py", "helpers/data/others.txt", "results/a-model/datasets/other.parquet", "book/two.py"), []),
        (("book/one.py",), ["one"]),
        (("workflow/profiles/embedded.yaml",), ["two"]),
        (("helpers/deep/deeper.py",), ["one"]),
        (("helpers/deep/__init__.py",), ["one"]),
        (("helpers/data/texts.txt",), ["one"]),
        (("studies/__init__.py",), ["two"]),
        (("studies/some/data.py",), ["two"]),
        (("results/a-model/datasets/kept.parquet",), ["two"]),
        (("results/a-model/adapters/kept.safetensors",), ["two"]),
        (("helpers/late.py",), ["one", "two"]),
    ],
)
def test_an_edited_input_runs_what_hangs_on_it(tree, edited, expected):
    assert tree(*edited) == expected


def test_a_run_is_a_profile_and_maybe_a_model():
    chapter = chapters.find_chapter("day3-4_first_probes")
    of_profile = chapters.profile_parameters("ci", chapter)
    assert chapters.run_parameters("ci", chapter) == of_profile
    for model in ("gpt2-small", "organisation/name@revision", "a folder/with a model"):
        assert chapters.run_parameters(f"ci@{model}", chapter) == of_profile | {"model_name": model}
    for run in ("ci@", "ci+x", "ci+03", "ci+-1", "", "@a", "ci+1+2"):
        with pytest.raises(InputError, match="legal are a profile"):
            chapters.split_run(run)
    names = ["ci", "ci@gpt2-small", "ci@a/b", "ci@a-b", "ci@../b", "record@a/b"]
    folders = [chapters.name_folder(run) for run in names]
    assert folders[:2] == ["ci", "ci@gpt2-small"] and len(set(folders)) == len(names)
    assert not [folder for folder in folders if "/" in folder or ".." in folder]


@pytest.mark.parametrize(
    ("megabytes", "device", "expected"), [(8000, "cpu", 1), (10_999, "cpu", 1), (11_000, "cpu", 2), (99_000, "cuda", 1)]
)
def test_two_chapters_run_side_by_side_where_memory_holds_the_largest_two(megabytes, device, expected, monkeypatch):
    largest = {chapter: 5000 + 500 * (number % 3 == 0) for number, chapter in enumerate(chapters.all_chapters())}
    monkeypatch.setattr(chapters, "estimate_memory", lambda chapter, run: largest[chapter])
    monkeypatch.setattr(chapters, "run_parameters", lambda run, chapter: {"device": device})
    monkeypatch.setattr(chapters, "INSTALLED_MB", megabytes)
    assert chapters.count_side_by_side("embedded") == expected


def test_a_chapter_takes_as_long_as_last_time_or_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    assert chapters.estimate_seconds("a/one") == 0
    (tmp_path / "README.md").write_text(
        "| [One](book/a/one.py) | What? | 131 s | – |\n| [Two](book/a/two.py) | – | 7 s | – |\n"
    )
    assert [chapters.estimate_seconds(f"a/{name}") for name in ("one", "two", "three")] == [131, 7, 0]
    record = tmp_path / "_build" / "runs" / "ci" / "a" / "one.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"provenance": {"seconds": 12.6}}')
    assert chapters.estimate_seconds("a/one") == 12


def test_every_module_and_every_data_file_belongs_to_a_chapter():
    inputs = {file for chapter in chapters.all_chapters() for file in chapters.input_files(chapter, "embedded")}
    paths = [path for package in chapters.PACKAGES for path in (ROOT / package).rglob("*.*") if path.is_file()]
    for folder in chapters.KEPT.values():
        paths += (ROOT / "results").glob(f"*/{folder}/*")
    told = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix not in (".md", ".pyc", ".typed")}
    assert told - inputs == set()


def test_only_the_run_that_makes_a_data_set_does_not_hang_on_the_kept_one():
    chapter = chapters.find_chapter("day12-14_cot_dataset")
    kept = "results/smollm2-135m-instruct-q4/datasets/cot_faithfulness.parquet"
    assert kept in chapters.input_files(chapter, "embedded")
    assert kept not in chapters.input_files(chapter, "record")
    assert kept in chapters.input_files(chapters.find_chapter("faithfulness_styles_notebook"), "record")


@pytest.fixture(scope="module")
def whole_copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "book"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", "_build", ".git", ".snakemake", "*cache*"))
    (folder / "_build").mkdir()
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "pycache" not in str(path)}


def test_a_new_chapter_passes_the_checks_as_it_stands(whole_copy):
    result = in_copy(whole_copy, "workflow.book", "new-chapter", "day99_my_question")
    assert result.returncode == 0, result.stderr
    chapter = "projects/probe-based-faithfulness-detection/day99_my_question"
    assert result.stdout.strip().endswith(f"{chapter}.py")
    tests = ("tests/test_notebooks.py", "-k", "day99 or contents_list or profiles_name")
    checked = in_copy(whole_copy, "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert checked.returncode == 0, checked.stdout
    assert " 0 " not in checked.stdout.splitlines()[-1] and "passed" in checked.stdout
    for command in (("check", "."), ("format", "--check", ".")):
        linted = in_copy(whole_copy, "ruff", *command)
        assert linted.returncode == 0, linted.stdout
    ran = in_copy(whole_copy, "workflow.book", "execute", chapter, "ci")
    assert ran.returncode == 0, ran.stderr
    record = json.loads((whole_copy / "_build" / "runs" / "ci" / f"{chapter}.json").read_text())
    assert [claim["verdict"] for claim in record["claims"]] == ["holds"]
    assert record["parameters"]["n_passages"] == 4  # as the profile says


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("two words", "'two words' can't be the name of a chapter: legal are letters"),
        ("", "'' can't be the name of a chapter"),
        ("projects/none/day99", "there is no project 'projects/none': legal are projects/"),
        ("IOI_notebook", "there is a chapter 'IOI_notebook' already"),
    ],
)
def test_a_new_chapter_with_a_bad_name_writes_nothing(name, sentence, whole_copy):
    before = contents(whole_copy)
    result = in_copy(whole_copy, "workflow.book", "new-chapter", name)
    assert result.returncode == 1 and result.stderr.startswith(f"error: {sentence}") and result.stderr.count("\n") == 1
    assert contents(whole_copy) == before
