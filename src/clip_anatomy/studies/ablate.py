"""`ablate`: replace parts of a model in all images of a store, and see which answers change."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from clip_anatomy.engine.engine import Engine
from clip_anatomy.errors import BadSpec, StoreError
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.objects import is_object_url
from clip_anatomy.progress import Progress
from clip_anatomy.public_functions import public
from clip_anatomy.results import Result
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.store import Store
from clip_anatomy.store.store_model import model_of
from clip_anatomy.studies.ablation_study import SELECTED, STUDIES
from clip_anatomy.studies.ablation_study import study as _study
from clip_anatomy.studies.study_result import Study

__all__ = ["Ablation", "ablate"]

SCHEMA = "clip-anatomy/ablations/1"


@public
@dataclass(frozen=True, repr=False)
class Ablation(Result):
    """What replacing parts did to the answers: one study or several.

    Attributes:
        studies: each with its table, its figure and its numbers.
        notes: what a reader must know, such as studies that the store cannot answer.
    """

    presenter: ClassVar[str] = "ablation_figure"
    studies: tuple[Study, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {"schema": SCHEMA, "studies": [one.to_dict() for one in self.studies]}

    def summary(self) -> str:
        """Return the tables of all studies."""
        return "\n\n".join(one.summary() for one in self.studies)


@public
def ablate(
    store: "Store | str | Path",
    *,
    study: str | None = None,
    select: Sequence[str] | None = None,
    by: str = "mean",
    effect: str = "direct",
    means: "Store | Moments | Means | str | Path | None" = None,
    other: str | None = None,
    pool: str | None = None,
    texts: int | None = None,
    label: str | None = None,
    classes: Sequence[str] | str | None = None,
    templates: Sequence[str] | None = None,
    group: str | None = None,
    atlas: "Atlas | str | Path | None" = None,
    tower: str = "image",
    model: "Clip | str | None" = None,
    weights: str | None = None,
    device: str = "auto",
    engine: Engine | str = "local",
    progress: Progress | None = None,
) -> Ablation:
    """Replace parts of the model in all images of a store, and see which answers change (direct effects; Gandelsman et al. 2024, §3.2).

    Args:
        store: a store, or its folder. No image is read, but for class-to-class attention and tokens: for these once.
        study: "layers" (default: all heads up to each layer), "last" (all but those of the last k layers), "heads" (each alone), "mlps",
            "class-to-class", several joined by commas, or "all".
        select: sets of parts of your own in place of a study: "role=background", "9.3,10.1+mlp=4".
        by: "mean", "zero", "texts" (heads by their TextSpan reconstruction) or "swap" (what another image has there).
        effect: "direct", or "rerun": heads and MLPs are held inside the forward and later blocks feel it; the pictures are read again.
        means: another store of the model, `Moments`, `Means`, or a file or folder of these; by default this store.
        other: for "swap": id of the other image.
        pool: for "texts": general, world, or a text file of one description a line.
        texts: for "texts": how many of each head; by default 20.
        label: column of the right answers; by default "label".
        classes: names of the classes, or a text file of one a line; by default the values of the column.
        templates: prompts with one {}; "imagenet" for the 80 of CLIP's own recipe.
        group: column of the groups, or several joined by +; by default "group", where it is filled.
        atlas: names of the heads; by default the one kept in the store.
        tower: "image", or "text": parts of the text tower are replaced in every class text, by their mean over the classes or by zero.
        model: the store's model; by default as it was indexed.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.
        engine: "local", "ray", or an opened one (`open_engine`), whose workers take some thousand images at a time.
        progress: called with what is being done, how much is done, how much there is.

    Returns:
        Ablation: `summary()`, `to_dict()`, `save(folder)`, `figure()`.

    Raises:
        BadSpec: an unknown study, way to replace, or part; options that exclude each other.
        BadInput: labels that match no class, one class only, empty groups, numbers that are not finite.
        StoreError: layers or MLPs that the store does not hold, pictures that are gone (class-to-class, tokens).

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(ca.load("demo"), "world:40:test", folder + "/store")
        ...     result = ca.ablate(folder + "/store", study="layers")
        >>> len(result.studies[0].effects)
        8
    """
    if study is not None and select:
        raise BadSpec("study= and select= exclude each other. Type one of them")
    if texts is not None and texts < 1:
        raise BadSpec(f"texts={texts!r}: at least one text of each head. Type texts=20")
    if (pool is not None or texts is not None) and by != "texts":
        raise BadSpec("pool= and texts= are for heads that are replaced by their texts. Type by='texts'")
    opened = store if isinstance(store, Store) else Store.open(store)
    if tower == "image":
        opened.manifest.need_heads("tower='text', for heads of the text tower; or probe(store)")
    names = [SELECTED] if select else _names(study)
    if tower == "text" and study == "all":
        names.remove("class-to-class")  # a text has no class token

    @cache
    def opened_model() -> Clip:
        return model_of(opened, model, weights=weights, device=device)

    options: dict[str, Any] = {
        "clip": opened_model, "by": by, "effect": effect, "over": _means(means), "other": other, "pool": pool, "texts_per_head": texts or 20,
        "atlas": atlas, "label": label, "classes": classes, "group": group, "tower": tower, "engine": engine, "progress": progress,
        "templates": templates[0] if templates and len(templates) == 1 else templates,
    }  # fmt: skip
    results: list[Study] = []
    left: list[str] = []
    for name in names:
        try:
            results.append(_study(opened, "layers" if select else name, select=select or (), **options))
        except StoreError as error:
            if study != "all":
                raise
            left.append(f"no study of {name}: {error}")
    if not results:
        raise StoreError(
            f"{opened.path} answers none of the studies. Type: clip-anatomy index SOURCE STORE --layers all"
        )
    notes = (*left, *(note for one in results for note in one.notes))
    return Ablation(tuple(results), tuple(dict.fromkeys(notes)))


def _names(study: str | None) -> list[str]:
    names = [name.strip() for name in (study or "layers").split(",") if name.strip()]
    if names == ["all"]:
        return list(STUDIES)
    if wrong := [name for name in names if name not in STUDIES] or not names:
        problem = f"{', '.join(wrong)} is not known" if isinstance(wrong, list) else "no study is named"
        raise BadSpec(f"study={study!r}: {problem}. Type one of: {', '.join(STUDIES)}, all")
    return list(dict.fromkeys(names))


def _means(given: "Store | Moments | Means | str | Path | None") -> "Store | Moments | Means | None":
    if not isinstance(given, str | Path):
        return given
    return Store.open(given) if Path(given).is_dir() or is_object_url(given) else Moments.load(given)
