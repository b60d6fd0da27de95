"""Which of open_clip's configurations open, and how far down each tower is split: writes docs/models.md.

    python bench/models.py --out docs/models.md                    # reads every name and shape on the meta device: a minute
    python bench/models.py --out docs/models.md --measure 1e9      # real random instances up to so many parameters: proof, sums, cost

The page is written after each model, and figures that it has are kept (`--again` measures anew): stopped, the same command goes on.
The smallest models come first; one is in memory at a time.

Foreign text towers need their library's config, which open_clip asks the network for: here they stand as that library makes them.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
import transformers

import clip_anatomy as ca
from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.open_clip_models import open_clip_model
from clip_anatomy.loading.open_clip_towers import towers_of
from clip_anatomy.towers.split_kind import split_kind

PAGE = """# Models

{opened} of open_clip's {all} configurations open. Every model is split exactly as far down as its computation is linear once attention
weights and normalisation scales are frozen at their values; whatever is not linear is a part of its own. This page is made by
`python bench/models.py --out docs/models.md`; `clip-anatomy check MODEL` prints the same for one model, and proves it.

- **every block**: each head and each MLP of each layer has its part. Through an attention pool (SigLIP, PE-Core, CoCa) the pool's
  attention and the norm in front of it are frozen, so heads of all layers sum to the embedding; the MLP behind the pool is one more part.
- **the mean of places**: each place of the last map has its exact share; the trunk that made it runs in its own library. What needs heads
  says what to type instead.
- **one part**: where an MLP stands behind the pooling (ConvNeXt-large-d; the RoBERTa, XLM-RoBERTa and mT5 towers of open_clip's configurations),
  everything that the blocks wrote passes through it: its output is the whole embedding. With a linear projection BERT's and RoBERTa's post-LN
  blocks are split (CoCa's RoBERTa), as NLLB's are. The image side never depends on the text side.

proof: the larger of both towers' relative differences from the host in double precision; sum: the parts against the host's embedding;
cost: `decompose`, and heads × tokens toward ten texts, over the host's own `encode_image`, one image. Where they are empty the
configuration was read on the meta device (every tensor's name and shape) and not run.

{table}
"""
TRANSFORMERS = "<!-- transformers: begin -->"  # what bench/models_transformers.py writes behind the table
FOREIGN: dict[str, Callable[[], Any]] = {
    "roberta-base": transformers.RobertaConfig,
    "xlm-roberta-base": lambda: transformers.XLMRobertaConfig(vocab_size=250002),
    "xlm-roberta-large": lambda: transformers.XLMRobertaConfig(
        vocab_size=250002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "google/mt5-base": lambda: transformers.MT5Config(d_model=768, d_ff=2048, num_layers=12, num_heads=12),
    "google/mt5-xl": lambda: transformers.MT5Config(d_model=2048, d_ff=5120, num_layers=24, num_heads=32),
    "facebook/nllb-200-distilled-600M": lambda: transformers.M2M100Config(vocab_size=256206),
    "facebook/nllb-200-distilled-1.3B": lambda: transformers.M2M100Config(
        vocab_size=256206, encoder_layers=24, encoder_ffn_dim=8192
    ),
}


@contextmanager
def offline() -> Iterator[None]:
    """Answer open_clip's question for a foreign text tower's config from here."""
    with patch("open_clip.hf_model.AutoConfig.from_pretrained", lambda name, **_: FOREIGN[name]()):
        yield


def measured(config: dict[str, Any], rounds: int = 4) -> list[str]:
    """Open a real random instance: proof, sums, and what the split costs beside the host's own forward (no rounds: not timed)."""
    torch.manual_seed(0)
    model = open_clip_model(config).eval()
    for parameter in model.parameters():
        if not parameter.isfinite().all():  # CoCa leaves one tensor as memory was
            torch.nn.init.normal_(parameter, std=0.02)
    clip = ca.load(model)
    assert clip.proof is not None
    size = model.visual.image_size  # not grid × patch: at 384 pixels a patch of 14 leaves a remainder
    rows, cols = size if isinstance(size, tuple | list) else (size, size)
    pixels, texts = torch.randn(1, 3, rows, cols), torch.randn(10, clip.vision.embed)
    residue = float(ca.decompose(clip, pixels).residue.max())
    actions = (
        lambda: model.encode_image(pixels),
        lambda: ca.decompose(clip, pixels),
        lambda: ca.decompose(clip, pixels, texts=texts).tokens(texts),
    )
    best = [float("inf")] * len(actions)  # of rounds in turn: other work on the machine only ever adds
    with torch.no_grad():
        for _ in range(rounds):
            for at, action in enumerate(actions):
                start = time.perf_counter()
                action()
                best[at] = min(best[at], time.perf_counter() - start)
    cost = [f"{took / best[0]:.2f}" for took in best[1:] if rounds]
    return [f"{clip.proof.largest:.0e}", f"{residue:.0e}", " / ".join(cost)]


def row(name: str) -> tuple[int, list[str]]:
    """One configuration on the meta device: parameters, and its towers, the kind of split of each, its size."""
    with offline(), torch.device("meta"):
        model = open_clip_model(open_clip.get_model_config(name)).eval()
    count = sum(p.numel() for p in model.parameters())
    try:
        image, text = towers_of(model)
    except UnsupportedModel as error:
        return count, [name, f"{count / 1e6:.0f} M", f"refused: {str(error).split('. ')[0]}", "", "", "", ""]
    return count, [name, f"{count / 1e6:.0f} M", split_kind(image), split_kind(text), "", "", ""]


def held(page: Path | None) -> dict[str, list[str]]:
    """Figures of a page that was made before, by configuration."""
    if page is None or not page.exists():
        return {}
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
    return {one[0]: one[4:] for one in cells if len(one) == 7 and one[4] not in ("", "---", "proof")}


def write(page: Path | None, rows: list[list[str]]) -> None:
    """Write the whole page, by name."""
    head = ["configuration", "parameters", "image tower", "text tower", "proof", "sum", "cost (heads / tokens)"]
    table = "\n".join(f"| {' | '.join(one)} |" for one in (head, ["---"] * len(head), *rows))
    opened = sum("refused" not in one[2] for one in rows)
    if page is not None:
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        section = f"\n{before[before.find(TRANSFORMERS) :]}" if TRANSFORMERS in before else ""
        page.write_text(PAGE.format(opened=opened, all=len(rows), table=table) + section, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=float, default=0.0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--models", nargs="*", default=open_clip.list_models())
    given = parser.parse_args()
    known = {} if given.again else held(given.out)
    counts, rows = zip(*(row(name) for name in given.models), strict=True)
    for one in rows:
        one[4:] = known.get(one[0], one[4:])
        print(" | ".join(one), flush=True)
    write(given.out, list(rows))
    print(f"{sum('refused' not in one[2] for one in rows)} of {len(rows)} open", flush=True)
    for count, one in sorted(zip(counts, rows, strict=True), key=lambda pair: pair[0]):
        if count <= given.measure and not one[4] and "refused" not in one[2]:
            with offline():
                one[4:] = measured(open_clip.get_model_config(one[0]))
            write(given.out, list(rows))
            print(" | ".join(one), flush=True)


if __name__ == "__main__":
    main()
