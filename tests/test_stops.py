"""Whatever stops a run: Ctrl-C, a vanished source, a full disk, another writer, too little memory. The next run goes on."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from stores import clip, photos, same, saved, slow

from clip_anatomy.errors import BadInput, OutputError, StoreError
from clip_anatomy.store.index import index
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

__all__ = ["clip", "photos", "saved"]  # fixtures


def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(clip, photos, tmp_path):
    def stop(what, done, total):
        if done >= 8:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="type the same command again"):
        # The progress is told at most every 0.2 s: slow pictures.
        index(clip, slow(photos), tmp_path / "s", batch=4, progress=stop)
    assert signal.getsignal(signal.SIGINT) is before
    store = Store.open(tmp_path / "s")
    assert 8 <= len(store) < 20
    assert len(store) % 4 == 0
    assert verify(tmp_path / "s").holds
    index(clip, photos, tmp_path / "s")
    index(clip, photos, tmp_path / "t", batch=4)
    assert same(tmp_path / "s", tmp_path / "t")


def test_a_vanished_source_is_not_a_thousand_bad_images(clip, photos, tmp_path):
    def vanish(what, done, total):
        if done >= 4 and photos.exists():
            photos.rename(tmp_path / "aside")

    with pytest.raises(BadInput, match="cannot be reached. Bring it back"):
        index(clip, slow(photos), tmp_path / "s", batch=4, progress=vanish, workers=1)
    store = Store.open(tmp_path / "s")
    assert len(store) >= 4
    assert store.rows(status="error") == []
    (tmp_path / "aside").rename(photos)
    index(clip, photos, tmp_path / "s")
    assert [row.id for row in Store.open(tmp_path / "s").rows()] == [f"{at:02d}.png" for at in range(20)]


def hold(path, ready, leave):
    from clip_anatomy.store.durability import sole_writer

    with sole_writer(path):
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
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=220k", "none", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a file system of limited size needs the right to mount one")
    yield place
    subprocess.run(["umount", "-l", place], check=True)  # lazily: what was read last stays mapped


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_when_there_is_room(clip, little_disk, tmp_path):
    with pytest.raises(OutputError, match=r"cannot be written any more.*Free some space.*it goes on"):
        index(clip, "world:500:test", little_disk / "s", batch=32, commit_seconds=0.0)
    found = verify(little_disk / "s")
    assert found.holds, found.problems
    assert 0 < found.images < 500
    with pytest.raises(OutputError):  # still full
        index(clip, "world:500:test", little_disk / "s", commit_seconds=0.0)
    subprocess.run(["mount", "-o", "remount,size=20m", little_disk], check=True)
    done = index(clip, "world:500:test", little_disk / "s")
    assert done.images == 500
    index(clip, "world:500:test", tmp_path / "t", batch=32)
    assert verify(little_disk / "s").holds
    assert same(little_disk / "s", tmp_path / "t")


def test_a_disk_too_full_to_begin_leaves_nothing_that_stands_in_the_way(clip, little_disk, photos):
    (little_disk / "ballast").write_bytes(b"x" * 210_000)
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
from clip_anatomy.store.index import index
clip = ca.load(open_clip_model(layers=2, heads=2, d=32, size=64, patch=4), parity=False)
index(clip, "world:4:test", sys.argv[2] + "/warm")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 160 * 2**20, -1))
done = index(clip, "world:200:test", sys.argv[2] + "/s", batch=int(sys.argv[3]))
print(done.done, done.failed, done.batch)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process's memory as Linux does")
def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path):
    """Really provoked: 200 pictures of 256 tokens at once in a process that may take 160 MB more."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # else each thread reserves 64 MB that it never uses
    run = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, here, tmp_path, "200"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    done, failed, batch = map(int, run.stdout.split())
    assert (done, failed) == (200, 0)
    assert batch < 200
    assert len(Store.open(tmp_path / "s").rows()) == 200
    assert verify(tmp_path / "s").holds


def test_ctrl_c_at_the_command_line_leaves_a_usable_store(saved, photos, tmp_path):
    """The real command in a real process, stopped with a real signal."""
    code = (
        "import sys, time; import clip_anatomy.store.index_run as w; d = w.decode\n"
        "def slow(*a):\n time.sleep(0.3); return d(*a)\n"
        "w.decode = slow\n"
        "from clip_anatomy.cli.index import index\n"
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
