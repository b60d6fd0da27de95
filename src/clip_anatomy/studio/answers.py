"""What the studio answers: numbers for the page, each made by the same public functions as everywhere."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput
from clip_anatomy.maps.heatmap import heatmap
from clip_anatomy.maps.map_texts import Texts
from clip_anatomy.maps.registry import methods_of
from clip_anatomy.report.palette import limit_of
from clip_anatomy.studies.ablation_study import study
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair import repair
from clip_anatomy.studio.session import HeldPicture, Session
from clip_anatomy.towers.protocol import has_pool_mlp

__all__ = ["accuracy", "edit_of", "explained", "facts", "head_names", "map_of", "suspects"]

MOST_TEXTS = 20


def facts(session: Session) -> dict[str, Any]:
    """Tell what there is to choose from: the model, its heads, methods, the store."""
    clip, store = session.clip, session.store
    tower = clip.vision
    methods = [
        {"name": name, "description": one.description} for name, one in methods_of(clip).items() if not one.needs
    ]
    return {
        "model": clip.name,
        "layers": tower.layers,
        "heads": tower.heads,
        "mlps": tower.has_mlps,
        "methods": methods,
        "examples": [{"id": one.digest, "name": one.name} for one in session.examples],
        "store": None if store is None else {"path": str(store.path), "images": len(store), "task": _task(session)},
        "baselines": ["zero"] if session.means is None else ["mean", "zero"],
    }


def _task(session: Session) -> dict[str, Any] | None:
    task = session.task
    return (
        None
        if task is None
        else {"label": task.column, "classes": list(task.classes), "groups": list(task.group_names)}
    )


def edit_of(session: Session, select: str, by: str) -> Edit:
    """Make the edit that replaces these parts.

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
    return Edit.of(clip, chosen, None if by == "zero" else session.means, by="zero" if by == "zero" else "mean")


def explained(session: Session, picture: HeldPicture, texts: tuple[str, ...], select: str, by: str) -> dict[str, Any]:
    """Split the cosines of a picture with some texts, whole and with some parts replaced."""
    embeddings = _texts(session, texts)
    edit = edit_of(session, select, by)

    def work() -> dict[str, Any]:
        parts = picture.parts
        unit = normalize(embeddings, dim=-1).to(parts.embedding.device)
        toward = parts.toward(embeddings)
        whole, edited = parts.embedding.float(), edit.apply(parts).float()
        cosines = [normalize(one, dim=-1) @ unit.T for one in (whole, edited)]
        shares = [session.clip.probabilities(one) for one in cosines]
        return {
            "texts": list(texts),
            "cosine": {"whole": _numbers(cosines[0][0]), "edited": _numbers(cosines[1][0])},
            "probability": {"whole": _numbers(shares[0][0]), "edited": _numbers(shares[1][0])},
            "heads": _numbers(toward.heads[0]),
            "mlps": _numbers(toward.mlps[0]),
            "input_embedding": _numbers(toward.input_embedding[0]),
            "bias": _numbers(toward.bias[0]),
            "replaced": edit.descriptions,
        }

    return session.run(work)


def map_of(
    session: Session, picture: HeldPicture, texts: tuple[str, ...], method: str, heads: str | None
) -> dict[str, Any]:
    """Draw where texts are answered; of the decomposition, by some heads alone (`heads`) or by all."""
    embedded = Texts(texts, _texts(session, texts))
    options: dict[str, Any] = {"heads": heads} if heads else {}
    maps = session.run(lambda: heatmap(session.clip, picture.pixels, embedded, method, **options))
    values = maps.values[0].float().cpu()
    return {"texts": list(texts), "method": method, "values": _numbers(values), "limit": float(limit_of(values))}


def head_names(session: Session) -> dict[str, Any]:
    """Name every head, where the store keeps an atlas."""
    if session.atlas is None:
        return {"heads": {}}
    named = {
        f"{one.layer}.{one.head}": {"role": one.role.name, "texts": [text.text for text in one.texts[:3]]}
        for one in session.atlas.heads
    }
    return {"heads": named}


def accuracy(session: Session, select: str, by: str) -> dict[str, Any]:
    """Measure accuracy on the store, average and of every group, whole and with some parts replaced.

    Raises:
        BadInput: no store, or one without labels.
    """
    if session.store is None or session.task is None:
        raise BadInput("accuracies need a store with labels. Start: clip-anatomy serve STORE")
    chosen = Selection.parse(select or "none", session.clip.vision.layers, session.clip.vision.heads, session.atlas)
    found = study(session.store, select=[chosen], clip=session.clip, task=session.task, by=by, atlas=session.atlas)
    shown = {"whole": found.whole, "edited": found.effects[0]}
    return {
        "images": found.images,
        "label": found.column,
        "groups": [{"name": name, "images": count} for name, count in found.groups],
        "chance": 1 / len(found.classes),
        **{
            name: {"average": one.accuracy, "groups": list(one.groups), "worst": found.worst(one)}
            for name, one in shown.items()
        },
    }


def suspects(session: Session) -> dict[str, Any]:
    """Find the heads that speak of what misleads (validation half of the store), and the set to suggest."""
    if session.store is None or session.task is None:
        raise BadInput("suspects need a store with labels and groups. Start: clip-anatomy serve STORE")
    result = session.run(lambda: repair(session.store, model=session.clip, also=[]))  # pyright: ignore[reportArgumentType]
    found: CueSearch = result.cue  # pyright: ignore[reportAttributeAccessIssue]
    rows = [
        {
            "part": one.part.name,
            "role": one.role,
            "texts": list(one.texts[:3]),
            "worst_alone": min(one.ablated_alone.filled),
        }
        for one in found.suspected(10)
    ]
    return {"suggestion": found.best.ablation.selection.spec, "suspects": rows, "before": min(found.before.filled)}


def _texts(session: Session, texts: tuple[str, ...]) -> Tensor:
    if not 1 <= len(texts) <= MOST_TEXTS or any(not text.strip() for text in texts):
        raise BadInput(f"1 to {MOST_TEXTS} texts that say something were expected, not {len(texts)}. Type a text")
    return session.run(lambda: session.texts(texts))


def _numbers(values: Tensor) -> Any:
    return torch.round(values.detach().double().cpu(), decimals=6).tolist()
