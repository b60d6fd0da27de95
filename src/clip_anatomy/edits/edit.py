"""`Edit`: which parts of one tower of a model are replaced, and by what. A value: it composes, is undone, is saved as a small readable file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.edit_files import read_edit, write_edit
from clip_anatomy.edits.measured_replacements import MEASURE, check_options, check_source, replacements_of
from clip_anatomy.edits.replacement import EDIT_BYS, EditBy, Effect, Replacement
from clip_anatomy.edits.rerun import direct_only, rerun_frame, rerun_replacements, rerun_tower
from clip_anatomy.edits.selection import Selection
from clip_anatomy.edits.split_contributions import change_of_coordinates, change_of_parts
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.loading.model_origin import Origin
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.public_functions import public
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.parts import Parts, decompose_tower
from clip_anatomy.towers.absent_tower import refuse_unsplit
from clip_anatomy.towers.protocol import KINDS, Tower, has_pool_mlp
from clip_anatomy.towers.transformer import as_transformer

__all__ = ["TOWERS", "Edit"]

EditTower = Literal["image", "text"]
TOWERS: tuple[EditTower, ...] = get_args(EditTower)


@public
@dataclass(frozen=True, eq=False)
class Edit:
    """Parts of one model's image embeddings (or text embeddings) that are replaced (Gandelsman et al. 2024, §3.2: direct effects only).

    Contributions are divided by ‖embedding‖ of the unedited image, so are the means, and the result is scaled back by that
    length: the other parts keep exactly the size they had. (Its direction, and so every ranking, does not depend on that.)

    Attributes:
        model: what the model was loaded as.
        digest: hash of its weights; the edit is refused for another one.
        dtype: in which precision its weights were then.
        layers: of the tower.
        heads: in each of them.
        embed: width of the joint space.
        replacements: the parts, each once, in order.
        measured_on: what the means were taken over.
        notes: anything.
        origin: where the model lies, so that it is opened again from anywhere; None for a live one.
        tower: "image", or "text": heads of the text tower in every text embedding.
    """

    model: str
    digest: str
    dtype: str
    layers: int
    heads: int
    embed: int
    replacements: tuple[Replacement, ...] = ()
    measured_on: str = ""
    notes: str = ""
    origin: Origin | None = None
    tower: EditTower = "image"

    def __post_init__(self) -> None:
        """Sort the parts; refuse those that do not exist, stand twice, or do not fit."""
        if self.tower not in TOWERS:
            raise BadSpec(f"tower={self.tower!r} is not known. Type one of: {', '.join(map(repr, TOWERS))}")
        if self.tower == "text" and any(one.kind != "head" or one.effect != "direct" for one in self.replacements):
            raise BadSpec("an edit of the text tower replaces direct effects of heads. Type 2.0,3.1, or tower='image'")
        object.__setattr__(self, "replacements", tuple(sorted(self.replacements, key=lambda one: one.key)))
        self.parts.checked(self.layers, self.heads, pool=True)
        for one, after in zip(self.replacements, self.replacements[1:], strict=False):
            if one.key == after.key:
                raise BadInput(f"{one.name} stands twice in the edit. Leave one of the two out")
        for one in self.replacements:
            rows = self.heads if one.kind == "class-to-class" else 1
            for what, tensor in (("mean", one.baseline), ("directions", one.frame)):
                if tensor is None or (one.effect == "rerun" and what == "mean"):
                    continue  # held in the part's own space: `rerun_tower` knows its width
                if tensor.shape[1] != self.embed or (what == "mean" and len(tensor) != rows):
                    expected = f"[{rows if what == 'mean' else 'any'}, {self.embed}]"
                    raise BadInput(
                        f"{one.name}: its {what} are {list(tensor.shape)}, {expected} was expected. Make the edit with Edit.of"
                    )
        rerun_frame(self.replacements)

    # ---- making

    @staticmethod
    def of(
        clip: Clip,
        selection: Selection | str,
        moments: Moments | Means | None = None,
        by: EditBy = "mean",
        *,
        effect: Effect | str = "direct",
        span: TextSpanResult | None = None,
        directions: Mapping[tuple[int, int], Tensor] | None = None,
        along: Tensor | None = None,
        tower: EditTower = "image",
        measured_on: str = "",
        notes: str = "",
    ) -> "Edit":
        """Make an edit.

        Args:
            clip: the model.
            selection: the parts, or what `Selection.parse` reads: "9.3,10.1+mlp=4".
            moments: where the means come from: `Moments` (heads; a store keeps them: `Store.open(STORE).moments()`) or
                `Means.of(clip, images)`, which has MLPs, the input embedding and class-to-class attention too. Not needed for "zero".
            by: "mean", "zero", or "texts": heads by their TextSpan reconstruction.
            effect: "direct": the parts' terms of the embedding are replaced. "rerun": what they write into the class token's row is held
                while the forward runs, and later blocks see it; by "mean" that needs `Means.of(clip, images)`.
            span: the reconstruction of "texts"; its mean is taken where no moments are given.
            directions: (layer, head) → vectors [k, embed] (or [k, d], head coordinates of the moments' basis): of these heads
                only the subspace that they span is replaced, the rest is left alone. They need not be orthonormal.
            along: for "rerun": vectors [k, embed]; of what the re-run changes, only what lies in their span is taken (two forwards).
            tower: "image", or "text": heads of the text tower, their means from `text_moments(clip, texts)`.
            measured_on: what the means were taken over; by default the number of images.
            notes: anything.

        Raises:
            BadSpec: a part that does not exist, or source tokens, which are places in one image.
            BadInput: means of another model, another convention or without a part; numbers that are not finite.

        Example:
            >>> import clip_anatomy as ca
            >>> edit = Edit.of(ca.load("demo"), "1.0,1.1", by="zero")
            >>> edit.descriptions
            ['head 1.0 by zero', 'head 1.1 by zero']
        """
        check_options(by, EDIT_BYS, span=span)
        of = clip.vision if tower == "image" else as_transformer(clip.text_tower)
        refuse_unsplit(of)
        pool = has_pool_mlp(of)
        if isinstance(selection, str):
            chosen = Selection.parse(selection, of.layers, of.heads, pool=pool)
        else:
            chosen = selection.checked(of.layers, of.heads, pool=pool)
        _check_parts(of, chosen, directions or {}, by, span)
        if moments is not None and not isinstance(moments, Moments | Means):
            raise BadInput(f"means of type {type(moments).__name__}: Moments or Means were expected. {MEASURE}")
        nothing = Edit.empty(
            clip, tower
        )  # its digest is the model's: whether weights are as they were is looked at once
        for measured in (moments, span):
            if measured is not None and effect == "direct":
                check_source(measured, chosen, model=(clip.name, nothing.digest), convention="centered")
        if effect != "direct":
            if directions:
                raise BadSpec(
                    "directions of single heads are of the joint space, where a re-run holds nothing. Type along=VECTORS, or effect='direct'"
                )
            made = rerun_replacements(clip, chosen, moments, by, effect, along=along)
            many = moments.count if isinstance(moments, Means) and by == "mean" and made else 0
            over = measured_on or (f"{many:,} images" if many else "")
            return replace(nothing, replacements=made, measured_on=over, notes=notes)
        if along is not None:
            raise BadSpec("along= is for effect='rerun'. Type directions={(layer, head): rows}, or effect='rerun'")
        source = moments or span
        if by != "zero" and source is None and chosen:
            raise BadInput(f"by={by!r} needs means, and none are given. {MEASURE}, or by='zero'")
        made = replacements_of(chosen, moments, by, embed=of.embed, span=span, directions=directions)
        count = 0 if by == "zero" or source is None or not chosen else source.count
        over = measured_on or (f"{count:,} images" if count else "")
        return replace(nothing, replacements=made, measured_on=over, notes=notes)

    @staticmethod
    def empty(clip: Clip, tower: EditTower = "image") -> "Edit":
        """Make the edit of a model that changes nothing."""
        of = clip.text_tower if tower == "text" else clip.vision
        dtype = str(clip.vision.dtype).removeprefix("torch.")
        return Edit(clip.name, clip.digest, dtype, of.layers, of.heads, of.embed, origin=clip.origin, tower=tower)

    @staticmethod
    def load(path: str | Path) -> "Edit":
        """Read what `save` wrote.

        Raises:
            BadInput: no such file, damaged, half of it missing, or of an unknown schema.
        """
        fields = read_edit(Path(path))
        try:
            return Edit(**fields)
        except (BadInput, BadSpec) as error:
            raise BadInput(f"{path}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write `path` (JSON, to be read) and, where there are means, a safetensors file beside it that it names.

        Both are there whole or not at all: the JSON file comes last, by a rename, and holds a checksum of the other.

        Raises:
            OutputError: the place cannot be written.
        """
        return write_edit(vars(self), Path(path))

    # ---- reading

    @property
    def parts(self) -> Selection:
        """The parts, as a selection."""
        pick = {kind: [c for c in self.replacements if c.kind == kind] for kind in ("head", "mlp", "class-to-class")}
        return Selection(
            tuple((c.layer, c.head) for c in pick["head"]),
            tuple(c.layer for c in pick["mlp"]),
            tuple(c.layer for c in pick["class-to-class"]),
            any(c.kind == "input-embedding" for c in self.replacements),
        )

    @property
    def descriptions(self) -> list[str]:
        """Each part and what is done to it, in words."""
        of = "text tower's " if self.tower == "text" else ""
        return [of + one.description for one in self.replacements]

    @property
    def reruns(self) -> bool:
        """Whether any part is replaced inside the forward."""
        return any(one.effect == "rerun" for one in self.replacements)

    def __len__(self) -> int:
        """Count the parts that are replaced."""
        return len(self.replacements)

    def __bool__(self) -> bool:
        """Tell whether anything is replaced."""
        return bool(self.replacements)

    # ---- algebra

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits together.

        Raises:
            BadInput: they are of two models, or replace one part in two ways.
        """
        self._refuse_unlike(other)
        mine = {one.key: one for one in self.replacements}
        for one in other.replacements:
            if one.key in mine and not mine[one.key].same(one):
                a, b = mine[one.key].description, one.description
                how = f"{a} and {b}" if a != b else f"{a}, with other numbers (measured on other images?)"
                raise BadInput(
                    f"the two edits replace {one.name} in two ways: {how}. To let the second win, type a.undo(b.parts) + b"
                )
        rest = tuple(one for one in other.replacements if one.key not in mine)
        return replace(
            self,
            replacements=(*self.replacements, *rest),
            measured_on=_joined(self.measured_on, other.measured_on),
            notes=_joined(self.notes, other.notes),
        )

    def __sub__(self, other: "Edit") -> "Edit":
        """Undo another edit that is in this one: `(a + b) - b` replaces what a does.

        Raises:
            BadInput: it is of another model, or not in this one.
        """
        self._refuse_unlike(other)
        mine = {one.key: one for one in self.replacements}
        if missing := [
            one.description for one in other.replacements if one.key not in mine or not mine[one.key].same(one)
        ]:
            raise BadInput(
                f"not in this edit, so it cannot be undone: {', '.join(missing[:4])}. This edit does: "
                f"{', '.join(self.descriptions[:6]) or 'nothing'}. Type edit.undo(parts) to leave parts alone whatever is done to them"
            )
        return self.undo(other.parts)

    def undo(self, parts: Selection | str | None = None) -> "Edit":
        """Leave these parts alone again (all of them, if none are named); parts that are not replaced may be named too."""
        chosen = Selection.parse(parts, self.layers, self.heads, pool=True) if isinstance(parts, str) else parts
        left = Selection() if chosen is None else self.parts - chosen
        remaining = tuple(one for one in self.replacements if _selected(one, left))
        return replace(self, replacements=remaining)

    def _refuse_unlike(self, other: "Edit") -> None:
        if self.tower != other.tower:
            raise BadInput("one edit is of the image tower, the other of the text tower. Type one after the other")
        if self.digest != other.digest:
            raise BadInput(
                f"the edits are of two models: {self.model} (digest {self.digest[:8]}…) and {other.model} (digest "
                f"{other.digest[:8]}…). Type two edits of one model"
            )

    def check(self, clip: Clip) -> None:
        """Refuse another model than the one that the edit was made for.

        Raises:
            BadInput: says which model it needs.
        """
        if self.digest == clip.digest:
            return
        dtype = str(clip.vision.dtype).removeprefix("torch.")
        if dtype != self.dtype:
            raise BadInput(
                f"this edit was made for {self.model} in {self.dtype}; {clip.name} is here in {dtype}, which rounds the weights. "
                f"Type load({self.model!r}, dtype={self.dtype!r}); the edited model can then be turned: EditedClip(...).to(torch.{dtype})"
            )
        raise BadInput(
            f"this edit was made for another model: {self.model} (digest {self.digest[:8]}…), not {clip.name} (digest "
            f"{clip.digest[:8]}…). Type load({self.model!r}), or make the edit again with Edit.of(clip, {self.parts.spec!r}, …)"
        )

    # ---- doing it, on parts that are there already (the encoder that does it while it runs is `EditedClip`)

    def apply(self, parts: Parts) -> Float[Tensor, "image embed"]:
        """Edited embeddings of images that were decomposed: not normalised, in units of the unedited ones.

        Args:
            parts: of the same model, convention "centered".

        Raises:
            BadInput: parts under another convention or of another shape.
        """
        if parts.convention != "centered" or parts.heads.shape[1:] != (self.layers, self.heads, self.embed):
            raise BadInput(
                f"parts {list(parts.heads.shape[1:])} under {parts.convention!r}: an edit of {self.model} needs [layer, head, embed] = "
                f"{[self.layers, self.heads, self.embed]}. Type decompose(clip, images, 'centered')"
            )
        whole, frame = parts.embedding, rerun_frame(self.replacements)
        if self.reruns:
            tower = rerun_tower(as_transformer(parts.source.network), self.replacements)
            parts = decompose_tower(tower, parts.source.inputs, "centered")
        change = change_of_parts(direct_only(self.replacements), parts)
        felt = parts.embedding
        if frame is not None:
            felt = whole + (felt - whole) @ frame.to(whole).T @ frame.to(whole)
        return felt + parts.embedding.norm(dim=-1, keepdim=True) * change

    def shift(
        self, coordinates: Mapping[tuple[int, int], Float[Tensor, "image d"]], basis: HeadBasis
    ) -> Float[Tensor, "image embed"]:
        """Compute what to add to embedding / ‖embedding‖, from stored head coordinates alone: no image is read.

        Args:
            coordinates: (layer, head) → coordinates, divided by ‖embedding‖ (`Store.heads(layer, head)`).
            basis: their frames, convention "centered".

        Raises:
            BadInput: the edit replaces more than heads, or a head or its layer is not there.
        """
        if self.reruns:
            raise BadInput(
                "this edit runs the model again, which a store cannot. Type EditedClip(clip, edit).encode_image(pixels)"
            )
        return change_of_coordinates(self.replacements, coordinates, basis)


def _check_parts(
    tower: Tower,
    selection: Selection,
    directions: Mapping[tuple[int, int], Tensor],
    by: str,
    span: TextSpanResult | None,
) -> None:
    """Refuse parts and directions that an edit of this tower cannot have."""
    if selection.tokens:
        raise BadSpec(
            "source tokens are places in one image, an edit is for all images. Type heads, MLPs, class-to-class=LAYERS or "
            "input-embedding; for one image: replace_parts(clip, images, selection)"
        )
    if selection.class_to_class and not tower.has_class_token:
        raise BadSpec(
            "this model has no class token that could read from itself. Type heads, MLPs or input-embedding instead"
        )
    if not tower.has_mlps and (selection.mlps or selection.input_embedding):
        raise BadSpec(f"this image tower is {KINDS[tower.architecture]}, which has heads only. Type heads, such as 0.0")
    if strangers := [f"{layer}.{head}" for layer, head in directions if (layer, head) not in selection.heads]:
        raise BadSpec(f"directions for heads that are not selected: {', '.join(strangers[:5])}. Select them too")
    if by == "texts" and span is None:
        raise BadSpec("by='texts' needs what TextSpan found. Type span=textspan(moments, texts)")
    if by == "texts" and directions:
        raise BadSpec("by='texts' has the directions of its span. Leave directions away, or type by='mean'")


def _selected(one: Replacement, selection: Selection) -> bool:
    if one.kind == "head":
        return (one.layer, one.head) in selection.heads
    if one.kind == "input-embedding":
        return selection.input_embedding
    return one.layer in (selection.mlps if one.kind == "mlp" else selection.class_to_class)


def _joined(*texts: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))
