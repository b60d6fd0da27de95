"""`clip-anatomy refer`: which region does this phrase name?"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import AllowUrls, ModelOptions, OutputOptions, print_notes


def refer(
    image: str,
    phrase: str,
    masks: Path | None = None,
    *,
    method: str = "split",
    places: Annotated[bool, Parameter(negative="--no-places")] = True,
    weigh: Annotated[bool, Parameter(negative="--no-weigh")] = False,
    opening: ModelOptions = ModelOptions(),
    output: OutputOptions = OutputOptions(),
    allow_urls: AllowUrls = False,
) -> int:
    """Find the region of a picture that a phrase names, among masks that you bring or proposals from our own maps.

    Writes refer.png (the best regions and what each word says of them), mask.png and refer.json (all regions in COCO's run lengths) into a folder.

        clip-anatomy refer photo.jpg "the dog left of the tree"
        clip-anatomy refer photo.jpg "the dog left of the tree" masks/
        clip-anatomy refer photo.jpg "the dog left of the tree" sam.json --method global-local

    Args:
        image: a picture.
        phrase: what to find, in English.
        masks: regions to choose from: a folder of PNGs of the picture's size, or a JSON file in COCO's format or as SAM's generator of masks writes it.
        method: split (one forward for all regions) | global-local (crop-and-mask CLIP: two forwards a region).
        places: answer left, right, above and below by where the regions lie; --no-places leaves them to CLIP.
        weigh: of split: count each word by its share of the phrase's own embedding, besides.

    Returns:
        Exit code: 0 done.
    """
    from contextlib import ExitStack
    from dataclasses import replace

    from clip_anatomy.cli.pictures import demo_notes, output_beside
    from clip_anatomy.progress import note, shown

    folder = output.folder("refer")
    with ExitStack() as stack:
        stack.enter_context(shown(f"opening {opening.model}"))
        from clip_anatomy.maps.refer import refer as run
        from clip_anatomy.report import figures, refer_folder

        if folder is not None:
            figures.need_matplotlib()
        target = stack.enter_context(output_beside(folder, refer_folder.KIND, [image]))
        result = run(
            opening.load(), image, phrase, masks, method=method, places=places, weigh=weigh, allow_urls=allow_urls
        )
        result = replace(result, notes=(*demo_notes(opening.model, [image]), *result.notes))
        if target is not None:
            refer_folder.write(result, target)
    print_notes(result.notes)
    output.show(result)
    if folder is not None:
        note(f"figure: {folder / refer_folder.FIGURE}")
    return 0
