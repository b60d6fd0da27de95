"""A table of labels laid over any collection."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from clip_anatomy.data.picture import ImageData, Picture, Source
from clip_anatomy.data.picture_files import passed_over_of
from clip_anatomy.data.tables import NOTHING, Table, read_table, row_for
from clip_anatomy.errors import BadInput
from clip_anatomy.files import resolved

__all__ = ["LabelledSource"]


@dataclass(frozen=True)
class LabelledSource:
    """A collection whose pictures have the labels, groups, captions and columns of a table; it wins over what the collection says.

    Attributes:
        source: the collection.
        file: the table.
        table: ids, paths (also as seen from the table's folder) or file names → what it says.
    """

    source: Source
    file: Path
    table: Table = field(repr=False)

    @staticmethod
    def of(source: Source, file: Path) -> "LabelledSource":
        """Read the table.

        Raises:
            BadInput: not a table.
        """
        table = read_table(file)
        whole = {resolved(file.parent / name).as_posix(): row for name, row in table.items()}
        return LabelledSource(source, file, {**whole, **table})

    @property
    def spec(self) -> str:
        """The collection's name."""
        return self.source.spec

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What the last walk of the collection passed over."""
        return passed_over_of(self.source)

    def __iter__(self) -> Iterator[Picture]:
        """Walk the pictures.

        Raises:
            BadInput: at the end, if the table said nothing about any of them.
        """
        last, matched = "", False
        for picture in self.source:
            row = row_for(self.table, picture.id)
            if row is NOTHING and isinstance(picture.data, Path):
                row = self.table.get(resolved(picture.data).as_posix(), NOTHING)
            last, matched = picture.id, matched or row is not NOTHING
            yield replace(
                picture,
                label=row.label or picture.label,
                group=row.group or picture.group,
                captions=row.captions or picture.captions,
                meta={**picture.meta, **row.meta},
                labelled=picture.labelled or row is not NOTHING,
            )
        if last and not matched:
            raise BadInput(
                f"no row of {self.file} (the last: {next(reversed([*self.table]), '')!r}) names a picture of {self.spec} (the last: "
                f"{last!r}). Write its paths as these ids, or as plain file names"
            )

    def count(self) -> int | None:
        """Count the pictures, where that is cheap."""
        return self.source.count()

    def check(self) -> None:
        """Raise BadInput if the collection cannot be reached (any more)."""
        self.source.check()

    def fetch(self, path: str) -> ImageData:
        """Read the image at a picture's `path`."""
        return self.source.fetch(path)
