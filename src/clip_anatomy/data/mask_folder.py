"""A folder of one's own: `images/`, `masks/` (PNG, one category id a pixel) and `mask_classes.json` ({id: name})."""

from pathlib import Path

from clip_anatomy.data.masked import IGNORED, MaskedDataset, files_in, need, paired
from clip_anatomy.errors import reading
from clip_anatomy.files import read_json

WHERE = (
    "Type a folder with images/ (JPEG or PNG), masks/ (PNG of the same names, one category number a pixel) and "
    'mask_classes.json ({"1": "person", …}; 0 or "unlabeled" does not count)'
)


def open_sample(path: Path) -> MaskedDataset:
    """Open the folder; pictures without a mask are left out, since they have nothing to be measured on.

    Args:
        path: the folder.

    Raises:
        BadInput: something is missing.
    """
    need(path, "images", "masks", "mask_classes.json", what="a folder of pictures with masks", where=WHERE)
    file, instead = path / "mask_classes.json", f"It is no table of numbers and names. {WHERE}"
    with reading(file, instead):
        numbered = {int(number): str(name) for number, name in read_json(file, instead).items()}
    names = {n: _plain(name) for n, name in numbered.items() if n != 0 and name not in ("unlabeled", "unlabelled")}
    classes = tuple(dict.fromkeys(names.values()))
    table = dict.fromkeys((*numbered, 0, 255), IGNORED) | {n: classes.index(name) for n, name in names.items()}
    masks = {p.stem: p for p in files_in(path / "masks", (".png",))}
    pictures = {p.stem: p for p in files_in(path / "images")}
    entries = paired(
        masks, lambda n: pictures.get(n, path / "images" / f"{n}.jpg"), masks.__getitem__, table, what=str(path)
    )
    used = f"{len(pictures.keys() - masks.keys())} pictures without a mask are left out"
    return MaskedDataset(f"{path.name}, {len(classes)} classes", classes, entries, None, (used,))


def _plain(name: str) -> str:
    """Turn COCO's words into people's: "wall-brick" is a brick wall, and "merged" and "other" are no words to look for.

    Example:
        >>> _plain("wall-brick"), _plain("tree-merged"), _plain("sky-other-merged"), _plain("teddy bear")
        ('brick wall', 'tree', 'sky', 'teddy bear')
    """
    first, *rest = [part for part in name.split("-") if part not in ("merged", "other", "stuff")]
    return " ".join([*rest, first])
