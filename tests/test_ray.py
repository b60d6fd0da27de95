"""The same work on Ray as here, and what happens when workers, nodes and drivers die: nothing is lost, nothing is done twice."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import add
from pathlib import Path
from typing import Any

import engine_tasks
import minis
import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.data.open_dataset import open_dataset
from clip_anatomy.engine.engine import LocalEngine, reduced
from clip_anatomy.errors import BadImage, BadSpec, EngineError, MissingExtra, ModelError
from clip_anatomy.loading.demo import examples
from clip_anatomy.loading.model_setup import ModelSetup
from clip_anatomy.store.shard_moments import moments_of_shards
from clip_anatomy.store.shards import open_sharded

ray = pytest.importorskip("ray", reason="needs pip install '.[ray]'")
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # of the whole machine, which others use too
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        running = Cluster(initialize_head=True, head_node_args={**SMALL, "include_dashboard": False})
        running.add_node(**SMALL)
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[Any]:
    with ca.open_engine("ray", address=cluster.address) as opened:
        yield opened


@pytest.fixture
def number(tmp_path: Path) -> engine_tasks.Number:
    return engine_tasks.Number(str(tmp_path))


def test_workers_hold_a_model_once_and_give_the_bits_of_this_process(engine: Any, one_thread: None) -> None:
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


def test_results_merge_in_the_order_of_the_tasks_on_any_engine(engine: Any, number: engine_tasks.Number) -> None:
    setup = ModelSetup.of(ca.load("demo"))
    tasks = [(at, at + 1) for at in range(0, 20, 2)]
    one, other = (
        reduced(e, engine_tasks.embeddings, torch.maximum, tasks, setup=setup, fan=3) for e in (LocalEngine(), engine)
    )
    assert torch.equal(one, other)
    assert reduced(engine, engine_tasks.letters, add, "abcdefgh", setup=number, fan=3) == "a.b.c.d.e.f.g.h."


def test_a_slow_node_gets_less_to_do(engine: Any, number: engine_tasks.Number, tmp_path: Path) -> None:
    nodes = [node for _, node in engine.map(engine_tasks.slow_on_one_node, range(30), setup=number)]
    slow = (tmp_path / "slow").read_text()
    assert len(nodes) == 30
    assert 1 <= nodes.count(slow) < 15


def test_an_engine_that_is_not_known_and_a_cluster_that_is_not_there() -> None:
    with pytest.raises(BadSpec, match="engine='dask' is not known. Type one of: local, ray"), ca.open_engine("dask"):
        pass
    with pytest.raises(BadSpec, match="of a Ray cluster. Type also: engine='ray'"), ca.open_engine(address="auto"):
        pass


@pytest.mark.slow
def test_a_store_made_by_workers_is_the_store_made_here(engine: Any, tmp_path: Path, one_thread: None) -> None:
    clip = ca.load("demo")
    here = ca.index(clip, "world:60:test", tmp_path / "here", shard_size=16)
    there = ca.index(clip, "world:60:test", tmp_path / "there", shard_size=16, engine=engine)
    assert (here.shards, here.done, there.shards, there.done, there.workers) == (4, 60, 4, 60, 2)
    assert_same(contents(tmp_path / "there"), contents(tmp_path / "here"))
    again = ca.index(clip, "world:60:test", tmp_path / "there", engine=engine)
    assert (again.shards, again.known, again.done) == (0, 4, 0)


@pytest.mark.slow
def test_maps_and_masks_of_workers_are_those_made_here(engine: Any, tmp_path: Path, one_thread: None) -> None:
    clip, texts = ca.load("demo"), ["a red thing", "a circle"]
    sources = ca.segment(clip, "world:70:test", texts), ca.segment(clip, "world:70:test", texts, engine=engine)
    assert torch.equal(sources[0].maps.values, sources[1].maps.values)
    assert all((one == other).all() for one, other in zip(sources[0].labels, sources[1].labels, strict=True))
    assert sources[0].to_dict() == sources[1].to_dict()
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    maps = [ca.heatmap(clip, [bad, *examples()], texts, skip_bad=True, engine=one) for one in ("local", engine)]
    assert torch.equal(maps[0].values, maps[1].values)
    assert maps[0].to_dict() == maps[1].to_dict()
    assert [name for name, _ in maps[1].run.failed] == [str(bad)]


@pytest.mark.slow
def test_ablations_and_protocols_of_workers_are_those_made_here(engine: Any, tmp_path: Path, one_thread: None) -> None:
    clip = ca.load("demo")
    ca.index(clip, "world:40:test", tmp_path / "store")
    for how in ({"study": "heads"}, {"select": ["7.3", "layer=6"], "effect": "rerun"}):
        here, there = (
            ca.ablate(tmp_path / "store", engine=one, **how).to_dict()["studies"] for one in ("local", engine)
        )
        assert [{**one, "seconds": 0} for one in here] == [{**one, "seconds": 0} for one in there]
    minis.cod10k(tmp_path / "cod")
    here, there = (ca.bench(clip, "cod10k", tmp_path / "cod", engine=one).to_dict() for one in ("local", engine))
    assert {**here, "seconds": 0} == {**there, "seconds": 0}
    with pytest.raises(BadSpec, match="maps is measured in one process"):
        ca.bench(clip, "maps", engine=engine)


def contents(place: Path) -> dict[str, tuple[Any, Any]]:
    """What a sharded store holds: per shard its rows with the names and sizes of its files, and its head coordinates."""
    import zarr

    found: dict[str, tuple[Any, Any]] = {}
    for path in sorted((place / "commits").iterdir()):
        commit = json.loads(path.read_text())
        folder = place / "shards" / f"{commit['shard']:06d}-{commit['attempt']}"
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*commit["files"]}
        with closing(sqlite3.connect(folder / "rows.sqlite")) as rows:
            images = rows.execute("SELECT * FROM images ORDER BY key").fetchall()
        heads = [torch.from_numpy(zarr.open_array(one, mode="r")[:]) for one in sorted(folder.glob("blocks/*/heads"))]
        found[path.name] = (images, commit["ids"], sorted(commit["files"])), heads
    assert len(found) == len(list((place / "shards").iterdir()))
    return found


def assert_same(made: dict[str, tuple[Any, Any]], expected: dict[str, tuple[Any, Any]]) -> None:
    """Rows, ids and files are equal; numbers to a few steps of float16: other processes may sum in another order."""
    assert {name: one[0] for name, one in made.items()} == {name: one[0] for name, one in expected.items()}
    for name, (_, heads) in made.items():
        torch.testing.assert_close(heads, expected[name][1], rtol=4e-3, atol=2e-4)


# ---- faults while a store is made: it is the store that one process makes, nothing lost, nothing twice

SOURCE, SHARD = "world:96:test", 8


@pytest.fixture(scope="module")
def expected(tmp_path_factory: Any) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("expected") / "store"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    ca.index(ca.load("demo"), SOURCE, place, shard_size=SHARD)
    torch.set_num_threads(before)
    return contents(place)


def after(done: int, act: Callable[[], Any]) -> Callable[[str, int, int | None], None]:
    """A `progress` that does something once, when so many shards are done."""
    left = [act]

    def progress(what: str, so_far: int, total: int | None) -> None:
        if so_far >= done and left:
            left.pop()()

    return progress


def workers_of_ray() -> list[Any]:
    """The actors of the cluster that this process started."""
    import psutil

    ours = psutil.Process().children(recursive=True)
    return [one for one in ours if "".join(one.cmdline()).startswith("ray::Worker")]


@pytest.mark.slow
def test_a_store_survives_killed_workers(engine: Any, expected: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        for one in workers_of_ray():
            one.kill()
            killed.append(one.pid)

    made = ca.index(
        ca.load("demo"), SOURCE, tmp_path / "store", shard_size=SHARD, engine=engine, progress=after(2, kill)
    )
    assert len(killed) >= 2
    assert (made.shards, made.done) == (12, 96)
    assert_same(contents(tmp_path / "store"), expected)


@pytest.mark.slow
def test_a_store_survives_a_killed_node(cluster: Any, engine: Any, expected: Any, tmp_path: Path) -> None:
    node = cluster.add_node(**SMALL)
    cluster.wait_for_nodes()
    progress = after(4, lambda: cluster.remove_node(node, allow_graceful=False))
    made = ca.index(ca.load("demo"), SOURCE, tmp_path / "store", shard_size=SHARD, engine=engine, progress=progress)
    assert (made.shards, made.done) == (12, 96)
    assert_same(contents(tmp_path / "store"), expected)


@pytest.mark.slow
def test_a_store_survives_a_killed_driver(cluster: Any, engine: Any, expected: Any, tmp_path: Path) -> None:
    place = tmp_path / "store"
    engine.close()  # its workers hold the processors
    command = [sys.executable, "-m", "clip_anatomy", "index", SOURCE, str(place), "--shard-size", str(SHARD), "--engine", "ray", "--address", cluster.address]  # fmt: skip
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not len(list((place / "commits").glob("*"))) >= 3 and driver.poll() is None:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    there = len(list((place / "commits").iterdir()))
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    summary = json.loads(again.stdout)
    assert 3 <= there <= summary["known"]
    assert summary["shards"] + summary["known"] == 12
    assert_same(contents(place), expected)


@pytest.mark.slow
def test_a_store_survives_a_full_disk(engine: Any, expected: Any, tmp_path: Path, one_thread: None) -> None:
    clip, place = ca.load("demo"), tmp_path / "store"
    store = open_sharded(place, clip, open_dataset(SOURCE).spec, size=SHARD)
    setup = engine_tasks.Full(ModelSetup.of(clip), store, SOURCE, str(tmp_path))
    done = dict(engine.map(engine_tasks.shard_on_a_full_disk, range(12), setup=setup))
    assert len(list(tmp_path.glob("full-*"))) == 12  # each was refused once
    assert all(done.values())
    assert_same(contents(place), expected)


@pytest.mark.slow
def test_processes_that_know_nothing_of_each_other_share_a_store_by_part(expected: Any, tmp_path: Path) -> None:
    place = tmp_path / "store"
    command = [sys.executable, "-m", "clip_anatomy", "index", SOURCE, str(place), "--shard-size", str(SHARD), "--json", "--part"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    parts = [subprocess.Popen([*command, f"{rank}/3"], env=env, stdout=subprocess.PIPE, text=True) for rank in range(3)]
    summaries = [json.loads(part.communicate(timeout=300)[0]) for part in parts]
    assert [one["shards"] for one in summaries] == [4, 4, 4]
    assert_same(contents(place), expected)
    with pytest.raises(BadSpec, match="part='3/3': K/N was expected"):
        ca.index(ca.load("demo"), SOURCE, place, part="3/3")


@pytest.mark.slow
def test_moments_of_shards_merge_to_the_same_bits_on_any_engine(engine: Any, tmp_path: Path, one_thread: None) -> None:
    clip, place = ca.load("demo"), tmp_path / "store"
    ca.index(clip, "world:48:test", place, shard_size=8)
    ca.index(clip, "world:48:test", tmp_path / "whole")
    here, there = (moments_of_shards(place, one) for one in ("local", engine))
    assert torch.equal(here.means, there.means)
    assert torch.equal(here.scatters, there.scatters)
    whole = ca.Moments.load(next((tmp_path / "whole" / "moments").iterdir()))
    assert here.count == whole.count == 48
    torch.testing.assert_close(here.pooled.scatters, whole.pooled.scatters, rtol=1e-9, atol=1e-12)
