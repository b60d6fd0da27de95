"""Killed at any moment: a folder of output stays ours, what a person put beside stays theirs, and the next run sweeps the rest."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from clip_anatomy.atomic_output import Kind, as_json, atomic_output
from clip_anatomy.errors import OutputError
from clip_anatomy.files import written_whole
from clip_anatomy.partial_output import held_file, held_folder, sweep

KIND = Kind("note", "note.json", "a-note/1")
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod"}


def write(out: Path, names: list[str]) -> None:
    with atomic_output(out, KIND) as staging:
        (staging.folder / "parts").mkdir()
        for name in names:
            staging.write(name, name)
        staging.write("index.html", " ".join(names))
        staging.write(KIND.mark, as_json({"schema": KIND.schema, "files": [*staging.files, KIND.mark]}))


def killed_at(operation: int, out: Path, names: list[str]) -> bool:
    """Write in a process of its own that dies at that many-th operation on files; whether it was killed before it was done."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if event in OPERATIONS and str(out.parent) in str(args):
                seen += 1
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        write(out, names)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("before", ["nothing", "an older one", "somebody's folder"])
def test_killed_at_any_operation_the_folder_stays_ours_and_the_next_run_sweeps(before: str, tmp_path: Path) -> None:
    first, second = ["a.txt", "parts/b.txt", "parts/c.txt"], ["a.txt", "parts/c.txt", "parts/d.txt"]
    for operation in range(1, 200):
        place = tmp_path / str(operation)
        place.mkdir()
        out = place / "out"
        if before == "an older one":
            write(out, first)
        if before != "nothing":
            (out / "parts").mkdir(parents=True, exist_ok=True)
            (out / "parts" / "mine.txt").write_text("mine")
        was_killed = killed_at(operation, out, second)
        write(out, ["e.txt"])
        left = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        theirs = set() if before == "nothing" else {"out/parts/mine.txt"}
        assert left == {"out/e.txt", "out/index.html", "out/note.json"} | theirs, operation
        if not was_killed:
            assert operation > 10
            return
    raise AssertionError("never ran to its end")


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    with held_file(tmp_path, "a.npz") as file, held_folder(tmp_path, "out") as folder:
        (folder / "x").write_text("x")
        sweep(tmp_path)
        assert file.exists()
        assert (folder / "x").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_only_called_like_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-0123abcd").mkdir()
    (tmp_path / ".out.partial-0123abcd" / "thesis.tex").write_text("years")
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.txt").write_text("x")
    (tmp_path / ".out.partial-00000000.lock").write_text("")
    (tmp_path / ".out.partial-00000000").symlink_to(home)
    write(tmp_path / "out", ["a.txt"])
    assert (tmp_path / ".out.partial-0123abcd" / "thesis.tex").exists()
    assert (home / "notes.txt").exists()


def test_links_in_an_output_folder_are_not_followed(tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    (home / "precious.txt").write_text("x")
    write(out, ["a.txt"])
    (out / "a.txt").unlink()
    (out / "a.txt").symlink_to(home / "precious.txt")
    write(out, ["a.txt"])  # a link in the place of a file is replaced
    assert (home / "precious.txt").read_text() == "x"
    assert not (out / "a.txt").is_symlink()
    (out / "parts").rmdir()
    (out / "parts").symlink_to(home)
    with pytest.raises(OutputError, match=r"parts is a link, which is not followed. Type another folder: out=NAME"):
        write(out, ["parts/precious.txt"])
    assert (home / "precious.txt").read_text() == "x"


@pytest.mark.parametrize("name", ["../thesis.tex", "/etc/hosts", "parts/../../thesis.tex", 3, ["a"], ""])
def test_a_mark_that_lists_files_elsewhere_deletes_none(name: object, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, ["a.txt"])
    (tmp_path / "thesis.tex").write_text("years")
    (out / KIND.mark).write_text(json.dumps({"schema": KIND.schema, "files": [name]}))
    write(out, ["b.txt"])
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_is_written_whole_over_what_a_killed_run_left_and_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.partial-0123abcd").write_text("half")
    (tmp_path / "theirs.txt").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "theirs.txt")
    with written_whole(tmp_path / "a.txt") as place:
        place.write_text("whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "whole", "theirs.txt": "theirs"}
    with pytest.raises(OutputError, match="no zero byte"), written_whole(tmp_path / "a\0b"):
        pass
