"""Parts of one picture: patches of one direction, and a vector for each, from the exact split or from red circles.

    split     v_part = Σ_{patch ∈ part} Σ_head share      one forward; parts sum to what all patches are of the unit embedding
    circle    v_part = mean of three unit embeddings: the picture with a red ellipse around the part, the same with grey outside
              of it, the same with blur outside (Sammani & Deligiannis, NeurIPS 2024, §3.2, after Shtedritski et al., ICCV 2023)

The parts themselves are k-means clusters of the patches' unit vectors. The ellipse has the second moments of the part's largest piece.
"""

from math import cos, sin

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip

__all__ = ["circled", "clustered", "largest_piece", "shared_out"]

ROUNDS = 100
SHARPNESS, SCALINGS = 2.5, 1000  # of the transport, as in the released code
RED, BLUR = (255, 0, 0), 2.0  # of the ellipse; deviation of an 11 × 11 Gaussian in OpenCV


def clustered(vectors: Float64[Tensor, "patch embed"], count: int) -> Int64[Tensor, " patch"]:
    """Group patches by the direction of their vectors: k-means of unit vectors, each start the patch farthest from those before.

    Returns:
        The part of each patch, counted from 0; the largest part first. There are fewer than `count` where patches do not differ.

    Example:
        >>> clustered(torch.eye(3).double()[[0, 0, 1, 1, 1]], 5).tolist()
        [1, 1, 0, 0, 0]
    """
    unit = F.normalize(vectors, dim=1)
    starts = [int(vectors.norm(dim=1).argmax())]
    apart = (unit - unit[starts[0]]).square().sum(1)
    while len(starts) < count and float(apart.max()) > 1e-9:
        starts.append(int(apart.argmax()))
        apart = torch.minimum(apart, (unit - unit[starts[-1]]).square().sum(1))
    middle, label = unit[starts], torch.full((len(unit),), -1)
    for _ in range(ROUNDS):
        now = torch.cdist(unit, middle).argmin(1)
        if torch.equal(now, label):
            break
        label = now
        members = F.one_hot(label, len(middle)).double()
        sizes = members.sum(0)[:, None]
        middle = torch.where(sizes > 0, members.T @ unit / sizes.clamp_min(1), middle)
    order = label.bincount(minlength=len(middle)).argsort(descending=True, stable=True)
    return order.argsort()[label]


def circled(
    clip: Clip, pixels: Float[Tensor, "1 3 row col"], parts: Int64[Tensor, "grid_row grid_col"]
) -> Float64[Tensor, "part embed"]:
    """Embed the picture three times for each part, with a red ellipse around it.

    Args:
        clip: an opened model.
        pixels: preprocessed; circles are drawn on what the model sees.
        parts: of each patch.
    """
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (clip.preprocess.mean, clip.preprocess.std))
    levels = ((pixels[0].float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    view = Image.fromarray(levels.permute(1, 2, 0).numpy())
    grey = view.convert("L").convert("RGB")
    blurred = view.filter(ImageFilter.GaussianBlur(BLUR))
    drawn: list[UInt8[np.ndarray, "row col 3"]] = []
    count = int(parts.max()) + 1
    for part in range(count):
        outline = _ellipse(largest_piece(parts == part), view.size)
        inside = Image.new("L", view.size)
        ImageDraw.Draw(inside).polygon(outline, fill=255)
        for outside in (view, grey, blurred):
            picture = Image.composite(view, outside, inside)
            ImageDraw.Draw(picture).line([*outline, outline[0]], fill=RED)
            drawn.append(np.asarray(picture))
    batch = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
    inputs = clip.pixels((batch - mean) / std)
    unit = F.normalize(torch.cat([clip.vision.encode(some) for some in inputs.split(16)]).double().cpu(), dim=1)
    return unit.unflatten(0, (count, 3)).mean(1)


def largest_piece(mask: Bool[Tensor, "row col"]) -> Bool[Tensor, "row col"]:
    """Keep the largest piece whose patches touch, corners included.

    Example:
        >>> largest_piece(torch.tensor([[True, False, True], [True, False, False]])).tolist()
        [[True, False, False], [True, False, False]]
    """
    name = (torch.arange(mask.numel()).view_as(mask) + 1.0) * mask
    while True:  # the largest number of a piece spreads over it
        wider = F.max_pool2d(name[None], 3, 1, 1)[0] * mask
        if torch.equal(wider, name):
            break
        name = wider
    return (name == name[mask].mode().values) & mask if mask.any() else mask


def _ellipse(mask: Bool[Tensor, "row col"], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Return points of the ellipse of the same centre and second moments as some patches, in pixels."""
    rows, cols = mask.shape
    scale = torch.tensor([size[0] / cols, size[1] / rows]).double()
    at = (mask.nonzero().flip(1).double() + 0.5) * scale
    centre = at.mean(0)
    spread = (at - centre).T @ (at - centre) / len(at) + torch.diag(scale.square() / 12)  # a patch has an extent
    values, axes = torch.linalg.eigh(spread)
    turns = torch.arange(48) * (2 * torch.pi / 48)
    around = torch.stack([torch.tensor([cos(turn), sin(turn)]) for turn in turns.tolist()]).double()
    points = centre + (around * 2 * values.sqrt()) @ axes.T
    return [(float(x), float(y)) for x, y in points]


def shared_out(cosines: Float64[Tensor, "part detail"], nearest: int, least: int = 1) -> Float64[Tensor, "part detail"]:
    """Share texts that are near to all parts out between them: entropic optimal transport with equal shares of parts and of texts (Sinkhorn).

    Args:
        cosines: of parts and texts.
        nearest: a text takes part if it is among so many nearest of every part.
        least: how many such texts are needed.

    Returns:
        The plan, with 1 a text; −1 for texts that take no part.

    Raises:
        BadSpec: too few texts are near to all parts.

    Example:
        >>> import torch
        >>> shared_out(torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.1, 0.2]]).double(), 2).round(decimals=2).tolist()
        Traceback (most recent call last):
        ...
        clip_anatomy.errors.BadSpec: 1 text is among the 2 nearest of every part; 2 or more are needed to be shared out. Type transport=4, or transport=0
        >>> shared_out(torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.2, 0.1]]).double(), 3).argmax(0).tolist()
        [1, 0, 1]
    """
    near = torch.zeros_like(cosines, dtype=torch.bool)
    near.scatter_(1, cosines.topk(min(nearest, cosines.shape[1]), dim=1).indices, True)
    common = near.all(0)
    if (count := int(common.sum())) < max(least, 2):
        raise BadSpec(
            f"{count} {'text is' if count == 1 else 'texts are'} among the {nearest} nearest of every part; {max(least, 2)} or more are needed to be "
            f"shared out. Type transport={2 * nearest}, or transport=0"
        )
    plan = (SHARPNESS * cosines[:, common]).exp()
    for _ in range(SCALINGS):
        plan = plan / plan.sum(1, keepdim=True) * (count / len(plan))
        plan = plan / plan.sum(0, keepdim=True)
    shares = torch.full_like(cosines, -1.0)
    shares[:, common] = plan
    return shares
