"""`clip-anatomy check`: is this model opened and split exactly?"""

from clip_anatomy.cli.options import AsJson, Device, Dtype, Model, Weights, print_result


def check(
    model: Model = "demo",
    *,
    weights: Weights = None,
    as_json: AsJson = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> int:
    """Prove that a model is opened exactly, and that its parts sum to what its own library returns.

    Runs two random pictures and two random texts through the model's own library and through ours, and adds the parts up
    again: both towers, both conventions, by part, by token, and toward the cosine.

    Returns:
        Exit code: 0 everything holds, 1 something does not.
    """
    from clip_anatomy.cli.wording import in_cli_words
    from clip_anatomy.progress import note, shown

    with shown(f"checking {model}") as progress:
        from clip_anatomy.split.check import check as run

        result = run(model, weights=weights, device=device, dtype=dtype, progress=progress)
    print_result(result, as_json=as_json)
    if not result.holds:
        note(f"clip-anatomy: {model} does not hold. {in_cli_words(result.why)}")
    return 0 if result.holds else 1
