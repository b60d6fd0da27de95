"""Train the bundled CLIP on the demo world: `python -m training.train` (seeded, resumes from its checkpoint).

Stage 1 teaches the image tower the attributes (cross-entropy heads on its class token; a prototype trained contrastively alone was
still near chance on shape after 1,000 steps). Stage 2 aligns the text tower and the two projections to it. Stage 3
trains both towers contrastively while the heads' share of the loss falls to zero; the last stretch is a plain CLIP's.
The learning rate warms up, stays, and falls linearly to zero over the last part.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_anatomy.data.world.accuracy import MEAN, STD, WorldAccuracy, evaluate
from clip_anatomy.loading.word_tokenizer import WordTokenizer
from training.data import CLASSES, OUTLINE, Batch, Batches, stream
from training.towers import class_token, text_embedding

HERE = Path(__file__).parent
CONFIG = HERE.parent / "src" / "clip_anatomy" / "loading" / "demo" / "open_clip_config.json"


@dataclass(frozen=True)
class Towers:
    """The two forward passes, compiled or not."""

    image: Callable[[Any, Tensor], Tensor] = class_token
    text: Callable[[Any, Tensor], Tensor] = text_embedding


def build(config: Path = CONFIG) -> Any:
    """Return an untrained model of the shipped configuration."""
    return open_clip.CLIP(**json.loads(config.read_text(encoding="utf-8"))["model_cfg"])


def contrastive_loss(image: Tensor, text: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's symmetric cross-entropy with several right answers: targets are uniform over the true pairs.

    Args:
        image: [image, embed], not normalised.
        text: [text, embed].
        true: [image, text]; every row and every column holds at least one True.
        scale: the logit scale (already exponentiated).
    """
    logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    true = true.float()
    rows = -(true / true.sum(dim=1, keepdim=True) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    cols = -(true / true.sum(dim=0, keepdim=True) * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (rows + cols) / 2


def attribute_loss(heads: nn.ModuleDict, token: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of the attribute heads plus that of the outline head.

    Pictures where an attribute is not asked do not count.
    """
    losses = {
        name: F.cross_entropy(head(token).float(), labels[name], ignore_index=-1, reduction="sum")
        / (labels[name] >= 0).sum().clamp(min=1)
        for name, head in heads.items()
    }
    return torch.stack([losses[name] for name in CLASSES]).mean() + losses["outline"]


def rate(step: int, args: argparse.Namespace) -> float:
    """Return the learning rate of a step: warm-up, plateau, linear fall."""
    fall = args.steps - int(args.fall * args.steps)
    down = (args.steps - step) / max(args.steps - fall, 1)
    return args.lr * min(1.0, (step + 1) / args.warmup, max(down, 0.0))


def loss_of(
    model: Any, heads: nn.ModuleDict, batch: Batch, step: int, *, args: argparse.Namespace, towers: Towers
) -> dict[str, Tensor]:
    """Return the losses of a step: `attributes`, `contrastive` and what is minimised, `total`."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    token = towers.image(model, (batch.images.permute(0, 3, 1, 2).float() / 255 - mean) / std)
    zero = torch.zeros(())
    share = 1.0 if step < args.stage3 else max(0.0, 1 - (step - args.stage3) / max(args.release - args.stage3, 1))
    attributes = attribute_loss(heads, token, batch.labels) if share > 0 else zero
    contrastive = zero
    if step >= args.stage2:
        token = token.detach() if step < args.stage3 else token
        text = towers.text(model, batch.tokens)
        contrastive = contrastive_loss(token @ model.visual.proj, text, batch.true, model.logit_scale.exp())
    return {"attributes": attributes, "contrastive": contrastive, "total": share * attributes + contrastive}


def measure(model: Any, pictures: int, split: str = "val") -> WorldAccuracy:
    """Evaluate the model in float32 on the world's validation split."""
    tokenizer = WordTokenizer.bundled()
    model.eval()
    report = evaluate(model.encode_image, lambda texts: model.encode_text(tokenizer(texts)), pictures, split=split)
    model.train()
    return report


def groups_of(model: nn.Module, heads: nn.Module) -> tuple[list[str], list[dict[str, Any]]]:
    """Return parameter names in the optimiser's order and its two groups: matrices decay, vectors do not."""
    named = [*((f"model.{k}", p) for k, p in model.named_parameters())]
    named += [(f"heads.{k}", p) for k, p in heads.named_parameters()]
    matrices, vectors = [x for x in named if x[1].ndim >= 2], [x for x in named if x[1].ndim < 2]
    return [name for name, _ in matrices + vectors], [
        {"params": [p for _, p in matrices]},
        {"params": [p for _, p in vectors], "weight_decay": 0.0},
    ]


def save(run: Path, model: nn.Module, heads: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write weights and optimiser state as one safetensors file, whole or not at all."""
    names = groups_of(model, heads)[0]
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    for at, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{names[at]}/{k}": torch.as_tensor(v) for k, v in state.items()}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, run / "part", {"step": str(step)})
    (run / "part").replace(run / "checkpoint.safetensors")


def resume(run: Path, model: nn.Module, heads: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint where there is one; return the step to go on from. A head that it lacks starts afresh."""
    path = run / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(under("model."))
    heads.load_state_dict(under("heads."), strict=False)
    index = {name: at for at, name in enumerate(groups_of(model, heads)[0])}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in under("optimiser.").items():
        name, part = key.rsplit("/", 1)
        state.setdefault(index[name], {})[part] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def train(args: argparse.Namespace) -> None:
    """Train from the last checkpoint to the last step, writing a log line every `--every` steps."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    run = Path(args.run)
    run.mkdir(parents=True, exist_ok=True)
    model = build()
    width = model.visual.proj.shape[0]
    heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in (CLASSES | {"outline": OUTLINE}).items()})
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(groups_of(model, heads)[1], lr=args.lr, betas=(0.9, 0.98), weight_decay=args.decay)
    start = resume(run, model, heads, optimiser)
    towers = Towers()
    if args.compile:
        towers = Towers(torch.compile(class_token, dynamic=False), torch.compile(text_embedding, dynamic=False))
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if args.bfloat16 else nullcontext()
    sums: dict[str, float] = {}
    began, since = time.time(), start
    print(
        f"from step {start} to {args.steps}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )
    for step, batch in enumerate(
        stream(Batches(args.seed, args.images, args.captions, start, args.steps), args.workers), start
    ):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, args)
        with cast:
            losses = loss_of(model, heads, batch, step, args=args, towers=towers)
        optimiser.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        done = step + 1
        if done % args.every == 0 or done == args.steps:
            line: dict[str, object] = {
                "step": done,
                "seconds": round((time.time() - began) / (done - since), 3),
                "lr": rate(step, args),
            }
            line |= {name: round(total / (done - since), 4) for name, total in sums.items()}
            if done > args.stage2 and (done % args.measure == 0 or done == args.steps):
                report = measure(model, args.pictures)
                line |= {"accuracy": {k: round(v, 4) for k, v in report.accuracy.items()}}
                line |= {"worst_group": round(report.worst_group, 4), "group_mean": round(report.group_mean, 4)}
                line |= {"scale": round(float(model.logit_scale.detach().exp()), 2)}
            print(json.dumps(line), flush=True)
            with (run / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            save(run, model, heads, optimiser, done)
            sums, began, since = {}, time.time(), done


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the recipe of the shipped weights."""
    parser = argparse.ArgumentParser(description="Train the bundled CLIP on the demo world.")
    parser.add_argument("--run", default=str(HERE / "run"), help="folder of the checkpoint and the log")
    parser.add_argument("--steps", type=int, default=7_800)
    parser.add_argument("--stage2", type=int, default=1500, help="first step of the text tower's alignment")
    parser.add_argument("--stage3", type=int, default=2000, help="first step of contrastive training of both towers")
    parser.add_argument("--release", type=int, default=5200, help="step at which the attribute heads are gone")
    parser.add_argument("--images", type=int, default=64, help="pictures a step")
    parser.add_argument("--captions", type=int, default=2, help="captions a picture")
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument(
        "--fall", type=float, default=0.427, help="share of the steps over which the rate falls to zero"
    )
    parser.add_argument("--decay", type=float, default=0.05, help="weight decay")
    parser.add_argument("--every", type=int, default=100, help="steps between log lines and checkpoints")
    parser.add_argument("--measure", type=int, default=500, help="steps between measurements on the validation split")
    parser.add_argument("--pictures", type=int, default=600, help="pictures a measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile the step")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(arguments())
