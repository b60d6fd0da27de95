"""SIGINT is 130 and SIGTERM is 143, whatever became of the exception that they raise."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stores import clip, photos

from clip_anatomy.errors import Ended
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

__all__ = ["clip", "photos"]  # fixtures

FATES = {
    "comes out": "ask()",
    "becomes another one, as while a library is imported": """
try:
    ask()
except BaseException as error:
    raise ImportError("numpy.core.multiarray failed to import") from error""",
    "is dropped in a destructor": """
class Lost:
    def __del__(self):
        ask()
lost = Lost(); del lost
import time
time.sleep(20)""",
    "is swallowed": """
try:
    ask()
except:
    pass""",
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(("number", "code", "says"), [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "ended")])
def test_the_exit_code_is_that_of_the_signal(fate: str, number: int, code: int, says: str) -> None:
    body = "\n    ".join(FATES[fate].strip().splitlines())
    program = f"""
import os, sys
from clip_anatomy.cli import main
def ask():
    os.kill(os.getpid(), {int(number)})
def run(words):
    {body}
    return 0
main._run = run
sys.exit(main.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert "defect" not in done.stderr
    assert fate == "is swallowed" or done.stderr.splitlines()[-1] == f"clip-anatomy: {says}; nothing half-written"


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended)])
def test_an_index_run_keeps_what_is_finished_and_says_which_signal_it_was(
    number: int, kind: type[BaseException], clip, photos: Path, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int | None) -> None:
        os.kill(os.getpid(), number)

    with pytest.raises(kind, match=r"all of them kept in .*type the same command again"):
        index(clip, photos, tmp_path / "store", batch=4, commit_seconds=0.0, progress=stop)
    assert 0 < len(Store.open(tmp_path / "store")) < 20
    assert index(clip, photos, tmp_path / "store").images == 20
