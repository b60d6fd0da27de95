"""The frozen end of a tower: from the residual stream to the joint space, as a linear map per part.

Residual stream at the readout row (design: Gandelsman et al. 2024, equations 1–4; the two sharings of LayerNorm's mean):

    stream    = start + Σ_layer [ Σ_head z_h W_O^h + b_O + mlp ]
    embedding = ((stream − mean) / σ ⊙ γ + β) P

Where an attention pool reads the tokens, there are several such rows, and each has its own map P_r = W_V^r W_O^r behind γ
(`towers/readout.py`); a norm behind the pool is frozen and centred like the first one, and the pool's MLP is a part of its own. Norms
inside a block, behind Σ a v, are frozen too: their γ and centring are folded into W_O, their 1/σ into z. So are the norms that BERT's
stream goes through: what a layer writes passes all those of later layers on its way.

The attention pool of a CLIP-ResNet writes into the joint space itself: no LayerNorm and no projection follow (σ, γ, P are 1,
mean and β are 0), so that both sharings differ in b_O only.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.towers.layers import Linear, norms_behind
from clip_anatomy.towers.operations import frozen, widened
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.trace import Trace

Convention = Literal["centered", "official"]
CONVENTIONS: tuple[Convention, ...] = ("centered", "official")


def check_convention(convention: str) -> None:
    """Raise BadSpec for anything but "centered" or "official"."""
    if convention not in CONVENTIONS:
        raise BadSpec(f"convention {convention!r} is not known. Type one of: {', '.join(map(repr, CONVENTIONS))}")


def centre(x: Float[Tensor, "*part width"]) -> Float[Tensor, "*part width"]:
    """Subtract each vector's own mean over the width."""
    return x - x.mean(-1, keepdim=True)


def to_joint(tower: Tower, x: Float[Tensor, "*part written"]) -> Float[Tensor, "*part embed"]:
    """(x ⊙ γ) P in float32: the end of the tower without its mean, its 1/σ and its biases."""
    if tower.pooling is not None:
        return _through_pool(tower, x.unflatten(-1, (tower.rows, tower.width)))
    y = x.float() if tower.ln_post is None else x * tower.ln_post.weight.float()
    return y if tower.projection is None else y @ tower.projection.float()


def centered_to_joint(tower: Tower, x: Float[Tensor, "*part written"]) -> Float[Tensor, "*part embed"]:
    """`to_joint` of parts centred by their own mean, where a LayerNorm follows that centres."""
    return to_joint(tower, x if tower.ln_post is None else _centre_rows(tower, x))


def _centre_rows(tower: Tower, x: Float[Tensor, "*part written"]) -> Float[Tensor, "*part written"]:
    return centre(x) if tower.rows == 1 else centre(x.unflatten(-1, (tower.rows, tower.width))).flatten(-2)


def _through_pool(tower: Tower, x: Float[Tensor, "*part row width"]) -> Float[Tensor, "*part embed"]:
    pool = tower.pooling
    assert pool is not None
    y = x.float() if tower.ln_post is None else x * tower.ln_post.weight.float()
    value = pool.value.weight.float().unflatten(0, (tower.rows, pool.d))  # [row, pool d, width]
    mixed = torch.einsum("...rw,rdw->...rd", y, value).flatten(-2)
    return pooled_to_joint(tower, mixed @ pool.out.weight.float().T)


def pooled_to_joint(tower: Tower, pooled: Float[Tensor, "*part pooled"]) -> Float[Tensor, "*part embed"]:
    """Return the end behind an attention pool: its norm, without 1/σ and β, and the projection."""
    assert tower.pooling is not None
    if tower.pooling.norm is not None:
        pooled = centre(pooled) * tower.pooling.norm.weight.float()
    return pooled if tower.projection is None else pooled @ tower.projection.float()


def written_map(tower: Tower, layer: int) -> Linear:
    """W_O and b_O of a layer with the norms behind them frozen, also those of the stream: γ and centring folded in, 1/σ left out."""
    block, behind = tower.blocks[layer], norms_behind(tower.blocks, layer)
    if block.norm_mixed is None and block.norm_written is None and not behind:
        return block.out
    weight, bias = block.out.weight.float(), None if block.out.bias is None else block.out.bias.float()
    if block.norm_mixed is not None:
        if block.norm_mixed.bias is not None:
            beta = weight @ block.norm_mixed.bias.float()
            bias = beta if bias is None else bias + beta
        weight = centre(weight * block.norm_mixed.weight.float())
    for norm in behind if block.norm_written is None else (block.norm_written, *behind):
        weight = frozen(norm, weight.T).T
        bias = None if bias is None else frozen(norm, bias)
    return Linear(weight, bias)


def write_heads(
    tower: Tower, layer: int, mixed: Float[Tensor, "image head source"]
) -> Float[Tensor, "image head written"]:
    """Compute what each head writes into the residual stream, without b_O: z_h W_O^h (LayerScale folded in)."""
    if tower.rows > 1:
        rows = mixed.unflatten(-1, (tower.rows, tower.d)).transpose(1, 2).flatten(0, 1)
        return _write_row(tower, layer, rows).unflatten(0, (-1, tower.rows)).transpose(1, 2).flatten(2)
    return _write_row(tower, layer, mixed)


def _write_row(tower: Tower, layer: int, mixed: Float[Tensor, "image head d"]) -> Float[Tensor, "image head width"]:
    weight, scale = written_map(tower, layer).weight.float(), tower.blocks[layer].scale_attention
    if len(mixed) == 1:
        # One product with the heads set apart reads W_O once and in order: half the time of one-row products per head.
        h = torch.arange(tower.heads, device=mixed.device)
        apart = mixed.new_zeros(tower.heads, tower.d, tower.heads)
        apart[h, :, h] = mixed[0]
        wrote = (weight @ apart.flatten(0, 1)).T[None]
    else:
        each = weight.unflatten(1, (tower.heads, tower.d)).permute(1, 2, 0)  # [head, d, width], a view
        wrote = torch.bmm(mixed.transpose(0, 1), each).transpose(0, 1)
    return wrote if scale is None else wrote * scale.float()


def out_bias(tower: Tower, layer: int) -> Float[Tensor, " width"]:
    """b_O of one layer (LayerScale folded in); zeros where the host has none."""
    bias, scale = written_map(tower, layer).bias, tower.blocks[layer].scale_attention
    if bias is None:
        return torch.zeros(tower.width, device=tower.device)
    bias = bias.float()
    return bias if scale is None else bias * scale.float()


def written_biases(tower: Tower, trace: Trace) -> Float[Tensor, "image layer written"]:
    """Compute what every layer's biases wrote into the rows: b_O as often as their weights sum to, β of a norm over it likewise."""
    each: list[Tensor] = []
    for layer, block in enumerate(tower.blocks):
        bias = out_bias(tower, layer)
        times = trace.mass if trace.spread is None else trace.spread[:, layer]
        wrote = times[:, :, None] * bias
        if block.norm_written is not None and block.norm_written.bias is not None:
            beta = block.norm_written.bias.float()
            beta = beta if block.scale_attention is None else beta * block.scale_attention.float()
            wrote = wrote + trace.mass[:, :, None] * beta
        each.append(wrote.flatten(1))
    if not each:
        return trace.stream.new_zeros(len(trace.stream), 0, trace.stream.shape[1])
    return torch.stack(each, 1) if trace.betas is None else torch.stack(each, 1) + trace.betas


def terms(tower: Tower) -> int:
    """K of the official sharing: the input embedding, and attention and MLP of every layer."""
    return 2 * tower.layers + 1


def shared_directions(tower: Tower) -> tuple[Float[Tensor, "row embed"], Float[Tensor, " embed"]]:
    """γ P of each row and β P: what a stream of ones, and the end's own bias, write into the joint space."""
    if tower.ln_post is None:
        nothing = torch.zeros(tower.embed, device=tower.device)
        return nothing[None], nothing
    rows = torch.eye(tower.rows, device=tower.device).repeat_interleave(tower.width, 1)  # ones in one row each
    beta = tower.ln_post.bias.float()
    if tower.pooling is None:
        return to_joint(tower, rows), beta if tower.projection is None else beta @ tower.projection.float()
    pool = tower.pooling
    mixed = pool.value.weight.float() @ beta
    mixed = mixed if pool.value.bias is None else mixed + pool.value.bias.float()
    pooled = mixed @ pool.out.weight.float().T
    pooled = pooled if pool.out.bias is None else pooled + pool.out.bias.float()
    return to_joint(tower, rows), pooled_to_joint(tower, pooled)


def shared_bias(tower: Tower, trace: Trace) -> Float[Tensor, "image embed"]:
    """Compute what the biases in front of the last frozen norm write: β P, and those of an attention pool."""
    bias = shared_directions(tower)[1].expand(len(trace.embedding), -1)
    frozen = tower.pooling is not None and tower.pooling.norm is not None
    return bias * trace.scale[:, None] if frozen else bias


def last_bias(tower: Tower) -> Tensor | float:
    """Compute what is added behind everything: β of a norm behind an attention pool, and the projection's bias."""
    bias = 0.0 if tower.projection_bias is None else tower.projection_bias.float()
    if tower.pooling is None or tower.pooling.norm is None:
        return bias
    beta = tower.pooling.norm.bias.float()
    return bias + (beta if tower.projection is None else beta @ tower.projection.float())


def mean_term(tower: Tower, trace: Trace) -> Float[Tensor, "image embed"]:
    """(mean/σ) γ P, summed over the rows: what the stream's mean would have written."""
    mean = trace.stream.unflatten(-1, (tower.rows, tower.width)).mean(-1) * trace.scale[:, None]
    return mean @ shared_directions(tower)[0]


def shared_term(tower: Tower, trace: Trace) -> Float[Tensor, "image embed"]:
    """Compute what one of the K terms gets under the even sharing: ((−mean/σ) γ + β) P / K."""
    return (shared_bias(tower, trace) - mean_term(tower, trace)) / terms(tower)


def heads_to_joint(tower: Tower, trace: Trace, layer: int, convention: str) -> Float[Tensor, "image head embed"]:
    """Compute what the heads of one layer wrote into the joint space, from what was recorded: `Parts.heads` of that layer."""
    wrote = write_heads(tower, layer, trace.mixed[:, layer]) * trace.scale[:, None, None]
    if convention == "centered":
        return centered_to_joint(tower, wrote)
    biases = to_joint(tower, written_biases(tower, trace)[:, layer] * trace.scale[:, None])
    return to_joint(tower, wrote) + (biases + shared_term(tower, trace))[:, None] / tower.heads


def pull_back(tower: Tower, unit: Float[Tensor, "text embed"], convention: Convention) -> Float[Tensor, "text written"]:
    """Texts carried back to the residual stream: ⟨text, part⟩ = scale · ⟨direction, part⟩ + a constant of the convention; in float32 at least."""
    unit = widened(unit)
    direction = unit if tower.projection is None else unit @ tower.projection.to(unit.dtype).T
    pool = tower.pooling
    if pool is not None:
        direction = direction if pool.norm is None else centre(direction * pool.norm.weight.to(unit.dtype))
        rows = (direction @ pool.out.weight.to(unit.dtype)).unflatten(-1, (tower.rows, pool.d))
        direction = torch.einsum(
            "trd,rdw->trw", rows, pool.value.weight.to(unit.dtype).unflatten(0, (tower.rows, pool.d))
        )
    if tower.ln_post is not None:
        direction = direction * tower.ln_post.weight.to(unit.dtype)
        direction = centre(direction) if convention == "centered" else direction
    return direction if pool is None else direction.flatten(1)
