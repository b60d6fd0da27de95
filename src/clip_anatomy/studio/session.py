"""What a running studio holds: one model, perhaps a store, and the pictures that were sent, each encoded once."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clip_anatomy.data.picture import read_data
from clip_anatomy.errors import BadInput, ClipAnatomyError
from clip_anatomy.files import digest as digest_of
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.demo import examples
from clip_anatomy.loading.text_cache import embed_texts
from clip_anatomy.maps.contrast import NEUTRAL, contrast_of
from clip_anatomy.naming.atlas import Atlas
from clip_anatomy.progress import Progress
from clip_anatomy.report.shown_picture import model_view
from clip_anatomy.retrieval.store_atlas import kept_atlas
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.pair_sides import Side, read_side, text_side
from clip_anatomy.split.parts import Parts
from clip_anatomy.store.store import Store
from clip_anatomy.studies.rerun_embeddings import written_means
from clip_anatomy.studies.zero_shot_task import ZeroShotTask, ablation_task
from clip_anatomy.studio.encoder import Encoder

__all__ = ["Busy", "HeldPicture", "Session"]

MOST_PICTURES = 64  # kept; the one that was looked at longest ago goes first
MOST_EMBEDDED = 10_000  # texts
MOST_KEPT = 32  # answers that are asked for again and again: shares of a picture's patches, sides of pairs
MOST_MEANS = 96  # images that a mean of what parts write is taken of
MOST_BYTES = 20_000_000  # of one upload
WAITING = 32  # requests that wait for the model; more are turned away
SHOWN = 448  # pixels of the longest side of what is drawn
T = TypeVar("T")


class Busy(ClipAnatomyError):
    """Too many requests wait for the model."""


@dataclass(frozen=True)
class HeldPicture:
    """A picture that was encoded.

    Attributes:
        name: what it is called.
        digest: of its bytes; how requests name it.
        png: what the model saw of it, as the page draws it.
        pixels: what the model was given.
        parts: the exact split of its embedding.
    """

    name: str
    digest: str
    png: bytes = field(repr=False)
    pixels: Float[Tensor, "1 3 row col"] = field(repr=False)
    parts: Parts = field(repr=False)


@dataclass
class Session:
    """Hold the model, and what was made with it; safe to use from several threads.

    Attributes:
        clip: the model.
        store: a collection that it indexed, for means, accuracies and names of heads; None without one.
        pictures: that were sent, by their digest.
        waiting: how many requests have the model or wait for it.
    """

    clip: Clip
    store: Store | None = None
    pictures: "OrderedDict[str, HeldPicture]" = field(default_factory=OrderedDict[str, HeldPicture])
    waiting: int = 0
    _texts: dict[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    _kept: "OrderedDict[Hashable, Any]" = field(default_factory=OrderedDict[Hashable, Any], repr=False)
    _model: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _held: threading.Lock = field(
        default_factory=threading.Lock, repr=False
    )  # a picture is shown while the model works
    _places: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(WAITING), repr=False)

    def run(self, work: Callable[[], T]) -> T:
        """Run something on the model, one request after the other.

        Raises:
            Busy: too many wait already.
        """
        with self._place(), self._model:
            return work()

    @contextmanager
    def between(self, progress: Progress) -> Generator[Progress]:
        """Hold the model for long work, and give it to the requests that wait at every step that is told."""

        def step(what: str, done: int, total: int | None) -> None:
            self._model.release()
            try:
                progress(what, done, total)
                time.sleep(0.001)  # whoever waits is woken, and takes it before this thread asks again
            finally:
                self._model.acquire()

        with self._model:
            yield step

    @contextmanager
    def _place(self) -> Generator[None]:
        """Take a place among those that wait."""
        if not self._places.acquire(blocking=False):
            raise Busy(f"{WAITING} requests wait for the model. Try again in a moment")
        try:
            with self._held:
                self.waiting += 1
            yield
        finally:
            with self._held:
                self.waiting -= 1
            self._places.release()

    @cached_property
    def encoder(self) -> Encoder:
        """Splits pictures, those that wait together in one forward."""
        return Encoder(self.clip, self._model)

    def add(self, data: bytes, name: str) -> HeldPicture:
        """Decode and encode a picture, once.

        Raises:
            BadInput: too large.
            BadImage: no picture.
        """
        if len(data) > MOST_BYTES:
            raise BadInput(
                f"the picture has {len(data) / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} MB are taken. Send it smaller"
            )
        return self.add_image(read_data(data, name, keep_mode=True), name, digest_of(data, size=8))

    def add_image(self, image: Image.Image, name: str, digest: str) -> HeldPicture:
        """Encode a picture that is decoded already, once; those of other requests that wait are encoded with it."""
        with self._held:
            known = self.pictures.get(digest)
            if known is not None:
                self.pictures.move_to_end(digest)
                return known
        pixels = self.clip.pixels(image)
        file = BytesIO()
        model_view(image, self.clip.preprocess.geometry(*image.size), SHOWN).save(file, "PNG")
        with self._place():
            held = HeldPicture(name, digest, file.getvalue(), pixels, self.encoder.split(pixels))
        with self._held:
            self.pictures[digest] = held
            while len(self.pictures) > MOST_PICTURES:
                self.pictures.popitem(last=False)
        return held

    def picture(self, digest: str) -> HeldPicture:
        """Return a picture that was sent before.

        Raises:
            BadInput: it was not, or it is too long ago.
        """
        with self._held:
            if digest in self.pictures:
                self.pictures.move_to_end(digest)
                return self.pictures[digest]
            held = next((one for one in vars(self).get("examples", ()) if one.digest == digest), None)
            if held is None:
                raise BadInput(f"picture {digest[:32]!r} is not here (any more). Send it again")
        return held

    def texts(self, texts: tuple[str, ...]) -> Float[Tensor, "text embed"]:
        """Embed texts, each once; known ones do not wait for the model."""
        known = [self._texts.get(text) for text in texts]
        if any(one is None for one in known):
            known = self.run(lambda: self._embedded(texts))
        return torch.stack([one for one in known if one is not None])

    def _embedded(self, texts: tuple[str, ...]) -> list[Tensor]:
        new = [text for text in texts if text not in self._texts]
        if new and len(self._texts) > MOST_EMBEDDED:
            self._texts.clear()
            new = list(texts)
        if new:
            self._texts.update(zip(new, embed_texts(self.clip, new, cache=False), strict=True))
        return [self._texts[text] for text in texts]

    def shares(self, picture: HeldPicture, texts: tuple[str, ...]) -> Float[Tensor, "layer head patch text"]:
        """Say what every head read from every patch toward every text, as the decomposition's map adds it up.

        Computed once: then heads go off and on without waiting for the model.
        """
        unit = normalize(self.texts(texts).float(), dim=-1)

        def read() -> Tensor:
            toward = contrast_of(self.clip, NEUTRAL).subtracted_from(unit)
            return picture.parts.tokens(toward)[0, :, :, self.clip.vision.own :].cpu() * toward.norm(dim=-1).cpu()

        return self._once(("shares", picture.digest, texts), read)

    def side(self, of: "HeldPicture | str") -> Side:
        """Split a picture into what is read from its patches, or a text into its words, once."""
        if isinstance(of, str):
            return self._once(("words", of), lambda: text_side(self.clip, of))
        return self._once(("patches", of.digest), lambda: read_side(self.clip, of.pixels))

    def _once(self, key: Hashable, work: Callable[[], T]) -> T:
        """Run something on the model, unless it is among the answers that are kept."""
        with self._held:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        answer = self.run(work)
        with self._held:
            self._kept[key] = answer
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return answer

    def reopen(self) -> None:
        """Read the store again, after something was added to it."""
        if self.store is not None:
            self.store = Store.open(self.store.path, self.clip)
        for name in ("means", "written_means", "atlas", "task"):
            self.__dict__.pop(name, None)

    @cached_property
    def examples(self) -> tuple[HeldPicture, ...]:
        """The bundled pictures, where the model is the bundled one."""
        if self.clip.name != "demo":
            return ()
        return tuple(self.add(path.read_bytes(), path.stem.replace("_", " ")) for path in examples())

    @cached_property
    def means(self) -> Moments | Means | None:
        """What a part is replaced by: its mean over the store; None where there is nothing to take a mean of."""
        return None if self.store is None else self.store.moments()

    @cached_property
    def written_means(self) -> Means:
        """What a part is held at where later blocks feel it: the mean of what it writes itself, over images spread over the store."""
        if self.store is None:
            raise BadInput(
                "without a store there is no mean to hold a part at. Choose zero, or start: clip-anatomy serve STORE"
            )
        some = np.linspace(0, len(self.store) - 1, min(MOST_MEANS, len(self.store))).astype(int)
        return written_means(self.store, self.clip, some)

    @cached_property
    def atlas(self) -> Atlas | None:
        """Names of the heads, if the store keeps them."""
        return None if self.store is None else kept_atlas(self.store)

    @cached_property
    def task(self) -> ZeroShotTask | None:
        """What the store's pictures are asked, if they have labels."""
        if self.store is None:
            return None
        try:
            return ablation_task(self.store, lambda: self.clip)
        except ClipAnatomyError:
            return None
