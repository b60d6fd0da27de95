"""Batches of one stream may differ in size: the last one does, nearly always."""

import torch

from clip_anatomy.edits.evaluate import ablate_layers


def test_lists_of_unequal_batches_are_taken_and_count_as_one() -> None:
    generator = torch.Generator().manual_seed(0)
    heads, rest = torch.randn(13, 2, 2, 6, generator=generator), torch.randn(13, 6, generator=generator)
    labels, classes = torch.randint(0, 3, (13,), generator=generator), torch.randn(3, 6, generator=generator)
    mean = heads.double().mean(0)
    whole = ablate_layers([(heads, rest, labels)], mean, classes)
    for _ in range(30):  # the shape checker looks at one batch of a list, drawn anew at each check
        parts = list(zip(heads.split([3, 5, 1, 4]), rest.split([3, 5, 1, 4]), labels.split([3, 5, 1, 4]), strict=True))
        torch.testing.assert_close(ablate_layers(parts, mean, classes), whole)
