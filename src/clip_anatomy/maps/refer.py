"""`refer`: which region of a picture a phrase names.

The exact split of the picture's cosine is restricted to each region m, of whose patches m covers the shares w. What all heads read from a patch is
a vector c of the joint space, so all regions come from one forward,

    v_m = Σ_patch w (c_patch − c̄) / √(Σ_patch w)        c̄: mean over the picture's patches

(what lies in m above the mean of the picture, by its standard error: neither a crumb nor the whole picture wins), and the phrase's words are read by
the exact split of the text tower: the direction of "star" in "a star left of a red circle" is what the text tower's heads read from that word, there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64
from torch import Tensor

from clip_anatomy.data.picture_batches import NamedPicture, PictureBatch, picture_batches
from clip_anatomy.data.typed_pictures import named_picture
from clip_anatomy.errors import BadImage, BadSpec, BadText
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.loading.typed_texts import checked_texts, shorten
from clip_anatomy.maps.coco_masks import run_lengths
from clip_anatomy.maps.contrast import NOTHING
from clip_anatomy.maps.global_local import global_local
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.phrases import ReadPhrase, read_phrase
from clip_anatomy.maps.regions import Regions, coverage, proposals, read_masks
from clip_anatomy.maps.word_maps import as_typed, word_directions
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.tokens import token_map

__all__ = ["METHODS", "SCHEMA", "Referred", "checked_method", "refer"]

SCHEMA = "clip-anatomy/refer/1"
METHODS = {
    "split": "the exact split restricted to each region: one forward for all of them",
    "global-local": "each region in its picture and cut out (Yu et al. 2023): two forwards a region",
}
SHOWN = 10
PLACE = 1.0  # what half a picture's side counts, in standard deviations of the scores of its regions
APART = 0.1  # how far beside another region's middle counts, in half sides
NOWHERE = -3.0  # the score of a region with none beside it


@public
@dataclass(frozen=True, repr=False)
class Referred(Result):
    """Regions of a picture, and how well a phrase fits each.

    Attributes:
        phrase: the text.
        picture: the original.
        masks: the regions, in pixels of the original, the best first.
        names: what each is called.
        scores: how well the phrase fits each, in standard deviations over the regions: comparable within this picture only.
        by_word: how each word's own score differs from its mean over the regions: over the words that name the thing they sum to its standard score, over
            those that name the other thing to that. Without columns for "global-local".
        words: of the phrase.
        read: which of the words name the thing, which its place, which another thing.
        method: of METHODS.
        model: its name.
        notes: what a reader must know.
    """

    presenter: ClassVar[str] = "refer_folder"

    phrase: str
    picture: NamedPicture
    masks: Bool[np.ndarray, "mask row col"] = field(repr=False)
    names: tuple[str, ...]
    scores: Float64[Tensor, " mask"]
    by_word: Float64[Tensor, "mask word"]
    words: tuple[str, ...]
    read: ReadPhrase
    method: str
    model: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of regions."""
        return len(self.masks)

    @property
    def mask(self) -> Bool[np.ndarray, "row col"]:
        """The region that the phrase names."""
        return self.masks[0]

    def to_dict(self) -> dict[str, Any]:
        """Return scores and masks (COCO's run lengths), ready for JSON."""
        rows = [
            {
                "name": name,
                "score": round(float(score), 6),
                "by_word": [round(one, 6) for one in words.tolist()],
                "area": int(mask.sum()),
                "segmentation": run_lengths(mask),
            }
            for name, score, words, mask in zip(self.names, self.scores, self.by_word, self.masks, strict=True)
        ]
        read = {
            "thing": [self.words[at] for at in self.read.thing],
            "places": [list(one) for one in self.read.places],
            "other": [self.words[at] for at in self.read.other],
        }
        return {
            "schema": SCHEMA, "phrase": self.phrase, "picture": self.picture.name, "model": self.model, "method": self.method,
            "words": list(self.words), "read": read, "regions": rows, "notes": list(self.notes),
        }  # fmt: skip

    def summary(self) -> str:
        """Return the best regions, with what each word adds."""
        split = self.by_word.shape[1] > 0
        words = [f">{shorten(word, 14)}" for word in self.words] if split else []
        rows: list[list[str]] = []
        for at in range(min(SHOWN, len(self))):
            each = [f"{one:+.2f}" for one in self.by_word[at].tolist()]
            share = float(self.masks[at].mean())
            rows.append([str(at + 1), self.names[at], f"{share:.1%}", f"{float(self.scores[at]):+.2f}", *each])
        more = f"\n… and {len(self) - SHOWN:,} more regions" if len(self) > SHOWN else ""
        title = f"“{shorten(self.phrase)}” in {shorten(self.picture.name, 40)}, of {len(self)} regions"
        table = text_table(["", "region", ">of the picture", ">score", *words], rows, title=title, wide=140)
        each = ", each word's part of it" if split else ""
        return f"{table}{more}\nscore: above the mean of these regions, in their standard deviations{each}"


@public
def refer(
    clip: Clip | ModelSource,
    image: ImageLike | NamedPicture,
    phrase: str,
    masks: Regions | None = None,
    *,
    method: str = "split",
    places: bool = True,
    weigh: bool = False,
    allow_urls: bool = False,
) -> Referred:
    """Find the region of a picture that a phrase names.

    Args:
        clip: an opened model, or what `load` opens.
        image: a path, a PIL image, an array.
        phrase: "the dog left of the tree".
        masks: regions to choose from: an array [mask, row, col], a folder of PNGs, or a JSON file in COCO's format or as SAM's generator writes
            it. By default proposals from our own maps of the phrase and of its words.
        method: "split", or "global-local": crop-and-mask CLIP, two forwards a region, to compare with.
        places: answer words of place (left, right, above, below, of the picture or of another thing) by where the regions lie, by rules for
            English; CLIP hardly reads them.
        weigh: of "split": count each word by its share of the phrase's own embedding, ⟨t_word, t⟩ of the text tower's split, besides; by default all
            count alike, so that scores are shares of the cosine.
        allow_urls: fetch an http(s) address.

    Returns:
        Referred: `.mask`, and all regions with their scores, the best first.

    Raises:
        BadImage: the picture cannot be used.
        BadText: a phrase without a word.
        BadInput: masks of another size, or none.
        BadSpec: an unknown method.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = ca.refer("demo", examples()[0], "a bird")
        >>> result.mask.shape, len(result.words)
        ((64, 64), 2)
    """
    clip, method = as_clip(clip), checked_method(method)
    if not phrase.strip():
        raise BadText("the phrase holds no word. Type: refer(clip, 'photo.jpg', 'the dog left of the tree')")
    typed = checked_texts([phrase], clip.tokenizer)[0]
    words, parts, unit = _directions(clip, typed.text)
    batch = _one_picture(clip, image, allow_urls=allow_urls)
    assert batch.pictures is not None
    named = batch.pictures[0]
    regions, names, cover = _regions(clip, batch, torch.cat([unit, parts]), masks)
    if weigh:
        parts = parts * (parts @ unit[0]).clamp_min(0)[:, None]
    typed_words = as_typed(words)
    read = read_phrase(typed_words) if places else ReadPhrase(tuple(range(len(words))))
    if method == "split":
        by_word = _region_vectors(clip, batch, cover) @ parts.T
        thing, other = (by_word[:, list(some)].sum(1) for some in (read.thing, read.other))
    else:
        vectors = global_local(clip, named.read(), batch.pixels, regions, cover)
        thing, other = (vectors @ _texts(clip, typed.text, typed_words, read).T).T
        by_word = vectors.new_zeros(len(vectors), 0)
    by_word = by_word - by_word.mean(0)
    beside = [at in read.other for at in range(by_word.shape[1])]
    by_word = torch.where(torch.tensor(beside, dtype=torch.bool), by_word / _spread(other), by_word / _spread(thing))
    scores = _standard(thing) + _place(_standard(other), read, _centres(regions))
    order = scores.argsort(descending=True, stable=True)
    at = order.tolist()
    return Referred(
        typed.text, named, regions[order.numpy()], tuple(names[k] for k in at), scores[order], by_word[order], words, read, method, clip.name,
        typed.notes,
    )  # fmt: skip


def checked_method(method: str) -> str:
    """Return a method of METHODS.

    Raises:
        BadSpec: it is none.
    """
    if method not in METHODS:
        raise BadSpec(f"method {method!r} is not known. Type one of: {', '.join(METHODS)}")
    return method


def _one_picture(clip: Clip, image: ImageLike | NamedPicture, *, allow_urls: bool) -> PictureBatch:
    """Read one picture, all of it."""
    if isinstance(image, Tensor):
        raise BadImage("a preprocessed tensor has no pixels to cut masks of. Type: refer(clip, 'photo.jpg', 'a dog')")
    batches = list(picture_batches(clip, [named_picture(0, image)], "whole", allow_urls=allow_urls))
    if len(batches) != 1 or len(batches[0].pixels) != 1:
        raise BadImage("one picture at a time was expected. Type: refer(clip, 'photo.jpg', 'a dog')")
    return batches[0]


def _regions(
    clip: Clip, batch: PictureBatch, directions: Float64[Tensor, "text embed"], masks: Regions | None
) -> tuple[Bool[np.ndarray, "mask row col"], tuple[str, ...], Float64[Tensor, "mask token"]]:
    """Return the regions to choose from, their names, and the share of each patch that they cover; without those that the model does not see."""
    assert batch.pictures is not None
    assert batch.geometries is not None
    named, where = batch.pictures[0], batch.geometries[0]
    if masks is None:
        maps = heatmap(clip, batch, directions.to(clip.device), "decomposition", against=NOTHING)
        regions = proposals(maps, named.read())
        names = tuple(f"proposal {at}" for at in range(len(regions)))
    else:
        regions, names = read_masks(masks, named.name, where.picture)
    cover = coverage(regions, where, patch_grid(batch.pixels.shape, clip.patch))
    covered = np.flatnonzero(cover.any(1).numpy()).tolist()
    if not covered:
        raise BadImage(f"the model sees none of the {len(regions)} masks of {named.name}. Type masks of another place")
    return regions[covered], tuple(names[at] for at in covered), cover[covered]


def _directions(
    clip: Clip, phrase: str
) -> tuple[tuple[str, ...], Float64[Tensor, "word embed"], Float64[Tensor, "1 embed"]]:
    """Split a phrase into its words; where the text tower or its tokenizer cannot be, the phrase is one word."""
    tells = hasattr(clip.tokenizer, "positions") or hasattr(clip.tokenizer, "pieces")
    if not tells or not clip.text_tower.layers:
        unit = F.normalize(clip.encode_text([phrase]).double().cpu(), dim=-1)
        return (phrase,), unit, unit
    words, parts, unit, _ = word_directions(clip, phrase)
    if not words:
        return (phrase,), unit.double().cpu(), unit.double().cpu()
    return words, parts.double().cpu(), unit.double().cpu()


def _region_vectors(
    clip: Clip, batch: PictureBatch, cover: Float64[Tensor, "mask token"]
) -> Float64[Tensor, "mask embed"]:
    """Restrict the exact split to regions: the sum over each region above the picture's mean, over the root of its area."""
    tower = clip.vision
    directions = torch.eye(tower.embed, device=clip.device)
    tokens = token_map(tower, batch.pixels, directions)[0, tower.own :].double().cpu()
    return cover @ (tokens - tokens.mean(0)) / cover.sum(1, keepdim=True).sqrt()


def _texts(clip: Clip, phrase: str, words: Sequence[str], read: ReadPhrase) -> Float64[Tensor, "two embed"]:
    """Embed what Global–Local CLIP compares regions with: half the phrase and half what names the thing; and the other thing, zero if there is none."""
    spoken = [" ".join(words[at] for at in some) for some in (read.thing, read.other)]
    whole, thing, other = F.normalize(
        clip.encode_text([phrase, *(one or phrase for one in spoken)]).double().cpu(), dim=-1
    )
    return torch.stack(
        [F.normalize(0.5 * whole + 0.5 * thing, dim=-1), other if read.other else torch.zeros_like(other)]
    )


def _spread(scores: Float64[Tensor, " mask"]) -> Float64[Tensor, ""]:
    return scores.std(unbiased=False).clamp_min(1e-9)


def _standard(scores: Float64[Tensor, " mask"]) -> Float64[Tensor, " mask"]:
    """Measure scores in their standard deviations over the regions, from their mean."""
    return (scores - scores.mean()) / _spread(scores)


def _centres(masks: Bool[np.ndarray, "mask row col"]) -> Float64[Tensor, "mask 2"]:
    """Return (row, col) of the middle of each mask, from −1 (first) to 1 (last)."""
    centres = [
        [float(2 * at.mean() / size - 1) for at, size in zip(np.nonzero(one), one.shape, strict=True)] for one in masks
    ]
    return torch.tensor(centres, dtype=torch.float64)


def _place(
    other: Float64[Tensor, " mask"], read: ReadPhrase, at: Float64[Tensor, "mask 2"]
) -> Float64[Tensor, " mask"]:
    """Say how well each region lies where the phrase says: of the picture, or beside the best other region that it can be beside."""
    ahead = (
        torch.stack([sign * at[:, axis] for axis, sign in read.places]).sum(0) if read.places else at.new_zeros(len(at))
    )
    if not read.other:
        return PLACE * ahead
    beside = ahead[:, None] - ahead[None] > APART  # [mask, other mask]
    best = torch.where(beside, other[None], torch.full_like(other, NOWHERE)[None]).amax(1)
    return PLACE * best
