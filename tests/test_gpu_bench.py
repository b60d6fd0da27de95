"""`bench/gpu.py`, which waits for a GPU: its very code, on tiny models and the processor."""

import json
import sys
from typing import Any

import pytest
import torch
from modules import BENCH, module_at

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench() -> Any:
    return module_at(BENCH / "gpu.py")


@pytest.mark.parametrize(
    "part",
    [
        "ceilings",
        "precision",
        "speed",
        "textspan",
        "search",
        "overlap",
        pytest.param("compiled", marks=pytest.mark.slow),
    ],
)
def test_every_part_runs_on_the_processor(bench: Any, part: str) -> None:
    found = bench.PARTS[part](bench.Setting(torch.device("cpu"), True, ("small",), 2, 1))
    assert json.loads(json.dumps(found))
    if part == "precision":
        assert all(1e-6 < row["heads"] < 0.05 and row["sum_of_parts"] < 0.05 for row in found.values())
    if part == "search":
        assert found["same"]


def test_it_says_plainly_that_there_is_no_gpu(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert bench.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("no GPU here")
    assert json.loads(said.splitlines()[-1]) == {"bench": "gpu", "device": None}
