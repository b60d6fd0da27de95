"""Tables of labels, groups and captions in the formats people have: CSV, JSON, JSONL, COCO's annotation file."""

import csv
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from clip_anatomy.errors import BadInput, reading
from clip_anatomy.files import read_json, text_lines

__all__ = ["TABLES", "Table", "TableRow", "normalised_path", "note_of_record", "read_rows", "read_table", "row_for"]

TABLES = (".csv", ".tsv", ".json", ".jsonl")
PATH = ("path", "file", "file_name", "filename", "img_filename", "image", "image_path", "filepath", "image_name")
LABEL = ("label", "class", "class_name", "category", "target", "y")
GROUP = ("group", "group_name")
CAPTIONS = ("captions", "caption", "texts", "text", "description", "comment")
KNOWN = frozenset((*PATH, *LABEL, *GROUP, *CAPTIONS))
NAMES = ("metadata.csv", "metadata.json", "metadata.jsonl", "labels.csv", "labels.json")


@dataclass(frozen=True)
class TableRow:
    """What a table says about one image."""

    label: str = ""
    group: str = ""
    captions: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])


NOTHING = TableRow()
Table = Mapping[str, TableRow]
"""Path (as `normalised_path` writes it) → what the table says."""


def normalised_path(name: str) -> str:
    """Return a path as a walk spells it: no `./`, no doubled slashes, and slashes where Windows wrote backslashes.

    Example:
        >>> normalised_path("./dog//a.jpg"), normalised_path("dog\\\\a.jpg")
        ('dog/a.jpg', 'dog/a.jpg')
    """
    return posixpath.normpath(name if "/" in name else name.replace("\\", "/"))


def read_table(path: Path) -> dict[str, TableRow]:
    """Read a whole table into memory, by path.

    Raises:
        BadInput: no such file, not a table, or no column of paths.
    """
    return merged((normalised_path(name), row) for name, row in read_rows(path))


def merged(rows: Iterable[tuple[str, TableRow]]) -> dict[str, TableRow]:
    """Put rows of one picture together: the last one counts, with the captions of all (a caption a row is how many are kept).

    Example:
        >>> merged([("a.png", TableRow(captions=("a cat",))), ("a.png", TableRow(captions=("a tabby",)))])["a.png"].captions
        ('a cat', 'a tabby')
    """
    table: dict[str, TableRow] = {}
    for path, row in rows:
        before = table.get(path)
        captions = row.captions if before is None else tuple(dict.fromkeys((*before.captions, *row.captions)))
        table[path] = replace(row, captions=captions)
    return table


def read_rows(path: Path) -> Iterator[tuple[str, TableRow]]:
    """Read a table row by row.

    Columns (or JSON keys) are found by their usual names; all others are kept as `meta`. JSON may be a list of records, a
    mapping from path to label, captions or record, or COCO's `images` + `annotations`.

    Args:
        path: a .csv (commas, semicolons, tabs or bars), .tsv, .json or .jsonl file in UTF-8.

    Yields:
        Path as written, and what the table says about it.

    Raises:
        BadInput: no such file, not a table, or no column of paths; names what was found.
    """
    if not path.is_file():
        raise BadInput(f"there is no table {path}. Type the path of a .csv, .json or .jsonl file")
    with reading(path, "It is not a readable table: save it as CSV or JSON in UTF-8"):
        kind = path.suffix.lower()
        if kind in {".csv", ".tsv"}:
            between = "\t" if kind == ".tsv" else _between(next(text_lines(path), ""))
            yield from _of_records(path, csv.DictReader(text_lines(path), delimiter=between, skipinitialspace=True))
        elif kind == ".jsonl":
            yield from _of_records(path, _of_json_lines(path))
        elif kind == ".json":
            yield from _of_json(path, read_json(path, "Save it as CSV or JSON in UTF-8", of=object))
        else:
            raise BadInput(f"{path} is no table of labels. Type a .csv, .tsv, .json or .jsonl file")


def _column(name: Any) -> str:
    """Take a column by its usual name, however it is spelled: "Path ", "LABEL"."""
    plain = str(name).strip()
    return plain.casefold() if plain.casefold() in KNOWN else plain


def _between(header: str) -> str:
    """Tell what stands between the columns: a comma, or what spreadsheets write where the comma is the decimal sign."""
    return next(
        (
            sign
            for sign in ",;\t|"
            if any(_column(name) in PATH for name in next(csv.reader([header], delimiter=sign), []))
        ),
        ",",
    )


def row_for(table: Table, path: str) -> TableRow:
    """Tell what a table says about a path, by the whole path or else by the file's name."""
    path = normalised_path(path)
    return table.get(path) or table.get(path.rsplit("/", 1)[-1]) or NOTHING


def _of_json_lines(path: Path) -> Iterator[Any]:
    for at, line in enumerate(text_lines(path), 1):
        with reading(f"{path}, line {at}", "Type one JSON object a line"):
            if line.strip():
                yield json.loads(line)


def _of_json(path: Path, value: Any) -> Iterator[tuple[str, TableRow]]:
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value)
        if isinstance(value.get("images"), list):
            yield from _of_coco(path, value)
            return
        for name, entry in value.items():
            yield name, _note_of(entry)
        return
    if isinstance(value, list):
        yield from _of_records(path, cast("list[Any]", value))
        return
    raise BadInput(f"{path} holds a JSON {type(value).__name__}. Type a list of records, or path → label or captions")


def _note_of(entry: Any) -> TableRow:
    if isinstance(entry, dict):
        return note_of_record({_column(key): one for key, one in entry.items()})
    if isinstance(entry, list):
        return TableRow(captions=tuple(str(s) for s in cast("list[Any]", entry)))
    return TableRow(label=str(entry))


def _of_coco(path: Path, value: dict[str, Any]) -> Iterator[tuple[str, TableRow]]:
    captions: dict[Any, list[str]] = {}
    for entry in value.get("annotations", ()):
        if isinstance(entry, dict) and "caption" in entry:
            captions.setdefault(entry.get("image_id"), []).append(str(entry["caption"]))
    images: list[Any] = value["images"]
    for at, record in enumerate(images):
        for name, note in _of_records(path, [record], at):
            of = captions.get(record.get("id"), ()) if isinstance(record, dict) else ()
            yield name, replace(note, captions=(*note.captions, *of))


def _of_records(path: Path, records: Iterable[Any], first: int = 0) -> Iterator[tuple[str, TableRow]]:
    for at, record in enumerate(records, first):
        if not isinstance(record, dict | str):
            raise BadInput(
                f"{path}, record {at + 1}: {type(record).__name__} instead of a path, or of an object with one. Take it out"
            )
        known = {"path": record} if isinstance(record, str) else {_column(key): one for key, one in record.items()}
        if not any(known.values()):  # an empty row, as spreadsheets leave at the end
            continue
        name = next((str(known[k]).strip() for k in PATH if str(known.get(k) or "").strip()), None)
        if name is None:
            columns = ", ".join(str(k) for k in known) or "none"
            raise BadInput(
                f"{path}, record {at + 1}: no path. A value in one of the columns {', '.join(PATH)} was expected, it has: {columns}"
            )
        yield name, note_of_record(known)


def note_of_record(record: Mapping[str, Any]) -> TableRow:
    """Read label, group and captions of a record by the usual names of columns; all others are `meta`."""
    label, group = (_first(record, names) for names in (LABEL, GROUP))
    captions = _first(record, CAPTIONS)
    about = (
        cast("list[Any]", captions) if isinstance(captions, list) else [captions] if captions not in (None, "") else []
    )
    used = {*PATH, *(k for names in (LABEL, GROUP, CAPTIONS) for k in (_name(record, names),) if k)}
    meta = {str(k): v for k, v in record.items() if k not in used and _plain(v)}
    return TableRow(
        "" if label is None else str(label).strip(),
        "" if group is None else str(group).strip(),
        tuple(map(str, about)),
        meta,
    )


def _name(record: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((k for k in names if k in record), None)


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    name = _name(record, names)
    return None if name is None else record[name]


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and value != ""
