"""The set-up: one list of packages, commands that exist, and a clear sentence where something is missing."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import namedtuple
from itertools import chain

import pytest
import yaml

from helpers import ROOT
from workflow import environment, set_up

SET_UP = ROOT / "workflow" / "set_up.py"


def dependencies():
    """All that pyproject.toml declares, the extras too: names as a lock spells them, with their versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pins = dict(re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==(\S+)", entry).groups() for entry in declared)
    assert len(pins) == len(declared)
    return {spell(name): version for name, version in pins.items()}


def spell(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_yml_is_what_its_command_writes():
    text = (ROOT / "environment.yml").read_text()
    assert text == environment.list_environment(), "`make environment.yml` writes it from pyproject.toml"
    listed = yaml.safe_load(text)
    assert listed["name"] == "mechanistic-interpretability-notebook-book"
    pins = [entry for entry in listed["dependencies"][-1]["pip"] if not entry.startswith("--")]
    assert {spell(re.split(r"[\[=]", entry)[0]) for entry in pins} == set(dependencies())


def test_the_lock_holds_every_dependency_at_its_version_and_no_cuda():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = dict(line.split(" ;")[0].split("==") for line in lines)
    locked = {spell(name): version for name, version in locked.items()}
    assert {name: locked[name] for name in dependencies()} == dependencies()
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]
    assert "+" not in locked["torch"]  # admits the CPU and the CUDA build


def test_the_environment_imports_the_packages_and_nothing_else_of_the_checkout():
    code = """if True:
        import helpers, importlib.util, studies
        print(helpers.__file__, studies.__file__)
        print([name for name in ("workflow", "tests", "benchmarks", "book") if importlib.util.find_spec(name)])"""
    # -I: neither the working directory nor PYTHONPATH counts.
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True)
    files = [str(ROOT / package / "__init__.py") for package in ("helpers", "studies")]
    assert result.stdout.splitlines() == [" ".join(files), "[]"], result.stderr


def test_a_wheel_holds_the_packages_with_their_data_and_nothing_else(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("helpers", "studies", "workflow", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "."]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = [path for package in ("helpers", "studies") for path in (tmp_path / package).rglob("*") if path.is_file()]
    assert packed == {path.relative_to(tmp_path).as_posix() for path in ours}


def test_every_make_command_in_the_documents_exists():
    found = set()
    for document in ("README.md", "SETUP.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/book.yml"):
        found |= set(re.findall(r"(?:^|run: |`)make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert {"book", "test", "run", "lab"} <= found
    for target in found:
        command = ["make", "--dry-run", target, f"SYSTEM_PYTHON={sys.executable}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_an_old_python_can_read_the_set_up_script():
    ast.parse(SET_UP.read_text(), feature_version=(3, 6))


@pytest.fixture
def run_alone(monkeypatch, tmp_path):
    """Run a copy of the script, in a checkout that has no environment yet; returns what it exits with."""

    def run(*arguments):
        copy = tmp_path / "check out" / "workflow" / "set_up.py"
        copy.parent.mkdir(parents=True)
        copy.write_text(SET_UP.read_text())
        (tmp_path / "check out" / "requirements.lock").write_text("torch==2.13.0\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["set_up.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(copy), run_name="__main__")
        assert not (tmp_path / "check out" / ".venv").exists()
        return stop.value.code

    return run


def test_an_old_python_is_told_so(run_alone, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert "too old: 3.11 or newer is needed" in run_alone()


def test_a_full_disk_is_told_before_anything_is_made(run_alone, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "1.0 GB are free here, but the environment needs 3 GB" in run_alone()


def test_an_unknown_build_of_torch_is_refused(run_alone):
    assert "'rocm': legal are cpu and cuda" in run_alone("rocm")


PROJECT = """
[build-system]
requires = ["setuptools"]
[project]
name = "book"
version = "{version}"
[tool.setuptools]
packages = ["helpers"]
[tool.ruff]
line-length = {width}
"""


class Checkout:
    """A checkout in which pip and venv are only asked: `set_up` returns what would be installed."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch, self.asked = folder, monkeypatch, []
        folder.mkdir()
        self.write("pyproject.toml", PROJECT.format(version=1, width=80))
        self.write("requirements.lock", "torch==2.13.0\n")
        monkeypatch.setattr(subprocess, "run", self.answer)

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def answer(self, command, **_):
        self.asked.append([str(part) for part in command])
        if "venv" in command:
            packages = self.folder / ".venv" / "lib" / "python3.11" / "site-packages"
            for folder in (packages, self.folder / ".venv" / "bin"):
                folder.mkdir(parents=True)
            (self.folder / ".venv" / "bin" / "python").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    def set_up(self):
        self.asked.clear()
        self.monkeypatch.chdir(self.folder)  # to be left when the test ends
        self.monkeypatch.setattr(set_up, "__file__", str(self.folder / "workflow" / "set_up.py"))
        set_up.main([])
        kinds = {"venv": "venv", "torch==2.13.0+cpu": "torch", "-r": "lock", "--editable": "package"}
        return [kind for command in self.asked for sign, kind in kinds.items() if sign in command]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    return Checkout(tmp_path / "check out", monkeypatch)


def test_a_set_up_installs_all_once_and_then_only_what_changed(checkout):
    assert checkout.set_up() == ["venv", "torch", "lock", "package"]
    assert checkout.set_up() == [] and checkout.asked == []
    checkout.write("requirements.lock", "torch==2.13.0\nnumpy==1.0\n")
    assert checkout.set_up() == ["torch", "lock"]
    checkout.write("pyproject.toml", PROJECT.format(version=1, width=120))  # no table of the package
    assert checkout.set_up() == []
    checkout.write("pyproject.toml", PROJECT.format(version=2, width=120))
    assert checkout.set_up() == ["package"] and len(checkout.asked) == 1
    assert {"--no-deps", "--no-build-isolation"} < set(checkout.asked[0])
    checkout.folder = checkout.folder.rename(checkout.folder.parent / "moved")
    assert checkout.set_up() == ["package"]
    assert checkout.set_up() == []


def test_the_path_that_an_earlier_set_up_left_is_removed(checkout):
    checkout.set_up()
    (packages,) = (checkout.folder / ".venv").glob("lib/*/site-packages")
    for name in ("notebook-book.pth", "other.pth"):
        (packages / name).write_text(f"{ROOT}\n")
    assert checkout.set_up() == []
    assert os.listdir(packages) == ["other.pth"]


def test_a_package_that_can_not_be_installed_is_told_and_tried_again(checkout, monkeypatch):
    checkout.set_up()
    checkout.write("pyproject.toml", PROJECT.format(version=2, width=80))
    failed = subprocess.CompletedProcess([], 1, "", "note\nERROR: no such thing")
    with monkeypatch.context() as patched, pytest.raises(SystemExit, match=r"and studies could not be .*no such"):
        patched.setattr(subprocess, "run", lambda *_, **__: failed)
        set_up.main([])
    assert checkout.set_up() == ["package"]
