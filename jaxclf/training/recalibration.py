"""BatchNorm's statistics, averaged anew over training batches while the parameters stand still."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from jaxclf.data.augment import augment
from jaxclf.training.step import DROPOUT_STREAM, Program, TrainState, train_forward


def recalibrate(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, "1 b"] | None,
    examples: Int[Array, "1 b"] | Int[Array, " b"] | None,
    number: Int[Array, ""],
) -> TrainState:
    """Move the BatchNorm statistics that are evaluated to the mean over training batches; `number` counts them from 1.

    The parameters stand still, so this is the cumulative mean that BatchNorm(momentum=None) keeps in PyTorch.
    """
    if indices is not None:
        indices, examples = indices[0], None if examples is None else examples[0]
    epoch_key = jax.random.fold_in(jax.random.key(state.seed), program.timeline.epochs)
    batch = augment(program.augment, images, indices, epoch_key, program.mean, program.std, examples=examples)
    rng = jax.random.fold_in(jax.random.key(state.seed), DROPOUT_STREAM)
    _, own = train_forward(program, state.evaluated, program.spread.split(batch), rng, kept="batch_moments")
    own, share = program.spread.mean(own), 1 / number.astype(jnp.float32)
    new = jax.tree.map(lambda mean, one: mean + share * (one - mean), state.evaluated["batch_stats"], own)
    if state.average:
        return program.spread.whole(state.replace(average={**state.average, "batch_stats": new}))
    return program.spread.whole(state.replace(batch_stats=new))
