"""Several Ray nodes on this machine, a real S3 server behind a forwarder that fails, and the ways in which machines go away."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import CREDENTIALS, Proxy

import clip_anatomy as ca

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def bucket(s3_server: str) -> Iterator[tuple[str, Proxy]]:
    """A bucket that this process, and all that it starts, reach through a forwarder; and the forwarder."""
    import urllib.request

    server = Proxy(s3_server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        asked = urllib.request.Request(f"{s3_server}/nodes", method="PUT")
        assert urllib.request.urlopen(asked).status == 200
        yield "s3://nodes", server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def cluster(bucket: tuple[str, Proxy], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two nodes of one processor each, on this machine, with a cache of their own."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # of the whole machine, which others use too
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_health_check_period_ms", "500")
        cache = os.environ["CLIP_ANATOMY_CACHE"]
        patch.setenv("CLIP_ANATOMY_CACHE", str(tmp_path_factory.mktemp("caches")))  # not that of this process
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        running = _started(lambda: Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False}))
        _started(lambda: running.add_node(**NODE))
        patch.setenv("CLIP_ANATOMY_CACHE", cache)
        yield running
        running.shutdown()


def _started(start: Callable[[], Any]) -> Any:
    """Start a node; on a busy machine it may take more than the half minute that Ray waits."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out" not in str(error):
                raise
    return start()


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[Any]:
    with ca.open_engine("ray", address=cluster.address) as opened:
        yield opened


def after(acts: dict[int, Callable[[], Any]]) -> Callable[[str, int, int | None], None]:
    """A `progress` that does things, each once, when so many shards are done."""
    left = dict(acts)

    def progress(what: str, so_far: int, total: int | None) -> None:
        for done in sorted(left):
            if so_far >= done:
                left.pop(done)()

    return progress


def workers_of_ray(*, busy: bool = False) -> list[Any]:
    """The actors of the cluster that this process started."""
    import psutil

    found: list[Any] = []
    for one in psutil.Process().children(recursive=True):
        try:
            if "".join(one.cmdline()).startswith("ray::Worker.run" if busy else "ray::Worker"):
                found.append(one)
        except psutil.Error:  # it has just gone
            continue
    return found


def kill_one_at_work() -> None:
    """Kill a worker while it does a task; one that waits for its next, where all do."""
    [one, *_] = workers_of_ray(busy=True) or workers_of_ray()
    one.kill()


class Away:
    """A `fault` of a forwarder: it answers 503 for some seconds, as soon as so many requests have come, and loses the answer to every third commit."""

    def __init__(self, begins: int, seconds: float) -> None:
        self.left, self.seconds, self.until = begins, seconds, 0.0
        self.refused = self.lost = self.commits = 0

    def __call__(self, method: str, path: str, before: int) -> Any:
        self.left -= 1
        if not self.left:
            self.until = time.monotonic() + self.seconds
        if time.monotonic() < self.until:
            self.refused += 1
            return 503, "SlowDown"
        if method == "PUT" and "/commits/" in path:
            self.commits += 1
            if self.commits % 3 == 0:
                self.lost += 1
                return "lose answer"
        return None
