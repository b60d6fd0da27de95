"""What the studio answers about one picture: numbers for the page, each made by the same public functions as everywhere."""

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.images.geometry import patch_grid
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.registry import methods_of
from clip_anatomy.maps.segment import segment
from clip_anatomy.report.palette import limit_of
from clip_anatomy.split.pairs import pairs
from clip_anatomy.studio.session import HeldPicture, Session
from clip_anatomy.towers.protocol import has_pool_mlp

__all__ = ["edit_of", "explained", "facts", "map_of", "numbers", "paired", "patch_of", "segmented"]

MOST_TEXTS = 20
SAMPLE = 256  # images that a re-run of the store is measured on, unless all are wanted


def facts(session: Session) -> dict[str, Any]:
    """Tell what there is to choose from: the model, its heads, methods, the store."""
    clip, store = session.clip, session.store
    tower = clip.vision
    methods = [
        {"name": name, "description": one.description, "per_text": one.per_text}
        for name, one in methods_of(clip).items()
        if not one.needs
    ]
    return {
        "model": clip.name,
        "layers": tower.layers,
        "heads": tower.heads,
        "mlps": tower.has_mlps,
        "methods": methods,
        "examples": [{"id": one.digest, "name": one.name} for one in session.examples],
        "store": None
        if store is None
        else {"path": store.path.name, "images": len(store), "task": _task(session), "sample": SAMPLE},
        "baselines": ["zero"] if session.means is None else ["mean", "zero"],
    }


def _task(session: Session) -> dict[str, Any] | None:
    task = session.task
    return (
        None
        if task is None
        else {"label": task.column, "classes": list(task.classes), "groups": list(task.group_names)}
    )


def edit_of(session: Session, select: str, by: str, effect: str = "direct") -> Edit:
    """Make the edit that replaces these parts: their terms of the embedding, or ("rerun") what they write, felt by later blocks.

    Raises:
        BadSpec: parts that do not exist.
        BadInput: means that there are none of.
    """
    clip = session.clip
    tower = clip.vision
    pool = has_pool_mlp(tower)
    chosen = Selection.parse(select or "none", tower.layers, tower.heads, session.atlas, pool=pool)
    if not chosen:
        return Edit.empty(clip)
    if by == "mean" and session.means is None:
        raise BadInput(
            "without a store there is no mean to replace a part by. Choose zero, or start: clip-anatomy serve STORE"
        )
    means = None if by == "zero" else session.means if effect == "direct" else session.written_means
    return Edit.of(clip, chosen, means, by="zero" if by == "zero" else "mean", effect=effect)


def explained(session: Session, picture: HeldPicture, texts: tuple[str, ...], edit: Edit) -> dict[str, Any]:
    """Split the cosines of a picture with some texts, whole and with some parts replaced."""
    embeddings = _texts(session, texts)

    def work() -> dict[str, Any]:
        parts = picture.parts
        unit = normalize(embeddings, dim=-1).to(parts.embedding.device)
        toward = parts.toward(embeddings)
        whole = parts.embedding.float()
        edited = (
            EditedClip(session.clip, edit).encode_image(picture.pixels) if edit.reruns else edit.apply(parts)
        ).float()
        cosines = [normalize(one, dim=-1) @ unit.T for one in (whole, edited)]
        shares = [session.clip.probabilities(one) for one in cosines]
        return {
            "texts": list(texts),
            "cosine": {"whole": numbers(cosines[0][0]), "edited": numbers(cosines[1][0])},
            "probability": {"whole": numbers(shares[0][0]), "edited": numbers(shares[1][0])},
            "heads": numbers(toward.heads[0]),
            "mlps": numbers(toward.mlps[0]),
            "input_embedding": numbers(toward.input_embedding[0]),
            "bias": numbers(toward.bias[0]),
            "replaced": edit.descriptions,
        }

    return session.run(work)


def map_of(
    session: Session, picture: HeldPicture, texts: tuple[str, ...], method: str, heads: str | None
) -> dict[str, Any]:
    """Draw where texts are answered; of the decomposition, by some heads alone (`heads`) or by all.

    The decomposition adds up shares that are computed once for a picture and its texts, so that heads can go off and on at once.
    """
    embeddings = _texts(session, texts)
    clip = session.clip
    if method == "decomposition":
        tower = clip.vision
        chosen = Selection.parse(heads or "all", tower.layers, tower.heads, session.atlas)
        weight = torch.zeros(tower.layers, tower.heads)
        for layer, head in chosen.heads:
            weight[layer, head] = 1
        shares = session.shares(picture, texts)
        values = torch.einsum("lhpt,lh->tp", shares, weight).unflatten(1, patch_grid(picture.pixels.shape, clip.patch))
    else:
        options: dict[str, Any] = {"heads": heads} if heads else {}
        maps = session.run(lambda: heatmap(clip, picture.pixels, Texts(texts, embeddings), method, **options))
        values = maps.values[0].float().cpu()
    return {"texts": list(texts), "method": method, "values": numbers(values), "limit": float(limit_of(values))}


def patch_of(session: Session, picture: HeldPicture, texts: tuple[str, ...], row: int, col: int) -> dict[str, Any]:
    """Tell what every head read from one patch toward each text.

    Raises:
        BadInput: no such patch.
    """
    _texts(session, texts)
    rows, cols = patch_grid(picture.pixels.shape, session.clip.patch)
    if not (0 <= row < rows and 0 <= col < cols):
        raise BadInput(f"patch ({row}, {col}): rows 0 to {rows - 1} and columns 0 to {cols - 1} were expected")
    shares = session.shares(picture, texts)
    return {"texts": list(texts), "row": row, "col": col, "heads": numbers(shares[:, :, row * cols + col])}


def paired(session: Session, picture: HeldPicture, text: str) -> dict[str, Any]:
    """Tell which patches every word of a text meets: shares of the cosine over (word, patch), those of `pairs`.

    Raises:
        BadText: a tokenizer that does not tell words.
    """
    _texts(session, (text,))
    result = pairs(session.clip, session.side(picture), session.side(text))
    rows, cols = patch_grid(picture.pixels.shape, session.clip.patch)
    return {
        "text": text,
        "words": list(result.b.parts),
        "values": numbers(result.values.T.unflatten(1, (rows, cols))) if result.values.numel() else [],
        "limit": float(limit_of(result.values)) if result.values.numel() else 0.0,
        "cosine": result.cosine,
        "made_of": result.made_of(),
        "notes": list(result.notes),
    }


def segmented(
    session: Session, picture: HeldPicture, texts: tuple[str, ...], *, method: str, threshold: str | float, refine: bool
) -> dict[str, Any]:
    """Cut texts out of what the model saw of a picture: runs of equal labels row by row, shares, points for SAM."""
    wanted = Texts(texts, _texts(session, texts))
    image = Image.open(BytesIO(picture.png))
    options: dict[str, Any] = {"threshold": threshold, "refine": "pamr" if refine else None}
    masks = session.run(lambda: segment(session.clip, [image], wanted, method, **options))
    labels = masks.labels[0]
    flat = labels.reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
    lengths = np.diff(starts, append=flat.size)
    return {
        "texts": list(texts),
        "rows": labels.shape[0],
        "cols": labels.shape[1],
        "runs": [[int(flat[at]), int(n)] for at, n in zip(starts, lengths, strict=True)],
        "shares": [float((labels == number).mean()) for number in range(1, len(texts) + 1)],
        "prompts": [masks.prompts(0, text).to_dict() for text in texts],
        "how": str(masks.how),
    }


def _texts(session: Session, texts: tuple[str, ...]) -> Tensor:
    if not 1 <= len(texts) <= MOST_TEXTS or any(not text.strip() for text in texts):
        raise BadInput(f"1 to {MOST_TEXTS} texts that say something were expected, not {len(texts)}. Type a text")
    return session.texts(texts)


def numbers(values: Tensor) -> Any:
    """Return nested lists of a tensor, rounded to six decimals."""
    return torch.round(values.detach().double().cpu(), decimals=6).tolist()
