"""Test-time registers: the neurons that write outlier tokens are found, and what they say is moved into a token of no place.

    register_neurons ─▶ ((layer, neuron, score), …)      MLP neurons that are loud where tokens are far longer than others
    with_registers   ─▶ the same tower with extra tokens: each neuron's greatest activation goes there, patches get 0

Jiang, Dravid, Efros & Gandelsman, "Vision Transformers Don't Need Trained Registers" (NeurIPS 2025), §3.2 and §4. Nothing is trained
and no weight is changed. Which neurons are loud is a property of the model: the pictures that it is found on are not those it is used on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.layers import PatchEmbedding, Registers
from clip_anatomy.towers.operations import before_attention, mlp, neurons, project_in, project_out
from clip_anatomy.towers.readout import readout_of
from clip_anatomy.towers.transformer import Transformer

LONGER = 2.0  # times the median length of a picture's tokens
DEVIATIONS = 5.0  # robust standard deviations, of the logarithm of the length
SMALLEST_SPREAD = 0.05  # … which is at least this: in a picture of one colour the smallest difference would stand out
FEWEST = 10  # neurons: fewer than ten carry the outliers of the models in the paper


class Neuron(NamedTuple):
    """One MLP neuron: its block, its number, and how loud it is at outlier tokens (mean magnitude)."""

    layer: int
    neuron: int
    score: float = 0.0


def register_neurons(
    tower: Transformer,
    batches: Iterable[Float[Tensor, "image 3 row col"]],
    count: int = FEWEST,
    *,
    highest: int | None = None,
    longer: float = LONGER,
) -> tuple[Neuron, ...]:
    """Find the neurons that are loudest at outlier tokens.

    Args:
        tower: an image tower.
        batches: preprocessed pictures.
        count: how many neurons.
        highest: the last block that is looked at; by default the one after which the outliers are there.
        longer: a patch is an outlier whose token leaves the last block this many times as long as the picture's median; see `far_longer`.

    Returns:
        Neurons, the loudest first; none where no picture has an outlier.
    """
    total: list[Tensor] = []
    born, pictures = torch.zeros(tower.layers), 0
    for pixels in batches:
        with torch.no_grad():
            loud, outliers = _forward(tower, pixels, longer)
        outlier = outliers[-1]
        some = outlier.any(1)
        if not some.any():
            continue
        counts = outlier[some].float()
        per_picture = [torch.einsum("bn,bnk->bk", counts, one[some]) / counts.sum(1, keepdim=True) for one in loud]
        total.append(torch.stack([one.sum(0) for one in per_picture]))
        born += torch.stack([one[outlier].float().mean() for one in outliers]).cpu() * int(some.sum())
        pictures += int(some.sum())
    if not pictures:
        return ()
    last = int((born / pictures > 0.5).float().argmax()) if highest is None else highest
    scores = torch.stack(total).sum(0)[: last + 1] / pictures
    best = scores.flatten().topk(min(count, scores.numel()))
    return tuple(Neuron(*divmod(int(at), scores.shape[1]), float(value)) for value, at in zip(*best, strict=True))


def far_longer(
    tokens: Float[Tensor, "image token channel"], longer: float = LONGER
) -> tuple[Float[Tensor, "image token"], Bool[Tensor, "image token"]]:
    """Tell how many times the median of its picture each token is long, and which are far longer than the others.

    Far longer: `longer` times the median, and five robust standard deviations (of the logarithm) away.
    """
    long = tokens.float().norm(dim=-1)
    times = (long / long.median(1, keepdim=True).values.clamp_min(1e-30)).clamp_min(1e-30)
    spread = times.log().abs().median(1, keepdim=True).values * 1.4826  # the median of the logarithm is 0
    return times, (times >= longer) & (times.log() / spread.clamp_min(SMALLEST_SPREAD) >= DEVIATIONS)


def _forward(tower: Transformer, pixels: Tensor, longer: float) -> tuple[list[Tensor], list[Tensor]]:
    """Per block: the magnitude of every neuron at every patch, and which patches are outliers behind it."""
    x, own = embed_image(tower, pixels), tower.own
    readout = readout_of(tower, pixels, x.shape[1])
    loud: list[Tensor] = []
    outliers: list[Tensor] = []
    for block in tower.blocks:
        q, k, v = project_in(tower, block, before_attention(block, x), readout.rotation)
        middle = x + project_out(block, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        loud.append(neurons(tower, block, x if block.parallel else middle)[:, own:].abs().float())
        x = middle + mlp(tower, block, x, middle)
        outliers.append(far_longer(x[:, own:], longer)[1])
    return loud, outliers


def with_registers(
    tower: Transformer, moved: Sequence[tuple[int, int] | Neuron], tokens: int = 1, *, shared: bool = False
) -> Transformer:
    """Return the tower with extra tokens into which some neurons speak instead of into the patches. Weights are borrowed as before.

    Args:
        tower: an image tower.
        moved: (layer, neuron) of each.
        tokens: how many tokens; each receives all of them.
        shared: every neuron of a block gets the greatest activation of any of them, instead of its own.

    Raises:
        BadSpec: no token, or a neuron that is not there.
    """
    if tokens < 1:
        raise BadSpec(f"registers={tokens}: at least one token. Type: registers=1")
    by_layer: dict[int, list[int]] = {}
    for layer, neuron, *_ in moved:
        wide = tower.blocks[layer].down.weight.shape[1] if 0 <= layer < tower.layers else 0
        if not 0 <= neuron < wide:
            raise BadSpec(
                f"neuron {layer}.{neuron} is not there: {tower.layers} blocks of {tower.blocks[0].down.weight.shape[1]}. "
                "Type: (layer, neuron) of each, both counted from 0"
            )
        by_layer.setdefault(layer, []).append(neuron)
    blocks = tuple(
        replace(block, registers=Registers(torch.tensor(by_layer[at], device=tower.device), tokens, shared))
        if at in by_layer
        else block
        for at, block in enumerate(tower.blocks)
    )
    assert isinstance(tower.embedding, PatchEmbedding)
    return replace(tower, blocks=blocks, embedding=replace(tower.embedding, blank=tower.embedding.blank + tokens))
