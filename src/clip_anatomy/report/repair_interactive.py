"""A repair at the terminal: one screen, and a person in the loop who tries parts until one choice is kept."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.loading.typed_texts import shorten
from clip_anatomy.progress import ask, note, say_drawn
from clip_anatomy.report import repair_terminal as screen
from clip_anatomy.report.repair_terminal import percent
from clip_anatomy.report.thumbnails import thumbnails
from clip_anatomy.store.store import Store
from clip_anatomy.studies.example_images import cue_examples
from clip_anatomy.studies.find_cue import CueSearch
from clip_anatomy.studies.repair import RepairResult, ablation_in
from clip_anatomy.studies.repair_effect import validation_score

__all__ = ["pictures", "show"]

WIDE, TALL = 10, 5  # characters of a small picture at a terminal: each is two pixels, one above the other
SHOWN = 6
UPPER = "▀"


def show(result: RepairResult, *, asking: bool, words: Callable[[str], str] = str) -> RepairResult:
    """Print a repair on one screen.

    Args:
        result: with the parts that are suggested, or were asked for.
        asking: ask which parts to ablate before what that does to the test images is printed.
        words: puts what an error tells people to type into the words of whoever asks.

    Returns:
        The result with the parts that were chosen.

    Raises:
        BadInput: nobody answers.
    """
    store, cue_search = result.store, result.cue
    page = screen.console()
    for piece in (*screen.before(store, cue_search), *screen.suspects(cue_search), *screen.strategies(cue_search)):
        say_drawn(page, piece)
    if asking:
        for piece in pictures(store, cue_search, page):
            say_drawn(page, piece)
        result = _chosen(result, words)
    for piece in screen.after(cue_search, result.effect, result.alternatives):
        say_drawn(page, piece)
    return result


def _chosen(result: RepairResult, words: Callable[[str], str]) -> RepairResult:
    """Ask which parts to ablate, showing what each answer does on the validation half, until one is kept."""
    before, chosen, spec = result.cue.before, "", result.effect.ablation.spec
    question = f"Ablate which? Enter takes {spec}; or type 7.0,7.3+mlp=2, role=ROLE, none: "
    while True:
        answer = _answer(question) or chosen
        try:
            current = result.effect.ablation
            ablation = ablation_in(answer, result.store, result.cue, current.effect) if answer else current
            after = validation_score(result.store, result.cue, ablation, result.clip)
        except ClipAnatomyError as error:
            note(words(str(error)))
            continue
        chosen = answer
        note(
            f"{ablation.spec}: on the pictures to choose on average {percent(before.average)} → {percent(after.average)}, worst group "
            f"{percent(before.worst)} → {percent(after.worst)}, mean over groups {percent(before.mean)} → {percent(after.mean)}"
        )
        if _answer("Keep this? Enter or y, or n to try others: ").lower() in ("", "y", "yes"):
            return result.selecting(answer) if answer else result
        question = f"Ablate which? Enter takes {ablation.spec}: "


def pictures(store: Store, cue_search: CueSearch, page: Console) -> Iterator[Text | Table]:
    """Draw with characters the pictures for which each suspected part writes most; nothing without colours."""
    if not page.is_terminal or page.color_system not in ("truecolor", "256"):
        return
    suspects = cue_search.suspected(SHOWN)[:SHOWN]
    each = 3 if page.width >= 6 * (WIDE + 1) + 24 else 2 if page.width >= 4 * (WIDE + 1) + 24 else 1
    examples = cue_examples(store, cue_search, [one.part for one in suspects], each)
    rows = {row.id: row for one in examples for row in one.rows}
    small = {row.id: image for row, image, _ in thumbnails(rows.values()) if image is not None}
    if not small:
        return
    view = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for one in suspects:
        cells = [Text(one.part.name + "\n" + shorten(one.role.replace("_", " "), 18))]
        for example in examples:
            if example.part == one.part:
                cells.append(Text(f"most\n“{shorten(example.text, 10)}”", style="dim"))
                cells += [_drawn(small[row.id]) if row.id in small else Text("?") for row in example.rows]
        view.add_row(*cells)
    yield Text()
    yield Text("Pictures to choose on, for which each writes most toward the cue:")
    yield view


def _drawn(image: Image.Image) -> Text:
    """Draw a picture in half blocks: the upper pixel is the letter, the lower one what stands behind it."""
    pixels = np.asarray(image.convert("RGB").resize((WIDE, 2 * TALL), Image.Resampling.BOX))
    drawn = Text()
    for row in range(TALL):
        for upper, lower in zip(pixels[2 * row].tolist(), pixels[2 * row + 1].tolist(), strict=True):
            drawn.append(UPPER, style=f"rgb({','.join(map(str, upper))}) on rgb({','.join(map(str, lower))})")
        drawn.append("\n")
    return drawn


def _answer(question: str) -> str:
    """Read one line that a person typed; the question goes to stderr."""
    if (answer := ask(question)) is None:
        raise BadInput("nobody answered. Type yes=True to ablate what is suggested, or select='7.0,7.3'")
    return answer
