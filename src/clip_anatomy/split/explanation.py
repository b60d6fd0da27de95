"""`explain`: why pictures match texts, as shares of each cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from clip_anatomy import __version__
from clip_anatomy.data.picture import Source
from clip_anatomy.data.picture_batches import Failed, NamedPicture, Pictures, picture_batches
from clip_anatomy.errors import BadInput
from clip_anatomy.images.geometry import Geometry
from clip_anatomy.images.input_size import Size
from clip_anatomy.images.pixels import listed
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.load import ModelSource, as_clip
from clip_anatomy.loading.typed_texts import TypedText, read_templates, shorten, typed_texts
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result, text_table
from clip_anatomy.split.picture_explanation import (
    PictureExplanation,
    explain_pixels,
    explanation_dict,
    signed,
    sink_patch,
)
from clip_anatomy.split.versus import Versus, minus, other_model

__all__ = ["SCHEMA", "Explanation", "explain"]

SCHEMA = "clip-anatomy/explain/1"
BATCH = 16
MOST_TABLES = 4  # pictures that a summary gives a table each
MOST_LINES = 100  # pictures in a summary


@public
@dataclass(frozen=True, repr=False)
class Explanation(Result):
    """The cosines of pictures with texts, split into heads, MLPs and patches.

    Attributes:
        clip: the model.
        texts: in order, each once.
        images: per picture the split of its cosines, in order.
        pictures: the originals; None for preprocessed tensors.
        geometries: where the model's input lies in them; None likewise.
        failed: name and error of pictures that could not be used.
        notes: what a reader must know before believing a number.
        templates: prompts that the texts were put into; None for none.
        size: how the pictures were looked at; see `explain`.
        versus: what every picture is the difference to: another picture by the same model, or the same pictures by another; None for
            nothing. `images` hold the differences.
    """

    clip: Clip
    texts: tuple[TypedText, ...]
    images: tuple[PictureExplanation, ...]
    pictures: tuple[NamedPicture, ...] | None = None
    geometries: tuple[Geometry, ...] | None = None
    failed: tuple[Failed, ...] = ()
    notes: tuple[str, ...] = ()
    templates: tuple[str, ...] | None = None
    size: Size = None
    versus: "Explanation | None" = None
    presenter: ClassVar[str] = "explain_folder"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def __getitem__(self, image: int) -> PictureExplanation:
        """Return the split cosines of one picture."""
        return self.images[image]

    @property
    def names(self) -> tuple[str, ...]:
        """What the pictures are called."""
        return tuple(f"image {i}" if self.pictures is None else self.pictures[i].name for i in range(len(self)))

    @property
    def all_notes(self) -> list[str]:
        """What a reader must know, of the run and of each text."""
        return [*self.notes, *(f"“{text.short}”: {note}" for text in self.texts for note in text.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, and the model that they are of."""
        clip, texts = self.clip, [text.text for text in self.texts]
        model = {
            "name": clip.name,
            "digest": clip.digest,
            "layers": clip.vision.layers,
            "heads": clip.vision.heads,
            "logit_scale": clip.logit_scale,
            "logit_bias": clip.logit_bias,
            "preprocess": clip.preprocess.to_dict(),
            "proof": None if clip.proof is None else asdict(clip.proof),
        }
        return {
            "schema": SCHEMA,
            "version": __version__,
            "model": model,
            "convention": "centered",
            **({} if self.templates is None else {"templates": list(self.templates)}),
            **({} if self.size is None else {"size": list(self.size) if isinstance(self.size, tuple) else self.size}),
            **({} if self.versus is None else {"versus": self._versus_dict(self.versus)}),
            "notes": list(self.notes),
            "texts": [{"text": text.text, "notes": list(text.notes)} for text in self.texts],
            "failed": [{"image": name, "error": error} for name, error in self.failed],
            "files": [],
            "images": [
                {
                    "image": self.names[i],
                    **self._place(i),
                    "sink": sink_patch(each),
                    "texts": explanation_dict(each, texts),
                }
                for i, each in enumerate(self.images)
            ],
        }

    def _versus_dict(self, versus: "Explanation") -> dict[str, Any]:
        if versus.clip is not self.clip:
            return {"model": {"name": versus.clip.name, "digest": versus.clip.digest}}
        return {"image": versus.names[0], **versus._place(0)}

    def _place(self, image: int) -> dict[str, Any]:
        if self.pictures is None or self.geometries is None:
            return {}
        where = self.geometries[image]
        edges = [round(edge, 3) for edge in where.visible]
        height, width = where.picture
        return {"caption": self.pictures[image].caption, "width": width, "height": height, "visible": edges}

    def summary(self) -> str:
        """Return the texts of each picture with what says most for and against them; of many pictures a line each."""
        tables = [self._line_per_picture()] if len(self) > MOST_TABLES else list(map(self._table, range(len(self))))
        if len(self) > MOST_LINES:
            tables.append(f"… and {len(self) - MOST_LINES:,} more pictures")
        if self.versus is not None:
            tables.append(
                f"difference: of the cosines, this minus {self.images[0].versus}; the loudest are of the difference."
            )
        if len(self.texts) > 1:
            tables.append(f"{self._rule}. Loudest: for this text more than for the others.")
        return "\n\n".join(tables)

    @property
    def _rule(self) -> str:
        """Say how a cosine becomes a number between 0 and 1."""
        if self.clip.logit_bias is None:
            return (
                f"share: softmax over these texts only, {1 / max(1, len(self.texts)):.1%} each where they say nothing"
            )
        return "probability: sigmoid(scale · cosine + bias), each text by itself"

    @property
    def _cosine(self) -> list[str]:
        return [">cosine"] if self.versus is None else [">cosine", ">of versus", ">difference"]

    @property
    def _score(self) -> list[str]:
        """Name its column, where there is one: a softmax over one text says nothing."""
        if self.clip.logit_bias is not None:
            return [">probability"]
        return [">share"] if len(self.texts) > 1 else []

    def _table(self, image: int) -> str:
        """Return one picture: the texts, best first, and the parts that say most for and against each."""
        each = self.images[image]
        columns = ["text", *self._cosine, *self._score, "loudest yes", "loudest no"]
        order = (each.cosine if each.cosines is None else each.cosine.abs()).argsort(descending=True).tolist()
        return text_table(columns, [self._cells(image, k) for k in order], title=self.names[image], wide=120)

    def _line_per_picture(self) -> str:
        columns = ["picture", "best text", *self._cosine, *self._score, "loudest yes", "loudest no"]
        best = [int(each.cosine.argmax()) for each in self.images[:MOST_LINES]]
        rows = [[shorten(Path(self.names[i]).name, 30), *self._cells(i, k)] for i, k in enumerate(best)]
        return text_table(columns, rows, wide=140)

    def _cells(self, image: int, text: int) -> list[str]:
        """Return what a table says of one picture and text."""
        each, several = self.images[image], len(self.texts) > 1
        parts = (each.contrast() if several else each).ranked_parts(text)
        share = [f"{float(each.probability[text]):.1%}"] if self._score else []
        ends = [f"{part.name} {part.signed}" for part in (parts[0], parts[-1])] if len(parts) > 1 else ["", ""]
        cosines = [each.cosine] if each.cosines is None else [*each.cosines, each.cosine]
        return [shorten(self.texts[text].text, 46), *(signed(float(one[text])) for one in cosines), *share, *ends]


@public
def explain(
    clip: Clip | ModelSource,
    images: Pictures,
    texts: Sequence[str],
    *,
    versus: Versus | None = None,
    templates: Sequence[str] | None = None,
    size: Size = None,
    allow_urls: bool = False,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """Say why pictures match texts: the share of each cosine that every head, MLP and patch wrote.

    Source: Gandelsman et al., "Interpreting CLIP's Image Representation via Text-Based Decomposition" (ICLR 2024), §3 and §5;
    here each part is centred by its own mean (convention "centered").

    Args:
        clip: an opened model, or what `load` opens.
        images: paths (of a folder all pictures in it), PIL images, arrays, or a preprocessed tensor [image, 3, row, col].
        texts: what to compare them with; two or more, to see what speaks for one more than for the others.
        versus: another picture, or another model of the same architecture (what `load` opens): every number is then the difference to it, and
            adds up to the difference of the cosines.
        templates: prompts with one `{}` each, averaged as CLIP's own recipe does; "imagenet" for its 80.
        size: None looks through the model's own resize and crop; "whole" crops nothing; a number is the short side; (row, col)
            squashes.
        allow_urls: fetch http(s) addresses.
        skip_bad: leave out pictures that cannot be used (`failed` names them) instead of raising at the first.
        progress: told how many pictures are done.

    Returns:
        Explanation: `[i]` are the numbers of one picture.

    Raises:
        BadImage: an image cannot be used, or none of them can.
        BadText: no text, or one without a visible character.
        ModelError: the embeddings are not finite.

    Example:
        >>> import clip_anatomy as ca
        >>> from clip_anatomy.loading.demo import examples
        >>> result = ca.explain("demo", examples()[:2], ["a bird", "the sky"])
        >>> result[0].heads.shape, bool(result[0].residue.abs().max() < 1e-5)
        (torch.Size([8, 6, 2]), True)
    """
    clip = as_clip(clip)
    if versus is not None:
        images = images if isinstance(images, Tensor | Source | str | Path) else listed(images)[1]
        options: dict[str, Any] = {"templates": templates, "size": size, "allow_urls": allow_urls, "progress": progress}
        explanation = explain(clip, images, texts, skip_bad=skip_bad, **options)
        return _differences(explanation, versus, images, options)
    typed, notes = typed_texts(texts, clip.tokenizer)
    prompts = read_templates(templates)
    embeddings = clip.encode_text([text.text for text in typed], prompts)
    failed: list[Failed] | None = [] if skip_bad else None
    explained: dict[int, tuple[PictureExplanation, Geometry | None, NamedPicture | None]] = {}
    for batch in picture_batches(
        clip, images, size, BATCH, allow_urls=allow_urls, failed=failed, notes=notes, progress=progress
    ):
        split = explain_pixels(clip, batch.pixels, embeddings)
        unknown = (None,) * len(split)
        rows = zip(split, batch.geometries or unknown, batch.pictures or unknown, strict=True)
        explained.update(zip(batch.places, rows, strict=True))
    each = [explained[place] for place in sorted(explained)]
    geometries = tuple(geometry for _, geometry, _ in each if geometry is not None)
    pictures = tuple(picture for _, _, picture in each if picture is not None)
    return Explanation(
        clip, tuple(typed), tuple(split for split, _, _ in each), pictures or None, geometries or None, tuple(failed or ()),
        tuple(notes), prompts, size,
    )  # fmt: skip


def _differences(explanation: Explanation, versus: Versus, images: Pictures, options: Mapping[str, Any]) -> Explanation:
    """Return the same pictures as differences to another picture, or to what another model says of them."""
    texts, model = [text.text for text in explanation.texts], other_model(versus, str(explanation.clip.device))
    if model is None:
        other = explain(explanation.clip, cast("Pictures", versus), texts, **options)
        if len(other) != 1:
            raise BadInput(f"versus is one picture, not {len(other)}. Give the path of a picture")
        name, others = Path(other.names[0]).name, [other.images[0]] * len(explanation)
    else:
        again = images if explanation.pictures is None else explanation.pictures
        other = explain(model, again, texts, **options)
        name, others = model.name, list(other.images)
    each = zip(explanation.images, others, strict=True)
    split = tuple(minus(own, theirs, name, other_picture=model is None) for own, theirs in each)
    return replace(explanation, images=split, versus=other)
