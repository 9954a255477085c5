"""What several tests share: tiny models with random weights, a way to damage them, and the real model."""

import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest

from helpers import InputError, models

# The same examples on every machine, however slow it is.
hypothesis.settings.register_profile("book", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("book")

LONGEST = ("test_workflow", "test_site")


def pytest_collection_modifyitems(items):
    """The longest files first, so that the workers end together."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


VOCABULARY = 300  # larger than the tokenizer's, as in real models whose embeddings are padded
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,  # far from uniform attention and from uniform predictions
}
FAMILIES = ("gpt2", "llama", "qwen2", "gemma3_text", "gpt_neox")
START = "<|start|>"


def tiny_config(family, vocabulary_size=VOCABULARY):
    import transformers

    sizes = SIZES | {"vocab_size": vocabulary_size}
    grouped = sizes | {"num_key_value_heads": 2}
    return {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=vocabulary_size, n_positions=64, n_embd=16, n_layer=2, n_head=4, initializer_range=0.4
        ),
        "llama": lambda: transformers.LlamaConfig(**grouped),
        "qwen2": lambda: transformers.Qwen2Config(**grouped),
        "gemma3_text": lambda: transformers.Gemma3TextConfig(
            **grouped, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**sizes),
        "bert": lambda: transformers.BertConfig(**sizes, is_decoder=True),
        "opt": lambda: transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
        "mamba": lambda: transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2),
    }[family]()


def tiny_tokenizer(*, puts_start_token):
    """Byte-level BPE of 260 tokens with one special token, which it may put before every text."""
    import tokenizers
    import transformers
    from tokenizers import decoders, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 3, trainer)
    if puts_start_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START)


def save_tiny(family, folder, vocabulary_size=VOCABULARY, **options):
    """Write a model of the family with random weights, the same ones every time."""
    import torch
    import transformers

    with torch.random.fork_rng(), models._quiet_transformers():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(family, vocabulary_size))
        for name, weights in model.named_parameters():
            if name.endswith("bias"):  # else these begin at zero, and a wrong bias could not be told from none
                torch.nn.init.normal_(weights, std=0.3)
        model.save_pretrained(folder, **options)
    return folder


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


@pytest.fixture
def copy_of(tiny_folders, tmp_path):
    """Copies a tiny model's folder, to be damaged."""

    def copy(family="llama", name="a model"):
        return shutil.copytree(tiny_folders[family], tmp_path / name)

    return copy


@pytest.fixture(scope="session")
def foreign_folders(tmp_path_factory):
    """Models that transformers loads and whose heads this book does not know how to reach."""
    top = tmp_path_factory.mktemp("foreign")
    return {family: save_tiny(family, top / family) for family in ("bert", "opt", "mamba")}


@pytest.fixture
def token_ids():
    """Sequences that take more than one batch: 40 of 30 tokens."""
    import torch

    return torch.randint(VOCABULARY, (40, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def embedded():
    """The real default model, from the user's cache."""
    return models.load()


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
