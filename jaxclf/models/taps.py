"""Layers of a classifier by their paths: what each answers for images, and what an answer owes to it.

A path is that of the backbone's modules, joined by "/", as `Backbone.stem` and the joined names of PyTorch's keys are:
`layer4_1/conv2`. What is tapped is the output of the module: an activation that a family applies outside of it is not
part of it. `LAST` is the backbone's own output, the last feature map.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxclf.errors import UsageError, unknown
from jaxclf.models.classifier import Classifier

LAST = ""
"""Path of the backbone itself."""


class Tapped(NamedTuple):
    """What images make of a classifier."""

    logits: Float[Array, "n k"]
    outputs: dict[str, Float[Array, "n ..."]]
    """By the paths that were asked for."""


def tap(
    model: Classifier,
    variables: Mapping[str, Any],
    images: Float[Array, "n h w c"],
    paths: Iterable[str],
    added: Mapping[str, Float[Array, "n ..."]] | None = None,
) -> Tapped:
    """Return the logits of an evaluation, and the outputs of the layers at some paths, with `added` added to them.

    The gradient of a logit with respect to zeros that are added is that with respect to the output. The function is
    pure, and may be transformed. Raises `UsageError` for a path that the backbone does not have.
    """
    wanted, outputs, found = set(paths), {}, set()

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        answer = call(*args, **kwargs)
        path = _path(context)
        if path is not None:
            found.add(path)
        if path not in wanted or path is None:
            return answer
        if path in outputs:
            raise UsageError(f"layer {path!r} is called more than once in one pass, so it has no single output")
        if added is not None and path in added:
            answer = answer + added[path]
        outputs[path] = answer
        return answer

    with nn.intercept_methods(note):
        logits: Any = _stored(model).apply(variables, images)
    if missing := sorted(wanted - found):
        raise unknown("layer", missing[0], sorted(found - {LAST}))
    return Tapped(logits, outputs)


def layers(model: Classifier, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """List the layers of the backbone by their paths, and the shapes of their outputs, in the order of their calls.

    `shape` is that of the images, [n h w c]; nothing is computed. A module that is called more than once is left out.
    """
    hashable: Any = model  # as modules of hashable fields are, which pyright cannot see
    return dict(_layers(hashable, shape))


@functools.lru_cache(maxsize=64)
def _layers(model: Any, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    found: dict[str, Any] = {}
    twice: set[str] = set()

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        answer = call(*args, **kwargs)
        path = _path(context)
        if path is not None and isinstance(answer, jax.Array):
            twice.update({path} & set(found))
            found[path] = jax.ShapeDtypeStruct(answer.shape, answer.dtype)
        return answer

    model, images = _stored(model), jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.enable_x64(False):  # the same shapes, and the caller's parameters may be float64
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        with nn.intercept_methods(note):
            jax.eval_shape(model.apply, variables, images)
    return {path: output for path, output in found.items() if path not in twice}


def _path(context: nn.module.InterceptorContext) -> str | None:
    """Return the path of a module of the backbone that is called; None for another, and for another method."""
    path = context.module.path
    if context.method_name != "__call__" or path[:1] != ("backbone",):
        return None
    return "/".join(path[1:])


def _stored(model: Classifier) -> Classifier:
    """Return the model without rematerialisation: a layer inside a block that is computed again has no output."""
    return model.clone(backbone=model.backbone.clone(remat="none"))
