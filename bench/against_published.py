"""The published algorithms beside ours, on the same weights in one run: time, peak memory, bytes stored, largest difference.

    python bench/against_published.py                         # all; a few minutes on two cores
    python bench/against_published.py --jobs tokens,textspan
    python bench/against_published.py --readme README.md      # writes the table between its two marks
    python bench/against_published.py --small                 # tiny models: proves that all of it runs and agrees

The algorithms are transcribed in `published.py` and `textspan.py`. Weights are random, of the real architecture: neither time nor memory depends on their
values. Each pair is timed in turn in a process of its own; the peak of each is that of another process, beyond what opening the model had taken. The
difference is the largest of what both compute, over the largest of these numbers. Prints a table and one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import published
import textspan as textspan_bench
import torch
from torch import Tensor

import clip_anatomy as ca
from clip_anatomy.split.basis import coordinate_count
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.removal import RemovalGame, interactions

START, END = "<!-- bench/against_published.py -->", "<!-- end -->"
SMALL: dict[str, Any] = {
    "ViT": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 4, "width": 48, "head_width": 16},
    },
    "RN": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None},
    },
}
TEXT = {"context_length": 12, "vocab_size": 100, "width": 32, "heads": 2, "layers": 2}
SPENT = 20.0  # seconds after which no further round begins


@dataclass(frozen=True)
class Case:
    """One algorithm, both ways.

    Attributes:
        images: how many pictures it is about.
        ours: our result, in the form that is compared.
        published: the published algorithm's.
        stored: bytes that each keeps for so many pictures: ours, published.
        plain: the plain forward of the same pictures; None where there is none.
        compared: for the difference, where the two ways as timed see other pictures.
    """

    images: int
    ours: Callable[[], Tensor]
    published: Callable[[], Tensor]
    stored: tuple[int, int]
    plain: Callable[[], Any] | None = None
    compared: Callable[[], tuple[Tensor, Tensor]] | None = None


def model_of(which: str, *, small: bool) -> tuple[Any, ca.Clip, Tensor]:
    """A model of random weights, biases and norms too; opened; and eight random pictures."""
    import open_clip

    torch.manual_seed(0)
    made: Any = (
        open_clip.CLIP(**SMALL["RN" if which.startswith("RN") else "ViT"], text_cfg=TEXT)
        if small
        else open_clip.create_model(which)
    )
    with torch.no_grad():
        for name, one in made.named_parameters():
            if one.dim() == 1:  # biases are zero in a fresh model, and a ResNet's last norms too
                one.copy_(torch.randn_like(one) * 0.1 + float(name.endswith("weight")))
    clip = ca.load(made.eval(), parity=False)
    return made, clip, torch.randn(8, 3, *clip.preprocess.size)


def heads(small: bool) -> Case:
    model, clip, pixels = model_of("ViT-B-16", small=small)
    some, tower = pixels[:4], clip.image_tower

    def ours() -> Tensor:
        parts = ca.decompose(clip, some, "official")
        return parts.heads / parts.embedding.norm(dim=-1)[:, None, None, None]

    units = len(some) * tower.layers * tower.heads
    stored = units * coordinate_count(tower, "official") * 2, units * tower.embed * 4
    return Case(
        4,
        ours,
        lambda: published.decomposition(model.visual, some, tokens=False),
        stored,
        lambda: model.encode_image(some),
    )


def tokens(small: bool) -> Case:
    model, clip, pixels = model_of("ViT-B-16", small=small)
    one, tower = pixels[:1], clip.image_tower
    texts = torch.nn.functional.normalize(torch.randn(10, tower.embed), dim=-1)

    def theirs() -> Tensor:
        return (published.decomposition(model.visual, one, tokens=True) @ texts.T).transpose(2, 3)

    units = tower.layers * tower.heads * tower.token_count(one) * 4
    return Case(
        1, lambda: ca.decompose(clip, one, "official", texts=texts).tokens(texts), theirs,
        (units * len(texts), units * tower.embed), lambda: model.encode_image(one),
    )  # fmt: skip


def textspan(small: bool) -> Case:
    images, texts, picks, d, embed = (200, 60, 5, 8, 24) if small else (5000, 2000, 30, 64, 512)
    basis, pool = textspan_bench.random_basis(1, 1, d, embed), textspan_bench.unit_pool(texts, embed, 3)
    coordinates = textspan_bench.head_like(images, d, 5)[:, None, None]
    joint = basis.restore(coordinates)[:, 0, 0]

    def ours() -> Tensor:
        """Moments of the pictures, the picks, and every picture rebuilt from them, as published."""
        span = ca.textspan(Moments.of(coordinates, basis=basis), pool, picks)
        mean, along = span.mean[0, 0], torch.linalg.qr(span.directions[0, 0].T).Q
        rebuilt = mean + (coordinates[:, 0, 0] - mean) @ along @ along.T
        return basis.restore(rebuilt[:, None, None])[:, 0, 0]

    stored = (d * (d + 1) * 8, images * embed * 4)
    return Case(images, ours, lambda: textspan_bench.transcribed(joint, pool, picks, d)[1], stored)


def second_order(small: bool) -> Case:
    model, clip, pixels = model_of("ViT-B-32", small=small)
    some, layer = pixels[:1], clip.image_tower.layers - 3
    neurons = clip.image_tower.blocks[layer].down.weight.shape[1]
    paths = 2 * clip.image_tower.heads

    def ours() -> Tensor:
        found = ca.second_order(clip, some, layer, convention="official")
        return torch.stack([found.effects(number) for number in range(neurons)], 1)

    stored = len(some) * neurons * paths * 4, len(some) * neurons * clip.vision.embed * 4
    return Case(
        1, ours, lambda: published.second_order(model.visual, some, layer), stored, lambda: model.encode_image(some)
    )


def neuron_heads(small: bool) -> Case:
    model, clip, pixels = model_of("RN50", small=small)
    some, chosen = pixels[:3], [(0, 0), (1, 5), (1, 63), (0, 200)]
    pool = model.visual.attnpool
    pairs = pool.num_heads * pool.v_proj.in_features

    def ours() -> Tensor:
        """Four pairs, with the even share of both biases that the released code gives every pair."""
        found = ca.neuron_heads(clip, some)
        out = pool.c_proj.weight.unflatten(1, (pool.num_heads, -1))
        own = torch.einsum("ehd,hd->he", out, pool.v_proj.bias.unflatten(0, (pool.num_heads, -1)))
        even = own / pool.v_proj.in_features + pool.c_proj.bias / pairs
        return torch.stack([found.effects(head, neuron) + even[head] for head, neuron in chosen], 1)

    def theirs() -> Tensor:
        every = published.neuron_heads(model.visual, some)
        return torch.stack([every[:, head, neuron] for head, neuron in chosen], 1)

    stored = len(some) * pairs * 4, len(some) * pairs * clip.vision.embed * 4
    return Case(3, ours, theirs, stored, lambda: model.encode_image(some))


def surgery(small: bool) -> Case:
    model, clip, pixels = model_of("ViT-B-16", small=small)
    some, texts = pixels[:4], torch.nn.functional.normalize(torch.randn(59, clip.vision.embed), dim=-1)
    depth = 2 if small else 6

    def ours() -> Tensor:
        return ca.heatmap(clip, some, texts, "surgery", against="each other", depth=depth).values.flatten(2)

    def theirs() -> Tensor:
        return published.surgery(model.visual, some, texts, depth)[:, 1:].transpose(1, 2)

    size = ours().nbytes
    return Case(4, ours, theirs, (size, size), lambda: model.encode_image(some))


def fixlip(small: bool) -> Case:
    model, clip, pixels = model_of("ViT-B-32", small=small)
    (patch, _), forwards = clip.patch, 64 if small else 128
    picture, words = pixels[0], [[at] for at in range(1, 6)]
    last = clip.text_tower.vocabulary - 1 if hasattr(clip.text_tower, "vocabulary") else (99 if small else 49407)
    ids = torch.tensor([[last - 1, 5, 17, 23, 8, 61, last]])
    players = [[at] for at in range(1, clip.image_tower.token_count(picture[None]))]
    padded = torch.nn.functional.pad(ids, (0, (12 if small else 77) - ids.shape[1]))

    def games() -> tuple[RemovalGame, RemovalGame]:
        seen, read = (
            RemovalGame(clip.image_tower, picture[None], players, 0.5, 0),
            RemovalGame(clip.text_tower, ids, words, 0.5, 0),
        )
        seen.more(forwards)
        return seen, read

    def ours() -> Tensor:
        seen, read = games()
        return interactions(seen.fit(), read.fit())[0]

    def theirs() -> Tensor:
        seen = torch.rand(forwards, len(players), generator=torch.Generator().manual_seed(0)) < 0.5
        read = ((torch.arange(32)[:, None] >> torch.arange(5)) & 1).bool()
        without = padded.repeat(32, 1)
        without[:, 1:6] *= read
        one = torch.cat(
            [model.encode_image(some, normalize=True) for some in published.greyed(picture, seen, patch).split(64)]
        )
        other = model.encode_text(without, normalize=True)
        return published.fixlip_fit(seen, read, one @ other.T)

    def compared() -> tuple[Tensor, Tensor]:
        """Both fits of the same forwards: the published route greys patches where ours takes their tokens away."""
        seen, read = games()
        values = seen._embeddings @ read._embeddings.T
        return interactions(seen.fit(), read.fit())[0], published.fixlip_fit(seen._masks, read._masks, values)

    columns = 1 + 54 + 54 * 53 // 2
    return Case(
        1,
        ours,
        theirs,
        (54 * clip.vision.embed * 8, forwards * 32 * columns * 8),
        lambda: model.encode_image(picture[None]),
        compared,
    )


JOBS: dict[str, tuple[str, Callable[[bool], Case]]] = {
    "heads": ("heads of all layers, B/16", heads),
    "tokens": ("heads × tokens toward ten texts, B/16", tokens),
    "textspan": ("TextSpan of one head, 5,000 pictures, 2,000 texts, 30 picks", textspan),
    "second_order": ("second order: one MLP's neurons through later heads, B/32", second_order),
    "neuron_heads": ("neurons × heads, RN50", neuron_heads),
    "surgery": ("CLIP Surgery with feature surgery, 59 texts, B/16", surgery),
    "fixlip": ("FIxLIP: 49 patches × 5 words, 128 forwards, B/32", fixlip),
}


@torch.no_grad()
def timed(case: Case) -> dict[str, Any]:
    ways = {"ours": case.ours, "published": case.published, **({} if case.plain is None else {"plain": case.plain})}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, Any] = {}
    case.ours()  # warms up
    began = time.perf_counter()
    while not results or (time.perf_counter() - began < SPENT and len(seconds["ours"]) < 7):
        for way, run in ways.items():
            start = time.perf_counter()
            results[way] = run()
            seconds[way].append(time.perf_counter() - start)
    one, other = case.compared() if case.compared is not None else (results["ours"], results["published"])
    difference = float((one.double() - other.double()).abs().max() / other.double().abs().max())
    return {way: min(took) for way, took in seconds.items()} | {
        "rounds": len(seconds["ours"]), "difference": difference, "stored": case.stored, "images": case.images,
    }  # fmt: skip


@torch.no_grad()
def peak(run: Callable[[], Tensor]) -> int:
    """Most memory that a call takes beyond what is there, in bytes."""

    def resident(field: str) -> int:
        line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what came before
    before = resident("VmRSS")
    run()
    return max(resident("VmHWM") - before, 0)


def measure(name: str, *, small: bool) -> dict[str, Any]:
    def child(what: str) -> Any:
        command = [sys.executable, __file__, "--child", name, what, *(["--small"] if small else [])]
        return json.loads(
            subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
        )

    row = child("time")
    return {"job": name, **row, "peak": [child("ours"), child("published")]}


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def cells(row: dict[str, Any]) -> list[str]:
    beside = [f"{row[way] / row['plain']:.2f} ×" if row.get("plain") else "–" for way in ("ours", "published")]
    stored = [size(count / row["images"]) if row["job"] != "textspan" else size(count) for count in row["stored"]]
    ratio = row["published"] / row["ours"]
    return [
        JOBS[row["job"]][0], f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×", f"{beside[0]} / {beside[1]}" if row.get("plain") else "–",
        f"{size(row['peak'][0])} / {size(row['peak'][1])}", f"{stored[0]} / {stored[1]}", f"{row['difference']:.0e}",
    ]  # fmt: skip


HEAD = [
    "ours / the published algorithm",
    "faster",
    "time beside `encode_image`",
    "peak memory",
    "kept an image",
    "difference",
]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of the names in the JSON, separated by commas")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        name, what = asked.child
        case = JOBS[name][1](asked.small)
        print(json.dumps(timed(case) if what == "time" else peak(getattr(case, what))))
        return
    rows = []
    for name in asked.jobs.split(","):
        rows.append(measure(name, small=asked.small))
        print("   ".join(cells(rows[-1])), flush=True)
    threads = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"\n{markdown(rows)}\n\n{threads}")
    if asked.readme is not None:
        before, _, rest = asked.readme.read_text("utf-8").partition(START)
        after = rest.partition(END)[2]
        asked.readme.write_text(f"{before}{START}\n{markdown(rows)}\n{END}{after}", "utf-8")
    print(
        json.dumps(
            {"bench": "against_published", "small": asked.small, "threads": torch.get_num_threads(), "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
