"""What the parts of a model write: how much each adds to a logit difference, and which heads copy.

The last norm divides the residual stream by its size. With that size frozen to what it is in the run, the
logits are a sum over what every head, every MLP and the embedding wrote: direct logit attribution, as in
Elhage et al. (2021). It says what a part writes, not what would happen without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from helpers import InputError, hooks
from helpers.engine.architectures import Layer, get_final_norm, list_layers, record_block_calls
from helpers.engine.attention import AnyModule
from helpers.engine.edges import Graph, list_sent, make_graph
from helpers.engine.gradients import pull_to_receivers, run_with_gradients
from helpers.engine.inputs import as_count, as_tensor, as_whole, as_wholes
from helpers.engine.propagation import Part, read_block
from helpers.engine.sites import Prompts, check_site
from helpers.models import LoadedModel
from helpers.patching import Answers, EdgeEffects, Metric, check_edges, encode_answers, patch_sets
from helpers.prompts import prepend_start_token

VOCABULARY_PIECE = 4096
"""Of how many tokens logits are computed at once where only ranks are wanted."""
GRADIENT_TOKENS = 256
"""How many tokens run with gradients at once, as what every sender writes is kept for each."""


@dataclass(frozen=True)
class Attribution:
    """Parts of the logit difference at the last position, in logits; they sum to `total`."""

    embedding: Float[Tensor, " example"]
    heads: Float[Tensor, "layer head example"]
    mlps: Float[Tensor, "layer example"]
    biases: Float[Tensor, " example"]
    """Of attention's output projections, of the last norm and of the unembedding."""
    resid: Float[Tensor, "example d_model"]
    """What the last norm read."""

    @property
    def total(self) -> Float[Tensor, " example"]:
        """The logit difference itself, unless the norm's scale is another run's."""
        return self.embedding + self.heads.sum((0, 1)) + self.mlps.sum(0) + self.biases


def attribute_edges(
    loaded: LoadedModel,
    base: Prompts,
    source: Prompts,
    edges: Sequence[tuple[str, str]] | None = None,
    *,
    steps: int = 1,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> EdgeEffects:
    """Approximately what `patching.patch_edges` gives exactly, from gradients alone; axes `edge example`.

    What the sender would write more on the source prompt, times the gradient at the stream as the receiver reads it:
    edge attribution patching (Syed et al. 2023). All that comes after the sender is taken to be linear, attention's
    softmax and norms too. With several `steps` the gradient is the mean over runs from first streams between the two,
    1/steps, 2/steps, … and all of the way from source to base: integrated gradients over inputs (Hanna et al. 2024).
    Where the model is smooth between (experts that are chosen make it jump), all edges of "input" together then come to
    what the metric changes from base to source.

    Args:
        loaded: on plain Hugging Face; of weights in half precision gradients are coarse.
        base: as for `patching.patch_edges`.
        source: as for `patching.patch_edges`.
        edges: as for `patching.patch_edges`, of grouped inputs.
        steps: runs with gradients, at least one.
        answers: as for `patching.patch_edges`.
        metric: any differentiable function of the last position's logits.

    Raises:
        InputError: as for `patching.patch_edges`.
    """
    if isinstance(metric, str):
        raise InputError(f"metric {metric!r} is no function: legal is one of the last logits")
    for site in ("q", "k", "v", "head_z"):
        check_site(loaded, site, 0)
    known = patch_sets(loaded, base, source, [], answers=answers, metric=metric)  # which checks what is given
    steps, graph = as_count(steps, "steps"), make_graph(loaded)
    edges = check_edges(graph, edges)
    receivers = list(graph.receivers.values())
    chosen = torch.tensor([(sender, receivers.index(receiver)) for sender, receiver in graph.find(edges)]).T
    rows, others = hooks.tokenize(loaded, base), hooks.tokenize(loaded, source)
    measure = _as_metric(loaded, answers, metric)
    effect = torch.empty(len(edges), len(rows))
    for examples in _split_by_length(rows):
        here = [rows[i] for i in examples], [others[i] for i in examples]
        score = _score_edges(loaded, graph, *here, steps, partial(measure, torch.tensor(examples)))
        effect[:, examples] = score[tuple(chosen)].float().cpu()
    return EdgeEffects(known.base + effect, ("edge", "example"), known.base, known.source, edges=tuple(edges))


def _score_edges(
    loaded: LoadedModel,
    graph: Graph,
    rows: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    steps: int,
    measure: Callable[[Float[Tensor, "example token"]], Float[Tensor, " example"]],
) -> Float[Tensor, "sender receiver example"]:
    """What edges of prompts of one length are worth."""
    base, source = (run_with_gradients(loaded, some, measure) for some in (rows, others))
    starts = [point.values["resid_pre", 0] for point in (source, base)]
    sent = list_sent(list_layers(loaded.model, loaded.layout), base.values, source.values)
    calls = record_block_calls(loaded.model, loaded.layout, rows[0])
    part = Part(torch.arange(len(rows)), len(rows[0]), 0, base.values, source.values, {}, calls)
    score = sent.new_zeros(len(sent), len(graph.receivers), len(rows))
    for step in range(1, steps + 1):
        between = torch.lerp(starts[0], starts[1], step / steps)
        point = base if step == steps else run_with_gradients(loaded, rows, measure, between)
        for number, gradient in enumerate(pull_to_receivers(loaded, graph, part, point)):
            score[:, number] += torch.einsum("sntd,ntd->sn", sent, gradient) / steps
    return score


def _split_by_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of prompts of one length, a few at a time."""
    for length in sorted({len(row) for row in rows}):
        some = [i for i, row in enumerate(rows) if len(row) == length]
        at_once = max(1, GRADIENT_TOKENS // length)
        yield from (some[start : start + at_once] for start in range(0, len(some), at_once))


def _as_metric(loaded: LoadedModel, answers: Answers | None, metric: Metric | None) -> Callable[..., Tensor]:
    """The metric of some prompts, by their numbers and last logits."""
    if answers is None:
        assert metric is not None
        return lambda examples, logits: metric(logits, examples)
    tokens = encode_answers(loaded, answers).to(loaded.device)

    def subtract(examples: Int[Tensor, " example"], logits: Float[Tensor, "example token"]) -> Tensor:
        right, wrong = logits.gather(1, tokens[examples]).T
        return right - wrong

    return subtract


def attribute_logits(
    loaded: LoadedModel,
    prompts: Prompts,
    answers: Answers,
    *,
    against: Sequence[Sequence[int]] | None = None,
    scale_of: Float[Tensor, "example d_model"] | None = None,
) -> Attribution:
    """What each head, each MLP and the embedding add to the logit of the right less that of the wrong answer.

    Args:
        loaded: on plain Hugging Face.
        prompts: of any lengths.
        answers: for each prompt the right and the wrong next token.
        against: for each prompt tokens whose mean logit takes the place of the wrong answer's.
        scale_of: for each prompt the stream (`Attribution.resid`) that sets the last norm's scale; the run's own if
            None. With that of an intact run, what changes under `hooks.intervene` is what parts write, and not how much
            of it the norm lets through.

    Raises:
        InputError: another backend than Hugging Face, a model that bounds its logits, answers or a stream that do not
            fit.
    """
    _check_backend(loaded)
    model, layout = loaded.model, loaded.layout
    if getattr(loaded.config, "final_logit_softcapping", None) is not None:
        raise InputError(f"{loaded.config.model_type} bounds its logits, so they are no sum: legal are models without")
    tokens = encode_answers(loaded, answers)
    captured = hooks.capture(loaded, prompts, ["resid_pre", "head_z", "mlp_out", "resid_post"])
    if len(tokens) != len(captured.lengths):
        raise InputError(f"{len(tokens)} answers for {len(captured.lengths)} prompts: legal is a pair for each")
    last = {site: captured[site][:, :, 0].to(loaded.device) for site in captured.values}
    resid = last["resid_post"][:, -1]
    scale_of = resid if scale_of is None else as_tensor(scale_of, "scale_of").to(loaded.device)
    if scale_of.shape != resid.shape or not scale_of.isfinite().all():
        raise InputError(
            f"scale_of of shape {list(scale_of.shape)}: legal are finite numbers of shape {list(resid.shape)}"
        )
    unembedding = model.get_output_embeddings()
    norm = get_final_norm(model, layout)
    right, wrong = tokens.to(loaded.device).split(1, dim=1)
    if against is not None:
        wrong = _encode_many(loaded, against, len(tokens))

    def contrast(rows: Float[Tensor, "token ..."]) -> Float[Tensor, "example ..."]:
        return layout.logit_scale * (rows[right].float().mean(1) - rows[wrong].float().mean(1))

    with torch.no_grad():
        difference = contrast(unembedding.weight)
        toward = pull_through_norm(norm, scale_of, difference)
        biases = _dot_bias(difference, norm)
        if getattr(unembedding, "bias", None) is not None:
            biases = biases + contrast(unembedding.bias)
        heads = []
        for number, layer in enumerate(list_layers(model, layout)):
            z = last["head_z"][:, number]
            at_output = pull_through_attn_out(layer, z, toward)
            biases = biases + _dot_bias(at_output, layer.out)
            heads.append(torch.einsum("nhd,nhd->hn", z, (at_output @ _matrix(layer.out)).view_as(z)))
        return Attribution(
            embedding=torch.einsum("nd,nd->n", last["resid_pre"][:, 0], toward).cpu(),
            heads=torch.stack(heads).cpu(),
            mlps=torch.einsum("nld,nd->ln", last["mlp_out"], toward).cpu(),
            biases=biases.cpu(),
            resid=resid.cpu(),
        )


def _encode_many(loaded: LoadedModel, tokens: Sequence[Sequence[int]], n: int) -> Int[Tensor, "example token"]:
    """As many tokens for each of n prompts."""
    rows = [as_wholes(row) for row in tokens]
    legal = range(loaded.config.vocab_size)
    fit = len(rows) == n and len({len(row) for row in rows}) == 1 and rows[0]
    if not fit or not all(token in legal for token in chain(*rows)):
        raise InputError(
            f"against {str(tokens)[:60]}: legal are as many tokens, 0 to {legal[-1]}, for each of {n} prompts"
        )
    return torch.tensor(rows, device=loaded.device)


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
    with torch.no_grad():
        extreme = [
            _find_extreme(loaded, _normed(loaded, written).flatten(0, 1), tokens.repeat(loaded.n_heads), top)
            for written in _attended(loaded, lambda layer: resid)
        ]
    raised, lowered = torch.stack(extreme, 1).unflatten(2, (loaded.n_heads, -1)).float().mean(-1).cpu()
    return raised, lowered


def _find_extreme(
    loaded: LoadedModel, normed: Float[Tensor, "row d_model"], tokens: Int[Tensor, " row"], top: int
) -> Bool[Tensor, "2 row"]:
    """Whether each row's token is among its `top` highest, and among its `top` lowest logits; a tie is no rank.

    What a model does with its logits afterwards leaves their order. The vocabulary is read in pieces, and a row is left
    alone once `top` other tokens are at least as high, and `top` at least as low: nearly all are after the first piece.
    """
    unembedding = loaded.model.get_output_embeddings()
    bias = getattr(unembedding, "bias", None)
    bias = unembedding.weight.new_zeros(len(unembedding.weight)) if bias is None else bias
    own = torch.einsum("rd,rd->r", normed, unembedding.weight[tokens]) + bias[tokens]
    beyond = torch.zeros(2, len(tokens), dtype=torch.long, device=tokens.device)
    open_rows = torch.arange(len(tokens), device=tokens.device)
    for first in range(0, len(bias), VOCABULARY_PIECE):
        piece = slice(first, first + VOCABULARY_PIECE)
        logits = torch.nn.functional.linear(normed[open_rows], unembedding.weight[piece], bias[piece])
        at, least = tokens[open_rows] - first, own[open_rows, None]
        here = (0 <= at) & (at < logits.shape[1])
        logits[here, at[here]] = torch.nan  # no rival of its own
        beyond[:, open_rows] += torch.stack([logits >= least, logits <= least]).sum(2)
        open_rows = open_rows[(beyond[:, open_rows] < top).any(0)]
    return beyond < top


def score_copying(
    loaded: LoadedModel,
    tokens: Int[Tensor, "sequence position"],
    resid_pre: Float[Tensor, "sequence layer position d_model"] | None = None,
) -> Float[Tensor, "sequence layer head"]:
    """Whether a head that attends to a token raises it above the other tokens of the sequence.

    After Olsson et al. (2022): of a head that attends to one position only, the direct path's logits of all tokens
    of the sequence are centred and cut off at zero. The share that falls to the token at that position is rescaled
    so that 1 is all of it and -1 none, and averaged over positions. By chance it is near 2 / n_positions - 1.

    Args:
        loaded: on plain Hugging Face.
        tokens: different from each other within each sequence.
        resid_pre: of every layer, where those tokens are; by default in a run of the sequences, after a start token
            where the model has one.

    Raises:
        InputError: a token that occurs twice in a sequence.
    """
    _check_backend(loaded)
    tokens = torch.tensor(hooks.tokenize(loaded, tokens))
    if resid_pre is None:
        rows = prepend_start_token(loaded, tokens)
        resid_pre = hooks.capture(loaded, rows, "resid_pre", positions="all")["resid_pre"][:, :, -tokens.shape[1] :]
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
            resid = resid_pre[i].to(loaded.device, loaded.model.dtype)
            for number, written in enumerate(_attended(loaded, resid.__getitem__)):
                logits = _normed(loaded, written).float() @ embedding[row].T.float()
                raised = (logits - logits.mean(-1, keepdim=True)).relu()  # head attended token
                share = raised.diagonal(dim1=1, dim2=2) / raised.sum(-1).clamp(min=1e-12)
                scores[i, number] = (2 * share.mean(1) - 1).cpu()
    return scores


def find_largest_heads(values: Float[Tensor, "layer head"], n: int) -> list[hooks.Head]:
    """The `n` heads with the largest values, the largest first; of equal ones the earlier.

    >>> find_largest_heads(torch.tensor([[0.0, 2.0], [3.0, 2.0]]), 3)
    [(1, 0), (0, 1), (1, 1)]
    """
    places = values.flatten().argsort(descending=True, stable=True)[:n].tolist()
    return [divmod(place, values.shape[1]) for place in places]


def name_heads(heads: Sequence[hooks.Head]) -> str:
    """Heads as a text, layer before head, or "none".

    >>> name_heads([(23, 3), (24, 4)])
    '23.3, 24.4'
    """
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"


def score_attention_to_repeats(
    loaded: LoadedModel,
    tokens: Int[Tensor, "sequence position"],
    *,
    places_of: Int[Tensor, "sequence position"] | None = None,
) -> dict[str, Float[Tensor, "sequence layer head"]]:
    """How much of its attention a head spends on what repeats, over the positions whose token has occurred before.

    "induction" is the prefix-matching score of Olsson et al. (2022): the weight on the tokens that followed earlier
    occurrences of the present one, summed over these. (Their text speaks of an average; over several occurrences the
    sum is what can reach 1.) "duplicate token" is the weight on the earlier occurrences themselves.

    Args:
        loaded: on any backend that gives patterns.
        tokens: sequences of one length.
        places_of: sequences of the same shape whose repetitions say where to look; by default `tokens`. With those that
            repeat here and `tokens` that do not, the score is the baseline of a head that goes by distance alone.

    Raises:
        InputError: no token occurs twice in a sequence, or other lengths or numbers of sequences.
    """
    given = [hooks.tokenize(loaded, some) for some in (tokens, tokens if places_of is None else places_of)]
    if len({len(row) for some in given for row in some}) > 1:
        raise InputError("sequences of different lengths: legal are those of one length")
    rows, repeating = map(torch.tensor, given)
    if rows.shape != repeating.shape:
        raise InputError(f"{len(repeating)} sequences as places_of for {len(rows)}: legal is one for each")
    copies = (repeating[:, :, None] == repeating[:, None, :]).float().tril(-1)
    keys = {"induction": torch.nn.functional.pad(copies, (1, 0))[..., :-1], "duplicate token": copies}
    n_queries = copies.any(-1).sum(-1)[:, None, None]
    if not n_queries.all():
        raise InputError("no token occurs twice in a sequence: legal are sequences that repeat a token")
    pattern = hooks.capture(loaded, rows, "pattern", positions="all")["pattern"]
    return {job: torch.einsum("nlhqk,nqk->nlh", pattern, chosen) / n_queries for job, chosen in keys.items()}


def _attended(
    loaded: LoadedModel, resid_of: Callable[[int], Float[Tensor, "example d_model"]]
) -> Iterator[Float[Tensor, "head example d_model"]]:
    """For each layer what its heads write if they attend to one position only, less the output's bias."""
    for site in ("v", "head_z"):
        check_site(loaded, site, 0)
    calls = record_block_calls(loaded.model, loaded.layout, [0])
    for number, layer in enumerate(list_layers(loaded.model, loaded.layout)):
        resid, n_heads = resid_of(number), loaded.n_heads
        (value,) = read_block(loaded, number, layer, calls[number], resid[:, None], ["v"]).values()
        value = value[:, 0].repeat_interleave(n_heads // loaded.layout.n_kv_heads, dim=1)
        apart = torch.eye(n_heads, device=value.device, dtype=value.dtype)[:, None, :, None] * value
        written = layer.add_to_stream(apart.flatten(0, 1)) - layer.add_to_stream(torch.zeros_like(value[:1]))
        yield written.unflatten(0, (n_heads, -1))


def _normed(loaded: LoadedModel, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Through the last norm, less its bias."""
    norm = get_final_norm(loaded.model, loaded.layout)
    return norm(resid) - _bias(norm)


def _check_backend(loaded: LoadedModel) -> None:
    if loaded.backend != "huggingface":
        raise InputError(f"backend {loaded.backend!r} can't be taken apart here: legal is 'huggingface'")


def pull_through_norm(
    norm: AnyModule, inputs: Float[Tensor, "example d_model"], direction: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example d_model"]:
    """The direction whose dot product with a norm's input is that of `direction` with its output, less any bias.

    The norm's scale is frozen to that of `inputs`. LayerNorm and RMSNorm, whose gain is its weight, one more, or none;
    which of these a norm is, is read off its output.

    Args:
        norm: a LayerNorm or an RMSNorm.
        inputs: what it reads.
        direction: of what it gives.

    Raises:
        InputError: a norm that is neither.
    """
    epsilon = next((getattr(norm, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, name)), 0.0)
    own = getattr(norm, "weight", None)
    dtype = torch.float32 if own is None else own.dtype
    weight = torch.ones_like(inputs[0]) if own is None else own.float()
    inputs = inputs.float()
    try:
        with torch.no_grad():
            given = norm(inputs.to(dtype)).float()
    except (ValueError, RuntimeError):  # it takes something else
        given = torch.full_like(inputs, torch.nan)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for centred in (False, True):
        stream = inputs - inputs.mean(-1, keepdim=True) if centred else inputs
        scale = torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + epsilon)
        for gain in (weight, weight + 1):
            if (stream * scale * gain + _bias(norm) - given).norm() <= tolerance * given.norm():
                pulled = direction * gain
                return (pulled - pulled.mean(-1, keepdim=True) if centred else pulled) * scale
    raise InputError(f"norm {type(norm).__name__} is not known here: legal are LayerNorm and RMSNorm")


def pull_through_attn_out(
    layer: Layer, head_z: Float[Tensor, "example head d_head"], direction: Float[Tensor, "example d_model"]
) -> Float[Tensor, "example d_model"]:
    """A direction of the residual stream, taken back to what the output matrix gives: through a norm, if there is one.

    Args:
        layer: of a plain Hugging Face model.
        head_z: of all its heads, which sets the scale of the norm.
        direction: of the residual stream.

    Raises:
        InputError: a layer in which something else stands between the heads and the residual stream.
    """
    if "head_z" not in layer.layout.points or getattr(layer.out, "weight", torch.empty(0)).ndim != 2:
        raise InputError(
            f"{type(layer.attention).__name__} has no matrix that reads head_z, so what a head writes is no sum"
        )
    direction = direction * layer.layout.points["attn_out"].scale
    if layer.layout.after_attention is None:
        return direction
    norm = layer.block.get_submodule(layer.layout.after_attention)
    # forward, not a call: an edit of head_z would take this for a pass of the model
    return pull_through_norm(norm, layer.out.forward(head_z.flatten(1).to(layer.out.weight.dtype)), direction)


def _matrix(projection: AnyModule) -> Float[Tensor, "d_model head*d_head"]:
    """An output projection as a matrix that is multiplied from the left; GPT-2 keeps it transposed."""
    weight = projection.weight.float()
    return weight.T if type(projection).__name__ == "Conv1D" else weight


def _dot_bias(direction: Float[Tensor, "example d_model"], module: AnyModule) -> Float[Tensor, " example"]:
    bias = getattr(module, "bias", None)
    return torch.zeros_like(direction[:, 0]) if bias is None else direction @ bias.float()


def _bias(module: AnyModule) -> Float[Tensor, " d_model"] | float:
    bias = getattr(module, "bias", None)
    return 0.0 if bias is None else bias.float()
