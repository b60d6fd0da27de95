"""Sharded stores: search over 16 shards equals search over one, the catalogue's cost, and how fast moments of many shards merge.

    python bench/shards.py                        a folder as the place, two minutes
    python bench/shards.py --place s3://bucket/bench --shards 16 --pictures 64

The same pictures of the demo world are indexed into one store and into shards; everything that both answer is compared. Then moments of `--merge` shards
of the demo model are merged in a tree, as files that are read one after the other.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

import clip_anatomy as ca
from clip_anatomy.split.moments import Moments
from clip_anatomy.store.index import index
from clip_anatomy.store.shards import open_sharded
from clip_anatomy.store.store import Store

QUERIES = ("a red circle", "a blue square on a beach", "three triangles")
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=64, help="in a shard")
    parser.add_argument("--merge", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"bench": "shards", **compared(asked, Path(folder)), **merged(asked.merge, Path(folder))}
    for name, value in found.items():
        print(f"{name:<36} {value:,.6g}" if isinstance(value, float) else f"{name:<36} {value}")
    print(json.dumps(found))


def timed(work):
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def compared(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    clip = ca.load("demo")
    source = f"world:{asked.shards * asked.pictures}:test"
    place = asked.place or f"file://{folder}/sharded"
    open_sharded(place, clip, source, size=asked.pictures, batch=BATCH)
    _, shards_seconds = timed(lambda: index(clip, source, place))
    _, one_seconds = timed(lambda: index(clip, source, folder / "one", batch=BATCH))
    sharded, catalogue_seconds = timed(lambda: Store.open(place))
    one = Store.open(folder / "one")
    manifest = one.manifest
    equal = all(
        torch.equal(one.heads(layer, head), sharded.heads(layer, head))
        for layer in manifest.layers
        for head in range(manifest.heads)
    )
    a, moments_seconds = timed(sharded.moments)
    b = one.moments()
    differences, same = 0.0, True
    for query in QUERIES:
        hits, others = (ca.search(store, query, clip=clip, k=20).hits for store in (one, sharded))
        same &= [hit.row.id for hit in hits] == [hit.row.id for hit in others]
        differences = max(differences, *(abs(x.score - y.score) for x, y in zip(hits, others, strict=True)))
    _, opened_again = timed(lambda: Store.open(place))
    return {
        "shards": asked.shards,
        "pictures in a shard": asked.pictures,
        "index into shards / into one": shards_seconds / one_seconds,
        "arrays equal bit for bit": equal,
        "hits equal": same,
        "largest difference of scores": differences,
        "largest difference of means": float((a.means - b.means).abs().max()),
        "largest difference of scatters": float((a.scatters - b.scatters).abs().max()),
        "seconds to make the catalogue": catalogue_seconds,
        "seconds to merge its moments": moments_seconds,
        "seconds to open it again": opened_again,
    }


def merged(count: int, folder: Path) -> dict[str, float]:
    """Moments of `count` shards, read as files and merged; a few files stand for all, so that the disk need not hold them."""
    layers, heads, d, images = 8, 6, 32, 4096
    files = []
    for at in range(8):
        x = torch.randn(images, layers, heads, d, generator=torch.Generator().manual_seed(at))
        files.append(Moments.of(x, model="bench").save(folder / f"{at}.safetensors"))
    total, seconds = timed(lambda: Moments.merged(Moments.load(files[at % len(files)]) for at in range(count)))
    every = [Moments.load(file) for file in files]
    mean = sum(part.mean for part in every) / len(every)
    assert count % len(files) or torch.allclose(total.mean, mean, atol=1e-12)
    return {
        "moments merged": count,
        "MB of each": files[0].stat().st_size / 1e6,
        "seconds to read and merge them": seconds,
        "images in them": total.count,
        "peak memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


if __name__ == "__main__":
    main()
