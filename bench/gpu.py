"""Everything that a GPU decides, in one run of less than eight minutes: precision, images a second, compiling, decoding, TextSpan, search, ceilings.

    python bench/gpu.py                          # all of it on the GPU; says so where there is none
    python bench/gpu.py --parts speed,search     # some of it
    python bench/gpu.py --device cpu --small     # the very same code on tiny models, for a machine without one

Weights are random, of the real architectures. `precision` holds half-precision splits against float32 of the same weights; `speed` takes images a second
of decompose + moments (bar: 0.95 of plain `encode_image`) and of heads × tokens toward ten texts (bar: 0.90); `compiled` puts torch.compile and CUDA
graphs beside the plain forward; `overlap` says how much of decoding and copying `index` hides behind the model; `textspan` names all heads; `search` scans a
generated store there and on the processor; `ceilings` measures the largest product and copy, so that a roofline can be drawn. A part that begins after seven
minutes is left out, and named. Prints a table for people and one line of JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import search as search_bench
import torch
from against_published import SMALL, TEXT
from generated import generate
from textspan import batches, random_basis, unit_pool
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.evaluation.speed import seconds_of
from clip_anatomy.split.basis import basis_of, coordinates_of
from clip_anatomy.split.moments import Moments

LIMIT = 420.0  # seconds after which no part begins
BARS = {"moments": 0.95, "tokens": 0.90}


@dataclass(frozen=True)
class Setting:
    """Sizes, and where."""

    device: torch.device
    small: bool
    models: tuple[str, ...]
    batch: int
    rounds: int

    def model(self, name: str, dtype: torch.dtype) -> tuple[Any, ca.Clip]:
        """A model of random weights, made where it will run."""
        import open_clip

        torch.manual_seed(0)
        with self.device if self.device.type == "cuda" else nullcontext():
            made: Any = (
                open_clip.CLIP(**SMALL["ViT"], text_cfg=TEXT)
                if self.small
                else open_clip.CLIP(**open_clip.get_model_config(name))
            )
        made = made.to(self.device, dtype).eval()
        return made, ca.load(made, parity=False)

    def pixels(self, clip: ca.Clip, count: int) -> Tensor:
        return torch.randn(count, 3, *clip.preprocess.size, generator=torch.Generator().manual_seed(0)).to(
            clip.device, clip.vision.dtype
        )

    def best(self, work: Callable[[], object]) -> float:
        """The shortest time of some rounds, after one that warms up."""
        return min([seconds_of(work, self.device) for _ in range(self.rounds + 1)][1:])


def precision(at: Setting) -> dict[str, Any]:
    """Errors of half precision: of the embedding, which the host has too, and of the split beside it."""
    rows = {}
    name = at.models[0]
    _, exact = at.model(name, torch.float32)
    pixels = at.pixels(exact, 16)
    true = ca.decompose(exact, pixels)
    for dtype in (torch.bfloat16, torch.float16):
        _, clip = at.model(name, dtype)
        parts = ca.decompose(clip, pixels.to(dtype))
        assert parts.heads.dtype == torch.float32, "sums are taken in float32"

        def relative(found: Tensor, expected: Tensor) -> float:
            return float((found - expected).norm() / expected.norm())

        rows[str(dtype).removeprefix("torch.")] = {
            "embedding": relative(parts.embedding.float(), true.embedding), "heads": relative(parts.heads, true.heads),
            "sum_of_parts": float(parts.residue.max()), "cosine": float((1 - torch.cosine_similarity(parts.embedding.float(), true.embedding)).max()),
        }  # fmt: skip
    return rows


def speed(at: Setting) -> dict[str, Any]:
    """Images a second, in bfloat16 on a GPU: all ways in turn."""
    rows = {}
    dtype = torch.bfloat16 if at.device.type == "cuda" else torch.float32
    for name in at.models:
        model, clip = at.model(name, dtype)
        pixels, basis = at.pixels(clip, at.batch), basis_of(clip.vision)
        texts = torch.randn(10, clip.vision.embed, device=at.device)

        def moments(clip: ca.Clip = clip, pixels: Tensor = pixels, basis: Any = basis) -> Moments:
            parts = ca.decompose(clip, pixels)
            return Moments.of(coordinates_of(basis, clip.vision, parts.trace), basis=basis)

        def tokens(clip: ca.Clip = clip, pixels: Tensor = pixels, texts: Tensor = texts) -> Tensor:
            return ca.decompose(clip, pixels, texts=texts).tokens(texts)

        with torch.no_grad():
            ways: dict[str, Callable[[], object]] = {
                "plain": lambda m=model, p=pixels: m.encode_image(p),
                "moments": moments,
                "tokens": tokens,
            }
            took: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(at.rounds + 1):
                for way, work in ways.items():
                    seconds = seconds_of(work, at.device)
                    if turn:
                        took[way].append(seconds)
        least = {way: min(values) for way, values in took.items()}
        flops = forward_flops(clip) * len(pixels)
        rows[name] = {f"{way}_images_a_second": round(len(pixels) / value, 1) for way, value in least.items()}
        rows[name] |= {f"{way}_of_plain": round(least["plain"] / least[way], 3) for way in BARS}
        rows[name] |= {
            "flops_a_picture": forward_flops(clip),
            "flops_a_second": flops / least["plain"],
            "dtype": str(dtype).removeprefix("torch."),
        }
        del model, clip
    return rows


def forward_flops(clip: ca.Clip) -> int:
    """Multiplications and additions of one picture's forward: 24 n d² + 4 n² d a block, of n tokens of width d."""
    tower = clip.image_tower
    n, d = tower.token_count(torch.empty(1, 3, *clip.preprocess.size)), tower.width
    hidden = tower.blocks[0].up.weight.shape[0]
    return tower.layers * (2 * n * (4 * d * d + 2 * d * hidden) + 4 * n * n * d)


def compiled(at: Setting) -> dict[str, Any]:
    """The same forward plain, through torch.compile, and as a CUDA graph; ours as a CUDA graph."""
    model, clip = at.model(at.models[0], torch.bfloat16 if at.device.type == "cuda" else torch.float32)
    pixels = at.pixels(clip, at.batch)
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["plain"] = at.best(lambda: model.encode_image(pixels))
        found["ours"] = at.best(lambda: clip.vision.encode(pixels))
        try:
            faster = torch.compile(model.visual)
            found["compiled"] = at.best(lambda: faster(pixels))
            found["compiled_error"] = float((faster(pixels) - model.visual(pixels)).abs().max())
        except Exception as error:  # no compiler on this machine, or none for this Python
            found["compiled"] = f"not here: {type(error).__name__}"
        if at.device.type != "cuda":
            return found | {"graph": "not here: no CUDA"}
        for name, work in (
            ("graph", lambda: model.encode_image(pixels)),
            ("ours_graph", lambda: clip.vision.encode(pixels)),
        ):
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            found[name] = at.best(graph.replay)
    return found


def overlap(at: Setting) -> dict[str, Any]:
    """Seconds of decoding, of the model, and of `index`, which does both at once."""
    from PIL import Image

    count = 8 if at.small else 512
    _, clip = at.model(at.models[0], torch.float32)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        folder.mkdir()
        for number in range(count):
            noise = torch.randint(
                0, 255, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number)
            )
            Image.fromarray(noise.numpy()).resize((640, 480)).save(folder / f"{number:04}.jpg")
        files = sorted(folder.iterdir())
        began = time.perf_counter()
        pixels = clip.pixels(files)
        decoding = time.perf_counter() - began
        model = seconds_of(lambda: [ca.decompose(clip, some) for some in pixels.split(64)], at.device)
        both = seconds_of(lambda: ca.index(clip, folder, Path(place) / "store"), at.device)
        host = pixels.cpu()
        copy = seconds_of(lambda: host.to(at.device), at.device)
        pinned = (
            seconds_of(lambda: host.pin_memory().to(at.device, non_blocking=True), at.device)
            if at.device.type == "cuda"
            else None
        )
    return {
        "pictures": count,
        "decoding_on_one_thread": decoding,
        "model": model,
        "index": both,
        "copy": copy,
        "copy_pinned": pinned,
    }


def textspan(at: Setting) -> dict[str, Any]:
    """All heads of an L/14 from moments: in float64 on the processor, wherever the model is."""
    layers, width, d, embed, texts, picks = (2, 2, 8, 24, 60, 5) if at.small else (24, 16, 64, 768, 28_767, 60)
    basis = random_basis(layers, width, d, embed)
    moments = Moments.merged(Moments.of(x, basis=basis) for x in batches(layers, width, d, 500))
    pool = unit_pool(texts, embed, 2).to(at.device)
    spent = seconds_of(lambda: ca.textspan(moments, pool, picks), at.device)
    return {
        "heads": layers * width,
        "texts": texts,
        "picks": picks,
        "seconds": spent,
        "threads": torch.get_num_threads(),
    }


def search(at: Setting) -> dict[str, Any]:
    """The nearest of a generated store, by three heads: seconds there and on the processor, same results."""

    images, layers, heads = (600, 3, 2) if at.small else (300_000, 3, 4)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        generate(folder, images, layers, heads, search_bench.random_arrays(layers, heads))
        store = ca.Store.open(folder)
        pairs = search_bench.asked_heads(layers, heads)
        found: dict[str, Any] = {"images": images}
        hits = {}
        for device in ("cpu", str(at.device)):
            took = []
            for _ in range(at.rounds + 1):
                began = time.perf_counter()
                hits[device] = [
                    hit.row.index for hit in ca.search(store, str(images // 2), pairs, k=100, device=device).hits
                ]
                took.append(time.perf_counter() - began)
            found[device] = statistics.median(took[1:])
        found["same"] = hits["cpu"] == hits[str(at.device)]
    return found


def ceilings(at: Setting) -> dict[str, Any]:
    """The largest products and the fastest copy that torch gives here."""
    side, count = (256, 1_000_000) if at.small else (8192, 1_000_000_000)
    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a = torch.randn(side, side, device=at.device).to(dtype)
        found[f"{str(dtype).removeprefix('torch.')}_flops"] = 2 * side**3 / at.best(lambda a=a: a @ a)
    source = torch.zeros(count, dtype=torch.uint8, device=at.device)
    target = torch.empty_like(source)
    found["copied_bytes_a_second"] = 2 * count / at.best(lambda: target.copy_(source))
    return found


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "ceilings": ceilings, "precision": precision, "speed": speed, "textspan": textspan, "search": search, "overlap": overlap, "compiled": compiled,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--batch", type=int)
    asked = parser.parse_args()
    if asked.device == "auto" and not torch.cuda.is_available():
        print(
            "no GPU here: nothing was measured. To run the same code on tiny models: python bench/gpu.py --device cpu --small"
        )
        print(json.dumps({"bench": "gpu", "device": None}))
        return 0
    device = torch.device("cuda" if asked.device == "auto" else asked.device)
    models = ("small",) if asked.small else ("ViT-B-16", "ViT-L-14", "ViT-H-14")
    at = Setting(device, asked.small, models, asked.batch or (4 if asked.small else 256), 1 if asked.small else 3)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"
    print(f"{name}, torch {torch.__version__}, batch {at.batch}, {'tiny models' if at.small else ', '.join(models)}")
    began, found, left = time.perf_counter(), dict[str, Any](), list[str]()
    for part in asked.parts.split(","):
        if time.perf_counter() - began > LIMIT:
            left.append(part)
            continue
        start = time.perf_counter()
        found[part] = PARTS[part](at)
        print(f"\n{part} ({time.perf_counter() - start:.1f} s)")
        for key, value in found[part].items():
            print(f"  {key:<32}{value if not isinstance(value, float) else f'{value:.4g}'}")
    if "ceilings" in found and "speed" in found:
        print(
            "\nroofline: of the largest product in the same precision, and pictures for which the weights are read once"
        )
        for model, row in found["speed"].items():
            share = row["flops_a_second"] / found["ceilings"][f"{row['dtype']}_flops"]
            print(f"  {model:<32}{share:.0%} of the ceiling, {row['flops_a_picture'] / 1e9:.1f} GFLOP a picture")
    for part in left:
        print(f"left out, seven minutes were over: {part}")
    print(
        json.dumps(
            {"bench": "gpu", "device": name, "torch": torch.__version__, "batch": at.batch, "left_out": left, **found}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
