"""Grad-ECLIP: the gradient of the cosine by what the class token's row of the last attention gathered, patch by patch.

    o = Σ_i a_i v_i      the row's heads side by side, before the out-projection
    g = ∂cos/∂o          through the out-projection, the last MLP and the readout
    map_i = ReLU(Σ_d g_d v_id λ_i)      λ_i: cosine of query and key after the out-projection, stretched to 0 … 1 over the patches

Zhao et al., ICML 2024, Eq. 5–9. Only one row is differentiated: a vector–Jacobian product of [image, width] a text.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.gradients import at_once, embed_unit, stream_into, text_gradients, vjp_of
from clip_anatomy.towers.operations import before_attention, linear, mlp, project_in, project_out, widened

__all__ = ["GradEclipOptions", "grad_eclip"]


@dataclass(frozen=True)
class GradEclipOptions:
    """Which Grad-ECLIP.

    Attributes:
        key_similarity: weigh each patch by λ; without it the paper's "w/o ksim".
        heads: heads of the last attention; None for the model's own. The released code runs it with heads=1, so that it
            differentiates a score that is not the model's.
    """

    key_similarity: bool = True
    heads: int | None = None


def grad_eclip(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: GradEclipOptions
) -> Float[Tensor, "image token text"]:
    """Weigh every patch's value by the gradient of the cosine.

    Raises:
        UnsupportedModel: a tower that is not read out at one row.
        BadSpec: a number of heads that does not divide the width.
    """
    tower, unit = clip.image_tower, F.normalize(text, dim=-1)
    heads = options.heads or tower.heads
    if heads < 1 or (tower.heads * tower.d) % heads:
        raise BadSpec(f"heads={heads} does not divide the width {tower.heads * tower.d}. Type: heads={tower.heads}")
    with torch.no_grad():
        tower, x, readout = stream_into(tower, pixels, tower.layers - 1)
        if readout.index is None:
            raise UnsupportedModel(
                "grad_eclip reads the class token's row, and this tower has none. Type: method='legrad'"
            )
        block = tower.blocks[-1]
        q, k, v = (
            z.transpose(1, 2).flatten(2) for z in project_in(tower, block, before_attention(block, x), readout.rotation)
        )
        row, query = readout.rows(x), readout.rows(q)
        across = query.unflatten(-1, (heads, -1))[:, :, None], k.unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = (across[0] * across[1]).sum(-1) * across[0].shape[-1] ** -0.5
        a = widened(scores).softmax(-1).to(v.dtype)
        gathered = torch.einsum("bhn,bnhd->bhd", a, v.unflatten(-1, (heads, -1))).flatten(1)
        weights = torch.ones_like(widened(x[:, tower.own :, 0]))
        if options.key_similarity:
            keys = F.normalize(widened(linear(block.out, k[:, tower.own :])), dim=-1)
            cosine = (keys @ F.normalize(widened(linear(block.out, query)), dim=-1)[..., None])[..., 0]
            least, most = cosine.aminmax(dim=1, keepdim=True)
            weights = (cosine - least) / (most - least).clamp_min(1e-12)

    def rest(gathered: Tensor) -> Tensor:
        middle = row[:, None] + project_out(block, gathered[:, None])
        return embed_unit(tower, middle + mlp(tower, block, row[:, None], middle), readout)

    vjp, _ = vjp_of(rest, gathered)
    values = widened(v[:, tower.own :]) * weights[..., None]
    maps = [
        torch.einsum("tbw,bnw->bnt", widened(text_gradients(vjp, some, len(x))[0]), values).relu_()
        for some in unit.split(at_once(gathered.numel(), len(unit)))
    ]
    return torch.cat(maps, -1).float()
