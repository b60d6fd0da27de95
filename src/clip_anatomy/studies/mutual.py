"""What a picture and a label both know: which named details they share, which only one of them has.

After Sammani & Deligiannis, "Interpreting and Analysing CLIP's Zero-Shot Image Classification via Mutual Knowledge" (NeurIPS 2024): the
picture's details are texts of a pool named part by part, a label's details are the texts nearest to it. Here parts are read off
the exact split (one forward) unless circles are asked for, and what the two lists share is measured as `ListOverlap` does. As published, texts that
are near to all parts can be shared out between them (`shared_out`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.data.picture_batches import NamedPicture
from clip_anatomy.data.typed_pictures import is_address
from clip_anatomy.errors import BadSpec, BadText, UnsupportedModel
from clip_anatomy.images.decode import ImageLike
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.loading.typed_texts import read_templates, shorten
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.pool import Pool
from clip_anatomy.number_ranges import whole
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.pair_sides import Side, read_side
from clip_anatomy.split.picture_explanation import signed
from clip_anatomy.studies.overlap import ListOverlap, deletion_curve
from clip_anatomy.studies.picture_parts import circled, clustered, shared_out
from clip_anatomy.studies.store_columns import classes_of

__all__ = [
    "Detail",
    "LabelDetails",
    "Mutual",
    "mutual",
    "named_parts",
    "overlap_in_words",
    "without_classes",
]

How = Literal["split", "circle"]
Measure = Literal["information", "released"]
SCHEMA = "clip-anatomy/mutual/1"
SHOWN = 8  # details of a list in the summary
SMALL = frozenset(["a", "an", "the", "of", "in", "on", "at", "with", "and", "photo", "picture", "image"])


@dataclass(frozen=True)
class Detail:
    """One text of the pool that the picture shows, or a label expects.

    Attributes:
        text: of the pool.
        parts: of the picture that show it, numbered from 0; empty where none does.
        relevance: of those parts: their vectors times the text, less the mean over the pool.
        place: 1 for the text nearest to the label; 0 where it is not expected.
    """

    text: str
    parts: tuple[int, ...]
    relevance: float
    place: int


@dataclass(frozen=True)
class LabelDetails:
    """A label against the picture.

    Attributes:
        label: the class.
        cosine: of picture and label.
        shared: details of both, the nearest to the label first.
        only_label: what only the label expects, likewise.
        only_picture: what only the picture shows, the most relevant first.
        overlap: how many they share, measured.
        curve: the measure with 0, 1, 2, … details of the picture taken away.
    """

    label: str
    cosine: float
    shared: tuple[Detail, ...]
    only_label: tuple[Detail, ...]
    only_picture: tuple[Detail, ...]
    overlap: ListOverlap
    curve: tuple[float, ...]

    @property
    def area(self) -> float:
        """Mean of the curve."""
        return sum(self.curve) / len(self.curve)


@public
@dataclass(frozen=True, repr=False)
class Mutual(Result):
    """Hold what a picture shares with its best and its second-best label.

    Attributes:
        name: of the picture.
        labels: the best class, then the second.
        details: what the picture shows, the most relevant first.
        parts: which part each patch belongs to, numbered from 0.
        how: "split" or "circle".
        measure: of the curves: "information" or "released".
        picture: the original, if there is one.
        geometry: where the patches lie in it.
        notes: what a reader must know.
    """

    presenter: ClassVar[str] = "mutual_figure"

    name: str
    labels: tuple[LabelDetails, LabelDetails]
    details: tuple[Detail, ...]
    parts: Int64[Tensor, "row col"]
    how: str
    measure: str
    picture: NamedPicture | None = field(default=None, repr=False)
    geometry: Geometry | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return lists and measures of both labels, ready for JSON."""
        return {
            "schema": SCHEMA,
            "picture": self.name,
            "how": self.how,
            "parts": self.parts.tolist(),
            "details": [_detail(one) for one in self.details],
            "labels": [_label(one, self.measure) for one in self.labels],
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """Return the three lists of both labels side by side."""
        rows: list[tuple[str, ...]] = []
        for what in ("shared", "only_label", "only_picture"):
            lists = [[one.text for one in getattr(label, what)] for label in self.labels]
            for at in range(max(1, min(SHOWN, max(map(len, lists))))):
                cells = [some[at] if at < min(len(some), SHOWN) else "" for some in lists]
                rows.append((WORDS[what] if at == 0 else "", *cells))
            if any(len(some) > SHOWN for some in lists):
                rows.append(("", *(f"and {len(some) - SHOWN} more" if len(some) > SHOWN else "" for some in lists)))
        labels = [f"{one.label} {signed(one.cosine)}" for one in self.labels]
        title = f"{shorten(Path(self.name).name, 40)}: what the picture and a label both know"
        table = text_table(("", *labels), rows, title=title, groups=True)
        return "\n".join([table, *(f"{one.label}: {overlap_in_words(one, self.measure)}" for one in self.labels)])


WORDS = {"shared": "both", "only_label": "only the label", "only_picture": "only the picture"}


def overlap_in_words(label: LabelDetails, measure: str = "information") -> str:
    """Say what a label shares with the picture, measured, in one line."""
    it = label.overlap
    area = (
        f"area {label.area:.2f}"
        if measure == "information"
        else f"released score {it.released:.2f}, area {label.area:.2f}"
    )
    return (
        f"{it.shared} of {it.shown} details are among its {it.expected} (by chance {it.by_chance:.1f} of {it.pool}), p {it.p:.2g}, "
        f"information {it.information:.2f}, {area}"
    )


@public
def mutual(
    clip: Clip,
    image: ImageLike,
    classes: Sequence[str] | str,
    descriptors: "Sequence[str] | str | Path | Pool | None" = None,
    *,
    how: str = "split",
    parts: int = 5,
    details: int = 3,
    expected: int = 15,
    measure: str = "information",
    transport: int = 0,
    templates: Sequence[str] | str | None = None,
    allow_urls: bool = False,
    progress: Progress | None = None,
) -> Mutual:
    """Say which details a picture and its label share, which only the label expects, which only the picture shows.

    For the best and for the second-best class, so that a mistake is explained by what it shares and lacks.

    Args:
        clip: an opened model.
        image: one picture.
        classes: labels, "a, b, c", or a text file of one a line.
        descriptors: the pool of details: texts, "general", "world", a file of one a line, a pool; by default the general one (the demo
            model: the world's). Those that name a class are left out.
        how: "split": a part is what its patches wrote into the embedding, exact, one forward. "circle": as published, three forwards a part with a red
            ellipse around it.
        parts: of the picture.
        details: of each part.
        expected: details of each label: the nearest texts (the paper does not say how many).
        measure: of the deletion curve: "information", or "released": log N + log M + log k, as the released code has it, which is no mutual
            information.
        transport: name parts as published: of the texts among the so many nearest of every part (100 in the released code), shared out between the
            parts by optimal transport, so that two parts rarely get the same name. 0: each part by its own most relevant texts.
        templates: prompts of the classes, with one {} each, or "imagenet"; by default the labels as they are.
        allow_urls: fetch a picture given as an http(s) address.
        progress: told as it goes.

    Returns:
        Three lists for each of the two labels, their overlap beside chance, and the parts.

    Raises:
        BadImage: no picture, or more than one.
        BadInput: fewer than two classes.
        BadSpec: a way, a measure or a number that makes no sense.
        BadText: a pool without enough texts.
        UnsupportedModel: a tower whose patches have no shares of their own.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = ca.mutual(ca.load("demo"), examples()[0], "bird, fish, star, flower")
        >>> result.labels[0].label, result.labels[0].overlap.shown == len(result.details)
        ('bird', True)
    """
    _check(how, measure, parts=parts, details=details, expected=expected)
    whole("transport", transport, 0, 10_000)
    names = classes_of(classes)
    pool, notes = _details_of(clip, descriptors, names, max(expected, details))
    picture = Path(image) if isinstance(image, str) and not is_address(image) else image  # never a text
    side = read_side(clip, picture, allow_urls=allow_urls)
    if side.grid is None or not side.parts:
        raise UnsupportedModel(
            "no patch of this picture has a share of its own: the model's library runs its tower as one. Type explain, or another model"
        )
    texts = normalize(embed_texts(clip, pool, progress=progress or silent).double().cpu(), dim=-1)
    labels = normalize(clip.encode_text(list(names), templates=read_templates(templates)).double().cpu(), dim=-1)
    patches = side.views["tokens"].vectors[: len(side.parts)].double().cpu()
    grouped = clustered(patches, parts).view(side.grid)
    vectors = _vectors(clip, side, grouped, patches, how)
    relevance = vectors @ (texts - texts.mean(0)).T
    shares = shared_out(vectors @ texts.T, transport, details) if transport else None
    shown = tuple(
        Detail(pool[at], named, float(relevance[list(named), at].sum()), 0)
        for at, named in named_parts(relevance, details, shares).items()
    )
    cosines = labels @ side.views["layers"].vectors.sum(0).double().cpu()
    near = (labels @ texts.T).argsort(dim=1, descending=True, stable=True)[:, :expected]
    ranked = cosines.argsort(descending=True, stable=True)[:2].tolist()
    best, second = (
        _against(Label(names[at], float(cosines[at]), tuple(pool[one] for one in near[at].tolist())), shown, len(pool), measure)
        for at in ranked
    )  # fmt: skip
    return Mutual(side.name, (best, second), shown, grouped, how, measure, side.picture, side.geometry, notes)


class Label(NamedTuple):
    """A class, its cosine with the picture, and the details that it expects, the nearest first."""

    name: str
    cosine: float
    expects: tuple[str, ...]


def _against(label: Label, details: tuple[Detail, ...], pool: int, measure: str) -> LabelDetails:
    """Part both lists into what is shared and what is not, and measure it."""
    places = {text: at for at, text in enumerate(label.expects, 1)}
    by_text = {one.text: one for one in details}
    shared = [replace(by_text[text], place=at) for text, at in places.items() if text in by_text]
    matches = [one.text in places for one in details]
    return LabelDetails(
        label.name,
        label.cosine,
        tuple(shared),
        tuple(Detail(text, (), 0.0, at) for text, at in places.items() if text not in by_text),
        tuple(one for one in details if one.text not in places),
        ListOverlap(len(shared), len(details), len(places), pool),
        deletion_curve(matches, len(places), pool, released=measure == "released"),
    )


def _vectors(
    clip: Clip, side: Side, parts: Int64[Tensor, "row col"], patches: Float64[Tensor, "patch embed"], how: str
) -> Float64[Tensor, "part embed"]:
    """Return the vector of each part."""
    if how == "circle":
        return circled(clip, side.inputs, parts)
    return patches.new_zeros(int(parts.max()) + 1, patches.shape[1]).index_add(0, parts.flatten(), patches)


def named_parts(
    relevance: Float64[Tensor, "part detail"], words: int, shares: Float64[Tensor, "part detail"] | None = None
) -> dict[int, tuple[int, ...]]:
    """Name each part by its most relevant details (or by those of which it has the largest shares): detail → its parts, the most relevant first.

    Example:
        >>> import torch
        >>> named_parts(torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.2, 0.6]]).double(), 1)
        {0: (0,), 2: (1,)}
    """
    named: dict[int, tuple[int, ...]] = {}
    for part, row in enumerate((relevance if shares is None else shares).topk(words, dim=1).indices.tolist()):
        for detail in row:
            named[detail] = (*named.get(detail, ()), part)
    return dict(sorted(named.items(), key=lambda one: -float(relevance[list(one[1]), one[0]].sum())))


def _details_of(
    clip: Clip, given: "Sequence[str] | str | Path | Pool | None", classes: tuple[str, ...], least: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the details without those that name a class, and a note of how many these were."""
    listed = given if given is None or isinstance(given, str | Path | Pool) else Pool.of(given, "texts")
    texts = pool_of(listed, clip)[0].texts
    kept = without_classes(texts, classes)
    if len(kept) <= least:
        raise BadText(
            f"{len(kept)} of {len(texts)} texts name no class; more than {least} are needed to tell details from each other. "
            "Type descriptors='general', or a file of more texts"
        )
    left = len(texts) - len(kept)
    return kept, ((f"{left} of {len(texts)} texts name a class and are left out of the details",) if left else ())


def without_classes(texts: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Leave out texts that hold all words of a class's name: they would be shared with it by definition.

    Example:
        >>> without_classes(["a large bird", "two birds", "large"], ["a bird"])
        ('large',)
    """
    named = [_words(name) for name in classes]
    return tuple(text for text in texts if not any(name and name <= _words(text) for name in named))


def _words(text: str) -> frozenset[str]:
    """Return the words of a text that carry its meaning, without a plural's s."""
    return frozenset(one.removesuffix("s") for one in re.findall(r"\w+", text.lower()) if one not in SMALL)


def _detail(one: Detail) -> dict[str, Any]:
    return {"text": one.text, "parts": list(one.parts), "relevance": round(one.relevance, 6), "place": one.place}


def _label(one: LabelDetails, measure: str) -> dict[str, Any]:
    it = one.overlap
    lists = {name: [_detail(at) for at in getattr(one, name)] for name in WORDS}
    return {
        "label": one.label,
        "cosine": round(one.cosine, 6),
        **lists,
        "overlap": {
            "shared": it.shared,
            "shown": it.shown,
            "expected": it.expected,
            "pool": it.pool,
            "by_chance": round(it.by_chance, 3),
            "p": it.p,
            "information": round(it.information, 6),
            "released": round(it.released, 6),
        },
        "curve": {"of": measure, "values": [round(value, 6) for value in one.curve], "area": round(one.area, 6)},
    }


def _check(how: str, measure: str, **numbers: int) -> None:
    for name, given, known in (("how", how, get_args(How)), ("measure", measure, get_args(Measure))):
        if given not in known:
            raise BadSpec(f"{name}={given!r} is not known. Type one of: {', '.join(map(repr, known))}")
    for name, number in numbers.items():
        whole(name, number, 1, 1000)
