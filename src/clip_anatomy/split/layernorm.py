"""The frozen end of a tower: from the residual stream to the joint space, as a linear map per part.

Residual stream at the readout row (design: Gandelsman et al. 2024, equations 1–4; the two sharings of LayerNorm's mean):

    stream    = start + Σ_layer [ Σ_head z_h W_O^h + b_O + mlp ]
    embedding = ((stream − mean) / σ ⊙ γ + β) P

The attention pool of a CLIP-ResNet writes into the joint space itself: no LayerNorm and no projection follow (σ, γ, P are 1,
mean and β are 0), so that both sharings differ in b_O only.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.towers.protocol import AttentionOutput, Tower
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


def to_joint(tower: Tower, x: Float[Tensor, "*part width"]) -> Float[Tensor, "*part embed"]:
    """(x ⊙ γ) P in float32: the end of the tower without its mean, its 1/σ and its biases."""
    y = x.float() if tower.ln_post is None else x * tower.ln_post.weight.float()
    return y if tower.projection is None else y @ tower.projection.float()


def centered_to_joint(tower: Tower, x: Float[Tensor, "*part width"]) -> Float[Tensor, "*part embed"]:
    """`to_joint` of parts centred by their own mean, where a LayerNorm follows that centres."""
    return to_joint(tower, x if tower.ln_post is None else centre(x))


def write_heads(
    tower: Tower, block: AttentionOutput, mixed: Float[Tensor, "image head d"]
) -> Float[Tensor, "image head width"]:
    """Compute what each head writes into the residual stream, without b_O: z_h W_O^h (LayerScale folded in)."""
    weight = block.out.weight.float()
    if len(mixed) == 1:
        # One product with the heads set apart reads W_O once and in order: half the time of one-row products per head.
        h = torch.arange(tower.heads, device=mixed.device)
        apart = mixed.new_zeros(tower.heads, tower.d, tower.heads)
        apart[h, :, h] = mixed[0]
        wrote = (weight @ apart.flatten(0, 1)).T[None]
    else:
        each = weight.unflatten(1, (tower.heads, tower.d)).permute(1, 2, 0)  # [head, d, width], a view
        wrote = torch.bmm(mixed.transpose(0, 1), each).transpose(0, 1)
    return wrote if block.scale_attention is None else wrote * block.scale_attention.float()


def out_bias(block: AttentionOutput, width: int, device: torch.device) -> Float[Tensor, " width"]:
    """b_O of one block (LayerScale folded in); zeros where the host has none."""
    if block.out.bias is None:
        return torch.zeros(width, device=device)
    bias = block.out.bias.float()
    return bias if block.scale_attention is None else bias * block.scale_attention.float()


def terms(tower: Tower) -> int:
    """K of the official sharing: the input embedding, and attention and MLP of every layer."""
    return 2 * tower.layers + 1


def shared_directions(tower: Tower) -> tuple[Float[Tensor, " embed"], Float[Tensor, " embed"]]:
    """γ P and β P: what a stream of ones, and the end's own bias, write into the joint space."""
    if tower.ln_post is None:
        nothing = torch.zeros(tower.embed, device=tower.device)
        return nothing, nothing
    beta = tower.ln_post.bias.float()
    ones = torch.ones(tower.width, device=tower.device)
    return to_joint(tower, ones), beta if tower.projection is None else beta @ tower.projection.float()


def projection_bias(tower: Tower) -> Tensor | float:
    """Tell what the projection adds at the end, where it has a bias."""
    return 0.0 if tower.projection_bias is None else tower.projection_bias.float()


def shared_term(tower: Tower, trace: Trace) -> Float[Tensor, "image embed"]:
    """Tell what one of the K terms gets under the even sharing: ((−mean/σ) γ + β) P / K."""
    mean = trace.stream.mean(-1, keepdim=True) * trace.scale[:, None]
    gamma, beta = shared_directions(tower)
    return (beta - mean * gamma) / terms(tower)


def pull_back(tower: Tower, unit: Float[Tensor, "text embed"], convention: Convention) -> Float[Tensor, "text width"]:
    """Return texts carried back to the residual stream: ⟨text, part⟩ = scale · ⟨direction, part⟩ + a constant of the convention."""
    direction = unit.float() if tower.projection is None else unit.float() @ tower.projection.float().T
    if tower.ln_post is None:
        return direction
    direction = direction * tower.ln_post.weight.float()
    return centre(direction) if convention == "centered" else direction
