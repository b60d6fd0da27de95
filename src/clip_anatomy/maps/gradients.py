"""Gradient maps: one forward, then vector–Jacobian products of all texts together through the last blocks only.

    gradcam   weights = mean over patches of ∂cos/∂x, map = ReLU(x · weights), x = ln1's output        (Selvaraju et al. 2017)
    chefer    Ā = mean over heads of ReLU(∂logit/∂A ⊙ A), R ← R + Ā R through the last blocks, row of the readout token
              logit = cosine × logit scale: over several blocks the products of Ā depend on it
                                                                                    (Chefer et al. 2021, bi-modal, CLIP version)
    legrad    per block: s = cos(ln_post(mean over tokens of the stream), text), mean over heads and queries of ReLU(∂s/∂A),
              summed over blocks                                                                    (Bousselham et al. 2024, §3)

What lies before the first block that is asked for never enters a graph, and the last block runs for the readout row alone. The maps
of different texts are not on one scale: ReLU keeps each method from being linear in the text.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.maps.attention import layer_of
from clip_anatomy.towers.embedding import embed_image
from clip_anatomy.towers.forward import walk
from clip_anatomy.towers.layers import Block
from clip_anatomy.towers.operations import before_attention, mlp, project_in, project_out, widened
from clip_anatomy.towers.randomize_weights import map_tensors
from clip_anatomy.towers.readout import Readout, embed_each, embed_readout, readout_of
from clip_anatomy.towers.transformer import Transformer

Vjp = Callable[[Tensor], tuple[Tensor, ...]]
MOST_BYTES = 256_000_000  # of gradients at once: more texts are taken in turns


@dataclass(frozen=True)
class GradcamOptions:
    """Which tokens.

    Attributes:
        layer: the block whose ln1 output is weighed, counted from the end if negative. The last is the usual choice and works
            badly on CLIP, whose last patch tokens are read by one attention only.
    """

    layer: int = -1


@dataclass(frozen=True)
class DepthOptions:
    """Through how many of the last blocks.

    Attributes:
        layers: how many.
    """

    layers: int = 1

    def __post_init__(self) -> None:
        """Refuse no block at all."""
        if self.layers < 1:
            raise BadSpec(f"layers={self.layers}: 1 or more were expected. Type: layers=1")


def gradcam(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: GradcamOptions
) -> Float[Tensor, "image token text"]:
    """Draw Grad-CAM on the tokens of one block."""
    tower, unit = clip.image_tower, F.normalize(text, dim=-1)
    first = layer_of(tower, options.layer, "layer")
    tower, x, readout = stream_into(tower, pixels, first)
    normed = before_attention(tower.blocks[first], x)

    def rest(normed: Tensor) -> Tensor:
        return embed_unit(tower, run_last_blocks(tower, first, x, readout, normed=normed)[0], readout)

    vjp, _ = vjp_of(rest, normed)
    maps: list[Tensor] = []
    for some in unit.split(at_once(normed.numel(), len(unit))):
        (gradients,) = text_gradients(vjp, some, len(x))  # [text, image, token, width]
        weights = gradients[:, :, tower.own :].float().mean(2)
        maps.append(torch.einsum("bnw,tbw->bnt", normed[:, tower.own :].float(), weights).relu_())
    return torch.cat(maps, -1)


def chefer(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: DepthOptions
) -> Float[Tensor, "image token text"]:
    """Propagate relevance through the attention of the last blocks; the score is the logit, as in the released code."""
    tower, unit = clip.image_tower, F.normalize(text, dim=-1) * clip.logit_scale
    first = tower.layers - min(options.layers, tower.layers)
    tower, x, readout = stream_into(tower, pixels, first)
    with torch.no_grad():
        _, attention = run_last_blocks(tower, first, x, readout)
    # A zero is added to each attention: the gradient with respect to it is ∂logit/∂A, what flows through later blocks included.
    zeros = tuple(torch.zeros_like(a) for a in attention)
    vjp, _ = vjp_of(
        lambda *added: embed_unit(tower, run_last_blocks(tower, first, x, readout, added)[0], readout), *zeros
    )
    maps: list[Tensor] = []
    for some in unit.split(at_once(sum(a.numel() for a in attention), len(unit))):
        gradients = text_gradients(vjp, some, len(x))  # per block [text, image, head, query, token]
        relevance: Tensor | None = None  # R − I of the blocks so far
        for a, gradient in zip(attention, gradients, strict=True):
            step = (gradient * a).relu_().float().mean(2)
            relevance = step if relevance is None else step + step @ relevance + _shown(relevance, step)
        assert relevance is not None
        row = relevance[:, :, 0] if relevance.shape[2] == 1 else readout.one_row(relevance.movedim(0, 2)).movedim(1, 0)
        maps.append(row[..., tower.own :].permute(1, 2, 0))
    return torch.cat(maps, -1)


def legrad(
    clip: Clip, pixels: Float[Tensor, "image 3 row col"], text: Float[Tensor, "text embed"], options: DepthOptions
) -> Float[Tensor, "image token text"]:
    """Measure how much more attention to a patch, by any token, would raise the cosine (LeGrad)."""
    tower, unit = clip.image_tower, F.normalize(text, dim=-1)
    first = tower.layers - min(options.layers, tower.layers)
    tower, x, readout = stream_into(tower, pixels, first)
    total: Tensor | None = None
    for block in tower.blocks[first:]:
        q, k, v = project_in(tower, block, before_attention(block, x), readout.rotation)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        def stream(mixed: Tensor, block: Block = block, x: Tensor = x) -> tuple[Tensor, Tensor]:
            middle = x + project_out(block, mixed)
            after = middle + mlp(tower, block, x, middle)
            return F.normalize(embed_each(tower, after.mean(1, keepdim=True))[:, 0], dim=-1), after

        vjp, after = vjp_of(stream, mixed)
        maps: list[Tensor] = []
        for some in unit.split(at_once(2 * mixed.numel() + v.shape[1] * x.shape[1] ** 2 * len(x), len(unit))):
            (gradients,) = text_gradients(vjp, some, len(x))  # [text, image, token, width]
            per_head = gradients.unflatten(-1, (tower.heads, tower.d)).transpose(2, 3)
            maps.append((per_head @ v.transpose(-1, -2)).relu_().float().mean((2, 3)))
        one = torch.cat(maps)[..., tower.own :].permute(1, 2, 0)
        total, x = one if total is None else total + one, after
    assert total is not None
    return total


def stream_into(
    tower: Transformer, pixels: Float[Tensor, "image 3 row col"], first: int
) -> tuple[Transformer, Float[Tensor, "image token width"], Readout]:
    """Return the tower from a block on, the residual stream into that block without a graph, and the readout.

    Of a model in half precision both are float32 from there on: gradients of a cosine by one attention lie below what float16 holds.
    """
    x = embed_image(tower, pixels)
    readout = readout_of(tower, pixels, x.shape[1])
    if first:
        for step in walk(replace(tower, blocks=tower.blocks[:first]), x, readout, fold_last=False):
            assert step.after is not None
            x = step.after
    return widened_from(tower, first), widened(x), readout


def widened_from(tower: Transformer, first: int) -> Transformer:
    """Take the weights of a tower in half precision to float32, from a block on; others stay."""
    if tower.blocks[-1].query.weight.dtype not in (torch.float16, torch.bfloat16):
        return tower

    def wide(value: Any) -> Any:
        return map_tensors(value, lambda x: widened(x) if x.is_floating_point() else x)

    ends = {name: wide(getattr(tower, name)) for name in ("ln_post", "projection", "projection_bias", "pooling")}
    return replace(tower, blocks=(*tower.blocks[:first], *wide(tower.blocks[first:])), **ends)


def run_last_blocks(
    tower: Transformer,
    first: int,
    x: Float[Tensor, "image token width"],
    readout: Readout,
    added: tuple[Tensor, ...] = (),
    *,
    normed: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Run the last blocks with their attention written out.

    Args:
        tower: the tower.
        first: the first of them.
        x: residual stream into it.
        readout: the rows the embedding is read from; the last block runs for them alone where they are one.
        added: added to the attention of each block.
        normed: ln1's output in the first block, where it is not to be computed from x.

    Returns:
        The last stream ([image, width] of the readout row, or all rows), and each block's attention [image, head, query, token].
    """
    attention: list[Tensor] = []
    for at, block in enumerate(tower.blocks[first:]):
        y = normed if normed is not None and not at else before_attention(block, x)
        q, k, v = project_in(tower, block, y, readout.rotation)
        one = first + at == tower.layers - 1 and readout.index is not None
        if one:
            q = readout.rows(q.transpose(1, 2))[:, :, None]
        a = (q @ k.transpose(-1, -2) * tower.d**-0.5).softmax(-1)
        attention.append(a)
        if added:
            a = a + added[at]
        mixed = (a @ v).transpose(1, 2).flatten(2)
        x = readout.rows(x)[:, None] if one else x
        middle = x + project_out(block, mixed)
        x = middle + mlp(tower, block, x, middle)
    return x, attention


def embed_unit(
    tower: Transformer, x: Float[Tensor, "image token width"], readout: Readout
) -> Float[Tensor, "image embed"]:
    """Turn the last stream into embeddings of unit length."""
    if readout.index is not None:  # the readout row alone
        return F.normalize(embed_readout(tower, x[:, 0], None, readout), dim=-1)
    return F.normalize(embed_readout(tower, readout.rows(x), x, readout), dim=-1)


def at_once(numbers: int, texts: int) -> int:
    """How many texts' gradients fit into memory, each of so many float32 numbers."""
    return max(1, min(texts, MOST_BYTES // (4 * numbers)))


def _shown(relevance: Tensor, step: Tensor) -> Tensor:
    """R + Ā R = (I + Ā)(I + r): the r of it, in the rows that the step has (one, where the last block ran for one)."""
    return relevance if relevance.shape[2] == step.shape[2] else relevance[:, :, :1]


def vjp_of(function: Callable[..., Any], *inputs: Tensor) -> tuple[Vjp, Any]:
    """Run a function once and return its vector–Jacobian product.

    `torch.func.vjp` does the same and loads the compiler for it, several seconds on its first call; plain autograd under `vmap`
    does not.

    Args:
        function: gives a tensor, or a tensor and something else.
        inputs: what gradients are wanted of.

    Returns:
        (vector as large as the tensor) → its product with the Jacobian, one tensor per input; and the something else, out of
        the graph.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
    value, rest = outputs if isinstance(outputs, tuple) else (outputs, None)

    def vjp(vector: Tensor) -> tuple[Tensor, ...]:
        try:
            return torch.autograd.grad(value, leaves, vector, retain_graph=True)
        except RuntimeError as error:
            if "fork" not in str(error):
                raise
            raise BadInput(
                "torch takes no gradients in a process that was forked from one that took some. Type: multiprocessing.get_context('spawn')"
            ) from error

    return vjp, rest.detach() if isinstance(rest, Tensor) else rest


def text_gradients(vjp: Vjp, unit: Float[Tensor, "text embed"], images: int) -> tuple[Tensor, ...]:
    """Take the gradient of each image's cosine with each text: a leading text axis before every input's own.

    Example:
        >>> vjp, _ = vjp_of(lambda x: x * torch.tensor([2.0, 3.0]), torch.ones(1, 2))
        >>> text_gradients(vjp, torch.eye(2), 1)[0][:, 0].tolist()
        [[2.0, 0.0], [0.0, 3.0]]
    """
    return torch.func.vmap(vjp)(unit[:, None].expand(-1, images, -1))
