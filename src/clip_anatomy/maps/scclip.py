"""SC-CLIP: outliers of the last tokens repaired, tokens gathered by what earlier blocks found alike (Bai et al., arXiv 2411.15869).

With h_l the patches out of block l of 12 (here: shares of the depth), S_l their cosines, gather_S(x) the mean of x weighed by S ≥ 0.4:

    x = gather_S9( repaired h_11 )                     repaired: the 5 % of highest local outlier factor ← mean of the places around
    z(x) = W_O (½ softmax(3 (S9 − mean S9), negatives out) + ½ softmax(k kᵀ/√d)) v + b + 0.3 · class row, patches only
    tokens = gather_S4( z(x) ) + gather_S4( z(h_4 + … + h_10) )        no residual, no MLP; then the readout

S9 is that of h_9 repaired at the same places. Constants are those released for ViT-B/16.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.dense_steps import alike, block_at, dense_cosines, gathered, keys_values, streams
from clip_anatomy.maps.proxyclip import guide
from clip_anatomy.maps.token_repair import local_outlier_factor, without_outliers
from clip_anatomy.towers.operations import project_out

ALIKE = 0.999  # a token's cosine with itself is 1, less its rounding


@dataclass(frozen=True)
class ScclipOptions:
    """Which SC-CLIP; depths are shares of the blocks.

    Attributes:
        middle: whose similarity steers the attention and gathers tokens before it.
        early: whose similarity gathers them after it, and where the sum of earlier streams begins.
        late: where that sum ends.
        least: similarity from which a token counts.
        outliers: share of tokens that are repaired.
        neighbours: of the outlier factor.
        released: the outlier factor as released, not as defined; see `local_outlier_factor`.
        class_row: how much of the class token is added to each patch.
    """

    middle: float = 9 / 12
    early: float = 4 / 12
    late: float = 10 / 12
    least: float = 0.4
    outliers: float = 0.05
    neighbours: int = 30
    released: bool = True
    class_row: float = 0.3


def scclip(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: ScclipOptions
) -> Float[Tensor, "image token text"]:
    """Compare every patch's repaired and gathered token with every text by cosine."""
    tower, grid = clip.image_tower, patch_grid(pixels.shape, clip.patch)
    _check(options)
    middle, early, late = (block_at(tower, share) for share in (options.middle, options.early, options.late))
    if late < early:
        raise BadSpec(f"late={options.late} lies before early={options.early}. Type: late={ScclipOptions.late:.2f}")
    with torch.no_grad():
        held, step, readout = streams(tower, pixels, {middle, *range(early, late + 1)})
        block, own = tower.blocks[-1], tower.own
        factor = local_outlier_factor(step.before[:, own:], options.neighbours, released=options.released)
        is_outlier = factor > factor.quantile(1 - options.outliers, 1, keepdim=True)
        similar = alike(without_outliers(held[middle][:, own:], is_outlier, grid))
        later = alike(held[early][:, own:])
        steered = guide(similar, beta=1.0, gamma=3.0)

        def written(patches: Tensor, row: Tensor) -> Tensor:
            k, v = keys_values(tower, block, patches, readout)
            mixed = (steered.to(v.dtype)[:, None] @ v + F.scaled_dot_product_attention(k, k, v)) / 2
            added = project_out(block, mixed.transpose(1, 2).flatten(2)) + options.class_row * row[:, None]
            return gathered(added, later, options.least)

        patches = gathered(without_outliers(step.before[:, own:], is_outlier, grid), similar, options.least)
        earlier = torch.stack([held[number] for number in range(early, late + 1)]).sum(0)
        last, sums = readout.one_row(step.before), readout.one_row(earlier)
        return dense_cosines(tower, written(patches, last) + written(earlier[:, own:], sums), text)


def _check(options: ScclipOptions) -> None:
    """Raise BadSpec for shares that are none, and a similarity that no token would have, not even with itself."""
    if not 0 <= options.outliers <= 1:
        raise BadSpec(f"outliers={options.outliers} is no share of the tokens. Type: outliers={ScclipOptions.outliers}")
    if options.least > ALIKE:
        raise BadSpec(
            f"least={options.least}: a cosine of at most {ALIKE} was expected. Type: least={ScclipOptions.least}"
        )
    if options.neighbours < 1:
        raise BadSpec(
            f"neighbours={options.neighbours}: 1 or more were expected. Type: neighbours={ScclipOptions.neighbours}"
        )
