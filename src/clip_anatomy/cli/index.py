"""`clip-anatomy index`: read a collection once and store what every head wrote."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import (
    MODELS,
    AsJson,
    BatchSize,
    Device,
    EngineOptions,
    Strict,
    Weights,
    Workers,
    print_result,
)

STOPPED, ENDED = 130, 143
IndexModel = Annotated[
    str | None,
    Parameter(
        name="--model", alias="-m", help=f"{MODELS}. By default the model of the store that is there, else demo."
    ),
]


def index(
    source: str,
    store: str,
    *,
    model: IndexModel = None,
    weights: Weights = None,
    layers: str | None = None,
    keep: str | None = None,
    convention: str | None = None,
    labels: Path | None = None,
    prune: bool = False,
    prune_all: bool = False,
    batch: BatchSize = None,
    workers: Workers = None,
    shard_size: int | None = None,
    part: str | None = None,
    strict: Strict = False,
    as_json: AsJson = False,
    device: Device = "auto",
    where: EngineOptions = EngineOptions(),
) -> int:
    """Read a collection once and store what every head wrote: the basis of atlas, search and repair.

    Type the same command again to go on after a stop, to add new images, or to try again those that could not be read.
    Nothing is done twice, and a kill costs at most half a minute of work.

        clip-anatomy index photos/ s3://bucket/store --engine ray --address auto
        clip-anatomy index photos/ store --part 3/8              the fourth of eight processes

    Args:
        source: a folder (with all folders in it; class folders give labels) | - for paths on standard input | a .txt list | a table .csv, .json or .jsonl | tar files | Parquet | s3://, gs:// or az:// with any of these | hf-dataset:NAME[:SPLIT] or hf-stream: | world:COUNT[:SPLIT] | imagenet:, waterbirds:, cub:, cifar10: or cifar100: and FOLDER[:SPLIT][:partial].
        store: folder of the store; made if it is not there. s3://, gs:// or az:// and a place, --shard-size, --part or --engine ray make a sharded store: pieces that any number of workers write at the same time.
        layers: all | last:4 | 8-11 | 0,3.
        keep: heads | heads,mlps. Embeddings are always kept.
        convention: centered | official: how LayerNorm's mean and the biases are shared.
        labels: a table of labels, groups and captions, by id, path or file name. Images that are known get them without being read again.
        prune: take out images that are no longer in the source; refused where that is most of them.
        prune_all: take them out all the same.
        shard_size: pictures in a shard; 4096 by default.
        part: K/N: only the shards whose number leaves K when divided by N, for processes that share the work by themselves (Slurm, torchrun).

    Returns:
        Exit code: 0 done, 1 an image could not be used under --strict, 130 stopped with Ctrl-C (what was finished is kept).
    """
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.errors import Ended
    from clip_anatomy.progress import note, shown

    with shown("opening the model"):
        from clip_anatomy.data.open_dataset import open_dataset
        from clip_anatomy.store.index import index as index_source
        from clip_anatomy.store.store_model import model_to_index

        opened = open_dataset(source, labels)  # a wrong path is said before minutes of loading
        clip = model_to_index(store, model, weights=weights, device=device)
    try:
        with shown(source) as tell, where.open() as engine:
            done = index_source(
                clip, opened, store, layers=layers, keep=keep, convention=convention, prune=prune, prune_all=prune_all,
                batch=batch, workers=workers, shard_size=shard_size, part=part, engine=engine, progress=tell,
            )  # fmt: skip
    except (KeyboardInterrupt, Ended) as stop:
        note(f"clip-anatomy: {stop}" if str(stop) else "clip-anatomy: stopped; what was committed is kept")
        return ENDED if isinstance(stop, Ended) else STOPPED
    for name, message in done.errors:
        note(f"not used: {name}: {in_cli_words(message)}")
    if done.failed > len(done.errors):
        note(f"... and {done.failed - len(done.errors):,} more; all of them: Store.open(...).rows(status='error')")
    print_result(done, as_json=as_json)
    return 1 if strict and done.failed else 0
