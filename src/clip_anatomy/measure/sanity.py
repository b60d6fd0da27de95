"""Four questions that a map must pass before anybody believes it.

text      Does it change with the text? Rank correlation of a text's map with the maps of unrelated texts.
weights   Does it change with what the model learned? Rank correlation with the map of the same model whose last block, half of
          its blocks, all of its blocks and whole image tower hold random weights (Adebayo et al. 2018, "Sanity checks for
          saliency maps", §3.1).
contrast  Does it know what is not there? Of the mass of a text's map and an unrelated text's map together, the share on the
          unrelated one; mass is what lies above the mean of all maps of the picture. Of each picture the text is asked that
          the model itself finds nearest, since the others may not be in it. Half is guessing.
sinks     Does it light up where the readout looks at nothing? Patches with an outlying token or attention, see `maps.sinks`.

Correlations are Spearman's over the patches of one map, means over maps. Two maps that have nothing to do with each other
scatter around 0 by 1 / √(patches − 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadSpec
from clip_anatomy.maps.dense import Recipe
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.looking import Size, looks
from clip_anatomy.maps.methods import method_of
from clip_anatomy.maps.sinks import Sinks, sinks_of
from clip_anatomy.measure.randomised import blocks_of, randomised
from clip_anatomy.model.clip import Clip, Images
from clip_anatomy.model.words import WordTokenizer
from clip_anatomy.pools import general_pool
from clip_anatomy.pools.world import world_pool

__all__ = ["LIMITS", "Check", "Sanity", "Sink", "rank_correlation", "sanity", "unrelated"]

BATCH = 16
LIMITS = {
    "text": (0.5, "a map that keeps half of its order or more whatever the text says little about the text"),
    "weights": (0.5, "a map that random weights leave half in order shows the picture's edges, not what was learned"),
    "contrast": (
        0.4,
        "0.5 is guessing; wrong texts of the demo world get 0.45 to 0.57, right ones 0.12 (decomposition) to 0.32",
    ),
    "sinks": (
        0.1,
        "a tenth of the attention on places that show nothing is seen in the map; replace_sinks=True takes it out",
    ),
}
"""Question → figure below which the answer is good, and why there."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: "text", "weights", "contrast" or "sinks".
        about: what was varied.
        figure: see the module; NaN where every map was flat.
        limit: below it the answer is good; None for lines that only inform.
        passed: the answer; None for lines that only inform, or where nothing could be measured.
        verdict: in words.
    """

    name: str
    about: str
    figure: float
    limit: float | None
    passed: bool | None
    verdict: str


@dataclass(frozen=True)
class Sink:
    """A patch that the readout looks at, or whose token is outlying, whatever it shows.

    Attributes:
        image: number of the picture.
        row: of the patch.
        col: of the patch.
        length: of its token into the last layer, times the median of the picture.
        attention: its share of the attention that goes to patches.
    """

    image: int
    row: int
    col: int
    length: float
    attention: float


@dataclass(frozen=True)
class Sanity:
    """What came of the questions.

    Attributes:
        method: of `heatmap`.
        model: its name.
        texts: what was asked.
        unrelated: the texts it was compared with.
        images: how many pictures.
        patches: of the smallest picture.
        checks: one line each.
        sinks: every one that was found.
    """

    method: str
    model: str
    texts: tuple[str, ...]
    unrelated: tuple[str, ...]
    images: int
    patches: int
    checks: tuple[Check, ...]
    sinks: tuple[Sink, ...]

    @property
    def passed(self) -> bool:
        """Whether no question was answered badly."""
        return all(check.passed is not False for check in self.checks)

    def table(self) -> str:
        """The lines for people."""
        wide = max(len(check.about) for check in self.checks)
        title = f"Sanity of {self.method} on {self.images} pictures × {len(self.texts)} texts ({self.model})"
        lines = [title.replace(" 1 pictures", " 1 picture").replace(" 1 texts", " 1 text")]
        for check in self.checks:
            figure = f"{check.figure:6.2f}" if check.name != "sinks" else f"{check.figure:6.0%}"
            lines.append(f"  {check.about:<{wide}}  {figure}  {check.verdict}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON (NaN becomes None)."""
        found = asdict(self)
        for check in found["checks"]:
            check["figure"] = None if isnan(check["figure"]) else check["figure"]
        return {**found, "passed": self.passed, "limits": {name: limit for name, (limit, _) in LIMITS.items()}}


def rank_correlation(a: Float[Tensor, "*rows patch"], b: Float[Tensor, "*rows patch"]) -> Float[Tensor, "*rows"]:
    """Spearman's ρ along the last axis, equal values on their mean rank; NaN where either is constant.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 90.0])).item()
        1.0
    """
    first, second = _ranks(a), _ranks(b)
    first, second = first - first.mean(-1, keepdim=True), second - second.mean(-1, keepdim=True)
    return ((first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))).to(a.dtype)


def _ranks(x: Tensor) -> Tensor:
    ordered, x = x.sort(-1).values.contiguous(), x.contiguous()
    return (torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True)).double() / 2


def unrelated(clip: Clip, texts: Sequence[str], count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Descriptions from a pool that share no word of substance with any of the texts.

    Args:
        clip: the bundled model gets descriptions of its own world, which it knows; others the general pool.
        texts: what was asked.
        count: how many.
        seed: of the draw.

    Raises:
        BadSpec: the pool has not so many.
    """
    pool = world_pool() if isinstance(clip.tokenizer, WordTokenizer) else general_pool(40)
    asked = {word for text in texts for word in _words(text)}
    free = [text for text in pool.texts if not asked & _words(text)]
    if len(free) < count:
        raise BadSpec(f"only {len(free)} of the pool's texts share no word with yours. Type: contrast=['a text', ...]")
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(free[i] for i in order[:count])


def _words(text: str) -> set[str]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {word.removesuffix("s") for word in words if len(word) > 3}


def sanity(
    clip: Clip,
    images: Images | Tensor,
    texts: Sequence[str] | Tensor,
    method: str | Recipe = "decomposition",
    *,
    contrast: Sequence[str] | None = None,
    draws: int = 3,
    seed: int = 0,
    size: Size = None,
    report: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Sanity:
    """Ask whether a method's maps of these pictures mean something.

    The model stays as it is, bit by bit: random weights go into a copy.

    Args:
        clip: an opened model.
        images: as for `heatmap`.
        texts: as for `heatmap`; embeddings are compared with random directions unless `contrast` is given.
        method: of `heatmap`.
        contrast: texts that are in none of the pictures; by default descriptions from a pool without a word in common.
        draws: how many sets of unrelated texts, each as large as `texts`; methods compare a text with its set.
        seed: of all draws.
        size: as for `heatmap`.
        report: called with what is being done, how much of it is done, how much there is.
        **options: of `heatmap` and of the method.

    Returns:
        The answers; `LIMITS` has the limits and why they are there.

    Raises:
        BadSpec, BadText, BadImage, UnsupportedModel: as `heatmap`.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.model.demo import examples
        >>> found = sanity(ca.load("demo"), examples()[:2], ["a bird", "the sky"], "attention")
        >>> found.checks[0].verdict
        'changes with the text: no, it never looks at the text'
    """
    if draws < 1:
        raise BadSpec(f"draws={draws}: 1 or more were expected. Type: draws=3")
    others = None if contrast is None and isinstance(texts, Tensor) else contrast
    if others is None and not isinstance(texts, Tensor):
        others = unrelated(clip, [str(text) for text in texts], max(draws * len(texts), 4), seed=seed)
    total = blocks_of(clip.vision)
    depths = list(dict.fromkeys([1, max(1, total // 2), total]))
    halves: dict[int | None, list[Tensor]] = {depth: [] for depth in (*depths, None)}
    text_found: list[Tensor] = []
    contrast_found: list[Tensor] = []
    places: list[tuple[tuple[int, ...], Sinks]] = []
    known: Tensor | None = None
    other = torch.zeros(0)
    names: tuple[str, ...] = ()
    label = ""
    for look in looks(clip, images, size, BATCH, own=options.get("window") is not None):
        tell = report or (lambda *_: None)
        tell("sanity: the maps themselves", 0, 4)
        own = heatmap(clip, look.pixels, texts, method, **options)
        if known is None:
            names, label = own.texts, own.method
            known = _embedded(clip, texts, options)
            other = _random_directions(known, draws, seed) if others is None else _embedded(clip, others, options)
        further = {k: v for k, v in options.items() if k != "templates"}
        flat = own.values.flatten(2)
        tell("sanity: unrelated texts", 1, 4)
        for draw in range(draws):
            chosen = [(draw * len(known) + i) % len(other) for i in range(len(known))]
            drawn = heatmap(clip, look.pixels, other[chosen], method, **further).values.flatten(2)
            text_found.append(rank_correlation(flat, drawn).flatten())
        together = heatmap(clip, look.pixels, torch.cat([known, other]), method, **further).values.flatten(2)
        cosine = F.normalize(clip.encode_image(look.pixels), dim=-1) @ F.normalize(known.float(), dim=-1).T
        contrast_found.append(_share(together, cosine))
        tell("sanity: random weights", 2, 4)
        for depth, correlations in halves.items():
            model = randomised(clip, depth, seed=seed)
            drawn = heatmap(model, look.pixels, known, method, **further).values.flatten(2)
            correlations.append(rank_correlation(flat, drawn).flatten())
        tell("sanity: sinks", 3, 4)
        places.append((look.images, sinks_of(clip.vision, look.pixels)))
    assert known is not None
    per_text = isinstance(method, Recipe) or method_of(clip, method).per_text
    checks = [_text_check(_mean(text_found), per_text=per_text)]
    unit = "blocks" if total > 1 else "block"
    for depth, found in halves.items():
        whole = "the whole image tower" if depth is None else f"the last {depth} of {total} {unit}"
        checks.append(_weights_check(whole, _mean(found), asked=depth == total))
    checks.append(_contrast_check(_mean(contrast_found)))
    found = tuple(sorted((s for images_, part in places for s in _sinks(images_, part)), key=lambda s: s.image))
    count = sum(len(images_) for images_, _ in places)
    checks.append(_sinks_check(found, count, places))
    patches = min(part.found[0].numel() for _, part in places)
    said = tuple(f"random direction {i}" for i in range(len(other))) if others is None else tuple(others)
    return Sanity(label, clip.name, names, said, count, patches, tuple(checks), found)


def _embedded(clip: Clip, texts: Sequence[str] | Tensor, options: dict[str, Any]) -> Tensor:
    if isinstance(texts, Tensor):
        return texts.to(clip.device)
    return clip.encode_text(list(texts), templates=options.get("templates"))


def _random_directions(known: Tensor, draws: int, seed: int) -> Tensor:
    shape = (max(draws * len(known), 4), known.shape[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(known) * known.norm(dim=-1).mean()


def _share(maps: Float[Tensor, "image text patch"], cosine: Float[Tensor, "image asked"]) -> Float[Tensor, " image"]:
    """Mass on an unrelated text beside the mass on each picture's nearest text, mean over the unrelated ones."""
    texts = cosine.shape[1]
    mass = (maps - maps.mean((1, 2), keepdim=True)).relu().double().sum(2)
    asked, rest = mass.gather(1, cosine.argmax(1, keepdim=True)), mass[:, texts:]
    return (rest / (asked + rest)).nanmean(1).float()


def _mean(found: list[Tensor]) -> float:
    return float(torch.cat(found).nanmean())


def _text_check(figure: float, *, per_text: bool) -> Check:
    limit = LIMITS["text"][0]
    if not per_text:
        return Check(
            "text",
            "maps of unrelated texts",
            figure,
            limit,
            False,
            "changes with the text: no, it never looks at the text",
        )
    if isnan(figure):
        return Check("text", "maps of unrelated texts", figure, limit, None, "every map is flat: nothing to compare")
    good = figure < limit
    return Check(
        "text", "maps of unrelated texts", figure, limit, good, f"changes with the text: {_said(good)}, {figure:.2f}"
    )


def _weights_check(about: str, figure: float, *, asked: bool) -> Check:
    about = f"random weights in {about}"
    limit = LIMITS["weights"][0]
    if isnan(figure):
        return Check("weights", about, figure, limit if asked else None, None, "every map is flat: nothing to compare")
    if not asked:
        return Check(
            "weights",
            about,
            figure,
            None,
            None,
            "still the map's order" if figure >= limit else "no longer the map's order",
        )
    good = figure < limit
    return Check("weights", about, figure, limit, good, f"depends on what was learned: {_said(good)}, {figure:.2f}")


def _contrast_check(figure: float) -> Check:
    limit = LIMITS["contrast"][0]
    if isnan(figure):
        return Check(
            "contrast", "share on a contrast text", figure, limit, None, "every map is flat: nothing to compare"
        )
    good = figure < limit
    told = f"prefers the text to what is not there: {_said(good)}, {figure:.2f} (0.50 is guessing)"
    return Check("contrast", "share on a contrast text", figure, limit, good, told)


def _sinks(images: tuple[int, ...], part: Sinks) -> list[Sink]:
    return [
        Sink(images[i], row, col, float(part.length[i, row, col]), float(part.attention[i, row, col]))
        for i, row, col in part.found.nonzero().tolist()
    ]


def _sinks_check(found: tuple[Sink, ...], images: int, places: list[tuple[tuple[int, ...], Sinks]]) -> Check:
    share = float(torch.cat([part.share for _, part in places]).mean())
    limit = LIMITS["sinks"][0]
    if not found:
        return Check("sinks", "attention on sinks and registers", 0.0, limit, True, f"none in {images} pictures")
    most: dict[tuple[int, int], list[Sink]] = {}
    for sink in found:
        most.setdefault((sink.row, sink.col), []).append(sink)
    common = sorted(most.items(), key=lambda item: -len(item[1]))
    where = ", ".join(
        f"row {row} col {col} in {len(group)} (length {_of(group, 'length'):.1f}×, attention {_of(group, 'attention'):.0%})"
        for (row, col), group in common[:3]
    )
    more = f" and {len(common) - 3} other places" if len(common) > 3 else ""
    pictures = len({sink.image for sink in found})
    told = f"found in {pictures} of {images} pictures: {where}{more}"
    return Check("sinks", "attention on sinks and registers", share, limit, share < limit, told)


def _of(group: list[Sink], name: str) -> float:
    return sum(getattr(sink, name) for sink in group) / len(group)


def _said(good: bool) -> str:
    return "yes" if good else "no"
