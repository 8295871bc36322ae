"""OptimConfig -> optax, with PyTorch's meaning of every word."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxclf.config import OptimConfig


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """Return the rate of an epoch (from 0); a milestone is the first epoch at its rate (torch MultiStepLR).

    >>> [learning_rate(OptimConfig(lr=0.5, gamma=0.5, milestones=(2, 3)), epoch) for epoch in range(4)]
    [0.5, 0.5, 0.25, 0.125]
    """
    drops = sum(epoch >= milestone for milestone in config.milestones) if config.schedule == "multistep" else 0
    return config.lr * config.gamma**drops


def schedule(config: OptimConfig, steps_per_epoch: int) -> optax.Schedule:
    """Return step (from 0) -> learning rate."""
    changes = (0, *config.milestones)
    rates = jnp.asarray([learning_rate(config, epoch) for epoch in changes], jnp.float32)
    boundaries = jnp.asarray(config.milestones, jnp.int32) * steps_per_epoch

    def rate(step: jax.typing.ArrayLike) -> Float[Array, ""]:
        return rates[(jnp.asarray(step) >= boundaries).sum()]

    return rate


def transformation(config: OptimConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Return torch.optim.SGD: decay joins the gradient, the buffer holds gradients, the rate comes last.

    optax.sgd agrees; written out here because rate-before-buffer, as in optax.rmsprop, differs after each rate drop.
    """
    mask = None if config.decay == "all" else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask) if config.weight_decay else optax.identity(),
        optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity(),
        optax.scale_by_learning_rate(schedule(config, steps_per_epoch)),
    )
