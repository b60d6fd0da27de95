"""How often roles by text are the truth on the demo model, what each side of the evidence is worth, and what an atlas costs.

    python bench/atlas.py                      # 2,000 pictures, a fresh store in a temporary folder
    python bench/atlas.py --images 20000
    python bench/atlas.py --store STORE        # of the demo world, by the bundled model

Prints tables for people and one line of JSON. Bar: at least 80 % of the heads that are named and that one attribute drives
(it explains half of their variance or more) have that attribute as their role.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

import clip_anatomy as ca
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.naming.build_atlas import atlas
from clip_anatomy.naming.ground_truth import Agreement, GroundTruth, agreement, truth_of
from clip_anatomy.naming.roles import MIXED, UNNAMED
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store

BAR = 0.8


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def agreed(
    found: Atlas, truth: GroundTruth, names: Mapping[tuple[int, int], str] | None = None, bar: float = 0.5
) -> Agreement:
    roles = names or {(head.layer, head.head): head.role.name for head in found.heads}
    return agreement(roles, truth, bar, unnamed=(UNNAMED, MIXED, ""))


def line(name: str, told: Agreement, clear: int) -> str:
    rate = f"{100 * told.rate:6.1f} %" if told.tested else "       –"
    return f"{name:<44}{told.right:>6} of {told.tested:<5}{rate}{clear - told.tested:>12}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clip = ca.load("demo")
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = args.store or Path(temporary) / "store"
        if args.store is None:
            with timed(seconds, "index"):
                index(clip, f"world:{args.images}:test", place)
        store = Store.open(place, clip)
        cache = Path(temporary) / "texts.sqlite"
        with timed(seconds, "atlas"):
            found = atlas(store, clip, texts=args.texts, cache=cache)
        with timed(seconds, "atlas, pool grown"):
            grown = atlas(store, clip, texts=args.texts, adaptive=True, cache=cache)
        with timed(seconds, "truth"):
            truth = truth_of(store)
        with timed(seconds, "pages"):
            found.save(Path(temporary) / "out")
        size = sum(file.stat().st_size for file in (Path(temporary) / "out").rglob("*") if file.is_file())

    print(f"{len(store):,} pictures of the demo world, {len(found.heads)} heads, {found.pool_texts} texts\n")
    print(f"{'head':<6}{'role':<12}{'sure':>6}{'explained':>11}   {'in truth':<20}{'first text'}")
    for head in found.heads:
        name, share = truth.dominant(head.layer, head.head)
        print(
            f"{head.name:<6}{head.role.name:<12}{head.role.confidence:>6.2f}{100 * head.explained:>9.0f} %   "
            f"{name + f' {share:.2f}':<20}{head.texts[0].text if head.texts else ''}"
        )
    best = truth.share.amax(-1)
    told = agreed(found, truth)
    print(
        f"\n{'roles that are the true dominant attribute':<44}{'right':>6}    {'asked':<5}{'rate':>6}{'left out':>14}"
    )
    for bar in (0.5, 0.4, 0.3):
        print(line(f"both scores, truth ≥ {100 * bar:.0f} %", agreed(found, truth, bar=bar), int((best >= bar).sum())))
    clear = int((best >= 0.5).sum())
    for side in ("by_picks", "by_text_variance"):
        names = {(head.layer, head.head): getattr(head.role, side) for head in found.heads}
        print(line(f"{side.replace('_', ' ')} alone, truth ≥ 50 %", agreed(found, truth, names), clear))
    third = {(head.layer, head.head): head.by_concept for head in found.heads}
    for bar in (0.5, 0.3):
        told_third = agreed(found, truth, third, bar)
        print(line(f"words of one concept, truth ≥ {100 * bar:.0f} %", told_third, int((best >= bar).sum())))
    print(line(f"pool grown to {grown.pool_texts} texts, truth ≥ 50 %", agreed(grown, truth), clear))
    print("\nleft out: mixed or unnamed though one attribute drives them\n")
    print(f"{'pool':>8}{'explained':>12}")
    for one in grown.curve:
        print(f"{one.texts:>8}{100 * one.explained:>10.2f} %")
    print("\n" + "\n".join(f"{name:<20}{spent:8.1f} s" for name, spent in seconds.items()))
    print(f"{'report on disk':<20}{size / 1e6:8.1f} MB")
    result = {
        "bench": "atlas",
        "images": len(store),
        "heads": len(found.heads),
        "clear": clear,
        "asked": told.tested,
        "right": told.right,
        "rate": told.rate if told.tested else None,
        "third_opinion": [agreed(found, truth, third).right, clear],
        "bar": BAR,
        "holds": bool(told.tested and told.rate >= BAR),
        "roles": found.roles,
        "explained": found.explained,
        "curve": [[one.texts, one.explained] for one in grown.curve],
        "megabytes": size / 1e6,
        "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
