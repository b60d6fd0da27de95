"""A Hugging Face dataset as a collection (extra `datasets`)."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_anatomy.data.picture import ImageData, Picture, unreachable
from clip_anatomy.data.tables import CAPTIONS, GROUP, LABEL
from clip_anatomy.errors import BadInput, MissingExtra, reading
from clip_anatomy.network import reaching

__all__ = ["HubDataset", "is_saved"]


@dataclass(frozen=True)
class HubDataset:
    """One split of a dataset. The first image column is the picture; class labels become their names.

    Attributes:
        name: repository name or folder.
        split: which split.
        rows: the dataset, images not decoded.
        column: its image column.
        streamed: whether its rows are fetched while they are walked, and nothing is kept.
    """

    name: str
    split: str
    rows: Any = field(repr=False)
    column: str
    streamed: bool = False

    @staticmethod
    def of(rest: str, *, streamed: bool = False) -> "HubDataset":
        """Open `NAME[:SPLIT]`, or a folder written by `save_to_disk` (`FOLDER[:SPLIT]`); `streamed` without downloading it first.

        Raises:
            MissingExtra: datasets is not installed.
            BadInput: no such dataset or split, or no image column.
        """
        try:
            library = importlib.import_module("datasets")
        except ImportError as error:
            raise MissingExtra("datasets", "datasets") from error
        name, _, split = rest.rpartition(":") if ":" in rest and not is_saved(Path(rest)) else (rest, "", "")
        saved = is_saved(Path(name))
        instead = (
            "Type hf-dataset:NAME[:SPLIT], or a folder that save_to_disk wrote; one that a store names is fetched with "
            "'with clip_anatomy.allow_network():' around it"
        )
        # Typed, it is asked for; a folder of that name has files of its own.
        with reaching(requested=not Path(name).exists()), reading(f"the dataset {name!r}", instead):
            opened = library.load_from_disk(name) if saved else library.load_dataset(name, streaming=streamed)
        if hasattr(opened, "keys"):
            splits = list(opened.keys())
            split = split or (splits[0] if len(splits) == 1 else "")
            if split not in splits:
                raise BadInput(
                    f"{name} has the splits {', '.join(splits)}. Type: {'hf-stream' if streamed else 'hf-dataset'}:{name}:{splits[0]}"
                )
            opened = opened[split]
        if streamed and opened.features is None:  # known once a row has been read
            opened = opened._resolve_features()
        column = next((k for k, kind in opened.features.items() if isinstance(kind, library.Image)), None)
        if column is None:
            raise BadInput(f"{name} has no image column, only: {', '.join(opened.features)}. Type another dataset")
        return HubDataset(name, split, opened.cast_column(column, library.Image(decode=False)), column, streamed)

    @property
    def spec(self) -> str:
        """The spec that opens it again."""
        return f"{'hf-stream' if self.streamed else 'hf-dataset'}:{self.name}{':' + self.split if self.split else ''}"

    def __iter__(self) -> Iterator[Picture]:
        """Walk the rows."""
        features = self.rows.features
        names = {kind: next((k for k in known if k in features), None) for kind, known in _KINDS.items()}
        for at, row in enumerate(self.rows):
            values = {k: _word(features[k], v) for k, v in row.items() if k != self.column}
            label, group = (str(values.get(names[k] or "", "") or "") for k in ("label", "group"))
            captions = values.get(names["captions"] or "") or ()
            used = {*names.values()}
            yield Picture(
                f"{self.split or 'all'}/{at}",
                _data(row[self.column]),
                str(at),
                label,
                group,
                (captions,) if isinstance(captions, str) else tuple(str(c) for c in captions),
                {k: v for k, v in values.items() if k not in used and isinstance(v, str | int | float | bool)},
            )

    def count(self) -> int | None:
        """Count the rows; not known of a stream."""
        return None if self.streamed else len(self.rows)

    def check(self) -> None:
        """Raise BadInput when its files have gone."""
        if is_saved(Path(self.name)) is False and Path(self.name).is_absolute():
            raise unreachable(f"the dataset {self.name}")

    def fetch(self, path: str) -> ImageData:
        """Read the image of a row."""
        at = int(path)
        return _data((next(iter(self.rows.skip(at))) if self.streamed else self.rows[at])[self.column])


_KINDS = {"label": LABEL, "group": GROUP, "captions": CAPTIONS}


def is_saved(folder: Path) -> bool:
    """Tell whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))


def _data(value: Any) -> ImageData:
    if value is None:
        return b""
    return value["bytes"] if value.get("bytes") is not None else Path(value["path"])


def _word(feature: Any, value: Any) -> Any:
    if hasattr(feature, "int2str") and isinstance(value, int) and value >= 0:
        return feature.int2str(value)
    return value
