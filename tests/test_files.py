"""One hash for the project; safetensors files of statistics."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clip_anatomy as ca
from clip_anatomy import files
from clip_anatomy.atomic_output import Kind
from clip_anatomy.data.masked import lines_of
from clip_anatomy.data.matlab import matlab_table
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.pickle_reader import read_safe_pickle
from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.loading.typed_texts import read_texts
from clip_anatomy.store.blocks import mapped
from clip_anatomy.store.durability import is_marked
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.studies.store_columns import classes_of


def test_the_hash_is_blake2b_of_the_joined_pieces() -> None:
    joined = hashlib.blake2b("ä red circle".encode(), digest_size=16).hexdigest()
    assert files.digest("ä red circle") == joined
    assert files.digest(piece for piece in ("ä red ", b"cir", memoryview(b"cle"))) == joined
    key = hashlib.blake2b(b"model", digest_size=16).digest()
    keyed = hashlib.blake2b(b"text", key=key, digest_size=16).hexdigest()
    assert files.digest("text", key=files.digest("model")) == keyed


def test_sha256_is_cut_to_its_size() -> None:
    assert files.digest("texts", size=8, algorithm="sha256") == hashlib.sha256(b"texts").hexdigest()[:16]


def test_a_file_is_hashed_in_chunks(tmp_path: Path) -> None:
    content = bytes(range(256)) * (files.FILE_CHUNK // 256 + 3)
    path = tmp_path / "part.npy"
    path.write_bytes(content)
    assert files.digest_of_file(path) == hashlib.blake2b(content, digest_size=16).hexdigest()


def test_random_numbers_depend_on_seed_and_name() -> None:
    raw = hashlib.blake2b(b"3 a.jpg", digest_size=7).digest()
    assert files.random_number(3, "a.jpg", size=7) == int.from_bytes(raw, "little")
    assert files.random_number(3, "a.jpg") < 2**64


def test_lists_and_tables_are_read_by_bounded_lines(tmp_path: Path) -> None:
    """A file of a terabyte of nothing is refused at its first line, whoever reads it."""
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbf a dog\r\n\n caf\xc3\xa9 \rlast")
    assert [*files.text_lines(path)] == [" a dog\r\n", "\n", " café \r", "last"]
    assert files.read_lines(path) == ["a dog", "café", "last"]
    for name in ("huge.txt", "huge.csv", "huge.jsonl"):
        huge = tmp_path / name
        with huge.open("wb") as file:
            file.truncate(2**40)
        for read in (
            files.read_lines,
            lambda one: list(open_dataset(one)),
            lambda one: read_texts([f"@{one}"]),
            lambda one: classes_of(str(one)),
            lines_of,
        ):
            with pytest.raises(BadInput, match=r"has a line of more than 1,048,576 characters|no column|is empty"):
                read(huge)
    path.write_bytes(b"\xff\xfa")
    with pytest.raises(BadInput, match=r"cannot be read \(UnicodeDecodeError"):
        files.read_lines(path)


def test_a_mapped_array_takes_its_room_at_once(tmp_path: Path) -> None:
    """Writing into the holes of a mapped file ends the process where the disk is full; an error does not."""
    values = files.mapped_array(tmp_path / "a.npy", np.float32, (1000, 300))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1_200_000
    values[5] = 3
    values.flush()
    assert float(np.load(tmp_path / "a.npy")[5].sum()) == 900
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from clip_anatomy.files import mapped_array\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))\n"
        "try: mapped_array(Path(sys.argv[1]), np.float32, (1000, 300))\n"
        "except OSError as error: print(type(error).__name__)"
    )
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "b.npy"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "OSError"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    """In a store, an output folder, an edit: whoever made it, nobody would ever write into it."""
    for name in ("store.json", "lock", "heatmap.json", "edit.json", "m.safetensors", "block", "a.mat", "batch"):
        os.mkfifo(tmp_path / name)
    for read in (
        lambda: Manifest.load(tmp_path),
        lambda: ca.Edit.load(tmp_path / "edit.json"),
        lambda: ca.Moments.load(tmp_path / "m.safetensors"),
        lambda: matlab_table(tmp_path / "a.mat", "x"),
        lambda: read_safe_pickle(tmp_path / "batch"),
    ):
        with pytest.raises(ClipAnatomyError, match="it is no file|is not a file"):
            read()
    assert not Kind("maps", "heatmap.json", "clip-anatomy/maps/1").owns(tmp_path)
    assert not is_marked(tmp_path)
    with pytest.raises(OSError, match="it is no file"):
        mapped(tmp_path / "block", np.float32, 4)
    piped = (
        'echo \'{"label": "cat"}\' | '
        + f'{sys.executable} -c \'from clip_anatomy.files import *; from pathlib import Path; print(read_json(Path("/dev/stdin"), ""))\''
    )
    assert (
        subprocess.run(["sh", "-c", piped], capture_output=True, text=True, check=True).stdout == "{'label': 'cat'}\n"
    )
