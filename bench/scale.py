"""Many machines: what two workers give, whether an image costs the same in large collections, and a collection as large as LAION-5B simulated.

    python bench/scale.py --only plan                   the figures of docs/scale.md, and a simulation of 100,000 shards (seconds)
    python bench/scale.py --only workers                one process on one core against two on two, by --part (minutes; wants a quiet machine)
    python bench/scale.py --only images --images 1000000    a tiny real model at 16 × 16 pixels: cost of an image from 1,000 to so many
    python bench/scale.py --only demo --images 100000       the bundled model on pictures of its world
    python bench/scale.py --only moments                    moments of 10,000 shards merged

Workers. `clip-anatomy index world:N:test --part K/2` in two processes at once, each held to a core, against one process on one core; the time in which no picture is read is taken
out of neither. Bar: 1.7 times.

Images. Every run indexes a new sharded store; time, peak memory and bytes for each picture. Pictures are drawn by a hash as they are read.

Plan. Bytes of an image are those of the arrays (`Manifest`); pictures a second of a GPU are an assumption (--rate), as are the time between
two failures of a node (--failures), the time until its place is filled (--back) and the spread of speeds (--spread). The simulation hands out shards as the engine does: a worker asks for
the next when it has done one, a dead worker's shard is done again by the next that is free. Nothing else is in it: no shuffle, no barrier, no exchange.
"""

import argparse
import heapq
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

PICTURES = 5_850_000_000  # of LAION-5B
MODELS = {  # layers, heads of each, numbers of a head, of the embedding; layers that are kept
    "B/16, all layers": (12, 12, 64, 512),
    "L/14, last 4 layers": (4, 16, 64, 768),
    "L/14, all layers": (24, 16, 64, 768),
    "H/14, last 4 layers": (4, 16, 80, 1024),
}
RATE = {"B/16": 2500.0, "L/14": 900.0, "H/14": 450.0}  # pictures a second of a GPU: assumed, --rate has another


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--only", choices=("plan", "workers", "images", "demo", "moments"), default=None)
    asked.add_argument("--images", type=int, default=None, help="15,000 for workers, 100,000 else")
    asked.add_argument("--size", type=int, default=58_500, help="pictures in a shard of the plan: 100,000 shards")
    asked.add_argument("--gpus", type=int, default=256)
    asked.add_argument("--rate", type=float, default=None, help="pictures a second of a GPU")
    asked.add_argument("--failures", type=float, default=50.0, help="hours between two failures of a worker")
    asked.add_argument("--back", type=float, default=600.0, help="seconds until its place is filled")
    asked.add_argument("--spread", type=float, default=0.1, help="standard deviation of a worker's speed, as a share")
    asked.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    args = asked.parse_args()
    if args.child:
        print(json.dumps(indexed(args.child[0], int(args.child[1]))))
        return
    found: dict[str, Any] = {"bench": "scale", "cores": os.cpu_count()}
    if args.only in (None, "plan"):
        found["plan"] = plan(args)
    if args.only in (None, "workers"):
        found["workers"] = workers(args.images or 15_000)
    if args.only in (None, "moments"):
        found["moments"] = [merging("the bundled model", 8, 6, 32), merging("B/16", 12, 12, 64)]
    for kind in ("images", "demo"):
        if args.only == kind or (args.only is None and kind == "images"):
            found[kind] = growing(kind, args.images or 100_000)
    print(json.dumps(found))


# ---- plan
def plan(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes, GPU-hours, requests and the run itself, for each model."""
    rows: list[dict[str, Any]] = []
    print(f"{PICTURES:,} pictures, {-(-PICTURES // args.size):,} shards of {args.size:,}, {args.gpus} GPUs")
    for name, (layers, heads, d, embed) in MODELS.items():
        rate = args.rate or RATE[name.split(",")[0]]
        of_image = layers * heads * d * 2 + embed * 21 / 8 + 300  # float16 heads; 20 bits and scales; a row of SQLite
        shards = -(-PICTURES // args.size)
        files = 12 + layers  # of a shard: rows, moments, embeddings, metadata, and one of heads for each layer
        run = simulated(
            shards, args.size / rate, args.gpus, between=args.failures * 3600, back=args.back, spread=args.spread
        )
        row: dict[str, Any] = {
            "model": name, "rate": rate, "bytes_of_image": round(of_image), "terabytes": of_image * PICTURES / 1e12,
            "gpu_hours": PICTURES / rate / 3600, "puts": shards * (files + 1) + run["lost"] * files, "lists": -(-shards // 1000),
            "opening_gets": 2 * shards, **run,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:<20} {of_image / 1e3:6.1f} kB/image {row['terabytes']:7.1f} TB  {row['gpu_hours']:7.0f} GPU-hours at {rate:,.0f}/s  "
            f"{run['hours']:6.1f} h ({run['hours'] / run['ideal_hours']:.3f} × ideal)  {run['failures']:,} failures, {run['lost']:,} shards done again "
            f"({100 * run['wasted']:.2f} % of the work)  {row['puts'] / 1e6:.1f} M PUT"
        )
    return rows


def simulated(shards: int, seconds: float, gpus: int, *, between: float, back: float, spread: float) -> dict[str, Any]:
    """Run shards on workers that fail at random; every shard is committed once, or this raises."""
    draw = random.Random(0)
    speeds = [max(0.2, draw.gauss(1.0, spread)) for _ in range(gpus)]
    waiting, following = deque[int](), iter(range(shards))
    committed = bytearray(shards)
    events: list[tuple[float, int, int, bool]] = [(0.0, worker, -1, True) for worker in range(gpus)]
    dies = [draw.expovariate(1 / between) for _ in range(gpus)]
    now, failures, wasted, tries = 0.0, 0, 0.0, 0
    idle: list[int] = []
    last = 0.0
    while events:
        now, worker, shard, lives = heapq.heappop(events)
        if shard >= 0 and lives:
            assert not committed[shard], "a shard is committed twice"
            committed[shard] = 1
            last = now
        elif shard >= 0:
            waiting.append(shard)
            heapq.heappush(events, (now + back, worker, -1, True))
            if idle:
                heapq.heappush(events, (now, idle.pop(), -1, True))
            continue
        one = waiting.popleft() if waiting else next(following, None)
        if one is None:
            idle.append(worker)
            continue
        tries += 1
        need = seconds / speeds[worker] * draw.uniform(0.9, 1.1)
        if now + need > dies[worker]:
            end = max(now, dies[worker])
            failures, wasted = failures + 1, wasted + end - now
            dies[worker] = end + back + draw.expovariate(1 / between)
            heapq.heappush(events, (end, worker, one, False))
        else:
            heapq.heappush(events, (now + need, worker, one, True))
    assert all(committed), "a shard is lost"
    return {
        "shards": shards, "tries": tries, "lost": tries - shards, "failures": failures, "hours": last / 3600,
        "ideal_hours": shards * seconds / sum(speeds) / 3600, "wasted": wasted / (shards * seconds), "shard_seconds": seconds,
    }  # fmt: skip


# ---- measured
def workers(images: int) -> dict[str, Any]:
    """One process, and two at once."""
    command = [sys.executable, "-m", "clip_anatomy", "index", f"world:{images}:test"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    times: dict[str, float] = {}
    processor: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command[:-1], "world:64:test", f"{folder}/warm"], env=env, check=True, capture_output=True)
        for name, parts in (("one", ["0/1"]), ("two", ["0/2", "1/2"])):
            began, before = time.perf_counter(), children()
            store = f"{folder}/{name}"
            running = [started([*command, store, "--shard-size", "500", "--part", part], env, at) for at, part in enumerate(parts)]  # fmt: skip
            assert not any(one.wait() for one in running)
            times[name], processor[name] = time.perf_counter() - began, children() - before
    print(
        f"{images:,} pictures: one {times['one']:.1f} s, two {times['two']:.1f} s: {times['one'] / times['two']:.2f} × (bar 1.7); "
        f"of a processor {processor['one']:.1f} s and {processor['two']:.1f} s: {2 * processor['one'] / processor['two']:.2f} × where nothing else runs"
    )
    return {"images": images, **times, "factor": times["one"] / times["two"], "processor": processor}


def started(command: list[str], env: dict[str, str], core: int) -> subprocess.Popen[bytes]:
    """Start a process that is held to one core, its threads that read ahead too."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return subprocess.Popen(command, env=env, stdout=-3, stderr=-3)
    finally:
        os.sched_setaffinity(0, cores)


def children() -> float:
    """Return the processor time of the processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Drawn:
    """So many pictures of 16 × 16 pixels, each drawn when it is read."""

    pictures: int

    @property
    def spec(self) -> str:
        return f"drawn:{self.pictures}"

    def __iter__(self) -> Iterator[Any]:
        import numpy as np

        from clip_anatomy.data.picture import Picture

        for at in range(self.pictures):
            pixels = np.random.default_rng(at).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            yield Picture(f"{at:09d}", pixels)

    def count(self) -> int:
        return self.pictures

    def check(self) -> None:
        pass

    def fetch(self, path: str) -> Any:
        raise NotImplementedError


def tiny() -> Any:
    """A real CLIP with one layer of one head, for pictures of 16 × 16 pixels."""
    import open_clip
    import torch

    import clip_anatomy as ca

    torch.manual_seed(0)
    vision: Any = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 8, "head_width": 8}
    text: Any = {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1}
    model = open_clip.CLIP(embed_dim=8, quick_gelu=False, vision_cfg=vision, text_cfg=text)
    return ca.load(model.eval(), parity=False)


def indexed(kind: str, images: int) -> dict[str, Any]:
    """Index so many pictures into a new sharded store, in this process."""
    import torch

    import clip_anatomy as ca

    torch.set_num_threads(1)
    clip, source = (tiny(), Drawn(images)) if kind == "images" else (ca.load("demo"), f"world:{images}:test")
    with tempfile.TemporaryDirectory() as folder:
        before, began = time.process_time(), time.perf_counter()
        done = ca.index(clip, source, f"{folder}/store", shard_size=4096)
        seconds, processor = time.perf_counter() - began, time.process_time() - before
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    assert done.done == images
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"images": images, "seconds": seconds, "processor_ms": 1e3 * processor / images, "ms": 1e3 * seconds / images, "bytes": size / images, "peak_mb": peak / 2**20}  # fmt: skip


def merging(name: str, layers: int, heads: int, d: int, shards: int = 10_000) -> dict[str, Any]:
    """Merge moments of so many shards, one after the other, on one thread."""
    import torch

    from clip_anatomy.split.moments import Moments

    torch.set_num_threads(1)
    kinds = [Moments.of(torch.randn(100, layers, heads, d), layers=tuple(range(layers))) for _ in range(16)]
    began, before = time.perf_counter(), time.process_time()
    total = Moments.merged(kinds[at % len(kinds)] for at in range(shards))
    seconds, processor = time.perf_counter() - began, time.process_time() - before
    assert total.count == 100 * shards
    print(
        f"{name}: moments of {shards:,} shards merged in {seconds:.1f} s by one thread, {processor:.1f} s of a processor"
    )
    return {"model": name, "shards": shards, "seconds": seconds, "processor": processor}


def growing(kind: str, most: int) -> list[dict[str, Any]]:
    """Ten times as many each time, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for power in count(3):
        images = min(10**power, most)
        run = subprocess.run(
            [sys.executable, __file__, "--child", kind, str(images)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(run.stdout))
        row = rows[-1]
        print(f"{kind:>6} {images:>9,}: {row['processor_ms']:.3f} ms of a processor an image, {row['ms']:.3f} ms of time, {row['bytes']:,.0f} bytes, {row['peak_mb']:,.0f} MB", flush=True)  # fmt: skip
        if images == most:
            return rows
    return rows


if __name__ == "__main__":
    main()
