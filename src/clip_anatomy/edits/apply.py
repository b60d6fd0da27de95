"""`apply`: run an edited model over a collection, and keep its embeddings (and what it says of texts, before and after)."""

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clip_anatomy.data.picture import SUFFIXES, Decoded, Picture, Source, decode, stack
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadImage, BadInput, OutputError
from clip_anatomy.files import path_of
from clip_anatomy.images.batch_size import BatchSize, split_when_out_of_memory
from clip_anatomy.images.prefetch import prefetched
from clip_anatomy.store.walk_progress import Progress

__all__ = ["FORMATS", "Applied", "apply"]

FORMATS = (".npz", ".safetensors", ".jsonl")
SCHEMA = "clip-anatomy/applied/1"
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Applied:
    """What a run did.

    Attributes:
        out: the file.
        done: images in it.
        failed: id and message of those that could not be used.
        moved: mean angle in degrees between an image's embedding without and with the edit.
        changed: share of the images whose best text is another one with the edit; None without texts.
        first: text → for how many images it comes first, without and with the edit.
        seconds: wall time.
    """

    out: str
    done: int
    failed: tuple[tuple[str, str], ...]
    moved: float
    changed: float | None
    first: Mapping[str, tuple[int, int]]
    seconds: float


@dataclass(frozen=True)
class _Batch:
    ids: list[str]
    paths: list[str]
    embedding: Float[Tensor, "image embed"]
    unedited: Float[Tensor, "_image embed"]  # none where they were only counted
    before: Float[Tensor, "image text"] | None
    after: Float[Tensor, "image text"] | None


def apply(
    model: EditedClip,
    source: Source,
    out: str | Path,
    *,
    texts: Sequence[str] = (),
    templates: Sequence[str] | None = None,
    batch: int = 32,
    workers: int | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Applied:
    """Embed every picture of a collection with an edited model.

    Args:
        model: the edited model.
        source: from `open_source`: a folder, list, table, tars, `world:COUNT`.
        out: `.npz` or `.safetensors` (arrays `ids`, `embedding`, and with texts `before` and `after`) or `.jsonl` (a line per
            image, written as they come, so that memory stays small). Embeddings are float32 and not normalised.
        texts: what to say of each image: probabilities over them with the unedited and with the edited model.
        templates: prompts, as in `encode_text`.
        batch: images at once; halved when memory runs out.
        workers: threads that decode.
        report: called with the progress.

    Returns:
        What was done. A picture that cannot be read is named in it, and the others are done.

    Raises:
        BadInput: no picture could be used, the collection is empty, or a text stands twice.
        OutputError: the file cannot be written; nothing is left behind.
    """
    out = path_of(out)
    if out.suffix not in FORMATS:
        raise OutputError(f"{out}: embeddings are kept as {', '.join(FORMATS)}. Type --out embeddings.npz")
    if out.is_dir():
        raise OutputError(f"{out} is a folder; a file was expected. Type --out {out / 'embeddings'}{out.suffix}")
    if batch < 1:
        raise BadInput(f"batch={batch}: at least one image at once. Type batch=32")
    if twice := next((text for text in texts if list(texts).count(text) > 1), None):
        raise BadInput(f"the text {twice!r} stands twice, so its probability would be halved. Leave one of the two out")
    began = time.monotonic()
    device = model.image_tower.projection.device
    prompts = None
    if texts:
        with torch.no_grad():
            prompts = torch.nn.functional.normalize(model.clip.encode_text(list(texts), templates).to(device), dim=-1)
    failed: list[tuple[str, str]] = []
    angles, changed, done = 0.0, 0, 0
    first = torch.zeros(2, len(texts), dtype=torch.long)
    with _writing(out, model, texts) as write:
        for found in _batches(model, source, prompts, failed, batch=batch, workers=workers, report=report):
            write(found)
            done += len(found.ids)
            cosine = torch.nn.functional.cosine_similarity(found.embedding, found.unedited, dim=-1)
            angles += float(cosine.clamp(-1, 1).arccos().rad2deg().sum())
            if found.before is not None and found.after is not None:
                best = torch.stack([found.before.argmax(1), found.after.argmax(1)])
                changed += int((best[0] != best[1]).sum())
                first += torch.stack([one.bincount(minlength=len(texts)) for one in best])
        if not done:
            if not failed:
                raise BadInput(
                    f"{source.spec} holds no picture. Type a collection with {', '.join(sorted(SUFFIXES)[:6])} …"
                )
            raise BadInput(
                f"no picture of {source.spec} could be used ({len(failed)} tried; the first: {failed[0][0]}: {failed[0][1]}). "
                "Type a collection with whole pictures"
            )
    counts = {text: (int(before), int(after)) for text, before, after in zip(texts, *first.tolist(), strict=True)}
    share = changed / done if texts else None
    return Applied(str(out), done, tuple(failed), angles / done, share, counts, time.monotonic() - began)


def _batches(
    model: EditedClip,
    source: Source,
    prompts: Tensor | None,
    failed: list[tuple[str, str]],
    *,
    batch: int,
    workers: int | None,
    report: Callable[[Progress], None] | None,
) -> Iterator[_Batch]:
    source.check()
    total, done, said, began = source.count(), 0, 0.0, time.monotonic()
    waiting: list[tuple[Picture, Decoded]] = []
    batch_size = BatchSize((batch,), batch)
    threads = workers or os.cpu_count() or 1
    stream = prefetched(
        source, lambda picture: decode(picture, model.clip.preprocess), workers=threads, window=2 * batch
    )
    with closing(stream):
        for picture, found in stream:
            if isinstance(found, Decoded):
                waiting.append((picture, found))
            else:
                source.check()  # a vanished folder is not a thousand bad images
                failed.append(
                    (picture.id, str(found) if isinstance(found, BadImage) else f"{type(found).__name__}: {found}")
                )
            if len(waiting) >= batch_size.current:
                done += len(waiting)
                yield _embed(model, waiting, prompts, failed, batch_size)
                waiting = []
            now = time.monotonic()
            if report is not None and now - said >= REPORT_SECONDS:
                said = now
                report(Progress(done, len(failed), 0, total, (done + len(failed)) / max(now - began, 1e-9)))
    if waiting:
        yield _embed(model, waiting, prompts, failed, batch_size)


def _embed(
    model: EditedClip,
    work: list[tuple[Picture, Decoded]],
    prompts: Tensor | None,
    failed: list[tuple[str, str]],
    batch_size: BatchSize,
) -> _Batch:
    projection = model.image_tower.projection

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            both = model.encode_both(pixels.to(projection.device, projection.dtype))
        return both[0].float(), both[1].float()

    found = split_when_out_of_memory(run, stack([decoded.pixels for _, decoded in work]), batch_size.ran_out)
    unedited, edited = (torch.cat(parts) for parts in zip(*found, strict=True))
    finite = torch.isfinite(edited).all(-1) & torch.isfinite(unedited).all(-1)
    for (picture, _), good in zip(work, finite.tolist(), strict=True):
        if not good:
            failed.append((picture.id, "the model's output is not finite. Load it with dtype='float32'"))
    kept = [picture for (picture, _), good in zip(work, finite.tolist(), strict=True) if good]
    unedited, edited = unedited[finite], edited[finite]
    before, after = (None if prompts is None else _chances(model, x, prompts) for x in (unedited, edited))
    return _Batch(
        [picture.id for picture in kept], [picture.path or "" for picture in kept], edited.cpu(), unedited.cpu(), before, after
    )  # fmt: skip


def _chances(model: EditedClip, x: Tensor, prompts: Tensor) -> Float[Tensor, "image text"]:
    cosine = torch.nn.functional.normalize(x, dim=-1) @ prompts.T
    return (model.logit_scale.float().exp() * cosine).softmax(-1).cpu()


@contextmanager
def _writing(out: Path, model: EditedClip, texts: Sequence[str]) -> Generator[Callable[[_Batch], None]]:
    """A temporary file beside, renamed when all is in it."""
    about = {"schema": SCHEMA, "model": model.edit.model, "edit": "; ".join(model.edit.told), "texts": list(texts)}
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        if out.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as handle:
                handle.write(json.dumps({**about, "embed": model.edit.embed}, ensure_ascii=False) + "\n")
                yield lambda found: handle.writelines(_lines(found, texts))
        else:
            with temporary.open("wb"):  # a place that cannot be written is said before the work, not after it
                pass
            kept: list[_Batch] = []
            yield lambda found: kept.append(replace(found, unedited=found.unedited[:0]))  # what is written, no more
            _save(temporary, kept, about)
        temporary.replace(out)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written ({error}). Type a file in a folder that exists: --out NAME.npz"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _lines(found: _Batch, texts: Sequence[str]) -> Iterator[str]:
    for row, name in enumerate(found.ids):
        told: dict[str, Any] = {"id": name, "path": found.paths[row]}
        for key, chances in (("before", found.before), ("after", found.after)):
            if chances is not None:
                told[key] = {text: round(p, 6) for text, p in zip(texts, chances[row].tolist(), strict=True)}
        yield json.dumps({**told, "embedding": found.embedding[row].tolist()}, ensure_ascii=False) + "\n"


def _save(path: Path, kept: list[_Batch], about: dict[str, Any]) -> None:
    if not kept:
        return
    arrays = {"embedding": torch.cat([found.embedding for found in kept])}
    for key in ("before", "after"):
        if getattr(kept[0], key) is not None:
            arrays[key] = torch.cat([getattr(found, key) for found in kept])
    ids = [name for found in kept for name in found.ids]
    paths = [name for found in kept for name in found.paths]
    if path.suffix == ".npz":
        named = {"ids": ids, "paths": paths, "texts": about["texts"]}
        plain: dict[str, Any] = {name: np.array(value, dtype=str) for name, value in named.items()}
        plain |= {name: array.numpy() for name, array in arrays.items()}
        np.savez(path, **plain)
        return
    from safetensors.torch import save_file

    mode = path.stat().st_mode  # of the file that `open` made: safetensors' own is for one's own eyes only
    save_file(
        arrays, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in
                       {**about, "ids": ids, "paths": paths}.items()}
    )  # fmt: skip
    path.chmod(mode)
