"""What MLP neurons do through later heads: paths neuron → head → embedding, from weights and one scalar each.

A neuron writes p_i w into token i; a later head reads it with attention a_i behind a frozen LayerNorm (1/σ_i) and writes it into the class
token's row, which the last LayerNorm (1/σ) takes to the joint space. Attention and norms frozen, the path is

    φ = S · D        S[image, head, neuron] = Σ_i (a_i / σ_i) p_i / (σ ‖embedding‖)        D[head, neuron] = P γ W_O W_V (γ₁ ⊙ w)

with a weight-only direction D: [image, neuron, embed] is never built. Gandelsman, Efros, Steinhardt, "Interpreting the Second-Order
Effects of Neurons in CLIP" (ICLR 2025). One hop: later MLPs, queries and keys are not followed.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.split.layernorm import (
    Convention,
    centered_to_joint,
    centre,
    check_convention,
    shared_directions,
    to_joint,
)
from clip_anatomy.split.tokens import unit_texts
from clip_anatomy.towers.ablated_writes import check_rerun
from clip_anatomy.towers.embedding import embed_inputs
from clip_anatomy.towers.forward import Step, readout_attention, walk
from clip_anatomy.towers.operations import inverse_deviation, neurons, project_out
from clip_anatomy.towers.readout import Readout, embed_readout, readout_of
from clip_anatomy.towers.transformer import Transformer

__all__ = ["SecondOrder", "second_order"]


@public
@dataclass(frozen=True, repr=False)
class SecondOrder(Compact):
    """Paths from the neurons of one MLP through every head of every later layer to the embedding.

    Attributes:
        layer: of the MLP.
        heads: (layer, head) of each path, in the order of the path axis.
        scalars: S, divided by ‖embedding‖.
        convention: "centered": a neuron's write is centred at both norms, what is silent contributes nothing. "official": as the released code, which
            spreads norms' means and all biases evenly; that share, the same for every neuron, is `shared`.
        shared: [image, embed], zero for "centered".
    """

    layer: int
    heads: tuple[tuple[int, int], ...]
    scalars: Float[Tensor, "image path neuron"]
    convention: Convention
    shared: Float[Tensor, "image embed"]
    tower: Transformer = field(repr=False)

    def directions(self, neuron: int) -> Float[Tensor, "path embed"]:
        """Return D of one neuron, from weights alone.

        Raises:
            BadSpec: there is no such neuron.
        """
        wrote = self._writes([self._checked(neuron)])
        return torch.cat([self._joint(pair, wrote) for pair in self.heads])

    def effects(self, neuron: int) -> Float[Tensor, "image embed"]:
        """Return what one neuron does through all later heads, as a part of the unit embedding."""
        return self.scalars[:, :, self._checked(neuron)] @ self.directions(neuron) + self.shared

    def toward(self, text: Float[Tensor, "text embed"]) -> Float[Tensor, "image path neuron text"]:
        """Return every path's share of the cosine with each text (without `shared`)."""
        unit = unit_texts(text, self.tower.embed).to(self.scalars)
        wrote = self._writes(slice(None))
        return self.scalars[..., None] * torch.stack([self._joint(pair, wrote) @ unit.T for pair in self.heads])

    def principal(self, neuron: int) -> tuple[Float64[Tensor, " embed"], float]:
        """Return a neuron's principal direction over these images, and the share of its variance along it.

        From the small Gram matrix of its paths: centred scalars times D have D Dᵀ between them. Its sign is that of most of what it does.

        Raises:
            BadSpec: there is no such neuron, or fewer than two images.
        """
        scalars = self.scalars[:, :, self._checked(neuron)].double()
        if len(scalars) < 2:
            raise BadSpec("one image has no principal direction. Type second_order(clip, several_images, layer)")
        rows = self.directions(neuron).double()
        spread = scalars - scalars.mean(0)
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T  # the Gram matrix' square root keeps all lengths
        _, sizes, across = torch.linalg.svd(spread @ root, full_matrices=False)
        back = vectors / values.clamp_min(values.max() * 1e-12).sqrt()
        direction = F.normalize(rows.T @ (back @ (vectors.T @ across[0])), dim=0)
        along = spread @ (rows @ direction)
        sign = 1.0 if float((along * along.abs()).sum()) >= 0 else -1.0
        return sign * direction, float(sizes[0] ** 2 / sizes.square().sum().clamp_min(1e-300))

    def _checked(self, neuron: int) -> int:
        many = self.scalars.shape[2]
        if not 0 <= neuron < many:
            raise BadSpec(
                f"neuron {neuron} does not exist: MLP {self.layer} has {many}, counted from 0. Type a number below {many}"
            )
        return neuron

    def _writes(self, chosen: slice | list[int]) -> Float[Tensor, "neuron width"]:
        """Return what neurons write into the stream when their activation is 1."""
        block = self.tower.blocks[self.layer]
        wrote = block.down.weight[:, chosen].T.float()
        wrote = wrote if block.scale_mlp is None else wrote * block.scale_mlp.float()
        return centre(wrote) if self.convention == "centered" else wrote

    def _joint(self, pair: tuple[int, int], wrote: Float[Tensor, "neuron width"]) -> Float[Tensor, "neuron embed"]:
        """Carry writes through one head into the joint space, a head at a time: all heads' would be [path, neuron, embed]."""
        joint = centered_to_joint if self.convention == "centered" else to_joint
        return joint(self.tower, _through_head(self.tower, *pair, wrote))


@public
def second_order(
    clip: Clip, images: Images | Tensor, layer: int, *, convention: Convention = "centered"
) -> SecondOrder:
    """Follow what the neurons of one MLP write through every head of the later layers into the embedding.

    Args:
        clip: an opened model.
        images: of any kind.
        layer: whose MLP, counted from 0; not the last.
        convention: see `SecondOrder`.

    Returns:
        Paths: `.scalars`, `.directions(neuron)`, `.effects(neuron)`, `.toward(text)`, `.principal(neuron)`.

    Raises:
        BadSpec: no such layer, or the last one, which no head reads.
        UnsupportedModel: no transformer, no class token, or a norm behind the heads.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = second_order(ca.load("demo"), examples()[:2], layer=4)
        >>> result.scalars.shape[1] == 3 * 6, result.directions(7).shape
        (True, torch.Size([18, 128]))
    """
    check_convention(convention)
    tower = check_rerun(clip.vision)
    if not 0 <= layer < tower.layers - 1:
        raise BadSpec(
            f"layer {layer}: heads read the MLPs of layers 0 to {tower.layers - 2}. Type layer={max(0, tower.layers - 2)}"
        )
    if tower.blocks[layer].norm_down is not None:
        raise UnsupportedModel(
            f"a norm stands behind the neurons of MLP {layer}, so that what one writes depends on the others. Type another layer"
        )
    pixels = clip.pixels(images)
    scalars: list[Tensor] = []
    shared = torch.zeros(len(pixels), tower.width, device=pixels.device)
    with torch.no_grad():
        x = embed_inputs(tower, pixels)
        readout = readout_of(tower, pixels, x.shape[1])
        loud, row, count = x.new_zeros(0), x[:, 0], tower.blocks[layer].down.weight.shape[1]
        for step in walk(tower, x, readout, fold_last=False):
            if step.layer == layer:
                loud = _activations(tower, step).float()
            elif step.layer > layer:
                weights = _read_weights(tower, step, readout)
                scalars.append(torch.einsum("iht,itn->ihn", weights, loud))
                if convention == "official":
                    shared += _even_share(tower, layer, step, weights)
            row = step.readout
        scale = inverse_deviation(tower.ln_post, row).float()
        ends = sum(1 / ((2 * tower.layers + 1) * (1 + 2 * at) * count) for at in range(layer + 1, tower.layers))
        ones, beta = shared_directions(tower)
        last = ends * (beta - (row.float().mean(-1) * scale)[:, None] * ones)
        length = embed_readout(tower, row, None, readout).float().norm(dim=-1)
        constant = (to_joint(tower, shared * scale[:, None]) + last) / length[:, None]
    pairs = tuple((at, head) for at in range(layer + 1, tower.layers) for head in range(tower.heads))
    every = torch.cat(scalars, 1) * (scale / length)[:, None, None]
    return SecondOrder(layer, pairs, every, convention, constant if convention == "official" else 0 * constant, tower)


def _activations(tower: Transformer, step: Step) -> Float[Tensor, "image token neuron"]:
    """Compute the activations of a block's MLP at every token."""
    assert step.query is not None
    assert step.key is not None
    assert step.value is not None
    block = tower.blocks[step.layer]
    mixed = F.scaled_dot_product_attention(step.query, step.key, step.value).transpose(1, 2).flatten(2)
    return neurons(tower, block, step.before if block.parallel else step.before + project_out(block, mixed))


def _read_weights(tower: Transformer, step: Step, readout: Readout) -> Float[Tensor, "image head token"]:
    """How much of each token's stream every head reads for the class token's row: attention times the frozen 1/σ."""
    attention = readout_attention(tower, step, readout).float()
    return attention * inverse_deviation(tower.blocks[step.layer].ln1, step.before).float()[:, None]


def _through_head(
    tower: Transformer, layer: int, head: int, wrote: Float[Tensor, "neuron width"]
) -> Float[Tensor, "neuron width"]:
    """Carry what stands in the stream through γ₁, W_V and W_O of one head."""
    block, rows = tower.blocks[layer], slice(head * tower.d, (head + 1) * tower.d)
    mixed = (wrote * block.ln1.weight.float()) @ block.value.weight[rows].T.float()
    carried = mixed @ block.out.weight[:, rows].T.float()
    return carried if block.scale_attention is None else carried * block.scale_attention.float()


def _even_share(
    tower: Transformer, source: int, step: Step, weights: Float[Tensor, "image head token"]
) -> Float[Tensor, "image width"]:
    """Compute what each neuron gets of biases and of the first norm's mean through one later layer, as the released code shares them."""
    block, down = tower.blocks[step.layer], tower.blocks[source].down
    count = down.weight.shape[1]
    terms = (1 + 2 * step.layer) * count
    means = step.before.float().mean(-1)
    total = torch.zeros(len(means), tower.width, device=means.device)
    ones = torch.ones(1, tower.width, device=means.device)
    for head in range(tower.heads):
        rows = slice(head * tower.d, (head + 1) * tower.d)
        own = torch.zeros_like(ones) if down.bias is None else down.bias.float()[None] / count
        total += weights[:, head].sum(-1)[:, None] * _through_head(tower, step.layer, head, own)
        total -= (weights[:, head] * means).sum(-1)[:, None] / terms * _through_head(tower, step.layer, head, ones)
        value = block.value.weight[rows].float() @ block.ln1.bias.float()
        value = value if block.value.bias is None else value + block.value.bias[rows].float()
        total += value @ block.out.weight[:, rows].T.float() / terms
    return total if block.out.bias is None else total + block.out.bias.float() / terms
