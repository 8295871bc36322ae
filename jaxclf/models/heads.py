"""The last layer, learned, fixed or absent: features [n d] -> logits [n k].

Every head also takes a feature map [n i j d] and answers at each position; those class maps average to the logits.
One, the 3x3 convolution, needs the map and stands before the pool (`before_pool`).
What is fixed is a variable of the `fixed` collection, named as in matrices/, and what moves without a gradient one of
`head_state`. A head is a matrix and what stands around it: rows of one table, `OWN`. Source: thesis section 3 and its
appendix, and the papers named in the table.
"""

import dataclasses
import inspect
import numbers
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxclf.errors import UsageError, unknown
from jaxclf.models.fast_products import fast_product
from jaxclf.models.layers import as_input, fixed_matrix, torch_default, uniform
from jaxclf.models.matrices import FILE, MATRICES, file_matrix, flaws, matrix, obstacle, product_obstacle
from jaxclf.models.matrices.simplices import bits
from jaxclf.registry import Registry

Normalise = Literal["none", "features", "both"]
Assign = Literal["index", "hungarian"]
Moves = Literal["", "means", "rows"]
Applied = Literal["dense", "gather", "transform"]


class HeadWarning(UserWarning):
    """A head that can be built but cannot classify as well as its size suggests."""


class Head(nn.Module):
    """Common fields of every head."""

    num_classes: int
    bias: bool
    seed: int = 0
    """Seed of a random fixed matrix."""

    before_pool = False
    """Takes the feature map and gives class maps, which are pooled; the others take pooled features."""

    @property
    def moves(self) -> Moves:
        """What training changes in the collection `head_state`, as moving.py says; empty: nothing.

        Class means, at each step, or the order of rows, after the first epoch. Such a head sows what its matrix stands
        on as the intermediate `taken` [n d].
        """
        return ""

    def add_bias(self, logits: Float[Array, "n *ij k"], bound: float) -> Float[Array, "n *ij k"]:
        """Add the bias, if the head has one, drawn from U(+-bound)."""
        if not self.bias:
            return logits
        logits, bias = as_input(logits, self.param("bias", uniform(bound), (self.num_classes,)))
        return logits + bias.reshape((1,) * (logits.ndim - 1) + (-1,))


class Linear(Head):
    """y = s W g(h) + b: W a fixed matrix [k d] or a learned one, g a neck, a norm, or nothing, as the fields say.

    The defaults are torch's Linear.
    """

    matrix: str | None = None
    """Name of the fixed matrix, and of its variable: matrices.py lists them, and the words behind a +; None: learned,
    the parameter `kernel` [d k]."""
    normalise: Normalise = "none"
    """features: divide them by their norm + 1e-8 (class maps: that of the pooled ones); both: the rows of W, too, so
    that without a bias the logits are s times cosines."""
    scale: float | None = None
    """The factor s, or its start where it is learned; None: no factor."""
    learn_scale: bool = False
    sign: Literal[1, -1] = 1
    """-1: y = -s W g(h) + b, as the reference code of Hoffer et al. (2018) has it."""
    neck: int | None = None
    """Learn a matrix without bias from the features to this many, on which W stands; None: W stands on the features."""
    bound: Literal["features", "classes", "zero"] = "features"
    """The bias is drawn from U(+-1 / sqrt of the number of these), or starts at zero."""
    applied: Applied = "dense"
    """dense: a product with W, a variable where it is fixed. gather and transform compute the same without W, so there
    is no such variable: from features and their negatives, or by the fast Walsh-Hadamard transform in d log2 d
    additions (fast_products.py). They are for the matrices whose row in `MATRICES` says so."""
    momentum: float | None = None
    """With one, W are class means, zero at the start, that each training step moves with this momentum (moving.py): it
    answers by the means of the steps before it. No gradient reaches them."""
    assign: Assign = "index"
    """hungarian: after the first epoch, in which class c has row c, the classes get the rows of W that lie nearest to
    their means (moving.py)."""

    @property
    def moves(self) -> Moves:
        """See `Head`."""
        return "means" if self.momentum is not None else "rows" if self.assign == "hungarian" else ""

    @nn.compact
    def __call__(self, x: Float[Array, "n *ij d"]) -> Float[Array, "n *ij k"]:
        """Return logits."""
        bounds = {"features": x.shape[-1] ** -0.5, "classes": self.num_classes**-0.5, "zero": 0.0}
        scale = self._scale()
        if self.neck is not None:
            x, kernel = as_input(x, self.param("neck", torch_default, (x.shape[-1], self.neck)))
            x = x @ kernel
        weight = None
        if self.applied == "dense":
            x, weight = as_input(x, self._weight(x.shape[-1]))
        if self.normalise != "none":
            x = x / (_norm(x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)) + 1e-8)
        if self.moves:
            self.sow("intermediates", "taken", x)
        logits = self._fast_product(x) if weight is None else x @ weight.T
        if scale is not None:
            logits, scale = as_input(logits, scale)
            logits = logits * scale.reshape((1,) * x.ndim)
        return self.add_bias(logits, bounds[self.bound])

    def _weight(self, features: int) -> Float[Array | np.ndarray, "k d"]:
        shape = (self.num_classes, features)
        if self.momentum is not None:
            weight = self.variable("head_state", "means", lambda: jnp.zeros(shape)).value
        elif self.matrix is None:
            weight = self.param("kernel", torch_default, shape[::-1]).T
        else:
            weight = fixed_matrix(self, self.matrix, *shape, self.seed)
        if self.assign == "hungarian":
            rows = self.variable("head_state", "rows", lambda: jnp.arange(self.num_classes, dtype=jnp.int32))
            weight = weight[rows.value]
        return weight / (_norm(weight) + 1e-8) if self.normalise == "both" else weight

    def _fast_product(self, x: Float[Array, "n *ij d"]) -> Float[Array, "n *ij k"]:
        if self.matrix is None:
            raise UsageError(f"{self.applied} applies fixed matrices; a learned one takes dense")
        return fast_product(x, self.matrix, self.num_classes, self.applied, unit=self.normalise == "both")

    def _scale(self) -> Array | None:
        if self.scale is None:
            return None
        if not self.learn_scale:
            return jnp.full((1,), self.sign * self.scale)
        scale = self.param("scale", nn.initializers.constant(self.scale), (1,))
        return -scale if self.sign == -1 else scale


def _norm(x: Float[Array, "*n d"]) -> Float[Array, "*n 1"]:
    """Return the Euclidean norm of the last axis. Its gradient at zero is zero, as torch's is, not the root's."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


class Conv3x3(Head):
    """Class maps = conv3x3(f) without padding; their pool is y: spatial features instead of a vector (section 5.6)."""

    before_pool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n i j d"]) -> Float[Array, "n i-2 j-2 k"]:
        """Return the class maps. `UsageError` for feature maps smaller than 3x3."""
        height, width, features = x.shape[1:]
        if min(height, width) < 3:
            raise UsageError(
                f"head conv3x3 takes feature maps of 3x3 and larger; got {height}x{width}: give larger images, or a "
                "backbone with a larger last map"
            )
        x, kernel = as_input(x, self.param("kernel", torch_default, (3, 3, features, self.num_classes)))
        maps = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(0, 0), (0, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return self.add_bias(maps, (9 * features) ** -0.5)


@dataclasses.dataclass(frozen=True)
class HeadEntry:
    """One line of the table."""

    module: Callable[..., Head]
    matrix: str | None
    """Its fixed matrix (matrices.py); None where it learns one, or has none."""
    bias: bool = True
    """Whether it learns a bias when nobody says."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its module. Of `Linear`, a scale and a neck may be a function of the number of classes."""

    def takes(self, option: str) -> bool:
        """Tell whether an option of `create_head` is one of this head: of `Linear`, its fixed matrix or its means."""
        combines = inspect.isclass(self.module) and issubclass(self.module, Linear)
        means = "momentum" in self.options
        own = {"normalise": True, "scale": True, "momentum": means}.get(option, self.matrix is not None)
        return combines and own

    @classmethod
    def of(cls, found: Any) -> "HeadEntry":
        """Return an entry as it is, and a head class as one that learns its matrix. Raises `TypeError` for the rest."""
        if not isinstance(found, HeadEntry) and not (inspect.isclass(found) and issubclass(found, Head)):
            raise TypeError(f"it is {found!r} but must be a subclass of jaxclf.models.heads.Head, or a HeadEntry")
        return found if isinstance(found, HeadEntry) else cls(found, None)


def _fixed(matrix: str, bias: bool = True, **options: Any) -> HeadEntry:
    return HeadEntry(Linear, matrix, bias, options)


HADAMARD: dict[str, Any] = {"scale": lambda k: k**-0.5, "learn_scale": True, "bound": "classes"}

OWN: dict[str, HeadEntry] = {
    "learned": HeadEntry(Linear, None),
    "orthogonal": _fixed("orthogonal"),
    "hadamard": _fixed("hadamard", normalise="features", sign=-1, **HADAMARD),
    "hadamard_printed": _fixed("hadamard", **HADAMARD),
    # The last convolution's channels are the classes.
    "identity": _fixed("identity", bias=False, applied="gather"),
    "conv3x3": HeadEntry(Conv3x3, None),
    **{name: _fixed(name) for name in MATRICES if name not in ("identity", "orthogonal", "hadamard")},
    # Combinations of the literature: Hoffer et al. 2018; Yang et al. 2022, beside the loss dot_regression; Pernici et
    # al. 2021; Kasarla et al. 2022, who scale by .1 for ResNets; Shen et al. 2023. Those that learn their matrix: Wang
    # et al. 2017, whose scale starts at 10 in happynear/NormFace, prototxt/scaled_cosine_softmax; Wang et al. 2018 and
    # Deng et al. 2019, beside the losses of the same names.
    "hoffer_orthogonal": _fixed("orthogonal", normalise="features", scale=10.0, learn_scale=True, bound="zero"),
    "etf_dr": _fixed("etf_rotated", bias=False, normalise="features"),
    "reponet_simplex": _fixed("simplex", bias=False, neck=lambda k: k - 1),
    "reponet_orthoplex": _fixed("orthoplex", bias=False, neck=lambda k: -(-k // 2)),
    "reponet_cube": _fixed("hypercube_compact", bias=False, neck=bits),
    "kasarla": _fixed("simplex_recursive", bias=False, neck=lambda k: k - 1),
    "ebv": _fixed("tammes", bias=False, normalise="features", scale=1 / 0.07),
    "normface": HeadEntry(Linear, None, False, {"normalise": "both", "scale": 10.0, "learn_scale": True}),
    "cosface": HeadEntry(Linear, None, False, {"normalise": "both", "scale": 64.0}),
    "arcface": HeadEntry(Linear, None, False, {"normalise": "both", "scale": 64.0}),
    # Jiang et al. 2024, "Generalized Neural Collapse for a Large Number of Classes", and their code: cosines times 7,
    # momentum .9, zeros at the start. Their code adds the sums themselves, where ours adds their directions, shortens
    # the means to length 1 after each step, and answers by means that hold the step's own images.
    "class_mean": HeadEntry(Linear, None, bias=False, options={"momentum": 0.9, "normalise": "both", "scale": 7.0}),
}
"""Heads by name. Without a norm, scale or neck of its own, a matrix stands alone, with a learned bias (the thesis)."""

HEADS = Registry("head", "jaxclf.heads", OWN, HeadEntry.of)


def head_entry(name: str) -> HeadEntry:
    """Return the line of a head: of the table, of an entry point, package.module:Name, or file:PATH.

    file:PATH is a linear head on the user's own matrix (`matrices.file_matrix`), with a learned bias. Raises
    `UsageError` for an unknown name.
    """
    return _fixed(file_matrix(name.removeprefix(FILE))) if name.startswith(FILE) else HEADS.resolve(name)


FIELDS = {name: name for name in ("normalise", "scale", "neck", "assign", "momentum")} | {"apply": "applied"}
"""Options of `create_head` -> the fields of `Linear`; a field `apply` would hide the method of Linen's modules."""


def list_heads() -> list[str]:
    """List the names of all heads, ours and those of entry points."""
    return HEADS.names()


def head_matrix(name: str, num_classes: int, features: int, seed: int = 0) -> np.ndarray:
    """Return the fixed matrix [k d] of a head on so many features (a head with a neck: on those behind it), float64.

    Raises `UsageError` for an unknown head, for one that learns its matrix, and for an impossible (k, d).

    >>> head_matrix("hadamard", 2, 4)
    array([[ 1.,  1.,  1.,  1.],
           [ 1., -1.,  1., -1.]])
    """
    entry = head_entry(name)
    if entry.matrix is None:
        fixed = [other for other, candidate in OWN.items() if candidate.matrix]
        raise UsageError(f"head {name!r} learns its matrix; heads with a fixed one: {', '.join(fixed)}")
    _require_possible(name, num_classes, features)
    return matrix(entry.matrix, num_classes, _width(entry, num_classes, features), seed)


def create_head(
    name: str,
    num_classes: int,
    features: int,
    *,
    bias: bool | None = None,
    seed: int = 0,
    normalise: Normalise | None = None,
    scale: float | None = None,
    neck: int | None = None,
    embed: Literal["zero", "repeat", "rotate"] | None = None,
    shuffle: bool = False,
    assign: str = "index",
    momentum: float | None = None,
    apply: Applied | None = None,
) -> Head:
    """Build a head for k classes on d features; None leaves an option to the head.

    `normalise` and `scale` (fixed, or the start of a learned one) are as in `Linear`. Of heads with a fixed matrix,
    `neck` learns a matrix to so many features before, `embed` says what becomes of columns that the construction
    leaves, `shuffle` gives the classes its rows in an order drawn from `seed`, `assign` those nearest to their means,
    and `apply` is `Linear.applied`. `momentum` is that of `class_mean`, from 0 to below 1.

    Raises `UsageError` where it cannot work, with the heads that can, and warns (`HeadWarning`) where it works badly,
    with the number that matters: the distinct rows, or the largest cosine between rows of a cut matrix.
    """
    entry = head_entry(name)
    require_classes(num_classes)
    given = {"normalise": normalise, "scale": scale, "neck": neck, "embed": embed, "shuffle": shuffle or None}
    given |= {"assign": None if assign == "index" else assign, "momentum": momentum, "apply": apply}
    given = {option: value for option, value in given.items() if value is not None}
    own = {"num_classes": num_classes, "bias": entry.bias if bias is None else bias, "seed": seed}
    if foreign := [option for option in given if not entry.takes(option)]:
        able = ", ".join(other for other, row in OWN.items() if all(map(row.takes, foreign)))
        raise UsageError(f"head {name} takes no {', '.join(foreign)}; heads that do: {able}")
    if assign not in typing.get_args(Assign):
        raise unknown("assign", assign, typing.get_args(Assign))
    if shuffle and assign != "index":
        raise UsageError(f"head {name} takes its rows shuffled or assigned to the class means ({assign}), not both")
    if momentum is not None and not 0 <= momentum < 1:
        raise UsageError(f"head {name} takes a momentum from 0 to below 1; got {momentum}")
    _require_possible(name, num_classes, features, neck)
    options = {option: value(num_classes) if callable(value) else value for option, value in entry.options.items()}
    options |= {FIELDS[option]: value for option, value in given.items() if option in FIELDS}
    if assign != "index" and options.get("applied", "dense") != "dense":
        raise UsageError(f"head {name} is applied by {options['applied']}, but assign ({assign}) takes apply dense")
    if entry.matrix is None or not entry.takes("neck"):
        return entry.module(**own, **options)
    words = [word for word in (embed, "shuffle" if shuffle else None) if word not in (None, "zero")]
    built = "+".join([entry.matrix, *words])
    head = entry.module(**own, matrix=built, **options)
    assert isinstance(head, Linear)
    _require_applicable(built, head.applied, num_classes, head.neck or features)
    _warn(name, built, num_classes, head.neck or features)
    return head


def require_classes(num_classes: Any) -> None:
    """Raise `UsageError` unless this is a number of classes."""
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise UsageError(f"num_classes is {num_classes!r} but must be a whole number, at least 2")


def head_obstacle(name: str, num_classes: int, features: int, neck: int | None = None) -> str:
    """Return why a head cannot stand on so many features, in a sentence; empty where it can."""
    entry = head_entry(name)
    if entry.matrix is None:
        return ""
    text = obstacle(entry.matrix, num_classes, neck or _width(entry, num_classes, features))
    if text and name == "identity":
        text = f"identity gives each class a feature of its own, but there are {num_classes} classes and {features} "
        text += f"features; end the backbone in maps={num_classes}"
    return text


def _width(entry: HeadEntry, num_classes: int, features: int) -> int:
    """Return how many columns the matrix of a head has: those of its own neck, or the features."""
    neck = entry.options.get("neck")
    return neck(num_classes) if neck else features


def _require_possible(name: str, num_classes: int, features: int, neck: int | None = None) -> None:
    """Raise `UsageError` for a head that cannot stand there, with those that can."""
    if text := head_obstacle(name, num_classes, features, neck):
        able = [other for other in OWN if not head_obstacle(other, num_classes, features)]
        raise UsageError(f"{text}, or use a head that can: {', '.join(able)}")


def _require_applicable(built: str, applied: str, num_classes: int, width: int) -> None:
    """Raise `UsageError` where a matrix cannot be applied so, with the heads whose matrix can."""
    if applied != "dense" and (text := product_obstacle(built, applied, num_classes, width)):
        rows = {other: row.matrix for other, row in OWN.items() if row.matrix and not row.options.get("neck")}
        able = [
            other
            for other, name in rows.items()
            if not (obstacle(name, num_classes, width) or product_obstacle(name, applied, num_classes, width))
        ]
        raise UsageError(f"{text}; heads that {applied} applies here: {', '.join(able)}")


def _warn(name: str, built: str, num_classes: int, features: int) -> None:
    found = flaws(built, num_classes, features)
    if found is None:
        return
    distinct, overlap = found
    if distinct < num_classes:
        text = f"only {distinct} of its {num_classes} rows are distinct, so at most {distinct} classes can be predicted"
    elif overlap:
        text = f"cut to {features} columns, its rows are not orthogonal: largest cosine {overlap}/{features}"
        text += f" = {overlap / features:.3f}"
    else:
        return
    warnings.warn(f"{name} head with {num_classes} classes on {features} features: {text}", HeadWarning, stacklevel=4)
