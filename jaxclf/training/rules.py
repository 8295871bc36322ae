"""torch.optim's update rules: gradient -> step, before the learning rate unless that is inside.

optax's own are used where they compute what torch.optim computes. Written out here: Adagrad (optax puts eps into the
root), Adam and Adamax (optax's 1 - beta^t cancels in float32 and breaks strict dtype promotion), NAdam (optax has no
momentum schedule) and L-BFGS (optax has other step lengths).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxclf.config import OptimConfig
from jaxclf.errors import UsageError

Tree = Any
MOMENTUM_DECAY = 4e-3
"""torch.optim.NAdam's default."""
LBFGS_HISTORY = 100
"""torch.optim.LBFGS's default; below as well: tolerance_grad, tolerance_change and the least curvature it stores."""
LBFGS_FLAT, LBFGS_LEVEL, LBFGS_CURVED = 1e-7, 1e-9, 1e-10


def rule_of(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return the rule that a config names; only rmsprop_tf and lbfgs apply the rate."""
    beta1, beta2 = config.betas
    eps, alpha, start = config.eps, config.alpha, config.accumulator
    match config.name:
        case "sgd":
            return _sgd(config)
        case "rmsprop":
            squares = optax.scale_by_rms(_or(alpha, 0.99), _or(eps, 1e-8), _or(start, 0.0), eps_in_sqrt=False)
            return optax.chain(squares, _buffer(config))
        case "rmsprop_tf":
            squares = optax.scale_by_rms(_or(alpha, 0.9), _or(eps, 1.0), _or(start, 1.0), eps_in_sqrt=True)
            return optax.chain(squares, optax.scale_by_learning_rate(rate), _buffer(config))
        case "adam" | "adamw":
            return _adam(beta1, beta2, _or(eps, 1e-8))
        case "adamax":
            return _adamax(beta1, beta2, _or(eps, 1e-8))
        case "nadam":
            return _nadam(beta1, beta2, _or(eps, 1e-8))
        case "adagrad":
            return _adagrad(_or(start, 0.0), _or(eps, 1e-10))
        case "adadelta":
            return optax.scale_by_adadelta(_or(alpha, 0.9), _or(eps, 1e-6))
        case "lbfgs":
            return _lbfgs(rate)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _buffer(config: OptimConfig) -> optax.GradientTransformation:
    return optax.trace(config.momentum) if config.momentum else optax.identity()


def _sgd(config: OptimConfig) -> optax.GradientTransformation:
    """Return torch.optim.SGD's rule: b = momentum * b + (1 - dampening) * g, but b = g at the first step."""
    if config.nesterov and (not config.momentum or config.dampening):
        given = f"momentum is {config.momentum} and dampening {config.dampening}"
        raise UsageError(f"optim.nesterov was given but {given}; it needs momentum above 0 and dampening 0")
    if not config.momentum:
        return optax.identity()
    trace = optax.trace(config.momentum, config.nesterov)
    if not config.dampening:
        return trace
    share = optax.scale_by_schedule(lambda count: jnp.where(jnp.asarray(count) == 0, 1.0, 1 - config.dampening))
    return optax.chain(share, trace)


def _adagrad(start: float, eps: float) -> optax.GradientTransformation:
    """Return torch.optim.Adagrad's rule: s = s + g^2, g / (sqrt(s) + eps)."""

    def init(params: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, start), params)

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        del params
        state = jax.tree.map(lambda g, s: s + jnp.square(g), updates, state)
        return jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, state), state

    return optax.GradientTransformation(init, update)


class Moments(NamedTuple):
    """Adam's averages of the gradient and of its square (Adamax: its greatest absolute value, fading)."""

    count: Int[Array, ""]
    mu: Tree
    nu: Tree


def _start_moments(params: Tree) -> Moments:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Moments(jnp.zeros((), jnp.int32), zeros, zeros)


def _fade(beta: float, old: Tree, new: Tree) -> Tree:
    return jax.tree.map(lambda a, b: beta * a + (1 - beta) * b, old, new)


def _weight(beta: float, count: Int[Array, ""]) -> Float[Array, ""]:
    """Return 1 - beta^count, the sum of an average's weights, without cancellation: float32 would lose 4 digits."""
    return -jnp.expm1(count.astype(float) * math.log(beta)) if beta else jnp.ones(())


def _adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Return torch.optim.Adam's rule: m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)."""

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Moments]:
        del params
        count = state.count + 1
        mu, nu = _fade(beta1, state.mu, updates), _fade(beta2, state.nu, jax.tree.map(jnp.square, updates))
        of_m, of_v = _weight(beta1, count), _weight(beta2, count)

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            return m / of_m.astype(m.dtype) / (jnp.sqrt(v / of_v.astype(m.dtype)) + eps)

        return jax.tree.map(step, mu, nu), Moments(count, mu, nu)

    return optax.GradientTransformation(_start_moments, update)


def _adamax(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Return torch.optim.Adamax's rule: u = max(beta2 * u, |g| + eps), m / (1 - beta1^t) / u."""

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Moments]:
        del params
        count = state.count + 1
        mu = _fade(beta1, state.mu, updates)
        nu = jax.tree.map(lambda u, g: jnp.maximum(beta2 * u, jnp.abs(g) + eps), state.nu, updates)
        of_m = _weight(beta1, count)
        return jax.tree.map(lambda m, u: m / of_m.astype(m.dtype) / u, mu, nu), Moments(count, mu, nu)

    return optax.GradientTransformation(_start_moments, update)


class NadamState(NamedTuple):
    """Adam's averages and the product of the momenta so far."""

    moments: Moments
    product: Float[Array, ""]


def _nadam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Return torch.optim.NAdam's rule, whose momentum rises with the step t (from 1).

        u_t = beta1 * (1 - 0.96^(t * 0.004) / 2),  P_t = u_1 * ... * u_t
        ((1 - u_t) / (1 - P_t) * g + u_(t+1) / (1 - P_t * u_(t+1)) * m) / (sqrt(v / (1 - beta2^t)) + eps)

    with Adam's averages m of g and v of g^2.
    """

    def init(params: Tree) -> NadamState:
        return NadamState(_start_moments(params), jnp.ones(()))

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, NadamState]:
        del params
        count = state.moments.count + 1
        now, following = (beta1 * (1 - 0.5 * 0.96 ** (t.astype(float) * MOMENTUM_DECAY)) for t in (count, count + 1))
        product = state.product * now
        mu = _fade(beta1, state.moments.mu, updates)
        nu = _fade(beta2, state.moments.nu, jax.tree.map(jnp.square, updates))
        of_g, of_m, of_v = (1 - now) / (1 - product), following / (1 - product * following), _weight(beta2, count)

        def step(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            moved = of_g.astype(g.dtype) * g + of_m.astype(g.dtype) * m
            return moved / (jnp.sqrt(v / of_v.astype(g.dtype)) + eps)

        return jax.tree.map(step, updates, mu, nu), NadamState(Moments(count, mu, nu), product)

    return optax.GradientTransformation(init, update)


class LbfgsState(NamedTuple):
    """L-BFGS over the n parameters as one vector; the newest pair of the history comes last, unused rows are zero."""

    count: Int[Array, ""]
    """Number of updates asked for: the step that the rate belongs to."""
    iterations: Int[Array, ""]
    """Number of updates that found a gradient to follow."""
    gradient: Float[Array, " n"]
    step: Float[Array, " n"]
    steps: Float[Array, "h n"]
    changes: Float[Array, "h n"]
    """Changes of the gradient over `steps`."""
    inverse: Float[Array, " h"]
    """1 / (change . step)."""
    scale: Float[Array, ""]
    """The Hessian's inverse before the history."""


def _lbfgs(rate: optax.Schedule) -> optax.GradientTransformation:
    """Return torch.optim.LBFGS with max_iter 1, no line search and a history of 100, one iteration an update.

    The step is rate * d, the first one min(1, 1 / |g|_1) * rate * d, with d = -H g from the history's two loops,
    H starting at (y . s) / (y . y) of the newest pair; pairs with y . s <= 1e-10 are not stored. Nothing happens where
    no gradient exceeds 1e-7, and no step is taken where g . d > -1e-9. For small problems on the full batch: it keeps
    200 copies of the parameters, and changing batches spoil its differences of gradients.
    """

    def init(params: Tree) -> LbfgsState:
        flat = jnp.zeros_like(ravel_pytree(params)[0])
        rows = jnp.zeros((LBFGS_HISTORY, flat.size), flat.dtype)
        zero = jnp.zeros((), jnp.int32)
        return LbfgsState(zero, zero, flat, flat, rows, rows, jnp.zeros_like(rows.sum(1)), jnp.ones_like(flat.sum()))

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, LbfgsState]:
        del params
        g, unravel = ravel_pytree(updates)
        first = state.iterations == 0
        remembered = _remember(state, g)
        d = jnp.where(first, -g, _direction(remembered, g))
        length = jnp.asarray(rate(state.count)).astype(g.dtype)
        length *= jnp.where(first, jnp.minimum(1.0, 1.0 / jnp.abs(g).sum()), 1.0)
        step = length * d
        new = remembered._replace(iterations=state.iterations + 1, gradient=g, step=step)
        flat = jnp.abs(g).max(initial=0.0) <= LBFGS_FLAT
        new = jax.tree.map(lambda old, after: jnp.where(flat, old, after), state, new)
        moves = ~flat & (g @ d <= -LBFGS_LEVEL)
        return unravel(jnp.where(moves, step, 0.0)), new._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _remember(state: LbfgsState, g: Float[Array, " n"]) -> LbfgsState:
    """Store the last step with the change of the gradient over it, if that is curved upwards."""
    y, s = g - state.gradient, state.step
    ys = y @ s
    keep = (state.iterations > 0) & (ys > LBFGS_CURVED)

    def append(rows: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.where(keep, jnp.concatenate([rows[1:], row[None]]), rows)

    return state._replace(
        steps=append(state.steps, s),
        changes=append(state.changes, y),
        inverse=append(state.inverse, 1.0 / ys),
        scale=jnp.where(keep, ys / (y @ y), state.scale),
    )


def _direction(state: LbfgsState, g: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return -H g by the two loops over the history (Nocedal & Wright, algorithm 7.4); zero rows change nothing."""
    history = (state.steps, state.changes, state.inverse)
    q, a = jax.lax.scan(_newest_first, -g, history, reverse=True)
    return jax.lax.scan(_oldest_first, state.scale * q, (*history, a))[0]


def _newest_first(q: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    s, y, inverse = pair
    a = inverse * (s @ q)
    return q - a * y, a


def _oldest_first(r: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    s, y, inverse, a = pair
    return r + (a - inverse * (y @ r)) * s, None
