"""What an approximate index costs and what it finds, on stores with and without structure.

    python bench/approximate.py                       200,000 images, 3 heads of 4, twice: about 6 minutes
    python bench/approximate.py --images 1000000
    python bench/approximate.py --stores FOLDER       makes the generated stores there once, and keeps them

Two stores: images in 2,000 clusters, with a spread around them that falls off from direction to direction as that of heads does; and
vectors without any structure, the worst that can happen to an index of lists. Recall is what `build_index` measures: the 100 nearest of 100
images, the image itself not counted, against the exact scan. Beside it: a whole search, rows and reasons included, both ways.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from generated import EMBED, D, ImageArrays, coordinates, generate

HEADS, CLUSTERS, K, ROUNDS = 4, 2000, 100, 20
HEADS_ASKED = [(0, 0), (0, 1), (0, 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--stores", type=Path, default=None, help="folder of the generated stores; kept if given")
    asked = parser.parse_args()
    folder = asked.stores or Path(tempfile.mkdtemp(prefix="bench-approximate-"))
    found = {"bench": "approximate", "images": asked.images}
    try:
        for kind, arrays in (("clusters", clustered()), ("random", random_arrays())):
            store = folder / f"{kind}-{asked.images}"
            if not (store / "store.json").exists():
                generate(store, asked.images, 1, HEADS, arrays)
            found[kind] = measure(store)
    finally:
        if asked.stores is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))


def clustered() -> ImageArrays:
    random = np.random.default_rng(0)
    centres = 0.02 * random.standard_normal((1, HEADS, CLUSTERS, D), dtype=np.float32)
    spread = 0.04 * (np.arange(D, dtype=np.float32) + 1) ** -0.5

    def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
        around = random.standard_normal((1, HEADS, count, D), dtype=np.float32) * spread
        return (centres[:, :, random.integers(0, CLUSTERS, count)] + around + 0.01).astype(np.float16), unit(count)

    return arrays


def random_arrays() -> ImageArrays:
    random = np.random.default_rng(0)
    return lambda count: (coordinates(random, 1, HEADS, count, D), unit(count))


def unit(count: int) -> np.ndarray:
    return np.full((count, EMBED), EMBED**-0.5, np.float16)


def measure(folder: Path) -> dict:
    from clip_anatomy.retrieval.approximate import build_index
    from clip_anatomy.retrieval.search import search
    from clip_anatomy.retrieval.subspace import space_of
    from clip_anatomy.store.store import Store

    store = Store.open(folder)
    shutil.rmtree(folder / "approximate", ignore_errors=True)
    record = build_index(store, space_of(store, "heads", HEADS_ASKED), k=K).record
    seconds = {}
    for approximate in (False, True):
        times = []
        for at in range(ROUNDS):
            began = time.perf_counter()
            search(store, str(len(store) // 2 + at), HEADS_ASKED, k=K, approximate=approximate)
            times.append(time.perf_counter() - began)
        seconds["approximate" if approximate else "exact"] = statistics.median(times)
    size = sum(path.stat().st_size for path in (folder / "approximate").rglob("*") if path.is_file())
    print(f"{folder.name}: built in {record.seconds:.0f} s, {size / 1e6:.0f} MB; {record.summary}", file=sys.stderr)
    print(
        f"  a whole search: exact {1e3 * seconds['exact']:.0f} ms, approximate {1e3 * seconds['approximate']:.0f} ms",
        file=sys.stderr,
    )
    return {**asdict(record), "bytes": size, "search_seconds": seconds}


if __name__ == "__main__":
    main()
