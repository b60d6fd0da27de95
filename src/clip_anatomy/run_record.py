"""What a run of the command line did: `run.json` in every folder that it wrote, and its log, one line of JSON an event.

Everything that logs does so under the name `clip_anatomy`, with what programs read in `record.fields`. A program attaches handlers of its own.
"""

import json
import logging
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.progress import LOG, log

if TYPE_CHECKING:
    from clip_anatomy.objects import ObjectPlace

__all__ = ["NAME", "JsonLines", "opened", "put", "recorded", "versions", "write"]

NAME, SCHEMA = "run.json", "clip-anatomy/run/1"
LIBRARIES = ("clip-anatomy", "zarr", "numpy", "pillow", "open_clip_torch", "transformers")
SECRET = "--token"
_run: ContextVar["_Run | None"] = ContextVar("run", default=None)


Model = TypeVar("Model")


@dataclass(frozen=True)
class _Run:
    command: tuple[str, ...]
    began: float = field(default_factory=time.time)
    models: list[Any] = field(default_factory=list[Any])  # `Clip`s, which are of a later room

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "command": self.command,
            "began": _utc(self.began),
            "seconds": round(time.time() - self.began, 3),
            "models": [{"name": model.name, "weights": model.digest} for model in self.models],
            "versions": {"python": sys.version.split()[0], **versions()},
        }

    @property
    def text(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that decide its numbers, of those that are installed."""
    torch = sys.modules.get("torch")  # which is not imported for this
    found = {} if torch is None else {"torch": str(torch.__version__)}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextmanager
def recorded(words: Sequence[str], file: Path | None = None) -> Generator[None]:
    """Record a run of the command line, and log it.

    Args:
        words: what was typed; what follows --token is left out.
        file: the log that lines are added to; None for none.

    Raises:
        BadInput: it cannot be written.
    """
    typed = tuple("…" if before == SECRET else word for before, word in zip(["", *words], words, strict=False))
    typed = tuple(f"{SECRET}=…" if word.startswith(f"{SECRET}=") else word for word in typed)
    run, level, passed_on = _Run(("clip-anatomy", *typed)), LOG.level, LOG.propagate
    try:
        handler = None if file is None else logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the log {file} cannot be written: {error}. Type another file") from error
    token = _run.set(run)
    if handler is not None:
        handler.setFormatter(JsonLines())
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
    LOG.propagate = (
        False  # libraries attach handlers to the root when they log, and all would be said twice, in Python's words
    )
    log("began", command=run.command)
    try:
        yield
    except BaseException as error:
        log(f"{type(error).__name__}: {error}", logging.ERROR)
        raise
    finally:
        log("ended", seconds=round(time.time() - run.began, 3))
        _run.reset(token)
        LOG.propagate = passed_on
        if handler is not None:
            LOG.setLevel(level)
            LOG.removeHandler(handler)
            handler.close()


class JsonLines(logging.Formatter):
    """Write a record as one line of JSON: time, level, message, and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told = {"time": _utc(record.created), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps({**told, **getattr(record, "fields", {})})


def opened(model: Model) -> Model:
    """Note a model that was opened (a `Clip`), and return it."""
    run = _run.get()
    if run is not None:
        run.models.append(model)
        log("opened", model=run.models[-1].name)
    return model


def write(folder: Path) -> None:
    """Say in a folder that was just written which run did it; what an earlier run said is taken away where none is recorded.

    A file of the same name that is somebody else's stays.
    """
    from clip_anatomy.files import read_json, write_text  # brings torch, which `--help` does without

    place, run = folder / NAME, _run.get()
    if place.exists():
        try:
            ours = read_json(place, "").get("schema") == SCHEMA
        except ClipAnatomyError:
            ours = False
        if not ours:
            return
        if run is None:
            place.unlink()
    if run is not None:
        write_text(place, run.text)
        log("wrote", folder=str(folder))


def put(place: "ObjectPlace") -> None:
    """Say in a sharded store which run went on with it last; see `write`."""
    if place.folder is not None:
        write(place.folder)
    elif (run := _run.get()) is not None:
        place.put(NAME, run.text.encode())
        log("wrote", folder=place.url)


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
