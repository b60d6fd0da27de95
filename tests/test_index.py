"""The walk: bad images, stops, repairs, full disks, two writers, memory, batch sizes, and the command line over it."""

import gc
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded, noise, written
from PIL import Image
from stores import clip, photos, saved

from clip_anatomy import progress
from clip_anatomy.errors import BadImage, BadInput
from clip_anatomy.images.batch_size import BatchSize, is_out_of_memory, split_when_out_of_memory
from clip_anatomy.split.basis import basis_of
from clip_anatomy.store.head_coordinates import image_arrays
from clip_anatomy.store.index import index
from clip_anatomy.store.manifest import Manifest
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "photos", "saved"]  # fixtures


def test_one_bad_image_is_a_row_and_the_others_are_done(clip, photos, tmp_path):
    written(photos / "03b.png", b"")
    written(photos / "07b.jpg", b"not a picture")
    (photos / "09b.jpg").write_bytes(encoded(noise(64, 64), "JPEG")[:900])
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    done = index(clip, photos, tmp_path / "s", batch=4)
    assert (done.done, done.failed) == (20, 4)
    store = Store.open(tmp_path / "s")
    bad = store.rows(status="error")
    assert [row.id for row in bad] == ["03b.png", "07b.jpg", "09b.jpg", "gone.jpg"]
    assert ["empty" in bad[0].error, "not a picture" in bad[1].error, "no such file" in bad[3].error] == [True] * 3
    assert {row.index for row in bad} == {-1}
    assert [name for name, _ in done.errors] == [row.id for row in bad]
    assert len(store.rows()) == 20
    assert verify(tmp_path / "s").holds
    # Repaired, they are taken by the next run; those that are still bad stay errors, and nothing else is done again.
    written(photos / "03b.png", encoded(noise(70, 40), "PNG"))
    done = index(clip, photos, tmp_path / "s")
    assert (done.done, done.failed, done.known, done.images) == (1, 3, 20, 21)
    store = Store.open(tmp_path / "s")
    assert store.rows()[20].id == "03b.png"
    assert store.rows()[20].error == ""
    assert torch.equal(store.heads(1, 1, [20])[0], index_alone(clip, photos / "03b.png", tmp_path))


def index_alone(clip, path, tmp_path):
    index(clip, [path], tmp_path / "alone")
    return Store.open(tmp_path / "alone").heads(1, 1)[0]


def test_batches_of_any_size_and_any_number_of_threads_give_the_same(clip, photos, tmp_path):
    for batch, workers in ((1, 1), (7, 2), (64, 3)):
        index(clip, photos, tmp_path / f"s{batch}", batch=batch, workers=workers)
    one, seven, many = (Store.open(tmp_path / f"s{batch}") for batch in (1, 7, 64))
    for other in (seven, many):
        assert torch.allclose(one.heads(1, 0).float(), other.heads(1, 0).float(), atol=1e-3, rtol=2e-3)
        assert [row.id for row in one.rows()] == [row.id for row in other.rows()]


def test_the_same_image_is_never_there_twice(clip, photos, tmp_path):
    names = [f"{at:02d}.png" for at in (3, 4, 3, 5, 3, 4)]
    (photos / "list.txt").write_text("\n".join(names))
    done = index(clip, photos / "list.txt", tmp_path / "s", batch=2, commit_seconds=0.0)
    assert (done.done, done.known) == (3, 3)
    assert [row.id for row in Store.open(tmp_path / "s").rows()] == ["03.png", "04.png", "05.png"]


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(real.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_halving_keeps_the_order_and_gives_up_at_one_image(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # a second each, with all that tests import
    shrunk = []

    def step(pixels):
        if len(pixels) > 3:
            raise MemoryError
        return pixels[:, 0, 0, 0].tolist()

    pixels = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    parts = split_when_out_of_memory(step, pixels, shrunk.append)
    assert [value for part in parts for value in part] == list(range(10))
    assert shrunk == [10, 5, 5]

    def never(pixels):
        raise MemoryError

    with pytest.raises(BadInput, match="not even one image"):
        split_when_out_of_memory(never, pixels, shrunk.append)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (lambda n: 1.0 + 0.1 * n, 64),  # the overhead of a batch dominates
        (lambda n: 0.1 * n, 4),  # nothing to gain: the smallest
        (lambda n: 0.1 * n * (1 if n <= 16 else 2), 4),
        (lambda n: 0.3 + 0.1 * n if n <= 16 else 0.4 * n, 16),
        (lambda n: 0.9 * n, 4),  # a slow model: does not try ever larger ones
    ],
)
def test_the_batch_size_is_found_on_real_work(seconds, best):
    size = BatchSize.on(torch.device("cpu"))
    for _ in range(20):
        size.record(3, 99.0)  # a short last batch says nothing
        size.record(size.current, seconds(size.current))
    assert size.settled == best
    size.ran_out(best)
    assert size.current == best // 2
    assert BatchSize.on(torch.device("cpu"), 5).current == 5


def test_the_size_found_is_kept_for_the_next_run(clip, tmp_path):
    done = index(clip, "world:260:test", tmp_path / "s")  # two batches of each size are 248
    assert done.batch in (4, 8, 16, 32, 64)
    assert index(clip, "world:262:test", tmp_path / "s").batch == done.batch
    with pytest.raises(BadInput, match="batch=0"):
        index(clip, "world:3", tmp_path / "s", batch=0)


def test_numbers_that_are_not_finite_are_not_kept(clip):
    manifest = Manifest.of(clip, (0, 1), ("heads", "mlps"), "centered")
    pixels = torch.randn(4, 3, 32, 32)
    pixels[2] = float("nan")
    found = image_arrays(clip, basis_of(clip.image_tower), manifest, pixels)
    assert found.finite.tolist() == [True, True, False, True]
    assert {name: len(a) if name == "norm" else np.isfinite(a).all() for name, a in found.usable().items()} == {
        "heads": True, "embedding": True, "norm": 3, "mlps": True,
    }  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads a process's peak as Linux tells it")
def test_memory_does_not_grow_with_the_number_of_images(clip, tmp_path):
    """What is not committed yet is bounded, and so is what is decoded ahead."""
    index(clip, "world:96:train", tmp_path / "warm", batch=32)
    grown = []
    for count in (300, 1100):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = peak()
        index(clip, f"world:{count}:train", tmp_path / str(count), batch=32, commit_seconds=0.3)
        grown.append(peak() - before)
    assert grown[1] - grown[0] < 15_000  # kB; the pictures' pixels as float32 are 39 MB more


def peak():
    """Peak resident memory in kB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_progress_counts_every_image_and_ends_with_the_moments(clip, photos, tmp_path):
    told: list[tuple[str, int, int | None]] = []
    index(clip, "world:120:test", tmp_path / "s", batch=16, progress=lambda *step: told.append(step))
    assert told[-1] == ("moments", 120, 120)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    written(photos / "bad.png", b"")
    index(clip, photos, tmp_path / "t")
    index(clip, photos, tmp_path / "t", progress=lambda *step: told.append(step))
    assert told[-1] == ("moments (20 known, 1 not used)", 21, 21)


def test_a_line_of_progress_says_how_long_it_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    rate = progress._Rate()
    assert rate.line("images", 0, 100_000) == "images: 0 of 100,000"
    now[0] = 4.0
    assert rate.line("images", 10, None) == "images: 10, 2.5/s"
    assert (
        rate.line("images (2 not used)", 10, 100_000) == "images (2 not used): 10 of 100,000, 2.5/s, 11 h 07 min left"
    )
    assert rate.line("images (2 not used)", 10, 160) == "images (2 not used): 10 of 160, 2.5/s, 60 s left"
    assert rate.line("images", 10, 460) == "images: 10 of 460, 2.5/s, 3 min left"
    assert rate.line("moments (2 not used)", 10, 10) == "moments (2 not used): 10 of 10"


def test_results_say_what_they_hold(clip, photos, tmp_path):
    done = index(clip, photos, tmp_path / "s")
    assert re.fullmatch(r".*/s: 20 images \(20 images added\) in \d+ s", repr(done))
    assert json.loads(json.dumps(done.to_dict()))["images"] == 20
    store = Store.open(tmp_path / "s")
    assert "20 images by" in repr(store)
    assert json.loads(json.dumps(store.to_dict()))["heads"] == 2
    assert repr(verify(tmp_path / "s")).endswith("all is well")


# ---- the command line


def test_the_verb_index_and_the_verb_verify(saved, photos, tmp_path, capsys):
    from clip_anatomy.cli.index import index as verb
    from clip_anatomy.cli.verify import verify as check

    written(photos / "bad.png", b"")
    store = str(tmp_path / "s")
    assert verb(str(photos), store, model=str(saved), layers="last:1", as_json=True) == 0
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert (said["done"], said["failed"], said["images"]) == (20, 1, 20)
    assert "not used: bad.png" in told.err
    assert verb(str(photos), store, strict=True) == 1  # the model is the store's own
    told = capsys.readouterr()
    assert "20 images (0 images added, 20 known, 1 not used)" in told.out
    assert check(Path(store), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True
    shutil.rmtree(next((Path(store) / "blocks").iterdir()) / "norm")
    assert check(Path(store)) == 1
    told = capsys.readouterr()
    assert "WRONG" in told.out
    assert "delete the store and index again" in told.err
    with pytest.raises(BadInput, match="there is no"):
        verb("nowhere", store)


def test_nothing_that_can_be_used_is_an_error_and_the_next_run_tries_again(clip, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadImage, match=r"none of the 1 pictures could be used. The first: a.png.*type the same again"):
        index(clip, photos, tmp_path / "s")
    Image.new("RGB", (80, 80), "red").save(photos / "a.png")
    assert index(clip, photos, tmp_path / "s").images == 1
