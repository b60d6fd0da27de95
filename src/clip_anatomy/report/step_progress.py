"""Progress of work in several steps: what is being done, its rate and the remaining time."""

from clip_anatomy.progress import shown as stages

__all__ = ["stages"]
