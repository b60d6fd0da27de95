"""`Task`: a zero-shot question that a store's images are asked: class texts, right answers, groups."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.ground_truth import is_world
from clip_anatomy.store.store import Store
from clip_anatomy.studies.class_texts import WORLD, class_texts, values_of
from clip_anatomy.studies.columns import classes_of, codes_in, column_of, columns_of, few

__all__ = ["Task", "task_of"]

FEW = 10  # images in a group: fewer say little


@dataclass(frozen=True)
class Task:
    """Which of these classes? Asked of the images that have a label.

    Attributes:
        column: where the right answers are.
        classes: names.
        texts: one unit embedding per class.
        rows: places of the images that are asked, ascending.
        labels: their classes.
        group_column: where the groups are, "" for none.
        group_names: names of the groups that hold an image that is asked.
        groups: of the asked images; −1 for none.
        notes: what a reader must know.
    """

    column: str
    classes: tuple[str, ...]
    texts: Float[Tensor, "text embed"]
    rows: np.ndarray = field(repr=False)
    labels: Int64[Tensor, " image"] = field(repr=False)
    group_column: str = ""
    group_names: tuple[str, ...] = ()
    groups: Int64[Tensor, " image"] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what answers nothing."""
        if len(self.classes) != len(self.texts):
            raise BadInput(f"{len(self.texts)} class texts for {len(self.classes)} classes: give one for each")
        if len(self.classes) < 2:
            raise BadInput(
                f"one class only ({few(self.classes)}): every image is right whatever is replaced. Type --classes 'one name, another name', or "
                "--label COLUMN with another column"
            )
        if not bool(torch.isfinite(self.texts).all()):
            raise BadInput("the class texts' embeddings are not finite. Load the model with dtype='float32'")
        if len(self.rows) != len(self.labels):
            raise BadInput(f"{len(self.labels)} labels for {len(self.rows)} images: give one for each")


def task_of(
    store: Store,
    clip: Callable[[], Clip],
    *,
    label: str | None = None,
    classes: Sequence[str] | str | None = None,
    group: str | None = None,
    templates: Sequence[str] | str | None = None,
    texts: Float[Tensor, "text embed"] | None = None,
) -> Task:
    """Make a task of a store's columns.

    Args:
        store: the store.
        clip: opens its model, called only if class texts must be embedded.
        label: column of the right answers; by default "label" (the shape, in the demo world). Images without one are not asked.
        classes: names of the classes, "a, b, c", or a text file of one a line; by default the values of the column.
        group: column of the groups; two or more joined by "+" are crossed. By default "group" where it is filled.
        templates: prompts with one {} each, whose embeddings are averaged, or "imagenet" for the 80 of CLIP's own recipe; by default
            "a photo of a {}.", for the demo world's attributes prompts that it was never trained on.
        texts: class embeddings made elsewhere, of any length, in the order of `classes`.

    Raises:
        BadInput: labels that match no class, one class only, columns and groups that are empty.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:40:test", folder + "/store")
        ...     task = task_of(ca.Store.open(folder + "/store"), lambda: clip, label="count")
        >>> task.classes, task.texts.shape[0]
        (('one', 'two', 'three', 'four'), 4)
    """
    every = np.arange(len(store))
    if not len(store):
        raise BadInput(f"{store.path} holds no images. Type: clip-anatomy index SOURCE {store.path}")
    world = is_world(store)
    column = label or "label"
    attribute = ("shape" if column == "label" else column) if world else ""
    told = column_of(store, attribute or column, every)
    if world and attribute != "digit":  # of two different objects, which one is meant?
        two = column_of(store, "shape2", every)
        told = [value if other in (None, "") else None for value, other in zip(told, two, strict=True)]
    if not any(value not in (None, "") for value in told):
        raise BadInput(
            f"column {column!r} holds no label. Type --label COLUMN with one of: {columns_of(store)}; or index with --labels TABLE"
        )
    own = classes is None and attribute in WORLD and templates is None and texts is None
    names: tuple[str, ...]
    if own:
        names = values_of(attribute)
    elif classes is None:
        names = tuple(sorted({str(value) for value in told if value not in (None, "")}))
    else:
        names = classes_of(classes)
    codes = codes_in(told, names, column)
    asked = torch.nonzero(codes >= 0).flatten().numpy()
    if len(names) < 2:
        raise BadInput(
            f"column {column!r} names one class only ({few(names)}): every image is right whatever is replaced. Type --classes "
            f"'{few(names)}, another name', or another --label: {columns_of(store)}"
        )
    if texts is None:
        texts = class_texts(clip(), names, templates, attribute if own else "")
    names_of_groups, groups, notes = _groups(store, group, asked)
    used = len(set(codes[asked].tolist()))
    if used == 1:
        notes.append(
            f"all images are of one class, {names[int(codes[asked][0])]}: a model that always says so is right"
        )
    if len(asked) < len(store):
        notes.append(f"{len(store) - len(asked):,} of {len(store):,} images have no such label and are not asked")
    unit = torch.nn.functional.normalize(torch.as_tensor(texts).detach().cpu().float(), dim=-1)
    where = "" if groups is None else group or "group"
    return Task(attribute or column, names, unit, asked, codes[asked], where, names_of_groups, groups, tuple(notes))


def _groups(
    store: Store, group: str | None, asked: np.ndarray
) -> tuple[tuple[str, ...], Int64[Tensor, " image"] | None, list[str]]:
    """Names of the groups that are not empty, group of each asked image, notes."""
    columns = [part.strip() for part in (group or "group").split("+")]
    values = [["" if one is None else str(one) for one in column_of(store, name, asked)] for name in columns]
    for name, column in zip(columns, values, strict=True):
        if not any(column):
            if group is None:
                return (), None, []
            raise BadInput(
                f"the groups are empty: column {name!r} has no value for any image that is asked. Type --group COLUMN with one of: "
                f"{columns_of(store)}; or leave it away"
            )
    told = [", ".join(each) if all(each) else "" for each in zip(*values, strict=True)]
    counts = Counter(name for name in told if name)
    if not counts:
        raise BadInput(
            f"the groups are empty: no image has a value in all of {', '.join(columns)}. Type --group {columns[0]}"
        )
    if len(counts) > max(64, len(asked) // 2):
        raise BadInput(
            f"column {group or 'group'!r} has {len(counts):,} values for {len(asked):,} images: these name images, they are no groups. Type "
            f"--group COLUMN with one of: {columns_of(store)}"
        )
    names = tuple(sorted(counts))
    small = [f"{name} ({counts[name]})" for name in names if counts[name] < FEW]
    notes = [f"groups of fewer than {FEW} images say little: {few(small)}"] if small else []
    place = {name: at for at, name in enumerate(names)}
    return names, torch.tensor([place.get(name, -1) for name in told], dtype=torch.int64), notes
