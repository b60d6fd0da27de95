"""How long until a stranger sees something: from `git clone` to the open report, and to the first explanation of a picture of one's own.

    python bench/first_result.py                       # as the README says it: pip, torch with CUDA's wheels on Linux
    python bench/first_result.py --torch WHEEL         # torch from a file, or a version such as torch==2.13.0 of another index
    python bench/first_result.py --picture holiday.jpg

Prints seconds, peak memory and disk of each step, and a line of JSON. Needs git, a network, and nothing installed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", help="installed first: a file, or what pip takes")
    parser.add_argument("--picture", type=Path, help="a picture of one's own; one of the bundled examples by default")
    given = parser.parse_args()
    took: dict[str, float] = {}

    def step(name: str, *command: str | Path) -> None:
        began = time.monotonic()
        process = subprocess.Popen([str(one) for one in command], cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{name} failed: {' '.join(map(str, command))}")
        took[f"{name}, s"] = round(time.monotonic() - began, 1)
        took[f"{name}, peak MB"] = round(usage.ru_maxrss / 1024)
        print(f"{name}: {took[f'{name}, s']} s, {took[f'{name}, peak MB']} MB", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binaries = folder / "clone" / ".venv" / ("Scripts" if os.name == "nt" else "bin")
        pip = [binaries / "pip", "install", "-q"]
        step("clone", "git", "clone", "-q", ROOT, "clone")
        step("environment", sys.executable, "-m", "venv", folder / "clone" / ".venv")
        if given.torch:
            step("torch", *pip, given.torch)
        step("install", *pip, f"{folder / 'clone'}[figures]")
        step("demo", binaries / "clip-anatomy", "demo", "--out", "report")
        whole = sum(value for key, value in took.items() if key.endswith(", s"))
        picture = given.picture or next((folder / "clone" / "src/clip_anatomy/loading/demo").rglob("*.png"))
        step(
            "explain one picture",
            binaries / "clip-anatomy",
            *["explain", picture.resolve(), "--text", "a bird", "--out", "own"],
        )
        took["from clone to the open report, s"] = round(whole, 1)
        files = [path for path in (folder / "clone" / ".venv").rglob("*") if path.is_file() and not path.is_symlink()]
        took["environment, MB"] = round(sum(path.stat().st_size for path in files) / 1e6)
        took["report, MB"] = round(
            sum(p.stat().st_size for p in (folder / "report").rglob("*") if p.is_file()) / 1e6, 1
        )
    print(json.dumps(took))


if __name__ == "__main__":
    main()
