"""Neurons × heads of a CLIP-ResNet: what each channel of the last stage writes through each head of the attention pool.

The pool is linear in its tokens once its attention a is known, so that the embedding is a sum over (head h, neuron n):

    embedding = Σ_h Σ_n s[h, n] D[h, n] + Σ_h W_c^h b_V^h + b_c        s[h, n] = Σ_token a[h, token] x_token[n]
                                                                      D[h, n] = W_c^h W_V^h[:, n]

D is of the weights alone: over images every pair moves along one direction, by one scalar an image (Bu & Gandelsman, "Interpreting
ResNet-based CLIP via Neuron-Attention Decomposition", NeurIPS 2025, find this rank 1 by singular vectors; it is an identity).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.data.picture_batches import Pictures, picture_batches
from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Compact
from clip_anatomy.split.tokens import unit_texts
from clip_anatomy.towers.resnet import ResNet, as_resnet, run_resnet

__all__ = ["NeuronHeads", "direction_lengths", "neuron_heads", "written_by_pairs"]

PUBLISHED = 50  # images whose mean norm ranks a pair


@public
@dataclass(frozen=True, repr=False)
class NeuronHeads(Compact):
    """What every neuron wrote through every head of the attention pool.

    Attributes:
        scalars: s, undivided: 147,456 numbers an image for RN50x16.
        embedding: as the host returns it.
    """

    scalars: Float[Tensor, "image head neuron"]
    embedding: Float[Tensor, "image embed"]
    tower: ResNet = field(repr=False)

    @property
    def constant(self) -> Float[Tensor, " embed"]:
        """What is the same for every image: Σ_h W_c^h b_V^h + b_c."""
        pool = self.tower.pool
        nothing = torch.zeros(self.tower.embed, device=self.tower.device)
        out = nothing if pool.out.bias is None else pool.out.bias.float()
        return out if pool.value.bias is None else out + pool.out.weight.float() @ pool.value.bias.float()

    def directions(self, pairs: Sequence[tuple[int, int]]) -> Float[Tensor, "pair embed"]:
        """Return D of some (head, neuron) pairs, from weights alone.

        Raises:
            BadSpec: there is no such pair.
        """
        heads, neurons = self._checked(pairs)
        d = self.tower.d
        value = self.tower.pool.value.weight.float().unflatten(0, (-1, d))[heads, :, neurons]  # [pair, d]
        out = self.tower.pool.out.weight.float().unflatten(1, (-1, d))[:, heads]  # [embed, pair, d]
        return torch.einsum("epd,pd->pe", out, value)

    def effects(self, head: int, neuron: int) -> Float[Tensor, "image embed"]:
        """Return what one pair wrote into each embedding. Less its mean over images it is exactly of rank 1."""
        direction = self.directions([(head, neuron)])  # refuses a pair that is not there
        return self.scalars[:, head, neuron, None] * direction

    def toward(self, text: Float[Tensor, "text embed"]) -> Float[Tensor, "head neuron text"]:
        """Return how much of each text a pair writes per unit of its scalar: D · unit text, from weights alone.

        Times a scalar over ‖embedding‖ it is the pair's share of that image's cosine.
        """
        return written_by_pairs(self.tower, unit_texts(text, self.tower.embed).to(self.tower.device))

    def strength(self, images: int = PUBLISHED) -> Float[Tensor, "head neuron"]:
        """Tell how far each pair moves embeddings: mean of ‖D‖ · ‖s − mean s‖ over the images that it moves most, as published."""
        if images < 1:
            raise BadSpec(f"images={images!r}: one or more were expected. Type: images=50")
        lengths = direction_lengths(self.tower)
        rows = [  # head by head: a copy of all scalars would be as large as they are
            (one - one.mean(0)).abs().topk(min(images, len(one)), dim=0).values.mean(0)
            for one in self.scalars.unbind(1)
        ]
        return torch.stack(rows) * lengths

    def strongest(self, count: int, images: int = PUBLISHED) -> tuple[tuple[int, int], ...]:
        """List the (head, neuron) pairs of the largest strength."""
        at = self.strength(images).flatten().topk(min(max(count, 0), self.scalars[0].numel())).indices.tolist()
        return tuple(divmod(one, self.scalars.shape[2]) for one in at)

    def kept(self, share: int | float, images: int = PUBLISHED) -> Float[Tensor, "image embed"]:
        """Compute the embeddings with all pairs at their means, but for the strongest share of them.

        Args:
            share: of all pairs, 0 (every embedding is the mean) to 1 (nothing is replaced).
            images: see `strength`.

        Raises:
            BadSpec: no such share.
        """
        if not 0 <= share <= 1:
            raise BadSpec(f"share={share!r} is not between 0 and 1. Type: kept(0.1)")
        strength = self.strength(images)
        mask = torch.zeros_like(strength, dtype=torch.bool).flatten()
        mask[strength.flatten().topk(round(share * mask.numel())).indices] = True
        mean = self.scalars.mean(0)
        moved = torch.zeros_like(self.embedding)
        for head, keep in enumerate(mask.view_as(strength)):
            value, out = _weights(self.tower, head)
            moved += ((self.scalars[:, head] - mean[head]) * keep) @ value.T @ out.T
        return self.embedding.mean(0) + moved

    def _checked(self, pairs: Sequence[tuple[int, int]]) -> tuple[Int64[Tensor, " pair"], Int64[Tensor, " pair"]]:
        _, heads, neurons = self.scalars.shape
        for head, neuron in pairs:
            if not (0 <= head < heads and 0 <= neuron < neurons):
                raise BadSpec(
                    f"pair ({head}, {neuron}) does not exist: {heads} heads and {neurons:,} neurons, counted from 0. "
                    f"Type a pair up to ({heads - 1}, {neurons - 1})"
                )
        both = torch.tensor([*pairs], dtype=torch.int64, device=self.tower.device).reshape(-1, 2)
        return both[:, 0], both[:, 1]


@public
def neuron_heads(
    clip: Clip, images: Pictures, *, batch: int = 16, allow_urls: bool = False, progress: Progress | None = None
) -> NeuronHeads:
    """Split the embeddings of a CLIP-ResNet over (head of the attention pool, neuron of the last stage).

    Args:
        clip: an opened CLIP-ResNet.
        images: pictures of any kind; their pixels are not kept.
        batch: most pictures in one forward.
        allow_urls: fetch pictures given as http(s) addresses.
        progress: told as it goes.

    Returns:
        Scalars, one an image and pair (0.6 GB for 1,000 images of RN50x16), and directions from the weights.

    Raises:
        UnsupportedModel: no CLIP-ResNet.
        BadImage: a picture cannot be used.

    Example:
        >>> import clip_anatomy as ca
        >>> ca.neuron_heads(ca.load("demo"), "photo.jpg")
        Traceback (most recent call last):
        ...
        clip_anatomy.errors.UnsupportedModel: a CLIP-ResNet was expected, and this is a transformer, split block by block. Type load('open_clip:RN50/openai')
    """
    tower = as_resnet(clip.vision)
    if batch < 1:
        raise BadSpec(f"batch={batch!r}: one or more were expected. Type: batch=16")
    places: list[int] = []
    rows: list[Tensor] = []
    expected, tell = 0, progress or silent

    def told(what: str, done: int, total: int | None) -> None:
        nonlocal expected
        expected = total or 0
        tell(what, done, total)

    scalars = torch.empty(0, tower.heads, tower.channels, device=tower.device)
    with torch.no_grad():
        for some in picture_batches(clip, images, batch=batch, allow_urls=allow_urls, progress=told):
            pooled = run_resnet(tower, some.pixels)
            end = len(places) + len(some.places)
            if end > len(scalars):  # as many as are to come, at once: parts to be joined would need the memory twice
                scalars.resize_(max(end, expected), *scalars.shape[1:])
            torch.bmm(pooled.attention, pooled.tokens.float(), out=scalars[len(places) : end])
            rows.append(pooled.embedding.float())
            places += some.places
    scalars.resize_(len(places), *scalars.shape[1:])
    embedding = torch.cat(rows)
    if places != sorted(places):
        order = torch.tensor(places).argsort().to(tower.device)
        scalars, embedding = scalars[order], embedding[order]
    return NeuronHeads(scalars, embedding, tower)


def written_by_pairs(tower: ResNet, unit: Float[Tensor, "text embed"]) -> Float[Tensor, "head neuron text"]:
    """Compute D · direction of every pair and direction: texts are carried back, [head, neuron, embed] is never built."""
    rows = []
    for head in range(tower.heads):
        value, out = _weights(tower, head)
        rows.append(value.T @ (out.T @ unit.T))
    return torch.stack(rows)


def direction_lengths(tower: ResNet) -> Float[Tensor, "head neuron"]:
    """Return ‖D‖ of every pair, head by head: ‖W_c w‖² = wᵀ (W_cᵀ W_c) w."""
    rows = []
    for head in range(tower.heads):
        value, out = _weights(tower, head)
        rows.append((value * (out.T @ out @ value)).sum(0).clamp_min(0).sqrt())
    return torch.stack(rows)


def _weights(tower: ResNet, head: int) -> tuple[Float[Tensor, "d neuron"], Float[Tensor, "embed d"]]:
    """Return W_V^h and W_c^h of one head."""
    rows = slice(head * tower.d, (head + 1) * tower.d)
    return tower.pool.value.weight[rows].float(), tower.pool.out.weight[:, rows].float()
