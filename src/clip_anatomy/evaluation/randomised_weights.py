"""The same model with its learned weights drawn anew, block by block: what a map must not survive (Adebayo et al. 2018, §3.1)."""

from dataclasses import replace

from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.towers.redraw import count_blocks, redraw

__all__ = ["randomised"]


def randomised(clip: Clip, blocks: int | None = None, *, seed: int = 0) -> Clip:
    """A copy of an opened model whose last blocks of the image tower hold random weights.

    Args:
        clip: an opened model; it stays as it is, bit by bit.
        blocks: how many, from the output backwards (Adebayo's cascade); None for the whole image tower: also the patch
            embedding or stem, the positions, the outer LayerNorms and the projection.
        seed: of the draw. Blocks drawn with one seed are the same whatever `blocks` is.

    Returns:
        A Clip that shares the text tower and the blocks that were not drawn; its host module is left out, since it holds the
        learned weights.

    Raises:
        BadSpec: more blocks than there are, or fewer than none.

    Example:
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> other = randomised(clip, 1)
        >>> torch.equal(other.image_tower.blocks[0].up.weight, clip.image_tower.blocks[0].up.weight)
        True
        >>> torch.equal(other.image_tower.blocks[-1].up.weight, clip.image_tower.blocks[-1].up.weight)
        False
    """
    there = count_blocks(clip.vision)
    if blocks is not None and not 0 <= blocks <= there:
        raise BadSpec(
            f"blocks={blocks}: the image tower has {there}. Type: blocks={there}, or blocks=None for all of it"
        )
    drawn = redraw(clip.vision, blocks, seed)
    return replace(clip, name=f"{clip.name}, random weights", vision=drawn, host=None, proof=None)
