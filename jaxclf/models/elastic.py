"""Elastic networks: one set of weights for many networks (once-for-all, Cai et al. 2020, arXiv 1908.09791).

A `Setting` names one of them: the kernel and the expansion of each block, and how many blocks each stage has. The
collection `setting` of a call's variables says it in arrays, so that one compiled program answers for all settings:
channels, taps and blocks that a setting leaves out are zeros. A call without the collection is that of the largest one.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from jaxclf.errors import UsageError
from jaxclf.models.layers import as_input, depthwise, he_uniform

Tree = Any
AXES = ("kernels", "expansions", "depths")


class Choices(NamedTuple):
    """The values that a setting may have, the largest first."""

    kernels: tuple[int, ...] = (7, 5, 3)
    """Sides of the depthwise convolution of a block, odd."""
    expansions: tuple[int, ...] = (6, 4, 3)
    """Channels inside of a block over those before it."""
    depths: tuple[int, ...] = (4, 3, 2)
    """Blocks of a stage."""


class Places(NamedTuple):
    """A setting in arrays: places in `Choices`, 0 the largest, int32."""

    kernels: Int[Array, " b"]
    expansions: Int[Array, " b"]
    depths: Int[Array, " s"]


class Active(NamedTuple):
    """The part of one block that a setting uses."""

    kernel: Int[Array, ""]
    """Place in `Choices.kernels`."""
    expansion: Int[Array, ""]
    """Place in `Choices.expansions`."""
    there: Bool[Array, ""]
    """Whether the stage is as deep as this block."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network of an elastic one.

    `kernels` and `expansions` have a number for every block that there may be, those of blocks that `depths` leaves out
    among them, in the order of the stages.
    """

    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    depths: tuple[int, ...]

    @classmethod
    def of(
        cls,
        choices: Choices,
        stages: int,
        *,
        kernels: Sequence[int] = (),
        expansions: Sequence[int] = (),
        depths: Sequence[int] = (),
    ) -> "Setting":
        """Return the setting with these numbers; a single number stands for all, none for the largest.

        Raises `UsageError` for numbers that are no choice, and for others than one or one a block (a stage).

        >>> Setting.of(Choices((5, 3), (4, 2), (2, 1)), stages=2, kernels=[3], depths=(2, 1))
        Setting(kernels=(3, 3, 3, 3), expansions=(4, 4, 4, 4), depths=(2, 1))
        """
        lengths = (stages * choices.depths[0], stages * choices.depths[0], stages)
        found, faults = [], []
        for axis, allowed, given, length in zip(AXES, choices, (kernels, expansions, depths), lengths, strict=True):
            values = tuple(given) or allowed[:1]
            if len(values) not in (1, length):
                faults.append(f"{axis} has {len(values)} numbers but must have 1 or {length}")
            elif wrong := sorted(set(values) - set(allowed)):
                faults.append(f"{axis} has {', '.join(map(str, wrong))} but must be of {', '.join(map(str, allowed))}")
            found.append(values * length if len(values) == 1 else values)
        if faults:
            raise UsageError(f"unknown setting: {'; '.join(faults)}")
        return cls(*found)

    def places(self, choices: Choices) -> Places:
        """Return the setting in arrays."""
        each = zip(choices, (self.kernels, self.expansions, self.depths), strict=True)
        return Places(*(jnp.asarray([allowed.index(value) for value in own], jnp.int32) for allowed, own in each))

    @classmethod
    def at(cls, choices: Choices, places: Places) -> "Setting":
        """Inverse of `places`."""
        each = zip(choices, jax.device_get(places), strict=True)
        return cls(*(tuple(allowed[place] for place in own.tolist()) for allowed, own in each))


def smallest(choices: Choices, stages: int) -> Places:
    """Return the setting with the smallest of all choices."""
    blocks = stages * choices.depths[0]
    lengths = (blocks, blocks, stages)
    return Places(*(jnp.full(n, len(own) - 1, jnp.int32) for own, n in zip(choices, lengths, strict=True)))


def variables_of(choices: Choices, places: Places) -> dict[str, Tree]:
    """Return the collection `setting` of a classifier: the arrays of each block under the block's name."""
    deepest, depths = choices.depths[0], jnp.asarray(choices.depths)[places.depths]
    blocks = {
        f"blocks_{1 + block}": Active(
            places.kernels[block], places.expansions[block], block % deepest < depths[block // deepest]
        )._asdict()
        for block in range(len(places.kernels))
    }
    return {"backbone": blocks}


def keep(widths: Sequence[int], active: Active | None, *, whole: bool = False) -> Bool[Array, " c"] | None:
    """Return which channels are used: of a block that is there the first widths[expansion], or all of widths[0].

    None where all are, because there is no setting.
    """
    if active is None:
        return None
    count = widths[0] if whole else jnp.asarray(widths)[active.expansion]
    return (jnp.arange(widths[0]) < count) & active.there


def masked(x: Float[Array, "n h w c"], kept: Bool[Array, " c"] | None) -> Float[Array, "n h w c"]:
    """Set the channels that are not used to zero."""
    return x if kept is None else jnp.where(kept.reshape(1, 1, 1, -1), x, jnp.zeros((), x.dtype))


class ElasticDepthwise(nn.Module):
    """A depthwise convolution whose smaller kernels are learned functions of the middle of the next larger one.

    The matrices `7to5_matrix` [25 25] and `5to3_matrix` [9 9], shared by the channels, start as identities.
    """

    stride: int
    kernels: tuple[int, ...]
    """Sides, the largest first."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], active: Active | None) -> Float[Array, "n i j c"]:
        """Apply the kernel that is active, the largest without a setting; ceil(size / stride) outputs a side."""
        side = self.kernels[0]
        kernel = Kernel((side, side, 1, x.shape[-1]), name="conv")()
        matrices = {
            f"{large}to{small}_matrix": self.param(
                f"{large}to{small}_matrix", lambda _, n: jnp.eye(n, dtype=jnp.float32), small * small
            )
            for large, small in itertools.pairwise(self.kernels)
        }
        if active is not None:
            family = kernel_family(kernel, matrices, self.kernels)
            kernel = jnp.stack([_padded(one, side) for one in family])[active.kernel]
        x, kernel = as_input(x, kernel)
        padding, layout = [(side // 2, side // 2)] * 2, ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        return depthwise(x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=x.shape[-1])


class Kernel(nn.Module):
    """A convolution's kernel in a module of its own."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "h w i o"]:
        """Return it."""
        return self.param("kernel", he_uniform, self.shape)


def kernel_family(kernel: Any, matrices: Mapping[str, Any], sides: Sequence[int]) -> list[Any]:
    """Return the kernels [side side 1 c] of all sides, the largest first."""
    family = [kernel]
    for large, small in itertools.pairwise(sides):
        start, count = (large - small) // 2, small * small
        middle = family[-1][start : start + small, start : start + small].reshape(count, -1)
        family.append((matrices[f"{large}to{small}_matrix"] @ middle).reshape(small, small, 1, -1))
    return family


def _padded(kernel: Float[Array, "s s 1 c"], side: int) -> Float[Array, "t t 1 c"]:
    around = (side - kernel.shape[0]) // 2
    return jnp.pad(kernel, [(around, around)] * 2 + [(0, 0)] * 2)


def extract(variables: Mapping[str, Tree], shapes: Mapping[str, Tree], setting: Setting, choices: Choices) -> Tree:
    """Return the variables of an ordinary network that answers as an elastic one does under a setting.

    `variables` are the elastic classifier's; `shapes` are those of the ordinary one (`jax.eval_shape` of its `init`).
    """
    own = traverse_util.flatten_dict(dict(variables))
    blocks = [block for block in range(len(setting.kernels)) if block % choices.depths[0] < _depth(setting, block)]
    found = {}
    for path, leaf in traverse_util.flatten_dict(dict(shapes)).items():
        collection, part, *modules, name = path
        number = int(modules[0].removeprefix("blocks_")) if modules and modules[0].startswith("blocks_") else 0
        if number == 0:
            found[path] = own[path]
            continue
        source = (collection, part, f"blocks_{1 + blocks[number - 1]}", *modules[1:-1])
        wrapped = own.get((*source, modules[-1], modules[-1], name))  # the elastic layers stand in modules of their own
        value = own[(*source, modules[-1], name)] if wrapped is None else wrapped
        if modules[-2:] == ["depth_conv", "conv"]:
            held = {key[-1]: one for key, one in own.items() if key[:-1] == (*source, "conv")}
            family = kernel_family(value, held, choices.kernels)
            value = family[choices.kernels.index(setting.kernels[blocks[number - 1]])]
        found[path] = value[tuple(slice(size) for size in leaf.shape)]
    return traverse_util.unflatten_dict(found)


def _depth(setting: Setting, block: int) -> int:
    return setting.depths[block * len(setting.depths) // len(setting.kernels)]


ORDERED = {
    ("point_linear", "conv", "conv", "kernel"): (2, "width"),
    ("inverted_bottleneck", "conv", "conv", "kernel"): (3, "width"),
    ("depth_conv", "conv", "conv", "kernel"): (3, "width"),
    **{
        (part, "bn", "bn", name): (0, "width")
        for part in ("inverted_bottleneck", "depth_conv")
        for name in ("weight", "bias", "running_mean", "running_var")
    },
}
"""Axis of a block's arrays that its inner channels are on."""
SQUEEZE = {
    ("reduce", "kernel"): ((2, "width"), (3, "middle")),
    ("reduce", "bias"): ((0, "middle"),),
    ("expand", "kernel"): ((2, "middle"), (3, "width")),
    ("expand", "bias"): ((0, "width"),),
}
"""The same of its squeeze-and-excitation, and of the channels inside of that."""


def sort_channels(params: Tree, tree: Tree, cuts: Mapping[str, Sequence[int]]) -> Tree:
    """Return a tree whose blocks have their inner channels sorted by importance, the most important first.

    A channel's importance is the sum |w| over what the block's last convolution makes of it; inside of
    squeeze-and-excitation, over what its second convolution does. The network's answers stay as they are. `tree` has
    arrays under paths that end as those of `params`, a backbone's parameters: itself, its statistics, momentum. `cuts`
    are by block the widths between which channels stay among themselves, for smaller settings that are trained already.
    """
    flat = {path: jnp.abs(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}
    orders: dict[tuple[str, str], jax.Array] = {}
    for block, widths in cuts.items():
        weight = flat[(block, "conv", "point_linear", "conv", "conv", "kernel")].sum((0, 1, 3))
        orders[block, "width"] = _order(weight, widths)
        inner = flat.get((block, "conv", "depth_conv", "se", "fc", "expand", "kernel"))
        if inner is not None:
            orders[block, "middle"] = _order(inner.sum((0, 1, 3)), ())

    def sort(path: Any, leaf: Any) -> Any:
        names = tuple(key for entry in path if isinstance(key := getattr(entry, "key", None), str))
        block = next((name for name in names if name in cuts), None)
        axes = SQUEEZE.get(names[-2:], ()) if "se" in names else (ORDERED.get(names[-4:]),)
        for axis, kind in filter(None, axes) if block else ():
            leaf = jnp.take(leaf, orders[str(block), kind], axis)
        return leaf

    return jax.tree_util.tree_map_with_path(sort, tree)


def _order(importance: Float[Array, " c"], cuts: Sequence[int]) -> Int[Array, " c"]:
    """Return the channels by falling importance, those between two cuts among themselves; equal ones keep their order.

    >>> _order(jnp.asarray([1.0, 3.0, 2.0, 4.0]), [2]).tolist()
    [1, 0, 3, 2]
    """
    band = np.searchsorted(sorted(cuts), np.arange(len(importance)), side="right")
    return jnp.lexsort((-importance, jnp.asarray(band)))
