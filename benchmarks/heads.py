"""Time of a head alone, applied densely, by gather and by the fast transform, side by side in one run.

Run:  python benchmarks/heads.py [--sizes 512 2048 8192] [--batch 256] [--rounds 7] [--seconds 0.5] [--json FILE]

For each size k = d: the head's forward pass, and that with the backward pass to features and parameters of one random
gradient of its logits, on float32 features [batch d] that are on the device. No head has a bias, a norm or a scale.

    learned              a matrix product with a parameter, whose gradient is a second one
    orthoplex, dense     the product with the fixed matrix; ratios are to this one
    orthoplex, gather    features and their negatives
    hadamard, dense      the product with Sylvester's matrix: the same work as orthoplex's
    hadamard, transform  the fast Walsh-Hadamard transform
    identity             the features

Before anything is timed, answers and gradients of gather and transform are compared with those of the dense product of
the same matrix. The features are whole numbers, whose sums float32 holds exactly, so one bit of difference is an error
and there is no result. All of a size are compiled first
and measured in turn, round by round, every second round backwards; a measurement makes calls until its seconds are
over, each waited for. A ratio is taken within a round; below 1 is faster than dense. Medians and ranges are over the
rounds. Compiling is not timed. The three dense matrices of 8192 take 3 GB while they are made.

Exit code: 0; 2 for arguments that cannot work.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from input_pipeline import environment
from input_pipeline import spread as spread_of


class Contestant(NamedTuple):
    """A head and how it is applied."""

    head: str
    apply: str | None = None

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.head if self.apply is None else f"{self.head}, {self.apply}"


DENSE = Contestant("orthoplex", "dense")
CONTESTANTS = (
    *(Contestant("learned"), DENSE, Contestant("orthoplex", "gather")),
    *(Contestant("hadamard", "dense"), Contestant("hadamard", "transform"), Contestant("identity")),
)
PASSES = ("forward", "forward_backward")
HEAD = ("k = d", "head", "forward, ms", "ratio to dense", "forward and backward, ms", "ratio to dense")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the time of heads, applied densely and otherwise."""

    sizes: tuple[int, ...] = (512, 2048, 8192)
    """Numbers of classes, each with as many features."""
    batch: int = 256
    """Images."""
    rounds: int = 7
    """Times that everyone is measured."""
    seconds: float = 0.5
    """Of each measurement."""
    json: Path | None = None
    """Write every round, the ratios and the environment to this file."""
    quick: bool = False
    """One short round of a small size: does it run at all?"""


def passes(contestant: Contestant, size: int, batch: int) -> dict[str, Callable[[], Any]]:
    """Return what computes logits, and logits with the gradients of features and parameters, compiled."""
    import jax
    import jax.numpy as jnp

    from jaxclf.models.heads import create_head
    from jaxclf.training.step import draw_fixed

    options: dict[str, Any] = {} if contestant.apply is None else {"apply": contestant.apply}
    head: Any = create_head(contestant.head, size, size, bias=False, **options).clone(scale=None, normalise="none")
    features, gradient = (jnp.round(8 * jax.random.normal(jax.random.key(seed), (batch, size))) for seed in (0, 1))
    shapes: Any = jax.eval_shape(head.init, jax.random.key(2), features)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, size**-0.5), shapes.get("params", {}))
    fixed = jax.tree.map(jnp.asarray, draw_fixed(shapes.get("fixed", {}), 0))

    @jax.jit
    def forward(params: Any, fixed: Any, features: Any) -> Any:
        return head.apply({"params": params, "fixed": fixed}, features)

    @jax.jit
    def forward_backward(params: Any, fixed: Any, features: Any, gradient: Any) -> Any:
        logits, pull = jax.vjp(lambda params, features: forward(params, fixed, features), params, features)
        return logits, pull(gradient)

    found: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(params, fixed, features),
        "forward_backward": lambda: forward_backward(params, fixed, features, gradient),
    }
    for compute in found.values():
        jax.block_until_ready(compute())
    return found


def check_equal(own: Any, dense: Any, name: str) -> None:
    """Raise `UsageError` where answers or gradients are not those of the dense product."""
    import jax

    from jaxclf.errors import UsageError

    for mine, theirs in zip(*map(jax.tree.leaves, (own, dense)), strict=True):
        if not np.array_equal(mine, theirs):
            apart = float(np.abs(np.asarray(mine) - np.asarray(theirs)).max())
            raise UsageError(f"{name} parts from the dense product by {apart:.1e}")


def milliseconds(compute: Callable[[], Any], seconds: float) -> float:
    """Return the mean time of a call, each waited for."""
    import jax

    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not calls:
        jax.block_until_ready(compute())
        calls += 1
    return 1000 * passed / calls


def measure(size: int, chosen: Arguments) -> list[dict[str, Any]]:
    """Return a row for each contestant: the times of each pass and their ratios to the dense one, round by round."""
    everyone = {one: passes(one, size, chosen.batch) for one in CONTESTANTS}
    for one, computed in everyone.items():
        if one.apply not in (None, "dense"):
            dense = everyone[Contestant(one.head, "dense")]
            check_equal(computed["forward_backward"](), dense["forward_backward"](), one.name)
    times: dict[tuple[Contestant, str], list[float]] = {(one, kind): [] for one in everyone for kind in PASSES}
    for number in range(chosen.rounds):
        print(f"round {number + 1} of {chosen.rounds}, k = d = {size}", file=sys.stderr)
        for one, kind in list(times)[:: 1 if number % 2 == 0 else -1]:
            times[one, kind].append(milliseconds(everyone[one][kind], chosen.seconds))
    return [
        {"size": size, "head": one.name} | {kind: compared(times[one, kind], times[DENSE, kind]) for kind in PASSES}
        for one in CONTESTANTS
    ]


def compared(own: Sequence[float], dense: Sequence[float]) -> dict[str, Any]:
    """Return milliseconds, and ratios round by round, with medians and ranges."""
    ratios = [mine / theirs for mine, theirs in zip(own, dense, strict=True)]
    return {"ms": spread_of(own), "to_dense": spread_of(ratios)}


def table_row(row: Mapping[str, Any]) -> str:
    """Return a row of the Markdown table."""
    cells = [str(row["size"]), row["head"]]
    for kind in PASSES:
        for values in (row[kind]["ms"], row[kind]["to_dense"]):
            median, low, high = (f"{values[name]:.3g}" for name in ("median", "min", "max"))
            cells.append(f"{median} ({low} to {high})")
    return f"| {' | '.join(cells)} |"


def run(chosen: Arguments) -> dict[str, Any]:
    """Measure everything, print rows as they are known, and return the report."""
    import jax

    from jaxclf.errors import UsageError

    if chosen.quick:
        chosen = dataclasses.replace(chosen, sizes=(16,), rounds=1, seconds=0.01)
    good = {
        "sizes": bool(chosen.sizes) and min(chosen.sizes) >= 2,
        "batch": chosen.batch >= 1,
        "rounds": chosen.rounds >= 1,
        "seconds": 0 < chosen.seconds < math.inf,
    }
    if wrong := [f"{name} is {getattr(chosen, name)}" for name in good if not good[name]]:
        raise UsageError(f"{', '.join(wrong)}; sizes must be 2 or more, batch and rounds 1 or more, seconds above 0")
    settings = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "json"}
    report: dict[str, Any] = {"environment": environment(), "settings": settings, "rows": []}
    print(f"| {' | '.join(HEAD)} |\n|---:|---|{'---:|' * 4}")
    with jax.default_matmul_precision("highest"):
        for size in chosen.sizes:
            rows = measure(size, chosen)
            print("\n".join(map(table_row, rows)), flush=True)
            report["rows"] += rows
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(args: Sequence[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr."""
    from jaxclf.errors import UsageError

    try:
        run(tyro.cli(Arguments, prog="heads.py", args=args))
    except (UsageError, OSError) as error:
        print(f"heads: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
