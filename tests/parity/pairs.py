"""Networks of jaxclf beside PyTorch's, filled with the same random numbers, and images for both."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util

from benchmarks import torch_networks
from jaxclf.config import Config, DataConfig, ModelConfig
from jaxclf.data.augment import normalise
from jaxclf.data.datasets import Digits
from jaxclf.data.transforms import resize_images
from jaxclf.models.classifier import Classifier, build
from jaxclf.models.torch_weights import to_torch
from jaxclf.training import losses
from jaxclf.training.step import Program, TrainState, draw_fixed

BATCH, EXAMPLES = 16, 320
MEAN, STD = (0.3, 0.3, 0.3), (0.35, 0.35, 0.35)

torch.set_num_threads(1)  # two spin against each other, and against XLA's, as soon as the machine has other work


@functools.cache
def digits(side: int) -> tuple[np.ndarray, np.ndarray]:
    """320 digits as colour images, uint8, and their labels."""
    split = Digits(DataConfig("digits")).read("train")
    order = np.random.default_rng(0).permutation(len(split.labels))[:EXAMPLES]
    return np.repeat(resize_images(split.images[order], side), 3, axis=3), split.labels[order]


@functools.cache
def normalised(side: int) -> np.ndarray:
    """The digits as both sides see them: jaxclf's float32 values (test_augment.py compares them with torchvision's)."""
    return np.array(jax.jit(normalise, static_argnums=(1, 2))(jnp.asarray(digits(side)[0]), MEAN, STD))


def model_of(config: ModelConfig) -> Classifier:
    """A classifier of ten classes."""
    return build(Config(model=config), 10, seed=0)


def pair(
    config: ModelConfig, shape: tuple[int, int, int], twin: Callable[[], Any] | None = None
) -> tuple[Classifier, dict[str, Any], Any]:
    """Return the model, random variables that all show in its logits, and torch's network with the same, by name.

    `twin` makes the network that benchmarks.torch_networks does not have.
    """
    model = model_of(config)
    shapes: Any = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    rng, flat = np.random.default_rng(0), {}
    leaves: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes)
    for path, leaf in leaves.items():
        value = rng.standard_normal(leaf.shape) / np.sqrt(max(leaf.size / max(leaf.shape[-1:] or (1,)), 1))
        positive = path[-1] in ("running_var", "scale", "weight")
        flat[path] = (0.5 + np.abs(value) if positive else value).astype(np.float32)
    variables: dict[str, Any] = traverse_util.unflatten_dict(flat)
    variables |= {"fixed": draw_fixed(shapes["fixed"], 3)} if "fixed" in shapes else {}
    net = twin() if twin else torch_networks.build(config, model, shape)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in to_torch(model, variables).items()})
    return model, variables, net


def first_state(program: Program, start: dict[str, Any]) -> TrainState:
    """The state before the first step, from given variables and in their dtype."""
    given: dict[str, Any] = {"batch_stats": {}, "fixed": {}, "head_state": {}, "class_sums": {}} | {
        name: jax.tree.map(jnp.asarray, tree) for name, tree in start.items()
    }
    zero, opt_state = jnp.zeros((), jnp.int32), program.tx.init(given["params"])
    numbers: dict[str, Any] = {"step": zero, "seed": jnp.uint32(0), "sums": losses.zeros(), "bad_step": zero.copy()}
    return TrainState(**numbers, **given, opt_state=opt_state, average={})
