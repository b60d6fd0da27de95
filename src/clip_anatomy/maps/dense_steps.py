"""What newer dense methods are put together from: where attention comes from, and tokens gathered by earlier similarity.

    streams ─▶ h_l, the residual stream out of block l, and the last block's step
    token_repair                     outlier tokens and channels found and mended
    alike ─▶ gathered                tokens become the mean of those that an earlier block found alike
    attended ─▶ dense_cosines        the last block's values mixed by any attention, then compared with texts

Depths are shares of the tower: a method that its release ties to blocks of a ViT-B/16 runs on any.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.forward import Step, walk
from clip_anatomy.towers.layers import Block
from clip_anatomy.towers.operations import before_attention, linear, project_in, project_out, widened
from clip_anatomy.towers.readout import Readout, embed_each, readout_of
from clip_anatomy.towers.transformer import Transformer

POOLS = ("class", "first", "mean", "attention")


def block_at(tower: Transformer, share: float) -> int:
    """Count the blocks of a share of the depth, one or more where there are, and never the last, which dense methods change.

    Example:
        >>> import clip_anatomy as ca
        >>> tower = ca.load("demo").image_tower
        >>> tower.layers, block_at(tower, 0.75), block_at(tower, 1.0)
        (8, 6, 7)
    """
    if not 0 < share <= 1:
        raise BadSpec(f"{share} is no share of the depth. Type a number above 0, up to 1: 0.75")
    return min(max(1, round(share * tower.layers)), tower.layers - 1)


def streams(
    tower: Transformer,
    pixels: Float[Tensor, "image 3 row col"],
    kept: Collection[int] = (),
    each: Callable[[Step], None] | None = None,
) -> tuple[dict[int, Float[Tensor, "image token width"]], Step, Readout]:
    """Run the model's own forward and keep some residual streams of it.

    Args:
        tower: an image tower.
        pixels: preprocessed.
        kept: block numbers from 1 on: the stream out of that block.
        each: told every block's step, while its tensors live.

    Returns:
        The streams by number, the last block's step, and which rows are read.
    """
    x, readout = started(tower, pixels)
    held: dict[int, Tensor] = {}
    step: Step | None = None
    for step in walk(tower, x, readout):
        if step.layer in kept:
            held[step.layer] = step.before
        if each is not None:
            each(step)
    assert step is not None
    return held, step, readout


def read_block(
    tower: Transformer, block: Block, x: Float[Tensor, "image token width"], readout: Readout
) -> tuple[
    Float[Tensor, "image head token d"], Float[Tensor, "image head token d"], Float[Tensor, "image head token d"]
]:
    """Compute query, key and value of all tokens, or of the patches alone where those in front are not handed in."""
    rotation = readout.rotation
    if rotation is not None and x.shape[1] == rotation.shape[1]:  # the patches alone: they are turned like all
        front = x.new_zeros(len(x), tower.own, x.shape[2])
        return tuple(z[:, :, tower.own :] for z in read_block(tower, block, torch.cat([front, x], 1), readout))  # pyright: ignore[reportReturnType]
    return project_in(tower, block, before_attention(block, x), rotation)


def keys_values(
    tower: Transformer, block: Block, x: Float[Tensor, "image token width"], readout: Readout
) -> tuple[Float[Tensor, "image head token d"], Float[Tensor, "image head token d"]]:
    """Compute key and value alone, where the tower lets them be computed alone."""
    if readout.rotation is not None or block.norm_key is not None:
        return read_block(tower, block, x, readout)[1:]
    normed = before_attention(block, x)
    k, v = (
        linear(one, normed).unflatten(2, (tower.heads, tower.d)).transpose(1, 2) for one in (block.key, block.value)
    )
    return k, v


def attention_of(
    left: Float[Tensor, "image head query d"], right: Float[Tensor, "image head token d"], bias: Tensor | None = None
) -> Float[Tensor, "image head query token"]:
    """Take the softmax of left · right / √d + bias over the tokens, in float32 or better."""
    scores = widened(left) * left.shape[-1] ** -0.5 @ widened(right).transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1)


def attention_moved(
    qkv: tuple[Tensor, Tensor, Tensor],
    less: Bool[Tensor, "image token"],
    more: Bool[Tensor, "image token"],
    share: float,
) -> Float[Tensor, "image head query d"]:
    """Attend with a share of what goes to some tokens given to others, in proportion to what those have.

    One fused attention over [(1 − share · less) v, more · v, share · less, more]: its last two columns are what is freed, and what the others had.

    Args:
        qkv: [image, head, token, d] each.
        less: tokens that lose; in a picture where some do, others must win.
        more: tokens that win.
        share: of their attention.
    """
    q, k, v = (
        widened(one) for one in qkv
    )  # what is freed is divided by what the others had, which half precision may round to nothing
    lost, won = (mask.to(v)[:, None, :, None].expand(*v.shape[:3], 1) for mask in (share * less, more))
    mixed = F.scaled_dot_product_attention(q, k, torch.cat([(1 - lost) * v, won * v, lost, won], -1))
    own, shared, freed, had = mixed.split([v.shape[-1], v.shape[-1], 1, 1], -1)
    return (own + shared * freed / had.clamp_min(1e-30)).to(qkv[2].dtype)


def attended(
    block: Block, attention: Float[Tensor, "image #head query token"], value: Float[Tensor, "image head token d"]
) -> Float[Tensor, "image query width"]:
    """Compute what an attention of any origin writes: W_O (attention · value) + b_O."""
    return project_out(block, (attention.to(value.dtype) @ value).transpose(1, 2).flatten(2))


def dense_cosines(
    tower: Transformer, patches: Float[Tensor, "image token width"], text: Float[Tensor, "text embed"]
) -> Float[Tensor, "image token text"]:
    """Compare patches of the last residual stream with texts, each through the readout as if it alone were read."""
    return F.normalize(embed_each(tower, patches).float(), dim=-1) @ F.normalize(text.float(), dim=-1).T


def alike(tokens: Float[Tensor, "image token width"]) -> Float[Tensor, "image token token"]:
    """Compare tokens with each other by cosine."""
    unit = F.normalize(widened(tokens), dim=-1)
    return unit @ unit.transpose(1, 2)


def gathered(
    tokens: Float[Tensor, "image token width"], similarity: Float[Tensor, "image token token"], least: float
) -> Float[Tensor, "image token width"]:
    """Make each token the mean of all tokens, weighed by their similarity to it where that is at least so much.

    Example:
        >>> gathered(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[1.0, 0.3], [0.5, 1.0]]]), least=0.4)
        tensor([[[1.0000],
                 [2.3333]]])
    """
    weights = similarity.masked_fill(similarity < least, 0)
    return (weights / weights.sum(-1, keepdim=True)).to(tokens.dtype) @ tokens


def same_answer(
    answers: Int[Tensor, "image token"], grid: tuple[int, int], std: float
) -> Float[Tensor, "image token token"]:
    """Say which patches had the same answer: 1, less where the line between them leaves it (ResCLIP's feedback).

    Args:
        answers: of each patch, row by row.
        grid: (row, col) patches.
        std: of the Gaussian by which each patch's row of the matrix is smoothed, patches taken row by row.

    Returns:
        Rows that sum to 1.
    """
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).to(answers.device)
    steps = (places[:, None] - places[None]).abs().amax(-1)
    same = answers[:, :, None] == answers[:, None]
    unbroken = same.clone()
    for step in range(1, int(steps.max())):
        share = (step / steps.clamp_min(1)).clamp_max(1)[..., None]
        row, col = (places[:, None] * (1 - share) + places[None] * share).round().long().unbind(-1)
        unbroken &= answers[:, row * grid[1] + col] == answers[:, :, None]
    affinity = same * torch.where(unbroken, 1.0, torch.exp(-steps / steps.max().clamp_min(1)))
    reach = min(len(places), int(6 * std + 1)) // 2
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=answers.device) ** 2) / (2 * std**2))
    smooth = F.conv1d(affinity.flatten(0, 1)[:, None], (kernel / kernel.sum()).view(1, 1, -1), padding=reach)
    return F.normalize(smooth[:, 0].view_as(affinity), p=1, dim=-1)


def started(
    tower: Transformer, pixels: Float[Tensor, "image 3 row col"]
) -> tuple[Float[Tensor, "image token width"], Readout]:
    """Return the residual stream into the first block, and which rows are read.

    Raises:
        UnsupportedModel: a tower that is read out at another place.
    """
    if tower.pool not in POOLS:
        raise UnsupportedModel(f"dense maps read patches and a class token; this tower is pooled by {tower.pool!r}")
    x = embed_image(tower, pixels)
    return x, readout_of(tower, pixels, x.shape[1])
