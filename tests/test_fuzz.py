"""Whatever is read, only errors of the project come out: hypothesis damages a whole example of everything that is read.

    CLIP_ANATOMY_FUZZ_SECONDS=600 pytest -m slow tests/test_fuzz.py

Ten minutes a reader by default. With `atheris` installed, `python tests/test_fuzz.py READER` searches by coverage until it is stopped.
`bench/fuzz.py` does both for every reader and prints the table of docs/reliability.md.
"""

import inspect
import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from readers import READERS

from clip_anatomy.errors import ClipAnatomyError

SECONDS = float(os.environ.get("CLIP_ANATOMY_FUZZ_SECONDS", "600"))
AT_ONCE = 50
NASTY = [
    b"", b"\0" * 64, b"[" * 20_000, b'{"a":' * 20_000, b"1e999", b"-1", b"NaN", b"9" * 5_000, b'"\\ud800"', b"\xff\xfe", b"null", b"[]", b"{}",
    b"99999999999999999999", b"../../x", b"%n%s", b"\x1b[2J",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Cut, flip, repeat and replace pieces of a whole file; sometimes it is something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=200), st.sampled_from(NASTY)))
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        end = min(len(found), at + draw(st.integers(0, 40)))
        what = draw(st.integers(0, 4))
        if what == 0 and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif what == 1:
            del found[at:end]
        elif what == 2:
            found[at:at] = found[at:end] * draw(st.integers(1, 3))
        elif what == 3:
            found[at:end] = draw(st.sampled_from(NASTY))
        else:
            found[at:end] = draw(st.binary(max_size=8))
    return bytes(found)


def attempt(name: str, content: bytes, place: Path) -> None:
    """Read damaged content: it is read, or refused in the project's words."""
    reader = READERS[name]
    file = place / reader.name
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(ClipAnatomyError):
            reader.read(file)


def search(name: str, place: Path, seconds: float, before: int = 0) -> int:
    """Try damaged examples for some seconds of the processor, others than the first so many of a run before, and return how many."""
    whole, end, tried = READERS[name].example(), time.process_time() + seconds, 0
    (place / READERS[name].name).write_bytes(whole)
    READERS[name].read(place / READERS[name].name)  # the example itself is read
    while not tried or time.process_time() < end:

        @seed(before + tried)
        @settings(max_examples=AT_ONCE, deadline=None, database=None, suppress_health_check=[*HealthCheck])  # pyright: ignore[reportArgumentType]
        @given(damaged(whole))
        def once(content: bytes) -> None:
            attempt(name, content, place)

        once()
        tried += AT_ONCE
    return tried


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_only_errors_of_the_project_come_out_of_a_reader(name: str, tmp_path: Path, record_property: Any) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    record_property("inputs", search(name, tmp_path, SECONDS))


def main(name: str, *options: str) -> None:
    """Search by coverage, with atheris, until stopped or something comes out; or, with `--seconds N BEFORE`, with hypothesis for so long."""
    import tempfile

    place = Path(tempfile.mkdtemp())
    if options[:1] == ("--seconds",):
        for folder in ("images", "masks"):
            (place / folder).mkdir()
        print(f"{search(name, place, float(options[1]), int(options[2]))} inputs")
        return
    import atheris  # pyright: ignore[reportMissingImports]

    for folder in ("images", "masks", "corpus"):
        (place / folder).mkdir()
    (place / "corpus" / "whole").write_bytes(READERS[name].example())
    attempt(name, READERS[name].example(), place)  # imports what the reader needs
    for module in [one for key, one in sys.modules.items() if key.startswith("clip_anatomy.")]:
        for thing in [*vars(module).values()]:
            if inspect.isfunction(thing) and thing.__module__ == module.__name__:
                atheris.instrument_func(inspect.unwrap(thing))  # pyright: ignore[reportAttributeAccessIssue]
    atheris.Setup([sys.argv[0], str(place / "corpus"), *options], lambda data: attempt(name, data, place))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
