"""`clip-anatomy search`: more like this, but only in the property that I mean."""

from typing import Annotated, Any

from cyclopts import Parameter

from clip_anatomy.cli.options import AllowUrls, AtlasFile, EngineOptions, OutputOptions, StoreFolder, StoreModelOptions


def search(
    store: StoreFolder,
    *query: str,
    heads: Annotated[str | None, Parameter(alias="-H")] = None,
    k: Annotated[int, Parameter(alias="-k")] = 20,
    negative: list[str] | None = None,
    mode: str = "heads",
    focus: str | None = None,
    measure: str | None = None,
    where: str | None = None,
    captions: bool = False,
    atlas: AtlasFile = None,
    approximate: bool = False,
    output: OutputOptions = OutputOptions(),
    opening: StoreModelOptions = StoreModelOptions(),
    allow_urls: AllowUrls = False,
    where_it_runs: EngineOptions = EngineOptions(),
) -> int:
    """Find the pictures of a store that share a property with a picture or a text: the same texture, not the same thing.

    Writes index.html (one page that holds everything: each picture with the patches and heads that made it match), a contact
    sheet and search.json into a folder. The first search by property, role or words names the heads of the store, which takes a
    moment.

        clip-anatomy search STORE photo.jpg --heads texture
        clip-anatomy search STORE a.jpg b.jpg --negative c.jpg
        clip-anatomy search STORE "a red bird" --where "label = 'bird'"

    Args:
        query: pictures, ids of the store, or texts; image:, id: or text: in front says which.
        heads: what about it: a property (colour) | property=colour | role=colour | words=texture of fabric | 9.3,10.1 | auto, the default (in which the pictures agree more than chance) | all. With --captions heads of the text tower: all, the default | auto | words=WORDS | 2.1,3.0.
        k: how many results.
        negative: a picture, id or text that they should be unlike; repeat it for several.
        mode: heads | whole (compare whole embeddings) | without (whole embeddings without these heads: takes a property out).
        focus: a property (colour), or texts that differ in it (wood|metal): compare only along what these texts differ in.
        measure: cosine | dot; by default cosine for pictures, dot for a text alone.
        where: an SQL condition over id, path, size, label, "group", captions, meta.
        captions: find captions of the store for a picture, by heads of the text tower.
        approximate: use an approximate index of these heads, built in the store on first use, for more than ten million images.

    Returns:
        Exit code 0.
    """
    from dataclasses import replace

    from clip_anatomy.cli.options import print_notes
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.progress import note, shown
    from clip_anatomy.retrieval.search import search as find
    from clip_anatomy.retrieval.text_search import search_captions
    from clip_anatomy.store.store import Store
    from clip_anatomy.store.store_model import model_of

    if captions:
        ignored = {"--negative": negative, "--mode": mode != "heads", "--focus": focus, "--where": where, "--out": output.out,
                   "--approximate": approximate, "--atlas": atlas, "--engine": where_it_runs.engine != "local"}  # fmt: skip
        _refuse_ignored("--captions", ignored)
    folder = None if captions else output.folder("search")
    with shown(f"opening {store}") as tell:
        opened = Store.open(store)
        needs_model = opening.model or opening.weights or folder or captions
        clip = model_of(opened, **vars(opening)) if needs_model else None
        if captions:
            result = search_captions(
                opened, [*query], heads, k, measure=measure, allow_urls=allow_urls, clip=clip, progress=tell
            )
        else:
            with where_it_runs.open() as engine:
                result = find(
                    opened, [*query], heads, k, negative=negative, mode=mode, focus=focus, measure=measure, where=where,
                    atlas=atlas, approximate=approximate, allow_urls=allow_urls, clip=clip, device=opening.device, engine=engine, progress=tell,
                )  # fmt: skip
            result = replace(result, notes=tuple(map(in_cli_words, result.notes)))  # of the page too
            print_notes(result.notes)
    if folder is not None:
        with shown("drawing the page"):
            page = result.save(folder)
        note(f"page: {page}")
    output.show(result)
    return 0


def _refuse_ignored(option: str, given: dict[str, Any]) -> None:
    from clip_anatomy.errors import BadInput

    if ignored := [name for name, value in given.items() if value]:
        raise BadInput(
            f"{option} takes a picture, --heads, -k and --measure; {ignored[0]} would do nothing. Leave it away"
        )
