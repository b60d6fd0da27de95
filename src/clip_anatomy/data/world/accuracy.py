"""How well a model knows the world: zero-shot accuracy per attribute, per tied group, and counting with a false label."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from clip_anatomy.data.world.attribute_names import ATTRIBUTES, BACKGROUNDS, COUNTS, GROUPS
from clip_anatomy.data.world.attributes import TIED, SceneAttributes
from clip_anatomy.data.world.captions import TEST_FRAMES, article, setting
from clip_anatomy.data.world.scenes import World

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's CLIP normalisation, as most CLIPs have it
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class WorldAccuracy:
    """Accuracies in 0–1 and the number of pictures behind each.

    Attributes:
        accuracy: per attribute; `count with a true digit`, `… a false digit`, `… no digit` are on separate draws.
        pictures: how many pictures each accuracy is measured on.
        groups: accuracy per group of the tied shapes, on a draw where both backgrounds are as likely.
        worst_group: the lowest of them; group_mean: their mean; tied_natural: their mean weighted as they naturally occur.
    """

    accuracy: dict[str, float]
    pictures: dict[str, int]
    groups: dict[str, float]
    worst_group: float
    group_mean: float
    tied_natural: float

    def table(self) -> str:
        """Return the report as aligned text."""
        lines = [f"{'attribute':<26}{'accuracy':>9}{'pictures':>10}"]
        lines += [f"{name:<26}{100 * a:>8.1f}%{self.pictures[name]:>10}" for name, a in self.accuracy.items()]
        lines += ["", f"{'shape, per tied group':<26}{'accuracy':>9}{'pictures':>10}"]
        lines += [f"{name:<26}{100 * a:>8.1f}%{self.pictures[name]:>10}" for name, a in self.groups.items()]
        lines += [
            f"{'worst group':<26}{100 * self.worst_group:>8.1f}%",
            f"{'mean over groups':<26}{100 * self.group_mean:>8.1f}%   ({100 * (self.group_mean - self.worst_group):+.1f})",
            f"{'mean, natural draw':<26}{100 * self.tied_natural:>8.1f}%   ({100 * (self.tied_natural - self.worst_group):+.1f})",
        ]
        return "\n".join(lines)

    def json(self) -> dict[str, object]:
        """Return the report as plain values."""
        return asdict(self)


def prompts(attribute: str) -> list[list[str]]:
    """Return for each value of an attribute its test prompts; none of them occurs in training captions.

    Args:
        attribute: a key of ATTRIBUTES, or "digit".
    """
    if attribute == "digit":
        phrases = [f"the number {digit}" for digit in (1, 2, 3, 4)]
    elif attribute == "shape":
        phrases = [article(name) for name in ATTRIBUTES["shape"]]
    elif attribute == "background":
        phrases = [f"an object {setting(code)}" for code in range(len(BACKGROUNDS))]
    elif attribute == "position":
        phrases = [f"an object in the {name}" for name in ATTRIBUTES["position"]]
    elif attribute == "count":
        phrases = [f"{name} object" + ("s" if at else "") for at, name in enumerate(COUNTS)]
    else:
        phrases = [article(f"{name} object") for name in ATTRIBUTES[attribute]]
    return [[frame.format(phrase) for frame in TEST_FRAMES] for phrase in phrases]


def target(facts: SceneAttributes, attribute: str) -> np.ndarray:
    """Return the code of an attribute per picture, −1 where it is not asked.

    Shape, colour, texture, background, size and count are asked of pictures of one kind of object, position of
    pictures of one object, the digit where one is printed.
    """
    if attribute in ("shape", "colour", "texture"):
        code = getattr(facts, attribute)[:, 0]
    elif attribute in ("count", "digit"):
        code = getattr(facts, attribute) - 1
    else:
        code = getattr(facts, attribute)
    return np.where(facts.mixed, -1, code) if attribute != "digit" else code


def pixels(images: np.ndarray) -> Tensor:
    """Turn 8-bit pictures into the model's input, normalised, [image, 3, row, col]."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def classifier(encode_text: Callable[[list[str]], Tensor], attribute: str) -> Tensor:
    """Return one unit vector per value of an attribute: the mean of its prompts' unit embeddings, [text, embed]."""
    sets = prompts(attribute)
    embedded = encode_text([prompt for row in sets for prompt in row]).float()
    embedded = embedded / embedded.norm(dim=-1, keepdim=True)
    mean = embedded.reshape(len(sets), len(TEST_FRAMES), -1).mean(dim=1)
    return mean / mean.norm(dim=-1, keepdim=True)


def _share(right: np.ndarray) -> float:
    """Return the share of right answers, NaN where nothing was asked (a measurement on very few pictures)."""
    return float(right.mean()) if len(right) else float("nan")


def _embed(encode_image: Callable[[Tensor], Tensor], world: World, indices: np.ndarray, batch: int) -> Tensor:
    parts = [
        encode_image(pixels(world.batch(indices[at : at + batch]).images)).float()
        for at in range(0, len(indices), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def evaluate(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], Tensor],
    n: int = 2000,
    *,
    seed: int = 0,
    split: str = "test",
    batch: int = 200,
) -> WorldAccuracy:
    """Measure a model on unseen pictures of the world with unseen prompts.

    Args:
        encode_image: normalised pixels [image, 3, 64, 64] → [image, embed].
        encode_text: texts → [text, embed].
        n: pictures of the natural draw; the groups and the false labels take as many again from the balanced draw.
        seed: the world's seed.
        split: "val" while developing, "test" for the last word.
        batch: pictures at a time.

    Returns:
        The report.
    """
    natural = World(seed=seed, split=split, length=n)
    facts = natural.facts(np.arange(n))
    images = _embed(encode_image, natural, np.arange(n), batch)
    accuracy, count = {}, {}
    heads = {name: classifier(encode_text, name) for name in (*ATTRIBUTES, "digit")}
    for name, texts in heads.items():
        wanted = target(facts, name)
        answerable = wanted >= 0
        right = (images @ texts.T).argmax(dim=1).numpy()[answerable] == wanted[answerable]
        accuracy[name], count[name] = _share(right), int(answerable.sum())

    # The balanced draw: 8 groups as likely, true and false labels as likely.
    fair = World(seed=seed, split=split, balanced=True, length=20 * n)
    pool = fair.facts(np.arange(20 * n))
    tied = np.flatnonzero(pool.group >= 0)[: n // 2]
    misled = np.flatnonzero(~pool.mixed & (pool.digit > 0) & (pool.group < 0))[: n // 3]
    untold = np.flatnonzero(~pool.mixed & (pool.digit == 0) & (pool.group < 0))[: n // 6]
    images = _embed(encode_image, fair, tied, batch)
    right = (images @ heads["shape"].T).argmax(dim=1).numpy() == pool.shape[tied, 0]
    groups = {}
    for code, name in enumerate(GROUPS):
        here = pool.group[tied] == code
        groups[name], count[name] = _share(right[here]), int(here.sum())
    indices = np.concatenate([misled, untold])
    some = pool[indices]
    images = _embed(encode_image, fair, indices, batch)
    right = (images @ heads["count"].T).argmax(dim=1).numpy() == some.count - 1
    for name, rows in {
        "count with a true digit": some.digit == some.count,
        "count with a false digit": (some.digit > 0) & (some.digit != some.count),
        "count with no digit": some.digit == 0,
    }.items():
        accuracy[name], count[name] = _share(right[rows]), int(rows.sum())
    values = np.array(list(groups.values()))
    weights = np.tile([TIED, 1 - TIED], len(GROUPS) // 2)
    return WorldAccuracy(
        accuracy=accuracy,
        pictures=count,
        groups=groups,
        worst_group=float(values.min()),
        group_mean=float(values.mean()),
        tied_natural=float((values * weights).sum() / weights.sum()),
    )
