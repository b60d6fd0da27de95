"""Per-token parts, contracted with texts while the tower runs.

⟨text, part of (head, token)⟩ = scale · a[head, token] · v[head, token] · (W_O^h direction): texts are carried back to the d
numbers a head writes, tokens are never carried forward to the joint space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.errors import BadText, UnsupportedModel
from clip_anatomy.split.layernorm import Convention, pull_back, shared_term, written_biases, written_map
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import LayerReading, Trace
from clip_anatomy.towers.transformer import Transformer, as_transformer


@dataclass(frozen=True)
class TokenSource:
    """What is needed to run a tower again: the tower, of any kind, and its inputs (pixels or token ids)."""

    network: Tower
    inputs: Tensor

    @property
    def tower(self) -> Transformer:
        """The tower where it is a transformer; raises UnsupportedModel for a CLIP-ResNet."""
        return as_transformer(self.network)


def unit_texts(text: Float[Tensor, "text embed"], embed: int) -> Float[Tensor, "text embed"]:
    """Bring embeddings of the other tower to length 1, in float32.

    Raises:
        BadText: another shape than [text, embed], or not finite.
    """
    if text.dim() != 2 or text.shape[1] != embed:
        raise BadText(
            f"text embeddings are {list(text.shape)}; [text, {embed}] was expected. Type: clip.encode_text([...])"
        )
    if not bool(torch.isfinite(text).all()):
        raise BadText("text embeddings hold NaN or infinite values. Type: clip.encode_text([...])")
    return torch.nn.functional.normalize(text.float(), dim=-1)


def head_directions(
    tower: Tower, layer: int, direction: Float[Tensor, "text written"]
) -> Float[Tensor, "head source text"]:
    """Directions of the residual stream carried back through W_O^h to what each head writes."""
    block = tower.blocks[layer]
    rows = direction.unflatten(-1, (tower.rows, tower.width))
    scaled = rows if block.scale_attention is None else rows * block.scale_attention.to(direction.dtype)
    back = (scaled @ written_map(tower, layer).weight.to(direction.dtype)).unflatten(
        -1, (tower.heads, tower.d)
    )  # [text, row, head, d]
    return back.permute(2, 1, 3, 0).flatten(1, 2)


def read_shares(
    tower: Tower, reading: LayerReading, directions: Float[Tensor, "head source text"], *, own: bool = False
) -> Float[Tensor, "image head token text"]:
    """Compute what every head reads from every token, toward directions in what it computes: Σ_row share · ⟨v, direction of the row⟩.

    Args:
        tower: the tower.
        reading: of one layer.
        directions: from `head_directions`.
        own: of the readout's own token alone.
    """
    shares, value = reading.shares(), reading.values()
    if own:
        at = torch.arange(len(shares), device=shares.device)
        shares = shares[at, :, :, reading.own][..., None]
        value = value[at, :, reading.own][:, :, None]
    if tower.rows == 1:
        return (value.float() @ directions).mul_(shares[:, :, 0, :, None])
    by_row = directions.unflatten(1, (tower.rows, tower.d)).transpose(1, 2).flatten(2)  # [head, d, row · text]
    dots = (value.float() @ by_row).unflatten(-1, (tower.rows, -1))
    return torch.einsum("ihnrt,ihrn->ihnt", dots, shares.float())


def token_contributions(
    source: TokenSource,
    text: Float[Tensor, "text embed"],
    convention: Convention,
    *,
    only_readout: bool = False,
    each: Callable[[LayerReading], None] | None = None,
) -> tuple[Float[Tensor, "image layer head token text"], Trace]:
    """Contribution of every (layer, head, token) to the cosine with each text, and the trace of the same forward.

    Args:
        source: tower and inputs.
        text: embeddings of the other tower, of any length.
        convention: how LayerNorm's mean and the biases are shared.
        only_readout: keep the readout token alone (class-to-class attention): token axis of length 1.
        each: called with what every layer read too, for what else is wanted of the same forward.

    Returns:
        Contributions and trace.
    """
    tower = source.network
    with torch.no_grad():
        unit = unit_texts(text, tower.embed).to(tower.device)
        direction = pull_back(tower, unit, convention)
        layers: list[Tensor] = []

        def contract(reading: LayerReading) -> None:
            if each is not None:
                each(reading)
            directions = head_directions(tower, reading.layer, direction)
            layers.append(read_shares(tower, reading, directions, own=only_readout))

        trace = tower.trace(source.inputs, contract)
        tokens = tower.token_count(source.inputs)
        nothing = trace.embedding.new_zeros(len(trace.embedding), 0, tower.heads, tokens, len(unit))
        result = torch.stack(layers, 1) if layers else nothing
        result *= trace.scale.view(-1, 1, 1, 1, 1)
        if convention == "official":
            result += _official_shares(tower, trace, unit, direction, tokens=tokens)
        result /= trace.embedding.norm(dim=-1).view(-1, 1, 1, 1, 1)
    return result, trace


def _official_shares(
    tower: Tower, trace: Trace, unit: Tensor, direction: Tensor, *, tokens: int
) -> Float[Tensor, "image layer 1 1 text"]:
    """b_O, the mean and β, spread over heads and tokens."""
    written = written_biases(tower, trace) @ direction.T * trace.scale[:, None, None]  # [image, layer, text]
    shared = (shared_term(tower, trace) @ unit.T)[:, None]
    return ((written + shared) / (tower.heads * tokens))[:, :, None, None]


def no_shares(tower: Tower) -> UnsupportedModel:
    """Make the error of a tower that is one part, where shares of its tokens are asked for."""
    return UnsupportedModel(
        f"this {tower.kind} tower is one part that its own library runs, not split: its tokens have no shares of their own. "
        "Type explain, which says what the other tower's parts do"
    )


def token_map(
    tower: Tower,
    inputs: Float[Tensor, "image 3 row col"] | Int[Tensor, "image token"],
    text: Float[Tensor, "text embed"],
    selected: Float[Tensor, "layer head"] | None = None,
) -> Float[Tensor, "image token text"]:
    """Split each cosine by token, summed over layers and heads.

    Equal to `Parts.tokens(text).sum((1, 2))` under the convention "centered".

    Args:
        tower: any tower whose readout attends to patches.
        inputs: preprocessed pixels, or token ids of a text tower.
        text: one direction of the joint space per text, as they are: not made unit here, so that differences can be given.
        selected: a weight per head; None for all heads.

    Returns:
        Shares, class token first.
    """
    with torch.no_grad():
        direction = pull_back(tower, text.to(tower.device), "centered")
        total: Tensor | None = None

        def add(reading: LayerReading) -> None:
            nonlocal total
            weights = None if selected is None else selected[reading.layer]
            if weights is not None and not weights.any():
                return
            directions = head_directions(tower, reading.layer, direction)
            if tower.rows > 1:
                shares = read_shares(tower, reading, directions)
                written = (shares if weights is None else shares * weights.to(shares).view(1, -1, 1, 1)).sum(1)
            else:
                attention = reading.shares()[:, :, 0]
                if weights is not None:
                    attention = attention * weights.to(attention)[:, None]
                # [image, head, token, d] → [image, token, head · d]: q, k and v lie so in memory already
                weighed = (reading.values().float() * attention[..., None]).transpose(1, 2).flatten(2)
                written = weighed.to(directions) @ directions.flatten(0, 1)
            total = written if total is None else total.add_(written)

        trace = tower.trace(inputs, add)
        if total is None:
            raise no_shares(tower)
        return total * (trace.scale / trace.embedding.norm(dim=-1)).view(-1, 1, 1)
