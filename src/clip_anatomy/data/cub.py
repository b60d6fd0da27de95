"""CUB-200-2011 (Wah et al. 2011): birds of 200 species, with the official split and attributes."""

from clip_anatomy.data.published_copies import Asked, Benchmark, Entry, Published, read_words

__all__ = ["CUB", "cub"]

CUB = Published(
    scheme="cub",
    title="CUB-200-2011",
    where="from Caltech's vision group (archive CUB_200_2011)",
    images={"train": 5994, "test": 5794},
    options=("attributes",),
)
SPECIES = 200
LIKELY = 3  # certainty: 1 not visible, 2 guessing, 3 probably, 4 definitely


def cub(rest: str) -> Benchmark:
    """Open `FOLDER[:train|test][:attributes][:partial]`: the folder that holds `images.txt`, or the one around it.

    Label is the species ("Black footed Albatross"), split the official one; `meta` holds split, and with `:attributes` what
    annotators saw and were at least fairly sure of ("bill shape": "dagger").

    Raises:
        BadInput: no such copy, not a whole one, or tables that disagree.
    """
    asked = CUB.asked(rest, ("CUB_200_2011",))
    classes = {code: _species(name) for code, name in read_words(asked, "classes.txt", 2)}
    if len(classes) != SPECIES and not asked.partial:
        raise asked.wrong(f"classes.txt names {len(classes)} species, {SPECIES} were expected")
    labels = _by_image(asked, "image_class_labels.txt")
    splits = _by_image(asked, "train_test_split.txt")
    seen = _attributes(asked) if "attributes" in asked.options else {}
    entries: list[Entry] = []
    for image, path in read_words(asked, "images.txt", 2):
        for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", splits)):
            if image not in table:
                raise asked.wrong(f"image {image} ({path}) of images.txt is not in {name}")
        if labels[image] not in classes:
            raise asked.wrong(
                f"image_class_labels.txt gives image {image} the class {labels[image]}, which classes.txt lacks"
            )
        if splits[image] not in ("0", "1"):
            raise asked.wrong(
                f"train_test_split.txt gives image {image} {splits[image]!r}, 0 (test) or 1 (train) was expected"
            )
        meta = {"split": "train" if splits[image] == "1" else "test", **seen.get(image, {})}
        entries.append(Entry(path, classes[labels[image]], "", meta))
    return Benchmark.of_entries(asked, tuple(classes.values()), entries, asked.root / "images")


def _species(name: str) -> str:
    """`001.Black_footed_Albatross` as people say it."""
    number, dot, rest = name.partition(".")
    return (rest if dot and number.isdecimal() else name).replace("_", " ")


def _by_image(asked: Asked, name: str) -> dict[str, str]:
    return {image: value for image, value in read_words(asked, name, 2)}  # noqa: C416 - the lists are not pairs


def _attributes(asked: Asked) -> dict[str, dict[str, str]]:
    """What was seen on each image: part or property → values, joined by commas."""
    known: dict[str, tuple[str, str]] = {}
    beside = (
        asked.root / "attributes/attributes.txt",
        asked.root / "attributes.txt",
        asked.root.parent / "attributes.txt",
    )
    table = next((path for path in beside if path.is_file()), None)
    if table is None:
        raise asked.wrong(f"there is no attributes.txt in {asked.root} or beside it")
    for line in table.read_text(encoding="utf-8").splitlines():
        code, _, name = line.strip().partition(" ")
        what, _, value = name.strip().removeprefix("has_").partition("::")
        if code:
            known[code] = what.replace("_", " "), value.replace("_", " ")
    found: dict[str, dict[str, str]] = {}
    with asked.need("attributes/image_attribute_labels.txt").open(encoding="utf-8") as file:
        for line in file:  # 3.7 million lines; some have a word too many, which is not among the first four
            said = line.split()
            if (
                len(said) >= 4
                and said[2] == "1"
                and said[3].isdecimal()
                and int(said[3]) >= LIKELY
                and said[1] in known
            ):
                what, value = known[said[1]]
                of_image = found.setdefault(said[0], {})
                of_image[what] = f"{of_image[what]}, {value}" if what in of_image else value
    return found
