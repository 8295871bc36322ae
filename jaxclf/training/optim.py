"""OptimConfig -> optax, with PyTorch's meaning of every word.

rules.py holds the update rules. Written out here: the clipping of the norm (optax divides by the norm alone) and the
order of rate and buffer, which shows after every change of the rate.
"""

import difflib
import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxclf.config import OptimConfig
from jaxclf.errors import UsageError
from jaxclf.training.rules import rule_of
from jaxclf.training.schedules import Timeline, schedule

Tree = Any
Depthwise = Callable[[str, tuple[int, ...]], bool]
"""Path and shape of a parameter -> whether it is a depthwise convolution."""


def no_depthwise(path: str, shape: tuple[int, ...]) -> bool:
    """Tell that a parameter of a network without depthwise convolutions is none."""
    return False


def transformation(
    config: OptimConfig, timeline: Timeline, *, depthwise: Depthwise = no_depthwise
) -> optax.GradientTransformation:
    """Return the optimiser: clip the norm, add the decay to the gradient, apply torch.optim's rule, then the rate.

    Exceptions: AdamW's decay comes after the rule, and rmsprop_tf and lbfgs have the rate inside. The step that the
    rate belongs to is the optimiser's own count of updates, from 0. Parameters that `config.freeze` names are not
    counted in the norm, have no state, and get an update of zero; apply it with `apply_updates`.

    Args:
        config: All but `accumulate` and `ema`, which are the training step's.
        timeline: How long the run is.
        depthwise: Names the depthwise convolutions; see `decayed`.

    Raises:
        UsageError: nesterov without momentum or with dampening; the patterns of `trainable`, at `init`.
    """
    decay = optax.identity()
    if config.weight_decay:
        decay = optax.add_decayed_weights(config.weight_decay, lambda params: _decays(config, params, depthwise))
    rate = schedule(config, timeline)
    stages = [rule_of(config, rate), decay] if config.name == "adamw" else [decay, rule_of(config, rate)]
    if config.clip_norm is not None:
        stages.insert(0, _clip(config.clip_norm))
    if config.name not in ("rmsprop_tf", "lbfgs"):
        stages.append(optax.scale_by_learning_rate(rate))
    tx = optax.chain(*stages)
    if not config.freeze:
        return tx

    def labels(params: Tree) -> Tree:
        return jax.tree.map(lambda trains: "trained" if trains else "frozen", trainable(config, params))

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def apply_updates(config: OptimConfig, params: Tree, updates: Tree) -> Tree:
    """Return params + updates, and what `config.freeze` names as it is.

    optax.apply_updates would add zero to the frozen, which changes -0.0 and, where XLA flushes them, subnormal numbers:
    trained weights may hold some.
    """
    return jax.tree.map(lambda p, u, trains: p + u if trains else p, params, updates, trainable(config, params))


def _clip(most: float) -> optax.GradientTransformation:
    """Return torch's clip_grad_norm_: g * min(1, most / (|g| + 1e-6)), |g| over all the gradients together."""

    def clip(updates: Tree, _: Tree) -> Tree:
        share = jnp.minimum(most / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda leaf: leaf * share.astype(leaf.dtype), updates)

    return optax.stateless(clip)


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def trainable(config: OptimConfig, params: Tree) -> Tree:
    """Return a tree of bool: False where a pattern of `config.freeze` matches the path, `backbone/conv1/kernel`.

    Patterns are the shell's, over the whole path, case-sensitive; `*` matches slashes too.

    Raises:
        UsageError: patterns that match nothing, with the nearest paths.

    >>> trainable(OptimConfig(freeze=("*/kernel",)), {"head": {"kernel": 1, "bias": 2}})
    {'head': {'bias': True, 'kernel': False}}
    """
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    if idle := [pattern for pattern in config.freeze if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]:
        near = [name for pattern in idle for name in difflib.get_close_matches(pattern, names, n=2, cutoff=0.0)]
        raise UsageError(
            f"optim.freeze: {', '.join(map(repr, idle))} match no parameter; nearest: {', '.join(dict.fromkeys(near))}"
        )

    def trains(path: jax.tree_util.KeyPath, _: Any) -> bool:
        return not any(fnmatch.fnmatchcase(_name(path), pattern) for pattern in config.freeze)

    return jax.tree.map_with_path(trains, params)


def decayed(config: OptimConfig, params: Tree, *, depthwise: Depthwise = no_depthwise) -> Tree:
    """Return a tree of bool: what `config.decay` names, less what is frozen.

    all: everything. weights: arrays with more than one axis. not_depthwise: those less the kernels that `depthwise`
    holds for, given path and shape (`Backbone.is_depthwise`).

    Raises:
        UsageError: as `trainable`.
    """
    both = zip(
        jax.tree.leaves(_decays(config, params, depthwise)), jax.tree.leaves(trainable(config, params)), strict=True
    )
    return jax.tree.unflatten(jax.tree.structure(params), [decays and trains for decays, trains in both])


def _decays(config: OptimConfig, params: Tree, depthwise: Depthwise) -> Tree:
    """Return what `config.decay` names in params, frozen or not, or in those that are left without the frozen."""

    def decays(path: jax.tree_util.KeyPath, leaf: Any) -> bool:
        if config.decay == "all":
            return True
        return leaf.ndim > 1 and not (config.decay == "not_depthwise" and depthwise(_name(path), leaf.shape))

    return jax.tree.map_with_path(decays, params)


def average(config: OptimConfig, average: Tree, new: Tree, step: Int[Array, ""]) -> Tree:
    """Return the moving average of a tree of floats after `step` steps, of which `new` is the outcome.

    At every ema_every-th step, average + (1 - d) * (new - average) with d = ema (torch get_ema_multi_avg_fn), or with
    ema_warmup d = min(ema, (1 + n) / (10 + n)) at update n, from 0 (tf.train.ExponentialMovingAverage with num_updates
    = n). It stays bit-identical at other steps, and where nothing differs, as in frozen parameters. Without ema it is
    `new`. Start it from the initial parameters; torch's AveragedModel starts from those of its first update.
    """
    if config.ema is None:
        return new
    n = step // config.ema_every - 1
    share = jnp.asarray(1 - config.ema)
    if config.ema_warmup:
        share = jnp.maximum(share, 9 / (10 + n.astype(share.dtype)))  # 9 / (10 + n) is 1 - (1 + n) / (10 + n)
    due = step % config.ema_every == 0

    def blend(old: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(due & (old != leaf), old + share.astype(old.dtype) * (leaf - old), old)

    return jax.tree.map(blend, average, new)
