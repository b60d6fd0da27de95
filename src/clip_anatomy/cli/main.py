"""The command line: one verb per question. `clip-anatomy --help` imports no verb and no library, so it answers at once.

A verb is a function in a file of its own; its signature and its docstring are the command and its help. To add one, add a line
to VERBS.
"""

import inspect
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any

from clip_anatomy import __version__
from clip_anatomy.cli.wording import in_cli_words
from clip_anatomy.errors import BadInput, ClipAnatomyError, Ended
from clip_anatomy.network import allow_network
from clip_anatomy.progress import note, say
from clip_anatomy.run_record import recorded

VERBS = {  # name → (where its function is, what it answers)
    "demo": (
        "clip_anatomy.cli.demo:demo",
        "Explain the bundled pictures, and yours, with the bundled model.",
    ),
    "serve": ("clip_anatomy.cli.serve:serve", "Open the studio: a page to click on."),
    "explain": (
        "clip_anatomy.cli.explain:explain",
        "Say why pictures match texts: shares of layers, heads, MLPs, patches.",
    ),
    "heatmap": (
        "clip_anatomy.cli.heatmap:heatmap",
        "Show where in pictures texts match, by any method.",
    ),
    "pairs": ("clip_anatomy.cli.pairs:pairs", "Say why two pictures, two texts, or one of each are similar."),
    "segment": (
        "clip_anatomy.cli.segment:segment",
        "Cut out of pictures what texts name: masks, points and boxes.",
    ),
    "refer": ("clip_anatomy.cli.refer:refer", "Find the region of a picture that a phrase names."),
    "check": ("clip_anatomy.cli.check:check", "Prove that a model is opened and split exactly."),
    "index": (
        "clip_anatomy.cli.index:index",
        "Read a collection once and store what every head wrote.",
    ),
    "verify": ("clip_anatomy.cli.verify:verify", "Find what is damaged or missing in a store."),
    "search": (
        "clip_anatomy.cli.search:search",
        "Find pictures that share a property with a picture or a text.",
    ),
    "atlas": ("clip_anatomy.cli.atlas:atlas", "Say in words, with evidence, what every head is about."),
    "concepts": (
        "clip_anatomy.cli.concepts:concepts",
        "Write pictures as sums of few texts.",
    ),
    "mutual": (
        "clip_anatomy.cli.mutual:mutual",
        "Say which details a picture and its label share, and which they do not.",
    ),
    "paths": (
        "clip_anatomy.cli.paths:paths",
        "Say what neurons, heads and MLPs do through later heads.",
    ),
    "ablate": (
        "clip_anatomy.cli.ablate:ablate",
        "Say which layers, heads and MLPs the answers hang on.",
    ),
    "align": ("clip_anatomy.cli.align:align", "Predict recordings of pictures from their embeddings."),
    "apply": ("clip_anatomy.cli.apply:apply", "Embed pictures with an edited model."),
    "export": (
        "clip_anatomy.cli.export:export",
        "Write an edited model as one file of torch code, or as ONNX.",
    ),
    "probe": (
        "clip_anatomy.cli.probe:probe",
        "Say what a linear classifier reads off the embedding, and off parts of it.",
    ),
    "repair": (
        "clip_anatomy.cli.repair:repair",
        "Find the parts that a wrong answer hangs on, ablate them, save the edit.",
    ),
    "bench": (
        "clip_anatomy.cli.bench:bench",
        "Measure by a published protocol, or compare all map methods.",
    ),
}
EPILOGUE = (
    "Help on one of them: clip-anatomy VERB --help. Every message ends with what to type instead; --debug adds the traceback, --log FILE a log. "
    "A store, an edit and a folder never reach the network, unless you add --allow-network."
)
ABOUT = "Open up a CLIP model: what each layer, head, MLP and patch adds to the match of a picture and a text."
BAD_INPUT, BROKEN, STOPPED, ENDED = 2, 3, 130, 143
SIGNALS: dict[int, tuple[type[BaseException], int, str]] = {
    signal.SIGINT: (KeyboardInterrupt, STOPPED, "stopped"),
    signal.SIGTERM: (Ended, ENDED, "ended"),
}
_asked: list[int] = []  # signals of this run, in order


def app(verb: str = "") -> Any:
    """Build the cyclopts application with all verbs, none of them imported.

    Args:
        verb: the one that is called: its own page of help is its docstring, not the line that lists it.
    """
    from cyclopts import App, Parameter

    from clip_anatomy.number_ranges import finite

    built = App(
        name="clip-anatomy",
        help=ABOUT,
        help_epilogue=EPILOGUE,
        version=__version__,
        help_format="plaintext",
        default_parameter=Parameter(negative=(), validator=finite),
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for place, (name, (where, answers)) in enumerate(VERBS.items()):
        built.command(where, name=name, help=_page(where) if name == verb else answers, sort_key=place)
    return built


def front_page(width: int) -> str:
    """List what can be typed, without the library that reads the options."""
    column = max(map(len, VERBS)) + 4
    lines = [f"Usage: clip-anatomy VERB [OPTIONS]\n\n{textwrap.fill(ABOUT, width)}\n"]
    for verb, (_, answers) in VERBS.items():
        lines.append(
            textwrap.fill(answers, width, initial_indent=f"  {verb:{column - 2}}", subsequent_indent=" " * column)
        )
    return "\n".join(
        [
            *lines,
            "",
            f"  {'--version':{column - 2}}Print the version.",
            "",
            textwrap.fill(EPILOGUE, width, break_on_hyphens=False),
        ]
    )


def _page(where: str) -> str:
    """Return what a verb's docstring says above its arguments: paragraphs as long lines, for the terminal to break, and examples as they stand."""
    module, function = where.split(":")
    docstring = inspect.getdoc(getattr(import_module(module), function)) or ""
    paragraphs = re.split(r"\n\n(?:Args|Returns|Raises):", docstring)[0].split("\n\n")
    return "\n\n".join(text if text.startswith(" ") else text.replace("\n", " ") for text in paragraphs)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `clip-anatomy`; by default those of this process.

    Returns:
        0 done · 1 a check failed, or a picture could not be read under --strict · 2 bad input · 3 a defect of this program ·
        130 stopped with Ctrl-C · 143 ended.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode gets "?" for a letter, not an error
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if argv is None:
        _listen()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("CLIP_ANATOMY_DEBUG", "") not in ("", "0")
    network = "--allow-network" in arguments
    arguments = [word for word in arguments if word not in ("--debug", "--allow-network")]
    _asked.clear()
    try:
        arguments, file = _log_file(arguments)
        with allow_network() if network else nullcontext(), recorded(arguments, file):
            code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone, as in `clip-anatomy … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        if (stop := _stop_of(error)) is not None:
            return stop
        if debug or not isinstance(error, Exception):
            raise
        if _ran_out(error):
            return _say(
                "error: memory ran out. Type fewer or smaller pictures, a smaller --batch, or a smaller model",
                BAD_INPUT,
            )
        if isinstance(error, OSError) and not isinstance(
            error, ClipAnatomyError
        ):  # the machine's word, not ours: a name, a disk
            return _say(f"error: {error}. Type a path that can be read and written", BAD_INPUT)
        if isinstance(error, ClipAnatomyError):
            return _say(f"error: {in_cli_words(str(error))}", BAD_INPUT)
        return _say(f"a defect of clip-anatomy: {type(error).__name__}: {error}. To see where, add --debug", BROKEN)
    return SIGNALS[_asked[0]][1] if _asked else code


def _log_file(words: list[str]) -> tuple[list[str], Path | None]:
    """Take `--log FILE` out of what was typed."""
    for at, word in enumerate(words):
        if word.startswith("--log="):
            return words[:at] + words[at + 1 :], Path(word.removeprefix("--log="))
        if word == "--log":
            if at + 1 == len(words):
                raise BadInput("--log needs a file. Type --log run.jsonl")
            return words[:at] + words[at + 2 :], Path(words[at + 1])
    return words, None


def _listen() -> None:
    """Let SIGTERM clear up as Ctrl-C does, and remember that either came.

    An exception that is raised while a library is imported, exported to or torn down may come out as another one, or be dropped:
    what was asked for decides then, not what came out.
    """

    def asked(number: int, _: FrameType | None) -> None:
        _asked.append(number)
        raise SIGNALS[number][0]

    def dropped(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt | Ended):  # inside a destructor: once more, outside of it
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(lost)

    for number in SIGNALS:
        signal.signal(number, asked)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: asked(_asked[0], None))
        sys.unraisablehook = dropped


def _ran_out(error: BaseException) -> bool:
    """Tell whether memory ran out, of this machine's or of a GPU's."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    from clip_anatomy.images.batch_size import is_out_of_memory

    return is_out_of_memory(error)


def _stop_of(error: BaseException) -> int | None:
    """Return the exit code where we were asked to stop, whatever came of that; None otherwise."""
    meant = (number for number, (kind, *_) in SIGNALS.items() if isinstance(error, kind))
    number = _asked[0] if _asked else next(meant, None)
    if number is None:
        return None
    _, code, ending = SIGNALS[number]
    return _say(f"{ending}; nothing half-written", code)


def _run(arguments: list[str]) -> int:
    if arguments in ([], ["--help"], ["-h"]):
        say(front_page(min(shutil.get_terminal_size((100, 24)).columns, 120)))
        return 0
    from cyclopts import CycloptsError

    arguments = [
        "/dev/stdin" if word == "-" else word for word in arguments
    ]  # cyclopts takes a lone hyphen for an option
    try:
        code = app(arguments[0] if arguments else "")(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as e:
        message = str(e) if str(e).endswith(("?", ".")) else f"{e}."
        verb = f"{arguments[0]} " if arguments and arguments[0] in VERBS else ""
        return _say(f"error: {message} Type: clip-anatomy {verb}--help", BAD_INPUT)
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    note(f"clip-anatomy: {message}")
    return code


if __name__ == "__main__":
    sys.exit(main())
