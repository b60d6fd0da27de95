"""What a walk says about itself: how far it is, and what it did."""

from dataclasses import dataclass

__all__ = ["Progress", "Summary"]


@dataclass(frozen=True)
class Progress:
    """How far the walk is.

    Attributes:
        done: images kept in this run.
        failed: images that could not be used.
        known: images that the store had already.
        total: images in the source, where it says so.
        rate: images per second, lately.
        phase: "images", or what is being tidied up.
    """

    done: int = 0
    failed: int = 0
    known: int = 0
    total: int | None = None
    rate: float = 0.0
    phase: str = "images"

    @property
    def seconds_left(self) -> float | None:
        """Remaining time, where it can be said."""
        if self.total is None or self.rate <= 0:
            return None
        return max(0.0, (self.total - self.done - self.failed - self.known) / self.rate)


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        store: path of the store.
        done: images kept in this run.
        failed: images that could not be used in this run; see `Store.rows(status="error")`.
        known: images that were there already.
        gone: images taken out because the source no longer has them.
        images: images in the store now.
        seconds: wall time.
        batch: images the model took at once.
        errors: id and message of the first few that failed.
    """

    store: str
    done: int
    failed: int
    known: int
    gone: int
    images: int
    seconds: float
    batch: int | None
    errors: tuple[tuple[str, str], ...] = ()
