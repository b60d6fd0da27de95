"""`RayEngine`: the workers of a Ray cluster, one for every GPU, or for every processor where there is none.

A worker is an actor that opens its model once and does one task at a time. Ray places it; what happens when it dies is decided here: its task
is done again by another, and another actor is asked for, which begins as soon as there is a place for it (a node that joins is such a place).
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from clip_anatomy.errors import BadInput, BadSpec, EngineError, MissingExtra, ModelError

__all__ = ["RayEngine", "ray_engine"]

TRIES = 4
FINAL = (BadInput, ModelError, MissingExtra)  # what no second try changes
FAILED_STARTS = 20
NO_WORKER_SECONDS = 600.0
SHOWN = 200  # letters of a task in a message


@contextmanager
def ray_engine(address: str | None) -> Generator["RayEngine"]:
    """Connect to a cluster, or start one on this machine; a connection that the program around has is used, and left as it is.

    Raises:
        MissingExtra: Ray is not installed.
        BadSpec: nothing answers at the address.
        EngineError: Ray cannot be started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "ray") from error
    ours = not ray.is_initialized()
    if ours:
        own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # a plain one where its processes take more than 30 seconds, as on a busy machine
            ray.shutdown()
            if address is None:
                raise EngineError(
                    f"Ray could not be started on this machine ({_said(error)}). If it is busy, wait a little and type the same again; else leave engine= out"
                ) from error
            raise BadSpec(
                f"address={address!r}: no Ray cluster answers ({_said(error)}). Start one with: ray start --head; or leave the address out"
            ) from error
    engine = RayEngine(ray)
    try:
        yield engine
    finally:
        engine.close()
        if ours:
            ray.shutdown()


class Worker:
    """What an actor holds: the state of the last setup, so that a model is opened once for many calls."""

    def __init__(self, threads: int) -> None:
        """Begin with nothing: what goes wrong with a model is an error of the task that needs it."""
        self.threads, self.setup, self.state = threads, "", None

    def ready(self) -> None:
        """Answer once the process is there."""

    def run(self, function: Callable[[Any, Any], Any], task: Any, setup: tuple[str, list[Any]], delay: float) -> Any:
        """Do a task, after a while if it has failed before: a server that is away comes back."""
        time.sleep(delay)
        name, reference = setup
        if self.setup != name:
            import ray

            self.state, self.setup = None, ""  # one model at a time
            described: Any = ray.get(reference[0])
            if (torch := sys.modules.get("torch")) is not None:  # what is sent brings it, where a model is meant
                torch.set_num_threads(self.threads)
            self.state, self.setup = described.open(), name
        return function(self.state, task)


@dataclass
class _Try:
    """A task, and how often it failed."""

    number: int
    task: Any
    failed: int = 0


class RayEngine:
    """The workers of a cluster that this process is connected to. They stay from one call to the next, and hold their model."""

    def __init__(self, ray: Any) -> None:
        """Begin without workers."""
        self.ray = ray
        self.starting: dict[Any, Any] = {}  # answer that is waited for → actor
        self.working: dict[Any, tuple[Any, _Try]] = {}
        self.idle: deque[Any] = deque()
        self.failed_starts, self.gpu, self.threads = 0, 0, 1

    @property
    def workers(self) -> int:
        """How many tasks the cluster does at once, as it is now."""
        there = self.ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) or there.get("CPU", 0)))

    def map(
        self, function: Callable[[Any, Any], Any], tasks: Iterable[Any], *, setup: Any
    ) -> Generator[tuple[int, Any]]:
        """Run a function over tasks; see `Engine.map`."""
        there = self.ray.cluster_resources()
        gpu = 1 if getattr(setup, "device", "auto") != "cpu" and there.get("GPU", 0) else 0
        if gpu != self.gpu:
            self.close()
        # A worker of a GPU has its share of the processors, to decode with.
        self.gpu, self.threads = gpu, max(1, int(there.get("CPU", 1) // there["GPU"])) if gpu else 1
        sent = (uuid4().hex, [self.ray.put(setup)])  # in a list: a worker takes it when it has another
        waiting, again = (_Try(number, task) for number, task in enumerate(tasks)), deque[_Try]()
        following, last = next(waiting, None), time.monotonic()
        try:
            while following is not None or again or self.working:
                for _ in range(self.workers - len(self.starting) - len(self.working) - len(self.idle)):
                    self._start()
                while self.idle and (again or following is not None):
                    if again:
                        one = again.popleft()
                    else:
                        one, following = cast("_Try", following), next(waiting, None)
                    delay = 4.0 ** (one.failed - 1) if one.failed else 0.0
                    actor = self.idle.popleft()
                    self.working[actor.run.remote(function, one.task, sent, delay)] = (actor, one)
                for answer in self.ray.wait([*self.starting, *self.working], num_returns=1, timeout=1.0)[0]:
                    last = time.monotonic()
                    if answer in self.starting:
                        self._begun(answer)
                        continue
                    actor, one = self.working.pop(answer)
                    result, failure = self._answer(answer, actor)
                    if failure is None:
                        yield one.number, result
                    else:
                        again.append(_once_more(one, failure))
                if not self.working and time.monotonic() - last > NO_WORKER_SECONDS:
                    raise EngineError(
                        f"no worker could begin for {NO_WORKER_SECONDS / 60:.0f} minutes: the cluster has {self.ray.cluster_resources()}. "
                        "Add a node, and type the same again"
                    )
        finally:  # also when the generator is closed, or Ctrl-C comes: what is under way ends, what is committed stays
            for actor, _ in self.working.values():
                self.ray.kill(actor)
            self.working.clear()

    def close(self) -> None:
        """End all workers."""
        for actor in (*self.starting.values(), *self.idle):
            self.ray.kill(actor)
        self.starting.clear()
        self.idle.clear()

    def _start(self) -> None:
        actor = self.ray.remote(num_cpus=self.threads, num_gpus=self.gpu, max_restarts=0)(Worker).remote(self.threads)
        self.starting[actor.ready.remote()] = actor

    def _begun(self, answer: Any) -> None:
        actor = self.starting.pop(answer)
        try:
            self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= FAILED_STARTS:
                raise EngineError(
                    f"workers end before they begin, the last with {_said(error)}. Install clip-anatomy, the same version, on every node"
                ) from error
        else:
            self.failed_starts = 0
            self.idle.append(actor)

    def _answer(self, answer: Any, actor: Any) -> tuple[Any, Exception | None]:
        """Return what an actor gave, or why it gave nothing; the actor is free then, if it lives."""
        try:
            result = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:  # raised by the function
            self.idle.append(actor)
            if isinstance(error.cause, FINAL):
                raise error.cause from None
            return None, error.cause if isinstance(error.cause, Exception) else error
        except self.ray.exceptions.RayError as error:  # the worker or its node died: another is started in its place
            self.ray.kill(actor)
            return None, error
        self.idle.append(actor)
        return result, None


def _once_more(one: _Try, error: Exception) -> _Try:
    if one.failed + 1 >= TRIES:
        raise EngineError(
            f"task {one.number} ({one.task!r:.{SHOWN}}) failed {TRIES} times, the last time with {_said(error)}. What was finished is kept: "
            "type the same again"
        ) from error
    return _Try(one.number, one.task, one.failed + 1)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
