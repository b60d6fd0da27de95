"""Pictures in tar files laid out as webdataset does: members that share a name up to the first dot are one sample.

Read as a stream, one member at a time: a tar of any size takes no memory and is never unpacked.
"""

import glob
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from clip_anatomy.data.picture import ImageData, Picture
from clip_anatomy.data.picture_files import HEAD, HIDDEN, LINK, has_suffix, is_picture, not_a_picture
from clip_anatomy.data.tables import CAPTIONS, GROUP, LABEL
from clip_anatomy.errors import BadImage, BadInput, ObjectStoreError, reading
from clip_anatomy.files import path_of

__all__ = ["TARS", "Tars", "member_of", "only_tars", "samples"]

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ESCAPED = re.compile(r"\[([*?[])\]")  # what glob.escape writes
TEXT_LIMIT = 2**20  # bytes of a .txt, .cls or .json member that are read
NOTES = ("txt", "cls", "json")  # members that say something about the picture of their sample
IMAGE_LIMIT = 2**29  # bytes of a picture: a member may claim any size, and gzip makes terabytes of nothing


@dataclass(frozen=True)
class Tars:
    """Samples of one or more tars, in the order of file names and of members.

    A sample is an image (by its ending, or its first bytes where that is unknown) and, beside it, .txt (a caption a line), .cls (a label) or .json (label,
    group, caption and anything else). Its id is `tar/key`.

    Attributes:
        pattern: a path, which may hold * and ?; brackets in the name of a folder that is there are escaped as glob does.
        passed_over: what the last walk passed over: reason → how many members.
    """

    pattern: Path
    passed_over: Counter[str] = field(default_factory=Counter[str], repr=False, compare=False)

    @staticmethod
    def of(pattern: Path) -> "Tars":
        """Open tars.

        Raises:
            BadInput: there is none.
        """
        pattern = path_of(pattern).absolute()
        if pattern.is_file():
            pattern = Path(glob.escape(str(pattern)))
        elif pattern.parent.is_dir():
            pattern = Path(glob.escape(str(pattern.parent)), pattern.name)
        source = Tars(pattern)
        source.check()
        return source

    @property
    def spec(self) -> str:
        """The pattern as an absolute path."""
        return str(self.pattern)

    @property
    def files(self) -> list[Path]:
        """The tar files."""
        return sorted(Path(name) for name in glob.glob(str(self.pattern)))  # noqa: PTH207 - the pattern is a whole path

    @property
    def root(self) -> Path:
        """The folder under which all of them lie: the pattern's, up to its first * or ?."""
        folder, *rest = self.pattern.parent.parts
        plain = takewhile(lambda part: not glob.has_magic(ESCAPED.sub("", part)), rest)
        return Path(folder, *(ESCAPED.sub(r"\1", part) for part in plain))

    def __iter__(self) -> Iterator[Picture]:
        """Walk all samples."""
        self.check()
        self.passed_over.clear()
        for file in self.files:
            called = file.relative_to(self.root).as_posix()
            yield from samples(lambda file=file: file.open("rb"), str(file), called, self.passed_over)

    def count(self) -> None:
        """Not known without reading the tars."""
        return

    def check(self) -> None:
        """Raise BadInput when no tar is there (any more)."""
        if not self.files:
            raise BadInput(
                f"there is no tar file {self.pattern}. Type the path of one, or a pattern such as 'train-*.tar'"
            )

    def fetch(self, path: str) -> ImageData:
        """Read the bytes of a member, from `tar#member`."""
        name, _, member = path.partition("#")
        with reading(path, f"It should be in the tars of {self.pattern}: put a whole copy in its place"):
            return member_of((self.root / name).open("rb"), member, str(self.pattern))


def member_of(file: BinaryIO, name: str, spec: str) -> bytes:
    """Read one member of a tar, which is closed again.

    Raises:
        BadImage: it is not there, or too large for a picture.
    """
    mode: Any = "r:*" if file.seekable() else "r|*"  # of a file here, what stands before the member is leapt over
    with file, tarfile.open(fileobj=file, mode=mode) as tar:
        found = next((member for member in tar if member.name == name), None)
        content = BadImage(f"{name} is not in {spec} any more") if found is None else _read(tar, found, IMAGE_LIMIT)
    if isinstance(content, BadImage):
        raise content
    return content


def only_tars(folder: Path) -> bool:
    """Tell whether a folder holds tars and no picture files or folders of their own."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return any(entry.suffix == ".tar" for entry in entries) and not any(
        entry.is_dir() or has_suffix(entry.name) for entry in entries
    )


def samples(opened: Callable[[], BinaryIO], shown: str, called: str, passed_over: Counter[str]) -> Iterator[Picture]:
    """Walk the samples of one tar, read once from its beginning to its end.

    Args:
        opened: opens it.
        shown: what it is called in errors.
        called: what it is called in ids.
        passed_over: where members that are no pictures are counted.
    """
    key, members = "", dict[str, tuple[str, bytes | BadImage]]()
    try:
        with opened() as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                folder, _, base = name.rpartition("/")
                if member.isdir():
                    continue
                if not member.isfile() or base.startswith("."):
                    passed_over[HIDDEN if base.startswith(".") else LINK] += 1
                    continue
                stem, _, ending = base.partition(".")
                here = f"{folder}/{stem}" if folder else stem
                if here != key:
                    yield from _sample(called, key, members, passed_over)
                    key, members = here, {}
                ending = ending.lower() if ending.lower() in NOTES else ending  # a.jpg and a.JPG are two pictures
                part = _member(tar, member, ending)
                if part is None:
                    passed_over[not_a_picture(base)] += 1
                else:
                    members[ending] = (member.name, part)
    except ObjectStoreError:  # a bucket that does not answer is no damaged tar
        raise
    except Exception as error:  # tarfile, gzip, zlib and lzma each fail in ways of their own
        # The sample under way may lack members: it waits for a whole copy. The other tars are walked all the same.
        yield Picture(called, BadImage(f"{shown} is not a whole tar file ({error}). Put a whole copy in its place"))
        return
    yield from _sample(called, key, members, passed_over)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> bytes | BadImage | None:
    """Read a picture or what stands beside one; None where it is neither, told by its first bytes if its ending is unknown."""
    if ending in NOTES:
        return _read(tar, member, TEXT_LIMIT)
    if has_suffix(member.name):
        return _read(tar, member, IMAGE_LIMIT)
    stream = tar.extractfile(member)
    head = b"" if stream is None else stream.read(HEAD)
    if stream is None or not is_picture(member.name, lambda: head):
        return None
    return _too_large(member) or head + stream.read(IMAGE_LIMIT)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes | BadImage:
    """Read a member; one that claims more than a picture can be is not read at all, of a text its beginning is."""
    if limit == IMAGE_LIMIT and (refused := _too_large(member)):
        return refused
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read(limit)


def _too_large(member: tarfile.TarInfo) -> BadImage | None:
    if member.size <= IMAGE_LIMIT:
        return None
    return BadImage(f"{member.name} has {member.size:,} bytes, {IMAGE_LIMIT:,} are allowed. Take it out of the tar")


def _sample(
    tar: str, key: str, members: dict[str, tuple[str, bytes | BadImage]], passed_over: Counter[str]
) -> Iterator[Picture]:
    images = [ending for ending in members if ending not in NOTES]
    if not images:
        passed_over.update(not_a_picture(name) for name, _ in members.values())
        return
    fields = _json(_text(members, "json"))
    label = str(next((fields.pop(name) for name in LABEL if name in fields), "")) or _text(members, "cls")
    group = str(next((fields.pop(name) for name in GROUP if name in fields), ""))
    own_captions: Any = next((fields.pop(name) for name in CAPTIONS if name in fields), ())
    captions = (
        tuple(str(t) for t in cast("list[Any]", own_captions))
        if isinstance(own_captions, list | tuple)
        else (str(own_captions),)
    )
    captions = captions or tuple(line.strip() for line in _text(members, "txt").splitlines() if line.strip())
    stem = tar.removesuffix(PurePosixPath(tar).suffix)
    meta = {k: v for k, v in fields.items() if isinstance(v, str | int | float | bool)}
    for ending in images:
        name, data = members[ending]
        id = f"{stem}/{key}" if len(images) == 1 else f"{stem}/{key}.{ending}"
        yield Picture(id, data, f"{tar}#{name}", label, group, captions, meta)


def _text(members: dict[str, tuple[str, bytes | BadImage]], ending: str) -> str:
    data = members.get(ending, ("", b""))[1]
    return data.decode("utf-8-sig", "replace").strip() if isinstance(data, bytes) else ""


def _json(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError):  # one sample's broken notes do not spoil its picture
        return {}
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
