"""Class maps: what each class answers at each position of the last feature map."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxclf.data.augment import normalise
from jaxclf.models import attribution
from jaxclf.training.step import Program, TrainState


def class_maps(
    program: Program, state: TrainState, images: UInt8[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n i j k"]:
    """Return the logits at each position for raw images; averaged over positions they are the images' logits.

    Under the identity head they are the last convolution's channels themselves (thesis figures 5.2-5.4).
    """
    pixels = normalise(jnp.asarray(images), program.mean, program.std)
    return np.asarray(attribution.class_maps(program.model, state.variables, pixels))


def pick_examples(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    """Return `count` indices worth showing: up to two mistakes, then the first right answers of different classes."""
    wrong = np.flatnonzero(labels != predictions)[:2]
    right = np.flatnonzero(labels == predictions)
    first = right[np.sort(np.unique(labels[right], return_index=True)[1])]
    return np.concatenate([first[: count - len(wrong)], wrong])
