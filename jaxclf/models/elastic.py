"""Elastic networks: one set of weights for many networks (once-for-all, Cai et al. 2020, arXiv 1908.09791).

A `Setting` names one of them: the kernel and the expansion of each block, and how many blocks each stage has. The
collection `setting` of a call's variables says it in arrays, so that one compiled program answers for all settings:
channels, taps and blocks that a setting leaves out are zeros. A call without the collection is that of the largest one.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Bool, Float, Int

from jaxclf.errors import UsageError
from jaxclf.models.fast_layers import convolution
from jaxclf.models.layers import as_input, he_uniform
from jaxclf.models.mbconv import divisible

Tree = Any
Path = tuple[str, ...]
Flat = dict[Path, Any]
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

    def blocks(self) -> list[int]:
        """Return the numbers of the blocks that are there, from 0."""
        deepest = len(self.kernels) // len(self.depths)
        return [block for block in range(len(self.kernels)) if block % deepest < self.depths[block // deepest]]

    def canonical(self, choices: Choices) -> "Setting":
        """Return the same network with the largest choices in the blocks that are not there."""
        there = set(self.blocks())
        kernels, expansions = (
            tuple(value if block in there else own[0] for block, value in enumerate(values))
            for own, values in zip(choices, (self.kernels, self.expansions), strict=False)
        )
        return Setting(kernels, expansions, self.depths)


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
        return convolution(x, kernel, strides, padding, dimension_numbers=layout, feature_group_count=x.shape[-1])


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


def extract(whole: Flat, paths: Iterable[Path], setting: Setting, choices: Choices, widths: Mapping[str, int]) -> Flat:
    """Return the variables of an ordinary network that answers as an elastic one does under a setting.

    Variables are flat under a classifier's paths: `whole` are the elastic network's, `paths` the ordinary one's, whose
    blocks have these inner widths.
    """
    blocks, found = setting.blocks(), {}
    for path in paths:
        collection, part, *modules, name = path
        if modules[0] not in widths:
            found[path] = whole[path]
            continue
        block, width = blocks[int(modules[0].removeprefix("blocks_")) - 1], widths[modules[0]]
        source = (collection, part, f"blocks_{1 + block}", *modules[1:-1])
        own = (*source, modules[-1], modules[-1], name)  # elastic layers stand in modules of their own
        value, inside = whole[own if own in whole else (*source, modules[-1], name)], tuple(modules[2:])
        if inside == ("depth_conv", "conv"):
            held = {key[-1]: one for key, one in whole.items() if key[:-1] == (*source, "conv")}
            value = kernel_family(value, held, choices.kernels)[choices.kernels.index(setting.kernels[block])]
        sizes = {"width": width, "middle": divisible(width // 4)}
        for axis, kind in inner_axes((*inside, name)):
            value = np.take(np.asarray(value), np.arange(sizes[kind]), axis)
        found[path] = value
    return found


def inner_axes(names: tuple[str, ...]) -> tuple[tuple[int, Literal["width", "middle"]], ...]:
    """Return the axes of a block's array that run over its inner channels, or those inside of squeeze-and-excitation.

    `names` are the array's modules below `blocks_N/conv` and its own name, those of elastic layers once or twice.

    >>> inner_axes(("depth_conv", "se", "fc", "expand", "kernel"))
    ((2, 'middle'), (3, 'width'))
    """
    part, *_, layer, name = names
    if "se" in names:
        return {
            ("reduce", "kernel"): ((2, "width"), (3, "middle")),
            ("reduce", "bias"): ((0, "middle"),),
            ("expand", "kernel"): ((2, "middle"), (3, "width")),
            ("expand", "bias"): ((0, "width"),),
        }[layer, name]
    if part == "point_linear":
        return ((2, "width"),) if layer == "conv" else ()
    return ((0, "width"),) if layer == "bn" else ((3, "width"),) if name == "kernel" else ()


def sort_channels(params: Tree, tree: Tree, cuts: Mapping[str, Sequence[int]]) -> Tree:
    """Return a tree whose blocks have their inner channels sorted by importance, the most important first.

    A channel's importance is the sum |w| over what the block's last convolution makes of it; inside of
    squeeze-and-excitation, over what its second convolution does. The network's answers stay as they are. `tree` has
    arrays under paths that end as those of `params`, a backbone's parameters: itself, its statistics, momentum. `cuts`
    are by block the widths between which channels stay among themselves, for smaller settings that are trained already.
    """
    flat: Flat = traverse_util.flatten_dict(params)
    orders: dict[tuple[str, str], jax.Array] = {}
    for block, widths in cuts.items():
        weight = flat[block, "conv", "point_linear", "conv", "conv", "kernel"]
        orders[block, "width"] = _order(jnp.abs(weight).sum((0, 1, 3)), widths)
        inner = flat.get((block, "conv", "depth_conv", "se", "fc", "expand", "kernel"))
        if inner is not None:
            orders[block, "middle"] = _order(jnp.abs(inner).sum((0, 1, 3)), ())

    def sort(path: Any, leaf: Any) -> Any:
        names = tuple(key for entry in path if isinstance(key := getattr(entry, "key", None), str))
        for place, block in enumerate(names):
            for axis, kind in inner_axes(names[place + 2 :]) if block in cuts else ():
                leaf = jnp.take(leaf, orders[block, kind], axis)
        return leaf

    return jax.tree_util.tree_map_with_path(sort, tree)


def _order(importance: Float[Array, " c"], cuts: Sequence[int]) -> Int[Array, " c"]:
    """Return the channels by falling importance, those between two cuts among themselves; equal ones keep their order.

    >>> _order(jnp.asarray([1.0, 3.0, 2.0, 4.0]), [2]).tolist()
    [1, 0, 3, 2]
    """
    band = np.searchsorted(sorted(cuts), np.arange(len(importance)), side="right")
    return jnp.lexsort((-importance, jnp.asarray(band)))
