"""Draw the figures of the papers with any model, or make docs/gallery.md anew with the bundled one.

python examples/gallery.py                                    # every figure on the bundled model, into docs/gallery.md and docs/gallery/
python examples/gallery.py overview nearest_by_head --out figures
python examples/gallery.py overview --model open_clip:ViT-L-14/laion2b_s32b_b82k --store val.store --picture photo.jpg --text "a dog"
"""

import argparse
import ast
import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from panels import Setting
from PIL import Image

import clip_anatomy as ca
from clip_anatomy.loading.demo import examples
from clip_anatomy.report.figures import png
from clip_anatomy.towers.randomize_weights import map_tensors

DOCS = Path(__file__).parent.parent / "docs"
WORLD = "world:600:test:balanced"
SMALLER, MOST = ((860, 64), (720, 64), (720, 32), (600, 32), (480, 32)), 58_000  # width and colours, bytes of a picture
FIGURES = (
    "overview", "layers_at_their_mean", "mlps_at_their_mean", "texts_per_head", "texts_of_heads", "pictures_of_texts", "nearest_by_head",
    "spurious_cue", "patch_maps", "segmentation_scores", "heads_and_patches", "segmented_pictures",
    "second_model", "pool_size", "linear_probe", "beside_maskclip", "through_later_heads", "text_tower",
    "opposite_maps", "kinds_of_attention", "redundant_features", "larger_picture", "one_text", "points_for_sam", "words_and_patches",
    "several_classes", "several_labels",
)  # fmt: skip
SHOWN = {
    "striped_circle": "a striped pink circle",
    "two_kinds": "a dotted green circle",
    "bird_on_water": "a checkered blue bird",
}


@contextlib.contextmanager
def demo() -> Iterator[Setting]:
    """Index pictures of the bundled model's world, and make a second model of it: its weights in 3 bits."""
    clip = ca.load("demo")
    pictures = {one.stem: str(one) for one in examples()}
    coarse = map_tensors(clip.vision, lambda x: x if x.ndim < 2 else in_bits(x, 3))
    second = replace(clip, name="demo in 3 bits", vision=coarse)
    with tempfile.TemporaryDirectory() as folder:
        ca.index(clip, WORLD, f"{folder}/store", keep=("heads", "mlps"), workers=1)
        store = ca.Store.open(f"{folder}/store", clip)
        yield Setting(clip, store, [pictures[name] for name in SHOWN], list(SHOWN.values()), second, WORLD)


def in_bits(weights: torch.Tensor, bits: int) -> torch.Tensor:
    """Round every row to so many bits."""
    step = weights.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weights / step.clamp_min(1e-12)).round() * step


def drawn(name: str, on: Setting) -> Image.Image | str:
    """Draw one figure: a picture, or a table as text."""
    made: Any = importlib.import_module(f"figures.{name}").draw(on)
    if isinstance(made, str):
        return "\n".join(line.rstrip() for line in made.strip("\n").splitlines())
    if isinstance(made, Image.Image):
        return made.convert("RGB")
    return Image.open(BytesIO(png(made))).convert("RGB")


def small(picture: Image.Image) -> bytes:
    """Make a picture of the page of it: as wide as its bytes allow, with a palette."""
    for wide, colours in SMALLER:
        size = (min(wide, picture.width), round(picture.height * min(wide, picture.width) / picture.width))
        file = BytesIO()
        picture.resize(size, Image.Resampling.LANCZOS).quantize(colours, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)  # fmt: skip
        if file.tell() <= MOST:
            break
    return file.getvalue()


def code_of(name: str) -> tuple[str, str, str]:
    """Return what a figure shows, the command for one's own weights, and the code."""
    text = (Path(__file__).parent / "figures" / f"{name}.py").read_text(encoding="utf-8")
    what, command = (ast.get_docstring(ast.parse(text)) or "").split("\n\n", 1)
    return what, command, text.split('"""', 2)[2].strip()


def page(found: dict[str, Image.Image | str]) -> str:
    """Write the gallery."""
    lines = [HEADING]
    for name, made in found.items():
        what, command, code = code_of(name)
        paper, _, shows = what.partition(": ")
        body = f"```text\n{made}\n```" if isinstance(made, str) else f"![{shows}](gallery/{name}.png)"
        lines += [f"## {paper}: {name.replace('_', ' ')}", shows[:1].upper() + shows[1:], body]
        lines += [f"```python\n{code}\n```", f"With your own weights:\n\n```sh\n{command}\n```"]
    return "\n\n".join(lines) + "\n"


HEADING = f"""# Gallery: the figures of the papers

Every figure is a file of at most 20 lines in `examples/figures/`, drawn here of the bundled model and its world ({WORLD.split(":")[1]} unseen pictures,
either background as likely); a test draws them again and compares the tables. `python examples/gallery.py` makes this page. Below each stands the command for your own
weights. The bundled model's second set of weights is its own in 3 bits, since it has no other."""


def options() -> argparse.ArgumentParser:
    """Say what can be typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", choices=[[], *FIGURES], help="figures; all by default")
    parser.add_argument("--model")
    parser.add_argument(
        "--store", help="what `clip-anatomy index PICTURES STORE --keep heads,mlps` made with the model"
    )
    parser.add_argument("--picture", action="append")
    parser.add_argument("--text", action="append", help="what is in each picture")
    parser.add_argument("--second", help="another model of the same architecture")
    parser.add_argument("--collection", help="where the store's pictures came from")
    parser.add_argument("--out", type=Path, help="folder; by default docs/gallery, and the page docs/gallery.md")
    return parser


def main() -> None:
    """Draw what was asked for."""
    given = options().parse_args()
    with demo() if given.model is None else own(given) as on:
        found = {name: drawn(name, on) for name in given.name or FIGURES}
    out = given.out or DOCS / "gallery"
    out.mkdir(exist_ok=True, parents=True)
    for name, made in found.items():
        if isinstance(made, str):
            print(made)
        else:
            (out / f"{name}.png").write_bytes(small(made))
    if given.out is None and not given.name:
        (DOCS / "gallery.md").write_text(page(found), encoding="utf-8")


@contextlib.contextmanager
def own(given: argparse.Namespace) -> Iterator[Setting]:
    """Open what was typed."""
    clip = ca.load(given.model)
    pictures, texts = given.picture or [], given.text or ["a photo"]
    texts = [*texts, *texts[-1:] * (len(pictures) - len(texts))]
    second = clip if given.second is None else ca.load(given.second)
    yield Setting(clip, ca.Store.open(given.store, clip), pictures, texts, second, given.collection or "")


if __name__ == "__main__":
    main()
