"""CUB-200-2011 (Wah et al. 2011): birds of 200 species, with the official split and attributes."""

from clip_anatomy.data.masked import lines_of
from clip_anatomy.data.published_copies import DatasetCopy, ImageEntry, LabelledDataset, PublishedDataset, read_words
from clip_anatomy.files import text_lines

__all__ = ["CUB", "cub"]

CUB = PublishedDataset(
    scheme="cub",
    title="CUB-200-2011",
    where="from Caltech's vision group (archive CUB_200_2011)",
    images={"train": 5994, "test": 5794},
    options=("attributes",),
)
SPECIES = 200
LIKELY = 3  # certainty: 1 not visible, 2 guessing, 3 probably, 4 definitely


def cub(rest: str) -> LabelledDataset:
    """Open `FOLDER[:train|test][:attributes][:partial]`: the folder that holds `images.txt`, or the one around it.

    Label is the species ("Black footed Albatross"), split the official one; `meta` holds split, and with `:attributes` what
    annotators saw and were at least fairly sure of ("bill shape": "dagger").

    Raises:
        BadInput: no such copy, not a whole one, or tables that disagree.
    """
    copy = CUB.copy_at(rest, ("CUB_200_2011",))
    classes = {code: _species(name) for code, name in read_words(copy, "classes.txt", 2)}
    if len(classes) != SPECIES and not copy.partial:
        raise copy.wrong(f"classes.txt names {len(classes)} species, {SPECIES} were expected")
    labels = _by_image(copy, "image_class_labels.txt")
    splits = _by_image(copy, "train_test_split.txt")
    attributes = _attributes(copy) if "attributes" in copy.options else {}
    entries: list[ImageEntry] = []
    for image, path in read_words(copy, "images.txt", 2):
        for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", splits)):
            if image not in table:
                raise copy.wrong(f"image {image} ({path}) of images.txt is not in {name}")
        if labels[image] not in classes:
            raise copy.wrong(
                f"image_class_labels.txt gives image {image} the class {labels[image]}, which classes.txt lacks"
            )
        if splits[image] not in ("0", "1"):
            raise copy.wrong(
                f"train_test_split.txt gives image {image} {splits[image]!r}, 0 (test) or 1 (train) was expected"
            )
        meta = {"split": "train" if splits[image] == "1" else "test", **attributes.get(image, {})}
        entries.append(ImageEntry(path, classes[labels[image]], "", meta))
    return LabelledDataset.of_entries(copy, tuple(classes.values()), entries, copy.root / "images")


def _species(name: str) -> str:
    """Turn `001.Black_footed_Albatross` into the name that people say."""
    number, dot, rest = name.partition(".")
    return (rest if dot and number.isdecimal() else name).replace("_", " ")


def _by_image(copy: DatasetCopy, name: str) -> dict[str, str]:
    return {image: value for image, value in read_words(copy, name, 2)}  # noqa: C416 - the lists are not pairs


def _attributes(copy: DatasetCopy) -> dict[str, dict[str, str]]:
    """Tell what was seen on each image: part or property → values, joined by commas."""
    known: dict[str, tuple[str, str]] = {}
    beside = (
        copy.root / "attributes/attributes.txt",
        copy.root / "attributes.txt",
        copy.root.parent / "attributes.txt",
    )
    table = next((path for path in beside if path.is_file()), None)
    if table is None:
        raise copy.wrong(f"there is no attributes.txt in {copy.root} or beside it")
    for line in lines_of(table):
        code, _, name = line.partition(" ")
        what, _, value = name.strip().removeprefix("has_").partition("::")
        if code:
            known[code] = what.replace("_", " "), value.replace("_", " ")
    attributes: dict[str, dict[str, str]] = {}
    table = copy.need("attributes/image_attribute_labels.txt")
    for line in text_lines(table):  # 3.7 million; some have a word too many, which is not among the first four
        cells = line.split()
        if (
            len(cells) >= 4
            and cells[2] == "1"
            and cells[3].isdecimal()
            and int(cells[3]) >= LIKELY
            and cells[1] in known
        ):
            what, value = known[cells[1]]
            of_image = attributes.setdefault(cells[0], {})
            of_image[what] = f"{of_image[what]}, {value}" if what in of_image else value
    return attributes
