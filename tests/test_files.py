"""One hash for the project; safetensors files of statistics."""

import hashlib
from pathlib import Path

from clip_anatomy import files


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
