"""The channels of an elastic network, sorted by importance before narrower blocks are trained."""

import jax

from jaxclf.models.backbones.once_for_all import OnceForAll
from jaxclf.models.elastic import sort_channels
from jaxclf.training.setup import Setup
from jaxclf.training.step import TrainState


def sorted_for(setup: Setup, state: TrainState, step: int) -> TrainState:
    """Return the state with the channels of its blocks sorted, where smaller expansions begin; else as it is.

    Parameters, statistics, moving averages and the optimiser's state are sorted alike, by the parameters alone, so a
    run that goes on from there does the same again. Those that smaller settings use already stay before the others.
    """
    per_epoch, starts = setup.program.timeline.steps_per_epoch, setup.config.elastic.expansions
    epoch, inside = divmod(step, per_epoch)
    if inside or epoch not in starts:
        return state
    body = setup.program.model.backbone
    assert isinstance(body, OnceForAll)
    before = sum(start < epoch for start in starts)
    cuts = {block: widths[1 : 1 + before] for block, widths in body.widths().items()}
    sort = jax.jit(lambda one: sort_channels(one.params["backbone"], one, cuts), donate_argnums=0)
    return setup.layout.whole(sort(state), training=True)
