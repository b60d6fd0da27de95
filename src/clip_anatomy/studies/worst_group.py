"""The worst group: of those that hold enough images for their accuracy to say something."""

from collections.abc import Mapping, Sequence

from clip_anatomy.studies.store_columns import few

__all__ = ["LEAST_IMAGES", "large_groups", "small_groups", "worst_group"]

LEAST_IMAGES = 10  # of a group: the accuracy of one image is 0 or 100 percent


def large_groups(images: Sequence[int]) -> list[int]:
    """Return the places of groups of LEAST_IMAGES or more; of all where none holds so many.

    Args:
        images: how many each group holds.
    """
    return [at for at, count in enumerate(images) if count >= LEAST_IMAGES] or [*range(len(images))]


def worst_group(accuracies: Sequence[float], images: Sequence[int]) -> int | None:
    """Find the place of the worst of the large groups; the first of equal ones, None without groups.

    Args:
        accuracies: of each group.
        images: how many each holds.

    Example:
        >>> worst_group([0.9, 0.0, 0.7], [400, 1, 35])
        2
        >>> worst_group([0.9, 0.0], [3, 1])
        1
    """
    return min(large_groups(images), key=lambda at: accuracies[at], default=None)


def small_groups(images: Mapping[str, int]) -> tuple[str, ...]:
    """Say which groups hold too few images; nothing where none does.

    Args:
        images: how many each group holds.

    Example:
        >>> small_groups({"bird": 40, "fish": 3})
        ('groups of fewer than 10 images say little, and are not called the worst: fish (3)',)
        >>> small_groups({"fish": 3})
        ('groups of fewer than 10 images say little, and there are no others',)
    """
    small = [f"{name} ({count})" for name, count in images.items() if count < LEAST_IMAGES]
    if len(small) == len(images):
        return (f"groups of fewer than {LEAST_IMAGES} images say little, and there are no others",) if small else ()
    return (
        (f"groups of fewer than {LEAST_IMAGES} images say little, and are not called the worst: {few(small)}",)
        if small
        else ()
    )
