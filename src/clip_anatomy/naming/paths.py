"""`paths`: what parts of a model do through later heads, the strongest first, in words (second order).

Neurons of an MLP, whole MLPs or heads are ranked by how much what they write through all later heads moves the embedding from image to
image; each has a principal direction, its words (a sparse sum of texts), and the heads it goes through. Source: Gandelsman, Efros,
Steinhardt, "Interpreting the Second-Order Effects of Neurons in CLIP" (ICLR 2025), §4 and §5; formulas in `split/second_order.py`. Of a
CLIP-ResNet the pairs (neuron of the last stage, head of the attention pool) are ranked, which write along one direction each (`split/neuron_heads.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from clip_anatomy.data.picture_batches import Failed, NamedPicture, Pictures, picture_batches
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.concepts import concepts
from clip_anatomy.naming.pool import Pool
from clip_anatomy.number_ranges import whole, within
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.neuron_heads import NeuronHeads, direction_lengths, neuron_heads
from clip_anatomy.split.second_order import SecondOrder, Source, principal_of, second_order
from clip_anatomy.split.tokens import unit_texts
from clip_anatomy.store.manifest import layers_of
from clip_anatomy.towers.ablated_writes import check_rerun
from clip_anatomy.towers.resnet import ResNet

__all__ = ["PathSource", "Paths", "paths"]

SCHEMA = "clip-anatomy/paths/1"
Part = Literal["neurons", "heads", "mlps"]
PARTS: tuple[Part, ...] = get_args(Part)
SHOWN = 3  # pictures, and later heads, of a row


@dataclass(frozen=True)
class PathSource:
    """One source, and what it does through later heads.

    Attributes:
        name: "neuron 4.407", "head 4.2", "MLP 4"; of a CLIP-ResNet "neuron 407 × head 3".
        strength: √ mean over images of ‖effect − mean effect‖², in lengths of the embedding.
        through: the same, head by head; 0 for heads that are not later. Of a CLIP-ResNet: of this neuron, through every head.
        share: of the effect's variance along `direction`.
        direction: along which the effect varies most, a unit vector.
        along: each image's effect along it.
        words: texts whose sum it is, with weights.
        explained: share of the direction that they explain.
        toward: mean effect on the cosine with each text that was asked for.
    """

    name: str
    strength: float
    through: Float[Tensor, "layer head"]
    share: float
    direction: Float64[Tensor, " embed"] = field(repr=False)
    along: Float64[Tensor, " image"] = field(repr=False)
    words: tuple[tuple[str, float], ...]
    explained: float
    toward: tuple[float, ...] = ()

    @property
    def heads(self) -> list[tuple[int, int, float]]:
        """Layer, head and strength of the paths, the strongest first."""
        order = self.through.flatten().argsort(descending=True).tolist()
        pairs = (divmod(at, self.through.shape[1]) for at in order)
        return [(layer, head, float(self.through[layer, head])) for layer, head in pairs]


@public
@dataclass(frozen=True, repr=False)
class Paths(Result):
    """Hold what parts do through later heads, the strongest first.

    Attributes:
        sources: the strongest ones.
        ranked: how many were ranked.
        median: strength of the one in the middle: what an ordinary source does.
        chance: what as many texts explain of a random direction, 0–1.
        names: of the images.
        texts: what `toward` is about.
        pictures: the originals, if they were pictures.
        notes: what a reader must know.
        failed: pictures that could not be used: name and error.
    """

    presenter: ClassVar[str] = "paths_figure"
    sources: tuple[PathSource, ...]
    ranked: int
    median: float
    chance: float
    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    pictures: tuple[NamedPicture, ...] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    failed: tuple[Failed, ...] = ()

    def __len__(self) -> int:
        """Count the sources."""
        return len(self.sources)

    def top_images(self, place: int) -> list[int]:
        """List the images in which a source does most along its direction."""
        return self.sources[within("place", place, len(self.sources))].along.argsort(descending=True)[:SHOWN].tolist()

    def to_dict(self) -> dict[str, Any]:
        """Return every source with its paths and words, ready for JSON."""
        rows = [
            {
                "name": one.name,
                "strength": round(one.strength, 6),
                "share": round(one.share, 6),
                "words": [{"text": text, "weight": round(weight, 6)} for text, weight in one.words],
                "explained": round(one.explained, 6),
                "through": [
                    {"head": f"{layer}.{head}", "strength": round(value, 6)}
                    for layer, head, value in one.heads
                    if value > 0
                ],
                "toward": dict(zip(self.texts, (round(value, 6) for value in one.toward), strict=True)),
                "images": [self.names[at] for at in self.top_images(place)],
            }
            for place, one in enumerate(self.sources)
        ]
        return {
            "schema": SCHEMA,
            "images": len(self.names),
            "ranked": self.ranked,
            "chance": {"strength": self.median, "explained": self.chance},
            "sources": rows,
            "notes": list(self.notes),
            "failed": [list(one) for one in self.failed],
        }  # fmt: skip

    def summary(self) -> str:
        """Return a table: source, strength, heads, words."""
        rows = [
            (
                one.name,
                f"{one.strength:.4f}",
                ", ".join(f"{layer}.{head}" for layer, head, _ in one.heads[:SHOWN]),
                f"{one.share:.0%}",
                " + ".join(text for text, _ in one.words),
                f"{one.explained:.0%}",
                *(f"{value:+.4f}" for value in one.toward),
            )
            for one in self.sources
        ]
        title = (
            f"what they do through later heads, {len(self.names):,} images; strength: how far the effect varies, in lengths of the embedding "
            f"(the median of {self.ranked:,}: {self.median:.4f}); as many texts explain {self.chance:.0%} of a random direction"
        )
        head = ("source", ">strength", "through", ">along", "its direction in texts", ">explained")
        return text_table((*head, *(f">{text}" for text in self.texts)), rows, title=title)


@public
def paths(
    clip: Clip,
    images: Pictures,
    part: str = "neurons",
    *,
    layers: str | int | Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    pool: str | Path | Pool | None = None,
    top: int = 8,
    count: int = 3,
    released: bool = False,
    allow_urls: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Paths:
    """Rank what parts of a model do through later heads, and say it in words: path source → head → embedding (second order).

    Args:
        clip: an opened model: a transformer with a class token, or a CLIP-ResNet (pairs of neurons and heads of its pool).
        images: of any kind, two or more: a source is strong whose effect differs between them.
        part: "neurons" (of MLPs), "heads" or "mlps": what is ranked.
        layers: of the sources: "9", "8-10", "0,3", numbers; by default all but the last, which no head reads.
        texts: also how much each source moves the cosine with these, on average.
        pool: vocabulary of the words, as for `concepts`.
        top: how many sources.
        count: texts of each.
        released: normalise the vocabulary as the released code does, see `concepts`.
        allow_urls: fetch pictures given as http(s) addresses.
        skip_bad: report pictures that cannot be used in `failed`, instead of raising at the first.
        progress: told as it goes.

    Raises:
        BadSpec: an unknown part, no such layer, or the last one.
        BadInput: one image alone.
        UnsupportedModel: no class token, or a norm behind the heads.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = paths(ca.load("demo"), examples(), layers=4, top=2)
        >>> len(result), result.ranked, result.sources[0].strength > result.median
        (2, 768, True)
    """
    if part not in PARTS:
        raise BadSpec(f"part={part!r} is not known. Type one of: {', '.join(map(repr, PARTS))}")
    whole("top", top, 1, 1000)
    tell, failed, notes = progress or silent, list[Failed](), list[str]()
    resnet = isinstance(clip.vision, ResNet)
    if resnet and (part != "neurons" or layers is not None):
        raise BadSpec(
            "of a CLIP-ResNet the neurons of its last stage are ranked, with the heads of its pool: it has no other parts and layers. "
            "Leave part= and layers= away"
        )
    tower = clip.vision if resnet else check_rerun(clip.vision)
    read, known, images_read = list[Any](), list[NamedPicture](), 0
    for some in picture_batches(
        clip, images, allow_urls=allow_urls, failed=failed if skip_bad else None, notes=notes, progress=tell
    ):
        read.append(neuron_heads(clip, some.pixels) if resnet else some.pixels)
        known += some.pictures or ()
        images_read += len(some.places)
    unit = unit_texts(clip.encode_text(list(texts)), tower.embed).double().cpu() if texts else None
    if images_read < 2:
        raise BadInput("one image: a source is ranked by how its effect differs between images. Give two or more")
    if resnet:
        every, made = _ranked_pairs(read, unit, top)
    else:
        every, made = _ranked_parts(clip, torch.cat(read), part, layers, unit, top, tell)
    words = concepts(
        clip, pool=pool, directions=torch.stack([one.direction for one in made]), count=count, released=released
    )
    sources = tuple(
        replace(one, words=words.of(row), explained=float(words.explained[row])) for row, one in enumerate(made)
    )
    names = tuple(one.name for one in known) or tuple(f"image {at}" for at in range(images_read))
    return Paths(
        sources, len(every), float(every.median()), words.chance[0], names, tuple(texts or ()), tuple(known) or None, tuple(notes), tuple(failed)
    )  # fmt: skip


def _ranked_parts(  # noqa: PLR0917
    clip: Clip, pixels: Tensor, part: str, layers: str | int | Sequence[int] | None, unit: Tensor | None, top: int, tell: Progress,
) -> tuple[Float[Tensor, " source"], list[PathSource]]:  # fmt: skip
    """Return the strengths of all parts of a transformer's layers, and the strongest ones, without their words."""
    last = clip.image_tower.layers - 1
    wanted = tuple(range(last)) if layers is None else layers_of(layers, last + 1)
    if last in wanted:
        raise BadSpec(f"layer {last} is the last: no head reads it. Type layers='0-{last - 1}'")
    strengths = list[Tensor]()
    for done, at in enumerate(wanted):
        strengths.append(_strengths(second_order(clip, pixels, at, source=_source(part)), part))
        tell("following paths", done + 1, len(wanted))
    every, each = torch.cat(strengths), len(strengths[0])
    chosen = every.argsort(descending=True, stable=True)[:top].tolist()
    made: dict[int, PathSource] = {}
    for at in sorted({wanted[flat // each] for flat in chosen}):
        followed = second_order(clip, pixels, at, source=_source(part))
        made |= {flat: _source_of(followed, part, flat % each, unit) for flat in chosen if wanted[flat // each] == at}
    return every, [made[flat] for flat in chosen]


def _ranked_pairs(
    read: Sequence[NeuronHeads], unit: Tensor | None, top: int
) -> tuple[Float[Tensor, " source"], list[PathSource]]:
    """Do the same for the (head, neuron) pairs of a CLIP-ResNet: one number an image each, in lengths of the embedding."""
    lengths = direction_lengths(read[0].tower)
    scalars = torch.cat([one.scalars / one.embedding.norm(dim=-1)[:, None, None] for one in read])
    strength = scalars.std(0, correction=0) * lengths
    chosen = strength.flatten().topk(min(top, strength.numel())).indices.tolist()
    pairs = [divmod(flat, strength.shape[1]) for flat in chosen]
    made = list[PathSource]()
    for (head, neuron), written in zip(pairs, read[0].directions(pairs).double().cpu(), strict=True):
        along = scalars[:, head, neuron].double().cpu() * written.norm()
        direction = written / written.norm()
        toward = () if unit is None else tuple((along.mean() * (unit @ direction)).tolist())
        name, through = f"neuron {neuron} × head {head}", strength[:, neuron].cpu()[None]
        made.append(PathSource(name, float(strength[head, neuron]), through, 1.0, direction, along, (), 0.0, toward))
    return strength.flatten(), made


def _source(part: str) -> Source:
    return "heads" if part == "heads" else "neurons"


def _strengths(followed: SecondOrder, part: str) -> Float[Tensor, " source"]:
    return _spread(followed.total().sum(0))[None] if part == "mlps" else followed.strengths()


def _spread(effects: Float[Tensor, "*path image embed"]) -> Float[Tensor, "*path"]:
    """Return √ mean over images of ‖effect − mean effect‖²."""
    return (effects - effects.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt()


def _source_of(followed: SecondOrder, part: str, number: int, unit: Tensor | None) -> PathSource:
    """Describe one source, without its words."""
    tower = followed.tower
    if part == "mlps":
        total = followed.total()
        effects, by_path, name = total.sum(0), _spread(total), f"MLP {followed.layer}"
        direction, share = principal_of(effects)
    else:
        effects, by_path = followed.effects(number), followed.path_strengths(number)
        name = f"{part.removesuffix('s')} {followed.layer}.{number}"
        direction, share = followed.principal(number)
    through = torch.zeros(tower.layers, tower.heads)
    for pair, value in zip(followed.heads, by_path.tolist(), strict=True):
        through[pair] = value
    effects = effects.double().cpu()
    direction = direction.cpu()
    toward = () if unit is None else tuple((effects @ unit.T).mean(0).tolist())
    return PathSource(name, float(_spread(effects)), through, share, direction, effects @ direction, (), 0.0, toward)
