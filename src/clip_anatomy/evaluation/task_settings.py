"""From a protocol and what a person changed of it to a task that is ready to see pictures.

chosen_settings ─▶ class_words ─▶ task_of
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.masked import Labelled, Masked, lines_of
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.evaluation.protocols import (
    PROTOCOLS,
    ForegroundSettings,
    LabelsSettings,
    SaliencySettings,
    SemanticSettings,
    Settings,
)
from clip_anatomy.evaluation.published_settings import settings_like
from clip_anatomy.evaluation.sliding_windows import Sliding
from clip_anatomy.evaluation.tasks import ForegroundTask, LabelTask, SaliencyTask, SemanticTask, Task
from clip_anatomy.files import path_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.loading.zero_shot import imagenet_names, imagenet_templates
from clip_anatomy.maps.registry import method_of

__all__ = ["ClassWords", "chosen_settings", "class_words", "task_of"]


@dataclass(frozen=True)
class ClassWords:
    """The texts that stand for classes: a class is as likely as its likeliest text.

    Attributes:
        words: of each class.
        told: where they come from.
    """

    words: tuple[tuple[str, ...], ...]
    told: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them in order."""
        return tuple(word for words in self.words for word in words)

    @property
    def owner(self) -> tuple[int, ...]:
        """The class of each text."""
        return tuple(at for at, words in enumerate(self.words) for _ in words)


def chosen_settings(
    clip: Clip, protocol: str, given: dict[str, Any], *, like: str | None = None, names: str | Path | None = None
) -> Settings:
    """The preset, then a paper's settings, then what was asked for.

    Args:
        clip: an opened model.
        protocol: of PROTOCOLS.
        given: settings that were asked for.
        like: of PUBLISHED.
        names: a file of class names, which holds the background's too.

    Raises:
        BadSpec: an unknown setting, value, method or paper; words for the background beside a file that has them.
    """
    settings = PROTOCOLS[protocol].settings
    known = [f.name for f in fields(settings)]
    for name in given:
        if name not in known:
            raise BadSpec(f"protocol {protocol!r} has no setting {name!r}. Type one of: {', '.join(known)}")
    chosen = replace(settings, **({} if like is None else settings_like(like, protocol)) | given)
    if not (isinstance(chosen, LabelsSettings) and chosen.method == "embedding"):
        method_of(clip, chosen.method).chosen(chosen.method, {})
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
        if chosen.logit_scale <= 0:
            raise BadSpec(f"logit_scale={chosen.logit_scale} turns the order of the classes. Type: logit_scale=40")
    return chosen


def class_words(data: Masked | Labelled, settings: Settings, names: str | Path | None = None) -> ClassWords:
    """The texts of each class: the data set's own names and the preset's background, or a file's.

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
        words: list[tuple[str, ...]] = [(name,) for name in data.classes]
        told = "the data set's own, untuned"
        if isinstance(data, Masked) and data.background is not None and isinstance(settings, SemanticSettings):
            words[data.background] = settings.background or words[data.background]
        return ClassWords(tuple(words), told)
    if not isinstance(settings, SemanticSettings):
        raise BadSpec("names are read for protocols of mIoU only. Leave them out, or type: voc20")
    file = path_of(names)
    lines = lines_of(file)
    words = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines]
    if len(words) != len(data.classes) or not all(words):
        raise BadInput(
            f"{file} has {len(words)} lines for {len(data.classes)} classes of {data.name}. Type a file with a line of texts for "
            f"each, separated by commas, in the order {', '.join(data.classes[:3])}…"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return ClassWords(tuple(words), f"{file.name}, {sum(map(len, words))} texts (SHA-256 {digest}…)")


def task_of(
    clip: Clip, data: Masked | Labelled, words: ClassWords, settings: Settings, tell: Callable[[int, int], None]
) -> Task:
    """Embed the texts and put the task together."""

    def embed(texts: tuple[str, ...]) -> Float[Tensor, "text embed"]:
        if settings.prompts == 80:
            return embed_texts(clip, texts, imagenet_templates(), progress=tell)
        prompts = [f"a photo of a {text}." for text in texts]  # one prompt each: many at a time
        return torch.nn.functional.normalize(embed_texts(clip, prompts, progress=tell), dim=-1)

    if isinstance(settings, LabelsSettings):
        return LabelTask(clip, data.classes, embed(words.texts), settings.method)
    if isinstance(settings, ForegroundSettings):
        return ForegroundTask(clip, embed(imagenet_names()), settings.method, settings.mask)
    if isinstance(settings, SaliencySettings):
        found = embed_texts(clip, [settings.text], None if settings.prompts == 1 else imagenet_templates())
        return SaliencyTask(clip, torch.nn.functional.normalize(found, dim=-1), settings.method, settings.size)
    assert isinstance(data, Masked)
    return SemanticTask(clip, data.classes, embed(words.texts), words.owner, settings, data.background)
