"""`Engine`: one function over many tasks, wherever it runs; `LocalEngine`, this process; `open_engine`, by name.

A worker builds its state once from a description (`Setup`: a model's name and digest), and holds it. A function takes that state and a task,
and gives a result. What it writes is committed by whoever computed it, so that a task that is done twice changes nothing.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, Protocol, TypeVar, runtime_checkable

from clip_anatomy.errors import BadSpec
from clip_anatomy.public_functions import public

__all__ = ["ENGINES", "Engine", "LocalEngine", "Setup", "engine_of", "in_order", "open_engine", "reduced", "works_here"]

ENGINES = ("local", "ray")
FAN = 64
Task = TypeVar("Task")
Outcome = TypeVar("Outcome")


@runtime_checkable
class Setup(Protocol):
    """What a worker's state is made of: a small value that can be sent anywhere."""

    def open(self) -> Any:
        """Build the state."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Something that runs a function over tasks.

    Attributes:
        workers: how many tasks it does at once.
    """

    @property
    def workers(self) -> int:
        """How many tasks it does at once."""
        ...

    def map(
        self, function: Callable[[Any, Task], Outcome], tasks: Iterable[Task], *, setup: Setup
    ) -> Generator[tuple[int, Outcome]]:
        """Run a function over tasks; no more of them are under way than there are workers, however slowly the results are taken.

        Args:
            function: (state, task) → result; of a module, so that other processes find it by its name.
            tasks: small values.
            setup: what each worker's state is made of, once.

        Yields:
            Number of the task, counted from 0, and its result, as they come. Closing the generator stops the rest.

        Raises:
            EngineError: a task that could not be done.
        """
        ...


class LocalEngine:
    """This process, a task at a time."""

    workers = 1

    def map(
        self, function: Callable[[Any, Task], Outcome], tasks: Iterable[Task], *, setup: Setup
    ) -> Generator[tuple[int, Outcome]]:
        """Run a function over tasks, one after the other; see `Engine.map`."""
        state = setup.open()
        for number, task in enumerate(tasks):
            yield number, function(state, task)


@public
@contextmanager
def open_engine(engine: str = "local", *, address: str | None = None) -> Generator[Engine]:
    """Open what runs many tasks, for as many calls as you like; what takes `engine=` takes it or its name.

    Args:
        engine: "local" (this process) or "ray" (all processors of this machine, or a cluster; every GPU that it has, else every processor,
            is a worker).
        address: of a Ray cluster: "auto" for the one that this machine belongs to, HOST:PORT, or ray://HOST:PORT. None starts one here.

    Yields:
        The engine.

    Raises:
        BadSpec: no such engine, or an address that leads nowhere.
        MissingExtra: Ray is not installed.

    Example:
        >>> with open_engine("local") as engine:
        ...     engine.workers
        1
    """
    if engine not in ENGINES:
        raise BadSpec(f"engine={engine!r} is not known. Type one of: {', '.join(ENGINES)}")
    if engine == "local":
        if address is not None:
            raise BadSpec(f"address={address!r} is of a Ray cluster. Type also: engine='ray'")
        yield LocalEngine()
        return
    from clip_anatomy.engine.ray_engine import ray_engine

    with ray_engine(address) as opened:
        yield opened


def works_here(engine: Engine | str) -> bool:
    """Tell whether an engine is this process, where nothing has to be cut into parts."""
    return engine == "local" or isinstance(engine, LocalEngine)


@contextmanager
def engine_of(engine: Engine | str) -> Generator[Engine]:
    """Take an engine as it is, which stays open; open one that is named, for the time being."""
    if isinstance(engine, str):
        with open_engine(engine) as opened:
            yield opened
    else:
        yield engine


def in_order(results: Iterable[tuple[int, Outcome]]) -> Iterator[Outcome]:
    """Give results in the order of their tasks: one that comes before its turn waits.

    Example:
        >>> list(in_order([(1, "b"), (0, "a"), (2, "c")]))
        ['a', 'b', 'c']
    """
    waiting: dict[int, Outcome] = {}
    following = 0
    for number, result in results:
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def reduced(
    engine: Engine,
    function: Callable[[Any, Task], Outcome],
    merge: Callable[[Outcome, Outcome], Outcome],
    tasks: Sequence[Task],
    *,
    setup: Setup,
    fan: int = FAN,
) -> Outcome:
    """Merge the results of many tasks in a tree of two levels: workers merge those of neighbours, and what they give is merged here.

    The order of all merges is that of the tasks, whoever was first: any engine, and any number of workers, gives the same bits.

    Args:
        engine: what runs it.
        function: (state, task) → result.
        merge: (result, result) → result.
        tasks: at least one.
        setup: of the workers.
        fan: how many neighbours a worker merges.

    Example:
        >>> from operator import add
        >>> class Nothing:
        ...     def open(self): return 10
        >>> reduced(LocalEngine(), add, add, [1, 2, 3], setup=Nothing(), fan=2)
        36
    """
    groups = [(function, merge, tasks[first : first + fan]) for first in range(0, len(tasks), fan)]
    return reduce(merge, in_order(engine.map(_merged, groups, setup=setup)))


def _merged(state: Any, group: tuple[Callable[..., Any], Callable[..., Any], Sequence[Any]]) -> Any:
    function, merge, tasks = group
    return reduce(merge, (function(state, task) for task in tasks))
