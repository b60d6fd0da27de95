"""`clip-anatomy search`: more like this, but only in the property that I mean."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from clip_anatomy.loading.clip import Clip
    from clip_anatomy.retrieval.ranking import Ranking
    from clip_anatomy.store.store import Store

DEFAULT_OUT = Path("clip-anatomy-search")
DEMO = (
    "the bundled demo model knows only a small drawn world, and sees little in photographs. Index them with a model that is in use: "
    "clip-anatomy index PHOTOS STORE --model open_clip:ViT-B-16/laion2b_s34b_b88k"
)


def search(
    store: Path,
    *query: str,
    heads: Annotated[str | None, Parameter(alias="-H")] = None,
    only: str | None = None,
    text: Annotated[list[str] | None, Parameter(alias="-t")] = None,
    less: list[str] | None = None,
    without: str | None = None,
    whole: bool = False,
    focus: str | None = None,
    measure: str | None = None,
    centred: Annotated[bool | None, Parameter(negative="--uncentred")] = None,
    k: Annotated[int, Parameter(alias="-k")] = 20,
    page: int = 1,
    where: str | None = None,
    param: list[str] | None = None,
    copies: bool = False,
    captions: bool = False,
    atlas: Path | None = None,
    approximate: Path | None = None,
    build: Path | None = None,
    maps: int | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    sheet: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    allow_urls: bool = False,
) -> int:
    """Find the pictures of a store that share a property with a picture or a text: the same texture, not the same thing.

    Writes index.html (one page that holds everything: each picture with the patches and heads that made it match), a contact
    sheet and search.json into a folder. The first search by role or words names the heads of the store, which takes a moment.

        clip-anatomy search STORE photo.jpg --only texture
        clip-anatomy search STORE a.jpg b.jpg --less c.jpg
        clip-anatomy search STORE "a red bird" --where "label = ?" --param bird

    Args:
        store: a store that `clip-anatomy index` made.
        query: pictures, ids of the store, or texts; image:, id: or text: in front says which.
        heads: property=colour | role=colour | words=texture of fabric | 9.3,10.1 | auto (in which the pictures agree more than chance) | all. With --captions heads of the text tower: all | auto | words=WORDS | 2.1,3.0.
        only: what about it: a property (colour), or words ("its background").
        text: a text that the results should match as well; repeat it for several.
        less: a picture, id or text that they should be unlike; repeat it for several.
        without: compare the whole embedding without these heads, typed as for --heads: takes a property out.
        whole: compare whole embeddings.
        focus: a property (colour), or texts that differ in it (wood|metal): compare only along what these texts differ in.
        measure: cosine | dot; by default cosine for pictures, dot for a text alone.
        centred: take the stored means away (--uncentred: do not); by default in heads only.
        k: how many results on a page.
        page: which page.
        where: an SQL condition over id, path, size, label, "group", captions, meta.
        param: value of a ? in it; repeat it for several.
        copies: show equal files each by itself.
        captions: find captions of the store for a picture, by heads of the text tower.
        atlas: atlas.json, or folder of an atlas, that names the heads; by default the one kept in the store.
        approximate: an index made with --build, for stores of more than ten million images.
        build: make such an index of --heads in this folder and print its recall.
        maps: for how many results to show which patches made them match; by default all on the page.
        out: folder for the page; by default clip-anatomy-search, and none with --json or --sheet.
        sheet: write the contact sheet to this PNG.
        as_json: print the results as JSON on stdout.
        model: the store's model under another name or path; by default as it was indexed.
        weights: a checkpoint file for open_clip:NAME.
        device: auto, cpu, cuda, cuda:1, mps.
        threads: of the scan; all cores by default; 1 is faster on a busy machine.
        allow_urls: fetch pictures given as http(s) addresses.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack
    from dataclasses import replace
    from functools import cache

    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.errors import BadInput, OutputError
    from clip_anatomy.progress import note, progress
    from clip_anatomy.report.search_lines import print_ranking
    from clip_anatomy.report.step_progress import stages

    if page < 1 or (maps is not None and maps < 0):
        raise BadInput(f"--page {page}, --maps {maps}: pages count from 1. Type --page 1")
    if sum(given is not None for given in (heads, only, without)) + whole > 1:
        raise BadInput("--heads, --only, --without and --whole exclude each other. Type one of them")
    if captions or build is not None:
        _refuse_beside(
            "--captions" if captions else "--build",
            {
                "--only": only, "--without": without, "--whole": whole, "--text": text, "--less": less, "--focus": focus,
                "--where": where, "--approximate": approximate, "--out": out, "--sheet": sheet, "--page": page > 1,
                "--build": captions and build, "QUERY": not captions and query, "--json": not captions and as_json,
            },
        )  # fmt: skip
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise BadInput(f"--sheet {sheet}: a contact sheet is a PNG. Type --sheet {sheet.with_suffix('.png')}")
    folder = out if out is not None or as_json or sheet is not None or captions or build is not None else DEFAULT_OUT
    with ExitStack() as stack:
        with progress(f"opening {store}"):
            from clip_anatomy.atomic_output import staged
            from clip_anatomy.report.search_folder import PAGE, SEARCH
            from clip_anatomy.retrieval.search import search as find
            from clip_anatomy.store.store import Store

            opened = Store.open(store)
            part = None if folder is None else stack.enter_context(staged(folder, SEARCH)).folder

        @cache
        def load_model() -> "Clip":
            from clip_anatomy.loading.load import load

            found = load(model or opened.manifest.model, weights=weights, device=device)
            opened.manifest.refuse_other(found.name, found.digest, opened.path)
            return found

        if build is not None:
            return _build(opened, heads, build, measure=measure, centred=centred)
        if captions:
            return _captions(
                opened,
                list(query),
                load_model(),
                heads or "all",
                k=k,
                measure=measure,
                centred=centred,
                as_json=as_json,
                urls=allow_urls,
            )
        clip = load_model() if model or weights else None
        if clip is None and (part is not None or sheet is not None or _needs_model(opened, query, text, less, focus)):
            clip = load_model()
        with stages() as tell:
            found = find(
                opened, list(query), without or only or heads or "auto", k, less=less, text=text or (),
                mode="whole" if whole else "without" if without else "heads",
                focus=focus.split("|") if focus is not None and "|" in focus else focus,
                measure=measure, centred=centred, where=where, parameters=[_value(one) for one in param or []],
                offset=(page - 1) * k, fold=not copies, clip=clip, atlas=atlas, approximate=approximate,
                allow_urls=allow_urls, threads=threads, device=device, report=tell,
            )  # fmt: skip
        if clip is not None:
            found = _said(found, opened, clip, atlas)
        if opened.manifest.model == "demo" and any(not hit.row.source.startswith("world:") for hit in found.hits):
            found = replace(found, notes=(*found.notes, DEMO))
        missing: list[str] = []
        if part is not None or sheet is not None:
            missing, drawn = _write(found, opened, clip, part, maps)
            if sheet is not None:
                try:
                    temporary = sheet.with_name(f".{sheet.name}.part")
                    temporary.write_bytes(drawn)
                    temporary.replace(sheet)
                except OSError as error:
                    raise OutputError(f"{sheet} cannot be written ({error}). Type a path that you may write") from error
    for message in [*found.notes, *(f"picture missing: {why}" for why in dict.fromkeys(missing))][:8]:
        note(f"note: {message}")
    if as_json:
        print(json_text(found.to_dict()), end="")
    else:
        print_ranking(found)
    if folder is not None:
        note(f"page: {folder / PAGE}")
    if sheet is not None:
        note(f"contact sheet: {sheet}")
    return 0


def _needs_model(opened: "Store", query: tuple[str, ...], text: Any, less: Any, focus: str | None) -> bool:
    """Whether anything but ids of the store was given."""
    names = [one.removeprefix("id:") for one in (*query, *(less or ()))]
    return bool(text or focus) or any(not opened.rows("id = ?", [name]) for name in names)


def _refuse_beside(what: str, given: dict[str, Any]) -> None:
    """What would be ignored is refused."""
    from clip_anatomy.errors import BadInput

    if ignored := [name for name, value in given.items() if value]:
        takes = {"--captions": "a picture, --heads, -k, --measure and --uncentred", "--build": "--heads and --measure"}[
            what
        ]
        raise BadInput(f"{what} takes {takes}; {ignored[0]} would do nothing. Leave {ignored[0]} away")


def _value(text: str) -> str | int | float:
    """A parameter as SQL compares it: a number where it is written as one (007 and 1e3 are words)."""
    if re.fullmatch(r"-?(0|[1-9]\d{0,17})", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(0|[1-9]\d*)\.\d+", text) else text


def _said(found: "Ranking", opened: "Store", clip: "Clip", atlas: Path | None) -> "Ranking":
    """Say in words what results have in common with the question, as far as the heads have names."""
    from clip_anatomy.report.step_progress import stages
    from clip_anatomy.retrieval.shared_texts import alike, named, texts_for
    from clip_anatomy.retrieval.store_atlas import atlas_of, kept_atlas

    # A search by numbers does not wait for names; one whose heads were found by themselves would say nothing without them.
    with stages() as tell:
        wait = atlas is not None or found.choice == "auto"
        known = atlas_of(opened, lambda: clip, atlas, tell) if wait else kept_atlas(opened)
    found = found if known is None else named(found, known)
    return alike(clip, opened, found, texts_for(clip, found, known))


def _write(
    found: "Ranking", opened: "Store", clip: "Clip | None", part: Path | None, maps: int | None
) -> tuple[list[str], bytes]:
    """Fetch the pictures; draw page and contact sheet."""
    import json

    from clip_anatomy.progress import progress
    from clip_anatomy.report.search_folder import MARK, PAGE, SHEET
    from clip_anatomy.report.search_page import search_page
    from clip_anatomy.report.search_pictures import gather, gather_query
    from clip_anatomy.report.search_sheet import contact_sheet

    maps = len(found.hits) if maps is None else maps
    # A contact sheet alone shows no maps.
    looking = clip if part is not None and maps else None
    with progress("fetching pictures", len(found.hits)) as step:
        query = gather_query(found, opened, looking)
        shown = gather(found, opened, looking, maps, step)
    drawn = contact_sheet(found, query, shown)
    if part is not None:
        (part / SHEET).write_bytes(drawn)
        (part / MARK).write_text(json.dumps(found.to_dict(), allow_nan=False) + "\n", encoding="utf-8")
        (part / PAGE).write_text(search_page(found, query, shown), encoding="utf-8", errors="replace")
    return [f"{one.name}: {one.missing}" for one in (*query, *shown) if one.image is None], drawn


def _captions(
    opened: "Store",
    query: list[str],
    clip: "Clip",
    heads: str,
    *,
    k: int,
    measure: str | None,
    centred: bool | None,
    as_json: bool,
    urls: bool,
) -> int:
    """Find captions for a picture and print them."""
    from clip_anatomy.atomic_output import as_json as json_text
    from clip_anatomy.report.search_lines import print_texts
    from clip_anatomy.report.step_progress import stages
    from clip_anatomy.retrieval.text_search import search_captions

    with stages() as tell:
        found = search_captions(
            opened, query, clip, heads, k, measure=measure or "dot", centred=centred is not False, allow_urls=urls,
            progress=tell,
        )  # fmt: skip
    if as_json:
        print(json_text(found.to_dict()), end="")
    else:
        print_texts(found)
    return 0


def _build(opened: "Store", heads: str | None, out: Path, *, measure: str | None, centred: bool | None) -> int:
    """Build an approximate index and print its recall."""
    from clip_anatomy.errors import BadInput
    from clip_anatomy.report.step_progress import stages
    from clip_anatomy.retrieval.approximate import build_index

    if heads is None:
        raise BadInput(f"an index serves one set of heads. Type --heads 9.3,10.1 --build {out}")
    with stages() as tell:
        built = build_index(opened, heads, out, cosine=measure != "dot", centred=centred is not False, progress=tell)
    print(f"{out}: {built.images:,} images, heads {heads}, in {built.seconds:.0f} s; {built.told}")
    return 0
