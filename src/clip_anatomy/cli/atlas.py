"""`clip-anatomy atlas`: what is each head about, and how do we know?"""

from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import (
    EngineOptions,
    OutputOptions,
    StoreFolder,
    StoreModelOptions,
    print_json,
    print_notes,
)


def atlas(
    store: StoreFolder,
    *,
    pool: Annotated[str | None, Parameter(alias="-p")] = None,
    texts: Annotated[int, Parameter(alias="-n")] = 20,
    output: OutputOptions = OutputOptions(),
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
    opening: StoreModelOptions = StoreModelOptions(),
    where: EngineOptions = EngineOptions(),
) -> int:
    """Name every head of an indexed collection: a browsable report with texts, pictures and doubts, and the same as JSON and Parquet.

    Open index.html in the folder: a map of all heads by role, search, and a page for each head. It needs no server. No image is
    run through the model; text embeddings and a language model's answers are kept on disk, so that a second run is quick.

    Args:
        pool: texts to name heads with: general | world | a text file of one description a line. By default world for the demo model, else general.
        texts: how many texts of each head.
        adaptive: grow the pool around what the heads are about until that no longer pays.
        rounds: how often it may grow.
        llm: address of an OpenAI-compatible API (http://127.0.0.1:8000/v1) whose language model names the heads and, with --adaptive, writes more texts. Its key: CLIP_ANATOMY_LLM_KEY.
        llm_model: name of the model there.
        llm_price: price of a million tokens in and out, to print the cost.
        llm_timeout: seconds to wait for one answer.
        task: ask the language model which roles can be spurious cues for this task.
        truth: columns of the table that came with the images (label,group,...) to check the heads against.
        images: how many pictures at either end of each text's direction.
        resamples: bootstrap resamples for the stability of each text; 0 for none.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack

    from clip_anatomy.progress import note, shown

    folder = output.folder("atlas")
    with ExitStack() as stack:
        with shown(f"opening {store}"):
            from clip_anatomy.atomic_output import atomic_output
            from clip_anatomy.naming.build_atlas import atlas as build_atlas
            from clip_anatomy.naming.language_model import language_model
            from clip_anatomy.naming.top_images import rows_at
            from clip_anatomy.report.atlas_pages import ATLAS, PAGE, write_atlas
            from clip_anatomy.report.atlas_table import has_parquet, print_atlas
            from clip_anatomy.store.store import Store
            from clip_anatomy.store.store_model import model_of

            llm_client = language_model(llm, llm_model, llm_price, llm_timeout, task)  # said before minutes of loading
            opened = Store.open(store)
            part = None if folder is None else stack.enter_context(atomic_output(folder, ATLAS)).folder
            clip = model_of(opened, **vars(opening))
        with shown() as tell, where.open() as engine:
            result = build_atlas(
                opened if where.engine == "local" else store, clip, pool, texts=texts, adaptive=adaptive, rounds=rounds, llm=llm_client, task=task, truth=truth,
                images=images, resamples=resamples, engine=engine, progress=tell,
            )  # fmt: skip
            missing: list[str] = []
            if part is not None:
                missing = write_atlas(result, list(rows_at(opened, result.evidence).values()), part, tell)
    for step in result.curve:
        note(f"pool of {step.texts:,} texts: {100 * step.explained:.2f} % explained")
    print_notes([*result.notes, *(f"picture missing: {why}" for why in missing[:5])])
    if result.llm_usage:
        note(result.llm_usage)
    if output.as_json:
        print_json(result.to_dict())
    else:
        print_atlas(result)
    if folder is not None:
        if not has_parquet():
            note("no atlas.parquet: pyarrow is not installed. Type: pip install 'clip-anatomy[atlas]'")
        note(f"atlas: {folder / PAGE}")
    return 0
