"""Synthetic pictures with complete ground truth: what the bundled model is trained and every method is measured on."""

from clip_anatomy.data.world.attribute_names import ATTRIBUTES, GROUPS
from clip_anatomy.data.world.attributes import SceneAttributes
from clip_anatomy.data.world.captions import Claim, truth
from clip_anatomy.data.world.scenes import Scenes, World

__all__ = ["ATTRIBUTES", "GROUPS", "Claim", "SceneAttributes", "Scenes", "World", "truth"]
