"""`bench speed`: ratios to the library's own `encode_image`, what it says where a step has no meaning, and a guard on the ratios."""

import json
from collections.abc import Iterator
from math import isnan
from typing import Any

import pytest
import torch
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.errors import BadInput
from clip_anatomy.evaluation import speed as module
from clip_anatomy.evaluation.speed import STEPS, SpeedTable, speed

pytestmark = pytest.mark.usefixtures("one_thread")

MOST = {  # three times what a busy machine shows with the shape checks of the tests; TextSpan and search have fixed work
    "decompose": 4.0, "tokens": 4.5, "moments": 4.5, "replace": 4.5, "heatmap": 5.0, "surgery": 5.0, "textspan": 60.0, "index": 60.0, "search": 5.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def table() -> SpeedTable:
    return speed(ca.load("demo"), pictures=4, rounds=2)


def test_no_step_is_three_times_what_it_usually_costs(table: SpeedTable) -> None:
    assert {row.step: row.least for row in table.rows if row.least > MOST[row.step]} == {}


def test_ratios_have_their_quartiles_and_say_what_they_were_measured_on(table: SpeedTable) -> None:
    assert [row.step for row in table.rows] == list(STEPS)
    for row in table.rows:
        assert 0 < row.least <= row.low <= row.ratio <= row.high
        assert row.step in table.summary()
    assert (table.rounds, table.pictures, table.partial) == (2, 4, False)
    assert "4 random pictures of 64 × 64 pixels, float32" in table.summary()
    assert json.loads(json.dumps(table.to_dict()))["rows"][0]["step"] == "decompose"


def test_the_verb_and_the_function_give_the_same_table(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", {"decompose": STEPS["decompose"]})
    monkeypatch.setattr(module, "SECONDS", 0.0)
    assert main(["bench", "speed", "--pictures", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["pictures"], said["rounds"], len(said["rows"])) == (1, 3, 1)
    same = ca.bench("demo", "speed", pictures=1)
    assert isinstance(same, SpeedTable)
    assert same.configuration == said["configuration"]


@pytest.mark.parametrize("given", [{"method": "raw"}, {"threshold": "mean"}, {"prompts": 1}, {"path": "photos"}])
def test_speed_refuses_what_belongs_to_protocols(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="speed"):
        ca.bench("demo", "speed", **given)


def test_a_live_model_is_compared_with_its_own_encode_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_clip_model()
    clip = ca.load(model)
    seen: list[torch.Tensor] = []

    def compared(given: Any) -> None:
        seen.append((given.plain(given.pixels) - model.encode_image(given.pixels)).abs().max())

    monkeypatch.setattr(module, "STEPS", {"compared": ("with the host", compared)})
    speed(clip, pictures=2, rounds=1)
    assert [float(one) for one in seen] == [0.0, 0.0]


def test_a_step_without_meaning_says_why_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Any) -> None:
        raise ca.errors.UnsupportedModel("no such part here")

    monkeypatch.setattr(module, "STEPS", {"refused": ("nothing", refused), "decompose": STEPS["decompose"]})
    first, second = speed(ca.load("demo"), pictures=1, rounds=1).rows
    assert isnan(first.ratio)
    assert first.why == "no such part here"
    assert second.ratio > 0


def test_ctrl_c_gives_the_rounds_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: Iterator[int] = iter(range(10))

    def stopped(_: Any) -> None:
        if next(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "STEPS", {"stopped": ("until somebody presses Ctrl-C", stopped)})
    table = speed(ca.load("demo"), pictures=1)
    assert (table.rounds, table.partial) == (2, True)
    assert "PARTIAL" in table.notes()[0]
