"""Damage an example of everything that is read: how many inputs were tried of each reader, and what came out that is no error of the project.

    python bench/fuzz.py --seconds 90 --coverage 45 [--only film,tar]

Each reader is searched twice in a process of its own, with hypothesis and, where atheris is installed, by coverage; a process that ends by a
signal counts as a crash. Seconds are those of the processor, so that a busy machine counts as it should.
The figures are kept in `--file`: a later run tries other inputs and adds what it tried, so that ten minutes a reader can be searched in pieces;
a reader in which something came out begins again. Then the table is printed as docs/reliability.md has it.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import test_fuzz  # pyright: ignore[reportMissingImports]
from readers import READERS  # pyright: ignore[reportMissingImports]


def searched(name: str, options: tuple[str, ...], limit: float) -> dict[str, object]:
    """Search one reader in a process that is forked from this one, where everything is imported; return what it tried and said at its end."""
    said, began = Path(tempfile.mkdtemp()) / "said", time.monotonic()
    child = os.fork()
    if not child:
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 1
        try:
            test_fuzz.main(name, *options)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() - began > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.2)
    text = said.read_text(errors="replace")
    counts = re.findall(r"^(\d+) inputs|Done (\d+) runs|^#(\d+)\t", text, re.M)
    inputs = max((int(number) for one in counts for number in one if number), default=0)
    return {
        "inputs": inputs,
        "seconds": round(ended[2].ru_utime + ended[2].ru_stime),
        "crash": text[-2000:] if ended[1] else "",
    }


def table(found: dict[str, dict[str, dict[str, object]]]) -> str:
    """Draw the table: three readers a row."""
    cells = []
    for name, one in found.items():
        inputs = " + ".join(
            f"{each['inputs']:,}{' by coverage' * (kind == 'coverage')}{' ✗' * bool(each['crash'])}"
            for kind, each in one.items()
        )
        cells.append((name, f"{sum(float(str(each['seconds'])) for each in one.values()) / 60:.1f}", inputs))
    head = "| reader | minutes | inputs " * 3 + "|\n" + "| --- | --- | --- " * 3 + "|\n"
    rows = [cells[at : at + 3] for at in range(0, len(cells), 3)]
    return head + "\n".join(
        "".join(f"| {a} | {b} | {c} " for a, b, c in [*row, *[("", "", "")] * (3 - len(row))]) + "|" for row in rows
    )


def main() -> None:
    """Search, and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--coverage", type=float, default=0)
    options.add_argument("--only", default="")
    options.add_argument("--file", type=Path, default=Path("fuzz.json"))
    given = options.parse_args()
    found = json.loads(given.file.read_text()) if given.file.is_file() else {}
    for name in given.only.split(",") if given.only else READERS:
        before = found.get(name, {}).get("hypothesis", {})
        if before.get("crash", ""):
            before = {}
        tried, spent = before.get("inputs", 0), before.get("seconds", 0)
        now = found[name] = {
            "hypothesis": searched(name, ("--seconds", str(given.seconds), str(tried)), given.seconds * 30 + 3600)
        }
        now["hypothesis"] |= {
            "inputs": now["hypothesis"]["inputs"] + tried,
            "seconds": now["hypothesis"]["seconds"] + spent,
        }
        if given.coverage and importlib.util.find_spec("atheris"):
            length = f"-max_total_time={given.coverage:.0f}"
            now["coverage"] = searched(name, (length, "-rss_limit_mb=8000"), given.coverage * 30 + 3600)
        given.file.write_text(json.dumps(found, indent=1))
        print(
            name,
            {kind: {k: v if k != "crash" else bool(v) for k, v in one.items()} for kind, one in now.items()},
            flush=True,
        )
    print(table({name: found[name] for name in READERS if name in found}))
    print(json.dumps({"readers": len(found), "seconds": given.seconds, "coverage": given.coverage}))


if __name__ == "__main__":
    main()
