"""What maps cost beside plain `encode_image`, and where they are right on the demo world.

    python bench/maps.py                                            # speed: B/16 and L/14, batch 32 (about half an hour, two quiet cores)
    python bench/maps.py --models ViT-B-16 --batch 8 --repeat 3     # a quick look
    python bench/maps.py --methods decomposition surgery            # some methods only
    python bench/maps.py --world                                    # the demo world: 500 unseen pictures, every method in one table
    python bench/maps.py --world --layers                           # the same for the decomposition of each layer alone

Speed: the host library's own `encode_image` and `heatmap` on the same weights and preprocessed images, timed in turn; ratios are
medians over pairs timed one after the other, so that a drifting machine cancels. 20 texts, and 100 texts against 20.
Prints a table and one line of JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

import clip_anatomy as ca
from clip_anatomy.maps.heatmap import heatmap

GRADIENTS = {"gradcam": 6.0, "legrad": 6.0, "chefer": 6.0}  # each text is a product of its own: 20 texts only
BARS = {
    **dict.fromkeys(("surgery", "sclip", "clearclip", "naclip", "gem"), 1.35),
    **dict.fromkeys(("decomposition", "grad_eclip", "scclip", "resclip", "pearl"), 1.10),
    "rfclip": 1.25,
    **GRADIENTS,
}
TEXTS = (20, 100)
FIGURES = {
    "mIoU": "mean_iou",
    "object IoU": "foreground_iou",
    "pixel accuracy": "pixel_accuracy",
    "AP": "average_precision",
    "pointing": "pointing",
    "seconds": "seconds",
}


def clock(action: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def speed(name: str, methods: list[str], batch: int, repeat: int, device: str) -> list[dict[str, Any]]:
    import open_clip

    model = open_clip.CLIP(**open_clip.get_model_config(name)).eval().to(device)
    clip = ca.load(model)
    size = clip.preprocess.size[0]
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    texts = torch.randn(max(TEXTS), clip.image_tower.embed, generator=torch.Generator().manual_seed(1)).to(device)

    @torch.no_grad()
    def plain() -> Any:
        return model.encode_image(pixels)

    def maps(method: str, count: int) -> Callable[[], Any]:
        return lambda: heatmap(clip, pixels, texts[:count], method=method)

    rows = []
    for method in methods:
        seconds: dict[str, list[float]] = {"plain": [], "few": [], "many": []}
        actions = {"plain": plain, "few": maps(method, TEXTS[0])}
        if method not in GRADIENTS:
            actions["many"] = maps(method, TEXTS[1])
        for i in range(repeat + 1):
            for key, action in actions.items():
                took = clock(action, device)
                if i:  # the first round warms up
                    seconds[key].append(took)
        ratio = statistics.median(a / b for a, b in zip(seconds["few"], seconds["plain"], strict=True))
        pairs = list(zip(seconds["many"], seconds["few"], strict=method not in GRADIENTS))
        more = statistics.median(a / b for a, b in pairs) if pairs else None
        row = {
            "model": name,
            "batch": batch,
            "method": method,
            "plain_s": round(statistics.median(seconds["plain"]), 3),
            "ratio_20": round(ratio, 3),
            "ratio_100_to_20": None if more is None else round(more, 3),
            "bar": BARS.get(method),
        }
        rows.append(row)
        bar = "" if row["bar"] is None else f"(bar {row['bar']:.2f})"
        end = "" if more is None else f"100/20 {more:6.3f}"
        print(
            f"{name:10} {method:14} encode_image {row['plain_s']:7.3f} s   20 texts {ratio:6.3f} × {bar:11}  {end}",
            flush=True,
        )
    return rows


def world(pictures: int, threshold: str, *, layers: bool) -> list[dict[str, Any]]:
    from clip_anatomy.evaluation.known_objects import world_objects
    from clip_anatomy.evaluation.map_table import VARIANTS, map_table

    clip = ca.load("demo")
    names = None
    if layers:
        alone = {f"layer {i}": ("decomposition", {"layers": [i]}) for i in range(clip.image_tower.layers)}
        VARIANTS.update(alone)
        names = list(alone)
    rows = [asdict(row) for row in map_table(clip, world_objects(clip, pictures), names, threshold=threshold).rows]
    print(f"{'method':20}" + "".join(f"{title:>16}" for title in FIGURES))
    for row in rows:
        print(f"{row['method']:20}" + "".join(f"{row[key]:16.3f}" for key in FIGURES.values()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--methods", nargs="+", default=list(BARS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--world", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--threshold", default="mean")
    args = parser.parse_args()
    if args.world:
        rows = world(args.pictures, args.threshold, layers=args.layers)
    else:
        rows = [r for name in args.models for r in speed(name, args.methods, args.batch, args.repeat, args.device)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
