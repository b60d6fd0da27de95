"""Pictures in Parquet files, here or in object storage: in a column of bytes, or named by a column of paths (extra `atlas`: pyarrow)."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from clip_anatomy.data.object_pictures import object_names
from clip_anatomy.data.picture import ImageData, ObjectFile, Picture
from clip_anatomy.data.tables import PATH, note_of_record
from clip_anatomy.errors import BadImage, BadInput, MissingExtra, reading
from clip_anatomy.objects import ObjectPlace, is_object_url

__all__ = ["ParquetFiles"]

AT_ONCE = 64  # rows that are held


@dataclass(frozen=True)
class ParquetFiles:
    """Rows of one or more Parquet files, in the order of file names and of rows.

    The picture is the first column of bytes, or of {bytes, path} as Hugging Face writes; else a column of paths, as seen from the files, or
    addresses. Labels, groups and captions are found by the names of columns, as in a table.

    Attributes:
        place: folder or prefix that they lie under.
        pattern: their names.
    """

    place: ObjectPlace
    pattern: str

    @staticmethod
    def of(place: ObjectPlace) -> "ParquetFiles":
        """Open a file, a pattern, or all files of a folder or prefix.

        Raises:
            MissingExtra: pyarrow is not installed.
            BadInput: there is none, or it has no pictures.
        """
        above, _, name = place.url.rpartition("/")
        named = name.lower().endswith(".parquet")
        source = ParquetFiles(ObjectPlace(above) if named else place, name if named else "*.parquet")
        with source._opened(object_names(source.place, source.pattern)[0]) as file:
            source._pictures_in(file.schema_arrow)
        return source

    @property
    def spec(self) -> str:
        """Their address."""
        return f"{self.place.url}/{self.pattern}"

    def __iter__(self) -> Iterator[Picture]:
        """Walk the rows, a few at a time."""
        for name in object_names(self.place, self.pattern):
            with self._opened(name) as file:
                yield from self._rows(name, file)

    def _rows(self, name: str, file: Any) -> Iterator[Picture]:
        column, stem, at = self._pictures_in(file.schema_arrow), str(PurePosixPath(name).with_suffix("")), 0
        for batch in self._read(name, file.iter_batches(AT_ONCE)):
            for record in batch.to_pylist():
                value = record.pop(column)
                data = self._data(value)
                path = data.name if isinstance(data, ObjectFile) and isinstance(value, str) else f"{name}#{at}"
                note = note_of_record(record)
                named = value if isinstance(value, str) else f"{stem}/{at}"
                yield Picture(named, data, path, note.label, note.group, note.captions, note.meta, True)
                at += 1

    def count(self) -> int:
        """Count the rows: every file says how many it has."""
        total = 0
        for name in object_names(self.place, self.pattern):
            with self._opened(name) as file:
                total += int(file.metadata.num_rows)
        return total

    def check(self) -> None:
        """Raise BadInput or ObjectStoreError when no file is there (any more)."""
        object_names(self.place, self.pattern)

    def fetch(self, path: str) -> ImageData:
        """Read the picture of a row, from `file#row`, or say where the one of a path is."""
        name, _, row = path.rpartition("#")
        if not name or not row.isdecimal():
            return self._data(path)
        at = int(row)
        with self._opened(name) as file:
            column = self._pictures_in(file.schema_arrow)
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if at < rows:
                    return self._data(file.read_row_group(group, columns=[column]).column(column)[at].as_py())
                at -= rows
        raise BadImage(f"{name} has no row {row} any more")

    @contextmanager
    def _opened(self, name: str) -> Generator[Any]:
        try:
            from pyarrow import PythonFile
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise MissingExtra("pyarrow", "atlas") from error
        with closing(self.place.reader(name)) as reader:
            with reading(f"{self.place.url}/{name}", "It should be a Parquet file"):
                file = ParquetFile(PythonFile(reader, mode="r"))
            yield file

    def _read(self, name: str, batches: Iterator[Any]) -> Iterator[Any]:
        with reading(f"{self.place.url}/{name}", "Put a whole copy in its place"):
            yield from batches

    def _pictures_in(self, schema: Any) -> str:
        """Return the column of pictures."""
        import pyarrow

        for one in schema:
            inside = one.type.field(0).type if pyarrow.types.is_struct(one.type) and one.type.num_fields else one.type
            if pyarrow.types.is_binary(inside) or pyarrow.types.is_large_binary(inside):
                return str(one.name)
        for name in (*PATH, "url"):
            if name in schema.names:
                return name
        raise BadInput(f"{self.spec} has no column of pictures or paths, only: {', '.join(schema.names)}")

    def _data(self, value: Any) -> ImageData:
        if isinstance(value, dict):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str) and value:
            if is_object_url(value):
                above, _, name = ObjectPlace.of(value).url.rpartition("/")
                return ObjectFile(above, name)
            return ObjectFile(self.place.url, value) if self.place.folder is None else Path(self.place.url, value)
        return value if isinstance(value, bytes) and value else b""
