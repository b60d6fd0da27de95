"""The same work on Ray as here, and what happens when workers, nodes and drivers die: nothing is lost, nothing is done twice."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from operator import add
from pathlib import Path
from typing import Any

import engine_tasks
import pytest
import torch

import clip_anatomy as ca
from clip_anatomy.engine.engine import LocalEngine, reduced
from clip_anatomy.errors import BadImage, BadSpec, EngineError, MissingExtra, ModelError
from clip_anatomy.loading.demo import examples
from clip_anatomy.loading.model_setup import ModelSetup

ray = pytest.importorskip("ray", reason="needs pip install '.[ray]'")
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, on this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # of the whole machine, which others use too
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


def test_a_killed_nodes_tasks_are_done_by_the_others(cluster: Any, engine: Any, number: engine_tasks.Number) -> None:
    node = cluster.add_node(**SMALL)
    cluster.wait_for_nodes()
    assert engine.workers == 3
    done, seen = [], set[str]()
    for at, (_, where) in engine.map(engine_tasks.process, range(60), setup=number):
        done.append(at)
        seen.add(where)
        if node is not None and (where == node.node_id or len(done) == 40):
            cluster.remove_node(node, allow_graceful=False)
            node = None
    assert sorted(done) == list(range(60))
    assert len(seen) == 3


def test_an_engine_that_is_not_known_and_a_cluster_that_is_not_there() -> None:
    with pytest.raises(BadSpec, match="engine='dask' is not known. Type one of: local, ray"), ca.open_engine("dask"):
        pass
    with pytest.raises(BadSpec, match="of a Ray cluster. Type also: engine='ray'"), ca.open_engine(address="auto"):
        pass


def test_a_store_made_by_workers_is_the_store_made_here(engine: Any, tmp_path: Path, one_thread: None) -> None:
    clip = ca.load("demo")
    here = ca.index(clip, "world:60:test", tmp_path / "here", shard_size=16)
    there = ca.index(clip, "world:60:test", tmp_path / "there", shard_size=16, engine=engine)
    assert (here.shards, here.done, there.shards, there.done, there.workers) == (4, 60, 4, 60, 2)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    again = ca.index(clip, "world:60:test", tmp_path / "there", engine=engine)
    assert (again.shards, again.known, again.done) == (0, 4, 0)


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


def contents(place: Path) -> dict[str, Any]:
    """What a sharded store holds: per shard its rows, and the bytes of its arrays and moments."""
    import json

    found: dict[str, Any] = {}
    for path in sorted((place / "commits").iterdir()):
        commit = json.loads(path.read_text())
        folder = place / "shards" / f"{commit['shard']:06d}-{commit['attempt']}"
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*commit["files"]}
        arrays = {name: (folder / name).read_bytes() for name in commit["files"] if name != "rows.sqlite"}
        with closing(sqlite3.connect(folder / "rows.sqlite")) as rows:
            images = rows.execute("SELECT * FROM images ORDER BY key").fetchall()
        found[path.name] = (arrays, images, commit["ids"])
    assert len(found) == len(list((place / "shards").iterdir()))
    return found
