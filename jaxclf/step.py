"""The training state (arrays only) and the pure steps on it.

What a compiled step depends on besides arrays is a `Program`, hashable and free of seeds: runs that differ in seed
alone, in one process, share their compiled functions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxclf import losses
from jaxclf.classifier import Classifier
from jaxclf.config import OptimConfig
from jaxclf.data.augment import crop_flip, normalise
from jaxclf.initialisation import conv_paths, initialise
from jaxclf.matrices import matrix
from jaxclf.optim import transformation

Tree = Any
DROPOUT_STREAM = 2**32 - 1
"""Folded into the seed's key where augmentation folds in the epoch: no epoch has this number."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static about a run's steps."""

    model: Classifier
    """Built with seed 0: the steps read its fixed matrices from the state."""
    optim: OptimConfig
    steps_per_epoch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    init: str = "he_uniform"
    """ModelConfig.init."""

    @property
    def regularised(self) -> bool:
        """Whether something is added to the cross-entropy."""
        return self.optim.regulariser != "none"

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser."""
        return transformation(self.optim, self.steps_per_epoch)


class TrainState(struct.PyTreeNode):
    """Arrays only: with the data set and the config, all that the next step needs."""

    step: Int[Array, ""]
    """Steps done."""
    seed: Array
    """uint32 []: all randomness of a step is a function of (seed, step)."""
    params: Tree
    batch_stats: Tree
    fixed: Tree
    """Fixed matrices: never touched by the optimiser."""
    opt_state: optax.OptState
    sums: losses.Sums
    """Training metrics of the current epoch so far."""
    bad_step: Int[Array, ""]
    """The first step (from 1) whose loss or update was not finite; 0 while there is none."""

    @property
    def variables(self) -> dict[str, Tree]:
        """Linen's variables."""
        return {"params": self.params, "batch_stats": self.batch_stats, "fixed": self.fixed}


def draw_fixed(shapes: Tree, seed: int) -> Tree:
    """Return the `fixed` collection for a tree of shapes: leaf names are names of matrices.py, shapes are [k d]."""
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes)
    drawn = {}
    for path, leaf in flat.items():
        rows, columns = leaf.shape
        drawn[path] = np.asarray(matrix(path[-1], rows, columns, seed), np.float32)
    return traverse_util.unflatten_dict(drawn)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init_variables(model: Classifier, init: str, image_shape: tuple[int, ...], key: jax.Array) -> dict[str, Tree]:
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params = initialise(variables.get("params", {}), key, init=init, last_conv=model.backbone.last_conv)
    return {"params": params, "batch_stats": variables.get("batch_stats", {})}


def init_state(program: Program, image_shape: tuple[int, ...], seed: int, fixed_seed: int) -> TrainState:
    """Return the state before the first step.

    Under the default `init` it is equal to `model.init(jax.random.key(seed), images)` to the bit.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(program.model.init, jax.random.key(0), images)
    variables = _init_variables(program.model, program.init, image_shape, jax.random.key(seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        fixed=jax.tree.map(jnp.asarray, draw_fixed(shapes.get("fixed", {}), fixed_seed)),
        opt_state=program.tx.init(variables["params"]),
        sums=losses.zeros(regularised=program.regularised),
        bad_step=jnp.zeros((), jnp.int32),
    )


def regulariser(program: Program, params: Tree) -> Float[Array, ""]:
    """Return what the regulariser adds to the loss: its weight times the sum over its convolutions."""
    optim = program.optim
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    paths = conv_paths(params, optim.regularise, program.model.backbone.last_conv)
    terms = [losses.orthogonality(flat[path], double=optim.regulariser == "dso") for path in paths]
    return optim.regulariser_weight * jnp.stack(terms).sum()


def train_step(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, " b"],
) -> TrainState:
    """Take one step on the examples `indices` of the resident training set.

    Dropout's key is a function of (seed, step), augmentation's of (seed, epoch, example).
    """
    key = jax.random.fold_in(jax.random.key(state.seed), state.step // program.steps_per_epoch)
    batch = normalise(crop_flip(images, indices, key, pad=program.pad, flip=program.flip), program.mean, program.std)
    targets = labels[indices]
    stream = jax.random.fold_in(jax.random.key(state.seed), DROPOUT_STREAM)
    rngs = {"dropout": jax.random.fold_in(stream, state.step)}

    def loss_of(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Tree, losses.Sums]]:
        variables = {**state.variables, "params": params}
        logits, updated = program.model.apply(variables, batch, train=True, mutable=["batch_stats"], rngs=rngs)
        loss = losses.cross_entropy(logits, targets).mean()
        added = {"regulariser": regulariser(program, params)} if program.regularised else {}
        return sum(added.values(), loss), (logits, updated.get("batch_stats", {}), added)

    (loss, (logits, batch_stats, added)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = program.tx.update(grads, state.opt_state, state.params)
    sums = losses.metric_sums(logits, targets, jnp.ones(indices.shape, bool)) | added
    step = state.step + 1
    good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
    return state.replace(
        step=step,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        sums=jax.tree.map(jnp.add, state.sums, sums),
        bad_step=jnp.where((state.bad_step == 0) & ~good, step, state.bad_step),
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_steps(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, "s b"],
) -> TrainState:
    """Take s steps in one compiled call; the state given is consumed.

    s = 1 is no scan: on CPU a scan around convolution gradients is an order of magnitude slower.
    """
    if len(indices) == 1:
        return train_step(program, state, images, labels, indices[0])
    return jax.lax.scan(lambda s, i: (train_step(program, s, images, labels, i), None), state, indices)[0]


@functools.partial(jax.jit, static_argnums=0)
def eval_step(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, " b"],
    mask: Bool[Array, " b"],
) -> tuple[losses.Sums, Int[Array, " b"]]:
    """Return masked metric sums and predicted classes of the test examples `indices`."""
    batch = normalise(images[indices], program.mean, program.std)
    logits: Any = program.model.apply(state.variables, batch)
    return losses.metric_sums(logits, labels[indices], mask), logits.argmax(-1).astype(jnp.int32)
