"""`explain_text`: why a sentence means to CLIP what it does, as shares of its cosines with pictures or with other texts.

The text tower splits as exactly as the image tower, with the end-of-text token as its readout row, so that

    cos(sentence, target) = Σ_word + start and end marks + Σ MLPs + input embedding + biases,        Σ_word + marks = Σ heads

Its heads are named by TextSpan over what they write for many texts: by texts, or by pictures, whose embeddings are the pool then.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.masked import spread
from clip_anatomy.data.picture_batches import NamedPicture, Pictures, embedded_pictures
from clip_anatomy.errors import BadText
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.loading.typed_texts import checked_texts, shorten
from clip_anatomy.loading.word_pieces import word_tokens
from clip_anatomy.naming.bundled_pools import pool_of
from clip_anatomy.naming.pool import Pool
from clip_anatomy.naming.textspan import textspan
from clip_anatomy.number_ranges import whole, within
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.basis import basis_of, coordinates_of
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.parts import decompose_text
from clip_anatomy.split.picture_explanation import PictureExplanation, explanation_dict, signed

__all__ = ["SCHEMA", "TextExplanation", "explain_text", "text_moments"]

SCHEMA = "clip-anatomy/explain-text/1"
NEAREST, NAMES, BATCH = 6, 3, 64
CORPUS = 512  # texts of the pool over which heads are named
LEAST = 16  # pictures that name heads; fewer say nothing


@public
@dataclass(frozen=True, repr=False)
class TextExplanation(Result):
    """The cosines of one sentence with its targets, split by the text tower's parts.

    Attributes:
        sentence: the text.
        words: those that the model read.
        targets: what it was compared with: pictures, texts, or the nearest texts of the pool; most alike first.
        shares: heads [layer, head, target], MLPs and so on; `patches` are the words, [1, word, target]; `class_token` the start and end
            marks.
        names: "LAYER.HEAD" → the texts (and the pictures) that explain most of what this head of the text tower writes.
        by_pictures: the same, by the pictures given.
        pictures: where targets are pictures, these.
        notes: what a reader must know.
    """

    presenter: ClassVar[str] = "text_page"

    sentence: str
    words: tuple[str, ...]
    targets: tuple[str, ...]
    shares: PictureExplanation = field(repr=False)
    names: dict[str, tuple[str, ...]]
    by_pictures: dict[str, tuple[str, ...]]
    pictures: tuple[NamedPicture, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def by_word(self) -> Float[Tensor, "word target"]:
        """Return each word's share of each cosine: what all heads read from its tokens."""
        return self.shares.patches[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, ready for JSON."""
        rows = explanation_dict(self.shares, self.targets)
        for at, row in enumerate(rows):
            del row["patches"], row["probability"]
            row["start_and_end_marks"] = row.pop("class_token")
            row["words"] = [[w, round(v, 7)] for w, v in zip(self.words, self.by_word[:, at].tolist(), strict=True)]
            for ends in (row["yes_and_no"], row["against_other_texts"] and row["against_other_texts"]["yes_and_no"]):
                if ends:
                    del ends["yes_patches"], ends["no_patches"]
            row["target"] = row.pop("text")
            row["against_other_targets"] = row.pop("against_other_texts")
        return {
            "schema": SCHEMA, "sentence": self.sentence, "words": list(self.words), "targets": rows,
            "heads_by_texts": {name: list(texts) for name, texts in self.names.items()},
            "heads_by_pictures": {name: list(pictures) for name, pictures in self.by_pictures.items()},
            "notes": list(self.notes),
        }  # fmt: skip

    def strongest_parts(self, target: int, count: int = NEAREST) -> list[tuple[str, float]]:
        """Return the heads and MLPs with the largest shares of one cosine, by absolute value."""
        ranked = sorted(
            self.shares.ranked_parts(within("target", target, len(self.targets))), key=lambda one: -abs(one.value)
        )
        return [(one.name, one.value) for one in ranked[:count]]

    def summary(self) -> str:
        """Return a line of words for each target, and the loudest parts with their names."""
        columns = ["target", ">cosine", *(f">{shorten(word, 14)}" for word in self.words), ">marks", ">rest"]
        rows: list[list[str]] = []
        for at, target in enumerate(self.targets):
            words, marks = self.by_word[:, at].tolist(), float(self.shares.class_token[at])
            cosine = float(self.shares.cosine[at])
            rows.append([shorten(target, 40), *map(signed, (cosine, *words, marks, cosine - sum(words) - marks))])
        heads = [f"  {name} {signed(value)}{self.named(name)}" for name, value in self.strongest_parts(0)]
        table = text_table(columns, rows, title=f"“{shorten(self.sentence)}”, word by word", wide=160)
        return "\n".join([table, f"strongest parts of the text tower for “{shorten(self.targets[0], 40)}”:", *heads])

    def named(self, part: str) -> str:
        """Return what a part is about, " (a; b)", or nothing."""
        layer_head = part.removeprefix("layer ").replace(" head ", ".")
        texts = self.names.get(layer_head, ())
        return f" ({'; '.join(texts)})" if texts else ""


@public
def explain_text(
    clip: Clip | ModelSource,
    sentence: str,
    images: Pictures | None = None,
    *,
    texts: Sequence[str] | None = None,
    pool: str | Path | Pool | None = None,
    allow_urls: bool = False,
    progress: Progress | None = None,
) -> TextExplanation:
    """Say why a sentence means to CLIP what it does: the share of its cosines that every word, head and MLP of the text tower wrote.

    Args:
        clip: an opened model, or what `load` opens.
        sentence: one text.
        images: pictures to compare it with; with sixteen or more, heads are named by them too.
        texts: texts to compare it with, beside or instead of pictures. Without either: the nearest texts of the pool.
        pool: texts that name heads, as in `atlas`.
        allow_urls: fetch http(s) addresses.
        progress: told texts and pictures.

    Returns:
        TextExplanation: `by_word`, `shares`, `names`; `save(folder)` writes a page.

    Raises:
        BadText: a sentence without a word, or no target beside the sentence itself.
        UnsupportedModel: a text tower that its own library runs as one part.

    Example:
        >>> import clip_anatomy as ca
        >>> result = ca.explain_text("demo", "a dotted purple bird", texts=["a bird", "a fish"])
        >>> result.words, bool(result.shares.residue.abs().max() < 1e-5)
        (('a', 'dotted', 'purple', 'bird'), True)
    """
    clip, tell = as_clip(clip), progress or silent
    if not isinstance(sentence, str) or not sentence.strip():
        raise BadText(f"{sentence!r} holds no word. Type a sentence, e.g. 'a red circle on the grass'")
    typed = checked_texts([sentence], clip.tokenizer)[0]
    known, _ = pool_of(pool, clip)
    embedded = F.normalize(embed_texts(clip, known.texts, progress=tell).float(), dim=-1)
    pictures, named, vectors = _pictures(clip, images, allow_urls, tell)
    labels, notes = list(named), typed.notes
    if texts:
        labels += (wanted := [one.text for one in checked_texts(list(texts), clip.tokenizer)])
        vectors = torch.cat([vectors, F.normalize(clip.encode_text(wanted).float().cpu(), dim=-1)])
    if not labels:
        unit = F.normalize(clip.encode_text([typed.text]).float().cpu(), dim=-1)[0]
        order = [
            at for at in (embedded.cpu() @ unit).argsort(descending=True).tolist() if known.texts[at] != typed.text
        ]
        if not order:
            raise BadText("the pool holds no text beside the sentence itself. Type texts=[...], or another pool=")
        labels, vectors = [known.texts[at] for at in order[:NEAREST]], embedded[order[:NEAREST]].cpu()
        notes = (*notes, f"nothing was given to compare it with: these are the nearest of {len(known.texts):,} texts")
    words, shares = _split(clip, typed.text, vectors)
    order = shares.cosine.argsort(descending=True).tolist()
    shares = _ordered(shares, order)
    corpus = spread(known.texts, CORPUS)
    moments = text_moments(clip, corpus, progress=tell)
    by_texts = _names(moments, embedded.cpu(), known.texts)
    gap = vectors[: len(named)]
    by_pictures = _names(moments, F.normalize(gap - gap.mean(0), dim=-1), named) if len(named) >= LEAST else {}
    return TextExplanation(
        typed.text, words, tuple(labels[at] for at in order), shares, by_texts, by_pictures, pictures, notes
    )


def text_moments(clip: Clip, texts: Sequence[str], *, progress: Progress | None = None) -> Moments:
    """Take the moments of what the text tower's heads write for many texts, for TextSpan and means.

    Args:
        clip: an opened model.
        texts: two or more, of the kind that heads are to be named over.
        progress: told how many are done.

    Returns:
        Moments in head coordinates.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.naming.textspan import textspan
        >>> clip, texts = ca.load("demo"), ["a red bird", "a blue fish", "a star in the sky"]
        >>> textspan(text_moments(clip, texts), clip.encode_text(texts), 1).indices.shape[2]
        1
    """
    whole("texts", len(texts), 2)
    tell, tower = progress or silent, clip.text_tower
    basis, some = basis_of(tower), list[Moments]()
    for first in range(0, len(texts), BATCH):
        trace = tower.trace(clip.ids(list(texts[first : first + BATCH])))
        some.append(Moments.of(coordinates_of(basis, tower, trace), basis=basis, model=clip.digest))
        tell("splitting texts", min(first + BATCH, len(texts)), len(texts))
    return Moments.merged(some)


def _pictures(
    clip: Clip, images: Pictures | None, allow_urls: bool, tell: Progress
) -> tuple[tuple[NamedPicture, ...] | None, tuple[str, ...], Float[Tensor, "picture embed"]]:
    if images is None:
        return None, (), torch.zeros(0, clip.text_tower.embed)
    vectors, names, pictures = embedded_pictures(clip, images, allow_urls=allow_urls, progress=tell)
    return pictures, names, F.normalize(vectors.float(), dim=-1)


def _split(
    clip: Clip, sentence: str, targets: Float[Tensor, "target embed"]
) -> tuple[tuple[str, ...], PictureExplanation]:
    """Split the cosines of a sentence: its words stand where a picture's patches do."""
    ids = clip.ids([sentence])
    parts = decompose_text(clip, ids, images=targets.to(clip.device))
    toward, tokens = parts.toward(targets), parts.tokens(targets.to(clip.device))[0].sum((0, 1)).cpu()
    spans = [(word, at) for word, at in word_tokens(clip.tokenizer, sentence, ids.shape[1]) if at]
    words = torch.stack([tokens[at].sum(0) for _, at in spans]) if spans else tokens[:0]
    cosine = toward.cosine[0].cpu()
    return tuple(word for word, _ in spans), PictureExplanation(
        cosine=cosine,
        probability=cosine,
        heads=toward.heads[0].cpu(),
        mlps=toward.mlps[0].cpu(),
        input_embedding=toward.input_embedding[0].cpu(),
        bias=toward.bias[0].cpu(),
        patches=words[None],
        class_token=tokens.sum(0) - words.sum(0),
    )


def _ordered(shares: PictureExplanation, order: Sequence[int]) -> PictureExplanation:
    parts = ("cosine", "probability", "heads", "mlps", "input_embedding", "bias", "patches", "class_token")
    return PictureExplanation(**{name: getattr(shares, name)[..., list(order)] for name in parts})


def _names(moments: Moments, pool: Tensor, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name every head by the first picks of TextSpan."""
    span = textspan(moments, pool, NAMES)
    return {
        f"{layer}.{head}": tuple(pick.text for pick in span.picks(layer, head, labels)) for layer, head in span.heads()
    }
