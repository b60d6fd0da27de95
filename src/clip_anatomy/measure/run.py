"""Run a protocol on a model.

run(clip, "voc20", path) ─▶ Outcome: figures, per class, configuration, what was skipped
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import clip_anatomy
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.maps.methods import method_of, methods_of
from clip_anatomy.measure.datasets.masked import Labelled, Masked
from clip_anatomy.measure.datasets.registry import open_masked
from clip_anatomy.measure.protocols import (
    PROTOCOLS,
    ForegroundSettings,
    LabelsSettings,
    Protocol,
    SaliencySettings,
    SemanticSettings,
    Settings,
)
from clip_anatomy.measure.sliding import Sliding
from clip_anatomy.measure.tasks import ForegroundTask, LabelTask, SaliencyTask, SemanticTask, Task
from clip_anatomy.model.clip import Clip
from clip_anatomy.model.text_cache import embed_texts
from clip_anatomy.model.zero_shot import imagenet_names, imagenet_templates

__all__ = ["Outcome", "methods_for", "run"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What a protocol gave.

    Attributes:
        protocol: its name.
        figures: headline figures, 0..1.
        per_class: a figure per class, NaN where there was nothing to measure.
        configuration: everything that decides the figures.
        pictures: how many were measured.
        skipped: id and reason of each that could not be.
        seconds: wall time of the pictures, without texts.
        partial: whether the run was stopped before its end.
    """

    protocol: str
    figures: dict[str, float]
    per_class: dict[str, float] = field(repr=False)
    configuration: dict[str, Any] = field(repr=False)
    pictures: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    partial: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        found = asdict(self)
        for key in ("figures", "per_class"):
            found[key] = {name: value if isfinite(value) else None for name, value in found[key].items()}
        found["skipped"] = [{"id": name, "why": why} for name, why in self.skipped]
        return {"schema": "clip-anatomy/bench/1", **found}


def run(
    clip: Clip,
    protocol: str,
    path: str | Path,
    *,
    limit: int | None = None,
    report: Report | None = None,
    **settings: Any,
) -> Outcome:
    """Run a protocol.

    A picture that cannot be measured (unreadable, a mask of another size or with unknown ids, missing) is named in the outcome
    and the others are done. Ctrl-C ends the run and gives what was measured so far, marked as partial.

    Args:
        clip: an opened model.
        protocol: a name of PROTOCOLS.
        path: where the data set lies.
        limit: take this many pictures only, evenly spread over the data set; the outcome says so.
        report: called with what is being done, how much of it is done, how much there is.
        **settings: instead of the protocol's own (method="sclip", stride=224…).

    Returns:
        The outcome.

    Raises:
        BadSpec: unknown protocol, setting or method.
        BadInput: the data set is not there, or none of its pictures could be measured.
        MissingExtra: a library for its format or its metric is not installed.
    """
    if protocol not in PROTOCOLS:
        raise BadSpec(f"the protocol {protocol!r} is not known. Type one of: {', '.join(PROTOCOLS)}")
    preset = PROTOCOLS[protocol]
    chosen = _chosen(clip, protocol, preset.settings, settings)
    data = open_masked(preset.dataset, path)
    entries = list(data.entries)
    if limit is not None:
        if limit < 1:
            raise BadSpec(f"limit={limit}: at least one picture. Type: limit=100")
        count = min(limit, len(entries))
        entries = [entries[at * len(entries) // count] for at in range(count)]
    tell = report or (lambda what, done, total: None)
    tell(f"embedding the texts of {data.name}", 0, 1)
    task = _task(clip, data, chosen, lambda done, total: tell("embedding texts", done, total))
    skipped: list[tuple[str, str]] = []
    partial = False
    done = 0
    start = perf_counter()
    try:
        for done, entry in enumerate(entries):
            tell(f"measuring {data.name}", done, len(entries))
            try:
                task.see(entry)
            except BadSpec:
                raise
            except BadInput as error:
                skipped.append((entry.id, str(error)))
        done = len(entries)
    except KeyboardInterrupt:
        if done == len(skipped):  # nothing to tell
            raise
        partial = True
    seconds = perf_counter() - start
    taken = {"protocol": protocol, "pictures": f"{len(entries)} of {len(data)}"}
    if len(skipped) == done:
        name, why = skipped[0]
        raise BadInput(f"none of the {done} pictures of {data.name} could be measured. The first, {name}: {why}")
    return Outcome(
        protocol=protocol,
        figures=task.figures(),
        per_class=task.per_class(),
        configuration=_configuration(clip, preset, chosen, data, taken),
        pictures=done - len(skipped),
        skipped=tuple(skipped),
        seconds=seconds,
        partial=partial,
    )


def methods_for(clip: Clip, protocol: str) -> list[str]:
    """Every method that a protocol can run on this model without further options.

    Args:
        clip: an opened model.
        protocol: a name of PROTOCOLS.

    Example:
        >>> import clip_anatomy as ca
        >>> methods_for(ca.load("demo"), "nus-wide")[:3]
        ['embedding', 'decomposition', 'surgery']
    """
    own = ["embedding"] if isinstance(PROTOCOLS[protocol].settings, LabelsSettings) else []
    return [*own, *(name for name, method in methods_of(clip).items() if not method.needs)]


def _chosen(clip: Clip, protocol: str, settings: Settings, given: dict[str, Any]) -> Settings:
    known = [f.name for f in fields(settings)]
    for name in given:
        if name not in known:
            raise BadSpec(f"protocol {protocol!r} has no setting {name!r}. Type one of: {', '.join(known)}")
    chosen = replace(settings, **given)
    if not (isinstance(chosen, LabelsSettings) and chosen.method == "embedding"):
        method_of(clip, chosen.method).chosen(chosen.method, {})
    if chosen.prompts not in (1, 80):
        raise BadSpec(f"there is no list of {chosen.prompts} prompts. Type: prompts=80 or prompts=1")
    return chosen


def _task(clip: Clip, data: Masked | Labelled, chosen: Settings, tell: Callable[[int, int], None]) -> Task:
    def embed(texts: tuple[str, ...]) -> torch.Tensor:
        if chosen.prompts == 80:
            return embed_texts(clip, texts, imagenet_templates(), progress=tell)
        prompts = [f"a photo of a {text}." for text in texts]  # one prompt each: many at a time
        return torch.nn.functional.normalize(embed_texts(clip, prompts, progress=tell), dim=-1)

    if isinstance(chosen, LabelsSettings):
        return LabelTask(clip, data.classes, embed(data.classes), chosen.method)
    if isinstance(chosen, ForegroundSettings):
        return ForegroundTask(clip, embed(imagenet_names()), chosen.method, chosen.mask)
    if isinstance(chosen, SaliencySettings):
        words = embed_texts(clip, [chosen.text], None if chosen.prompts == 1 else imagenet_templates(), progress=tell)
        return SaliencyTask(clip, torch.nn.functional.normalize(words, dim=-1), chosen.method, chosen.size)
    assert isinstance(data, Masked)
    names, owner = list(data.classes), list(range(len(data.classes)))
    if data.background is not None:
        texts = chosen.background or (data.classes[data.background],)
        rest = [at for at in owner if at != data.background]
        names = [*texts, *(data.classes[at] for at in rest)]
        owner = [*[data.background] * len(texts), *rest]
    how = Sliding(chosen.side, chosen.window, chosen.stride)
    how.check(clip.patch)
    return SemanticTask(
        clip, data.classes, embed(tuple(names)), tuple(owner), chosen.method, how,
        chosen.logit_scale, chosen.threshold, data.background,
    )  # fmt: skip


def _configuration(
    clip: Clip, preset: Protocol, chosen: Settings, data: Masked | Labelled, taken: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides the figures, in the order in which people ask for it."""
    changed = [f.name for f in fields(chosen) if getattr(chosen, f.name) != getattr(preset.settings, f.name)]
    options = getattr(methods_of(clip).get(chosen.method), "options", None)
    return {
        **taken,
        "data": data.name,
        "classes": len(data.classes),
        "class names": "the data set's own names, untuned",
        **{f"read {at}" if at > 1 else "read": note for at, note in enumerate(data.notes, 1)},
        "model": clip.name,
        "weights": clip.digest,
        "input": "{} × {} pixels".format(*clip.preprocess.size),
        "patch": "{} × {} pixels".format(*clip.patch),
        **asdict(chosen),
        "method options": None
        if options is None
        else {f.name: repr(getattr(options, f.name)) for f in fields(options)},
        **_said(chosen),
        "changed from the preset": changed,
        "clip-anatomy": clip_anatomy.__version__,
        "torch": torch.__version__,
    }


def _said(chosen: Settings) -> dict[str, str]:
    """What is fixed by the kind of protocol."""
    if isinstance(chosen, ForegroundSettings):
        return {
            "class": "predicted by the model among ImageNet's 1,000",
            "map": "minus the mean over the classes, all layers, cut at 0, stretched to 0..1 per picture",
            "foreground": "above the map's mean",
            "mIoU": "mean of background and foreground over the data set",
            "mAP": "of the pair [1 − map, map], mean over pictures",
        }
    if isinstance(chosen, SemanticSettings):
        return {
            "scaling": "Pillow's bilinear, long side at most 2048",
            "scores": "bilinear to the window's pixels, averaged where windows overlap, bilinear to the original size",
            "refinement": "none",
            "mIoU": "over the data set; classes neither there nor predicted are left out",
        }
    if isinstance(chosen, LabelsSettings):
        return {"picture": "the model's own scaling and crop", "mAP": "scikit-learn's definition, mean over classes"}
    return {
        "picture": "squashed to a square, not cropped",
        "measures": "pysodmetrics, 256 levels, map stretched to 0..1",
    }
