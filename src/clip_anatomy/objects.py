"""The one door to object storage: `s3://`, `gs://`, `az://` and `file://` addresses, and plain folders, through obstore (extra `objects`).

Objects are whole or not there, and `put_if_absent` is decided by the server (a conditional put; on a folder a hard link): of two writers
one wins. Retries, backoff and timeouts are obstore's. Whatever goes wrong in the end is one error that says what to set or to type.
"""

import io
import os
import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from clip_anatomy.errors import BadInput, MissingExtra, ObjectStoreError
from clip_anatomy.files import digest, flush, written_whole
from clip_anatomy.network import may_fetch

__all__ = ["ObjectPlace", "difference", "is_object_url"]

URL = re.compile(r"(s3|gs|az|file):/+", re.IGNORECASE)
RETRIES, RETRY_SECONDS = 10, 120
DECIDING = 8  # times that a conditional put is asked again while the server decides between two of them
PIECE = 8 * 2**20
SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN where they are temporary), or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for a public container",
}
AGAIN = "type the same command again: what is committed is kept"


def is_object_url(name: object) -> bool:
    """Whether a name as typed is an address of object storage; also one that a `Path` was made of, which has a slash less.

    Example:
        >>> is_object_url("s3://bucket/photos"), is_object_url(Path("s3://bucket/photos")), is_object_url("photos/s3")
        (True, True, False)
    """
    return isinstance(name, str | Path) and URL.match(str(name)) is not None


@dataclass(frozen=True)
class ObjectPlace:
    """A bucket's prefix, or a folder, and the objects under it.

    Attributes:
        url: `s3://bucket/prefix`, without a slash at the end; of a folder its absolute path.
    """

    url: str

    @staticmethod
    def of(name: "str | Path | ObjectPlace") -> "ObjectPlace":
        """Take an address or the path of a folder as it was typed.

        Raises:
            BadInput: an address without a bucket, or one that a file names and that may not be fetched.
        """
        if isinstance(name, ObjectPlace):
            return name
        if not is_object_url(name):
            return ObjectPlace(str(Path(name).expanduser().absolute()))
        scheme, _, rest = str(name).partition(":")
        scheme, rest = scheme.lower(), rest.lstrip("/").rstrip("/")
        if scheme == "file":
            return ObjectPlace(str(Path("/", unquote(rest))))
        if not rest:
            raise BadInput(f"{name} names no bucket. Type {scheme}://BUCKET/PREFIX")
        if not may_fetch(requested=True):
            raise BadInput(
                f"{scheme}://{rest} is named by a file, not by you, and was not fetched. Type: 'with clip_anatomy.allow_network():' around it"
            )
        return ObjectPlace(f"{scheme}://{rest}")

    @property
    def folder(self) -> Path | None:
        """The folder that it is; None for a bucket."""
        return None if is_object_url(self.url) else Path(self.url)

    def __truediv__(self, name: str) -> "ObjectPlace":
        """Return the place below."""
        return ObjectPlace(f"{self.url}/{name}")

    # ---- writing

    def put(self, name: str, content: "bytes | Path") -> None:
        """Write an object, whole or not at all.

        Raises:
            ObjectStoreError: it cannot be written.
        """
        self._put(name, content, "overwrite")

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one of that name: the server decides, once, and nobody can write it again.

        Returns:
            Whether it is there with this content: also where the answer to our own put got lost, and its repetition was refused.

        Raises:
            ObjectStoreError: it cannot be written.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        for turn in range(DECIDING):
            try:
                self._put(name, content, "create")
                return True
            except (AlreadyExistsError, PreconditionError, FileExistsError):
                there = self.get(name)
                if there is not None:
                    return there == content
                time.sleep(0.1 * 2**turn)  # two puts at once: S3 may refuse both (409), and wants to be asked again
        raise ObjectStoreError(f"{self.url}/{name} is neither there nor to be written. Wait a little, and {AGAIN}")

    def _put(self, name: str, content: "bytes | Path", mode: str) -> None:
        with self._told(name, writing=True):
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            _library().put(self._store, name, content, mode=mode, use_multipart=None if mode == "overwrite" else False)
            if self.folder is not None:
                flush([self.folder / name, (self.folder / name).parent])

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; those that are not there are no error."""
        if names and (self.folder is None or self.folder.is_dir()):
            with self._told(names[0], writing=True):
                try:
                    _library().delete(self._store, [*names])
                except FileNotFoundError:  # of a folder; somebody else deleted it
                    for name in names:
                        (Path(self.url) / name).unlink(missing_ok=True)

    # ---- reading

    def get(self, name: str) -> bytes | None:
        """Read an object whole; None where there is none.

        Raises:
            ObjectStoreError: it cannot be read, or there is no such bucket.
        """
        if self.folder is not None and not self.folder.is_dir():
            return None
        with self._told(name):
            try:
                return bytes(_library().get(self._store, name).bytes())
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise
                return None

    def pieces(self, name: str) -> Iterator[bytes]:
        """Read an object a piece at a time.

        Raises:
            ObjectStoreError: it is not there, or cannot be read.
        """
        with self._told(name):
            for piece in _library().get(self._store, name).stream(min_chunk_size=PIECE):
                yield bytes(piece)

    def reader(self, name: str) -> Any:
        """Open an object as a file that can be read anywhere in it.

        Raises:
            ObjectStoreError: it is not there, or cannot be read.
        """
        with self._told(name):
            if self.folder is not None:
                return (self.folder / name).open("rb")
            return io.BufferedReader(_Anywhere(_library().open_reader(self._store, name)), 2**20)

    def fetch(self, name: str, path: Path, size: int | None, expected: str) -> None:
        """Bring an object to a file, whole or not at all.

        Args:
            name: of the object.
            path: of the file.
            size: bytes that it must have, if they are known.
            expected: their `digest`.

        Raises:
            ObjectStoreError: it is not there, or cannot be read, or is not what was written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, "Free some space, or set CLIP_ANATOMY_CACHE to a folder with room") as temporary:
            with temporary.open("wb") as file:
                total, found = _measured(self.pieces(name), file.write)
            if found != expected:
                raise ObjectStoreError(f"{self.url}/{name}: {difference(total, size)}. Put a whole copy in its place")

    def measure(self, name: str) -> tuple[int, str]:
        """Return bytes and `digest` of an object."""
        return _measured(self.pieces(name), len)

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """List the objects below a prefix as names and bytes, a thousand at a time; in the order of names, except of a folder."""
        if self.folder is not None and not self.folder.is_dir():
            return
        with self._told(prefix):
            for some in _library().list(self._store, prefix or None):
                yield from ((str(one["path"]), int(one["size"])) for one in some)

    def folders(self, prefix: str) -> list[str]:
        """List what stands between a prefix and the next slash, sorted, not what is below."""
        if self.folder is not None and not self.folder.is_dir():
            return []
        with self._told(prefix):
            found = _library().list_with_delimiter(self._store, prefix or None)
        return sorted(str(one).rsplit("/", 1)[-1] for one in found["common_prefixes"])

    # ---- within

    @property
    def _store(self) -> Any:
        names = ("AWS_", "GOOGLE_", "AZURE_")
        return _opened(self.url, tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(names))))

    @contextmanager
    def _told(self, name: str, *, writing: bool = False) -> Generator[None]:
        """Turn whatever an object store answers into one error; that there is an object already is left to who asked."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError, FileExistsError, ObjectStoreError):
            raise
        except FileNotFoundError as error:
            if not _NO_BUCKET.search(str(error)):
                if writing or self.folder is None:
                    raise ObjectStoreError(f"{self.url}/{name} is not there. {_NOT_THERE}") from error
                raise ObjectStoreError(f"{Path(self.url) / name} is not there. {_NOT_THERE}") from error
            raise ObjectStoreError(_explained(self.url, name, error, writing=writing)) from error
        except (BaseError, OSError, ValueError) as error:
            raise ObjectStoreError(_explained(self.url, name, error, writing=writing)) from error


_NOT_THERE = "Look at the address, or bring it back, and type the same command again"
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|The specified bucket does not exist", re.IGNORECASE)
_NO_CREDENTIALS = re.compile("169\\.254\\.169\\.254|latest/api/token|latest/meta-data|metadata\\.google|MissingCredentials|Account must be|AccessKey", re.IGNORECASE)  # fmt: skip
_EXPIRED = re.compile("ExpiredToken|TokenRefreshRequired|token (?:is|has) expired|RequestTimeTooSkewed", re.IGNORECASE)
_UNKNOWN_KEY = re.compile("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|AuthenticationFailed", re.IGNORECASE)
_DENIED = re.compile("AccessDenied|403 Forbidden|401 Unauthorized", re.IGNORECASE)
_BUSY = re.compile(r"\b(?:50[0234]|429) |SlowDown|ServiceUnavailable|Server returned error response", re.IGNORECASE)
_UNREACHED = re.compile("error sending request|builder error|connect|dns|timed out|timeout", re.IGNORECASE)


def _explained(url: str, name: str, error: Exception, *, writing: bool) -> str:
    """Say what an object store meant, and what to set or to type."""
    text = " ".join(str(error).split("\n\nDebug source", maxsplit=1)[0].split())[:400]
    where, scheme = f"{url}/{name}".rstrip("/"), urlsplit(url).scheme
    if not is_object_url(url):
        return f"{where} cannot be {'written' if writing else 'read'} ({text}). Free some space, or look at the folder; then {AGAIN}"
    bucket = "/".join(url.split("/")[:3])
    rules = (
        (_NO_BUCKET, f"there is no bucket {bucket}. Make it, or look at its name and at AWS_REGION and AWS_ENDPOINT_URL"),
        (_EXPIRED, f"the credentials for {bucket} have expired. Get new ones (for AWS: aws sso login), set {SETTINGS[scheme]}, and {AGAIN}"),
        (_UNKNOWN_KEY, f"{bucket} does not know these credentials ({text}). Set {SETTINGS[scheme]}"),
        (_NO_CREDENTIALS, f"there are no credentials for {bucket}. Set {SETTINGS[scheme]}"),
        (_DENIED, f"these credentials may not {'write' if writing else 'read'} {where} ({text}). Ask for the right to, or set {SETTINGS[scheme]}"),
        (_BUSY, f"{bucket} does not serve requests at the moment ({text}). Wait a little, and {AGAIN}"),
        (_UNREACHED, f"{bucket} cannot be reached ({text}). Look at the network and at AWS_ENDPOINT_URL (with AWS_ALLOW_HTTP=true for http://), and {AGAIN}"),
    )  # fmt: skip
    found = next((said for pattern, said in rules if pattern.search(text)), "")
    return found or f"{where} cannot be {'written' if writing else 'read'} ({text}). Look at the address, and {AGAIN}"


def difference(size: int, expected: int | None) -> str:
    """Say in what way an object is not what was written."""
    cut = expected is not None and size != expected
    return f"{size:,} bytes instead of {expected:,}" if cut else "its bytes are not those that were written"


def _measured(pieces: Iterator[bytes], use: Any) -> tuple[int, str]:
    total = 0

    def counted() -> Iterator[bytes]:
        nonlocal total
        for piece in pieces:
            total += len(piece)
            use(piece)
            yield piece

    found = digest(counted())
    return total, found


class _Anywhere(io.RawIOBase):
    """What obstore reads from, as a file of Python."""

    mode = "rb"

    def __init__(self, reader: Any) -> None:
        super().__init__()
        self.reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self.reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self.reader.tell())

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        content = bytes(self.reader.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)


def _library() -> Any:
    try:
        import obstore
    except ImportError as error:
        raise MissingExtra("obstore", "objects") from error
    return obstore


@lru_cache(maxsize=32)
def _opened(url: str, _environment: tuple[tuple[str, str], ...]) -> Any:
    """Open a store; its variables are read at this moment, so that others of them are another one."""
    _library()
    from obstore.store import LocalStore, from_url

    if not is_object_url(url):
        return LocalStore(prefix=url, automatic_cleanup=True)
    retry: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    return from_url(
        url, retry_config=retry
    )  # no client_options: they would put AWS_ALLOW_HTTP and its like out of force
