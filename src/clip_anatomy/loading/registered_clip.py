"""`registered`: a model with test-time registers, usable wherever the model was."""

from collections.abc import Sequence
from dataclasses import replace

from clip_anatomy.errors import UnsupportedModel
from clip_anatomy.loading.clip import BATCH, Clip, Images
from clip_anatomy.loading.demo import examples
from clip_anatomy.number_ranges import whole
from clip_anatomy.public_functions import public
from clip_anatomy.towers.registers import FEWEST, register_neurons, with_registers
from clip_anatomy.towers.transformer import Transformer


@public
def registered(
    clip: Clip,
    tokens: int = 1,
    pictures: Images | None = None,
    *,
    neurons: Sequence[tuple[int, int]] | None = None,
    count: int = FEWEST,
    shared: bool = False,
) -> Clip:
    """Give a model's image tower registers at test time: tokens for what it keeps in patches that show nothing.

    A few MLP neurons write tokens many times as long as the others, which light up in every map. Their activations are moved into
    an extra token (each neuron its greatest), and patches get none: no training, no changed weight. The embedding changes a little;
    maps, explanations, stores and edits of the model that is returned are its own.

    Source: Jiang et al., "Vision Transformers Don't Need Trained Registers" (NeurIPS 2025), §3.2 and §4.

    Args:
        clip: an opened model, a transformer.
        tokens: how many registers.
        pictures: on which the neurons are looked for; by default the bundled ones, looked at once a model. Photographs of your own are better.
        neurons: (layer, neuron) of each, where you know them.
        count: how many neurons are taken.
        shared: one activation for all neurons of a block, the greatest of any, instead of each its own.

    Returns:
        The model, whose name says what was moved.

    Raises:
        UnsupportedModel: no transformer, or no patch is far longer than the others: there is nothing to move.
        BadSpec: no token, or a neuron that is not there.
    """
    whole("registers", tokens, 1, 1024)
    if not isinstance(clip.vision, Transformer):
        raise UnsupportedModel(
            f"{clip.name} has no transformer's MLPs: there are no registers to add. Type: registers=0"
        )
    tower, moved = clip.image_tower, neurons
    if moved is None:

        def looked_for() -> tuple[tuple[int, int], ...]:
            pixels = clip.pixels(examples() if pictures is None else pictures)
            return tuple((one.layer, one.neuron) for one in register_neurons(tower, pixels.split(BATCH), count))

        of_bundled = pictures is None
        moved = clip.remembered(f"register neurons {count}", looked_for, tower) if of_bundled else looked_for()
    if not moved:
        raise UnsupportedModel(
            f"no patch of {clip.name} grows far longer than the others: it keeps nothing in patches, and registers would change nothing. "
            "Type: registers=0, or registered(clip, pictures=[...]) with photographs of yours"
        )
    listed = ", ".join(f"{layer}.{neuron}" for layer, neuron, *_ in moved)
    name = f"{clip.name} with {tokens} register{'s' if tokens > 1 else ''} (neurons {listed})"
    # Its weights are borrowed, its forward is not the host's: so it has no host, and no proof of being equal to it.
    return replace(clip, name=name, vision=with_registers(tower, moved, tokens, shared=shared), host=None, proof=None)
