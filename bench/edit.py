"""What an edited encoder costs beside the host's own `encode_image`: same weights, same images, timed in turn.

    python bench/edit.py                                       # B/32, B/16: 12 heads, one MLP, class-to-class of a layer
    python bench/edit.py --models ViT-B-16 --batches 8 --repeat 5

Prints a table and one line of JSON. Ratios are medians over pairs timed one after the other, so that a drifting machine cancels.
`empty` is an edit without parts through the same code as the others (not the host's, which `EditedClip` would hand it to).
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

import clip_anatomy as ca
from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.edited_clip import EditedClip

PARTS = {"empty": "none", "heads": "last=1", "heads, mlp, class-to-class": "last=1+mlp=3+class-to-class=5"}


def measure(name: str, batch: int, repeat: int) -> dict[str, Any]:
    import open_clip

    model: Any = open_clip.CLIP(**open_clip.get_model_config(name)).eval()
    clip = ca.load(model, parity=False)
    size = clip.image_tower.embedding.grid[0] * clip.patch[0]  # type: ignore[union-attr]
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    edited = {told: EditedClip(clip, Edit.of(clip, spec, by="zero")) for told, spec in PARTS.items()}
    ratios: dict[str, list[float]] = {told: [] for told in PARTS}
    plain: list[float] = []
    with torch.inference_mode():
        for turn in range(repeat + 1):
            for told, one in edited.items():
                start = time.perf_counter()
                model.encode_image(pixels)
                middle = time.perf_counter()
                one.replaced.encode_both(one.image_tower.weights(), pixels)
                end = time.perf_counter()
                if turn:
                    plain.append(middle - start)
                    ratios[told].append((end - middle) / (middle - start))
    found = {told: round(statistics.median(values), 3) for told, values in ratios.items()}
    return {"model": name, "batch": batch, "plain_ms": round(1e3 * statistics.median(plain), 1), "ratio": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        for batch in args.batches:
            row = measure(name, batch, args.repeat)
            rows.append(row)
            ratios = "  ".join(f"{told} {ratio:.3f} ×" for told, ratio in row["ratio"].items())
            print(f"{name:<10} batch {batch:<3} encode_image {row['plain_ms']:>8.1f} ms   {ratios}", flush=True)
    print(json.dumps({"bench": "edit", "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
