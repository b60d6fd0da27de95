"""What linear probes read off the demo world, by each of the three ways, and what they cost.

    python bench/probe.py                   4,000 pictures, indexed into a temporary folder first (about a minute)
    python bench/probe.py --images 500      a small one
    python bench/probe.py --store FOLDER    a store that is there, or is made there once and kept

Prints accuracy on test images of the full embedding, of the attention of the last 1, 2 and 4 layers, and of the embedding without the
first half of the layers, for several attributes; then one line of JSON.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

LABELS = ("label", "colour", "texture", "background", "count")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--labels", default=",".join(LABELS))
    asked = parser.parse_args()
    folder = asked.store or Path(tempfile.mkdtemp(prefix="bench-probe-")) / "store"
    try:
        if not (folder / "store.json").exists():
            import clip_anatomy as ca

            began = time.perf_counter()
            ca.index(ca.load("demo"), f"world:{asked.images}:val", folder)
            print(f"store made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        print(json.dumps(measure(folder, asked.labels.split(","))))
    finally:
        if asked.store is None:
            shutil.rmtree(folder.parent, ignore_errors=True)


def measure(folder: Path, labels: list[str]) -> dict:
    from clip_anatomy.store.store import Store
    from clip_anatomy.studies.linear_probe import METHODS
    from clip_anatomy.studies.probe import probe

    store = Store.open(folder)
    half = f"layer=0-{store.manifest.depth // 2 - 1}"
    found = []
    for label in labels:
        for method in METHODS:
            began = time.process_time()
            table = probe(store, label=label, method=method, last=[1, 2, 4], without=[half])
            spent = time.process_time() - began
            if method == METHODS[0]:
                print(f"{label}: {len(table.classes)} classes, {table.train:,} training and {table.test:,} test images")
                print(" " * 10 + "".join(f"{row.name:>38}" for row in table.rows) + "    CPU seconds")
            print(f"{method:<10}" + "".join(f"{100 * row.accuracy:38.1f}" for row in table.rows) + f"{spent:15.1f}")
            accuracy = {row.name: round(row.accuracy, 4) for row in table.rows}
            found.append({"label": label, "method": method, "accuracy": accuracy, "cpu_seconds": round(spent, 2)})
    return {"bench": "probe", "images": len(store), "runs": found}


if __name__ == "__main__":
    main()
