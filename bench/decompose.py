"""What the exact split costs beside plain `encode_image`: same weights, same images, one run, timed in turn.

    python bench/decompose.py                                   # B/16 and L/14, batch 1, 8, 32 (about ten quiet minutes on two cores)
    python bench/decompose.py --models ViT-B-16 --batches 1     # a quick look
    python bench/decompose.py --device cuda --dtype bfloat16 --models ViT-L-14 --batches 256

Prints a table and one line of JSON. `heads` is `decompose` (heads and MLPs of all layers); `tokens` adds heads × tokens toward
ten texts from the same forward. Ratios are medians over pairs timed one after the other, so that a drifting machine cancels.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import clip_anatomy as ca


def clock(action: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def create(name: str, device: str, dtype: torch.dtype) -> Any:
    import open_clip

    return open_clip.CLIP(**open_clip.get_model_config(name)).eval().to(device, dtype)


def measure(name: str, batch: int, device: str, dtype: torch.dtype, repeat: int) -> dict[str, Any]:
    model = create(name, device, dtype)
    clip = ca.load(model)
    size = clip.preprocess.size[0]
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    texts = torch.randn(10, clip.image_tower.embed, generator=torch.Generator().manual_seed(1)).to(device)

    @torch.no_grad()
    def plain() -> Any:
        return model.encode_image(pixels)

    def heads() -> Any:
        return ca.decompose(clip, pixels)

    def tokens() -> Any:
        return ca.decompose(clip, pixels, texts=texts).tokens(texts)

    seconds: dict[str, list[float]] = {"plain": [], "heads": [], "tokens": []}
    for i in range(repeat + 1):
        for key, action in (("plain", plain), ("heads", heads), ("tokens", tokens)):
            took = clock(action, device)
            if i:  # the first round warms up
                seconds[key].append(took)
    residue = float(heads().residue.max())

    def ratio(key: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[key], seconds["plain"], strict=True)), 3)

    plain_seconds = statistics.median(seconds["plain"])
    return {
        "model": name, "batch": batch, "plain_s": round(plain_seconds, 4), "images_per_s": round(batch / plain_seconds, 1),
        "heads_ratio": ratio("heads"), "tokens_ratio": ratio("tokens"), "limit": round(1 - 1 / clip.image_tower.layers, 3),
        "residue": residue,
    }  # fmt: skip


def child(name: str, size: int, what: str) -> None:
    """Run once in this process and print its peak memory in MB beyond what opening the model took."""
    model = create(name, "cpu", torch.float32)
    clip = ca.load(model, parity=False)
    pixels, texts = torch.randn(1, 3, size, size), torch.randn(10, clip.image_tower.embed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "forward":
        clip.encode_image(pixels)  # our forward alone: open_clip itself takes its own resolution only
    else:
        ca.decompose(clip, pixels, texts=texts)
    print(round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def memory(name: str) -> list[dict[str, Any]]:
    import open_clip

    vision = open_clip.get_model_config(name)["vision_cfg"]
    rows = []
    for size in (224, 448, 896):
        n = (size // vision["patch_size"]) ** 2 + 1
        peak = {}
        for what in ("forward", "split"):
            command = [sys.executable, __file__, "--child", name, str(size), what]
            peak[what] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        official = (
            n * n * vision["width"] * 4 / 2**20
        )  # [token, token, head, d] float32 per image and layer (field's own code)
        rows.append(
            {"model": name, "tokens": n, **{f"{k}_mb": v for k, v in peak.items()}, "official_mb": round(official)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeat", type=int, default=0, help="timed rounds; 0: more for quick cases")
    parser.add_argument("--memory", action="store_true", help="also the peak memory, each case in a process of its own")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]), args.child[2])
        return
    dtype = getattr(torch, args.dtype)
    print(f"torch {torch.__version__}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads\n")
    print(f"{'model':<10}{'batch':>6}{'plain':>10}{'images/s':>10}{'heads':>8}{'tokens':>8}{'limit':>8}{'residue':>10}")
    rows = []
    for name in args.models:
        for batch in args.batches:
            repeat = args.repeat or {1: 11, 8: 5}.get(batch, 2)
            row = measure(name, batch, args.device, dtype, repeat)
            rows.append(row)
            print(
                f"{name:<10}{batch:>6}{row['plain_s']:>9.3f}s{row['images_per_s']:>10}{row['heads_ratio']:>8}"
                f"{row['tokens_ratio']:>8}{row['limit']:>8}{row['residue']:>10.1e}",
                flush=True,
            )
    mem = memory(args.models[0]) if args.memory else []
    if mem:
        print(
            "\npeak memory beyond what opening the model had already taken (0: less than that), one image, ten texts; last column: [token, token, head, d] of one layer"
        )
        print(f"{'model':<10}{'tokens':>8}{'forward':>10}{'split':>10}{'official':>10}")
        for row in mem:
            print(
                f"{row['model']:<10}{row['tokens']:>8}{row['forward_mb']:>7} MB{row['split_mb']:>7} MB{row['official_mb']:>7} MB"
            )
    print(json.dumps({"bench": "decompose", "dtype": args.dtype, "device": args.device, "rows": rows, "memory": mem}))


if __name__ == "__main__":
    main()
