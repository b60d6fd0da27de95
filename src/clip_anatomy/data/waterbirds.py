"""Waterbirds (Sagawa et al. 2020): birds of CUB pasted before land or water, mostly the one that fits."""

from clip_anatomy.data.published_copies import DatasetCopy, ImageEntry, LabelledDataset, PublishedDataset, read_table_of

__all__ = ["CLASSES", "GROUPS", "WATERBIRDS", "waterbirds"]

WATERBIRDS = PublishedDataset(
    scheme="waterbirds",
    title="Waterbirds",
    where="from its authors (the group_DRO project of Sagawa et al., archive waterbird_complete95_forest2water2)",
    images={"train": 4795, "val": 1199, "test": 5794},
)
CLASSES = ("landbird", "waterbird")
PLACES = ("land", "water")
GROUPS = tuple(f"{bird} on {place}" for bird in CLASSES for place in PLACES)
"""The four groups: class × background."""
COLUMNS = ("img_filename", "y", "split", "place")


def waterbirds(rest: str) -> LabelledDataset:
    """Open `FOLDER[:train|val|test][:partial]`: the folder that holds `metadata.csv`, or the one around it.

    Label is landbird or waterbird, group one of the four, split the official one (0, 1, 2 → train, val, test); `meta` holds
    split, place, species and the background's file.

    Raises:
        BadInput: no such copy, not a whole one, or a table that says something unknown.
    """
    copy = WATERBIRDS.copy_at(rest, ("waterbird_complete95_forest2water2",))
    entries: list[ImageEntry] = []
    ids: set[str] = set()
    for at, row in enumerate(read_table_of(copy, "metadata.csv", COLUMNS)):
        line = at + 2
        bird = CLASSES[_code(copy, row, "y", line, CLASSES)]
        place = PLACES[_code(copy, row, "place", line, PLACES)]
        split = tuple(WATERBIRDS.images)[_code(copy, row, "split", line, tuple(WATERBIRDS.images))]
        path = row["img_filename"] or ""
        if not path or path in ids:
            raise copy.wrong(
                f"metadata.csv, line {line}: img_filename {path!r} is {'empty' if not path else 'there twice'}"
            )
        ids.add(path)
        meta = {"split": split, "place": place, "species": path.partition("/")[0].partition(".")[2].replace("_", " ")}
        behind = row.get("place_filename")
        entries.append(ImageEntry(path, bird, f"{bird} on {place}", meta | ({"background": behind} if behind else {})))
    return LabelledDataset.of_entries(copy, CLASSES, entries, copy.root)


def _code(copy: DatasetCopy, row: dict[str, str], column: str, line: int, names: tuple[str, ...]) -> int:
    known = [str(code) for code in range(len(names))]
    if row[column] not in known:
        meaning = ", ".join(f"{code} ({name})" for code, name in zip(known, names, strict=True))
        raise copy.wrong(f"metadata.csv, line {line}: {column} is {row[column]!r}, one of {meaning} was expected")
    return known.index(row[column])
