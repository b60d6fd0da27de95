"""Names of files and answers of servers never command a terminal: one place prints."""

import ast
from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text
from test_house import FILES, PACKAGE

from clip_anatomy import progress
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadImage, MissingExtra, OutputError, visible
from clip_anatomy.results import text_table

HOSTILE = "e\x1b]0;TITLE\x07\x1b[2J\x9b31m\x7f\u202egnp.exe\r.png"


def harmless(text: str) -> bool:
    return not {*text} & {"\x1b", "\x07", "\x9b", "\x7f", "\u202e", "\r"}


def test_only_one_module_prints() -> None:
    alone = {"progress.py", "edits/standalone_encoder.py"}  # the second runs without this package
    for path in FILES:
        if str(path.relative_to(PACKAGE)) not in alone:
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            named = {call.id for call in calls if isinstance(call, ast.Name)}
            assert not named & {"print", "input"}, path


def test_messages_and_tables_write_control_characters_out(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (BadImage(HOSTILE), OutputError(HOSTILE), MissingExtra(HOSTILE, "x")):
        assert harmless(str(error))
    assert visible("a\tb\nc d é 猫 👩‍👩‍👧") == "a\tb\nc d é 猫 👩‍👩‍👧"
    assert harmless(text_table(["name"], [[HOSTILE]]))
    progress.note(HOSTILE)
    progress.say(HOSTILE)
    progress.silent(HOSTILE, 1, 2)
    printed = capsys.readouterr()
    assert harmless(printed.err)
    assert harmless(printed.out)
    assert "\\x1b]0;TITLE" in printed.out


def test_of_a_drawing_only_colours_reach_the_terminal() -> None:
    file = StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=200)
    progress.say_drawn(console, Text(HOSTILE, style="red"))
    drawn = file.getvalue()
    assert "\x1b[31m" in drawn
    assert harmless(drawn.replace("\x1b[31m", "").replace("\x1b[0m", ""))


def test_a_hostile_name_at_the_command_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / HOSTILE.replace("\r", "")).write_text("no picture")
    assert main(["explain", str(tmp_path / HOSTILE.replace("\r", "")), "--text", "a star", "--json"]) == 2
    printed = capsys.readouterr()
    assert harmless(printed.err)
    assert "\\x1b]0;TITLE" in printed.err
