"""Whole verbs by the workers of a cluster, and stores of many writers that a machine reads which made none of it (slow)."""

# Fixtures are imported and named by what takes them:
# ruff: noqa: F401, F811
# pyright: reportUnusedImport=false

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import minis
import pytest
import torch
from buckets import s3_server
from clusters import NODE, Away, bucket, cluster, engine, workers_of_ray
from stores import same

import clip_anatomy as ca
from clip_anatomy.errors import BadSpec
from clip_anatomy.loading.demo import examples
from clip_anatomy.objects import ObjectPlace
from clip_anatomy.store.shard_moments import moments_of_shards

ray = pytest.importorskip("ray", reason="needs pip install '.[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_a_store_made_by_workers_is_the_store_made_here(engine: Any, tmp_path: Path) -> None:
    clip = ca.load("demo")
    here: Any = ca.index(clip, "world:60:test", tmp_path / "here", shard_size=16)
    there: Any = ca.index(clip, "world:60:test", tmp_path / "there", shard_size=16, engine=engine)
    ca.index(clip, "world:60:test", tmp_path / "whole", batch=16)
    assert (here.shards, here.done, there.shards, there.done, there.workers) == (4, 60, 4, 60, 2)
    assert same(tmp_path / "there", tmp_path / "here")
    assert same(tmp_path / "there", tmp_path / "whole")
    again: Any = ca.index(clip, "world:60:test", tmp_path / "there", engine=engine)
    assert (again.shards, again.known, again.done) == (0, 4, 0)


def test_maps_and_masks_of_workers_are_those_made_here(engine: Any, tmp_path: Path) -> None:
    clip, texts = ca.load("demo"), ["a red thing", "a circle"]
    sources: list[Any] = [
        ca.segment(clip, "world:70:test", texts),
        ca.segment(clip, "world:70:test", texts, engine=engine),
    ]
    assert torch.equal(sources[0].maps.values, sources[1].maps.values)
    assert all((one == other).all() for one, other in zip(sources[0].labels, sources[1].labels, strict=True))
    assert sources[0].to_dict() == sources[1].to_dict()
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    maps: list[Any] = [
        ca.heatmap(clip, [bad, *examples()], texts, skip_bad=True, engine=one) for one in ("local", engine)
    ]
    assert torch.equal(maps[0].values, maps[1].values)
    assert maps[0].to_dict() == maps[1].to_dict()
    assert [name for name, _ in maps[1].run.failed] == [str(bad)]


def test_ablations_and_protocols_of_workers_are_those_made_here(engine: Any, tmp_path: Path) -> None:
    clip = ca.load("demo")
    ca.index(clip, "world:40:test", tmp_path / "store")
    ways: tuple[dict[str, Any], ...] = ({"study": "heads"}, {"select": ["7.3", "layer=6"], "effect": "rerun"})
    for how in ways:
        here, there = (
            ca.ablate(tmp_path / "store", engine=one, **how).to_dict()["studies"] for one in ("local", engine)
        )
        assert [{**one, "seconds": 0} for one in here] == [{**one, "seconds": 0} for one in there]
    minis.cod10k(tmp_path / "cod")
    here, there = (ca.bench(clip, "cod10k", tmp_path / "cod", engine=one).to_dict() for one in ("local", engine))
    assert {**here, "seconds": 0} == {**there, "seconds": 0}
    with pytest.raises(BadSpec, match="maps is measured in one process"):
        ca.bench(clip, "maps", engine=engine)


def test_processes_that_know_nothing_of_each_other_share_a_store_by_part(tmp_path: Path) -> None:
    place = tmp_path / "store"
    command = [sys.executable, "-m", "clip_anatomy", "index", "world:96:test", str(place), "--shard-size", "8", "--json", "--part"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    parts = [subprocess.Popen([*command, f"{rank}/3"], env=env, stdout=subprocess.PIPE, text=True) for rank in range(3)]
    summaries = [json.loads(part.communicate(timeout=600)[0]) for part in parts]
    assert [one["shards"] for one in summaries] == [4, 4, 4]
    ca.index(ca.load("demo"), "world:96:test", tmp_path / "whole", batch=8)
    assert same(place, tmp_path / "whole")
    with pytest.raises(BadSpec, match="part='3/3': K/N was expected"):
        ca.index(ca.load("demo"), "world:96:test", place, part="3/3")


def test_moments_of_shards_merge_to_the_same_bits_on_any_engine(engine: Any, tmp_path: Path) -> None:
    clip, place = ca.load("demo"), tmp_path / "store"
    ca.index(clip, "world:48:test", place, shard_size=8)
    ca.index(clip, "world:48:test", tmp_path / "whole")
    here, there = (moments_of_shards(place, one) for one in ("local", engine))
    assert torch.equal(here.means, there.means)
    assert torch.equal(here.scatters, there.scatters)
    whole = ca.Moments.load(next((tmp_path / "whole" / "moments").iterdir()))
    assert here.count == whole.count == 48
    torch.testing.assert_close(here.pooled.scatters, whole.pooled.scatters, rtol=1e-9, atol=1e-12)


READER = """
import sys
import clip_anatomy as ca
found = ca.search(sys.argv[1], "a red circle", heads="7.0,7.1", k=5)
print(*(hit.row.id for hit in found.hits), ca.verify(sys.argv[1]).holds)
"""


def test_a_store_of_three_nodes_answers_a_fourth_machine(
    bucket: Any,
    cluster: Any,
    engine: Any,
    tmp_path: Path,
) -> None:
    """One of the nodes is slow, the bucket is away for two seconds, and answers get lost."""
    url, proxy = bucket
    place, clip = f"{url}/three", ca.load("demo")
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    proxy.fault = away = Away(begins=60, seconds=2.0)
    ended = threading.Event()

    def slow_down() -> None:
        """Stop one worker four fifths of the time."""
        while not ended.wait(0.05):
            if not (found := workers_of_ray()):
                continue
            slow = min(found, key=lambda one: one.pid)
            slow.suspend()
            time.sleep(0.2)
            slow.resume()

    slowing = threading.Thread(target=slow_down)
    slowing.start()
    try:
        made: Any = ca.index(clip, "world:96:test", place, shard_size=4, engine=engine)
    finally:
        ended.set()
        slowing.join()
        proxy.fault = lambda *_: None
    assert (made.shards, made.done, made.workers) == (24, 96, 3)
    assert min(away.refused, away.lost) > 0
    ca.index(clip, "world:96:test", tmp_path / "alone", batch=4)
    environment = {**os.environ, "CLIP_ANATOMY_CACHE": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    fourth = subprocess.run(
        [sys.executable, "-c", READER, place], env=environment, capture_output=True, text=True, check=True
    )
    expected = ca.search(tmp_path / "alone", "a red circle", heads="7.0,7.1", k=5)
    assert fourth.stdout.split() == [*(hit.row.id for hit in expected.hits), "True"]
    for heads, mode in (("7.0,7.1", "heads"), ("7.0", "without")):
        query = "world-0-test-3"
        how: dict[str, Any] = {"k": 5, "heads": heads, "mode": mode}
        here, there = (ca.search(place, query, engine=one, **how) for one in ("local", engine))
        assert [(hit.row.id, hit.score) for hit in here.hits] == [(hit.row.id, hit.score) for hit in there.hits]
    assert [*ca.search(tmp_path / "alone", query, **how).ids] == [*there.ids]
    one, other = (ca.ablate(place, study="heads", engine=by).to_dict()["studies"] for by in ("local", engine))
    assert [{**study, "seconds": 0} for study in one] == [{**study, "seconds": 0} for study in other]
    assert same(place, tmp_path / "alone")
    assert len(ObjectPlace.of(place).folders("shards/")) == 24
