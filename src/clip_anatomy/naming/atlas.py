"""`Atlas`: what each head is about, with the figures that say how far to trust it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from clip_anatomy.errors import BadInput, BadSpec, reading
from clip_anatomy.files import read_json
from clip_anatomy.naming.concept_shares import ConceptShare
from clip_anatomy.naming.roles import Role
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["Atlas", "AtlasHead", "AtlasImage", "AtlasText", "PoolRound"]

SCHEMA = "clip-anatomy/atlas/3"


@dataclass(frozen=True)
class AtlasImage:
    """One image at an end of a direction.

    Attributes:
        row: its place on the image axis of the store.
        id: its name there.
        label: its class, "" if not known.
        value: what the head writes for it along the direction, minus the mean over all images; parts of a cosine.
    """

    row: int
    id: str
    label: str
    value: float


@dataclass(frozen=True)
class AtlasText:
    """One text of a head, and how far to trust it.

    Attributes:
        text: the description.
        property: what it is about, "" if nobody knows.
        explained_alone: share of the head's variance along this text by itself.
        gain: share that it adds to the texts before it.
        cumulative: share explained by it and the texts before it.
        runner_up: the text that came second.
        margin: 1 − second score / first score: 0 is a tie.
        stability: share of bootstrap resamples of the images in which it is picked again at any place; None if not measured.
        stability_in_place: share of those that pick it at the same place or before.
        top_images: images for which the head writes most along its direction.
        bottom_images: images for which it writes least (most against it).
    """

    text: str
    property: str
    explained_alone: float
    gain: float
    cumulative: float
    runner_up: str
    margin: float
    stability: float | None = None
    stability_in_place: float | None = None
    top_images: tuple[AtlasImage, ...] = ()
    bottom_images: tuple[AtlasImage, ...] = ()


@dataclass(frozen=True)
class AtlasHead:
    """One head.

    Attributes:
        layer: its layer, numbered as in the model.
        head: its number in the layer.
        role: what it is about.
        variance: E|x − mean|² of its contribution, in squared parts of a cosine.
        rank: dimensions that it writes into.
        explained: share of its variance that its first texts (`Atlas.top_k`) explain.
        pca_explained: the most that as many directions could explain: that of the principal components.
        texts: its texts, best first.
        truth: (attribute, share of variance) of what truly drives it, largest first; empty where that is not known.
        chance: share that as many shuffled texts explain; None if not measured.
        role_chance: share of the evidence that the leading property of shuffled texts gets; likewise.
        doubts: where role, texts, pictures and truth do not agree, a sentence each.
        concepts: what the words of one concept alone explain of it, and of the other heads of its layer; those first that explain most beyond
            them. Empty where no text says what it is about.
    """

    layer: int
    head: int
    role: Role
    variance: float
    rank: int
    explained: float
    pca_explained: float
    texts: tuple[AtlasText, ...]
    truth: tuple[tuple[str, float], ...] = ()
    chance: float | None = None
    role_chance: float | None = None
    doubts: tuple[str, ...] = ()
    concepts: tuple[ConceptShare, ...] = ()

    @property
    def by_concept(self) -> str:
        """The concept whose words explain most of it beyond the other heads of its layer: a third opinion of its role; "" for none."""
        first = self.concepts[0] if self.concepts else None
        return first.concept if first is not None and first.share > (first.others or 0.0) else ""

    @property
    def leading(self) -> AtlasText | None:
        """The text that says best what it is about: of its role's texts, else of all, the one that explains most by itself.

        The first pick need not be it: it has the largest score, which also grows with the length of the text in the head.
        """
        about = [text for text in self.texts if self.role.name in text.property.split(" + ")] if self.role.named else []
        return max(about or self.texts, key=lambda text: text.explained_alone, default=None)

    @property
    def ordered(self) -> tuple[AtlasText, ...]:
        """Its texts, the leading one first, the others as they were picked."""
        first = self.leading
        return self.texts if first is None else (first, *(text for text in self.texts if text is not first))

    @property
    def name(self) -> str:
        """`layer.head`, as it is typed."""
        return f"{self.layer}.{self.head}"

    def holds(self, words: str) -> float:
        """Share of its variance that its texts with all of these words add."""
        wanted = words.lower().split()
        return sum((text.gain for text in self.texts if all(word in text.text.lower() for word in wanted)), 0.0)


@dataclass(frozen=True)
class PoolRound:
    """One round of growing a pool: its size, and what the first texts of all heads explain on average."""

    texts: int
    explained: float


@public
@dataclass(frozen=True, repr=False)
class Atlas(Result):
    """What the heads of a model are about, over one collection of images.

    Attributes:
        model: name of the model.
        digest: hash of its weights.
        store: the store it was made from.
        images: how many there are in it.
        layers: which layers are covered.
        heads_per_layer: heads in each.
        pool: where the texts come from.
        pool_texts: how many there were to pick from.
        top_k: how many texts a head is judged by.
        threshold: heads whose first `top_k` texts explain less are unnamed.
        heads: the heads, by layer and number.
        curve: explained variance against size of the pool, if it was grown.
        agreement: how often roles agree with the truth, where that is known: tested, right, mixed, bar.
        cues: (cue, "yes" | "no" | "unclear", reason) for a task, if a language model was asked.
        task: that task.
        llm_usage: questions, tokens and cost of the language model, in words.
        notes: what a reader must know before believing a number.
        provenance: what it takes to make it again: name → value.
    """

    presenter: ClassVar[str] = "atlas_pages"
    model: str
    digest: str
    store: str
    images: int
    layers: tuple[int, ...]
    heads_per_layer: int
    pool: str
    pool_texts: int
    top_k: int
    threshold: float
    heads: tuple[AtlasHead, ...]
    curve: tuple[PoolRound, ...] = ()
    agreement: Mapping[str, float] = field(default_factory=dict[str, float])
    cues: tuple[tuple[str, str, str], ...] = ()
    task: str = ""
    llm_usage: str = ""
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict[str, str])

    def head(self, layer: int, head: int) -> AtlasHead:
        """Return one head.

        Raises:
            BadSpec: it is not in this atlas.
        """
        for one in self.heads:
            if (one.layer, one.head) == (layer, head):
                return one
        raise BadSpec(
            f"head {layer}.{head} is not in this atlas. Type LAYER.HEAD with a layer of {', '.join(map(str, self.layers))} and a "
            f"head of 0 to {self.heads_per_layer - 1}"
        )

    @property
    def roles(self) -> dict[str, int]:
        """Role → how many heads have it, the commonest first."""
        return dict(Counter(head.role.name for head in self.heads).most_common())

    @property
    def explained(self) -> float:
        """Mean share of the heads' variance that their first texts explain."""
        return sum((head.explained for head in self.heads), 0.0) / max(len(self.heads), 1)

    @property
    def at_chance(self) -> str:
        """What shuffled texts explain on average, in words; "" if not measured."""
        levels = [head.chance for head in self.heads if head.chance is not None]
        return f"; shuffled texts {sum(levels) / len(levels):.0%}" if levels else ""

    @property
    def evidence(self) -> list[int]:
        """Rows of the store that stand as evidence for any text of any head, each once."""
        texts = [text for head in self.heads for text in head.texts]
        return sorted({image.row for text in texts for image in (*text.top_images, *text.bottom_images)})

    def with_role(self, name: str, confidence: float = 0.0) -> tuple[AtlasHead, ...]:
        """Return heads of a role, the surest first.

        Raises:
            BadSpec: no head has it; names those that there are.
        """
        if name not in self.roles:
            raise BadSpec(f"no head of this atlas has the role {name!r}. Type one of: {', '.join(self.roles)}")
        heads = [head for head in self.heads if head.role.name == name and head.role.confidence >= confidence]
        return tuple(sorted(heads, key=lambda head: -head.role.confidence))

    def with_words(self, words: str, k: int | None = None) -> tuple[AtlasHead, ...]:
        """Return heads whose texts hold all of these words, those first in which they explain most."""
        heads = [head for head in self.heads if head.holds(words) > 0]
        return tuple(sorted(heads, key=lambda head: -head.holds(words))[:k])

    def select(self, spec: str) -> tuple[tuple[int, int], ...]:
        """(layer, head) pairs of what people type: `role=colour`, `words=striped fabric`, or `9.3,10.1`.

        Raises:
            BadSpec: none of these, or nothing fits.
        """
        kind, given, value = spec.partition("=")
        if given and kind == "role":
            return tuple((head.layer, head.head) for head in self.with_role(value.strip()))
        if given and kind == "words":
            if heads := self.with_words(value):
                return tuple((head.layer, head.head) for head in heads)
            raise BadSpec(f"no text of any head holds the words {value.strip()!r}. Type other words, or role=ROLE")
        try:
            pairs = [tuple(map(int, part.strip().split("."))) for part in spec.split(",")]
            return tuple((one.layer, one.head) for one in (self.head(layer, head) for layer, head in pairs))
        except ValueError as error:
            if isinstance(error, BadSpec):
                raise
            raise BadSpec(f"{spec!r} selects no heads. Type role=ROLE, words=WORDS or LAYER.HEAD,LAYER.HEAD") from None

    def summary(self) -> str:
        """Return the roles and how many heads have them, and what the texts explain."""
        roles = [f"{name.replace('_', ' ')} {count}" for name, count in self.roles.items()]
        lines = [
            f"atlas of {self.model}: {len(self.heads)} heads over {self.images:,} images, {self.pool_texts:,} texts ({self.pool})",
            f"roles: {', '.join(roles)}",
            f"the first {self.top_k} texts explain {self.explained:.0%} of a head's variance on average"
            + self.at_chance,
        ]
        if self.agreement:
            right, tested = int(self.agreement["right"]), int(self.agreement["tested"])
            lines.append(f"{right} of {tested} named heads that one attribute drives have it as their role")
        return "\n".join([*lines, *([self.llm_usage] if self.llm_usage else [])])

    # ---- files

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": SCHEMA, **asdict(self), "roles": self.roles, "explained": self.explained}

    @staticmethod
    def of_dict(given: Mapping[str, Any]) -> "Atlas":
        """Invert `to_dict`.

        Raises:
            BadInput: not an atlas.
        """
        with reading("this atlas", "It is no atlas. Make one: clip-anatomy atlas STORE"):
            if given["schema"] != SCHEMA:
                raise BadInput(f"this is {given['schema']!r}, not {SCHEMA!r}. Make an atlas: clip-anatomy atlas STORE")
            values: dict[str, Any] = {
                key: value for key, value in given.items() if key not in ("schema", "roles", "explained", "files")
            }
            values["heads"] = tuple(_head(head) for head in given["heads"])
            values["curve"] = tuple(PoolRound(**one) for one in given["curve"])
            values["cues"] = tuple((cue, answer, why) for cue, answer, why in given["cues"])
            values |= {"layers": tuple(given["layers"]), "notes": tuple(given["notes"])}
            return Atlas(**values)

    @staticmethod
    def load(path: str | Path) -> "Atlas":
        """Read an `atlas.json`, or that of the folder of a report.

        Raises:
            BadInput: no such file, or not an atlas.
        """
        place = Path(path)
        place = place / "atlas.json" if place.is_dir() else place
        if not place.exists():
            folder = place.parent if place.suffix == ".json" else place
            raise BadInput(f"{place} does not exist. Make it: clip-anatomy atlas STORE --out {folder}")
        again = "It is no atlas. Make one: clip-anatomy atlas STORE"
        with reading(place, again):
            return Atlas.of_dict(read_json(place, again))


def _head(given: Mapping[str, Any]) -> AtlasHead:
    role: dict[str, Any] = {**given["role"], "shares": _pairs(given["role"]["shares"])}
    texts = tuple(_text(text) for text in given["texts"])
    values: dict[str, Any] = {**given, "role": Role(**role), "texts": texts, "truth": _pairs(given["truth"])}
    values["doubts"] = tuple(given.get("doubts", ()))
    values["concepts"] = tuple(ConceptShare(*one) for one in given.get("concepts", ()))
    return AtlasHead(**values)


def _text(given: Mapping[str, Any]) -> AtlasText:
    values: dict[str, Any] = dict(given)
    for name in ("top_images", "bottom_images"):
        values[name] = tuple(AtlasImage(**one) for one in given[name])
    return AtlasText(**values)


def _pairs(given: Sequence[Sequence[Any]]) -> tuple[tuple[str, float], ...]:
    return tuple((str(name), float(share)) for name, share in given)
