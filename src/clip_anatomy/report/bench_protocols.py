"""Protocols in print: which there are, what one gave, and several methods under one."""

from collections.abc import Callable
from dataclasses import asdict
from math import isnan
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.table import Table

from clip_anatomy.atomic_output import as_json as json_text
from clip_anatomy.data.masked_datasets import READERS
from clip_anatomy.evaluation.protocols import PROTOCOLS
from clip_anatomy.evaluation.published_settings import PUBLISHED
from clip_anatomy.evaluation.run_protocol import Outcome
from clip_anatomy.progress import note

__all__ = ["STOPPED", "compare", "configuration", "list_protocols", "skipped", "tell_outcome"]

SHOWN = 8  # skipped pictures that are named one by one
STOPPED = 130
WIDE = 100
LABEL = 28


def list_protocols(*, as_json: bool) -> int:
    """Print every protocol, whose settings there are, and where the data sets come from."""
    if as_json:
        rows = {
            name: {"told": p.told, "get it": READERS[p.dataset].where, "settings": asdict(p.settings)}
            for name, p in PROTOCOLS.items()
        }
        papers = {name: asdict(paper) for name, paper in PUBLISHED.items()}
        print(json_text({"schema": "clip-anatomy/protocols/1", **rows, "like": papers}), end="")
        return 0
    print(
        _entry(
            "maps", "all map methods in one table: the demo world (nothing to get), or a folder as for coco-sample", 22
        )
    )
    for name, protocol in PROTOCOLS.items():
        print(_entry(name, protocol.told, 22))
    print("\nSettings of a paper (--like)")
    for name, paper in PUBLISHED.items():
        print(_entry(name, f"{paper.told}: {', '.join(paper.by_protocol)}", 22))
    print("\nWhere the data come from")
    places: dict[str, list[str]] = {}
    for name, protocol in PROTOCOLS.items():
        places.setdefault(READERS[protocol.dataset].where, []).append(name)
    for where, names in places.items():
        print(f"\n{', '.join(names)}\n{fill(where + '.', WIDE, initial_indent='    ', subsequent_indent='    ')}")
    return 0


def tell_outcome(found: Outcome, *, classes: bool, as_json: bool) -> int:
    """Print one result with its configuration; exit code."""
    if as_json:
        print(json_text(found.to_dict()), end="")
    else:
        configuration(found.configuration)
        print()
        if classes:
            for name, value in found.per_class.items():
                print(f"  {name:<{LABEL}}{'–' if isnan(value) else f'{100 * value:6.2f} %'}")
            print()
        for name, value in found.figures.items():
            # Saliency measures are told as shares, the others in per cent, as their papers do.
            print(f"{name:<{LABEL}}{value:8.3f}" if "MAE" in found.figures else f"{name:<{LABEL}}{100 * value:8.2f} %")
        print(f"{'pictures measured':<{LABEL}}{found.pictures:8,}")
        if found.skipped:
            print(f"{'pictures skipped':<{LABEL}}{len(found.skipped):8,}")
        print(f"{'seconds':<{LABEL}}{found.seconds:8.1f}")
    skipped(found.skipped)
    if found.partial:
        note("stopped: these figures are PARTIAL, of the pictures measured so far")
    return STOPPED if found.partial else 0


def compare(outcomes: list[Outcome], *, as_json: bool) -> int:
    """Print several methods under one protocol: what they share once, then a row each; exit code."""
    last = outcomes[-1]
    if as_json:
        rows = [one.to_dict() for one in outcomes]
        held = {"schema": "clip-anatomy/bench-methods/1", "protocol": last.protocol, "outcomes": rows}
        print(json_text(held), end="")
    else:
        configuration({k: v for k, v in last.configuration.items() if k not in ("method", "method options")})
        view = Table(box=None, pad_edge=False)
        view.add_column("\nmethod", style="bold")
        for name in (*last.figures, "pictures", "seconds"):
            view.add_column(f"\n{name}", justify="right")
        for one in outcomes:
            shares = [f"{v:.3f}" if "MAE" in one.figures else f"{100 * v:.2f} %" for v in one.figures.values()]
            mark = " (partial)" if one.partial else ""
            view.add_row(one.configuration["method"] + mark, *shares, f"{one.pictures:,}", f"{one.seconds:.1f}")
        Console(highlight=False).print(view)
    skipped(last.skipped)
    if last.partial:
        note("stopped: the last method is PARTIAL, of the pictures measured so far")
    return STOPPED if last.partial else 0


def configuration(config: dict[str, Any]) -> None:
    """Print every setting, long ones over several lines."""
    for key, value in config.items():
        if value is None or (isinstance(value, list | tuple) and not value):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items())  # noqa: PLW2901
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))  # noqa: PLW2901
        print(_entry(key, str(value), LABEL))


def skipped(found: tuple[tuple[str, str], ...], say: Callable[[str], None] = note) -> None:
    """Name what could not be measured."""
    for name, why in found[:SHOWN]:
        say(f"skipped {name}: {why}")
    if len(found) > SHOWN:
        say(f"and {len(found) - SHOWN} more were skipped: --json names them all")


def _entry(name: str, told: str, wide: int) -> str:
    """A name, then words in a column of their own."""
    head = f"{name:<{wide - 1}} "
    return fill(
        told, WIDE, initial_indent=head, subsequent_indent=" " * wide, break_long_words=False, break_on_hyphens=False
    )
