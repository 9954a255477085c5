"""The set-up: one list of packages, commands that exist, and a clear sentence where something is missing."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from collections import namedtuple

import pytest
import yaml

from helpers import ROOT

SET_UP = ROOT / "workflow" / "set_up.py"


def dependencies():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_environment_yml_and_pyproject_name_the_same_packages():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert sorted(entry for entry in listed if not entry.startswith("--")) == sorted(dependencies())


def test_the_lock_holds_every_dependency_at_its_version_and_no_cuda():
    def spelling(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    locked = dict(line.split(" ;")[0].split("==") for line in lines)
    locked = {spelling(name): version for name, version in locked.items()}
    for dependency in dependencies():
        name, version = dependency.split("==")
        assert locked[spelling(name)] == version
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]
    assert "+" not in locked["torch"]  # admits the CPU and the CUDA build


def test_every_make_command_in_the_documents_exists():
    found = set()
    for document in ("README.md", "SETUP.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/book.yml"):
        found |= set(re.findall(r"(?:^|run: |`)make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE))
    assert {"book", "test", "run", "lab"} <= found
    for target in found:
        result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_an_old_python_can_read_the_set_up_script():
    ast.parse(SET_UP.read_text(), feature_version=(3, 6))


@pytest.fixture
def set_up(monkeypatch, tmp_path):
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


def test_an_old_python_is_told_so(set_up, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert "too old: 3.11 or newer is needed" in set_up()


def test_a_full_disk_is_told_before_anything_is_made(set_up, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "1.0 GB are free here, but the environment needs 3 GB" in set_up()


def test_an_unknown_build_of_torch_is_refused(set_up):
    assert "'rocm': legal are cpu and cuda" in set_up("rocm")
