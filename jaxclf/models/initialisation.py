"""Which convolutions of a backbone section 5.6 of the thesis is about, and their orthogonal start."""

import zlib
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from jaxclf.errors import unknown

Tree = Any
Path = tuple[str, ...]

INITS = {"he_uniform": None, "orthogonal_last": "last", "orthogonal": "all"}
"""ModelConfig.init -> the convolutions that start orthogonal."""
orthogonal = nn.initializers.orthogonal()
"""Haar-distributed and semi-orthogonal, seen as out x (in * kh * kw): torch's orthogonal_ with gain 1."""


def conv_paths(params: Tree, which: str, last_conv: str) -> list[Path]:
    """Return the paths in `params` of the backbone's "last" or "all" convolution kernels [h w in/groups out].

    "all" counts shortcuts, depthwise convolutions and the layers that are linear in the reference and convolutions
    here (VGG's fc6 and fc7); `last_conv` is the backbone's attribute of that name.
    """
    if which == "last":
        return [("backbone", *last_conv.split("/"), "kernel")]
    if which != "all":
        raise unknown("choice of convolutions", which, ("last", "all"))
    flat: dict[Path, Any] = traverse_util.flatten_dict(params)
    return [path for path, leaf in flat.items() if path[0] == "backbone" and path[-1] == "kernel" and leaf.ndim == 4]


def initialise(params: Tree, key: jax.Array, *, init: str, last_conv: str) -> Tree:
    """Redraw the kernels that `init` wants orthogonal; "he_uniform" returns `params`, what the modules drew.

    A kernel's draw depends on `key` and its own name alone.
    """
    if init not in INITS:
        raise unknown("init", init, INITS)
    which = INITS[init]
    if which is None:
        return params
    flat: dict[Path, Any] = dict(traverse_util.flatten_dict(params))
    for path in conv_paths(params, which, last_conv):
        leaf = flat[path]
        flat[path] = orthogonal(jax.random.fold_in(key, zlib.crc32("/".join(path).encode())), leaf.shape, leaf.dtype)
    return traverse_util.unflatten_dict(flat)
