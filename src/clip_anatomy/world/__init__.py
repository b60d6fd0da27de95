"""Synthetic pictures with complete ground truth: what the bundled model is trained and every method is measured on."""

from clip_anatomy.world.captions import Claim, truth
from clip_anatomy.world.dataset import Scenes, World
from clip_anatomy.world.facts import Facts
from clip_anatomy.world.names import ATTRIBUTES, GROUPS

__all__ = ["ATTRIBUTES", "GROUPS", "Claim", "Facts", "Scenes", "World", "truth"]
