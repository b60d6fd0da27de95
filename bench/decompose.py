"""What the exact split costs beside plain `encode_image`: same weights, same images, one run, timed in turn.

    python bench/decompose.py                                   # B/16 and L/14, batch 1, 8, 32 (about ten quiet minutes on two cores)
    python bench/decompose.py --models ViT-B-16 --batches 1     # a quick look
    python bench/decompose.py --models                          # one model of each family, batch 8, each with its bars
    python bench/decompose.py --models --memory                 # and their peak memory at their own size and at twice its sides
    python bench/decompose.py --models --memory --batches       # that memory alone
    python bench/decompose.py --device cuda --dtype bfloat16 --models ViT-L-14 --batches 256

Prints a table and one line of JSON. `heads` is `decompose` (heads and MLPs of all layers); `tokens` adds heads × tokens toward
ten texts from the same forward. Each ratio is the shortest time over the host's shortest, of rounds in which all take turns: other work
on the machine only ever adds. Bars: 1.00 and 1.08 where the readout is one row, 1.10 and 1.25 where every token feeds it.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import clip_anatomy as ca
from clip_anatomy.loading.open_clip_models import open_clip_model

FAMILIES = (
    "ViT-B-16", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "EVA02-B-16", "PE-Core-B-16", "coca_ViT-B-32", "ViTamin-S", "convnext_base",
    "MobileCLIP-B", "MobileCLIP-S1", "RN50", "timm:deit_base_patch16_224",
)  # fmt: skip


def clock(action: Callable[[], Any], device: str, busy: bool = False) -> float:
    now = time.process_time if busy else time.perf_counter
    start = now()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return now() - start


def create(name: str, device: str, dtype: torch.dtype) -> Any:
    if name.startswith("timm:"):
        import timm

        model: Any = timm.create_model(name.removeprefix("timm:"), num_classes=0)
    else:
        import open_clip

        model = open_clip_model(open_clip.get_model_config(name))
    return model.eval().to(device, dtype)


def own_size(clip: ca.Clip, times: int = 1) -> tuple[int, int]:
    """Pixels (row, col) of the model's own grid, or of so many times its sides."""
    rows, cols = (n * side * times for n, side in zip(clip.vision.grid, clip.patch, strict=True))
    return rows, cols


def measure(name: str, batch: int, device: str, dtype: torch.dtype, *, repeat: int, busy: bool) -> dict[str, Any]:
    model = create(name, device, dtype)
    clip = ca.load(model, parity=False)
    pixels = torch.randn(batch, 3, *own_size(clip), generator=torch.Generator().manual_seed(0)).to(device, dtype)
    texts = torch.randn(10, clip.vision.embed, generator=torch.Generator().manual_seed(1)).to(device)
    encode = getattr(model, "encode_image", model)

    @torch.no_grad()
    def plain() -> Any:
        return encode(pixels)

    def heads() -> Any:
        return ca.decompose(clip, pixels)

    def tokens() -> Any:
        return ca.decompose(clip, pixels, texts=texts).tokens(texts)

    seconds: dict[str, list[float]] = {"plain": [], "heads": [], "tokens": []}
    for i in range(repeat + 1):
        for key, action in (("plain", plain), ("heads", heads), ("tokens", tokens)):
            took = clock(action, device, busy)
            if i:  # the first round warms up
                seconds[key].append(took)
    best = {key: min(took) for key, took in seconds.items()}
    every = clip.vision.architecture == "places" or not clip.vision.has_class_token or clip.vision.rows > 1
    bars = (1.10, 1.25) if every and clip.vision.architecture != "resnet" else (1.00, 1.08)
    return {
        "model": name, "batch": batch, "plain_s": round(best["plain"], 4), "images_per_s": round(batch / best["plain"], 1),
        "heads_ratio": round(best["heads"] / best["plain"], 3), "tokens_ratio": round(best["tokens"] / best["plain"], 3),
        "heads_bar": bars[0], "tokens_bar": bars[1], "residue": float(heads().residue.max()),
    }  # fmt: skip


def peak(reset: bool = False) -> int:
    """Read the most memory that this process ever held, in kB; reset: since now (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def child(name: str) -> None:
    """Run once at its own size and at twice its sides; print tokens, width and the peaks in MB beyond what the opened model holds."""
    model = create(name, "cpu", torch.float32)
    clip = ca.load(model, parity=False)
    texts = torch.randn(10, clip.vision.embed)
    actions = (
        clip.encode_image,
        lambda pixels: ca.decompose(clip, pixels, texts=texts),
    )  # most hosts take their own size only
    for times in (1, 2):
        pixels = torch.randn(1, 3, *own_size(clip, times))
        most: list[int] = []
        for action in actions:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before = peak(reset=True)
            action(pixels)
            most.append(round((peak() - before) / 1024))
        print(clip.vision.token_count(pixels), clip.vision.width, *most)


def memory(name: str) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--child", name]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-2:]
    rows: list[dict[str, Any]] = []
    for n, width, forward, split in (map(int, line.split()) for line in said):
        official = n * n * width * 4 / 2**20  # [token, token, head, d] float32 per image and layer (field's own code)
        rows.append(
            {"model": name, "tokens": n, "forward_mb": forward, "split_mb": split, "official_mb": round(official)}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["ViT-B-16", "ViT-L-14"])
    parser.add_argument("--batches", nargs="*", type=int, help="none: no times, with --memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeat", type=int, default=0, help="timed rounds; 0: more for quick cases")
    parser.add_argument("--busy", action="store_true", help="processor time: other work on the machine counts less")
    parser.add_argument("--memory", action="store_true", help="also the peak memory, each case in a process of its own")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    dtype = getattr(torch, args.dtype)
    models, batches = (
        args.models or FAMILIES,
        args.batches if args.batches is not None else [1, 8, 32] if args.models else [8],
    )
    print(f"torch {torch.__version__}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads\n")
    print(
        f"{'model':<28}{'batch':>6}{'plain':>10}{'images/s':>10}{'heads':>8}{'bar':>6}{'tokens':>8}{'bar':>6}{'residue':>10}"
    )
    rows = []
    for name in models:
        for batch in batches:
            repeat = args.repeat or {1: 11, 8: 5}.get(batch, 2)
            row = measure(name, batch, args.device, dtype, repeat=repeat, busy=args.busy)
            rows.append(row)
            print(
                f"{name:<28}{batch:>6}{row['plain_s']:>9.3f}s{row['images_per_s']:>10}{row['heads_ratio']:>8}{row['heads_bar']:>6}"
                f"{row['tokens_ratio']:>8}{row['tokens_bar']:>6}{row['residue']:>10.1e}",
                flush=True,
            )
    mem: list[dict[str, Any]] = []
    if args.memory:
        print(
            "\npeak memory beyond what the opened model holds, one image, ten texts; last column: [token, token, head, d] of one layer"
        )
        print(f"{'model':<28}{'tokens':>8}{'forward':>10}{'split':>10}{'official':>10}")
        for name in models if not (args.models and batches) else models[:1]:
            for row in memory(name):
                mem.append(row)
                print(
                    f"{row['model']:<28}{row['tokens']:>8}{row['forward_mb']:>7} MB{row['split_mb']:>7} MB{row['official_mb']:>7} MB",
                    flush=True,
                )
    print(json.dumps({"bench": "decompose", "dtype": args.dtype, "device": args.device, "rows": rows, "memory": mem}))


if __name__ == "__main__":
    main()
