"""`kill -9` at any moment: nothing lost, nothing twice, and in the end the same store as if nothing had happened."""

import random
import shutil
import signal
import sqlite3
import time
from multiprocessing import get_context

import pytest
from crashing import IMAGES, die_in_a_transaction, run
from stores import same

from clip_anatomy.store.remove import remove
from clip_anatomy.store.store import Store
from clip_anatomy.store.verify import verify

FULL = 40  # images of a full block: blocks are merged several times in a run


@pytest.fixture(scope="module")
def context():
    """Processes that start at once: forked from one that has imported everything, and is alone."""
    found = get_context("forkserver")
    found.set_forkserver_preload(["open_clip", "clip_anatomy.store.index", "zarr"])
    return found


@pytest.fixture(scope="module")
def whole(context, tmp_path_factory):
    """What an uninterrupted run gives, and how long it takes."""
    path = tmp_path_factory.mktemp("whole") / "store"
    for _ in range(2):  # the second time everything is warm
        shutil.rmtree(path, ignore_errors=True)
        ready = context.Event()
        process = context.Process(target=run, args=(str(path), FULL, 0, ready))
        process.start()
        ready.wait()
        began = time.monotonic()
        process.join()
        seconds = time.monotonic() - began
        assert process.exitcode == 0
    assert len(Store.open(path)) == IMAGES
    return path, seconds


def images_in(path):
    return len(Store.open(path)) if (path / "store.json").exists() else 0  # else it was killed before it was made


def killed(context, path, *, after=None, at=0):
    """One run, killed after some seconds or at some file operation; whether it was killed before it ended."""
    ready = context.Event()
    process = context.Process(target=run, args=(str(path), FULL, at, ready))
    process.start()
    if after is not None:
        ready.wait()
        time.sleep(after)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def finish(context, path):
    process = context.Process(target=run, args=(str(path), FULL, 0))
    process.start()
    process.join()
    assert process.exitcode == 0


def check(path, before):
    """After a kill: whatever is there is whole, and nothing that was committed has gone."""
    now = images_in(path)
    assert now >= before
    if now:
        found = verify(path)
        assert found.holds, found.problems
        ids = Store.open(path).column("id")
        assert len({*ids}) == len(ids) == now
        assert ids == [f"world-0-test-{at}" for at in range(now)]
    return now


def test_killed_at_random_moments(context, whole, tmp_path):
    """Kills come at random moments of a run; each following run goes on where the last one fell."""
    reference, seconds = whole
    dice = random.Random(0)
    kills, grew, path, before = 0, 0, tmp_path / "store", 0
    while kills < 12:
        if not killed(context, path, after=dice.random() * seconds / 2):
            shutil.rmtree(path)  # it ended: begin anew
            before = 0
            continue
        kills += 1
        now = check(path, before)
        grew += now > before
        before = now
    assert grew >= 3  # it went on under fire
    finish(context, path)
    assert verify(path).holds
    assert same(path, reference)


def test_killed_at_every_kind_of_operation_on_its_files(context, whole, tmp_path):
    """Kills come at chosen operations: creating the store, opening, renaming, deleting files of blocks, moments, rows."""
    reference, _ = whole
    path, before, kills = tmp_path / "store", 0, 0
    for at in [*range(1, 16), *range(16, 120, 13)]:
        if not killed(context, path, at=at):
            break
        kills += 1
        before = check(path, before)
    assert kills >= 20
    finish(context, path)
    assert verify(path).holds
    assert same(path, reference)


def test_killed_while_it_tidies_up(context, whole, tmp_path):
    """The end of a run: moments are written, small blocks merged, old ones deleted; killed at each step of it."""
    reference, _ = whole
    started = tmp_path / "started"
    shutil.copytree(reference, started)
    # A finished store that lacks a few images: almost all of the next run is its end.
    remove(started, where=f"key > {IMAGES - 10}", wipe=False)
    rows = sqlite3.connect(started / "rows.sqlite")
    rows.execute("UPDATE images SET status = 'gone' WHERE status = 'removed'")
    rows.commit()
    rows.close()
    kills = 0
    for at in range(8, 100, 13):
        path = tmp_path / f"store{at}"
        shutil.copytree(started, path)
        if not killed(context, path, at=at):
            break
        kills += 1
        assert images_in(path) >= IMAGES - 10
        found = verify(path)
        assert found.holds, found.problems
        finish(context, path)
        assert verify(path).holds
        assert sorted(Store.open(path).column("id")) == sorted(Store.open(reference).column("id"))
        shutil.rmtree(path)
    assert kills >= 5


def test_killed_in_the_middle_of_a_transaction(context, whole, tmp_path):
    """SQLite has written half of a change into its file: whoever opens the store next undoes it, a reader too."""
    reference, _ = whole
    path = tmp_path / "store"
    shutil.copytree(reference, path)
    process = context.Process(target=die_in_a_transaction, args=(str(path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (path / "rows.sqlite-journal").stat().st_size > 0
    assert same(path, reference)
    assert verify(path).holds
