"""The cost of a network, from its shapes alone: parameters by collection, operations by walking the jaxpr.

Nothing is compiled and no estimate of XLA's is used: a convolution and a matrix product say in their shapes how often
they multiply. An addition of the fast Walsh-Hadamard transform counts as one multiply-accumulate.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxclf.models.backbone import Backbone
from jaxclf.models.backbones.mobilenet_v2 import MobileNetV2
from jaxclf.models.backbones.resnet_cifar import CifarResNet
from jaxclf.models.backbones.resnext_cifar import CifarResNeXt
from jaxclf.models.backbones.shufflenet_v2 import ShuffleNetV2
from jaxclf.models.backbones.wide_resnet_cifar import CifarWideResNet
from jaxclf.models.classifier import Classifier
from jaxclf.models.fast_products import TRANSFORM

Flat = dict[tuple[str, ...], Any]
COLLECTIONS = {"params": "trainable", "fixed": "fixed", "batch_stats": "statistics", "head_state": "statistics"}
ACTIVATIONS = ("relu", "relu6")
POOLS = ("reduce_window_max", "reduce_window_sum", "reduce_window")
UNSEEN_2020: dict[type[Backbone], tuple[str, ...]] = {
    CifarResNet: ("relu", "pool"),
    CifarResNeXt: ("relu", "pool"),
    CifarWideResNet: ("pool",),
    MobileNetV2: ("pool",),
    ShuffleNetV2: ("pool",),
}
"""ReLUs and global pools that are functions in a family's reference, so that the tool behind the thesis's table 6.1,
which saw PyTorch's modules, did not count them."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """Cost of one module for one image, the modules inside it left out."""

    path: str
    """Names of the modules from `backbone` or `head` down, joined by "/"; empty for the classifier itself."""
    output: tuple[int, ...]
    """Shape of its last operation's output for one image, (h, w, c)."""
    trainable: int = 0
    fixed: int = 0
    statistics: int = 0
    macs: int = 0
    """Multiply-accumulates of convolutions and matrix products, and the d log2 d additions of a fast transform."""
    flops_2020: int = 0
    """Operations in the convention of the thesis's table 6.1."""


@dataclasses.dataclass(frozen=True)
class Count:
    """Cost of a network for one image."""

    layers: tuple[Layer, ...]
    auxiliary: int = 0
    """Trainable parameters of the auxiliary classifiers, which evaluation leaves out: no operation of theirs counts."""

    def total(self, field: str) -> int:
        """Sum a field over layers: trainable, fixed, statistics, macs or flops_2020."""
        return sum(getattr(layer, field) for layer in self.layers)


def count(model: Classifier, image_shape: tuple[int, int, int]) -> Count:
    """Count a classifier's parameters and operations for one image (h, w, c), in evaluation mode.

    `macs` are the multiplications of convolutions and linear layers, biases left out. `flops_2020` is the convention of
    the tool behind the thesis's table 6.1: those, plus 1 for each output element of a biased convolution, 2 for each
    output element of a BatchNorm, 1 for each element that a ReLU gives, and 1 for each element that a pool takes,
    less what is `UNSEEN_2020`.
    """
    whole = model.clone(backbone=model.backbone.clone(remat="none"))  # the same operations, not inside of others
    model = whole.clone(backbone=whole.backbone.clone(auxiliary=()))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # One trace gives both: the draws of the initial parameters multiply nothing.
    closed, (_, variables) = jax.make_jaxpr(model.init_with_output, return_shape=True)(jax.random.key(0), images)
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    flat: Flat = traverse_util.flatten_dict(variables)
    for (collection, *path, _), leaf in flat.items():
        rows["/".join(path)][COLLECTIONS[collection]] += leaf.size
    biased = {"/".join(path[1:-1]) for path in flat if path[-1] == "bias" and path[1] == "backbone"}
    norms = {path for path, row in rows.items() if row["statistics"]}
    outputs: dict[str, tuple[int, ...]] = {}
    for eqn, path in equations(closed.jaxpr):
        macs = multiplications(eqn)
        rows[path]["macs"] += macs
        rows[path]["flops_2020"] += macs + _activations_and_pools(eqn, path, model)
        outputs[path] = eqn.outvars[0].aval.shape[1:]
    for path in biased:
        rows[path]["flops_2020"] += (2 if path in norms else 1) * math.prod(outputs[path])
    beside = _beside(whole, images, flat) if whole.backbone.auxiliary else {}
    for path, leaf in beside.items():
        rows["/".join(path[1:-1])][COLLECTIONS[path[0]]] += leaf.size
    layers = [
        Layer(path, outputs.get(path, ()), **rows[path])
        for path in dict.fromkeys([*outputs, *rows])
        if any(rows[path].values())
    ]
    return Count(tuple(layers), sum(leaf.size for path, leaf in beside.items() if path[0] == "params"))


def _beside(whole: Classifier, images: jax.ShapeDtypeStruct, flat: Flat) -> Flat:
    """Return the variables of the auxiliary classifiers: those that `flat`, of the model without them, lacks."""
    every: Flat = traverse_util.flatten_dict(jax.eval_shape(whole.init, jax.random.key(0), images))
    return {path: leaf for path, leaf in every.items() if path not in flat}


def equations(jaxpr: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Yield every equation, those of inner functions too, with the path of the module that it stands in."""
    for eqn in jaxpr.eqns:
        scope = (*outer, *str(eqn.source_info.name_stack).split("/"))
        # Flax names scopes after modules, "head.add_bias" after a method; the first is the classifier's own.
        yield eqn, "/".join([name for name in scope if name and "." not in name][1:])
        if eqn.params.get("name") not in ACTIVATIONS:
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                if hasattr(value, "eqns"):
                    yield from equations(getattr(value, "jaxpr", value), scope)


def multiplications(eqn: Any) -> int:
    """Return the multiply-accumulates of a convolution or a matrix product, the additions of a fast transform, or 0."""
    shapes = [var.aval.shape for var in eqn.invars]
    size = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "conv_general_dilated":
        out_features = eqn.params["dimension_numbers"].rhs_spec[0]
        return size * math.prod(shapes[1]) // shapes[1][out_features]
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return size * math.prod(shapes[0][axis] for axis in contracted)
    if eqn.params.get("name") == TRANSFORM:
        return size * (shapes[0][-1].bit_length() - 1)
    return 0


def _activations_and_pools(eqn: Any, path: str, model: Classifier) -> int:
    """Count elements of ReLUs, windowed pools and the global pool (a sum or maximum in the classifier itself)."""
    unseen = UNSEEN_2020.get(type(model.backbone), ())
    if eqn.params.get("name") in ACTIVATIONS:
        return 0 if "relu" in unseen else math.prod(eqn.outvars[0].aval.shape)
    whole = eqn.primitive.name in ("reduce_sum", "reduce_max") and not path and "pool" not in unseen
    if eqn.primitive.name in POOLS or whole:
        return math.prod(eqn.invars[0].aval.shape)
    return 0
