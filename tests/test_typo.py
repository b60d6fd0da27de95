"""Writing in pictures: prints that are what they say, attention on them by hand, heads held, figures that hold together, bad input."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from worlds import balanced

import clip_anatomy as ca
from clip_anatomy.cli.main import main
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.data.printed_labels import STYLES, print_word, printed
from clip_anatomy.edits.edited_clip import EditedClip
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.studies.find_typo import Attacked, _Probe, loss_bound, read_prints, right_answers  # pyright: ignore[reportPrivateUsage]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return ca.Store.open(balanced(tmp_path_factory))


@pytest.fixture(scope="module")
def repaired(store: Any):
    return ca.repair(store, cue="typo", label="count", also=["shape"], images=60, most=2, registers=1)


def test_a_print_changes_its_box_alone_and_is_the_same_again():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    seen = set()
    for seed in range(40):
        made, (left, top, right, bottom) = print_word(picture, "golden retriever", np.random.default_rng(seed))
        again, _ = print_word(picture, "golden retriever", np.random.default_rng(seed))
        assert made.tobytes() == again.tobytes()
        changed = (np.asarray(made) != np.asarray(picture)).any(-1)
        assert changed[top:bottom, left:right].mean() > 0.02
        changed[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = (
            False  # letters without a plate have an edge of one pixel
        )
        assert not changed.any()
        seen.add(made.tobytes())
    assert len(seen) > 30
    assert len(STYLES) > 3


def test_prints_are_on_the_patches_that_are_told_and_do_not_hang_on_the_others():
    clip = ca.load("demo", parity=False)
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    pixels = torch.stack([clip.preprocess.normalised(clip.preprocess.levels(one)) for one in pixels])
    names = ["a", "b", "c", "d"]
    made, where = printed(clip, pixels, ["fish"] * 4, names)
    alone, _ = printed(clip, pixels[2:3], ["fish"], ["c"])
    assert torch.equal(alone[0], made[2])
    side = clip.patch[0]
    changed = (made != pixels).any(1).unfold(1, side, side).unfold(2, side, side).any(-1).any(-1).flatten(1)
    assert (changed & where).sum() / where.sum() > 0.7
    assert (changed & ~where).sum() <= 2 * len(names)  # edges of one pixel


def test_attention_on_prints_equals_attention_by_hand():
    """T of a host's own attention module, class row, over patches."""
    host: Any = tiny.open_clip_model(layers=3, heads=2)
    clip = ca.load(host)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    where = torch.rand(5, 16, generator=torch.Generator().manual_seed(2)) < 0.3
    seen = []
    for block in host.visual.transformer.resblocks:
        block.attn.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(
                torch.nn.MultiheadAttention.forward(
                    module, args[0], args[0], args[0], need_weights=True, average_attn_weights=False
                )[1]
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        host.encode_image(pixels)
    expected = torch.stack(
        [((a := one[:, :, 0, 1:]) * where[:, None]).sum(-1) / a.sum(-1) for one in seen[-3:]], 1
    ).mean(0)
    batches = [
        Attacked(pixels[some], pixels[some], pixels[some], where[some], torch.zeros(len(pixels[some])).long())
        for some in (slice(2), slice(2, 5))
    ]
    probe = _Probe(clip, (), ca.Means.of(clip, pixels), torch.zeros(0, 5).long(), batches)
    attention, area = probe.attention()
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)
    assert area == pytest.approx(float(where.float().mean()))


def test_figures_are_those_of_the_edited_encoder_on_the_same_prints(store: Any, repaired: Any):
    found, clip = repaired.search, repaired.clip
    model = EditedClip(clip, repaired.edit)
    task, rows = found.tasks[0], found.split.test
    assert not set(found.split.validation) & set(rows)
    right, said, n = 0, 0, 0
    for one in read_prints(store, clip, task, found.words, rows):
        answers = (model.encode_image(one.attacked, normalize=True) @ task.texts.T).argmax(1)
        wanted = right_answers(store, task, rows)[n : n + len(answers)]
        assert bool((one.says != wanted).all())
        right, said, n = (
            right + int((answers == wanted).sum()),
            said + int((answers == one.says).sum()),
            n + len(answers),
        )
    held = repaired.effects[0]
    assert held.attacked.after == pytest.approx(right / n)
    assert held.called_printed.after == pytest.approx(said / n)
    assert all(one.effect == "rerun" and one.kind == "head" for one in repaired.edit.replacements)
    assert [one.name for one in held.others] == ["shape"]
    by_registers = next(one for one in repaired.effects if one.name == "1 register")
    tower = ca.registered(clip, 1).image_tower
    one = next(read_prints(store, clip, task, found.words, rows))
    assert not torch.allclose(tower.encode(one.attacked), clip.image_tower.encode(one.attacked), atol=1e-3)
    assert by_registers.attacked.before == held.attacked.before
    assert all(value == "" for value in [store.rows()[at].meta.get("digit", "") for at in rows])


def test_the_choice_helps_and_costs_no_more_than_allowed(repaired: Any):
    best, clean = repaired.search.before
    assert any(one.kept for one in repaired.search.tried)
    for one in repaired.search.tried:
        helps = one.attacked > best
        assert (
            (one.lost is not None) == (one.clean is not None) == helps
        )  # clean pictures are asked only where it helps
        assert one.kept == (helps and one.lost <= 0.02 + 1e-9)
        assert not helps or one.lost >= clean - one.clean - 1e-6  # a bound of the loss
        best = one.attacked if one.kept else best
    assert [one.head for one in repaired.search.tried if one.kept] == list(repaired.search.heads) or sorted(
        one.head for one in repaired.search.tried if one.kept
    ) == sorted(repaired.search.heads)
    order = [one.attention for one in repaired.search.tried]
    assert order == sorted(order, reverse=True)


def test_what_clean_pictures_lose_is_bounded_as_by_a_paired_z_interval():
    stats = pytest.importorskip("scipy.stats")
    labels = torch.zeros(2, 40).long()
    labels[1, :10] = -1
    generator = torch.Generator().manual_seed(0)
    before, now = torch.rand(2, 40, generator=generator) < 0.9, torch.rand(2, 40, generator=generator) < 0.7
    change = [(before[at] * 1.0 - now[at] * 1.0)[labels[at] >= 0].double().numpy() for at in range(2)]
    upper = [stats.norm.ppf(0.95, one.mean(), stats.sem(one)) for one in change]
    assert loss_bound(labels, before, now) == pytest.approx(max(upper), rel=1e-3)
    assert loss_bound(labels, before, before) == 0


def test_a_folder_without_labels_is_attacked_by_the_models_own_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "photos").mkdir()
    for at, one in enumerate(open_dataset("world:50:test")):
        Image.fromarray(one.data).save(tmp_path / "photos" / f"{at}.png")  # pyright: ignore[reportArgumentType]
    command = ["repair", str(tmp_path / "photos"), "--cue", "typo", "--classes", "bird, fish, star", "--select", "7.1", "--out", str(tmp_path / "out"), "--model", "demo"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr()
    assert "what the model itself says" in said.err
    assert "chance 33.3%" in said.out
    told = json.loads((tmp_path / "out" / "repair.json").read_text())
    assert told["schema"].startswith("clip-anatomy/repair/")
    assert told["heads"] == [[7, 1]]
    assert told["effects"][0]["right without a print"]["before"] == 1
    with Image.open(tmp_path / "out" / "repair.png") as figure:
        assert figure.width > 200
    assert ca.Edit.load(tmp_path / "out" / "edit.json").parts.spec == "7.1"


def test_odd_input_is_refused(store: Any, tmp_path: Path, repaired: Any):
    with pytest.raises(BadSpec, match="cue='typo'"):
        ca.repair(store, registers=1)
    with pytest.raises(BadSpec, match="9.0"):
        ca.repair(store, cue="typo", select="9.0", images=40)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no picture"):
        ca.repair(tmp_path / "empty", cue="typo", classes="a, b", out=tmp_path / "out")
    (tmp_path / "one").mkdir()
    for at, one in enumerate(open_dataset("world:40:test")):
        Image.fromarray(one.data).save(tmp_path / "one" / f"{at}.png")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="classes='a, b, c'"):
        ca.repair(tmp_path / "one", cue="typo", out=tmp_path / "out")
    assert "chance" in repaired.summary()
    assert replace(repaired, examples=()).figure().width > 100
