"""From a protocol and what a person changed of it to a task that measures pictures, and the whole configuration of the run.

chosen_settings ─▶ class_texts ─▶ task_of; configuration_of
"""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

import clip_anatomy
from clip_anatomy.data.masked import MaskedDataset, TaggedDataset, lines_of
from clip_anatomy.data.referring import ReferringDataset
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.class_lists import ClassTexts, text_lists
from clip_anatomy.evaluation.protocols import (
    PAPERS,
    PROTOCOLS,
    ForegroundSettings,
    LabelsSettings,
    ReferringSettings,
    SaliencySettings,
    SemanticSettings,
    Settings,
    paper_settings,
)
from clip_anatomy.evaluation.referring_task import OBJECTS, OWN, ReferringTask
from clip_anatomy.evaluation.semantic_task import SemanticTask
from clip_anatomy.evaluation.sliding_windows import Sliding
from clip_anatomy.evaluation.tasks import ForegroundTask, LabelTask, ProtocolTask, SaliencyTask
from clip_anatomy.files import digest, path_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.imagenet_texts import imagenet_names, imagenet_templates
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.maps.refer import checked_method
from clip_anatomy.maps.registry import method_of, methods_of
from clip_anatomy.progress import Progress, silent

__all__ = ["ClassTexts", "chosen_settings", "class_texts", "configuration_of", "task_of"]

Data = MaskedDataset | TaggedDataset | ReferringDataset


def chosen_settings(
    clip: Clip, protocol: str, given: dict[str, Any], *, like: str | None = None, names: str | Path | None = None
) -> Settings:
    """Return the preset, then a paper's settings, then what was asked for.

    Args:
        clip: an opened model.
        protocol: of PROTOCOLS.
        given: settings that were asked for.
        like: of PAPERS.
        names: a file of class names, which holds the background's too.

    Raises:
        BadSpec: an unknown setting, value, method or paper; words for the background beside a file that has them.
    """
    settings = PROTOCOLS[protocol].settings
    known = [f.name for f in fields(settings)]
    for name in given:
        if name not in known:
            raise BadSpec(f"protocol {protocol!r} has no setting {name!r}. Type one of: {', '.join(known)}")
    chosen = replace(settings, **({} if like is None else paper_settings(like, protocol)) | given)
    if isinstance(chosen, ReferringSettings):
        checked_method(chosen.method)
        if chosen.proposals not in (OWN, OBJECTS) and not path_of(chosen.proposals).is_dir():
            raise BadSpec(
                f"proposals={chosen.proposals!r} is no folder. Type one of: {OWN}, {OBJECTS}, a folder of masks"
            )
        return chosen
    if not (isinstance(chosen, LabelsSettings) and chosen.method == "embedding"):
        options = dict(chosen.options) if isinstance(chosen, SemanticSettings) else {}
        method_of(clip, chosen.method).chosen(chosen.method, options)
    if chosen.prompts not in (1, 80):
        raise BadSpec(f"there is no list of {chosen.prompts} prompts. Type: prompts=80 or prompts=1")
    if isinstance(chosen, SemanticSettings):
        if names is not None:
            if "background" in given:
                raise BadSpec(f"{names} has a line for the background too. Leave background out")
            chosen = replace(chosen, background=())
        Sliding(chosen.side, chosen.window, chosen.stride).check(clip.patch)
        for name in ("threshold", "area"):
            value = getattr(chosen, name)
            if value is not None and not 0 <= value <= 1:
                raise BadSpec(f"{name}={value} is no share. Type a number from 0 to 1: {name}=0.1")
        if chosen.draws < 0:
            raise BadSpec(f"draws={chosen.draws}: no draws are 0. Type: draws=5")
        if chosen.logit_scale <= 0:
            raise BadSpec(f"logit_scale={chosen.logit_scale} turns the order of the classes. Type: logit_scale=40")
    return chosen


def class_texts(data: Data, settings: Settings, names: str | Path | None = None) -> ClassTexts:
    """Return the texts of each class: the data set's own names and the preset's background, or a file's.

    Args:
        data: the data set.
        settings: chosen.
        names: a file with a line per class in the order of the data set's classes (the background first, where it is one),
            several texts of a class separated by commas: the form of the lists that papers publish.

    Raises:
        BadSpec: a file for a protocol that has no use for one.
        BadInput: a file with another number of lines.
    """
    if names is None:
        texts: list[tuple[str, ...]] = [(name,) for name in data.classes]
        source = "the data set's own, untuned"
        if isinstance(data, MaskedDataset) and data.background is not None and isinstance(settings, SemanticSettings):
            texts[data.background] = settings.background or texts[data.background]
        return ClassTexts(tuple(texts), source)
    if not isinstance(settings, SemanticSettings):
        raise BadSpec("names are read for protocols of mIoU only. Leave them out, or type: voc20")
    file = path_of(names)
    lines = lines_of(file)
    texts = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines]
    if len(texts) != len(data.classes) or not all(texts):
        raise BadInput(
            f"{file} has {len(texts)} lines for {len(data.classes)} classes of {data.name}. Type a file with a line of texts for "
            f"each, separated by commas, in the order {', '.join(data.classes[:3])}…"
        )
    sha256 = digest(file.read_bytes(), size=6, algorithm="sha256")
    return ClassTexts(tuple(texts), f"{file.name}, {sum(map(len, texts))} texts (SHA-256 {sha256}…)")


def task_of(
    clip: Clip,
    data: Data,
    names: ClassTexts,
    settings: Settings,
    *,
    progress: Progress | None = None,
    plain: ClassTexts | None = None,
) -> ProtocolTask:
    """Embed the texts and put the task together.

    Args:
        clip: the model.
        data: the data set.
        names: the class names that were asked for.
        settings: of the protocol.
        progress: told the texts that are embedded.
        plain: the data set's own class names, where others were asked for.
    """
    if isinstance(settings, ReferringSettings):
        return ReferringTask(clip, settings.method, settings.proposals)
    tell = progress or silent

    def embed(texts: tuple[str, ...]) -> Float[Tensor, "text embed"]:
        if settings.prompts == 80:
            return embed_texts(clip, texts, imagenet_templates(), progress=tell)
        prompts = [f"a photo of a {text}." for text in texts]  # one prompt each: many at a time
        return F.normalize(embed_texts(clip, prompts, progress=tell), dim=-1)

    if isinstance(settings, LabelsSettings):
        return LabelTask(clip, data.classes, embed(names.texts), settings.method)
    if isinstance(settings, ForegroundSettings):
        return ForegroundTask(clip, embed(imagenet_names()), settings.method, settings.mask)
    if isinstance(settings, SaliencySettings):
        embedding = embed_texts(clip, [settings.text], None if settings.prompts == 1 else imagenet_templates())
        return SaliencyTask(clip, F.normalize(embedding, dim=-1), settings.method, settings.size)
    assert isinstance(data, MaskedDataset)
    lists = text_lists(names, plain or names, settings.draws, settings.vocabularies, data.background)
    every = tuple(dict.fromkeys(text for one in lists for text in one.words.texts))
    return SemanticTask(clip, data.classes, every, embed(every), lists, settings, data.background)


def configuration_of(
    clip: Clip,
    protocol: str,
    settings: Settings,
    data: Data,
    *,
    known: dict[str, str],
    like: str | None = None,
) -> dict[str, Any]:
    """Everything that decides the figures, in the order in which people ask for it.

    Args:
        clip: the model.
        protocol: of PROTOCOLS.
        settings: that were used.
        data: the data set.
        known: what is already known of this run.
        like: whose settings were asked for.
    """
    preset = PROTOCOLS[protocol].settings
    changed = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(preset, f.name)]
    method = methods_of(clip).get(settings.method)
    given = dict(settings.options) if isinstance(settings, SemanticSettings) else {}
    options = None if method is None else method.chosen(settings.method, given)
    return {
        **known,
        "data": data.name,
        "classes": len(data.classes),
        **{f"read {at}" if at > 1 else "read": note for at, note in enumerate(data.notes, 1)},
        "model": clip.name,
        "weights": clip.digest,
        "input": "{} × {} pixels".format(*clip.preprocess.size),
        "patch": "{} × {} pixels".format(*clip.patch),
        **asdict(settings),
        "method options": None
        if options is None
        else {f.name: repr(getattr(options, f.name)) for f in fields(options)},
        **_fixed(settings),
        **({} if like is None else _paper(like, protocol, settings)),
        "changed from the preset": changed,
        "clip-anatomy": clip_anatomy.__version__,
        "torch": torch.__version__,
    }


def _paper(like: str, protocol: str, chosen: Settings) -> dict[str, Any]:
    """Whose settings these are, what its authors report, and what still differs from their release."""
    paper = PAPERS[like]
    theirs = replace(PROTOCOLS[protocol].settings, **paper_settings(like, protocol))
    other = [
        f.name for f in fields(theirs) if f.name != "background" and getattr(chosen, f.name) != getattr(theirs, f.name)
    ]
    return {
        "settings of": paper.description + (f", but {', '.join(other)}" if other else ""),
        "mIoU reported there": f"{paper.reported[protocol]} % (ViT-B/16 of OpenAI, class names of its own)",
        "not as there": f"{paper.left}; class names, unless they were given",
    }


def _fixed(chosen: Settings) -> dict[str, str]:
    """Tell what is fixed by the kind of protocol."""
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
            "scaling": "bilinear as OpenCV's, long side at most 2048",
            "scores": "bilinear to the window's pixels, averaged where windows overlap, bilinear to the original size",
            "refinement": "none",
            "mIoU": "over the data set; classes neither there nor predicted are left out",
        }
    if isinstance(chosen, ReferringSettings):
        return {
            "sample": "every sentence of every object",
            "oIoU": "intersections over unions, both summed over the samples; mIoU: mean IoU; P@k: share of samples with an IoU of k or more",
            "random proposal": "IoU of the mean proposal: what chance would have; best proposal: what a perfect choice would have",
        }
    if isinstance(chosen, LabelsSettings):
        return {"picture": "the model's own scaling and crop", "mAP": "scikit-learn's definition, mean over classes"}
    return {
        "picture": "squashed to a square, not cropped",
        "measures": "as pysodmetrics has them: 256 levels, map stretched to 0..1",
    }
