"""`ZeroShotTask`: which of these classes? Class texts, and the right answers and groups of the images of a store that it is asked of."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_anatomy.data.world.accuracy import prompts
from clip_anatomy.data.world.attribute_names import ATTRIBUTES
from clip_anatomy.errors import BadInput
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.imagenet_texts import imagenet_templates
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.loading.tokenizer import average_each, fill_templates
from clip_anatomy.naming.ground_truth import is_world
from clip_anatomy.store.store import Store
from clip_anatomy.studies.store_columns import (
    class_number,
    classes_of,
    codes_in,
    column_of,
    columns_of,
    few,
    text_codes,
    text_column,
)
from clip_anatomy.studies.worst_group import small_groups

__all__ = ["WORLD", "ZeroShotTask", "ablation_task", "class_texts", "values_of", "zero_shot_task"]

TEMPLATES = ("a photo of a {}.",)
PAPER = "imagenet"  # the 80 templates of CLIP's own recipe, which the paper takes
DIGITS = ("1", "2", "3", "4")
WORLD = (*ATTRIBUTES, "digit")
"""What the demo world asks of its pictures."""


@dataclass(frozen=True)
class ZeroShotTask:
    """Which of these classes? Asked of some images of a store.

    Attributes:
        column: where the right answers are.
        classes: names.
        texts: one unit embedding per class.
        rows: places of the images in the store, ascending.
        labels: their classes; −1 for images that it is not asked of.
        group_column: where the groups are, "" for none.
        group_names: names of the groups that hold an image.
        groups: of the images; −1 for none.
        notes: what a reader must know.
        one_object: not asked of pictures of the demo world that show two different objects.
        prompts: of each class; () where its embedding was made elsewhere.
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
    one_object: bool = False
    prompts: tuple[tuple[str, ...], ...] = field(default=(), repr=False)

    @property
    def group_sizes(self) -> tuple[tuple[str, int], ...]:
        """Each group with the number of its images."""
        counts = [] if self.groups is None else torch.bincount(self.groups[self.groups >= 0]).tolist()
        return tuple(zip(self.group_names, counts, strict=True))

    def __post_init__(self) -> None:
        """Refuse what answers nothing."""
        if len(self.classes) != len(self.texts):
            raise BadInput(f"{len(self.texts)} class texts for {len(self.classes)} classes: give one for each")
        if not bool(torch.isfinite(self.texts).all()):
            raise BadInput("the class texts' embeddings are not finite. Load the model with dtype='float32'")
        if len(self.rows) != len(self.labels):
            raise BadInput(f"{len(self.labels)} labels for {len(self.rows)} images: give one for each")

    def labels_of(self, store: Store, rows: np.ndarray) -> Int64[Tensor, " image"]:
        """Read the right answers of any images; −1 where it is not asked of them, or where the label is none of the classes."""
        values = _values(store, self.column, rows, one_object=self.one_object)
        return codes_in(values, self.classes, self.column, strict=False)


def zero_shot_task(
    store: Store,
    clip: Callable[[], Clip],
    label: str = "label",
    rows: np.ndarray | None = None,
    *,
    classes: Sequence[str] | str | None = None,
    templates: Sequence[str] | str | None = None,
    texts: Float[Tensor, "text embed"] | None = None,
) -> ZeroShotTask:
    """Make a task of a column, from some images of a store only.

    Args:
        store: the store.
        clip: opens its model, called only if class texts must be embedded.
        label: column of the right answers; "label" is the shape in the demo world.
        rows: places of the images that may be looked at; all by default.
        classes: names of the classes, "a, b, c", or a text file of one a line; by default the values of the column. Labels that are
            numbers count these names from 0.
        templates: prompts with one {} each, whose embeddings are averaged, or "imagenet" for the 80 of CLIP's own recipe; by default
            "a photo of a {}.", for the demo world's attributes prompts that it was never trained on.
        texts: class embeddings made elsewhere, of any length, in the order of `classes`.

    Raises:
        BadInput: an empty column, labels that match no class.
    """
    world = is_world(store)
    column = "shape" if world and label == "label" else label
    one_object = world and column != "digit"  # of two different objects, which one is meant?
    rows = np.arange(len(store)) if rows is None else rows
    values = _values(store, column, rows, one_object=one_object)
    if not any(value not in (None, "") for value in values):
        raise BadInput(
            f"column {label!r} is empty for these images. Type label=COLUMN with one of: {columns_of(store)}; or index with labels=TABLE"
        )
    own = world and column in WORLD and classes is None and templates is None and texts is None
    if own:
        names = values_of(column)
    elif classes is not None:
        names = classes_of(classes)
    else:
        names = tuple(sorted({str(value) for value in values if value not in (None, "")}))
    labels = codes_in(values, names, column)
    notes = () if own or texts is not None else _number_notes(values, names, column)
    prompts: tuple[tuple[str, ...], ...] = ()
    if texts is None:
        prompts = class_prompts(names, templates, column if own else "")
        texts = embed_prompts(clip(), prompts)
    unit = torch.nn.functional.normalize(torch.as_tensor(texts).detach().cpu().float(), dim=-1)
    return ZeroShotTask(column, names, unit, rows, labels, notes=notes, one_object=one_object, prompts=prompts)


def _number_notes(values: Sequence[Any], names: Sequence[str], column: str) -> tuple[str, ...]:
    """Say what was made of labels that are numbers."""
    if numbers := [name for name in names if class_number(name) is not None]:
        return (
            f"the class names are numbers ({few(numbers)}), and the model is asked for these digits. If they stand for classes, name "
            f"these in the order of the numbers: classes='name of {numbers[0]}, ...'",
        )
    known = {str(value) for value in values if value not in (None, "")}
    typed_numbers = sorted({number for value in known if (number := class_number(value)) is not None})
    listing = ", ".join(f"{number} is {names[number]}" for number in typed_numbers[:5])
    return (
        (f"labels of column {column!r} are numbers, which count the classes from 0: {listing}",)
        if typed_numbers
        else ()
    )


def ablation_task(
    store: Store,
    clip: Callable[[], Clip],
    *,
    label: str | None = None,
    classes: Sequence[str] | str | None = None,
    group: str | None = None,
    templates: Sequence[str] | str | None = None,
    texts: Float[Tensor, "text embed"] | None = None,
) -> ZeroShotTask:
    """Make a task of a store's columns for the images that have a label, with their groups.

    Args:
        store: the store.
        clip: as for `zero_shot_task`, like all that is not said here.
        label: column of the right answers; by default "label". Images without one are left out.
        classes: names of the classes.
        group: column of the groups; two or more joined by "+" are crossed. By default "group" where it is filled.
        templates: prompts of the classes.
        texts: class embeddings made elsewhere.

    Raises:
        BadInput: labels that match no class, one class only, columns and groups that are empty.

    Example:
        >>> import tempfile
        >>> import clip_anatomy as ca
        >>> clip = ca.load("demo")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ca.index(clip, "world:40:test", folder + "/store")
        ...     task = ablation_task(ca.Store.open(folder + "/store"), lambda: clip, label="count")
        >>> task.classes, task.texts.shape[0]
        (('one', 'two', 'three', 'four'), 4)
    """
    if not len(store):
        raise BadInput(f"{store.path} holds no images. Type: clip-anatomy index SOURCE {store.path}")
    whole = zero_shot_task(store, clip, label or "label", classes=classes, templates=templates, texts=texts)
    if len(whole.classes) < 2:
        raise BadInput(
            f"column {whole.column!r} names one class only ({few(whole.classes)}): every image is right whatever is replaced. Type "
            f"classes='{few(whole.classes)}, another name', or another label=: {columns_of(store)}"
        )
    labelled = (whole.labels >= 0).numpy()
    rows, labels = whole.rows[labelled], whole.labels[torch.from_numpy(labelled)]
    names, groups, notes = _groups(store, group, rows)
    notes = [*whole.notes, *notes]
    if len(present := set(labels.tolist())) == 1:
        only = whole.classes[present.pop()]
        notes.append(f"all images are of one class, {only}: a model that always says so is right")
    if len(rows) < len(store):
        notes.append(f"{len(store) - len(rows):,} of {len(store):,} images have no such label and are not asked")
    column = "" if groups is None else group or "group"
    return replace(
        whole, rows=rows, labels=labels, group_column=column, group_names=names, groups=groups, notes=tuple(notes)
    )


def _values(store: Store, column: str, rows: np.ndarray, *, one_object: bool) -> list[Any]:
    """Return values of a column; None for pictures of two different objects, where these are not asked about."""
    values = column_of(store, column, rows)
    if not one_object:
        return values
    second = column_of(store, "shape2", rows)
    return [value if other in (None, "") else None for value, other in zip(values, second, strict=True)]


def _groups(
    store: Store, group: str | None, rows: np.ndarray
) -> tuple[tuple[str, ...], Int64[Tensor, " image"] | None, list[str]]:
    """Return names of the groups that are not empty, group of each image, notes."""
    columns = [part.strip() for part in (group or "group").split("+")]
    values = [text_column(store, name, rows) for name in columns]
    for name, column in zip(columns, values, strict=True):
        if not any(column):
            if group is None:
                return (), None, []
            raise BadInput(
                f"the groups are empty: column {name!r} has no value for any image that is asked. Type group=COLUMN with one of: "
                f"{columns_of(store)}; or leave it away"
            )
    crossed = [", ".join(each) if all(each) else "" for each in zip(*values, strict=True)]
    counts = Counter(name for name in crossed if name)
    if not counts:
        raise BadInput(
            f"the groups are empty: no image has a value in all of {', '.join(columns)}. Type group={columns[0]!r}"
        )
    if len(counts) > max(64, len(rows) // 2):
        raise BadInput(
            f"column {group or 'group'!r} has {len(counts):,} values for {len(rows):,} images: these name images, they are no groups. Type "
            f"group=COLUMN with one of: {columns_of(store)}"
        )
    codes, names = text_codes(crossed)
    return names, torch.from_numpy(codes), [*small_groups({name: counts[name] for name in names})]


# ---- class texts


def values_of(attribute: str) -> tuple[str, ...]:
    """Return the values of an attribute of the demo world.

    Example:
        >>> values_of("digit")
        ('1', '2', '3', '4')
    """
    return ATTRIBUTES.get(attribute, DIGITS)


def class_texts(
    clip: Clip, names: Sequence[str], templates: Sequence[str] | str | None = None, attribute: str = ""
) -> Float[Tensor, "text embed"]:
    """Embed each name as the mean of its prompts' unit embeddings; see `class_prompts`."""
    return embed_prompts(clip, class_prompts(names, templates, attribute))


def class_prompts(
    names: Sequence[str], templates: Sequence[str] | str | None = None, attribute: str = ""
) -> tuple[tuple[str, ...], ...]:
    """Return the prompts of each name.

    Args:
        names: of the classes; underscores are read as spaces.
        templates: prompts with one {} each, or "imagenet" for the 80 of CLIP's own recipe; by default "a photo of a {}."
        attribute: an attribute of the demo world whose values the names are: asked with prompts that it was never trained on.

    Raises:
        BadText: a template without a place for the name.
    """
    if attribute:
        known = dict(zip(values_of(attribute), prompts(attribute), strict=True))
        return tuple(tuple(known[name]) for name in names)
    given = (templates,) if isinstance(templates, str) else tuple(templates or TEMPLATES)
    given = tuple(imagenet_templates()) if given == (PAPER,) else given
    return tuple(tuple(fill_templates(name.replace("_", " "), given)) for name in names)


def embed_prompts(clip: Clip, prompts: Sequence[Sequence[str]]) -> Float[Tensor, "text embed"]:
    """Embed each class as the mean of its prompts' unit embeddings, made unit again."""
    embeddings = embed_texts(clip, [text for some in prompts for text in some]).cpu()
    return average_each(embeddings, prompts)
