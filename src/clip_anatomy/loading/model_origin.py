"""`Origin`: where a model came from, so that a store or an edit opens it again, from any working directory and after a move."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_anatomy.errors import BadSpec
from clip_anatomy.files import path_of

__all__ = ["Origin", "tokenizer_wanted"]

SCHEMES_OF_PLACES = ("hf", "local-dir")  # what may stand before a colon and a folder


@dataclass(frozen=True)
class Origin:
    """The spec of a model as typed, and the places that it and its weights were at.

    Attributes:
        spec: as typed.
        place: the folder or file that the spec names, absolute; "" for a model that has a name only.
        weights: the checkpoint file that was given beside it, absolute; "" for none.
    """

    spec: str
    place: str = ""
    weights: str = ""

    @staticmethod
    def of(spec: str, weights: str | Path | None = None) -> "Origin":
        """Note where a model lies while its spec still means something: paths are relative to where one is."""
        path = path_of(_without_scheme(spec))
        place = str(path.absolute()) if path.exists() and spec != "demo" else ""
        return Origin(spec, place, "" if weights is None else str(path_of(weights).absolute()))

    def to_dict(self, beside: Path) -> dict[str, str]:
        """Return it for a file in the folder `beside`: places absolute, and as seen from there."""
        around = beside.absolute()
        places = {name: place for name, place in (("place", self.place), ("weights", self.weights)) if place}
        relative = {f"{name}_from_here": os.path.relpath(place, around) for name, place in places.items()}
        return {"spec": self.spec, **places, **relative}

    @staticmethod
    def read(saved: Mapping[str, str], beside: Path, spec: str) -> "Origin":
        """Read what `to_dict` gave, from a file in the folder `beside`; of the two ways to a place, one that leads somewhere.

        Raises:
            BadSpec: neither leads anywhere; says what was looked for, and how to pass it.
        """
        places: dict[str, str] = {}
        for name, option in (("place", "model"), ("weights", "weights")):
            candidates = [saved[name]] if name in saved else []
            if f"{name}_from_here" in saved:  # a store in a bucket has none
                candidates.append(os.path.normpath(beside.absolute() / saved[f"{name}_from_here"]))
            there = [way for way in dict.fromkeys(candidates) if Path(way).exists()]
            if candidates and not there:
                looked = " and ".join(dict.fromkeys(candidates))
                model = "" if name == "place" else f"model={saved['spec']!r}, "
                raise BadSpec(
                    f"{beside} is of the model {saved['spec']!r}; looked for {looked}, and nothing is there. Type: {model}{option}=FILE, with "
                    "where it is now"
                )
            places[name] = there[0] if there else ""
        return Origin(saved.get("spec", spec), places["place"], places["weights"])

    @property
    def spec_anywhere(self) -> str:
        """A spec that means the same in any folder."""
        return self.spec.removesuffix(_without_scheme(self.spec)) + self.place if self.place else self.spec


def _without_scheme(spec: str) -> str:
    scheme, colon, rest = spec.partition(":")
    return rest if colon and scheme in SCHEMES_OF_PLACES else spec


def tokenizer_wanted(origin: Origin | None) -> str:
    """Say what to type where a model came without a tokenizer."""
    if origin is None or not origin.place:
        return "Type: load(model, tokenizer=...), or pass token ids"
    place = Path(origin.place)
    folder = place if place.is_dir() else place.parent
    config = folder / "open_clip_config.json"
    name = f", and its hf_tokenizer_name into text_cfg of {config.name}" if config.is_file() else ""
    return f"Type: load(model, tokenizer=...), or put the files of one (tokenizer.json, ...) into {folder}{name}"
