"""What one forward recorded at the readout row: little enough to keep for every layer, enough to split the embedding exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.towers.forward import (
    Readout,
    Step,
    embed_inputs,
    embed_readout,
    readout_attention,
    readout_of,
    step_values,
    walk,
)
from clip_anatomy.towers.layers import TransformerWeights


@dataclass(frozen=True)
class Trace:
    """The readout row of every intermediate of one forward, in float32.

    The final LayerNorm is frozen at its full-model statistics, so that it is linear: a part c of the residual stream becomes
    ((c − mean c) · scale ⊙ γ) P in the joint space (Gandelsman et al. 2024, §3.1 and appendix A.1).
    """

    input_embedding: Float[Tensor, "image width"]
    mixed: Float[Tensor, "image layer head d"]  # z_h = Σ_token a v
    mlp: Float[Tensor, "image mlp width"]  # one of each layer; none in a CLIP-ResNet
    stream: Float[Tensor, "image width"]  # the readout row of the last residual stream
    scale: Float[Tensor, " image"]  # 1/σ of ln_post; 1 where the row weights already hold it
    mass: Float[Tensor, " image"]  # Σ of row weights: how often a bias of every row counts
    embedding: Float[Tensor, "image embed"]  # the host's own formula


@dataclass(frozen=True)
class LayerReading:
    """What the heads of one layer read for the readout row; attention and values are computed when they are asked for.

    Attributes:
        layer: which layer.
        tokens: what the layer was given.
        mixed: z_h = Σ_token a v at the readout row.
        own: which token the readout row itself is; 0 where it is the first, or none of them.
        attention: how much the readout row (the weighted mean of rows) looks at each token, in float32.
        values: what each token offers.
    """

    layer: int
    tokens: Float[Tensor, "image token channel"]
    mixed: Float[Tensor, "image head d"]
    own: Int[Tensor, " image"] | int
    attention: Callable[[], Float[Tensor, "image head token"]]
    values: Callable[[], Float[Tensor, "image head token d"]]


def read_step(tower: TransformerWeights, step: Step, readout: Readout) -> LayerReading:
    """Tell what one block of a transformer read."""
    return LayerReading(
        layer=step.layer,
        tokens=step.before,
        mixed=step.mixed,
        own=0 if readout.index is None else readout.index,
        attention=lambda: readout_attention(tower, step, readout),
        values=lambda: step_values(tower, step),
    )


def record(
    tower: TransformerWeights, inputs: Tensor, each: Callable[[Step, Readout], None] | None = None
) -> tuple[Trace, Readout]:
    """Run one tower and keep what the exact split needs.

    Args:
        tower: image or text tower.
        inputs: pixels [image, 3, row, col] or token ids [text, token].
        each: called with every step, for what must be contracted while the step's tensors live.

    Returns:
        The trace, and the readout rows with their final weights.
    """
    with torch.no_grad():
        x = embed_inputs(tower, inputs)
        readout = readout_of(tower, inputs, x.shape[1])
        normed_first = readout.index is None and not tower.pool_before_norm
        if normed_first:
            readout = _weigh_by_sigma(tower, x, readout)
        start = readout.rows(x).float()
        mixed: list[Tensor] = []
        wrote: list[Tensor] = []
        row, after = x[:, 0], None
        for step in walk(tower, x, readout):
            mixed.append(step.mixed.float())
            wrote.append(step.mlp.float())
            if each is not None:
                each(step, readout)
            row, after = step.readout, step.after if readout.index is None else None
            del step
        stream = row.float()
        if normed_first:
            scale = torch.ones(len(x), device=x.device)
        else:
            scale = (stream.var(-1, unbiased=False) + tower.ln_post.eps).rsqrt()
        embedding = embed_readout(tower, row, after, readout)
        mass = torch.as_tensor(readout.mass, device=x.device, dtype=torch.float32).expand(len(x))
        trace = Trace(start, torch.stack(mixed, 1), torch.stack(wrote, 1), stream, scale, mass, embedding.float())
    return trace, readout


def _weigh_by_sigma(tower: TransformerWeights, x: Tensor, readout: Readout) -> Readout:
    """Row weights 1/(patches · σ_row) for towers that normalise every row before they average: they need a first pass."""
    after = x
    for step in walk(tower, x, readout):
        assert step.after is not None
        after = step.after
    assert readout.weights is not None
    sigma = (after.float().var(-1, unbiased=False) + tower.ln_post.eps).rsqrt()
    return Readout(None, readout.weights * sigma)
