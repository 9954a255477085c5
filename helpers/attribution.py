"""What the parts of a model write: how much each adds to a logit difference, and which heads copy.

The last norm divides the residual stream by its size. With that size frozen to what it is in the run, the
logits are a sum over what every head, every MLP and the embedding wrote: direct logit attribution, as in
Elhage et al. (2021). It says what a part writes, not what would happen without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from helpers import InputError, hooks
from helpers.engine import backends, sites
from helpers.engine.architectures import AnyModule, Layer, find_family, list_layers
from helpers.engine.inputs import as_whole, as_wholes
from helpers.engine.sites import Prompts
from helpers.models import LoadedModel
from helpers.patching import Answers, encode_answers


@dataclass(frozen=True)
class Attribution:
    """Parts of the logit difference at the last position, in logits; they sum to `total`."""

    embedding: Float[Tensor, " example"]
    heads: Float[Tensor, "layer head example"]
    mlps: Float[Tensor, "layer example"]
    biases: Float[Tensor, " example"]
    """Of attention's output projections, of the last norm and of the unembedding."""

    @property
    def total(self) -> Float[Tensor, " example"]:
        """The logit difference itself."""
        return self.embedding + self.heads.sum((0, 1)) + self.mlps.sum(0) + self.biases


def attribute_logits(loaded: LoadedModel, prompts: Prompts, answers: Answers) -> Attribution:
    """What each head, each MLP and the embedding add to the logit of the right less that of the wrong answer.

    Args:
        loaded: on plain Hugging Face.
        prompts: of any lengths.
        answers: for each prompt the right and the wrong next token.

    Raises:
        InputError: another backend than Hugging Face, a model that bounds its logits, answers that do not fit.
    """
    _check_backend(loaded)
    model, family = loaded.model, find_family(loaded.config)
    if getattr(loaded.config, "final_logit_softcapping", None) is not None:
        raise InputError(f"{loaded.config.model_type} bounds its logits, so they are no sum: legal are models without")
    tokens = encode_answers(loaded, answers)
    captured = hooks.capture(loaded, prompts, ["resid_pre", "head_z", "mlp_out", "resid_post"])
    if len(tokens) != len(captured.lengths):
        raise InputError(f"{len(tokens)} answers for {len(captured.lengths)} prompts: legal is a pair for each")
    last = {site: captured[site][:, :, 0].to(loaded.device) for site in captured.values}
    unembedding = model.get_output_embeddings()
    norm = getattr(model.base_model, family.final_norm)
    with torch.no_grad():
        right, wrong = (unembedding.weight[token].float() for token in tokens.T.to(loaded.device))
        toward = pull_through_norm(norm, last["resid_post"][:, -1], right - wrong)
        biases = (right - wrong) @ _bias(norm)
        if unembedding.bias is not None:
            biases = biases + unembedding.bias[tokens[:, 0]] - unembedding.bias[tokens[:, 1]]
        heads = []
        for number, layer in enumerate(list_layers(model)):
            z = last["head_z"][:, number]
            at_output = pull_through_attn_out(layer, z, toward)
            projection = getattr(layer.attention, family.out)
            biases = biases + at_output @ _bias(projection)
            heads.append(torch.einsum("nhd,nhd->hn", z, (at_output @ _matrix(projection)).view_as(z)))
        return Attribution(
            embedding=torch.einsum("nd,nd->n", last["resid_pre"][:, 0], toward).cpu(),
            heads=torch.stack(heads).cpu(),
            mlps=torch.einsum("nld,nd->ln", last["mlp_out"], toward).cpu(),
            biases=biases.cpu(),
        )


def measure_copy_rates(
    loaded: LoadedModel, tokens: Int[Tensor, " example"], resid: Float[Tensor, "example d_model"], *, top: int = 5
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """How often a head that attends to a token raises it, or lowers it, more than nearly all others.

    A head's value and output matrices are applied to the token's residual stream, and the result is
    unembedded (Wang et al., 2023, who take the stream after the first MLP). Returned are the shares of
    examples for which the token is among the `top` highest, and among the `top` lowest logits.
    Chance is `top` over the size of the vocabulary.

    Args:
        loaded: on plain Hugging Face.
        tokens: the token at each position that `resid` was read from.
        resid: the residual stream there, as `hooks.capture` gives it.
        top: how many of the highest, and of the lowest, logits count.
    """
    _check_backend(loaded)
    tokens = torch.tensor(as_wholes(tokens), device=loaded.device)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < loaded.config.vocab_size:
        raise InputError(f"tokens {tokens.tolist()[:5]}…: legal are 0 to {loaded.config.vocab_size - 1}")
    if resid.shape != (len(tokens), loaded.config.hidden_size) or not resid.isfinite().all():
        raise InputError(
            f"resid of shape {list(resid.shape)} for {len(tokens)} tokens: legal are finite numbers, example d_model"
        )
    if not 1 <= as_whole(top) <= loaded.config.vocab_size:
        raise InputError(f"top = {top}: legal are 1 to {loaded.config.vocab_size}")
    resid = resid.to(loaded.device, loaded.model.dtype)
    raised, lowered = torch.zeros((2, loaded.n_layers, loaded.n_heads))
    with torch.no_grad():
        for number in range(loaded.n_layers):
            logits = backends.unembed(loaded.model, _normed(loaded, _attended(loaded, number, resid)))
            own = logits.gather(2, tokens[None, :, None].expand(len(logits), -1, 1))
            raised[number] = ((logits >= own).sum(2) <= top).float().mean(1)  # a tie is no rank
            lowered[number] = ((logits <= own).sum(2) <= top).float().mean(1)
    return raised, lowered


def score_copying(
    loaded: LoadedModel,
    tokens: Int[Tensor, "sequence position"],
    resid_pre: Float[Tensor, "sequence layer position d_model"],
) -> Float[Tensor, "sequence layer head"]:
    """Whether a head that attends to a token raises it above the other tokens of the sequence.

    After Olsson et al. (2022): of a head that attends to one position only, the direct path's logits of all tokens
    of the sequence are centred and cut off at zero. The share that falls to the token at that position is rescaled
    so that 1 is all of it and -1 none, and averaged over positions. By chance it is near 2 / n_positions - 1.

    Args:
        loaded: on plain Hugging Face.
        tokens: different from each other within each sequence.
        resid_pre: of every layer, where those tokens are.

    Raises:
        InputError: a token that occurs twice in a sequence.
    """
    _check_backend(loaded)
    tokens = torch.tensor(hooks.tokenize(loaded, tokens))
    size = (len(tokens), loaded.n_layers, tokens.shape[1], loaded.config.hidden_size)
    if resid_pre.shape != size or not resid_pre.isfinite().all():
        raise InputError(f"resid_pre of shape {list(resid_pre.shape)}: legal are finite numbers of shape {list(size)}")
    n_different = torch.tensor([len(row.unique()) for row in tokens])
    if (n_different < tokens.shape[1]).any():
        raise InputError("a token occurs twice in a sequence: legal are sequences of different tokens")
    embedding = loaded.model.get_output_embeddings().weight
    scores = torch.empty(len(tokens), loaded.n_layers, loaded.n_heads)
    with torch.no_grad():
        for i, row in enumerate(tokens.to(loaded.device)):
            for number in range(loaded.n_layers):
                resid = resid_pre[i, number].to(loaded.device, loaded.model.dtype)
                logits = _normed(loaded, _attended(loaded, number, resid)).float() @ embedding[row].T.float()
                raised = (logits - logits.mean(-1, keepdim=True)).relu()  # head attended token
                share = raised.diagonal(dim1=1, dim2=2) / raised.sum(-1).clamp(min=1e-12)
                scores[i, number] = (2 * share.mean(1) - 1).cpu()
    return scores


def _attended(
    loaded: LoadedModel, number: int, resid: Float[Tensor, "example d_model"]
) -> Float[Tensor, "head example d_model"]:
    """What each head of a layer writes if it attends to one position only, less the output's bias."""
    layer, n_heads = list_layers(loaded.model)[number], loaded.n_heads
    value = layer.qkv(resid)[2].repeat_interleave(n_heads // sites.count_heads(loaded, "v"), dim=1)
    apart = torch.eye(n_heads, device=value.device)[:, None, :, None] * value
    written = layer.attn_out(apart.flatten(0, 1)) - layer.attn_out(torch.zeros_like(value[:1]))
    return written.unflatten(0, (n_heads, -1))


def _normed(loaded: LoadedModel, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Through the last norm, less its bias."""
    norm = getattr(loaded.model.base_model, find_family(loaded.config).final_norm)
    return norm(resid) - _bias(norm)


def _check_backend(loaded: LoadedModel) -> None:
    if loaded.backend != "huggingface":
        raise InputError(f"backend {loaded.backend!r} can't be taken apart here: legal is 'huggingface'")


def pull_through_norm(
    norm: AnyModule, inputs: Float[Tensor, "example d_model"], direction: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example d_model"]:
    """The direction whose dot product with a norm's input is that of `direction` with its output, less any bias.

    The norm's scale is frozen to that of `inputs`. LayerNorm and RMSNorm; Gemma's gain is 1 + weight.

    Args:
        norm: a LayerNorm or an RMSNorm.
        inputs: what it reads.
        direction: of what it gives.
    """
    name = type(norm).__name__
    gain = norm.weight.float() + (1 if name.startswith("Gemma") else 0)
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    pulled = direction * gain
    if isinstance(norm, torch.nn.LayerNorm):
        pulled = pulled - pulled.mean(-1, keepdim=True)
        inputs = inputs - inputs.mean(-1, keepdim=True)
    elif not name.endswith("RMSNorm"):
        raise InputError(f"norm {name} is not known here: legal are LayerNorm and RMSNorm")
    return pulled * torch.rsqrt(inputs.float().pow(2).mean(-1, keepdim=True) + epsilon)


def pull_through_attn_out(
    layer: Layer, head_z: Float[Tensor, "example head d_head"], direction: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example d_model"]:
    """A direction of the residual stream, taken back through Gemma's norm after attention, where there is one.

    Args:
        layer: of a plain Hugging Face model.
        head_z: of all its heads, which sets the scale of the norm.
        direction: of the residual stream.
    """
    if layer.family.after_attention is None:
        return direction
    projected = getattr(layer.attention, layer.family.out)(head_z.flatten(1))
    return pull_through_norm(getattr(layer.block, layer.family.after_attention), projected, direction)


def _matrix(projection: AnyModule) -> Float[Tensor, "d_model head*d_head"]:
    """An output projection as a matrix that is multiplied from the left; GPT-2 keeps it transposed."""
    weight = projection.weight.float()
    return weight.T if type(projection).__name__ == "Conv1D" else weight


def _bias(module: AnyModule) -> Float[Tensor, " d_model"]:
    bias = getattr(module, "bias", None)
    return (
        torch.zeros_like(module.weight[..., 0] if module.weight.ndim > 1 else module.weight) if bias is None else bias
    )
