"""TextSpan from moments: seconds and gigabytes for a whole model, and per head against the published procedure.

    python bench/textspan.py                                  # the full job: 384 heads, 28,767 texts, 60 picks
    python bench/textspan.py --heads 8 --pool 2000 --images 1000   # a small try

Data are random with the spectrum of real heads (a few strong directions, a long tail), shaped like ViT-L/14: time does
not depend on values. The published procedure is transcribed in our own words from its description (project a pool on
the top singular vectors; repeat: project all images on all texts, take the text of largest deviation, remove it from
images and texts). It is run on one head in float32, as published, and in float64 at a small size to compare picks.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from clip_anatomy.naming.textspan import textspan
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.moments import Moments


def transcribed(data: Tensor, pool: Tensor, picks: int, rank: int) -> tuple[list[int], Tensor]:
    """The published procedure for one head: [image, embed] and [text, embed] in, picks and reconstruction out."""
    right = torch.linalg.svd(data, full_matrices=False).Vh[:rank]
    texts = pool @ right.T @ right
    middle = data.mean(0)
    left = data - middle
    rebuilt = middle.expand_as(data).clone()
    chosen: list[int] = []
    for _ in range(picks):
        deviation = (left @ texts.T).std(0)
        index = int(deviation.argmax())
        chosen.append(index)
        direction = texts[index].clone()
        length = direction @ direction
        written = torch.outer(left @ direction / length, direction)
        rebuilt += written
        left = left - written
        texts = texts - torch.outer(texts @ direction / length, direction)
    return chosen, rebuilt


def head_like(images: int, d: int, seed: int) -> Tensor:
    """Head coordinates with a decaying spectrum and a mean, about as large as real contributions to a cosine."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = 0.02 * torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(images, d, generator=generator, dtype=torch.float64) * spectrum
    return (x + 0.05 * torch.randn(d, generator=generator, dtype=torch.float64) * spectrum.sqrt()) @ turn


def unit_pool(texts: int, embed: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(texts, embed, generator=generator, dtype=torch.float64), dim=1)


def random_basis(layers: int, width: int, d: int, embed: int) -> HeadBasis:
    generator = torch.Generator().manual_seed(1)
    return HeadBasis.of(torch.randn(layers, width, d, embed, generator=generator, dtype=torch.float64))


def batches(layers: int, width: int, d: int, images: int, batch: int = 250) -> Iterator[Tensor]:
    """A stream of [image, layer, head, d]: heads differ by a roll of their axes."""
    for start in range(0, images, batch):
        one = head_like(min(batch, images - start), d, seed=start)
        yield torch.stack([one.roll(k, dims=1) for k in range(layers * width)], 1).unflatten(1, (layers, width))


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def whole_model(heads: int, d: int, embed: int, pool_size: int, picks: int) -> dict[str, float]:
    """All heads of a model from streamed moments."""
    width = 16 if heads % 16 == 0 else 1
    basis = random_basis(heads // width, width, d, embed)
    moments = Moments.merged(Moments.of(x, basis=basis) for x in batches(heads // width, width, d, 1000))
    pool = unit_pool(pool_size, embed, 2)
    before = peak_gb()
    start = time.perf_counter()
    span = textspan(moments, pool, picks)
    seconds = time.perf_counter() - start
    assert int((span.indices >= 0).sum()) == heads * min(picks, d)
    return {"seconds": seconds, "ms_per_head": 1000 * seconds / heads, "peak_gb": peak_gb(), "peak_gb_before": before}


def one_head(images: int, d: int, embed: int, pool_size: int, picks: int) -> dict[str, float]:
    """One head: moments against the transcription, same images, same pool, same rank."""
    basis = random_basis(1, 1, d, embed)
    coordinates = head_like(images, d, 5)[:, None, None]
    pool = unit_pool(pool_size, embed, 3)
    joint = basis.restore(coordinates)[:, 0, 0]
    start = time.perf_counter()
    moments = Moments.of(coordinates, basis=basis)
    taking = time.perf_counter() - start
    ours = min(_timed(lambda: textspan(moments, pool, picks))[0] for _ in range(5))
    theirs, (published, _) = _timed(lambda: transcribed(joint.float(), pool.float(), picks, d))
    span = textspan(moments, pool, picks)
    small = slice(0, max(2 * d, images // 10)), slice(0, max(picks, pool_size // 10))
    exact, _ = transcribed(joint[small[0]], pool[small[1]], picks, d)
    again = textspan(Moments.of(coordinates[small[0]], basis=basis), pool[small[1]], picks).indices[0, 0].tolist()
    return {
        "published_seconds": theirs,
        "ours_seconds": ours,
        "moments_seconds": taking,
        "ratio": theirs / ours,
        "ratio_with_moments": theirs / (ours + taking),
        "same_picks_float32": float(
            np.mean([a == b for a, b in zip(published, span.indices[0, 0].tolist(), strict=True)])
        ),
        "same_picks_float64": float(np.mean([a == b for a, b in zip(exact, again, strict=True)])),
    }


def _timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=384)
    parser.add_argument("--d", type=int, default=64, help="head width")
    parser.add_argument("--embed", type=int, default=768)
    parser.add_argument("--pool", type=int, default=28767, help="texts for the whole model")
    parser.add_argument("--picks", type=int, default=60)
    parser.add_argument("--images", type=int, default=10000, help="images for the published procedure")
    parser.add_argument("--one-head-pool", type=int, default=3498, help="texts for the published procedure")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    whole = whole_model(args.heads, args.d, args.embed, args.pool, args.picks)
    one = one_head(args.images, args.d, args.embed, args.one_head_pool, args.picks)
    print(f"{'whole model':<28}{args.heads} heads x {args.pool:,} texts x {args.picks} picks, {args.threads} threads")
    print(f"{'  seconds (bar 60)':<28}{whole['seconds']:.2f}")
    print(f"{'  ms a head':<28}{whole['ms_per_head']:.1f}")
    print(f"{'  peak memory GB (bar 2)':<28}{whole['peak_gb']:.2f}   ({whole['peak_gb_before']:.2f} before)")
    print(f"{'one head':<28}{args.images:,} images x {args.one_head_pool:,} texts x {args.picks} picks")
    print(f"{'  published, seconds':<28}{one['published_seconds']:.2f}")
    print(
        f"{'  from moments, seconds':<28}{one['ours_seconds']:.4f}   (taking the moments: {one['moments_seconds']:.4f})"
    )
    print(f"{'  ratio (bar 500)':<28}{one['ratio']:.0f}   (moments included: {one['ratio_with_moments']:.0f})")
    print(f"{'  same picks':<28}float32 {one['same_picks_float32']:.0%}, float64 {one['same_picks_float64']:.0%}")
    print(json.dumps({"bench": "textspan", **vars(args), "whole": whole, "one": one}))


if __name__ == "__main__":
    main()
