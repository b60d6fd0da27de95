"""docs/reliability.md says what bad input is answered with; every sentence that it quotes is said here by what it quotes."""

import io
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pictures import noise

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.files import read_json, read_lines, write_text
from clip_anatomy.images.decode import read_image

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
DEMO = Path(ca.__file__).parent / "loading" / "demo"


def typed(*words: str) -> Callable[[], str]:
    """What a command says; it ends with 2."""

    def run() -> str:
        assert main(words) == 2
        return "typed"

    return run


def raised(call: Callable[[], object]) -> str:
    with pytest.raises(ca.errors.ClipAnatomyError) as caught:
        call()
    return str(caught.value)


def written(name: str, content: bytes | str) -> Path:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(name)


def sparse(name: str, size: int, begins: bytes = b"") -> Path:
    """A file of any size that takes no room."""
    path = written(name, begins)
    os.truncate(path, size)
    return path


def foreign() -> str:
    (Path("theirs") / "blocks").mkdir(parents=True)
    return raised(lambda: ca.index(ca.load("demo", parity=False), "world:2", Path("theirs")))


def no_patch() -> str:
    folder = Path(shutil.copytree(DEMO, "model", ignore=shutil.ignore_patterns("*.py", "__pycache__", "examples")))
    config = folder / "open_clip_config.json"
    config.write_text(re.sub(r'"patch_size": \d+', '"patch_size": 0', config.read_text()))
    return raised(lambda: ca.load(folder))


def cut_block() -> str:
    ca.index(ca.load("demo", parity=False), "world:2", Path("cut"))
    block = next(one for one in Path("cut/blocks").rglob("*") if one.is_file() and one.stat().st_size > 1000)
    os.truncate(block, block.stat().st_size - 8)
    return (
        raised(lambda: ca.Store.open("cut").embeddings())
        if "emb" in block.name
        else "\n".join(ca.verify("cut").problems)
    )


def bomb() -> str:
    """A table of contents that claims more than the file holds."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("recordings.npy", b"x" * 64)
        made.writestr("more.npy", b"x" * 64)
    content = bytearray(file.getvalue())
    for at in (one.start() for one in re.finditer(b"PK\x01\x02", content)):
        content[at + 24 : at + 28] = struct.pack("<I", 0xFFFF_FFF0)
    store = ca.Store.open("store")
    return raised(lambda: ca.align(store, written("bomb.npz", bytes(content))))


def pipe() -> str:
    os.mkfifo("edit.json")
    return raised(lambda: ca.Edit.load("edit.json"))


def out_of_memory() -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clip_anatomy.cli.main._run", lambda _: (_ for _ in ()).throw(MemoryError()))
        return typed("check")()


SAID: dict[str, Callable[[], str]] = {
    "… is no store and not empty": foreign,
    "… cannot be written …": lambda: raised(lambda: write_text(Path("/proc/nowhere/a.json"), "x")),
    "… cannot be read (…)": no_patch,
    "… cannot be read (RecursionError: …)": lambda: raised(lambda: read_json(written("deep.json", "[" * 100_000), "Save it")),
    "… has N bytes, M are read": lambda: raised(lambda: read_json(sparse("large.json", 2 * 2**30), "Save it")),
    "… holds a JSON list": lambda: raised(lambda: read_json(written("list.json", "[]"), "Save it")),
    "… N bytes instead of M": cut_block,
    "… has a line of more than 1,048,576 characters": lambda: raised(lambda: list(read_lines(sparse("line.txt", 900 * 10**9), "Save it"))),
    "… bytes when unpacked, 4,294,967,296 are read": bomb,
    "… it is no file …": pipe,
    "… has N bytes, a picture may have M": lambda: raised(lambda: read_image(sparse("huge.png", 5 * 10**9, b"\x89PNG\r\n\x1a\n"))),
    "… into int": typed("index", "world:2", "s", "--workers", "1e20"),
    "… a whole number from N to M was expected": lambda: raised(lambda: ca.index(ca.load("demo", parity=False), "world:2", Path("w"), workers=-1)),
    "… is no number that can be used": typed("repair", "store", "--cost", "1e300"),
    "text 0 holds half a character …": lambda: raised(lambda: ca.heatmap(ca.load("demo", parity=False), noise(32, 32), ["a \ud800"])),
    "memory ran out. Type fewer or smaller pictures …": out_of_memory,
    "… holds a NUL character …": lambda: raised(lambda: ca.verify("a\0b")),
    "… was expected …": lambda: raised(lambda: ca.load(torch.zeros(2).numpy().tolist())),
    "… holds several state dicts …": lambda: raised(lambda: ca.load(saved({"a": {"w": torch.zeros(1)}, "b": {"w": torch.ones(1)}}))),
    "… holds Python objects, not only tensors …": lambda: raised(lambda: ca.load(saved({"a": noise}))),
    "… there is no file or folder …": lambda: raised(lambda: ca.load("no/where.pt")),
    "… holds no picture …": typed("index", "empty", "s"),
}  # fmt: skip


def saved(value: object) -> Path:
    torch.save(value, "weights.pt")
    return Path("weights.pt")


def sentence(quoted: str) -> str:
    """As a pattern: … is anything, N and M are numbers."""
    pieces = (re.sub(r"\b[NM]\b", r"[\\d,]+", re.escape(one.strip())) for one in quoted.split("…"))
    return ".*".join(pieces).replace(r"\ ", " ")


@pytest.mark.slow
def test_every_quoted_sentence_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    quoted = {one for row in rows for one in re.findall(r'"([^"]{4,})"', row.split("|")[2])}
    assert quoted == {*SAID}
    monkeypatch.chdir(tmp_path)
    ca.index(ca.load("demo", parity=False), "world:12", tmp_path / "store")
    (tmp_path / "empty").mkdir()
    wrong: list[str] = []
    for one, say in SAID.items():
        said = say()
        said = capsys.readouterr().err if said == "typed" else said
        if not re.search(sentence(one), said, re.S):
            wrong.append(f"{one}: {said}")
    assert "\n".join(wrong) == ""
