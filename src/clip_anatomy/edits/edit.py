"""`Edit`: which parts of a model are replaced, and by what. A value: it composes, is undone, is saved as a small readable file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from clip_anatomy.edits.measured_replacements import changes_of
from clip_anatomy.edits.replacement import BYS, By, Change
from clip_anatomy.edits.selection import Selection
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.clip import Clip
from clip_anatomy.naming.textspan_result import TextSpanResult
from clip_anatomy.split.basis import HeadBasis
from clip_anatomy.split.means import Means
from clip_anatomy.split.moments import Moments
from clip_anatomy.split.parts import Parts

__all__ = ["Edit"]


@dataclass(frozen=True, eq=False)
class Edit:
    """Parts of one model's image embeddings that are replaced (Gandelsman et al. 2024, §3.2: direct effects only).

    Contributions are divided by ‖embedding‖ of the unedited image, so are the means, and the result is scaled back by that
    length: the other parts keep exactly the size they had. (Its direction, and so every ranking, does not depend on that.)

    Attributes:
        model: what the model was loaded as.
        digest: hash of its weights; the edit is refused for another one.
        dtype: in which precision its weights were then.
        layers: of the image tower.
        heads: in each of them.
        embed: width of the joint space.
        changes: the parts, each once, in order.
        measured_on: what the means were taken over.
        notes: anything.
    """

    model: str
    digest: str
    dtype: str
    layers: int
    heads: int
    embed: int
    changes: tuple[Change, ...] = ()
    measured_on: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        """Sort the parts; refuse those that do not exist, stand twice, or do not fit."""
        object.__setattr__(self, "changes", tuple(sorted(self.changes, key=lambda one: one.key)))
        self.parts.checked(self.layers, self.heads)
        for one, after in zip(self.changes, self.changes[1:], strict=False):
            if one.key == after.key:
                raise BadInput(f"{one.name} stands twice in the edit. Leave one of the two out")
        for one in self.changes:
            rows = self.heads if one.kind == "class-to-class" else 1
            for what, tensor in (("mean", one.mean), ("directions", one.frame)):
                if tensor is None:
                    continue
                if tensor.shape[1] != self.embed or (what == "mean" and len(tensor) != rows):
                    expected = f"[{rows if what == 'mean' else 'any'}, {self.embed}]"
                    raise BadInput(
                        f"{one.name}: its {what} are {list(tensor.shape)}, {expected} was expected. Make the edit with Edit.of"
                    )

    # ---- making

    @staticmethod
    def of(
        clip: Clip,
        selection: Selection | str,
        moments: Moments | Means | None = None,
        by: By = "mean",
        *,
        span: TextSpanResult | None = None,
        directions: Mapping[tuple[int, int], Tensor] | None = None,
        measured_on: str = "",
        notes: str = "",
    ) -> "Edit":
        """Make an edit.

        Args:
            clip: the model.
            selection: the parts, or what `Selection.parse` reads: "9.3,10.1+mlp=4".
            moments: where the means come from: `Moments` (heads; a store keeps them: `Store.open(STORE).moments()`) or
                `Means.of(clip, images)`, which has MLPs, the start and class-to-class attention too. Not needed for "zero".
            by: "mean", "zero", or "texts": heads by their TextSpan reconstruction.
            span: the reconstruction of "texts"; its mean is taken where no moments are given.
            directions: (layer, head) → vectors [k, embed] (or [k, d], head coordinates of the moments' basis): of these heads
                only the subspace that they span is replaced, the rest is left alone. They need not be orthonormal.
            measured_on: what the means were taken over; by default the number of images.
            notes: anything.

        Raises:
            BadSpec: a part that does not exist, or source tokens, which are places in one image.
            BadInput: means of another model, another convention or without a part; numbers that are not finite.

        Example:
            >>> import clip_anatomy as ca
            >>> edit = Edit.of(ca.load("demo"), "1.0,1.1", by="zero")
            >>> edit.told
            ['head 1.0 by zero', 'head 1.1 by zero']
        """
        if by not in BYS:
            raise BadSpec(f"replaced by {by!r}? That is not known. Type one of: {', '.join(BYS)}")
        tower = clip.vision
        chosen = Selection.parse(selection, tower.layers, tower.heads) if isinstance(selection, str) else selection
        chosen = chosen.checked(tower.layers, tower.heads)
        changes, count = changes_of(clip, chosen, moments, by=by, span=span, directions=directions or {})
        told = measured_on or (f"{count:,} images" if count else "")
        return replace(Edit.empty(clip), changes=changes, measured_on=told, notes=notes)

    @staticmethod
    def empty(clip: Clip) -> "Edit":
        """The edit of a model that changes nothing."""
        tower = clip.vision
        return Edit(
            clip.name, clip.digest, str(tower.dtype).removeprefix("torch."), tower.layers, tower.heads, tower.embed
        )

    @staticmethod
    def load(path: str | Path) -> "Edit":
        """Read what `save` wrote.

        Raises:
            BadInput: no such file, damaged, half of it missing, or of an unknown schema.
        """
        from clip_anatomy.edits.edit_files import load_edit

        return load_edit(Path(path))

    def save(self, path: str | Path) -> Path:
        """Write `path` (JSON, to be read) and, where there are means, a safetensors file beside it that it names.

        Both are there whole or not at all: the JSON file comes last, by a rename, and holds a checksum of the other.

        Raises:
            OutputError: the place cannot be written.
        """
        from clip_anatomy.edits.edit_files import save_edit

        return save_edit(self, Path(path))

    # ---- reading

    @property
    def parts(self) -> Selection:
        """The parts, as a selection."""
        pick = {kind: [c for c in self.changes if c.kind == kind] for kind in ("head", "mlp", "class-to-class")}
        return Selection(
            tuple((c.layer, c.head) for c in pick["head"]),
            tuple(c.layer for c in pick["mlp"]),
            tuple(c.layer for c in pick["class-to-class"]),
            any(c.kind == "input-embedding" for c in self.changes),
        )

    @property
    def told(self) -> list[str]:
        """Each part and what is done to it, in words."""
        return [one.told for one in self.changes]

    def __len__(self) -> int:
        """How many parts are replaced."""
        return len(self.changes)

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.changes)

    # ---- algebra

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits together.

        Raises:
            BadInput: they are of two models, or replace one part in two ways.
        """
        self._refuse_unlike(other)
        mine = {one.key: one for one in self.changes}
        for one in other.changes:
            if one.key in mine and not mine[one.key].same(one):
                a, b = mine[one.key].told, one.told
                how = f"{a} and {b}" if a != b else f"{a}, with other numbers (measured on other images?)"
                raise BadInput(
                    f"the two edits replace {one.name} in two ways: {how}. To let the second win, type a.undo(b.parts) + b"
                )
        rest = tuple(one for one in other.changes if one.key not in mine)
        return replace(
            self,
            changes=(*self.changes, *rest),
            measured_on=_joined(self.measured_on, other.measured_on),
            notes=_joined(self.notes, other.notes),
        )

    def __sub__(self, other: "Edit") -> "Edit":
        """Undo another edit that is in this one: `(a + b) - b` replaces what a does.

        Raises:
            BadInput: it is of another model, or not in this one.
        """
        self._refuse_unlike(other)
        mine = {one.key: one for one in self.changes}
        if missing := [one.told for one in other.changes if one.key not in mine or not mine[one.key].same(one)]:
            raise BadInput(
                f"not in this edit, so it cannot be undone: {', '.join(missing[:4])}. This edit does: "
                f"{', '.join(self.told[:6]) or 'nothing'}. Type edit.undo(parts) to leave parts alone whatever is done to them"
            )
        return self.undo(other.parts)

    def undo(self, parts: Selection | str | None = None) -> "Edit":
        """Leave these parts alone again (all of them, if none are named); parts that are not replaced may be named too."""
        chosen = Selection.parse(parts, self.layers, self.heads) if isinstance(parts, str) else parts
        left = Selection() if chosen is None else self.parts - chosen
        kept = tuple(one for one in self.changes if _selected(one, left))
        return replace(self, changes=kept)

    def _refuse_unlike(self, other: "Edit") -> None:
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
        from clip_anatomy.edits.edit_contributions import edited

        return edited(self, parts)

    def shift(
        self, coordinates: Mapping[tuple[int, int], Float[Tensor, "image d"]], basis: HeadBasis
    ) -> Float[Tensor, "image embed"]:
        """What to add to embedding / ‖embedding‖, from stored head coordinates alone: no image is read.

        Args:
            coordinates: (layer, head) → coordinates, divided by ‖embedding‖ (`Store.heads(layer, head)`).
            basis: their frames, convention "centered".

        Raises:
            BadInput: the edit replaces more than heads, or a head or its layer is not there.
        """
        from clip_anatomy.edits.edit_contributions import shift

        return shift(self, coordinates, basis)


def _selected(one: Change, selection: Selection) -> bool:
    if one.kind == "head":
        return (one.layer, one.head) in selection.heads
    if one.kind == "input-embedding":
        return selection.input_embedding
    return one.layer in (selection.mlps if one.kind == "mlp" else selection.class_to_class)


def _joined(*said: str) -> str:
    return "; ".join(dict.fromkeys(_flat(said)))


def _flat(said: Iterable[str]) -> Iterable[str]:
    return (one for one in said if one)
