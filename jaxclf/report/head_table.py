"""Every head side by side for k classes on d features: what can be built, and what its rows can and cannot do. Pure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclf.models.count import equations, multiplications
from jaxclf.models.heads import create_head, head_entry, head_matrix, head_obstacle, require_classes
from jaxclf.models.matrices import geometry, is_random


@dataclasses.dataclass(frozen=True)
class HeadRow:
    """One head for k classes on d features."""

    name: str
    obstacle: str
    """Why it cannot be built; empty where it can."""
    matrix: np.ndarray | None = None
    """float64 [k d]; None for heads that learn theirs. Behind a neck, d is the neck's width."""
    facts: geometry.Facts | None = None
    bound: float | None = None
    """What the largest cosine cannot fall below."""
    trained: int = 0
    """Parameters."""
    stored: int = 0
    """Numbers of a drawn matrix, or of class means, that checkpoints keep; exact ones are made again."""
    multiply_adds: int = 0
    """Of one image."""


def head_rows(names: Sequence[str], num_classes: int, features: int, seed: int = 0) -> list[HeadRow]:
    """Return a row for each head; what cannot be built says why. Raises `UsageError` for an unknown name."""
    require_classes(num_classes)
    return [_row(name, num_classes, features, seed) for name in names]


def _row(name: str, num_classes: int, features: int, seed: int) -> HeadRow:
    entry = head_entry(name)
    if why := head_obstacle(name, num_classes, features):
        return HeadRow(name, why)
    head: Any = create_head(name, num_classes, features, seed=seed)
    image = jax.ShapeDtypeStruct((1, 3, 3, features) if head.before_pool else (1, features), jnp.float32)
    shapes: Any = jax.eval_shape(head.init, jax.random.key(0), image)
    jaxpr = jax.make_jaxpr(head.apply)(shapes, image).jaxpr
    row = HeadRow(
        name,
        "",
        trained=sum(leaf.size for leaf in jax.tree.leaves(shapes.get("params", {}))),
        stored=sum(leaf.size for path, leaf in shapes.get("fixed", {}).items() if is_random(path))
        + sum(leaf.size for leaf in shapes.get("head_state", {}).values()),
        multiply_adds=sum(multiplications(eqn) for eqn, _ in equations(jaxpr)),
    )
    if entry.matrix is None:
        return row
    rows = head_matrix(name, num_classes, features, seed)
    return dataclasses.replace(
        row, matrix=rows, facts=geometry.facts(rows), bound=geometry.bound(num_classes, rows.shape[1])
    )


COLUMNS = ("head", "rank", "distinct", "cos max", "bound", "cos min", "orthant", "trained", "stored", "multiply-adds")


def cells(row: HeadRow) -> list[str]:
    """Return the row's text under `COLUMNS`; a head that cannot be built has its reason in the second one."""
    if row.obstacle:
        return [row.name, row.obstacle]
    numbers = [f"{number:,}" for number in (row.trained, row.stored, row.multiply_adds)]
    if row.facts is None:
        return [row.name, *[""] * 6, *numbers]
    found = row.facts
    cosines = [f"{value:z.3f}" for value in (found.largest, row.bound or 0.0, found.smallest, found.orthant)]
    return [row.name, str(found.rank), str(found.distinct), *cosines, *numbers]
