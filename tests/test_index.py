"""The walk: bad images, stops, repairs, full disks, two writers, memory, batch sizes, and the command line over it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import encoded, noise, written
from tiny import open_clip_model

import clip_anatomy as ca
from clip_anatomy.anatomy.basis import basis_of
from clip_anatomy.errors import BadInput, OutputError, StoreError
from clip_anatomy.library.about import About
from clip_anatomy.library.coordinates import arrays_of
from clip_anatomy.library.images import open_source
from clip_anatomy.library.index import index
from clip_anatomy.library.pace import Pace, in_parts, is_out_of_memory
from clip_anatomy.library.store import Store
from clip_anatomy.library.verify import verify
from clip_anatomy.library.walk import Progress
from clip_anatomy.show.walking import line_of


@pytest.fixture(scope="module")
def clip():
    torch.set_num_threads(1)
    return ca.load(open_clip_model(layers=2, heads=2, d=8), parity=False)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for at in range(20):
        written(folder / f"{at:02d}.png", encoded(noise(30 + at, 33), "PNG"))
    return folder


def same(one, two):
    """Two stores hold the same: rows, arrays bit for bit, moments to rounding."""
    a, b = Store.open(one), Store.open(two)
    assert [replaced(row) for row in a.rows()] == [replaced(row) for row in b.rows()]
    assert a.column("key") == b.column("key")
    for layer in a.about.layers:
        for head in range(a.about.heads):
            assert torch.equal(a.heads(layer, head), b.heads(layer, head))
    assert torch.equal(a.embeddings(), b.embeddings())
    assert torch.equal(a.norms(), b.norms())
    m, n = a.moments(), b.moments()
    assert torch.equal(m.counts, n.counts)
    assert torch.allclose(m.means, n.means, atol=1e-14)
    assert torch.allclose(m.scatters, n.scatters, atol=1e-13)
    return True


def replaced(row):
    return {**vars(row), "source": ""}


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


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(clip, photos, tmp_path):
    def stop(progress):
        if progress.done >= 8:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="type the same command again"):
        # The progress is told at most every 0.2 s: slow pictures.
        index(clip, slow(photos), tmp_path / "s", batch=4, report=stop)
    assert signal.getsignal(signal.SIGINT) is before
    store = Store.open(tmp_path / "s")
    assert 8 <= len(store) < 20
    assert len(store) % 4 == 0
    assert verify(tmp_path / "s").holds
    index(clip, photos, tmp_path / "s")
    index(clip, photos, tmp_path / "t", batch=4)
    assert same(tmp_path / "s", tmp_path / "t")


def slow(folder, seconds=0.1):
    inner = open_source(folder)

    class Slow:
        spec = inner.spec

        def __iter__(self):
            for picture in inner:
                time.sleep(seconds)
                yield picture

        count, check, fetch = inner.count, inner.check, inner.fetch

    return Slow()


def test_a_vanished_source_is_not_a_thousand_bad_images(clip, photos, tmp_path):
    def vanish(progress):
        if progress.done >= 4 and photos.exists():
            photos.rename(tmp_path / "aside")

    with pytest.raises(BadInput, match="cannot be reached. Bring it back"):
        index(clip, slow(photos), tmp_path / "s", batch=4, report=vanish, workers=1)
    store = Store.open(tmp_path / "s")
    assert len(store) >= 4
    assert store.rows(status="error") == []
    (tmp_path / "aside").rename(photos)
    index(clip, photos, tmp_path / "s")
    assert [row.id for row in Store.open(tmp_path / "s").rows()] == [f"{at:02d}.png" for at in range(20)]


def hold(path, ready, leave):
    from clip_anatomy.library.lock import writing

    with writing(path):
        ready.set()
        leave.wait(60)


def test_a_second_writer_is_refused_and_a_stale_lock_taken_over(clip, photos, tmp_path):
    index(clip, [photos / "00.png"], tmp_path / "s")
    context = get_context("spawn")
    ready, leave = context.Event(), context.Event()
    child = context.Process(target=hold, args=(tmp_path / "s", ready, leave))
    child.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StoreError, match=f"another process .process {child.pid} on"):
            index(clip, photos, tmp_path / "s")
        assert len(Store.open(tmp_path / "s")) == 1  # reading is not writing
    finally:
        child.kill()
        child.join()
    assert str(child.pid) in (tmp_path / "s" / "lock").read_text()
    assert index(clip, photos, tmp_path / "s").done == 20


@pytest.fixture
def little_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system of limited size needs the right to mount one")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(clip, little_disk, tmp_path):
    with pytest.raises(OutputError, match=r"cannot be written any more.*Free some space.*it goes on"):
        index(clip, "world:1500:test", little_disk / "s", batch=32, commit_seconds=0.0)
    found = verify(little_disk / "s")
    assert found.holds, found.problems
    assert 0 < found.images < 1500
    with pytest.raises(OutputError):  # still full
        index(clip, "world:1500:test", little_disk / "s", commit_seconds=0.0)
    subprocess.run(["mount", "-o", "remount,size=20m", little_disk], check=True)
    done = index(clip, "world:1500:test", little_disk / "s")
    assert done.images == 1500
    index(clip, "world:1500:test", tmp_path / "t", batch=32)
    assert verify(little_disk / "s").holds
    assert same(little_disk / "s", tmp_path / "t")


def test_a_disk_too_full_to_begin_leaves_nothing_that_stands_in_the_way(clip, little_disk, photos):
    (little_disk / "ballast").write_bytes(b"x" * 290_000)
    with pytest.raises((OutputError, StoreError), match=r"cannot be (written|opened)"):
        index(clip, photos, little_disk / "s")
    (little_disk / "ballast").unlink()
    assert index(clip, photos, little_disk / "s").done == 20


OUT_OF_MEMORY = """
import resource, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tiny import open_clip_model
import clip_anatomy as ca
from clip_anatomy.library.index import index
clip = ca.load(open_clip_model(layers=2, heads=2, d=32, size=64, patch=4), parity=False)
index(clip, "world:4:test", sys.argv[2] + "/warm")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 450 * 2**20, -1))
done = index(clip, "world:700:test", sys.argv[2] + "/s", batch=int(sys.argv[3]))
print(done.done, done.failed, done.batch)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process's memory as Linux does")
def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path):
    """Really provoked: 700 pictures of 256 tokens at once in a process that may take 450 MB more."""
    here = str(Path(__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, here, tmp_path, "700"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    done, failed, batch = map(int, run.stdout.split())
    assert (done, failed) == (700, 0)
    assert batch < 700
    assert len(Store.open(tmp_path / "s").rows()) == 700
    assert verify(tmp_path / "s").holds


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(real.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_halving_keeps_the_order_and_gives_up_at_one_image():
    shrunk = []

    def step(pixels):
        if len(pixels) > 3:
            raise MemoryError
        return pixels[:, 0, 0, 0].tolist()

    pixels = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    parts = in_parts(step, pixels, shrunk.append)
    assert [value for part in parts for value in part] == list(range(10))
    assert shrunk == [10, 5, 5]

    def never(pixels):
        raise MemoryError

    with pytest.raises(BadInput, match="not even one image"):
        in_parts(never, pixels, shrunk.append)


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
    pace = Pace.on(torch.device("cpu"))
    for _ in range(20):
        pace.took(3, 99.0)  # a short last batch says nothing
        pace.took(pace.size, seconds(pace.size))
    assert pace.found == best
    pace.ran_out(best)
    assert pace.size == best // 2
    assert Pace.on(torch.device("cpu"), 5).size == 5


def test_the_size_found_is_kept_for_the_next_run(clip, tmp_path):
    done = index(clip, "world:600:test", tmp_path / "s")
    assert done.batch in (4, 8, 16, 32, 64)
    assert index(clip, "world:620:test", tmp_path / "s").batch == done.batch
    with pytest.raises(BadInput, match="batch=0"):
        index(clip, "world:3", tmp_path / "s", batch=0)


def test_numbers_that_are_not_finite_are_not_kept(clip):
    about = About.of(clip, (0, 1), ("heads", "mlps"), "own")
    pixels = torch.randn(4, 3, 32, 32)
    pixels[2] = float("nan")
    found = arrays_of(clip, basis_of(clip.image_tower), about, pixels)
    assert found.finite.tolist() == [True, True, False, True]
    assert {name: len(a) if name == "norm" else np.isfinite(a).all() for name, a in found.living().items()} == {
        "heads": True, "embedding": True, "norm": 3, "mlps": True,
    }  # fmt: skip


def test_memory_does_not_grow_with_the_number_of_images(clip, tmp_path):
    """What is not committed yet is bounded, and so is what is decoded ahead."""
    peaks = []
    for count in (500, 2000):
        index(clip, f"world:{count}:train", tmp_path / str(count), batch=32, commit_seconds=0.3)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[1] - peaks[0] < 30_000  # kB; the pictures alone are 18 MB, their pixels as float32 73 MB as float32


def test_progress_says_how_long_it_takes(clip, tmp_path):
    told: list[Progress] = []
    index(clip, "world:300:test", tmp_path / "s", batch=16, report=told.append)
    assert told[-1].phase == "moments"
    assert told[-1].done == told[-1].total == 300
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert line_of("x", Progress(10, 0, 5, None, 2.5)) == "x: 15 images, 2.5/s"
    assert (
        line_of("x", Progress(10, 2, 0, 100_000, 2.5)) == "x: 12 of 100,000 images, 2.5/s, 11 h 07 min left, 2 not used"
    )
    assert line_of("x", Progress(10, 0, 0, 10, 2.5, "moments")) == "x: 10 of 10 images, moments"


# ---- the command line


@pytest.fixture
def saved(tmp_path_factory):
    """A model in a folder, as open_clip saves one."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("model")
    save_file(dict(open_clip_model(layers=2, heads=2, d=8).state_dict()), folder / "open_clip_model.safetensors")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return folder


def test_the_verb_index_and_the_verb_verify(saved, photos, tmp_path, capsys):
    from clip_anatomy.show.commands.index import index as verb
    from clip_anatomy.show.commands.index import verify as check

    written(photos / "bad.png", b"")
    store = tmp_path / "s"
    assert verb(str(photos), store, model=str(saved), layers="last:1", as_json=True) == 0
    told = capsys.readouterr()
    said = json.loads(told.out)
    assert (said["done"], said["failed"], said["images"]) == (20, 1, 20)
    assert "not used: bad.png" in told.err
    assert verb(str(photos), store, strict=True) == 1  # the model is the store's own
    told = capsys.readouterr()
    assert "20 images (0 images added, 20 known, 1 not used)" in told.out
    assert check(store, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["holds"] is True
    shutil.rmtree(next((store / "blocks").iterdir()) / "norm")
    assert check(store) == 1
    told = capsys.readouterr()
    assert "WRONG" in told.out
    assert "delete the store and index again" in told.err
    with pytest.raises(BadInput, match="there is no"):
        verb("nowhere", store)


def test_ctrl_c_at_the_command_line_leaves_a_usable_store(saved, photos, tmp_path):
    """The real command in a real process, stopped with a real signal."""
    code = (
        "import sys, time; import clip_anatomy.library.walk as w; d = w.decode\n"
        "def slow(*a):\n time.sleep(0.3); return d(*a)\n"
        "w.decode = slow\n"
        "from clip_anatomy.show.commands.index import index\n"
        "from pathlib import Path\n"
        f"print('up', flush=True); sys.exit(index({str(photos)!r}, Path({str(tmp_path / 's')!r}), model={str(saved)!r}, batch=2, workers=1))"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    run.stdout.readline()
    for _ in range(600):
        if (tmp_path / "s" / "store.json").exists():
            break
        time.sleep(0.05)
    time.sleep(2.0)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130, told
    assert "type the same command again" in told
    assert "Traceback" not in told
    assert 0 < len(Store.open(tmp_path / "s")) < 20
    assert verify(tmp_path / "s").holds
