"""Long work of the studio: in a thread of its own, with progress and cancel; what a restart interrupted is done again."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from clip_anatomy.errors import BadInput, BadSpec, ClipAnatomyError, reading
from clip_anatomy.files import read_json, write_text
from clip_anatomy.number_ranges import LARGEST

__all__ = ["Job", "Jobs", "State"]

NAME = "studio-jobs.json"
MOST_JOBS = 50  # remembered
State = Literal["waiting", "running", "done", "failed", "cancelled"]
Work = Callable[..., dict[str, Any]]  # told its progress, and by name what it was given


class _Cancelled(Exception):
    """Somebody pressed cancel."""


class _Closing(Exception):
    """The server stops: the job stays recorded as running, so that the next start does it again."""


@dataclass(frozen=True)
class Job:
    """One piece of long work.

    Attributes:
        id: its number.
        verb: which function it runs.
        given: with which arguments.
        state: how far it is.
        step: what is being done.
        done: how much of the step.
        total: how much there is; None where nobody knows.
        seconds: that it took.
        result: what the function said.
        error: why it failed.
    """

    id: int
    verb: str
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    state: State = "waiting"
    step: str = ""
    done: int = 0
    total: int | None = None
    seconds: float = 0.0
    result: Mapping[str, Any] | None = None
    error: str = ""


class Jobs:
    """Run jobs one after the other, and record them beside the store."""

    def __init__(self, verbs: Mapping[str, Work], folder: Path | None = None) -> None:
        """Take up what an earlier run of the server left unfinished.

        Args:
            verbs: name → what it does, told its progress and what was given.
            folder: where the record is kept; None to keep none.
        """
        self.verbs = verbs
        self._file = None if folder is None else folder / NAME
        self._jobs: dict[int, Job] = {}
        self._cancelled: set[int] = set()
        self._change = threading.Condition()
        self._closing = False
        for job in self._recorded():
            unfinished = job.state in ("waiting", "running")
            self._jobs[job.id] = replace(job, state="waiting", done=0, total=None) if unfinished else job
        self._thread = threading.Thread(target=self._work, name="studio-jobs", daemon=True)
        self._thread.start()

    def start(self, verb: str, given: Mapping[str, Any] | None = None) -> Job:
        """Put a job in the queue; the same one that waits or runs already is returned as it is.

        Args:
            verb: which function.
            given: its arguments, of the kinds that JSON knows.

        Raises:
            BadSpec: no such verb.
        """
        if verb not in self.verbs:
            raise BadSpec(f"{verb[:40]!r} is no job. Type one of: {', '.join(self.verbs)}")
        with self._change:
            for job in self._jobs.values():
                if job.verb == verb and job.given == (given or {}) and job.state in ("waiting", "running"):
                    return job
            job = Job(max(self._jobs, default=0) + 1, verb, given or {})
            self._jobs[job.id] = job
            for old in [one.id for one in self._jobs.values() if one.state not in ("waiting", "running")][:-MOST_JOBS]:
                del self._jobs[old]
            self._record()
            self._change.notify_all()
        return job

    def job(self, number: int) -> Job:
        """Return one.

        Raises:
            BadInput: there is none of this number.
        """
        with self._change:
            if number not in self._jobs:
                raise BadInput(f"there is no job {number}. GET /api/v1/jobs lists them")
            return self._jobs[number]

    def all(self) -> list[Job]:
        """Return all that are remembered, the latest first."""
        with self._change:
            return sorted(self._jobs.values(), key=lambda job: -job.id)

    def cancel(self, number: int) -> Job:
        """Stop a job where it stands; what it finished stays."""
        with self._change:
            job = self.job(number)
            if job.state == "waiting":
                self._set(number, state="cancelled")
            elif job.state == "running":
                self._cancelled.add(number)
        return self.job(number)

    def close(self, seconds: float = 3.0) -> None:
        """Stop working; what runs is taken up again by the next start."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closing or self._next() is not None)
                if self._closing:
                    return
                job = self._next()
                assert job is not None
                self._set(job.id, state="running")
            self._run(job)

    def _next(self) -> Job | None:
        return min((job for job in self._jobs.values() if job.state == "waiting"), key=lambda job: job.id, default=None)

    def _run(self, job: Job) -> None:
        began = time.monotonic()

        def progress(step: str, done: int, total: int | None) -> None:
            if self._closing:
                raise _Closing
            if job.id in self._cancelled:
                raise _Cancelled
            with self._change:
                self._jobs[job.id] = replace(
                    self._jobs[job.id], step=step, done=done, total=total, seconds=time.monotonic() - began
                )

        end: dict[str, Any]
        try:
            end = {"state": "done", "result": self.verbs[job.verb](progress, **job.given)}
        except _Closing:
            return
        except _Cancelled:
            end = {"state": "cancelled"}
        except ClipAnatomyError as error:
            end = {"state": "failed", "error": str(error)}
        except Exception as error:
            end = {"state": "failed", "error": f"{type(error).__name__}: {error}. Look at the server's terminal"}
            threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread)))
        with self._change:
            self._cancelled.discard(job.id)
            self._set(job.id, **end, seconds=time.monotonic() - began)

    def _set(self, number: int, **values: Any) -> None:
        self._jobs[number] = replace(self._jobs[number], **values)
        self._record()

    def _record(self) -> None:
        if self._file is not None:
            with suppress(ClipAnatomyError):  # a store that may only be read: its jobs are forgotten at the end
                write_text(self._file, json.dumps([asdict(job) for job in self._jobs.values()]) + "\n")

    def _recorded(self) -> list[Job]:
        if self._file is None or not self._file.is_file():
            return []
        try:
            with reading(self._file, "Delete it"):
                jobs = [Job(**one) for one in read_json(self._file, "Delete it", of=list) if one["verb"] in self.verbs]
                sound = (
                    isinstance(one.id, int)
                    and 0 < one.id < LARGEST
                    and one.state in get_args(State)
                    and isinstance(one.given, dict)
                    for one in jobs
                )
                return jobs if all(sound) else []
        except ClipAnatomyError:
            return []  # damaged: nothing but old jobs are lost
