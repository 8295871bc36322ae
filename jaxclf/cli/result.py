"""The result of a run, as `train` and `eval` print it."""

from collections.abc import Sequence

import jax

from jaxclf.training.run_directory import Result


def print_result(result: Result) -> None:
    """Print the result; of several processes, the first does."""
    if jax.process_index():
        return
    per_class = class_range(result.per_class)
    print(f"test top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  loss {result.loss:.4f}  per class {per_class}")
    if result.plain_top1 is not None:
        print(f"of the parameters themselves, not their moving average: top-1 {result.plain_top1:.2f} %")
    counts = "  ".join(f"{name} {count:,}" for name, count in result.parameters.items())
    speed = f"  {result.images_per_second:,.0f} training images/s" if result.images_per_second else ""
    print(f"step {result.step:,}  {counts}{speed}")
    if result.skipped:
        print(
            f"{result.skipped:,} images could not be read and were skipped: {result.workdir}/skipped.jsonl names them"
        )
    if result.rollbacks:
        print(f"went back {result.rollbacks} times after divergence: {result.workdir}/rollbacks.jsonl tells where")
    print(f"sha256 {result.sha256}  {result.workdir}")


def class_range(per_class: Sequence[float | None]) -> str:
    """Return the lowest and the highest top-1 of the classes that have images."""
    known = [top1 for top1 in per_class if top1 is not None]
    return f"{min(known):.2f} to {max(known):.2f} %"
