"""The cost of a network, from its shapes alone: parameters by collection, operations and outputs by one walk.

Nothing is compiled and no estimate of XLA's is used: a convolution and a matrix product say in their shapes how often
they multiply. The walk lists the network's parts as PyTorch would name them (`Part`); a convention is one row of
`CONVENTIONS`, what it counts for a part of each kind. Tools that hook PyTorch's modules do not see what a reference
calls as functions: `FUNCTIONS` lists that by family.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxclf.models.backbone import Backbone
from jaxclf.models.backbones.alexnet import AlexNet
from jaxclf.models.backbones.densenet import DenseNet, Features
from jaxclf.models.backbones.googlenet import GoogLeNet
from jaxclf.models.backbones.inception_v3 import InceptionV3
from jaxclf.models.backbones.lenet import LeNet
from jaxclf.models.backbones.mobilenet_v2 import MobileNetV2
from jaxclf.models.backbones.mobilenet_v3 import MobileNetV3
from jaxclf.models.backbones.resnet_cifar import CifarResNet
from jaxclf.models.backbones.resnext_cifar import CifarResNeXt
from jaxclf.models.backbones.shufflenet_v2 import ShuffleNetV2
from jaxclf.models.backbones.vgg import VGG
from jaxclf.models.backbones.wide_resnet_cifar import CifarWideResNet
from jaxclf.models.classifier import Classifier
from jaxclf.models.fast_products import TRANSFORM
from jaxclf.models.stages import Inside

Flat = dict[tuple[str, ...], Any]
COLLECTIONS = {"params": "trainable", "fixed": "fixed", "batch_stats": "statistics", "head_state": "statistics"}
ACTIVATIONS = {
    **dict.fromkeys(("relu", "relu6"), "relu"),
    **dict.fromkeys(("silu", "logistic", "hard_sigmoid", "hard_silu"), "activation"),
}
"""Functions and primitives of JAX that are one module each in PyTorch, and the kind of part that they are."""
FUNCTIONS: dict[type[Backbone], tuple[str, ...]] = {
    CifarResNet: ("relu", "global pool"),
    CifarResNeXt: ("relu", "global pool"),
    CifarWideResNet: ("global pool",),
    DenseNet: ("last relu", "global pool"),
    GoogLeNet: ("relu",),
    InceptionV3: ("relu", "average pool"),
    MobileNetV2: ("global pool",),
    ShuffleNetV2: ("global pool",),
}
"""Parts that are functions, not modules, in a family's reference."""
ENDS_LINEAR: dict[type[Backbone], bool] = {AlexNet: True, LeNet: False, MobileNetV3: False, VGG: True}
"""Families whose reference ends in linear layers, without a pool of one position; whether it has an adaptive average
pool before the first of them, which changes nothing at the size that they take."""
SEQUENTIAL = (Inside, Features)
"""Modules of ours that hold others and are a Sequential in the reference, or belong to its outermost module."""


class Part(NamedTuple):
    """What PyTorch has one module, or one function, for."""

    kind: str
    """One of `KINDS`."""
    path: str
    """As `Layer.path`."""
    taken: int
    """Elements that it takes for one image."""
    given: int
    """Elements that it gives."""
    macs: int = 0
    """Multiply-accumulates, without a bias; the additions of a fast transform."""
    biased: bool = False


KINDS = (
    *("conv", "linear", "transform", "batch norm", "group norm", "relu", "activation"),
    *("max pool", "average pool", "global pool", "dropout", "block"),
)
"""A global pool leaves one position, or as many as there are; a block is a module that holds others."""
Rule = Mapping[str, Callable[[Part], int]]
TIMES = ("conv", "linear", "transform")
POOLS = ("max pool", "average pool", "global pool")
CONVENTIONS: dict[str, Rule] = {
    "macs": dict.fromkeys(TIMES, lambda part: part.macs),
    "flops": {**dict.fromkeys(TIMES, lambda part: 2 * part.macs), "transform": lambda part: part.macs},
    "thop": {
        **dict.fromkeys(TIMES, lambda part: part.macs),
        "batch norm": lambda part: 4 * part.given,
        "average pool": lambda part: part.given,
        "global pool": lambda part: part.taken + part.given,
    },
    "flops_2020": {
        **dict.fromkeys(TIMES, lambda part: part.macs),
        "conv": lambda part: part.macs + part.given * part.biased,
        "batch norm": lambda part: 2 * part.given,
        "relu": lambda part: part.given,
        **dict.fromkeys(POOLS, lambda part: part.taken),
    },
    "outputs": dict.fromkeys(KINDS, lambda part: part.given),
}


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
    flops: int = 0
    thop: int = 0
    flops_2020: int = 0
    outputs: int = 0
    """Elements that its parts give, each part's counted: what torchsummary takes for memory."""


class Megabytes(NamedTuple):
    """Sizes of a batch in units of 1024^2 bytes, float32, as torchsummary 1.5.1 prints them."""

    input: float
    forward_backward: float
    """Twice the outputs: values and gradients."""
    parameters: float
    total: float


@dataclasses.dataclass(frozen=True)
class Count:
    """Cost of a network for one image."""

    layers: tuple[Layer, ...]
    auxiliary: int = 0
    """Trainable parameters of the auxiliary classifiers, which evaluation leaves out: no operation of theirs counts."""

    def total(self, field: str) -> int:
        """Sum a number of `Layer` over the layers."""
        return sum(getattr(layer, field) for layer in self.layers)

    def megabytes(self, image_shape: tuple[int, int, int], batch_size: int) -> Megabytes:
        """Return torchsummary's sizes for a batch of images (h, w, c)."""
        numbers = batch_size * math.prod(image_shape), 2 * batch_size * self.total("outputs")
        parameters = self.total("trainable") + self.total("fixed")
        images, outputs, weights = (4 * number / 1024**2 for number in (*numbers, parameters))
        return Megabytes(images, outputs, weights, images + outputs + weights)


def count(model: Classifier, image_shape: tuple[int, int, int]) -> Count:
    """Count a classifier's parameters and operations for one image (h, w, c), in evaluation mode.

    `macs` are the multiply-accumulates of convolutions and linear layers without biases, and the d log2 d additions of
    a fast Walsh-Hadamard transform.

    `flops` are 2 for a multiply-accumulate and 1 for an addition of the transform, as torch.utils.flop_counter of
    PyTorch 2.13 counts. A biased layer multiplies and adds exactly so often, another once less for each output.

    `thop` is thop 0.1.1 (Lyken17/pytorch-OpCounter, thop/vision/basic_hooks.py): `macs`, 4 for each element of a
    BatchNorm, 1 for each output of an average pool, and an adaptive pool's inputs and outputs. Biases, activations and
    max-pools are nothing.

    `flops_2020` is ptflops 0.6.2, the tool of the thesis's table 6.1: `macs`, 1 for each output of a biased
    convolution, 2 for each of a BatchNorm, 1 for each of a ReLU, and 1 for each element that a pool takes.

    `outputs` is torchsummary 1.5.1 (sksq96/pytorch-summary): what each module gives, a dropout or one that holds others
    included, a Sequential not.

    The last three see PyTorch's modules, so they depend on how a reference is written. They are the tools' own numbers
    for the networks of tests/golden/counting_tools.json, at the size that a network was designed for. Elsewhere they
    are what the tools would print if every part outside `FUNCTIONS` were a module.
    """
    whole = model.clone(backbone=model.backbone.clone(remat="none"))  # the same operations, not inside of others
    model = whole.clone(backbone=whole.backbone.clone(auxiliary=()))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    parts, outputs, flat = _walk(model, images)
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for (collection, *path, _), leaf in flat.items():
        rows["/".join(path)][COLLECTIONS[collection]] += leaf.size
    for part in _seen(parts, model.backbone):
        for convention, rules in CONVENTIONS.items():
            rows[part.path][convention] += rules[part.kind](part) if part.kind in rules else 0
    beside = _beside(whole, images, flat) if whole.backbone.auxiliary else {}
    for path, leaf in beside.items():
        rows["/".join(path[1:-1])][COLLECTIONS[path[0]]] += leaf.size
    layers = [
        Layer(path, outputs.get(path, ()), **rows[path])
        for path in dict.fromkeys([*outputs, *rows])
        if any(rows[path].values())
    ]
    return Count(tuple(layers), sum(leaf.size for path, leaf in beside.items() if path[0] == "params"))


def _walk(model: Classifier, images: jax.ShapeDtypeStruct) -> tuple[list[Part], dict[str, tuple[int, ...]], Flat]:
    """Return a model's parts, the shape of what each of its modules gives for one image, and its variables."""
    holding: list[Part] = []
    with nn.intercept_methods(functools.partial(_note, holding, set())):
        # One trace gives both: the draws of the initial parameters multiply nothing.
        closed, (_, variables) = jax.make_jaxpr(model.init_with_output, return_shape=True)(jax.random.key(0), images)
    flat: Flat = traverse_util.flatten_dict(variables)
    owned: dict[str, set[str]] = collections.defaultdict(set)
    for _, *path, leaf in flat:
        owned["/".join(path)].add(leaf)
    found = list(equations(closed.jaxpr))
    outputs = {path: eqn.outvars[0].aval.shape[1:] for eqn, path in found}
    return [*_parts(model, found, owned), *_norms(outputs, owned), *holding], outputs, flat


def _beside(whole: Classifier, images: jax.ShapeDtypeStruct, flat: Flat) -> Flat:
    """Return the variables of the auxiliary classifiers: those that `flat`, of the model without them, lacks."""
    every: Flat = traverse_util.flatten_dict(jax.eval_shape(whole.init, jax.random.key(0), images))
    return {path: leaf for path, leaf in every.items() if path not in flat}


def equations(jaxpr: Any, outer: tuple[str, ...] = ()) -> Iterator[tuple[Any, str]]:
    """Yield every equation, those of inner functions too, with the path of the module that it stands in.

    Of a function that platforms compile differently (fast_layers.py) these are the equations that define it.
    """
    for eqn in jaxpr.eqns:
        scope = (*outer, *str(eqn.source_info.name_stack).split("/"))
        # Flax names scopes after modules, "head.add_bias" after a method; the first is the classifier's own.
        yield eqn, "/".join([name for name in scope if name and "." not in name][1:])
        if eqn.params.get("name") not in ACTIVATIONS:  # one part, whatever is inside
            params = eqn.params
            if params.get("branches_platforms"):
                params = {"default": params["branches"][-1]}
            for value in jax.tree.leaves(list(params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
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


def _kind(eqn: Any, path: str, linear: set[str]) -> str:
    """Return the kind of part that an equation is the whole of, or nothing."""
    name = eqn.primitive.name
    called = eqn.params.get("name", name)
    if name in ("conv_general_dilated", "dot_general"):
        return "conv" if name == "conv_general_dilated" and path not in linear else "linear"
    if called == TRANSFORM or called in ACTIVATIONS:
        return ACTIVATIONS.get(called, "transform")
    if name in ("reduce_window_max", "reduce_window_sum"):
        across = eqn.params["window_dimensions"][-1] > 1  # local response normalisation, over channels
        return "" if across else "max pool" if name == "reduce_window_max" else "average pool"
    whole = name in ("reduce_sum", "reduce_max") and eqn.params["axes"] == (1, 2) and eqn.invars[0].aval.ndim == 4
    return "global pool" if whole else ""


def _parts(model: Classifier, found: list[tuple[Any, str]], owned: Mapping[str, set[str]]) -> Iterator[Part]:
    """Yield the parts that are one equation each, in their order."""
    linear = {f"backbone/{path}" for path in model.backbone.linear_layers} | {"head"}
    adaptive = ENDS_LINEAR.get(type(model.backbone), False)
    for eqn, path in found:
        if kind := _kind(eqn, path, linear):
            taken, given = (math.prod(one.aval.shape) for one in (eqn.invars[0], eqn.outvars[0]))
            if adaptive and kind == "linear" and path != "head":
                adaptive = False
                yield Part("global pool", "backbone", taken, taken)
            yield Part(kind, path, taken, given, multiplications(eqn), "bias" in owned.get(path, ()))


def _norms(outputs: Mapping[str, tuple[int, ...]], owned: Mapping[str, set[str]]) -> Iterator[Part]:
    """Yield the BatchNorms and GroupNorms, which are several equations each."""
    for path, names in owned.items():
        if names >= {"weight", "bias"}:
            size = math.prod(outputs[path])
            yield Part("batch norm" if "running_mean" in names else "group norm", path, size, size)


def _note(
    found: list[Part],
    parents: set[tuple[str, ...]],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Call a module's method; note what a dropout and a module inside the backbone that holds others give.

    A module's call ends after those of the modules inside, so that it is known to be their parent.
    """
    given, module = call(*args, **kwargs), context.module
    if context.method_name != "__call__":
        return given
    path, size = module.path, sum(one.size for one in jax.tree.leaves(given))
    parents.add(path[:-1])
    if isinstance(module, nn.Dropout) and module.rate:
        found.append(Part("dropout", "/".join(path[:-1]), size, size))
    elif path in parents and len(path) > 1 and not isinstance(module, SEQUENTIAL):
        found.append(Part("block", "/".join(path), size, size))
    return given


def _seen(parts: Iterable[Part], backbone: Backbone) -> Iterator[Part]:
    """Leave out what the family's reference has not, or has as a function."""
    parts, functions = list(parts), FUNCTIONS.get(type(backbone), ())
    last = max((number for number, part in enumerate(parts) if part.kind == "relu"), default=-1)
    for number, part in enumerate(parts):
        one_position = part.kind == "global pool" and part.path == "" and part.taken == part.given == backbone.features
        absent = one_position and type(backbone) in ENDS_LINEAR
        if part.kind not in functions and not (number == last and "last relu" in functions) and not absent:
            yield part
