"""Time of a layer in jaxclf's form and in XLA's own, side by side in one run.

Run:  python benchmarks/layers.py [--layers batch_norm ...] [--batch 16] [--rounds 7] [--seconds 0.5] [--json FILE]

Each layer of `jaxclf.models.fast_layers` that this platform compiles in a form of its own, at a size of ResNet-18,
ResNet-50 or MobileNetV2 on 224x224 images: the forward pass, and that with the backward pass of one random gradient to
all of its inputs but images. jaxclf's form is compiled with the options of `jaxclf.devices.compiler`. Arrays are
float32 on a CPU and bfloat16 elsewhere, and are on the device.

Before anything is timed, answers and gradients of both forms are compared. Both are compiled first and measured in
turn, round by round, every second round backwards; a measurement makes calls, ten at a time, until its seconds are
over. A ratio is taken within a round; above 1 is faster than XLA's form. Medians and ranges are over the rounds.
Compiling is not timed.

Exit code: 0; 2 for arguments that cannot work.
"""

import dataclasses
import functools
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

Function = Callable[..., Any]


class Layer(NamedTuple):
    """A layer at a size."""

    shapes: tuple[tuple[int, ...], ...]
    """Of its inputs; the first one's batch is to be filled in."""
    platforms: tuple[str, ...]
    """Where it has a form of its own."""
    images: bool = False
    """Whether its first input is images, which take no gradient."""


def convolved(kernel: tuple[int, ...], shape: tuple[int, ...], platform: str, **options: bool) -> Layer:
    """Return a convolution of maps of a shape."""
    return Layer(((0, *shape), kernel), (platform,), **options)


LAYERS = {
    "batch_norm and ReLU, 112x112x64": Layer(((0, 112, 112, 64), (64,), (64,)), ("cpu", "gpu")),
    "max_pool 3x3 / 2, 112x112x64": Layer(((0, 112, 112, 64),), ("cpu", "gpu")),
    "conv 7x7 / 2 of images": convolved((7, 7, 3, 64), (224, 224, 3), "gpu", images=True),
    "conv 3x3, 56x56x64": convolved((3, 3, 64, 64), (56, 56, 64), "cpu"),
    "conv 3x3, 14x14x256": convolved((3, 3, 256, 256), (14, 14, 256), "cpu"),
    "conv 3x3 / 2, 56x56x64 to 128": convolved((3, 3, 64, 128), (56, 56, 64), "cpu"),
    "conv 1x1, 56x56x64 to 256": convolved((1, 1, 64, 256), (56, 56, 64), "cpu"),
    "conv 1x1, 56x56x256 to 64": convolved((1, 1, 256, 64), (56, 56, 256), "cpu"),
    "conv 1x1, 14x14x1024 to 256": convolved((1, 1, 1024, 256), (14, 14, 1024), "cpu"),
    "conv 1x1, 7x7x320 to 1280": convolved((1, 1, 320, 1280), (7, 7, 320), "cpu"),
    "conv 1x1 / 2, 56x56x256 to 512": convolved((1, 1, 256, 512), (56, 56, 256), "cpu"),
    "depthwise 3x3, 56x56x144": convolved((3, 3, 1, 144), (56, 56, 144), "cpu"),
}
FORMS = ("XLA", "jaxclf")
PASSES = ("forward", "forward_backward")
HEAD = ("layer", "batch", "forward: XLA, jaxclf, ms", "ratio", "forward and backward: XLA, jaxclf, ms", "ratio")
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest distance of answers and gradients, as a share of their largest."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the time of layers in two forms."""

    layers: tuple[str, ...] | None = None
    """What the names of the layers begin with; None: all that have a form of their own here."""
    batch: int | None = None
    """Images in a batch; None: 16 on a CPU, 128 elsewhere."""
    rounds: int = 7
    """Times that everything is measured."""
    seconds: float = 0.5
    """Seconds of each measurement, which makes at least one call."""
    json: Path | None = None
    """Write every round and the environment to this file."""


def forms(name: str) -> dict[str, Function]:
    """Return a layer's two forms, as functions of its inputs."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from jaxclf.models import fast_layers

    if name.startswith("batch_norm"):

        def derived(x: Any, weight: Any, bias: Any) -> Any:
            values = fast_layers.wide(x)
            mean = values.mean((0, 1, 2))
            var = jnp.square(values - mean).mean((0, 1, 2))
            y = (values - mean) * (jax.lax.rsqrt(var + 1e-5) * weight) + bias
            return jax.nn.relu(y.astype(x.dtype))

        def own(x: Any, weight: Any, bias: Any) -> Any:
            return jax.nn.relu(fast_layers.batch_norm(x, weight, bias, 1e-5)[0])

        return {"XLA": derived, "jaxclf": own}
    if name.startswith("max_pool"):
        sides: Any = ((1, 1), (1, 1))

        return {
            "XLA": lambda x: nn.max_pool(x, (3, 3), (2, 2), sides),
            "jaxclf": lambda x: fast_layers.max_pool(x, 3, 2, sides),
        }
    (_, *_, channels), (side, _, inputs, _) = LAYERS[name].shapes
    stride, padding = 2 if "/ 2" in name else 1, [(side // 2, side // 2)] * 2
    options: Any = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": channels // inputs}
    given = {"strides": (stride, stride), "padding": padding, **options}
    plain = {"window_strides": (stride, stride), "padding": padding, **options}
    return {
        "XLA": functools.partial(jax.lax.conv_general_dilated, **plain),
        "jaxclf": functools.partial(fast_layers.convolution, **given),
    }


def passes(name: str, batch: int, dtype: str) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return compiled calls by (form, pass), whose answers have been compared; `RunError` where they differ."""
    import jax
    import jax.numpy as jnp

    from jaxclf.devices import compiler
    from jaxclf.errors import RunError

    rng, layer = np.random.default_rng(0), LAYERS[name]
    shapes = ((batch, *layer.shapes[0][1:]), *layer.shapes[1:])
    # Of a convolution images and kernels are narrow; what BatchNorm multiplies by is float32.
    inputs = [jnp.asarray(rng.normal(size=one), dtype if len(one) == 4 else "float32") for one in shapes]
    both, found, answers = forms(name), {}, []
    y = jax.eval_shape(both["XLA"], *inputs)
    gradient = jnp.asarray(rng.normal(size=y.shape), y.dtype)
    learned = tuple(range(int(layer.images), len(inputs)))

    def derive(function: Function, gradient: Any, *inputs: Any) -> Any:
        def of(*some: Any) -> Any:
            return function(*inputs[: learned[0]], *some)

        value, pull = jax.vjp(of, *inputs[learned[0] :])
        return value, *pull(gradient)

    compilers: dict[str, Any] = {"XLA": jax.jit, "jaxclf": compiler.jit}
    for form, function in both.items():
        forward = compilers[form](function)
        whole = compilers[form](functools.partial(derive, function))
        answers.append([np.asarray(one, np.float64) for one in whole(gradient, *inputs)])
        forward(*inputs)
        found[form, "forward"] = functools.partial(forward, *inputs)
        found[form, "forward_backward"] = functools.partial(whole, gradient, *inputs)
    for one, other in zip(*answers, strict=True):
        if not np.abs(one - other).max() <= TOLERANCES[dtype] * np.abs(one).max():
            raise RunError(f"{name}: the forms differ by {np.abs(one - other).max()} of {np.abs(one).max()}")
    return found


def milliseconds(compute: Callable[[], Any], seconds: float) -> float:
    """Return the mean time of a call, over calls that are queued while the seconds last and waited for in tens."""
    import jax

    jax.block_until_ready(compute())
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not calls:
        jax.block_until_ready([compute() for _ in range(10)])
        calls += 10
    return 1000 * passed / calls


def measure(name: str, batch: int, dtype: str, chosen: Arguments) -> dict[str, Any]:
    """Return a row: milliseconds of each form and pass, and ratios."""
    calls = passes(name, batch, dtype)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for number in range(chosen.rounds):
        for key in list(calls)[:: 1 if number % 2 == 0 else -1]:
            times[key].append(milliseconds(calls[key], chosen.seconds))
    row: dict[str, Any] = {"layer": name, "batch": batch, "dtype": dtype}
    for one in PASSES:
        row[one] = {form: spread_of(times[form, one]) for form in FORMS}
        pairs = zip(times["XLA", one], times["jaxclf", one], strict=True)
        row[one]["ratio"] = spread_of([theirs / ours for theirs, ours in pairs])
    return row


def table_row(row: Mapping[str, Any]) -> str:
    """Return a row of the Markdown table."""
    cells = [row["layer"], str(row["batch"])]
    for one in PASSES:
        ratio = row[one]["ratio"]
        cells += [", ".join(f"{row[one][form]['median']:.3g}" for form in FORMS)]
        cells += [f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"]
    return f"| {' | '.join(cells)} |"


def run(chosen: Arguments) -> dict[str, Any]:
    """Measure everything, print rows as they are known, and return the report."""
    import jax

    from jaxclf.errors import UsageError

    platform = jax.default_backend()
    able = [name for name, layer in LAYERS.items() if platform in layer.platforms]
    names = able if chosen.layers is None else [name for name in able if name.startswith(chosen.layers)]
    if not names:
        given = "" if chosen.layers is None else f" begins with {', '.join(chosen.layers)}"
        raise UsageError(f"no layer with a form of its own on a {platform}{given}; layers: {'; '.join(able) or 'none'}")
    batch = (16 if platform == "cpu" else 128) if chosen.batch is None else chosen.batch
    good = {"batch": batch >= 1, "rounds": chosen.rounds >= 1, "seconds": 0 < chosen.seconds < math.inf}
    if wrong := [f"{name} is {getattr(chosen, name)}" for name in good if not good[name]]:
        raise UsageError(f"{', '.join(wrong)}; batch and rounds must be 1 or more, seconds above 0")
    dtype = "float32" if platform == "cpu" else "bfloat16"
    settings = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "json"}
    report: dict[str, Any] = {"environment": environment(), "settings": settings, "rows": []}
    print(f"| {' | '.join(HEAD)} |\n|---|---:|{'---:|' * 4}")
    for name in names:
        report["rows"].append(measure(name, batch, dtype, chosen))
        print(table_row(report["rows"][-1]), flush=True)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(args: Sequence[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr."""
    from jaxclf.errors import RunError, UsageError

    try:
        run(tyro.cli(Arguments, prog="layers.py", args=args))
    except (UsageError, RunError, OSError) as error:
        print(f"layers: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
