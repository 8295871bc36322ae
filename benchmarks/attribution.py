"""What a map of one class costs by each method, as a multiple of the forward pass to the logits.

Run:  python benchmarks/attribution.py [--networks resnet18 efficientnet_lite0 mobilenet_v2] [--side 224] [--batch 8]
                                       [--rounds 15] [--json FILE]

Times are of calls from Python on images of noise, waited for, with the maps on the host; weights are random, as no time
hangs on them. In a round the forward pass and all methods run once, one after another; a ratio is taken within a round,
and the table has the medians. Compiling is not timed. Grad-CAM and Grad-CAM++ are at the last feature map.

Exit code: 0; 2 for arguments that cannot work.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from input_pipeline import environment


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    networks: tuple[str, ...] = ("resnet18", "efficientnet_lite0", "mobilenet_v2")
    """Names of backbones."""
    side: int = 224
    """Of the images, pixels."""
    batch: int = 8
    """Images in a call."""
    rounds: int = 15
    """Rounds."""
    json: Path | None = None
    """File for the numbers."""


def run(chosen: Arguments) -> dict[str, Any]:
    """Measure, print the table, and return the numbers."""
    import jax

    from jaxclf import create_model
    from jaxclf.errors import UsageError
    from jaxclf.models.attribution import METHODS
    from jaxclf.tools.seeing import costs

    if min(chosen.side, chosen.batch, chosen.rounds) < 1:
        raise UsageError(f"side {chosen.side}, batch {chosen.batch}, rounds {chosen.rounds}: all must be 1 or more")
    models = {name: create_model(name, num_classes=1000) for name in chosen.networks}
    settings = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "json"}
    report: dict[str, Any] = {"environment": environment(), "settings": settings, "costs": {}}
    print(f"| network | {' | '.join(METHODS)} |\n|---|{'---:|' * len(METHODS)}")
    shape = (chosen.batch, chosen.side, chosen.side, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name, model in models.items():
        variables: Any = jax.jit(model.init)(jax.random.key(0), images)
        found = costs(model, variables, images, rounds=chosen.rounds)
        print(table_row(name, found), flush=True)
        report["costs"][name] = found
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def table_row(name: str, found: dict[str, float]) -> str:
    """Return a line of the table.

    >>> table_row("resnet18", {"maps": 1.004, "gradient": 3.21})
    '| resnet18 | 1.00 | 3.21 |'
    """
    return f"| {name} | {' | '.join(f'{cost:.2f}' for cost in found.values())} |"


def main(args: Sequence[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr."""
    from jaxclf.errors import UsageError

    try:
        run(tyro.cli(Arguments, prog="attribution.py", args=args))
    except (UsageError, OSError) as error:
        print(f"attribution: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
