"""What MLP neurons and heads do through later heads: paths source → head → embedding, from weights and a few scalars each.

A neuron writes p_i w into token i (a head: its d numbers Σ a v with as many w); a later head reads it with attention a_i behind a frozen LayerNorm (1/σ_i) and writes it into the class
token's row, which the last LayerNorm (1/σ) takes to the joint space. Attention and norms frozen, the path is

    φ = S · D        S[image, head, neuron] = Σ_i (a_i / σ_i) p_i / (σ ‖embedding‖)        D[head, neuron] = P γ W_O W_V (γ₁ ⊙ w)

with a weight-only direction D: [image, neuron, embed] is never held. Gandelsman, Efros, Steinhardt, "Interpreting the Second-Order
Effects of Neurons in CLIP" (ICLR 2025). One hop: later MLPs, queries and keys are not followed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.errors import BadSpec, UnsupportedModel
from clip_anatomy.loading.clip import BATCH, Clip, Images
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

__all__ = ["SOURCES", "SecondOrder", "Source", "principal_of", "second_order"]

Source = Literal["neurons", "heads"]
SOURCES: tuple[Source, ...] = get_args(Source)
TOGETHER = 64  # units whose effects are held at once


@public
@dataclass(frozen=True, repr=False)
class SecondOrder(Compact):
    """Paths from the neurons of one MLP, or from the heads of one layer, through every head of every later layer to the embedding.

    Attributes:
        layer: of the sources.
        heads: (layer, head) of each path, in the order of the path axis.
        scalars: S, divided by ‖embedding‖; a unit is a neuron, or one of the d numbers of a head, head after head.
        convention: "centered": a neuron's write is centred at both norms, what is silent contributes nothing. "official": as the released code, which
            spreads norms' means and all biases evenly; that share, the same for every neuron, is `shared`.
        shared: [image, embed], zero for "centered".
    """

    layer: int
    heads: tuple[tuple[int, int], ...]
    scalars: Float[Tensor, "image path unit"]
    convention: Convention
    shared: Float[Tensor, "image embed"]
    tower: Transformer = field(repr=False)
    source: Source = "neurons"

    def __len__(self) -> int:
        """Count the sources: neurons, or heads."""
        return self.scalars.shape[2] // self._wide

    def directions(self, number: int) -> Float[Tensor, "path embed"]:
        """Return D of one neuron, from weights alone; of a head [path · d, embed], path after path.

        Raises:
            BadSpec: there is no such source.
        """
        wrote = self._writes(self._units(number))
        return torch.cat([self._joint(pair, wrote) for pair in self.heads])

    def effects(self, number: int) -> Float[Tensor, "image embed"]:
        """Return what one source does through all later heads, as a part of the unit embedding."""
        return self._scalars(number) @ self.directions(number) + self.shared

    def toward(self, text: Float[Tensor, "text embed"]) -> Float[Tensor, "image path source text"]:
        """Return every path's share of the cosine with each text (without `shared`)."""
        unit = unit_texts(text, self.tower.embed).to(self.scalars)
        wrote = self._writes(slice(None))
        shares = self.scalars[..., None] * torch.stack([self._joint(pair, wrote) @ unit.T for pair in self.heads])
        return shares.unflatten(2, (-1, self._wide)).sum(3)

    def strengths(self) -> Float[Tensor, " source"]:
        """Return how much each source does through later heads: √ mean over images of ‖effect − mean effect‖², in lengths of the embedding."""
        return torch.cat([(one - one.mean(0)).square().sum(-1).mean(0).sqrt() for one in self._effects()])

    def path_strengths(self, number: int) -> Float[Tensor, " path"]:
        """Return the same for one source, path by path."""
        rows = self.directions(number).unflatten(0, (len(self.heads), -1))
        scalars = self._scalars(number).unflatten(1, (len(self.heads), -1))
        each = torch.einsum("ipu,pue->ipe", scalars - scalars.mean(0), rows)
        return each.square().sum(-1).mean(0).sqrt()

    def total(self) -> Float[Tensor, "path image embed"]:
        """Return what all sources together do through each later head: all of the MLP but its bias, or all heads of the layer."""
        wrote = self._writes(slice(None))
        return torch.stack([self.scalars[:, at] @ self._joint(pair, wrote) for at, pair in enumerate(self.heads)])

    def principal(self, number: int) -> tuple[Float64[Tensor, " embed"], float]:
        """Return a source's principal direction over these images, and the share of its variance along it.

        From the small Gram matrix of its paths: centred scalars times D have D Dᵀ between them. Its sign is that of most of what it does.

        Raises:
            BadSpec: there is no such source, or fewer than two images.
        """
        scalars = self._scalars(number).double()
        if len(scalars) < 2:
            raise BadSpec("one image has no principal direction. Type second_order(clip, several_images, layer)")
        rows = self.directions(number).double()
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        # The Gram matrix' square root keeps all lengths.
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        across, share = principal_of(scalars @ root)
        back = vectors / values.clamp_min(values.max() * 1e-12).sqrt()
        return F.normalize(rows.T @ (back @ (vectors.T @ across)), dim=0), share

    @property
    def _wide(self) -> int:
        return self.tower.d if self.source == "heads" else 1

    def _units(self, number: int) -> slice:
        if not 0 <= number < len(self):
            what, of = ("neuron", "MLP") if self.source == "neurons" else ("head", "layer")
            raise BadSpec(
                f"{what} {number} does not exist: {of} {self.layer} has {len(self)}, counted from 0. Type a number below {len(self)}"
            )
        return slice(number * self._wide, (number + 1) * self._wide)

    def _scalars(self, number: int) -> Float[Tensor, "image rows"]:
        return self.scalars[:, :, self._units(number)].flatten(1)

    def _effects(self) -> Iterator[Float[Tensor, "image source embed"]]:
        """Compute the effects of all sources, a few at a time."""
        step = max(1, TOGETHER // self._wide) * self._wide
        for first in range(0, self.scalars.shape[2], step):
            some = slice(first, first + step)
            wrote, total = self._writes(some), torch.zeros(())
            for at, pair in enumerate(self.heads):
                effect = self.scalars[:, at, some, None] * self._joint(pair, wrote)
                total = total + effect.unflatten(1, (-1, self._wide)).sum(2)
            yield total

    def _writes(self, chosen: slice) -> Float[Tensor, "unit width"]:
        """Return what units write into the stream when they are 1."""
        block = self.tower.blocks[self.layer]
        layer, scale = (block.down, block.scale_mlp) if self.source == "neurons" else (block.out, block.scale_attention)
        wrote = layer.weight[:, chosen].T.float()
        wrote = wrote if scale is None else wrote * scale.float()
        return centre(wrote) if self.convention == "centered" else wrote

    def _joint(self, pair: tuple[int, int], wrote: Float[Tensor, "unit width"]) -> Float[Tensor, "unit embed"]:
        """Carry writes through one head into the joint space, a head at a time: all heads' would be [path, unit, embed]."""
        joint = centered_to_joint if self.convention == "centered" else to_joint
        return joint(self.tower, _through_head(self.tower, *pair, wrote))


def principal_of(effects: Float[Tensor, "image embed"]) -> tuple[Float64[Tensor, " embed"], float]:
    """Return the direction along which effects vary most, and its share of their variance; its sign is that of most of what they are."""
    spread = effects.double() - effects.double().mean(0)
    _, sizes, across = torch.linalg.svd(spread, full_matrices=False)
    along = spread @ across[0]
    sign = 1.0 if float((along * along.abs()).sum()) >= 0 else -1.0
    return sign * across[0], float(sizes[0] ** 2 / sizes.square().sum().clamp_min(1e-300))


@public
def second_order(
    clip: Clip, images: Images | Tensor, layer: int, *, source: Source = "neurons", convention: Convention = "centered"
) -> SecondOrder:
    """Follow what the neurons of one MLP, or the heads of one layer, write through every head of the later layers into the embedding.

    Args:
        clip: an opened model.
        images: of any kind.
        layer: whose MLP or heads, counted from 0; not the last.
        source: "neurons" or "heads".
        convention: see `SecondOrder`.

    Returns:
        Paths: `.scalars`, `.directions(number)`, `.effects(number)`, `.toward(text)`, `.principal(number)`, `.strengths()`.

    Raises:
        BadSpec: no such layer, or the last one, which no head reads; an unknown source; heads under "official", which says nothing of them.
        UnsupportedModel: no transformer, no class token, or a norm behind the heads.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = second_order(ca.load("demo"), examples()[:2], layer=4)
        >>> result.scalars.shape[1] == 3 * 6, result.directions(7).shape
        (True, torch.Size([18, 128]))
    """
    check_convention(convention)
    if source not in SOURCES or (source == "heads" and convention == "official"):
        raise BadSpec(f"paths from {source!r} under {convention!r}. Type 'neurons'; or 'heads' under 'centered'")
    tower = check_rerun(clip.vision, "decompose(clip, images), for what each part writes itself")
    if tower.layers < 2:
        raise UnsupportedModel(
            "this tower has one layer, and no later one whose heads could read what it writes. Type decompose(clip, images)"
        )
    if not 0 <= layer < tower.layers - 1:
        raise BadSpec(
            f"layer {layer}: heads read the MLPs of layers 0 to {tower.layers - 2}. Type layer={max(0, tower.layers - 2)}"
        )
    if source == "neurons" and tower.blocks[layer].norm_down is not None:
        raise UnsupportedModel(
            f"a norm stands behind the neurons of MLP {layer}, so that what one writes depends on the others. Type another layer"
        )
    pairs = tuple((at, head) for at in range(layer + 1, tower.layers) for head in range(tower.heads))
    pieces = [_followed(tower, some, layer, source, convention) for some in clip.pixels(images).split(BATCH)]
    scalars, shared = (torch.cat(one) for one in zip(*pieces, strict=True))
    return SecondOrder(layer, pairs, scalars, convention, shared, tower, source)


@torch.no_grad()
def _followed(
    tower: Transformer, pixels: Tensor, layer: int, source: Source, convention: Convention
) -> tuple[Float[Tensor, "image path unit"], Float[Tensor, "image embed"]]:
    """Run the model and return S of all paths, and what the official sharing gives every neuron."""
    scalars: list[Tensor] = []
    shared = torch.zeros(len(pixels), tower.width, device=tower.device)
    x = embed_inputs(tower, pixels)
    readout = readout_of(tower, pixels, x.shape[1])
    loud, row, count = x.new_zeros(0), x[:, 0], tower.blocks[layer].down.weight.shape[1]
    for step in walk(tower, x, readout, fold_last=False):
        if step.layer == layer:
            loud = (_activations(tower, step) if source == "neurons" else _mixed(step)).float()
        elif step.layer > layer:
            weights = _read_weights(tower, step, readout)
            scalars.append(torch.einsum("iht,itn->ihn", weights, loud))
            if convention == "official":
                shared += _even_share(tower, layer, step, weights)
        row = step.readout
    scale = inverse_deviation(tower.ln_post, row).float()
    length = embed_readout(tower, row, None, readout).float().norm(dim=-1)
    every = torch.cat(scalars, 1) * (scale / length)[:, None, None]
    if convention != "official":
        return every, torch.zeros(len(pixels), tower.embed, device=tower.device)
    ends = sum(1 / ((2 * tower.layers + 1) * (1 + 2 * at) * count) for at in range(layer + 1, tower.layers))
    ones, beta = shared_directions(tower)
    last = ends * (beta - (row.float().mean(-1) * scale)[:, None] * ones)
    return every, (to_joint(tower, shared * scale[:, None]) + last) / length[:, None]


def _activations(tower: Transformer, step: Step) -> Float[Tensor, "image token neuron"]:
    """Compute the activations of a block's MLP at every token."""
    block = tower.blocks[step.layer]
    return neurons(tower, block, step.before if block.parallel else step.before + project_out(block, _mixed(step)))


def _mixed(step: Step) -> Float[Tensor, "image token unit"]:
    """Compute Σ a v of a block's heads at every token, side by side."""
    assert step.query is not None
    assert step.key is not None
    assert step.value is not None
    return F.scaled_dot_product_attention(step.query, step.key, step.value).transpose(1, 2).flatten(2)


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
