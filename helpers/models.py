"""The models of the book: where each comes from, what it is called, and how to load it.

    python -m helpers.models list          the registry, and what is in the cache
    python -m helpers.models fetch NAME    download once; later loads need no network
    python -m helpers.models check NAME    hash the files, then load them

NAME is a name of the registry, a folder that holds a Hugging Face model, or a hub id
(`organisation/name`, or `organisation/name@revision`). Only safetensors are read, and no code
that comes with a model is ever run.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import InputError
from helpers.engine.cards import BACKENDS, DTYPES, Backend, DType, EmbeddedSource, LoadedModel, ModelCard
from helpers.engine.embedded import fetch_embedded, get_first_line, hash_file, locate_embedded, quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from helpers.engine.attention import AnyModule

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "tokenizer.model", "*.jinja"]
HUB_ID = re.compile(r"(?P<hub_id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
REGISTRY = {
    name: ModelCard(name, **card | {"embedded": EmbeddedSource(**card["embedded"]) if "embedded" in card else None})
    for name, card in tomllib.loads((Path(__file__).parent / "data" / "models.toml").read_text("utf-8")).items()
}
DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_MODEL = "smollm2-135m-instruct-q4"


def find(name: str) -> ModelCard:
    """The card of a registered name, a local folder or a hub id; nothing is downloaded.

    Raises:
        InputError: `name` is none of the three.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name in REGISTRY:
        return REGISTRY[name]
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, a null byte, no home
        if name and Path(name).expanduser().is_dir():
            folder = Path(name).expanduser().resolve()
            return ModelCard(name=name, title=f"local folder {folder.name}")
    if not name.startswith((".", "/", "~")) and (match := HUB_ID.fullmatch(name)):
        hub_id, revision = match["hub_id"], match["revision"]
        try:
            validate_repo_id(hub_id)
        except HFValidationError as error:
            raise InputError(f"{name!r} can be no hub id ({get_first_line(error)})") from None
        return ModelCard(name=name, title=hub_id, hub_id=hub_id, revision=revision)
    near = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(
        f"unknown model {name!r}: {hint}legal are {', '.join(REGISTRY)}, "
        "an existing folder, or a hub id such as 'organisation/name'"
    )


def fetch(name: str) -> Path:
    """Put a model into the user's cache if it is not there yet, and return its folder.

    The cache is Hugging Face's own (`HF_HOME`). Several processes may fetch at once; an interrupted
    fetch leaves nothing that a later one would take for whole.

    Raises:
        InputError: the model can't be had; the sentence says what to do.
    """
    card = find(name)
    if card.embedded:
        return fetch_embedded(card, card.embedded)
    if card.hub_id:
        return _fetch_from_hub(card, card.hub_id)
    return Path(name).expanduser().resolve()


def load(
    name: str = DEFAULT_MODEL, *, backend: Backend = "huggingface", device: str = "cpu", dtype: DType | None = None
) -> LoadedModel:
    """Load a model for reading, after its files have been checked against their hashes.

    Args:
        name: a name of the registry, a folder or a hub id.
        backend: "huggingface" (plain transformers), "transformer_lens" (`TransformerBridge`, raw
            weights) or "nnsight" (`TransformersModel`); all three read the same folder.
        device: "cpu", "cuda", "cuda:1", …; never chosen for you, as MPS has been silently wrong.
        dtype: "float32", "bfloat16" or "float16"; by default what the registry says.

    Raises:
        InputError: unknown name, damaged folder, pickled weights, tensors missing, no such device.
    """
    import torch

    from helpers.engine import inspection

    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: legal are {', '.join(BACKENDS)}")
    card = find(name)
    dtype = dtype or card.dtype
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: legal are {', '.join(DTYPES)}")
    check_device(device)
    folder = fetch(name)
    if card.hub_id and not card.embedded:
        card = replace(card, revision=folder.name)  # the commit, also where none was pinned
    try:
        weights_sha256 = verify(card, folder)
        model = _load_model(folder, getattr(torch, dtype)).to(device)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(
            f"model folder {folder} takes more memory in {dtype} than there is on {device!r}: legal are a smaller "
            "model, bfloat16, or a larger device"
        ) from None
    tokenizer = _load_tokenizer(folder)
    plain = LoadedModel(
        card=card,
        model=model,
        tokenizer=tokenizer,
        weights_sha256=weights_sha256,
        start_token_id=_start_token_id(tokenizer),
        backend="huggingface",
        device=device,
        dtype=dtype,
        layout=inspection.find_layout(model, weights_sha256),
    )
    return plain if backend == "huggingface" else _on_backend(plain, model, folder, backend)


def view(loaded: LoadedModel, backend: Backend) -> LoadedModel:
    """The same weights on another backend, held once: modules of its own, over the tensors of a plain model.

    What changes a weight in place changes it in both.

    Args:
        loaded: on plain Hugging Face.
        backend: "transformer_lens" or "nnsight".

    Raises:
        InputError: another backend to begin with, or one that can't hold the model.
    """
    import copy

    import torch

    if loaded.backend != "huggingface" or backend not in BACKENDS[1:]:
        raise InputError(
            f"a view of backend {loaded.backend!r} on {backend!r}: legal is one of 'huggingface' on "
            f"{' or '.join(map(repr, BACKENDS[1:]))}"
        )
    shared: dict[int, Any] = {id(buffer): buffer for buffer in loaded.model.buffers()}
    for weight in loaded.model.parameters():
        shared[id(weight)] = torch.nn.Parameter(weight.data, requires_grad=False)
    return _on_backend(loaded, copy.deepcopy(loaded.model, shared), fetch(loaded.card.name), backend)


def check_device(device: str) -> None:
    """Refuse, in one sentence, a device that is none or that can't be used here."""
    import torch

    try:
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
            raise RuntimeError("legal are cpu, cuda, cuda:1 and so on, mps")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device!r} can't be used here ({get_first_line(error)}); 'cpu' always works"
        ) from None


def randomise(loaded: LoadedModel, *, seed: int) -> LoadedModel:
    """A copy of the model before its training: the architecture's own random weights, drawn with a seed.

    Raises:
        InputError: another backend than plain transformers.
    """
    import torch
    import transformers

    from helpers.engine.attention import open_up

    if loaded.backend != "huggingface":
        raise InputError(f"no untrained copy on backend {loaded.backend!r}: legal is 'huggingface'")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            loaded.model.config, dtype=loaded.model.dtype, attn_implementation="eager"
        )
    return replace(
        loaded,
        card=replace(loaded.card, title=f"{loaded.card.title}, untrained"),
        model=open_up(model).to(loaded.device).eval().requires_grad_(False),
        weights_sha256=f"random, seed {seed}",
    )


def verify(card: ModelCard, folder: Path) -> str:
    """Compare a folder's files with their known hashes; returns the hash of the weights.

    Known are: for an embedded model the registry's hash and those written down when it was fetched;
    for a hub model the content hash that Hugging Face's cache gives as the name of each file. A local
    folder has nothing to compare with. The hash of weights in several files is that of the list of
    their names and hashes.

    Raises:
        InputError: a file is missing, unreadable or not the one that was registered; it is named.
    """
    from safetensors import SafetensorError, safe_open

    hashes = {path.name: hash_file(path) for path in list_weight_files(folder)}
    known: dict[str, Any] = {}
    if card.embedded:
        known = _read_json(folder / "manifest.json") | {"model.safetensors": card.embedded.weights_sha256}
        hashes |= {file: hash_file(folder / file) for file in known if file not in hashes}
    elif card.hub_id:
        blobs = {file: (folder / file).resolve().name for file in hashes if (folder / file).is_symlink()}
        known = {file: blob for file, blob in blobs.items() if len(blob) == 64}
    for file, expected in known.items():
        if hashes[file] != expected:
            damaged = folder if card.embedded else (folder / file).resolve()
            raise InputError(
                f"file {folder / file} is not the one registered for {card.name!r} (sha256 {hashes[file][:12]}…, "
                f"expected {str(expected)[:12]}…): delete {damaged} and run "
                f"`python -m helpers.models fetch {card.name}`"
            )
    weights = {file: digest for file, digest in hashes.items() if file.endswith(".safetensors")}
    for file in weights:
        try:
            with safe_open(folder / file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"file {folder / file} is no intact safetensors file ({get_first_line(error)})") from None
    if len(weights) == 1:
        return next(iter(weights.values()))
    listing = "".join(f"{file} {digest}\n" for file, digest in sorted(weights.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def list_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        InputError: the folder is not a usable Hugging Face model folder; the sentence says why.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise InputError(f"model folder {folder} is empty: it needs config.json and *.safetensors")
    if adapter := next(folder.glob("adapter_*"), None):
        raise InputError(
            f"model folder {folder} holds an adapter ({adapter.name}), which is not applied here: legal is a folder "
            "with merged weights, such as peft's merge_and_unload and save_pretrained write"
        )
    config = _read_json(folder / "config.json")
    if "model_type" not in config:
        raise InputError(f"{folder / 'config.json'} names no model_type, so it is no Hugging Face model")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        names = ["model.safetensors"]  # which transformers prefers to an index
    else:
        names = _shard_names(index)
    for name in names:
        if not (folder / name).is_file():
            pickled = next((path.name for end in ("bin", "pt", "pth") for path in folder.glob(f"*.{end}")), None)
            found = f"; it has pickled weights ({pickled}), which are never loaded" if pickled else ""
            raise InputError(f"model folder {folder} has no weights {name}{found}: save_pretrained writes them")
    return [folder / name for name in names]


def _shard_names(index: Path) -> list[str]:
    weight_map = _read_json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{index} must name *.safetensors files beside it, not {', '.join(map(repr, names)) or 'nothing'}"
        )
    return names


def is_cached(card: ModelCard) -> bool:
    """Whether `load` can do without the network."""
    if card.embedded:
        return locate_embedded(card).is_dir()
    return card.hub_id is None or _hub_snapshot(card.hub_id, card.revision, local_files_only=True) is not None


def _fetch_from_hub(card: ModelCard, hub_id: str) -> Path:
    from huggingface_hub import HfApi

    if (snapshot := _hub_snapshot(hub_id, card.revision, local_files_only=True)) is not None:
        return snapshot
    try:
        # One plain question first: without a network the download itself would try for half a minute.
        HfApi().model_info(hub_id, revision=card.revision, timeout=20)
        snapshot = _hub_snapshot(hub_id, card.revision, local_files_only=False)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise InputError(
            f"model {card.name!r} ({hub_id} at {card.revision or 'its newest revision'}) is not in the cache and "
            f"could not be downloaded ({type(error).__name__}): connect to the network and run "
            f"`python -m helpers.models fetch {card.name}` once, or give a local folder"
        ) from None
    if snapshot is None:
        raise InputError(f"model {card.name!r} ({hub_id}) has no safetensors weights with a tokenizer on the hub")
    return snapshot


def _hub_snapshot(hub_id: str, revision: str | None, *, local_files_only: bool) -> Path | None:
    """The snapshot folder, or None where it is missing or not whole, as after an interrupted download."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, local_files_only=local_files_only)
        )
        list_weight_files(folder)
    except LocalEntryNotFoundError:
        if local_files_only:
            return None
        raise
    except InputError:
        return None
    is_whole = all(path.exists() for path in folder.iterdir()) and _has_tokenizer(folder)
    return folder if is_whole else None


def _load_model(folder: Path, dtype: Any) -> AnyModule:
    import transformers

    from helpers.engine.attention import open_up

    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if getattr(config, "is_encoder_decoder", False):
                raise InputError(
                    f"model folder {folder} holds an encoder with a decoder ({config.model_type}): legal are causal "
                    "language models"
                )
            found: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation="eager",  # the only one that gives attention patterns; as fast at these lengths
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are reported, and refused below by name
            )
    except InputError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        raise InputError(
            f"model folder {folder} can't be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]}): "
            "it needs an intact config.json and *.safetensors of a causal language model that transformers knows"
        ) from None
    model, report = found
    # transformers fills tensors that a file lacks with random numbers and only warns.
    broken = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if broken:
        raise InputError(
            f"model folder {folder} does not fit its config.json: {len(broken)} tensors are missing or of another "
            f"shape, first {broken[0]}"
        )
    return open_up(_take_text_part(model)).eval().requires_grad_(False)


def _take_text_part(model: AnyModule) -> AnyModule:
    """The language model of a checkpoint that sees pictures too, as if it had been published alone."""
    import torch
    import transformers

    config = model.config.get_text_config()
    if config is model.config:
        return model
    try:
        with torch.device("meta"), quiet_transformers():
            alone = transformers.AutoModelForCausalLM.from_config(config)
    except ValueError:
        raise InputError(
            f"the text part of {model.config.model_type!r}, {config.model_type!r}, is no model by itself in "
            "transformers: legal are checkpoints of text alone"
        ) from None
    setattr(alone, alone.base_model_prefix, model.get_decoder())
    alone.set_output_embeddings(model.get_output_embeddings())
    alone.config, alone.generation_config = model.get_decoder().config, model.generation_config
    alone.config.architectures = [type(alone).__name__]  # by which TransformerLens tells it
    return alone


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error, or torch's, which for the CPU is told from others by its words alone."""
    words = "out of memory|can(no|')t allocate|not enough memory|ALLOC_FAILED"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def _on_backend(plain: LoadedModel, model: AnyModule, folder: Path, backend: Backend) -> LoadedModel:
    """A plain model that another backend may change: its modules are wrapped."""
    if plain.tokenizer is None:
        raise InputError(f"backend {backend!r} needs a tokenizer, and {folder} has none: legal is 'huggingface'")
    if backend == "transformer_lens":
        from helpers.engine import bridges

        return bridges.load_bridge(replace(plain, model=model), lambda: _boot_bridge(model, folder))
    from nnsight import TransformersModel

    wrapped = TransformersModel(model, tokenizer=plain.tokenizer, task="text-generation", device=str(model.device))
    return replace(plain, model=wrapped, backend=backend)


def _boot_bridge(model: AnyModule, folder: Path) -> AnyModule:
    from transformer_lens.model_bridge import TransformerBridge

    try:
        return TransformerBridge.boot_transformers(
            str(folder), hf_model=model, device=str(model.device), dtype=model.dtype
        )
    except Exception as error:  # each of its adapters fails in its own way
        raise InputError(
            f"TransformerLens can't load architecture {model.config.model_type!r} as configured here "
            f"({type(error).__name__}: {get_first_line(error)}): legal are the backends huggingface, nnsight"
        ) from None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    import transformers

    if not _has_tokenizer(folder):
        return None
    try:
        with quiet_transformers():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"the tokenizer in {folder} can't be loaded ({type(error).__name__}: {get_first_line(error)})"
        ) from None


def _start_token_id(tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """What the tokenizer puts before every text, if anything."""
    if tokenizer is None:
        return None
    token_ids = tokenizer("a")["input_ids"]
    return token_ids[0] if token_ids and token_ids[0] == tokenizer.bos_token_id else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"model folder {path.parent} has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"file {path} can't be read as JSON ({get_first_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"file {path} holds no JSON object")
    return content


def _list() -> None:
    """A line for each model; memory is that of the weights alone, in the precision they are loaded in."""
    print(f"{'name':31} {'parameters':>10} {'licence':10} {'memory':>8} {'disk':>8}  {'state':12}  where from")
    for card in REGISTRY.values():
        source = f"{card.hub_id}@{str(card.revision)[:7]}"
        if card.embedded:
            packages = card.embedded.requirement.format(part=f"1…{card.embedded.parts}")
            official = f"{card.embedded.hub_id}@{str(card.embedded.hub_revision)[:7]}, else "
            source = f"{official if card.embedded.hub_id else ''}{packages}; {card.quantisation}"
        memory = (card.parameters or 0) * DTYPE_BYTES[card.dtype] / 1e9
        state = "in the cache" if is_cached(card) else "not fetched"
        size = f"{(card.parameters or 0) / 1e6:.0f} M"
        print(f"{card.name:31} {size:>10} {card.licence:10} {memory:5.1f} GB {card.disk_gb:5.1f} GB  {state}  {source}")


def _check(name: str) -> None:
    loaded = load(name)
    print(f"folder   {fetch(name)}")
    print(f"weights  sha256 {loaded.weights_sha256}")
    print(f"loads    {loaded.config.model_type}, {loaded.n_layers} layers of {loaded.n_heads} heads, {loaded.dtype}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.models", description="The models of the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the registry, and what is in the cache")
    for command, text in (("fetch", "download a model once"), ("check", "hash a model's files and load it")):
        commands.add_parser(command, help=text).add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            _list()
        elif options.command == "fetch":
            print(fetch(options.name))
        else:
            _check(options.name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
