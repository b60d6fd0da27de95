"""`clip-anatomy atlas`: what is each head about, and how do we know?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.naming.atlas import Atlas

DEFAULT_OUT = Path("clip-anatomy-atlas")


def atlas(
    store: Path,
    *,
    pool: Annotated[str | None, Parameter(alias="-p")] = None,
    texts: Annotated[int, Parameter(alias="-n")] = 20,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    adaptive: bool = False,
    rounds: int = 6,
    llm: str | None = None,
    llm_model: str | None = None,
    llm_price: tuple[float, float] | None = None,
    llm_timeout: float = 60.0,
    task: str = "",
    truth: str | None = None,
    images: int = 6,
    resamples: int = 50,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    device: str = "auto",
) -> int:
    """Name every head of an indexed collection: a browsable report with texts, pictures and doubts, and the same as JSON and Parquet.

    Open index.html in the folder: a map of all heads by role, search, and a page for each head. It needs no server. No image is
    run through the model; text embeddings and a language model's answers are kept on disk, so that a second run is quick.

    Args:
        store: a store that `clip-anatomy index` made.
        pool: texts to name heads with: general | world | a text file of one description a line. By default world for the demo model, else general.
        texts: how many texts of each head.
        out: folder for the report; by default clip-anatomy-atlas, and none with --json.
        as_json: print the atlas as JSON on stdout; without --out nothing is written.
        adaptive: grow the pool around what the heads are about until that no longer pays.
        rounds: how often it may grow.
        llm: address of an OpenAI-compatible API (http://127.0.0.1:8000/v1) whose language model names the heads and, with --adaptive, writes more texts. Its key: CLIP_ANATOMY_LLM_KEY.
        llm_model: name of the model there.
        llm_price: price of a million tokens in and out, to print the cost.
        llm_timeout: seconds to wait for one answer.
        task: ask the language model which roles can be spurious cues for this task.
        truth: columns of the table that came with the images (label,group,...) to check the heads against.
        images: how many pictures of either kind for each text.
        resamples: bootstrap resamples for the stability of each text; 0 for none.
        model: the store's model under another name or path; by default as it was indexed.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack

    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import BadInput
    from clip_anatomy.progress import note, progress
    from clip_anatomy.report.step_progress import stages

    if llm is None and (llm_model or llm_price or task):
        raise BadInput(
            "--llm-model, --llm-price and --task need a language model to ask. Type: --llm http://127.0.0.1:8000/v1"
        )
    if llm is not None and not llm_model:
        raise BadInput(f"which model at {llm}? Type: --llm-model NAME")
    if texts < 1 or images < 0 or resamples < 0:
        raise BadInput(
            f"--texts {texts}, --images {images}, --resamples {resamples}: type --texts 20 --images 6 --resamples 50"
        )
    folder = out if out is not None or as_json else DEFAULT_OUT
    with ExitStack() as stack:
        with progress(f"opening {store}"):
            from clip_anatomy.atomic_output import staged
            from clip_anatomy.loading.load import load
            from clip_anatomy.naming.build_atlas import atlas as make
            from clip_anatomy.naming.evidence import rows_at
            from clip_anatomy.naming.language_model import LanguageModel
            from clip_anatomy.report.atlas_pages import ATLAS, PAGE, write_atlas
            from clip_anatomy.report.atlas_table import has_parquet
            from clip_anatomy.store.store import Store

            asked = None
            if llm is not None and llm_model is not None:
                asked = LanguageModel(llm, llm_model, timeout=llm_timeout, price=llm_price)
            opened = Store.open(store)
            part = None if folder is None else stack.enter_context(staged(folder, ATLAS)).folder
            clip = load(model or opened.manifest.model, weights=weights, device=device)
        with stages() as tell:
            found = make(
                opened,
                clip,
                pool,
                texts_per_head=texts,
                resamples=resamples,
                images=images,
                adaptive=adaptive,
                rounds=rounds,
                model=asked,
                task=task,
                truth=None if truth is None else [name.strip() for name in truth.split(",")],
                report=tell,
                on_round=lambda one: note(f"pool of {one.texts:,} texts: {100 * one.explained:.2f} % explained"),
            )
            missing: list[str] = []
            if part is not None:
                missing = write_atlas(found, list(rows_at(opened, found.evidence).values()), part, tell)
    for message in [*found.notes, *(f"picture missing: {why}" for why in missing[:5])]:
        note(f"note: {message}")
    if found.bill:
        note(found.bill)
    if as_json:
        print(json_text(found.to_dict()), end="")
    else:
        _table(found)
    if folder is not None:
        if not has_parquet():
            note("no atlas.parquet: pyarrow is not installed. Type: pip install 'clip-anatomy[atlas]'")
        note(f"atlas: {folder / PAGE}")
    return 0


def _table(found: "Atlas") -> None:
    """Print every head on a line: role, how sure, what its texts explain, the first of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=130)
    view = Table(
        title=Text(f"{found.model}: {len(found.heads)} heads over {found.images:,} images"),
        title_justify="left",
        pad_edge=False,
    )
    for name, side in (
        ("head", "right"),
        ("role", "left"),
        ("sure", "right"),
        ("explained", "right"),
        ("first texts", "left"),
    ):
        view.add_column(name, justify="right" if side == "right" else "left")
    truth = any(head.truth for head in found.heads)
    if truth:
        view.add_column("in truth")
    for head in found.heads:
        sure = f"{head.role.confidence:.0%}" if head.role.named else ""
        words = Text(" · ".join(text.text for text in head.texts[:2]))
        row = [head.name, Text(head.role.name.replace("_", " ")), sure, f"{head.explained:.0%}", words]
        view.add_row(*row, *([f"{head.truth[0][0]} {head.truth[0][1]:.0%}" if head.truth else ""] if truth else []))
    console.print(view)
    told = found.agreement
    if told:
        asked, right = int(told["asked"]), int(told["right"])
        rate = f" ({right / asked:.0%})" if asked else ""
        print(
            f"{right} of {asked}{rate} named heads that one attribute drives (it explains {told['bar']:.0%} or more) have it as their "
            f"role; {int(told['mixed'])} more are called mixed."
        )
    for cue, said, why in found.cues:
        print(f"{cue}: spurious cue for {found.task}? {said}. {why}")
