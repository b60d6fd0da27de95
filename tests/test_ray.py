"""The same work on Ray as here, and what happens when workers, nodes and drivers die: nothing is lost, nothing is done twice."""

# Fixtures are imported and named by what takes them:
# ruff: noqa: F401, F811
# pyright: reportUnusedImport=false

import json
import subprocess
import sys
import time
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Any

import engine_tasks
import pytest
import torch
from buckets import s3_server
from clusters import Away, after, bucket, cluster, engine, kill_one_at_work, workers_of_ray
from stores import same

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.engine.engine import LocalEngine, reduced
from clip_anatomy.errors import BadImage, BadSpec, EngineError, MissingExtra, ModelError
from clip_anatomy.loading.model_setup import ModelSetup
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.run_record import recorded
from clip_anatomy.store.shards import committed_shards, open_sharded, read_commit
from clip_anatomy.store.verify import verify

ray = pytest.importorskip("ray", reason="needs pip install '.[ray]'")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def number(tmp_path: Path) -> engine_tasks.Number:
    return engine_tasks.Number(str(tmp_path))


def test_where_ray_cannot_be_started_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test: no cluster is there yet."""
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nothing")
    with pytest.raises(EngineError, match="Ray could not be started on this machine .* else leave engine= out"), ca.open_engine("ray"):  # fmt: skip
        pass


def test_no_more_is_under_way_than_there_are_workers(engine: Any, number: engine_tasks.Number) -> None:
    taken: list[int] = []
    results = engine.map(engine_tasks.process, (taken.append(at) or at for at in range(1000)), setup=number)
    for _ in range(5):
        next(results)
    time.sleep(0.5)
    assert len(taken) <= 5 + engine.workers + 1
    results.close()
    assert len(list(Path(number.folder).glob("opened-*"))) <= engine.workers
    assert sorted(at for at, _ in engine.map(engine_tasks.process, range(3), setup=number)) == [0, 1, 2]


def test_a_killed_workers_task_is_done_again(engine: Any, number: engine_tasks.Number) -> None:
    assert sorted(engine.map(engine_tasks.killed_once, range(8), setup=number)) == [(at, 10 * at) for at in range(8)]
    assert (Path(number.folder) / "killed").exists()


def test_a_task_that_kills_every_worker_is_named(engine: Any, number: engine_tasks.Number, monkeypatch: Any) -> None:
    monkeypatch.setattr("clip_anatomy.engine.ray_engine.TRIES", 2)
    with pytest.raises(EngineError, match=r"task 0 \(99\) failed 2 times, .* type the same again"):
        list(engine.map(engine_tasks.killed_once, [99], setup=number))


def test_what_may_pass_is_tried_again_and_what_cannot_is_raised_at_once(
    engine: Any, number: engine_tasks.Number, tmp_path: Path
) -> None:
    assert sorted(engine.map(engine_tasks.failing, [1], setup=number)) == [(0, 1)]
    assert len(list(tmp_path.glob("tried-*"))) == 3
    for task, kind in ((1, BadImage), (2, MissingExtra)):
        with pytest.raises(kind, match=r"photo.jpg holds no picture|pip install 'clip-anatomy\[video\]'"):
            list(engine.map(engine_tasks.refused, [task], setup=number))
    assert len(list(tmp_path.glob("tried-*-*"))) == 2


def test_a_slow_node_gets_less_to_do(engine: Any, number: engine_tasks.Number, tmp_path: Path) -> None:
    nodes = [node for _, node in engine.map(engine_tasks.slow_on_one_node, range(30), setup=number)]
    slow = (tmp_path / "slow").read_text()
    assert len(nodes) == 30
    assert 1 <= nodes.count(slow) < 15


def test_results_merge_in_the_order_of_the_tasks_on_any_engine(engine: Any, number: engine_tasks.Number) -> None:
    setup = ModelSetup.of(ca.load("demo"))
    tasks = [(at, at + 1) for at in range(0, 20, 2)]
    one, other = (
        reduced(e, engine_tasks.embeddings, torch.maximum, tasks, setup=setup, fan=3) for e in (LocalEngine(), engine)
    )
    assert torch.equal(one, other)
    assert reduced(engine, engine_tasks.letters, add, "abcdefgh", setup=number, fan=3) == "a.b.c.d.e.f.g.h."


def test_workers_hold_a_model_once_and_give_the_bits_of_this_process(engine: Any) -> None:
    tasks = [tuple(range(first, first + 8)) for first in range(0, 64, 8)]
    setup = ModelSetup.of(ca.load("demo"))
    here = dict(LocalEngine().map(engine_tasks.embeddings, tasks, setup=setup))
    there = dict(engine.map(engine_tasks.embeddings, tasks, setup=setup))
    assert engine.workers == 2
    assert all(torch.equal(here[at], there[at]) for at in range(8))


def test_a_worker_refuses_other_weights_and_a_live_model_is_refused_here(engine: Any) -> None:
    clip = ca.load("demo")
    other = ModelSetup("demo", "", "0" * 16, "auto", "float32", clip.preprocess)
    with pytest.raises(ModelError, match="has weights .* Put the same files on every node"):
        list(engine.map(engine_tasks.embeddings, [(0,)], setup=other))
    from tiny import open_clip_model

    with pytest.raises(BadSpec, match="live or changed model .* cannot be opened by other processes"):
        list(engine.map(engine_tasks.embeddings, [(0,)], setup=ModelSetup.of(ca.load(open_clip_model(), parity=False))))


def test_an_engine_that_is_not_known_and_a_cluster_that_is_not_there() -> None:
    with pytest.raises(BadSpec, match="engine='dask' is not known. Type one of: local, ray"), ca.open_engine("dask"):
        pass
    with pytest.raises(BadSpec, match="of a Ray cluster. Type also: engine='ray'"), ca.open_engine(address="auto"):
        pass


# ---- faults while a store is made in a bucket: it is, to the bit, the store that one process makes; nothing is lost, nothing twice

SOURCE, SHARD = "world:32:test", 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> Path:
    """The ordinary store of one process on one machine."""
    place = tmp_path_factory.mktemp("alone") / "store"
    ca.index(ca.load("demo"), SOURCE, place, layers="last:1", batch=SHARD)
    return place


def made(place: str, engine: Any, acts: dict[int, Callable[[], Any]] | None = None) -> Any:
    clip = ca.load("demo")
    progress = after(acts or {})
    return ca.index(clip, SOURCE, place, layers="last:1", shard_size=SHARD, engine=engine, progress=progress)


def whole(place: str, alone: Path) -> None:
    """Nothing is lost, nothing is there twice, nothing is left behind, and every number has the bits of one process."""
    assert same(place, alone)
    found = verify(place)
    assert (found.holds, found.images, found.notes) == (True, 32, ())
    assert len(ObjectPlace.of(place).folders("shards/")) == 8


@pytest.mark.parametrize("turn", range(3))
def test_a_store_survives_a_killed_worker_and_a_bucket_that_is_away(
    turn: int, bucket: Any, engine: Any, alone: Path
) -> None:
    url, proxy = bucket
    place, away = f"{url}/turn-{turn}", Away(begins=30, seconds=1.0)
    proxy.fault = away
    done = made(place, engine, {2: kill_one_at_work})
    proxy.fault = lambda *_: None
    assert done.shards + done.others == 8
    assert done.others <= 1  # what was killed between its commit and its answer
    assert min(away.refused, away.lost) > 0
    whole(place, alone)


def test_a_full_disk_costs_a_try(bucket: Any, engine: Any, alone: Path, tmp_path: Path) -> None:
    clip, place = ca.load("demo"), f"{bucket[0]}/full"
    store = open_sharded(place, clip, open_dataset(SOURCE).spec, size=SHARD, layers="last:1")
    setup = engine_tasks.Full(ModelSetup.of(clip), store, SOURCE, str(tmp_path))
    done = dict(engine.map(engine_tasks.shard_on_a_full_disk, range(8), setup=setup))
    assert len(list(tmp_path.glob("full-*"))) == 8  # each was refused once
    assert all(done.values())
    whole(place, alone)


def test_a_store_survives_a_killed_driver_a_killed_node_and_a_damaged_shard(
    bucket: Any, cluster: Any, engine: Any, alone: Path
) -> None:
    place = f"{bucket[0]}/driver"
    at = ObjectPlace.of(place)
    engine.close()  # its workers hold the processors
    command = [sys.executable, "-m", "clip_anatomy", "index", SOURCE, place, "--shard-size", str(SHARD), "--layers", "last:1", "--engine", "ray", "--address", cluster.address]  # fmt: skip
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    [node] = cluster.worker_nodes
    for shards, act in ((1, lambda: cluster.remove_node(node, allow_graceful=False)), (3, driver.kill)):
        while len(committed_shards(at)) < shards and driver.poll() is None:
            time.sleep(0.02)
        act()
    driver.wait()
    while workers_of_ray():  # Ray ends them with their driver
        time.sleep(0.05)
    there = len(committed_shards(at))
    done = made(place, engine)
    assert 3 <= there == done.known
    assert done.shards + done.known == 8
    whole(place, alone)
    commit = read_commit(at, 5)
    name = next(name for name in commit.files if name.endswith("heads/c/0/0/0/0"))
    at.put(f"{commit.folder}/{name}", b"x" * commit.files[name][0])
    assert verify(place).problems == (f"{commit.folder}/{name}: its bytes are not those that were written",)
    at.delete([commit.name])  # no commit, no shard: it is made again
    with recorded(["index", SOURCE, place]):
        assert made(place, engine).shards == 1
    assert json.loads(at.get("run.json") or b"")["command"] == ["clip-anatomy", "index", SOURCE, place]
    whole(place, alone)
