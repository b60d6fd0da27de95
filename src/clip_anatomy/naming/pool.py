"""A pool: the descriptions that heads may be named with."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clip_anatomy.errors import BadText
from clip_anatomy.files import digest

__all__ = ["Pool", "read_pool"]

LONGEST = 2000  # characters of a line; CLIP reads some 77 tokens, so more is a mistake and not a description
UNKNOWN = ""


@dataclass(frozen=True)
class Pool:
    """Distinct descriptions, each with the property it is about ("" when nobody said).

    Attributes:
        texts: the descriptions.
        properties: one for each text.
        source: where they come from, for people.
    """

    texts: tuple[str, ...]
    properties: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        """Fill in unknown properties; refuse a pool that holds a text twice or none at all."""
        if not self.properties:
            object.__setattr__(self, "properties", (UNKNOWN,) * len(self.texts))
        if len(self.properties) != len(self.texts):
            raise BadText(
                f"{len(self.properties)} properties for {len(self.texts)} texts: give one property for each text."
            )
        if len(set(self.texts)) != len(self.texts):
            twice = next(text for i, text in enumerate(self.texts) if text in self.texts[:i])
            raise BadText(f"a pool holds {twice!r} twice: type Pool.of(texts), which keeps the first of each.")

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.texts)

    @staticmethod
    def of(texts: Iterable[str], source: str = "") -> "Pool":
        """Make a pool of any texts, each once, in their order."""
        return Pool(tuple(dict.fromkeys(texts)), source=source)

    def merge(self, other: "Pool") -> "Pool":
        """Both pools' texts, each once, the first pool's first."""
        both = dict(zip(other.texts, other.properties, strict=True)) | dict(
            zip(self.texts, self.properties, strict=True)
        )
        order = [*self.texts, *(text for text in other.texts if text not in set(self.texts))]
        return Pool(tuple(order), tuple(both[text] for text in order), f"{self.source} + {other.source}")

    @property
    def digest(self) -> str:
        """A short name of exactly these texts in this order, for caches."""
        return digest("\n".join(self.texts), size=8, algorithm="sha256")


def read_pool(path: str | Path, *, duplicates: str = "refuse") -> Pool:
    """Read a text file of one description per line; empty lines are skipped.

    A property may follow a description after a tab.

    Args:
        path: a UTF-8 text file.
        duplicates: "refuse", or "drop" to keep the first of each.

    Returns:
        Pool in the order of the file.

    Raises:
        BadText: no such file, not text, no description in it, a line too long, a line twice. Says the line.
    """
    if duplicates not in ("refuse", "drop"):
        raise BadText(f"duplicates={duplicates!r} is not known. Type 'refuse' or 'drop'.")
    path = Path(path)
    first_places: dict[str, tuple[int, str]] = {}
    try:
        with path.open("rb") as handle:
            number = 0
            # A bounded read, so that one endless line is refused and not swallowed.
            while raw := handle.readline(4 * LONGEST + 2):
                number += 1
                text, about = _line(path, number, raw)
                if not text:
                    continue
                if text in first_places and duplicates == "refuse":
                    raise BadText(
                        f"{path}, line {number}: {text!r} stands in line {first_places[text][0]} already. "
                        f"Take one out, or type read_pool({str(path)!r}, duplicates='drop')"
                    )
                first_places.setdefault(text, (number, about))
    except FileNotFoundError:
        raise BadText(f"{path} does not exist: give a text file of one description per line.") from None
    except OSError as error:
        raise BadText(
            f"{path} cannot be read ({error.strerror}): give a text file of one description per line."
        ) from error
    if not first_places:
        raise BadText(f"{path} holds no description: write one per line.")
    return Pool(tuple(first_places), tuple(about for _, about in first_places.values()), path.name)


def _line(path: Path, number: int, raw: bytes) -> tuple[str, str]:
    if b"\0" in raw:
        raise BadText(
            f"{path}, line {number}: a zero byte, so this is not a text file. Save the descriptions as UTF-8."
        )
    if len(raw) > 4 * LONGEST:
        raise BadText(f"{path}, line {number}: longer than {LONGEST} characters. Write one description per line.")
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
        raise BadText(f"{path}, line {number}: not UTF-8. Save the descriptions as UTF-8 text.") from None
    if len(line) > LONGEST:
        raise BadText(f"{path}, line {number}: longer than {LONGEST} characters. Write one description per line.")
    text, _, about = line.partition("\t")
    return text.strip(), about.strip()
