"""What indexing costs beside decoding and plain `encode_image`, what it takes on disk, and what float16 loses.

    python bench/index.py                        B/16, 512 images from ../shared/data/coco (repeated), about 3 minutes
    python bench/index.py --model ViT-B-32 --images 64 --rounds 1

Baseline: decode everything with as many threads as there are cores, then `encode_image` of the host library over the same
batches, and nothing else. The run: `index` into a fresh store, from opening it to its last fsync, moments included. Random
weights: they cost what trained ones cost. Bars: ratio ≤ 1.10, ≤ 20 KB an image, cosine ≥ 0.9999.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import clip_anatomy as ca
from clip_anatomy.data.picture import Picture, decode
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

KB = 1000
BARS = {"ratio": 1.10, "bytes_per_image": 20_000, "cosine": 0.9999}


def main() -> None:
    asked = arguments()
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    import open_clip

    host = open_clip.create_model(asked.model).eval()
    clip = ca.load(host, parity=False)
    files = sorted(asked.photos.glob("*.jpg"))
    if not files:
        raise SystemExit(f"no .jpg in {asked.photos}. Type: --photos FOLDER")
    pictures = [
        Picture(f"{at // len(files)}/{files[at % len(files)].name}", files[at % len(files)])
        for at in range(asked.images)
    ]
    folder = Path(tempfile.mkdtemp(prefix="bench-index-", dir=asked.scratch))
    try:
        plain(host, clip, pictures[: asked.batch], asked.batch)  # warm up: page cache, primitives
        rounds = [one_round(host, clip, pictures, asked, folder / str(at)) for at in range(asked.rounds)]
        found = {
            "bench": "index",
            "model": asked.model,
            "images": asked.images,
            "batch": asked.batch,
            "cores": os.cpu_count(),
            "decode_seconds": statistics.median(r[0] for r in rounds),
            "encode_seconds": statistics.median(r[1] for r in rounds),
            "index_seconds": statistics.median(r[2] for r in rounds),
            "ratio": statistics.median(r[2] / (r[0] + r[1]) for r in rounds),
            "ratios": [round(r[2] / (r[0] + r[1]), 4) for r in rounds],
            **disk(folder / "0", asked.images),
            **loss(clip, folder / "0", pictures[:16]),
            **reading(folder / "0"),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table(found)
    print(json.dumps({name: round(v, 9) if isinstance(v, float) else v for name, v in found.items()}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="an architecture of open_clip")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--photos", type=Path, default=here.parent / "shared" / "data" / "coco" / "images")
    parser.add_argument("--scratch", type=Path, default=None, help="folder for the store; a temporary one by default")
    return parser.parse_args()


def plain(host, clip, pictures, batch) -> tuple[float, float]:
    """Seconds to decode everything, and to encode it."""
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = [found.pixels for found in pool.map(lambda p: decode(p, clip.preprocess), pictures)]
    decoded = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(pixels), batch):
            host.encode_image(torch.stack(pixels[first : first + batch]))
    return decoded - began, time.perf_counter() - decoded


def one_round(host, clip, pictures, asked, store) -> tuple[float, float, float]:
    decoding, encoding = plain(host, clip, pictures, asked.batch)
    began = time.perf_counter()
    done = index(clip, pictures, store, batch=asked.batch)
    seconds = time.perf_counter() - began
    assert done.done == len(pictures), done
    return decoding, encoding, seconds


def disk(folder: Path, images: int) -> dict:
    sizes = {p.relative_to(folder): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    arrays = sum(size for path, size in sizes.items() if path.parts[0] == "blocks")
    rows = sizes[Path("rows.sqlite")]
    once = sum(sizes.values()) - arrays - rows
    return {
        "bytes_per_image": (arrays + rows) / images,
        "bytes_once": once,
        "bytes_per_image_of_50000": (arrays + rows) / images + once / 50_000,
    }


def loss(clip, folder: Path, pictures) -> dict:
    """Embeddings rebuilt from the stored float16 heads and, in float32, what is no head: MLPs, start and bias."""
    store = Store.open(folder, clip)
    pixels = torch.stack([decode(p, clip.preprocess).pixels for p in pictures])
    parts = ca.decompose(clip, pixels)
    _, coordinates = next(iter(store.batches(len(pictures))))
    heads = store.basis.restore(coordinates).sum((1, 2)).float() * parts.embedding.norm(dim=-1)[:, None]
    rebuilt = heads + parts.mlps.sum(1) + parts.input_embedding + parts.bias
    kept = torch.nn.functional.cosine_similarity(store.embeddings(range(len(pictures))), parts.embedding)
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(rebuilt.double(), parts.embedding.double()).min()),
        "cosine_of_kept_embedding": float(kept.min()),
    }


def reading(folder: Path) -> dict:
    store = Store.open(folder)
    last = store.manifest.layers[-1]
    times = []
    for _ in range(5):
        began = time.perf_counter()
        total = [store.heads(last, head) for head in range(3)]
        times.append(time.perf_counter() - began)
    return {"read_3_heads_seconds": min(times), "read_bytes": sum(t.numel() * 2 for t in total)}


def table(found: dict) -> None:
    lines = [
        ("decode alone", f"{found['decode_seconds']:.2f} s"),
        ("encode_image alone", f"{found['encode_seconds']:.2f} s"),
        ("index, whole run", f"{found['index_seconds']:.2f} s"),
        ("index / (decode + encode)", f"{found['ratio']:.3f}  (bar {BARS['ratio']}; rounds {found['ratios']})"),
        (
            "on disk, an image",
            f"{found['bytes_per_image'] / KB:.2f} KB  (bar {BARS['bytes_per_image'] / KB:.0f} KB)",
        ),
        ("on disk, once", f"{found['bytes_once'] / 1024**2:.1f} MB (frames, moments)"),
        ("an image, of 50,000", f"{found['bytes_per_image_of_50000'] / KB:.2f} KB, everything counted"),
        ("cosine, rebuilt", f"{found['cosine']:.9f}  (bar {BARS['cosine']})"),
        ("cosine, kept embedding", f"{found['cosine_of_kept_embedding']:.9f}"),
        ("read 3 heads", f"{found['read_3_heads_seconds'] * 1e3:.2f} ms, {found['read_bytes'] / 1e6:.1f} MB"),
    ]
    print(f"{found['model']}, {found['images']} images, batch {found['batch']}, {found['cores']} cores")
    for name, value in lines:
        print(f"  {name:<28}{value}")


if __name__ == "__main__":
    main()
