"""The published algorithms, transcribed in `bench/published.py`, compute what ours do: each on a small random model."""

from typing import Any

import pytest
import torch
from modules import BENCH, module_at

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench() -> Any:
    return module_at(BENCH / "against_published.py")


@pytest.mark.parametrize("job", ["heads", "tokens", "textspan", "second_order", "neuron_heads", "surgery", "fixlip"])
def test_the_published_algorithm_and_ours_agree(bench: Any, job: str) -> None:
    case = bench.JOBS[job][1](True)
    with torch.no_grad():
        ours, theirs = (case.ours(), case.published()) if case.compared is None else case.compared()
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-3, atol=2e-5 * float(theirs.abs().max()))


def test_every_job_is_tried_here(bench: Any) -> None:
    assert set(bench.JOBS) == {"heads", "tokens", "textspan", "second_order", "neuron_heads", "surgery", "fixlip"}
