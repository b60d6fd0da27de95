"""Stores of the demo world that several test files read: made once a session, never written to."""

from pathlib import Path

import pytest
import torch

import clip_anatomy as ca

BALANCED = "world:400:val:balanced"
_made: dict[str, Path] = {}


def balanced(factory: pytest.TempPathFactory) -> Path:
    """Heads and MLPs of 400 pictures in which either background is as likely."""
    if BALANCED not in _made:
        torch.set_num_threads(1)
        place = factory.mktemp("balanced") / "store"
        ca.index(ca.load("demo", parity=False), BALANCED, place, keep="heads,mlps")
        _made[BALANCED] = place
    return _made[BALANCED]
