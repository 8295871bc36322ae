"""The tables of README's speed, from the committed results: no number of theirs is typed by hand.

Run:  python benchmarks/report.py            writes them into README.md
      python benchmarks/report.py --check    ends with 1 if README.md has others

A table stands between the comments <!-- NAME: benchmarks/report.py --> and <!-- end of NAME -->.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Spread = Mapping[str, float]
"""Median, min and max over rounds."""


class Measured(NamedTuple):
    """A network of the training tables, and the file that holds its newest rounds."""

    title: str
    network: str
    file: str


GPU = (
    Measured("ResNet-32", "resnet32", "train_step_h200_resnet32"),
    Measured("ResNet-18", "resnet18", "train_step_h200_resnet18"),
    Measured("ResNet-50", "resnet50", "train_step_h200_resnet50"),
)
CPU = tuple(
    Measured(title, network, "train_step_cpu")
    for title, network in (
        ("ResNet-32", "resnet32"),
        ("DenseNet-BC(100, 12)", "densenet_bc_100_12"),
        ("ResNet-18", "resnet18"),
        ("ResNet-50", "resnet50"),
        ("MobileNetV2", "mobilenet_v2"),
        ("ShuffleNetV2 x0.5", "shufflenet_v2_x0_5"),
    )
)
INPUT = (
    ("110 kB JPEGs, RandomResizedCrop 224: ours", "imagenet", "jaxclf stream, threads"),
    ("ours, `fast` (other pixels)", "imagenet", "jaxclf stream, threads, fast, other pixels"),
    ("tf.data, antialiased (other pixels)", "imagenet", "tf.data, antialias, other pixels"),
    ("tf.data, not antialiased (other pixels)", "imagenet", "tf.data, no antialias, other pixels"),
    ("32 × 32 in memory, pad, crop, flip: ours, resident", "cifar", "jaxclf resident, float"),
    ("32 × 32 PNG files: ours, streamed", "cifar_png", "jaxclf stream, threads"),
)


def read(name: str) -> dict[str, Any]:
    """Return a committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def spread(values: Spread, digits: int = 2) -> str:
    """Return the median and the range.

    >>> spread({"median": 0.914, "min": 0.9, "max": 1.25})
    '0.91 (0.90 to 1.25)'
    """
    median, low, high = (f"{values[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def rows_of(one: Measured) -> dict[str, dict[str, Any]]:
    """Return the rows of a network by variant."""
    return {row["variant"]: row for row in read(one.file)["rows"] if row["network"] == one.network}


def ratio(row: Mapping[str, Any] | None) -> str:
    """Return a row's ratio to torch's fastest; a dash where it was not measured."""
    return "–" if row is None else spread(row["to_torch"])


def memory(own: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row's peak memory and the least of torch's, GiB."""
    least = min(row["memory_bytes"] for name, row in rows.items() if name.startswith("torch") and not row["failed"])
    return f"{own['memory_bytes'] / 2**30:.2f}, {least / 2**30:.2f} GiB"


def link(one: Measured) -> str:
    """Return a link to the rounds."""
    return f"[json](benchmarks/results/{one.file}.json)"


def table(titles: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table whose first column is text."""
    yield f"| {' | '.join(titles)} |"
    yield f"|---|{'---:|' * (len(titles) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def gpu() -> Iterator[str]:
    """Yield the table of training on a GPU."""

    def rows() -> Iterator[Sequence[str]]:
        for one in GPU:
            found = rows_of(one)
            own = found["jaxclf_8_steps"]
            rate = f"{own['images_per_second']['median']:,.0f}"
            cells = (ratio(own), ratio(found.get("jaxclf")), memory(own, found), link(one))
            yield one.title, str(own["batch"]), rate, *cells

    titles = ("network", "batch", "images/s", "ratio to torch's fastest", "one step a call", "memory, torch's least")
    return table((*titles, "rounds"), rows())


def cpu() -> Iterator[str]:
    """Yield the table of training on a CPU."""

    def rows() -> Iterator[Sequence[str]]:
        for one in CPU:
            found = rows_of(one)
            own = found["jaxclf"]
            rate = f"{own['images_per_second']['median']:,.1f}"
            yield one.title, str(own["batch"]), rate, ratio(own), memory(own, found)

    return table(("network", "batch", "images/s", "ratio to torch's fastest", "memory, torch's least"), rows())


def input_pipeline() -> Iterator[str]:
    """Yield the table of input pipelines."""
    found = {(one["set"], one["name"]): one for one in read("input_pipeline_cpu")["contestants"]}

    def rows() -> Iterator[Sequence[str]]:
        for title, which, name in INPUT:
            one = found[which, name]
            digits = 1 if one["to_torch_uint8"]["median"] >= 10 else 2
            yield title, *(spread(one[f"to_torch_{form}"], digits) for form in ("uint8", "float"))

    first = "images/s, ratio to torch's fastest DataLoader"
    return table((first, "against uint8 out, its most favourable", "against ToTensor, Normalize"), rows())


def layers() -> Iterator[str]:
    """Yield the table of single layers."""

    def rows() -> Iterator[Sequence[str]]:
        for row in read("layers_cpu")["rows"]:
            both = row["forward_backward"]
            times = ", ".join(f"{both[form]['median']:.3g}" for form in ("XLA", "jaxclf"))
            yield row["layer"], times, spread(both["ratio"])

    return table(("layer", "XLA, jaxclf, ms", "ratio"), rows())


def maps() -> Iterator[str]:
    """Yield the table of what maps of a class cost."""
    names = {"maps": "class maps", "grad_cam": "Grad-CAM", "grad_cam_plus_plus": "Grad-CAM++", "gradient": "gradient"}
    costs = read("attribution_cpu")["costs"]
    rows = ((network, *(f"{found[name]:.2f}" for name in names)) for network, found in costs.items())
    return table(("network", *names.values()), rows)


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "input": input_pipeline,
    "gpu": gpu,
    "cpu": cpu,
    "layers": layers,
    "maps": maps,
}


def rendered(text: str) -> str:
    """Return README's text with all tables made anew. Raises `ValueError` where a table has no place."""
    for name, make in TABLES.items():
        first, last = f"<!-- {name}: benchmarks/report.py -->\n", f"<!-- end of {name} -->"
        if text.count(first) != 1 or text.count(last) != 1:
            raise ValueError(f"README.md must have one {first.strip()} and one {last}")
        before, rest = text.split(first)
        _, after = rest.split(last)
        text = before + first + "".join(f"{line}\n" for line in make()) + last + after
    return text


def main(check: bool) -> int:
    """Write or check README.md; return the exit code."""
    file = ROOT / "README.md"
    there = file.read_text()
    made = rendered(there)
    if check:
        return int(made != there)
    file.write_text(made)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the speed tables of README.md from the committed results.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if README.md has other tables")
    sys.exit(main(parser.parse_args().check))
