"""Every error that clip-anatomy raises on purpose.

ClipAnatomyError
├── BadInput                 what was handed in cannot be used
│   ├── BadImage             one image (path, PIL, array or tensor)
│   ├── BadText              one text or prompt template
│   └── BadSpec              a model, layer, head or option name
├── ModelError               the model itself
│   ├── UnsupportedModel     an architecture that the linear split does not cover
│   ├── BadCheckpoint        a file that is not these weights
│   └── ParityError          our forward and the host library's disagree
├── StoreError               a store on disk: wrong model, damaged, in use
├── ObjectStoreError         a bucket that does not answer as it should: no credentials, no such bucket, 503
├── EndpointError            a language model that does not answer as it should
├── EngineError              work that no worker could do
├── OutputError              a place that cannot be written
└── MissingExtra             an optional library is not installed

A message says what was given, what was expected, and ends with what to type instead.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager

# C0 without tab and line break, DEL, C1; marks that turn the direction of writing, or break lines where nobody sees it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Write out control characters, so that no name of a file and no answer of a server can command a terminal.

    Example:
        >>> visible("a\\x1b[2J.png")
        'a\\\\x1b[2J.png'
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class ClipAnatomyError(Exception):
    """Base of the tree: catch this to catch everything the library raises on purpose."""

    def __str__(self) -> str:
        """Return the message, control characters of names and answers written out."""
        return visible(super().__str__())


class Ended(BaseException):
    """The process was asked to end (SIGTERM), as KeyboardInterrupt is for Ctrl-C."""


class BadInput(ClipAnatomyError, ValueError):
    """What was handed in cannot be used."""


class BadImage(BadInput):
    """An image that cannot be read or has no usable pixels."""


class BadText(BadInput):
    """A text that the tower cannot encode."""


class BadSpec(BadInput):
    """A name (model, layer, head, option) that is not known."""


class ModelError(ClipAnatomyError):
    """The model itself cannot be opened."""


class UnsupportedModel(ModelError):
    """An architecture that the linear split does not cover; names what was found."""


class BadCheckpoint(ModelError):
    """A file that does not hold the weights it should."""


class ParityError(ModelError):
    """Our forward and the host library's own disagree by more than float error."""


class StoreError(ClipAnatomyError):
    """A store on disk that cannot be used as asked."""


class ObjectStoreError(ClipAnatomyError):
    """An object store (a bucket, or a folder used as one) that cannot be read or written."""


class EndpointError(ClipAnatomyError):
    """A language model's endpoint that does not answer as it should."""


class EngineError(ClipAnatomyError):
    """Work that no worker could do: names the task, and what the last one said."""


class OutputError(ClipAnatomyError, OSError):
    """A place that cannot be written."""


class MissingExtra(ClipAnatomyError, ImportError):
    """An optional library is not installed; the message is the line that installs it.

    Example:
        >>> raise MissingExtra("open_clip", "open-clip")
        Traceback (most recent call last):
        clip_anatomy.errors.MissingExtra: open_clip is not installed. Type: pip install 'clip-anatomy[open-clip]'
    """

    def __init__(self, library: str, extra: str) -> None:
        """Write the install line."""
        super().__init__(f"{library} is not installed. Type: pip install 'clip-anatomy[{extra}]'")
        self.named = (library, extra)

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str]]:
        """Let another process say the same."""
        return MissingExtra, self.named


@contextmanager
def reading(name: object, instead: str, kind: type[ClipAnatomyError] = BadInput) -> Generator[None]:
    """Turn anything that goes wrong while something from outside is read into one error that names it.

    The boundary of every reader: files, tables, answers of servers and native libraries fail in more ways than can be listed
    (`RecursionError` on deep JSON, `MemoryError` on a size that a header claims, kinds of a library's own).

    Args:
        name: what is read.
        instead: what to do or type instead, without a full stop.
        kind: the error to raise. Errors of this project pass unchanged.

    Example:
        >>> with reading("labels.json", "Save it as JSON in UTF-8"):
        ...     raise RecursionError("maximum recursion depth exceeded")
        Traceback (most recent call last):
        clip_anatomy.errors.BadInput: labels.json cannot be read (RecursionError: maximum recursion depth exceeded). Save it as JSON in UTF-8
    """
    try:
        yield
    except ClipAnatomyError:
        raise
    except Exception as error:
        raise kind(f"{name} cannot be read ({type(error).__name__}: {error}). {instead}") from error
