"""The golden set: every verb still gives the numbers that it gave before the code moved (tests/golden/make.py makes them)."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from golden.make import GROUPS, Made, group_numbers, stored, workshop

CLOSE = 1e-5
MODELS, LEAST, FEW = 3, 900, 10  # models, keys at least, empty arrays at most: an emptied file must not pass
RIGHTED = ("chefer_depth", "other_size", "whole", "prompts", "surgery_against")
"""What was wrong before, and must differ from what is stored: relevance over several layers (the rule is written out in
test_gradients.py), position vectors at another size (the hosts' own are asked in test_position_resampling.py), points for SAM
outside their mask (test_points.py), what several texts were compared with by surgery (test_contrast.py)."""
LOOSER = {"search/less/shares": 1e-4, "atlas/texts_margin": 1e-4}
"""Quotients of small numbers and differences of near ones, which another processor rounds otherwise (1.8e-5 was seen)."""
CHAOTIC = ("probe/sgd/accuracy", "probe/sgd/interval", "probe/sgd/by_group")
"""Three epochs of scikit-learn's SGD amplify rounding: the same code gives other figures on another processor (and did, before any
change). How well it learns is tested in test_probe.py."""
Both = tuple[dict[str, np.ndarray], dict[str, Any]]


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Path, dict[str, Made]]]:
    """As people run it: without the shape checks of conftest.py, which other tests make (and which refuse a size read from JSON)."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    with workshop() as folder:
        yield folder, {}
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def golden() -> Both:
    return stored()


def of_group(both: Both, group: str) -> Both:
    numbers, names = ({k: v for k, v in kept.items() if k.startswith(f"{group}/")} for kept in both)
    return numbers, names


def differences(found: Both, kept: Both) -> list[str]:
    """What is not as it was, a line each."""
    said: list[str] = []
    for new, old in zip(found, kept, strict=True):
        said += [f"{key}: not produced any more" for key in sorted(old.keys() - new.keys())]
        said += [f"{key}: produced, but not stored" for key in sorted(new.keys() - old.keys())]
    for key in sorted(found[0].keys() & kept[0].keys()):
        new, old = found[0][key], kept[0][key]
        if new.shape != old.shape:
            said.append(f"{key}: {new.shape} entries, {old.shape} before")
            continue
        if key.endswith(CHAOTIC):
            continue
        close = next((bound for name, bound in LOOSER.items() if key.endswith(name)), CLOSE)
        most = np.nan_to_num(np.abs(old), posinf=0, neginf=0).max(initial=0)
        if not np.allclose(new, old, rtol=close, atol=close * most, equal_nan=True):
            said.append(f"{key}: off by {np.nanmax(np.abs(new - old)) / max(most, 1e-30):.1e} of its largest entry")
    same = found[1].keys() & kept[1].keys()
    said += [
        f"{key}: {found[1][key]!r}, before {kept[1][key]!r}" for key in sorted(same) if found[1][key] != kept[1][key]
    ]
    return said


@pytest.mark.parametrize("group", GROUPS)
def test_as_before(group: str, made: tuple[Path, dict[str, Made]], golden: Both) -> None:
    kept = of_group(golden, group)
    assert any(kept), "nothing is stored for this group"
    said = differences(group_numbers(group, *made), kept)
    righted = [line for line in said if group.startswith("changes/") and any(word in line for word in RIGHTED)]
    assert len(righted) == sum(key.startswith("changes/") and any(word in key for word in RIGHTED) for key in kept[0])
    assert not (left := [line for line in said if line not in righted]), "\n".join(left)


def test_every_stored_key_is_of_a_group(golden: Both) -> None:
    keys = [*golden[0], *golden[1]]
    assert len(keys) == len(set(keys)) > LEAST
    assert len({name for name, _ in GROUPS.values()}) == MODELS
    assert not [key for key in keys if "/".join(key.split("/")[:2]) not in GROUPS]
    assert sum(not array.size for array in golden[0].values()) < FEW


def test_a_change_is_seen(golden: Both) -> None:
    kept = of_group(golden, "demo/text")
    assert differences(kept, kept) == []
    for at, key in ((0, "demo/text/embedding"), (1, "demo/text/ids")):
        for_less, for_more = copy.deepcopy(kept), copy.deepcopy(kept)
        del for_less[at][key]
        for_more[at]["demo/text/new"] = kept[at][key]
        assert differences(for_less, kept) == [f"{key}: not produced any more"]
        assert differences(for_more, kept) == ["demo/text/new: produced, but not stored"]
    changed = copy.deepcopy(kept)
    changed[0]["demo/text/embedding"][3] += 3e-5 * np.abs(kept[0]["demo/text/embedding"]).max()
    changed[1]["demo/text/words"][1] = "brid"
    assert [line.split(":")[0] for line in differences(changed, kept)] == ["demo/text/embedding", "demo/text/words"]
