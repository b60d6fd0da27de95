"""What one forward recorded at the readout row: little enough to keep for every layer, enough to split the embedding exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.towers.forward import Readout, Step, embed_image, embed_readout, embed_text, norm, readout_of, walk
from clip_anatomy.towers.resnet import ImageTower, Pooled, ResNet, run_resnet
from clip_anatomy.towers.transformer import Tower


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


def record(tower: Tower, inputs: Tensor, each: Callable[[Step, Readout], None] | None = None) -> tuple[Trace, Readout]:
    """Run one tower and keep what the exact split needs.

    Args:
        tower: image or text tower.
        inputs: pixels [image, 3, row, col] or token ids [text, token].
        each: called with every step, for what must be contracted while the step's tensors live.

    Returns:
        The trace, and the readout rows with their final weights.
    """
    with torch.no_grad():
        x = embed_image(tower, inputs) if tower.kind == "image" else embed_text(tower, inputs)
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
            assert after is not None
            embedding = norm(tower.ln_post, after).float()[:, 1:].mean(1).to(tower.dtype) @ tower.projection
            embedding = embedding if tower.projection_bias is None else embedding + tower.projection_bias
        else:
            scale = (stream.var(-1, unbiased=False) + tower.ln_post.eps).rsqrt()
            embedding = embed_readout(tower, row, after, readout)
        mass = torch.as_tensor(readout.mass, device=x.device, dtype=torch.float32).expand(len(x))
        trace = Trace(start, torch.stack(mixed, 1), torch.stack(wrote, 1), stream, scale, mass, embedding.float())
    return trace, readout


def _weigh_by_sigma(tower: Tower, x: Tensor, readout: Readout) -> Readout:
    """Row weights 1/(patches · σ_row) for towers that normalise every row before they average: they need a first pass."""
    after = x
    for step in walk(tower, x, readout):
        assert step.after is not None
        after = step.after
    assert readout.weights is not None
    sigma = (after.float().var(-1, unbiased=False) + tower.ln_post.eps).rsqrt()
    return Readout(None, readout.weights * sigma)


def trace_of(tower: ImageTower, inputs: Tensor) -> Trace:
    """What the exact split needs of one forward of any tower (pixels, or token ids)."""
    return trace_pool(run_resnet(tower, inputs)) if isinstance(tower, ResNet) else record(tower, inputs)[0]


def trace_pool(pooled: Pooled) -> Trace:
    """The same of a CLIP-ResNet: one layer, nothing before it, no MLP, and no LayerNorm behind it (a scale of 1)."""
    embedding = pooled.embedding.float()
    nothing, one = torch.zeros_like(embedding), torch.ones(len(embedding), device=embedding.device)
    return Trace(nothing, pooled.mixed.float()[:, None], nothing[:, None][:, :0], embedding, one, one, embedding)


def forward(tower: ImageTower, inputs: Tensor) -> Float[Tensor, "image embed"]:
    """The embedding alone, in the tower's dtype (what the host's encode_image / encode_text returns)."""
    if isinstance(tower, ResNet):
        return run_resnet(tower, inputs).embedding
    with torch.no_grad():
        x = embed_image(tower, inputs) if tower.kind == "image" else embed_text(tower, inputs)
        readout = readout_of(tower, inputs, x.shape[1])
        row, after = x[:, 0], None
        for step in walk(tower, x, readout):
            row, after = step.readout, step.after if readout.index is None else None
            del step
        return embed_readout(tower, row, after, readout)
