"""`apply`: embed a collection with an edited model, and count what the edit changes about texts."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.picture import Source
from clip_anatomy.data.picture_batches import Failed, PictureBatch, picture_batches
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.open_edited import open_edited
from clip_anatomy.errors import BadInput, OutputError
from clip_anatomy.files import path_of, written_whole
from clip_anatomy.images.batch_size import BatchSize, split_when_out_of_memory
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.typed_texts import shorten, typed_texts
from clip_anatomy.number_ranges import whole
from clip_anatomy.progress import Progress, silent
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result

__all__ = ["FORMATS", "Applied", "apply"]

FORMATS = (".npz", ".safetensors", ".jsonl")
FILE_SCHEMA = "clip-anatomy/applied/1"
SCHEMA = "clip-anatomy/apply/1"
SHOWN = 12  # texts in the summary


@dataclass(frozen=True, repr=False)
class Applied(Result):
    """What a run did; the embeddings are in its file.

    Attributes:
        model: name of the model.
        edit: what is replaced, in words, one entry a part.
        out: the file.
        done: images in it.
        failed: id and message of those that could not be used.
        moved: mean angle in degrees between an image's embedding without and with the edit.
        changed: share of the images whose best text is another one with the edit; None without texts.
        first: text → for how many images it comes first, without and with the edit.
        seconds: wall time.
        notes: what a reader must know of the texts.
    """

    presenter: ClassVar[str] = ""
    model: str
    edit: tuple[str, ...]
    out: str
    done: int
    failed: tuple[tuple[str, str], ...]
    moved: float
    changed: float | None
    first: Mapping[str, tuple[int, int]]
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": SCHEMA, **{name: value for name, value in vars(self).items() if name != "notes"}}

    def summary(self) -> str:
        """Return what was replaced, how far the embeddings moved, and the texts that come first without and with the edit."""
        more = f" and {len(self.edit) - 6} more" if len(self.edit) > 6 else ""
        failed = f", {len(self.failed):,} not used" if self.failed else ""
        changed = (
            "" if self.changed is None else f"; another text comes first for {100 * self.changed:.1f} % of the images"
        )
        lines = [
            f"{self.model}, edited: {'; '.join(self.edit[:6]) or 'nothing'}{more}",
            f"{self.out}: {self.done:,} images{failed} in {self.seconds:.0f} s",
            f"embeddings turned by {self.moved:.1f} degrees on average{changed}",
        ]
        most = sorted(self.first.items(), key=lambda one: -max(one[1]))[:SHOWN]
        width = max((len(shorten(text, 60)) for text, _ in most), default=0)
        for at, (text, counts) in enumerate(most):
            before, after = (f"{100 * count / self.done:5.1f} %" for count in counts)
            lines.append(
                f"  {shorten(text, 60):<{width}}  first for {before} → {after}{' with the edit' if not at else ''}"
            )
        if len(self.first) > SHOWN:
            lines.append(f"  … and {len(self.first) - SHOWN:,} more texts (all of them are in the JSON)")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Batch:
    ids: list[str]
    paths: list[str]
    embedding: Float[Tensor, "image embed"]
    unedited: Float[Tensor, "_image embed"]  # none where they were only counted
    before: Float[Tensor, "image text"] | None
    after: Float[Tensor, "image text"] | None


@public
def apply(
    edit: "EditedClip | Edit | str | Path",
    source: "Source | str | Path",
    *,
    out: str | Path = "embeddings.npz",
    texts: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    model: "Clip | str | None" = None,
    weights: str | None = None,
    batch: int = 32,
    workers: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Applied:
    """Embed pictures with an edited model, and say what the edit changes about them.

    Args:
        edit: an edit, its .json file ("a.json+b.json" for several), or an edited model.
        source: from `open_dataset`, or what it reads: a folder, list, table, tars, "world:COUNT".
        out: `.npz` or `.safetensors` (arrays `ids`, `embedding`, and with texts `before` and `after`) or `.jsonl` (a line per
            image, written as they come, so that memory stays small). Embeddings are float32 and not normalised.
        texts: what to say of each image: probabilities over them with the unedited and with the edited model.
        templates: prompts, as in `encode_text`.
        model: the model of the edit, or its name or path, where it is found by another name.
        weights: a checkpoint file for open_clip:NAME.
        batch: images at once; halved when memory runs out.
        workers: threads that decode.
        device: auto, cpu, cuda, cuda:1, mps.
        progress: called with what is being done, images done, images in all.

    Returns:
        What was done. A picture that cannot be read is named in it, and the others are done.

    Raises:
        BadInput: no picture could be used, the collection is empty, or the edit is of another model.
        OutputError: the file cannot be written; nothing is left behind.
    """
    out = _output_file(out)
    whole("batch", batch, 1, 65_536)
    began, tell = time.monotonic(), progress or silent
    tell("opening the model", 0, 1)
    edited = open_edited(edit, model, weights=weights, device=device)
    source = open_dataset(source)
    typed, notes = typed_texts(texts, edited.clip.tokenizer) if texts else ([], [])
    notes += [f'on "{one.short}": {remark}' for one in typed for remark in one.notes]
    texts = [one.text for one in typed]
    prompts = None
    if texts:
        with torch.no_grad():
            prompts = torch.stack([edited.clip.encode_text(texts, templates), edited.embed_texts(texts, templates)])
            prompts = torch.nn.functional.normalize(prompts.to(edited.logit_scale.device), dim=-1)
    failed: list[Failed] = []
    batch_size = BatchSize.fixed(batch)
    changes = _Changes(texts)
    with _writing(out, edited, texts) as write:
        for batch_of_pictures in picture_batches(
            edited.clip, source, None, batch_size, failed=failed, notes=notes, workers=workers,
            progress=lambda _, done, total: tell("embedding", done, total),
        ):  # fmt: skip
            embedded = _embed(edited, batch_of_pictures, prompts, failed, batch_size)
            write(embedded)
            changes.add(embedded)
        if not changes.done:
            raise BadInput(
                f"no picture of {source.spec} could be used ({len(failed)} tried; the first: {failed[0][0]}: {failed[0][1]}). "
                "Type a collection with whole pictures"
            )
    return Applied(
        edited.edit.model, tuple(edited.edit.descriptions), str(out), changes.done, tuple(failed), changes.moved, changes.changed,
        changes.first, time.monotonic() - began, tuple(notes),
    )  # fmt: skip


def _output_file(out: str | Path) -> Path:
    """Return where embeddings are written.

    Raises:
        OutputError: no format that is written, or a folder.
    """
    path = path_of(out)
    if path.suffix not in FORMATS:
        raise OutputError(f"{path}: embeddings are kept as {', '.join(FORMATS)}. Type out='embeddings.npz'")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; a file was expected. Type out='{path / 'embeddings'}{path.suffix}'")
    return path


class _Changes:
    """Counts of what the edit changes, over the batches so far."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.done, self.turned, self.switched = 0, 0.0, 0
        self.counts = torch.zeros(2, len(texts), dtype=torch.long)

    def add(self, batch: _Batch) -> None:
        """Count one batch."""
        self.done += len(batch.ids)
        cosine = torch.nn.functional.cosine_similarity(batch.embedding, batch.unedited, dim=-1)
        self.turned += float(cosine.clamp(-1, 1).arccos().rad2deg().sum())
        if batch.before is not None and batch.after is not None:
            best = torch.stack([batch.before.argmax(1), batch.after.argmax(1)])
            self.switched += int((best[0] != best[1]).sum())
            self.counts += torch.stack([one.bincount(minlength=len(self.texts)) for one in best])

    @property
    def moved(self) -> float:
        """Mean angle in degrees between embeddings without and with the edit."""
        return self.turned / self.done

    @property
    def changed(self) -> float | None:
        """Share of images whose best text is another one; None without texts."""
        return self.switched / self.done if self.texts else None

    @property
    def first(self) -> dict[str, tuple[int, int]]:
        """Text → for how many images it comes first, without and with the edit."""
        pairs = zip(self.texts, *self.counts.tolist(), strict=True)
        return {text: (int(before), int(after)) for text, before, after in pairs}


def _embed(
    model: EditedClip,
    batch: PictureBatch,
    prompts: Tensor | None,
    failed: list[Failed],
    batch_size: BatchSize,
) -> _Batch:
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            both = model.encode_both(pixels)
        return both[0].float(), both[1].float()

    results = split_when_out_of_memory(run, batch.pixels, batch_size.ran_out)
    unedited, edited = (torch.cat(parts) for parts in zip(*results, strict=True))
    finite = torch.isfinite(edited).all(-1) & torch.isfinite(unedited).all(-1)
    rows = list(zip(batch.pictures or (), finite.tolist(), strict=True))
    failed += [
        (one.name, "the model's output is not finite. Load it with dtype='float32'") for one, good in rows if not good
    ]
    usable = [picture for picture, good in rows if good]
    unedited, edited = unedited[finite], edited[finite]
    before, after = (
        None if prompts is None else _chances(model, x, prompts[at]) for at, x in enumerate((unedited, edited))
    )
    return _Batch(
        [picture.name for picture in usable], [picture.path or "" for picture in usable], edited.cpu(), unedited.cpu(), before, after
    )  # fmt: skip


def _chances(model: EditedClip, x: Tensor, prompts: Tensor) -> Float[Tensor, "image text"]:
    cosine = torch.nn.functional.normalize(x, dim=-1) @ prompts.T
    return model.clip.probabilities(cosine).cpu()


@contextmanager
def _writing(out: Path, model: EditedClip, texts: Sequence[str]) -> Generator[Callable[[_Batch], None]]:
    """Open a temporary file beside, renamed when all is in it."""
    header = {
        "schema": FILE_SCHEMA,
        "model": model.edit.model,
        "edit": "; ".join(model.edit.descriptions),
        "texts": list(texts),
    }
    # A place that cannot be written is said before the work, not after it.
    with written_whole(out, "Type a file in a folder that exists: out='NAME.npz'") as temporary:
        if out.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as handle:
                handle.write(json.dumps({**header, "embed": model.edit.embed}, ensure_ascii=False) + "\n")
                yield lambda batch: handle.writelines(_lines(batch, texts))
            return
        batches: list[_Batch] = []
        yield lambda batch: batches.append(replace(batch, unedited=batch.unedited[:0]))  # what is written, no more
        _save(temporary, out.suffix, batches, header)


def _lines(batch: _Batch, texts: Sequence[str]) -> Iterator[str]:
    for row, name in enumerate(batch.ids):
        line: dict[str, Any] = {"id": name, "path": batch.paths[row]}
        for key, chances in (("before", batch.before), ("after", batch.after)):
            if chances is not None:
                line[key] = {text: round(p, 6) for text, p in zip(texts, chances[row].tolist(), strict=True)}
        yield json.dumps({**line, "embedding": batch.embedding[row].tolist()}, ensure_ascii=False) + "\n"


def _save(path: Path, suffix: str, batches: list[_Batch], header: dict[str, Any]) -> None:
    if not batches:
        return
    arrays = {"embedding": torch.cat([batch.embedding for batch in batches])}
    for key in ("before", "after"):
        if getattr(batches[0], key) is not None:
            arrays[key] = torch.cat([getattr(batch, key) for batch in batches])
    ids = [name for batch in batches for name in batch.ids]
    paths = [name for batch in batches for name in batch.paths]
    if suffix == ".npz":
        named = {"ids": ids, "paths": paths, "texts": header["texts"]}
        plain: dict[str, Any] = {name: np.array(value, dtype=str) for name, value in named.items()}
        plain |= {name: array.numpy() for name, array in arrays.items()}
        with path.open("wb") as handle:
            np.savez(handle, **plain)
        return
    from safetensors.torch import save_file

    save_file(
        arrays, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in
                       {**header, "ids": ids, "paths": paths}.items()}
    )  # fmt: skip
