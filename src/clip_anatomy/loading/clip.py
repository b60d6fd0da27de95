"""`Clip`: both towers of an opened model, its tokenizer and its preprocessing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clip_anatomy.errors import BadImage, BadInput, BadText
from clip_anatomy.files import digest
from clip_anatomy.images.geometry import patch_grid, pixels_of_grid
from clip_anatomy.images.pixels import ImageLike, Preprocess, listed, prepare
from clip_anatomy.loading.live_models import read_host
from clip_anatomy.loading.model_origin import Origin, tokenizer_wanted
from clip_anatomy.loading.parity import Proof
from clip_anatomy.loading.score_rule import ScoreRule
from clip_anatomy.loading.token_ids import checked_ids, ids_of
from clip_anatomy.loading.tokenizer import Tokenizer, average_prompts, check_texts, fill_templates
from clip_anatomy.public_functions import public
from clip_anatomy.towers.absent_tower import refuse_absent
from clip_anatomy.towers.linear_map import LinearMap, mapped
from clip_anatomy.towers.protocol import Tower
from clip_anatomy.towers.transformer import Transformer, as_transformer

Images = ImageLike | Sequence[ImageLike] | Iterable[ImageLike]
BATCH = 32
T = TypeVar("T")


@public
@dataclass(frozen=True)
class Clip:
    """An opened CLIP. Its weights are borrowed: the host's module is never changed.

    Attributes:
        name: the spec it was loaded from.
        vision: pixels → joint space: a transformer, a CLIP-ResNet, or a tower that its host runs; of a text model alone one that
            says so when it is used.
        text_tower: token ids → joint space; of an image model alone likewise.
        preprocess: how the model wants its pixels.
        tokenizer: texts → ids; None when the model came without one.
        rule: how its cosines become probabilities: `logit_scale` and `logit_bias` as they are now.
        proof: the parity proof made on load; None when it was skipped.
        host: the host library's module; None for the bundled model.
        origin: where it came from; None for a live model.
    """

    name: str
    vision: Tower = field(repr=False)
    text_tower: Tower = field(repr=False)
    preprocess: Preprocess
    tokenizer: Tokenizer | None = field(repr=False)
    rule: ScoreRule = field(repr=False)
    proof: Proof | None = None
    host: nn.Module | None = field(default=None, repr=False)
    origin: Origin | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Give what pickle and copy need: where there is a host, its module is enough, and the weights are held once."""
        towers = {"vision", "text_tower", "rule"} if self.host is not None else set[str]()
        return {name: value for name, value in vars(self).items() if name not in towers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Borrow the weights anew."""
        if state["host"] is not None:
            host = read_host(state["host"])
            state = {**state, "vision": host.image_tower, "text_tower": host.text_tower, "rule": host.rule}
        vars(self).update(state)

    @property
    def image_tower(self) -> Transformer:
        """The image tower where it is a transformer, for what needs one.

        Raises:
            UnsupportedModel: it is none; `vision` is any.
        """
        return as_transformer(self.vision)

    @property
    def patch(self) -> tuple[int, int]:
        """(row, col) pixels of one patch."""
        return self.vision.patch

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.vision.device

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine before the softmax; 1 where a tower alone came without it."""
        return self.rule.factor

    @property
    def logit_bias(self) -> float | None:
        """Added after it by models that were trained text by text (SigLIP); None for a softmax over the texts."""
        return self.rule.offset

    def probabilities(self, cosine: Float[Tensor, "*image text"]) -> Float[Tensor, "*image text"]:
        """Turn cosines into probabilities by the rule that the model was trained with.

        Args:
            cosine: of pictures with texts, texts last.

        Returns:
            The softmax over these texts of scale · cosine; of models with a bias sigmoid(scale · cosine + bias), each text by
            itself (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, §3.2).
        """
        if self.logit_bias is None:
            return (cosine * self.logit_scale).softmax(-1)
        return (cosine * self.logit_scale + self.logit_bias).sigmoid()

    def read_through(self, through: LinearMap, clip: "Clip | None" = None) -> "Clip":
        """Read an image model without texts in the space of a CLIP: every part goes through a linear map of the embeddings.

        Args:
            through: the map, fitted on pictures that both have seen: `align(STORE_OF_THIS_MODEL, STORE_OF_A_CLIP)`, whose R² and cosine
                say how much there is to read.
            clip: that CLIP, for texts; without it texts are given as its embeddings.

        Returns:
            Clip whose image side is this model's and whose text side is the other's.

        Raises:
            BadInput: a map of other embeddings.
            UnsupportedModel: an image tower that no projection ends.
        """
        vision = mapped(self.vision, through.weight, through.intercept)
        if clip is None:
            return replace(self, vision=vision, host=None, origin=None)
        if clip.text_tower.embed != vision.embed:
            raise BadInput(
                f"the map leads to {vision.embed} numbers, texts of {clip.name} have {clip.text_tower.embed}. Type the CLIP whose store it was fitted on"
            )
        sides = ("text_tower", "tokenizer", "rule")
        texts = {name: getattr(clip, name) for name in sides}
        return replace(self, name=f"{self.name} through {clip.name}", vision=vision, host=None, origin=None, **texts)

    @property
    def digest(self) -> str:
        """Hash all weights: names a model in stores and edits, whatever file it came from; taken anew once they were changed in place."""
        return self.remembered(
            "digest", lambda: digest(_hashed_pieces(self.vision, self.text_tower)), self.vision, self.text_tower
        )

    def remembered(self, name: str, compute: Callable[[], T], *towers: Tower) -> T:
        """Return what was computed of some towers' weights before; computed anew once they were changed in place."""
        state = _weights_state(*towers)
        known: dict[str, tuple[Any, Any]] = vars(self).setdefault("_remembered", {})
        if known.get(name, (None,))[0] != state:
            known[name] = state, compute()
        return known[name][1]

    def pixels(
        self, images: Images, *, allow_urls: bool = False, upright: bool = True
    ) -> Float[Tensor, "image 3 row col"]:
        """Convert images of any kind to the tensor the image tower takes.

        Args:
            images: one or several paths, PIL images, arrays; or a preprocessed tensor [image, 3, row, col], which is only checked.
            allow_urls: fetch strings that start with http:// or https://.
            upright: turn photographs as their EXIF tag says (False: as open_clip, which ignores it).

        Returns:
            Normalised pixels on the model's device and in its dtype.

        Raises:
            BadImage: unreadable, smaller than a patch, or (CLIP-ResNets) sides that are no multiples of the patch.
        """
        refuse_absent(self.vision)
        x = prepare(images, self.preprocess, allow_urls=allow_urls, upright=upright)
        rows, cols = patch_grid(x.shape, self.patch)
        if self.vision.architecture == "transformer" and rows * cols:  # as its convolution does
            x = x[..., : rows * self.patch[0], : cols * self.patch[1]]
        if pixels_of_grid((rows, cols), self.patch) != tuple(x.shape[2:]) or not rows * cols:
            height, width = pixels_of_grid((max(1, rows), max(1, cols)), self.patch)
            raise BadImage(
                f"pixels are {x.shape[2]} × {x.shape[3]} (row × col); multiples of the patch {self.patch[0]} × {self.patch[1]} "
                f"were expected. Type: images of {height} × {width}"
            )
        return x.to(self.device, self.vision.dtype)

    def ids(self, texts: Sequence[str] | Tensor) -> Int[Tensor, "text token"]:
        """Convert texts to token ids, cut after the last end-of-text token where nothing behind it can be seen (causal towers).

        Raises:
            BadText: no text, not strings, ids of the wrong shape, outside the vocabulary, longer than the context, or without
                the token where the model reads.
        """
        refuse_absent(self.text_tower)
        if isinstance(texts, Tensor):
            return checked_ids(self.text_tower, texts)
        if self.tokenizer is None:
            raise BadText(f"this model came without a tokenizer. {tokenizer_wanted(self.origin)}")
        checked = check_texts(texts)
        return checked_ids(self.text_tower, ids_of(self.tokenizer(checked), len(checked)))

    def encode_image(self, images: Images) -> Float[Tensor, "image embed"]:
        """Embed images, not normalised: equal to the host library's `encode_image`.

        Example:
            >>> import clip_anatomy as ca
            >>> from clip_anatomy.loading.demo import examples
            >>> ca.load("demo").encode_image(examples()[:2]).shape[0]
            2
        """
        if self.preprocess.patches is not None and not isinstance(
            images, Tensor
        ):  # every picture has a shape of its own
            return torch.cat([self.vision.encode(self.pixels([one])) for one in listed(images)[1]]).float()
        x = self.pixels(images)
        return torch.cat([self.vision.encode(part) for part in x.split(BATCH)]).float()

    def encode_text(
        self, texts: Sequence[str] | Tensor, templates: Sequence[str] | None = None
    ) -> Float[Tensor, "text embed"]:
        """Embed texts: equal to the host library's `encode_text`, or prompts averaged as CLIP's own recipe does.

        Args:
            texts: strings, or token ids.
            templates: prompts with one `{}` each; every text is put into all of them, each embedding is normalised, the mean
                is normalised (Radford et al. 2021, §3.1.4).

        Returns:
            One embedding per text; of unit length only with templates.

        Example:
            >>> import clip_anatomy as ca
            >>> ca.load("demo").encode_text(["circle", "star"], templates=["a picture of a {}", "one {}"]).shape[0]
            2
        """
        if templates is None:
            ids = self.ids(texts)
            return torch.cat([self.text_tower.encode(part) for part in ids.split(4 * BATCH)]).float()
        if isinstance(texts, Tensor):
            raise BadText(
                "templates need strings, not token ids. Type: encode_text(['dog'], templates=['a photo of a {}.'])"
            )
        return torch.stack(
            [average_prompts(self.encode_text(fill_templates(t, templates))) for t in check_texts(texts)]
        )


def tensors(value: Any) -> Iterable[Tensor]:
    """Walk every tensor of a tower, in the order of its fields; the fused q, k, v only once, so that all libraries' agree."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for f in (f for f in fields(value) if f.name != "qkv"):
            yield from tensors(getattr(value, f.name))


def _weights_state(*towers: Tower) -> tuple[tuple[int, int], ...]:
    """Say in a hundredth of a hash's time whether weights are what they were: torch's count of changes, and a sum over all bits.

    The count misses what is written through `.data` or by other libraries; the sum misses values that change places.
    """
    held = [t for tower in towers for t in tensors(tower)]
    if not held:  # of nothing, which never changes
        return ()
    sums = torch.stack([_bits(t).sum().cpu() for t in held]).tolist()
    return tuple((0 if t.is_inference() else t._version, total) for t, total in zip(held, sums, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return flat.view(torch.int64) if flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0 else flat


def _hashed_pieces(*towers: Tower) -> Iterator[str | memoryview]:
    for tower in towers:
        named = (
            (tower.activation, tower.pool, tower.causal) if isinstance(tower, Transformer) else (tower.architecture,)
        )
        yield repr((tower.heads, *named))
        for t in tensors(tower):
            yield t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
