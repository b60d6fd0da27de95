"""An edited vision tower put back into the model around it: LLaVA and its like, whose language model reads the tower's tokens."""

import copy

import torch
from torch import Tensor, nn

from clip_anatomy.edits.edit import Edit
from clip_anatomy.edits.replacement import Replacement
from clip_anatomy.errors import BadInput, BadSpec
from clip_anatomy.loading.load import load
from clip_anatomy.public_functions import public
from clip_anatomy.towers.layers import Linear
from clip_anatomy.towers.transformer import as_transformer

__all__ = ["with_edited_tower"]


@public
def with_edited_tower(model: nn.Module, edit: Edit, path: str = "model.vision_tower") -> nn.Module:
    """Return the model with heads of its vision tower held, for a language model that reads the tower's tokens.

    What a language model reads are tokens of a late layer, not the embedding, so the heads of the edit are held in every token: they write nothing, or
    their mean. The model given is not changed: the one returned is a second one of the same class over the same tensors, except for the output
    projections of the edited layers, which are copies.

    Args:
        model: transformers' LlavaForConditionalGeneration, or another model with a vision tower of transformers inside.
        edit: of heads, whole: made with `Edit.of(load(model.model.vision_tower), "21.1", by="zero")`, or by the mean with `effect="rerun"`.
        path: where the tower is in the model.

    Returns:
        The second model.

    Raises:
        BadSpec: nothing at this path, or an edit of other parts than whole heads, or one whose mean is of the embedding.
        BadInput: the edit is of another tower.
    """
    names = path.split(".")
    tower = model
    for name in names:
        tower = getattr(tower, name, None)
        if not isinstance(tower, nn.Module):
            raise BadSpec(
                f"a {type(model).__name__} has no module {path!r}. Type the dotted name of its vision tower, such as 'model.vision_tower'"
            )
    clip = load(tower)
    edit.check(clip)
    held = {(one.layer, one.head): _value(one) for one in edit.replacements}
    transformer = as_transformer(clip.vision)
    own = copy.deepcopy(tower, {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())})
    for layer in sorted({layer for layer, _ in held}):
        block = transformer.blocks[layer]
        if block.norm_mixed is not None:
            raise BadSpec("a norm stands behind this tower's heads, so that what one writes depends on the others")
        written = _projection(own, block.out)
        weight, bias = block.out.weight.detach().clone(), block.out.bias
        bias = (
            torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
            if bias is None
            else bias.detach().clone()
        )
        for (at, head), value in held.items():
            if at == layer:
                columns = slice(head * transformer.d, (head + 1) * transformer.d)
                if value is not None:
                    bias += weight[:, columns] @ value.to(weight)
                weight[:, columns] = 0
        written.weight = nn.Parameter(weight, requires_grad=False)
        written.bias = nn.Parameter(bias, requires_grad=False)
    return _with(model, names, own)


def _value(one: Replacement) -> Tensor | None:
    if one.kind != "head" or one.frame is not None or one.by not in ("zero", "mean"):
        raise BadSpec(
            f"{one.name}: whole heads by zero or mean can be held in every token. Type Edit.of(clip, '21.1', by='zero')"
        )
    if one.by == "mean" and one.effect != "rerun":
        raise BadSpec(
            f"{one.name}: its mean is of the embedding, not of what the head computes. Type Edit.of(clip, '{one.layer}.{one.head}', "
            "Means.of(clip, images), effect='rerun')"
        )
    return None if one.baseline is None else one.baseline[0]


def _projection(tower: nn.Module, out: Linear) -> nn.Linear:
    """Find the module of a copied tower that holds a borrowed projection."""
    for module in tower.modules():
        if isinstance(module, nn.Linear) and module.weight.data_ptr() == out.weight.data_ptr():
            return module
    raise BadInput("this tower keeps its output projections in no nn.Linear, so they cannot be put back into its model")


def _with(model: nn.Module, names: list[str], tower: nn.Module) -> nn.Module:
    """Copy the modules on the way to the tower, and nothing below them."""
    new = copy.copy(model)
    for key, value in vars(model).items():
        if isinstance(value, dict):  # of parameters, modules and hooks: each model has its own
            vars(new)[key] = copy.copy(value)
    first, *rest = names
    vars(new)["_modules"][first] = _with(getattr(model, first), rest, tower) if rest else tower
    return new
