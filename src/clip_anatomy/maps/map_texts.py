"""`Texts`: what is looked for, as words and as directions of the joint space."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.errors import BadText
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.tokenizer import check_printable
from clip_anatomy.loading.typed_texts import read_templates, read_texts
from clip_anatomy.maps.contrast import EACH_OTHER, NOTHING, Against, Contrast, contrast_of
from clip_anatomy.public_functions import public

__all__ = ["Texts"]


@public
@dataclass(frozen=True)
class Texts:
    """Hold texts that are embedded once and compared with many pictures.

    Attributes:
        names: what each map is called.
        embeddings: of any length, on the model's device, in float32.
        templates: prompts that they were put into; None for none.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> clip = ca.load("demo")
        >>> texts = Texts.of(clip, ["a bird", "the sky"])
        >>> [ca.heatmap(clip, path, texts).texts for path in examples()[:2]]
        [('a bird', 'the sky'), ('a bird', 'the sky')]
    """

    names: tuple[str, ...]
    embeddings: Float[Tensor, "text embed"] = field(repr=False)
    templates: tuple[str, ...] | None = None
    contrasts: dict[Any, Contrast] = field(default_factory=dict[Any, Contrast], repr=False, compare=False)
    """What they were compared with so far: embedded once too."""

    @staticmethod
    def of(clip: Clip, texts: "Sequence[str] | Tensor | Texts", templates: Sequence[str] | None = None) -> "Texts":
        """Embed texts, or take embeddings as they are.

        Args:
            clip: an opened model.
            texts: strings, embeddings [text, embed], or what this gave before.
            templates: prompts with one `{}` each, averaged as CLIP's own recipe does.

        Raises:
            BadText: no text, one that is blank, stands twice or holds half a character, or embeddings that are none.
        """
        if isinstance(texts, Texts):
            if templates is not None and read_templates(templates) != texts.templates:
                raise BadText(
                    f"these texts are embedded already. Type: Texts.of(clip, {list(texts.names)!r}, templates)"
                )
            return texts
        if isinstance(texts, Tensor):
            if templates is not None:
                raise BadText("templates need strings, not embeddings. Type: clip.encode_text([...], templates)")
            return Texts(tuple(f"text {i}" for i in range(len(texts))), _checked(clip, texts))
        names, prompts = checked_names(read_texts(texts)), read_templates(templates)
        return Texts(names, clip.encode_text(names, templates=prompts), prompts)

    def contrast(self, clip: Clip, against: Against | Contrast, alone: str = NOTHING) -> Contrast:
        """Embed what these texts are compared with, through their templates; see `contrast_of`.

        Args:
            clip: the model.
            against: what was asked for.
            alone: what stands for "each other" where there is one text.
        """
        if isinstance(against, str) and against == EACH_OTHER and len(self) == 1:
            against = alone
        if isinstance(against, Tensor | Contrast):
            return contrast_of(clip, against, self.templates)
        key = tuple(against) if isinstance(against, list) else against
        if key not in self.contrasts:
            self.contrasts[key] = contrast_of(clip, against, self.templates)
        return self.contrasts[key]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    def __add__(self, other: "Texts") -> "Texts":
        """Return both, one after the other."""
        return Texts((*self.names, *other.names), torch.cat([self.embeddings, other.embeddings]), self.templates)


def checked_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts, if each says something and none stands twice.

    Raises:
        BadText: no text, something that is none, one that is blank, stands twice or holds half a character.
    """
    names = tuple(check_printable(texts))
    if blank := [i for i, text in enumerate(names) if not text.strip()]:
        raise BadText(f"text {blank[0]} is blank: there is nothing to look for. Type a word or a sentence")
    if twice := [text for i, text in enumerate(names) if text in names[:i]]:
        raise BadText(f"text {twice[0]!r} stands twice. Type: list(dict.fromkeys(texts))")
    return names


def _checked(clip: Clip, given: Tensor) -> Float[Tensor, "text embed"]:
    embed = clip.text_tower.embed
    if given.dim() != 2 or not len(given) or given.shape[1] != embed:
        raise BadText(
            f"text embeddings are {list(given.shape)}; [text, {embed}] was expected. Type: clip.encode_text([...])"
        )
    embeddings = given.to(clip.device).float()
    wrong = (~embeddings.isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise BadText(f"text embedding {wrong[0]} holds NaN or infinite values. Type: clip.encode_text([...])")
    return embeddings
