"""What studies of a store cost: every head alone, all layers in turn, over a generated store as large as ImageNet's validation set.

    python bench/ablate.py                                       50,000 images × 144 heads × 1,000 classes: 1 GB in a temporary folder
    python bench/ablate.py --images 5000 --layers 3 --heads 4    a small one
    python bench/ablate.py --store FOLDER                        makes the store there once, and keeps it

A process opens the store and runs the study of single heads (each of the 144 mean-ablated alone: accuracy, per class, per group, lost
and won), then that of cumulative layers. Reading the store and its means is counted, making it is not; no image is read. A few images
are checked against a direct float64 computation. Bar: the full single-head sweep in 5 minutes on two cores.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from generated import EMBED, D, ImageArrays, coordinates, generate

BAR = 300.0
CHECKED = 20


def main() -> None:
    asked = arguments()
    folder = asked.store or Path(tempfile.mkdtemp(prefix="bench-ablate-")) / "store"
    try:
        if not (folder / "store.json").exists():
            began = time.perf_counter()
            generate(folder, asked.images, asked.layers, asked.heads, random_arrays(asked.layers, asked.heads))
            print(f"store made in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        found = measure(folder, asked)
    finally:
        if asked.store is None:
            shutil.rmtree(folder.parent, ignore_errors=True)
    print(json.dumps(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--threads", type=int, default=None, help="of the matrix products; as many as there are cores by default"
    )
    parser.add_argument("--store", type=Path, default=None, help="folder of the generated store; kept if given")
    return parser.parse_args()


def measure(folder: Path, asked: argparse.Namespace) -> dict:
    from clip_anatomy.edits.selection import Selection
    from clip_anatomy.store.store import Store
    from clip_anatomy.studies.ablated_predictions import predictions
    from clip_anatomy.studies.ablation_study import study
    from clip_anatomy.studies.baseline import baseline_of
    from clip_anatomy.studies.zero_shot_task import ZeroShotTask

    if asked.threads:
        torch.set_num_threads(asked.threads)
    store = Store.open(folder)
    random = torch.Generator().manual_seed(1)
    texts = torch.nn.functional.normalize(torch.randn(asked.classes, EMBED, generator=random), dim=-1)
    labels = torch.randint(asked.classes, (len(store),), generator=random)
    groups = torch.randint(4, (len(store),), generator=random)
    names = tuple(f"class {at}" for at in range(asked.classes))
    task = ZeroShotTask("label", names, texts, np.arange(len(store)), labels, "group", ("a", "b", "c", "d"), groups)
    seconds = {}
    for name in ("heads", "layers"):
        began, cpu = time.perf_counter(), time.process_time()
        found = study(store, name, task=task)
        seconds[name] = time.perf_counter() - began
        print(
            f"{name:<8}{len(found.effects):>5} sets × {found.images:,} images × {asked.classes:,} classes: {seconds[name]:8.1f} s "
            f"(processor {time.process_time() - cpu:.1f} s)",
            flush=True,
        )
    pairs = [(layer, head) for layer in store.manifest.layers for head in range(store.manifest.heads)]
    sets = [Selection((pair,)) for pair in pairs[:: max(1, len(pairs) // 9)]]
    rows = np.linspace(0, len(store) - 1, CHECKED).astype(np.int64)
    union = Selection(tuple(pair for one in sets for pair in one.heads))
    ours = predictions(store, texts, sets, baseline_of(store, union), rows=rows)
    same = bool((ours == directly(store, texts, sets, rows)).all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"the same classes as computed directly in float64, {len(sets)} heads × {len(rows)} images: {same}")
    print(
        f"peak memory {peak / 1e6:,.0f} MB (mapped pages of the store included); bar: single heads in {BAR:.0f} s on two cores"
    )
    return {
        "bench": "ablate",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "images": len(store),
        "heads": len(pairs),
        "classes": asked.classes,
        "seconds": seconds,
        "same": same,
        "peak_bytes": peak,
        "bar_met": seconds["heads"] <= BAR,
    }


def directly(store, texts: torch.Tensor, sets: list, rows: np.ndarray) -> torch.Tensor:
    """Without any trick: the contribution in the joint space, taken off the embedding."""
    mean, found = store.moments().mean, []
    for one in sets:
        x = torch.nn.functional.normalize(store.embeddings(rows, unit=True).double(), dim=-1)
        for layer, head in one.heads:
            at = store.layer_at(layer), head
            x = x + (mean[at] - store.heads(layer, head, rows).double()) @ store.basis.rows[at]
        found.append((x @ texts.double().T).argmax(1))
    return torch.stack(found)


def random_arrays(layers: int, heads: int) -> ImageArrays:
    """Everything differs from image to image: all of it is read."""
    random = np.random.default_rng(0)

    def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
        unit = random.standard_normal((count, EMBED), dtype=np.float32)
        unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float16)
        return coordinates(random, layers, heads, count, D), unit

    return arrays


if __name__ == "__main__":
    main()
