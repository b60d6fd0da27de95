"""`clip-anatomy align`: how well do embeddings predict recordings of the same pictures?"""

from pathlib import Path

from clip_anatomy.cli.options import OutputOptions, StoreFolder


def align(
    store: StoreFolder,
    recordings: Path,
    *,
    folds: int = 5,
    permutations: int = 1000,
    seed: int = 0,
    output: OutputOptions = OutputOptions(),
) -> int:
    """Fit recordings (of a brain, of another model) by the embeddings of a store; no image is read.

    Writes align.png, align.json and the map into a folder. `explain`, `heatmap`, `segment`, `pairs` and `concepts` read a model without
    texts through it: --through FOLDER.

        clip-anatomy align STORE recordings.npy
        clip-anatomy align STORE recordings.npz --folds 10
        clip-anatomy align VIT-STORE CLIP-STORE --permutations 0 --out vit-to-clip

    Args:
        recordings: a .npy file [stimulus, channel] or [repeat, stimulus, channel] in the order of the store, or a .npz file with recordings, ids of the store's images and names of the channels; or another model's store of the same pictures.
        folds: of the cross-validation.
        permutations: shuffles for p and the chance level.
        seed: of folds and shuffles.

    Returns:
        Exit code 0.
    """
    from contextlib import ExitStack

    from clip_anatomy.progress import note, shown

    folder = output.folder("align")
    with ExitStack() as stack:
        progress = stack.enter_context(shown(f"opening {store}"))
        from clip_anatomy.report import figures
        from clip_anatomy.studies.align import align as run

        if folder is not None:
            figures.need_matplotlib()
        result = run(store, recordings, folds=folds, permutations=permutations, seed=seed, progress=progress)
        if folder is not None:
            result.save(folder)
    output.show(result)
    if folder is not None:
        note(f"figure: {folder / 'align.png'}")
    return 0
