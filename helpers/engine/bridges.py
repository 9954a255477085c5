"""Where TransformerLens' bridge has its hooks: for each site one that reads and changes it as the plain model does.

Nothing is taken from a hook's name. Which hook serves a site is found on a few random tokens: it holds the same numbers
in every layer, and a change made there changes the logits as the same change does in the plain model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError
from helpers.engine import backends
from helpers.engine.architectures import FORWARD_ORDER, Point, SiteName, View
from helpers.engine.attention import AnyModule
from helpers.engine.cards import LoadedModel
from helpers.engine.inspection import as_points, draw_tokens, get_tolerance, is_close, remember


def load_bridge(plain: LoadedModel, boot: Callable[[], AnyModule]) -> LoadedModel:
    """A plain model on TransformerLens, with the hooks that do there what our sites say; found once, as a layout is.

    Raises:
        InputError: a bridge that can't run the model, or that computes something else.
    """

    def find() -> dict[Any, Any]:
        expected = _probe_sites(plain)
        booted.append(replace(plain, model=boot(), backend="transformer_lens"))
        return {site: dataclasses.asdict(point) for site, point in _find_hooks(booted[0], expected).items()}

    booted: list[LoadedModel] = []
    key = [plain.weights_sha256, "transformer_lens", version("transformer-lens")]
    hooks = remember(plain.model, key, find, as_points)
    loaded = booted[0] if booted else replace(plain, model=boot(), backend="transformer_lens")
    return replace(loaded, layout=replace(plain.layout, hooks=hooks))


@dataclass(frozen=True)
class _Probe:
    """What a plain model holds at each site, and what it says when the site is changed in the middle layer."""

    tokens: Int[Tensor, "1 position"]
    logits: Float[Tensor, "1 position token"]
    values: Mapping[SiteName, list[Tensor]]
    changed: Mapping[SiteName, Float[Tensor, "1 position token"]]


def _probe_sites(loaded: LoadedModel) -> _Probe:
    """Read and change every site of a plain Hugging Face model on a few random tokens."""
    tokens = torch.tensor([draw_tokens(loaded.model)], device=loaded.device)
    sites: list[SiteName] = [
        site for site in FORWARD_ORDER if site != "resid_mid" and site not in loaded.layout.missing
    ]
    values: dict[SiteName, list[Tensor]] = {site: [] for site in sites}

    def keep(site: SiteName) -> backends.Tap:
        return lambda tensor: values[site].append(tensor.clone())

    taps: list[tuple[SiteName, int, backends.Tap]] = [
        (site, layer, keep(site)) for site in sites for layer in range(loaded.n_layers)
    ]
    with torch.inference_mode():
        with backends.tap(loaded, taps):
            logits = loaded.model(tokens, use_cache=False).logits
        changed = {}
        for site in sites:
            with backends.tap(loaded, [(site, loaded.n_layers // 2, _disturb)]):
                changed[site] = loaded.model(tokens, use_cache=False).logits
    return _Probe(tokens, logits, values, changed)


def _find_hooks(loaded: LoadedModel, expected: _Probe) -> dict[SiteName, Point]:
    """For each site the hook of a bridge that holds it in every layer, and that changes it as the plain model does."""
    seen: dict[str, Tensor] = {}
    inside = [name.removeprefix("blocks.0.") for name in loaded.model.hook_dict if name.startswith("blocks.0.")]
    inside = [name for name in inside if _takes_hook(loaded.model, f"blocks.0.{name}")]
    names = [f"blocks.{number}.{name}" for number in range(loaded.n_layers) for name in inside]
    names = [name for name in names if name in loaded.model.hook_dict]

    def keep(tensor: Any, hook: Any) -> None:
        if isinstance(tensor, Tensor):
            seen[hook.name] = tensor.clone()

    found: dict[SiteName, Point] = {}
    with torch.inference_mode():
        try:
            with loaded.model.hooks(fwd_hooks=[(name, keep) for name in names]):
                logits = loaded.model(expected.tokens)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"TransformerLens can't run {loaded.layout.model_type} as configured here ({type(error).__name__}): "
                "legal are the backends huggingface, nnsight"
            ) from None
        if not is_close(logits, expected.logits, get_tolerance(backends.get_huggingface_model(loaded))):
            raise InputError(
                f"TransformerLens computes other logits than transformers for {loaded.layout.model_type} as "
                "configured here: legal are the backends huggingface, nnsight"
            )
        for site, values in expected.values.items():
            size = (values[0].shape[-1],)
            views: tuple[View, ...] = ("whole", "flat", "heads_first") if values[0].ndim == 4 else ("whole",)
            candidates = [
                Point(name, view=view, sizes=size if view == "flat" else ()) for name in inside for view in views
            ]
            for point in candidates:
                if _serves(loaded, expected, site, point, seen):
                    found[site] = point
                    break
    return found


def _takes_hook(bridge: AnyModule, name: str) -> bool:
    try:
        with bridge.hooks(fwd_hooks=[(name, lambda tensor, hook: None)]):
            return True
    except ValueError:  # some fire only where a setting is on
        return False


def _serves(loaded: LoadedModel, expected: _Probe, site: SiteName, point: Point, seen: Mapping[str, Tensor]) -> bool:
    tolerance = get_tolerance(backends.get_huggingface_model(loaded))
    for number, wanted in enumerate(expected.values[site]):
        raw = seen.get(f"blocks.{number}.{point.module}")
        heads = wanted if wanted.ndim == 4 else wanted[..., None]
        shapes = {"whole": wanted.shape, "flat": heads.flatten(2).shape, "heads_first": heads.transpose(1, 2).shape}
        if raw is None or raw.shape != shapes[point.view] or not is_close(point.read(raw, 1), wanted, tolerance):
            return False

    def change(raw: Tensor, hook: Any) -> Tensor:
        return point.merge(raw, _disturb(point.read(raw, 1)))

    with loaded.model.hooks(fwd_hooks=[(f"blocks.{loaded.n_layers // 2}.{point.module}", change)]):
        return is_close(loaded.model(expected.tokens), expected.changed[site], tolerance)


def _disturb(tensor: Tensor) -> Tensor:
    return tensor + tensor.roll(1, dims=-1) / 8
