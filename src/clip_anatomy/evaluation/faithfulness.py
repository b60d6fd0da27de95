"""Does the model need what the map points at? Deletion and insertion (Petsiuk et al. 2018, RISE, §4.2), plain or by ROAD.

Patches are put in the order of the map, highest first. Deletion takes them out in that order and watches the score fall: the
smaller the area under the curve, the better the order. Insertion starts from nothing and puts them back: the larger, the
better. Both stand beside random orders and the order of the plain cosine (`raw`), because areas mean nothing alone. How a patch
is taken out matters more than the map does: see `occlusion`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from clip_anatomy.data.picture_batches import PictureBatch, picture_batches
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.foreground import aligned_mask
from clip_anatomy.evaluation.metrics import Pointing, points_at
from clip_anatomy.evaluation.occlusion import OCCLUSIONS, occlude
from clip_anatomy.evaluation.sanity_result import counted
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.images.input_size import Size
from clip_anatomy.loading.clip import Clip, Images
from clip_anatomy.maps.dense_attention import DenseAttention
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["Faithfulness", "curves", "faithfulness"]

BATCH = 16


@public
@dataclass(frozen=True, repr=False)
class Faithfulness(Result):
    """Curves of pictures and texts, by order of the patches.

    Attributes:
        method: of `heatmap`.
        model: its name.
        occlusion: how patches were taken out.
        score: what is watched: the cosine with the text, or its probability among the texts.
        orders: "map", "raw cosine" (left out where that is the map) and "random".
        pairs: (image, text) of each curve.
        texts: that the pairs number.
        share: of the patches taken out (deletion) or put back (insertion) at each step.
        deletion: score while patches are taken out.
        insertion: score while they are put back.
        pointing: hits of the map's highest patch, None without masks.
    """

    presenter: ClassVar[str] = "figures_folder"
    method: str
    model: str
    occlusion: str
    score: str
    orders: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    texts: tuple[str, ...]
    share: Float[Tensor, " step"]
    deletion: Float[Tensor, "order pair step"]
    insertion: Float[Tensor, "order pair step"]
    pointing: Pointing | None = None

    @property
    def deletion_area(self) -> Float[Tensor, "order pair"]:
        """Area under each deletion curve: small is good."""
        return torch.trapezoid(self.deletion, self.share)

    @property
    def insertion_area(self) -> Float[Tensor, "order pair"]:
        """Area under each insertion curve: large is good."""
        return torch.trapezoid(self.insertion, self.share)

    def gain(self, over: str = "random") -> float:
        """Tell how much further apart insertion and deletion are for the map than for another order, mean over pairs.

        Positive: the map knows more about what the model needs than that order does.
        """
        if over not in self.orders:
            raise BadSpec(f"there is no order {over!r}. Type one of: {', '.join(self.orders)}")
        apart = self.insertion_area - self.deletion_area
        return float((apart[0] - apart[self.orders.index(over)]).mean())

    def summary(self) -> str:
        """Return the lines for people."""
        pictures = len({image for image, _ in self.pairs})
        lines = [
            f"Faithfulness of {self.method}: area under the {self.score} while patches go (occlusion: {self.occlusion}), "
            f"{counted(len(self.pairs), 'map')} of {counted(pictures, 'picture')}",
            f"  {'order of patches':<18}{'deletion ↓':>12}{'insertion ↑':>13}{'difference ↑':>14}",
        ]
        deleted, inserted = self.deletion_area.mean(1), self.insertion_area.mean(1)
        for order, low, high in zip(self.orders, deleted.tolist(), inserted.tolist(), strict=True):
            lines.append(f"  {order:<18}{low:>12.3f}{high:>13.3f}{high - low:>+14.3f}")
        apart = self.insertion_area - self.deletion_area
        wins = float((apart[0] > apart[-1]).double().mean())
        good = "yes" if self.gain() > 0 and wins > 0.5 else "no"
        lines.append(
            f"  beats a random order: {good} ({self.gain():+.3f} on the mean, better in {wins:.0%} of the maps)"
        )
        if self.pointing is not None:
            lines.append(
                f"  pointing game: {self.pointing.rate:.0%} of {self.pointing.total} highest patches lie on the object"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        areas = {"deletion": self.deletion_area, "insertion": self.insertion_area}
        content: dict[str, Any] = {
            "method": self.method,
            "model": self.model,
            "occlusion": self.occlusion,
            "score": self.score,
            "texts": list(self.texts),
            "pairs": [list(pair) for pair in self.pairs],
            "share": self.share.tolist(),
            "gain": self.gain(),
            "pointing": None,
            "orders": {
                order: {
                    **{f"{name}_area": float(area[i].mean()) for name, area in areas.items()},
                    "deletion": self.deletion[i].tolist(),
                    "insertion": self.insertion[i].tolist(),
                }
                for i, order in enumerate(self.orders)
            },
        }
        if self.pointing is not None:
            content["pointing"] = {"hits": self.pointing.hits, "total": self.pointing.total}
        return content


@public
def faithfulness(
    clip: Clip,
    images: Images | Tensor,
    texts: Sequence[str] | Tensor,
    method: str | DenseAttention = "decomposition",
    *,
    occlusion: str = "road",
    score: str | None = None,
    steps: int = 10,
    pairs: Sequence[tuple[int, int]] | None = None,
    masks: Mapping[tuple[int, int], Any] | None = None,
    draws: int = 3,
    seed: int = 0,
    size: Size = None,
    progress: Progress | None = None,
    **options: Any,
) -> Faithfulness:
    """Take patches out and put them back in the order of a map, beside random orders and the order of the plain cosine.

    All steps of all orders of one picture and text run through the model as one batch.

    Args:
        clip: an opened model.
        images: as for `heatmap`.
        texts: as for `heatmap`.
        method: of `heatmap`.
        occlusion: "road" (imputed from the neighbours), or "mean" (the picture's mean colour).
        score: "cosine" with the text, or "probability" among the texts; by default the latter where there are several.
        steps: of each curve; fewer where there are fewer patches.
        pairs: (image, text) of each curve; by default the pairs of `masks`, or every picture with the text that the model finds nearest.
        masks: (image, text) → where the text is in the picture: an array [row, col] of True or 1, at the size of the original
            picture, of the model's input, or of the grid of patches.
        draws: random orders, averaged.
        seed: of them and of ROAD's noise.
        size: as for `heatmap`.
        progress: told how many pictures are done.
        **options: of `heatmap` and of the method.

    Returns:
        Curves, areas and the pointing game.

    Raises:
        BadSpec, BadText, BadImage, UnsupportedModel: as `heatmap`; a pair that does not exist; a mask of another size.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = faithfulness(ca.load("demo"), examples()[1:2], ["a bird", "a square"], occlusion="mean")
        >>> result.deletion.shape, result.orders
        (torch.Size([3, 1, 11]), ('map', 'raw cosine', 'random'))
    """
    _check(steps, draws, score, occlusion)
    embedded = Texts.of(clip, texts, options.pop("templates", None))
    unit = F.normalize(embedded.embeddings, dim=-1)
    watched = score or ("probability" if len(embedded) > 1 else "cosine")
    wanted = pairs if pairs is not None else None if masks is None else list(masks)
    orders = ("map", "random") if method == "raw" else ("map", "raw cosine", "random")
    generator = torch.Generator().manual_seed(seed)
    measured: list[tuple[tuple[int, int], Tensor, Tensor]] = []
    tell = progress or silent
    label, pointing, done, share = "", Pointing(), 0, torch.zeros(0)
    for batch in picture_batches(clip, images, size, BATCH, own=options.get("window") is not None):
        maps = heatmap(clip, batch.pixels, embedded, method, **options)
        ranked, label = [maps.values], maps.method
        if method != "raw":
            ranked.append(heatmap(clip, batch.pixels, embedded, "raw").values)
        nearest = (clip.encode_image(batch.pixels) @ unit.T).argmax(1).tolist()
        for at, image in enumerate(batch.places):
            tell("taking patches out and putting them back", done, None)
            done += 1
            for pair in [(image, nearest[at])] if wanted is None else [pair for pair in wanted if pair[0] == image]:
                text = pair[1]
                if not 0 <= text < len(embedded):
                    raise BadSpec(f"pair {pair}: there are texts 0 to {len(embedded) - 1}. Type: pairs=[({image}, 0)]")
                map_ = maps.values[at, text]
                order = [each[at, text].flatten().argsort(descending=True, stable=True).cpu() for each in ranked]
                order += [torch.randperm(map_.numel(), generator=generator) for _ in range(draws)]
                share, deletion, insertion = curves(
                    clip, batch.pixels[at], embedded.embeddings, text, torch.stack(order),
                    occlusion=occlusion, score=watched, steps=steps, seed=seed,
                )  # fmt: skip
                measured.append((pair, _random_averaged(deletion, draws), _random_averaged(insertion, draws)))
                if masks is not None and pair in masks:
                    mask = _patch_mask(masks[pair], batch, at, (map_.shape[0], map_.shape[1]))
                    pointing = pointing.add(points_at(map_.cpu(), mask))
    if wanted is not None and (left := [pair for pair in wanted if pair not in {one[0] for one in measured}]):
        raise BadSpec(f"pair {left[0]}: there are pictures 0 to {done - 1}. Type: pairs=[(0, 0)]")
    if not measured:
        raise BadSpec("pairs=[] leaves nothing to measure. Type: pairs=[(0, 0)], or leave it out")
    measured_pairs, deletions, insertions = zip(*measured, strict=True)
    return Faithfulness(
        label, clip.name, occlusion, watched, orders, measured_pairs, embedded.names,
        share, torch.stack(deletions, 1), torch.stack(insertions, 1), pointing if masks is not None else None,
    )  # fmt: skip


def _check(steps: int, draws: int, score: str | None, occlusion: str) -> None:
    if steps < 1 or draws < 1:
        raise BadSpec(f"steps={steps}, draws={draws}: 1 or more were expected. Type: steps=10, draws=3")
    if score not in (None, "cosine", "probability"):
        raise BadSpec(f"score {score!r} is not known. Type one of: cosine, probability")
    if occlusion not in OCCLUSIONS:
        raise BadSpec(f"occlusion {occlusion!r} is not known. Type one of: {', '.join(OCCLUSIONS)}")


def curves(
    clip: Clip,
    pixels: Float[Tensor, "3 row col"],
    texts: Float[Tensor, "text embed"],
    text: int,
    orders: Int[Tensor, "order patch"],
    *,
    occlusion: str = "road",
    score: str = "cosine",
    steps: int = 10,
    seed: int = 0,
) -> tuple[Float[Tensor, " step"], Float[Tensor, "order step"], Float[Tensor, "order step"]]:
    """Measure deletion and insertion of one picture in several orders, all in one batch.

    Args:
        clip: an opened model.
        pixels: preprocessed.
        texts: embeddings of any length.
        text: which of them is watched.
        orders: the patches, most important first.
        occlusion: see `occlusion.OCCLUSIONS`.
        score: "cosine" or "probability".
        steps: between nothing and everything; fewer where there are fewer patches.
        seed: of ROAD's noise.

    Returns:
        Shares of the patches, deletion, insertion.
    """
    patches = orders.shape[1]
    counts = torch.linspace(0, patches, min(steps, patches) + 1).round().long()
    rank = torch.empty_like(orders).scatter_(1, orders, torch.arange(patches).expand_as(orders))
    gone = rank[:, None] < counts[:, None]  # [order, step, patch]
    removed = torch.stack([gone, ~gone])  # deletion: the first k; insertion: all but the first k
    rows, cols = patch_grid(pixels.shape, clip.patch)
    cells = removed.flatten(0, 2).view(-1, rows, cols).to(pixels.device)
    whole = cells.repeat_interleave(clip.patch[0], 1).repeat_interleave(clip.patch[1], 2)
    embeddings = clip.encode_image(occlude(pixels.float(), whole, occlusion, seed=seed))
    cosine = F.normalize(embeddings, dim=-1) @ F.normalize(texts.float(), dim=-1).T
    scored = cosine if score == "cosine" else clip.probabilities(cosine)
    deletion, insertion = scored[:, text].cpu().view(2, *gone.shape[:2])
    return counts.float() / patches, deletion, insertion


def _random_averaged(curves_: Float[Tensor, "order step"], draws: int) -> Float[Tensor, "_order step"]:
    return torch.cat([curves_[:-draws], curves_[-draws:].mean(0, keepdim=True)])


def _patch_mask(given: Any, batch: PictureBatch, at: int, grid: tuple[int, int]) -> Tensor:
    mask = torch.as_tensor(given).cpu() == 1
    shape, input_size = tuple(mask.shape), tuple(batch.pixels.shape[2:])
    where = None if batch.geometries is None else batch.geometries[at]
    if mask.dim() == 2 and where is not None and shape == where.picture and shape != grid:
        mask = aligned_mask(mask.long().numpy(), where) == 1
    elif mask.dim() != 2 or shape not in (grid, input_size):
        sizes = [grid, input_size, *([] if where is None else [where.picture])]
        raise BadInput(
            f"a mask of {list(shape)} fits nothing. Type one of {' or '.join(str(size) for size in sizes)} pixels"
        )
    return F.adaptive_avg_pool2d(mask[None].float(), grid)[0] >= 0.5
