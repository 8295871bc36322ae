"""The run directory: config, environment, metrics, result. One writer at a time; every file is whole or absent.

    config.json        the resolved config          environment.json   versions, device, git commit
    metrics.jsonl      one row per epoch            metrics.csv        the same rows
    checkpoints/       Orbax                        predictions.npz    labels and predicted classes of the test set
    unevaluated/       the checkpoint of a run that was stopped in an evaluation, until that is done
    data.json          class names; number and hash of the images: on others the run does not go on
    skipped.jsonl      images that could not be read and were skipped, where there are any
    rollbacks.jsonl    where the run diverged and went back, if it did
    segments.jsonl     how many epochs the run had, and has since it was extended; result-E.json of E epochs
    probe.json         what a linear probe makes of the features, where a table asks for it
    result.json        written last: a run that has it is complete

metrics.* hold only what is determined by config, data and software; times are in result.json.
"""

import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxclf.config import Config
from jaxclf.devices.layout import Layout
from jaxclf.errors import RunError, UsageError, one_line
from jaxclf.storage import Claim, Location, absolute, claim, location, retire, write_whole

UNEVALUATED = "unevaluated"
"""Directory of the checkpoint of a run that was stopped in the evaluation behind an epoch."""
PATTERNS = "*?[]\\"
REMOVE = "remove it, and the same command goes on from the last checkpoint"
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of `train` and `evaluate`, which result.json holds. Accuracies are percent of the test images."""

    top1: float
    top5: float
    loss: float
    """Mean cross-entropy in nats."""
    per_class: tuple[float | None, ...]
    """Top-1 of each class; None for one without test images."""
    step: int
    """Training steps behind the parameters."""
    parameters: Mapping[str, int]
    """Array sizes under "trainable", "fixed" (matrices that are not trained) and "statistics" (of BatchNorm,
    and of a head that moves)."""
    sha256: str
    """Over all arrays of the training state."""
    images_per_second: float
    """Training throughput of the process that finished the run, first step of each compiled program left out; 0 if
    nothing was trained."""
    workdir: str
    finished: str | None = None
    """Time at which the run was complete, UTC, ISO 8601; None of an evaluation."""
    seconds: float | None = None
    """Wall-clock seconds from the first step to the end, compilation and evaluations included; None of a run that
    several processes made one after the other."""
    plain_top1: float | None = None
    """Top-1 of the parameters themselves, where `top1` is that of their moving average."""
    skipped: int = 0
    """Images, of training and evaluation, that could not be read; skipped.jsonl names them."""
    rollbacks: int = 0
    """Times that the run went back to a checkpoint after divergence; rollbacks.jsonl tells of each."""

    def to_json(self) -> str:
        """Return JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def per_class(labels: np.ndarray, predictions: np.ndarray, classes: int) -> tuple[float | None, ...]:
    """Return the top-1 of each class in percent, None for a class that has no image."""
    shares = []
    for label in range(classes):
        own = predictions[labels == label] == label
        shares.append(float(100 * own.mean()) if len(own) else None)
    return tuple(shares)


def read_config(workdir: str | os.PathLike[str]) -> Config:
    """Return the config of a run directory; `UsageError` if it has none or one that cannot be read."""
    path = location(workdir)
    file = path / "config.json"
    if not file.exists():
        hint = "; a weight file goes to --weights" if path.is_file() else ""
        raise UsageError(f"{path} is not a run directory: it has no config.json{hint}")
    try:
        return Config.from_json(file.read_text())
    except (UsageError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error


def read_json(file: Location, needed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON file of a run directory; `RunError` where it is damaged or lacks one of the keys `needed`."""
    try:
        found = json.loads(file.read_text())
    except ValueError as error:  # no UTF-8, no JSON
        raise RunError(f"{file} is damaged ({one_line(error)}); {REMOVE}") from error
    if not isinstance(found, dict) or (needed and any(type(found.get(key)) is not type(needed[key]) for key in needed)):
        raise RunError(f"{file} is damaged (it holds something else); {REMOVE}")
    return found


class RunDirectory:
    """One run's directory, locked while it is open."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: Config,
        *,
        create: bool = True,
        layout: Layout | None = None,
        stacked: int = 1,
        extend: bool = False,
    ) -> None:
        """Make or reopen it to train there. Of several processes of a layout the first one writes.

        With `create` False it is opened to read: nothing in it changes, and a run may train there meanwhile.

        `stacked` is how many runs train in one program, this one among them. `extend` lets a run have more epochs than
        it had; nothing else of its config may differ.

        Raises `UsageError` if it cannot be written, is not there, or holds another config; `RunError` if another
        process has it.
        """
        self.path = location(workdir)
        if create and (odd := sorted(set(PATTERNS) & set(str(absolute(self.path))))):
            raise UsageError(f"--workdir {self.path} contains {' '.join(odd)}, which Orbax would take for a pattern")
        self._layout, self._writes = layout, layout is None or layout.rank == 0
        self._stacked = stacked
        self._claim: Claim | None = None
        if not create:
            self._writes = False
            self._require_same(read_config(self.path), config)
            return
        if not self._writes:
            return
        self._claim = claim(self.path)
        try:
            self._check_config(config, extend=extend)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        if self._claim is not None:
            self._claim.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_config(self, config: Config, *, extend: bool) -> None:
        file = self.path / "config.json"
        if file.exists():
            there = read_config(self.path)
            if extend and there.run.epochs < config.run.epochs:
                longer = dataclasses.replace(there, run=dataclasses.replace(there.run, epochs=config.run.epochs))
                self._require_same(longer, config)
                self._extend(there, config)
            elif (changed := there.differences(config)) and not self._begun():
                text = f"{self.path} begins anew: no checkpoint was saved under its other config"
                warnings.warn(f"{text} ({'; '.join(changed)})", stacklevel=5)
                (self.path / "data.json").unlink(missing_ok=True)
                self.write("config.json", config.to_json())
            else:
                self._require_same(there, config)
        else:
            self.write("config.json", config.to_json())
        self._check_environment()

    def _begun(self) -> bool:
        """Tell whether a checkpoint or a result was written here."""
        checkpoints = self.path / "checkpoints"
        saved = checkpoints.is_dir() and any(entry.name.isdigit() for entry in checkpoints.iterdir())
        others = ("result.json", "damaged_checkpoints", UNEVALUATED)
        return saved or any((self.path / name).exists() for name in others)

    def _extend(self, there: Config, config: Config) -> None:
        """Begin a segment of more epochs; the same again after a kill in between."""
        file, row = self.path / "segments.jsonl", {"from_epochs": there.run.epochs, "to_epochs": config.run.epochs}
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if row not in rows:
            self.write("segments.jsonl", "".join(json.dumps(one) + "\n" for one in [*rows, row]))
        if (result := self.path / "result.json").exists():
            retire(result, self.path / f"result-{there.run.epochs}.json")
        self.write("config.json", config.to_json())

    def _require_same(self, there: Config, config: Config) -> None:
        if differences := there.differences(config):
            way = "choose another --workdir"
            if len(differences) == 1 and there.run.epochs < config.run.epochs:
                way += ", or give this run more epochs by --extend"
            raise UsageError(f"{self.path} holds a run of another config ({'; '.join(differences)}); {way}")

    def _check_environment(self) -> None:
        now = environment(self._layout, self._stacked)
        file = self.path / "environment.json"
        if not file.exists():
            self.write("environment.json", json.dumps(now, indent=2) + "\n")
            return
        then = read_json(file)
        if "implementation" in then:
            raise UsageError(f"{self.path} holds a run of {then['implementation']}; choose another --workdir")
        names = {**now, **then}
        changed = [f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name)]
        if changed and self.result() is None:
            warnings.warn(f"{self.path} goes on under another environment: {'; '.join(changed)}", stacklevel=4)

    def write(self, name: str, text: str | bytes) -> None:
        """Replace a file of the directory as a whole; raises `RunError` when the disk refuses."""
        if not self._writes:
            return
        if self._claim is not None:
            self._claim.require()
        try:
            write_whole(self.path / name, text.encode() if isinstance(text, str) else text)
        except OSError as error:
            raise RunError(f"{self.path / name} could not be written: {error.strerror}") from error

    def result(self) -> Result | None:
        """Return the result of a complete run, None before."""
        file = self.path / "result.json"
        if not file.exists():
            return None
        values = read_json(file)
        try:
            return Result(**values | {"per_class": tuple(values["per_class"]), "workdir": str(self.path)})
        except (KeyError, TypeError) as error:
            raise RunError(f"{file} is not the result of a run ({one_line(error)}); {REMOVE}") from error

    def rows(self, count: int) -> Rows:
        """Return the first `count` metric rows; fewer on disk raise `RunError`."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines()[:count] if file.exists() else []
        if len(lines) < count:
            raise RunError(f"{file} has {len(lines)} rows but the checkpoint was written after {count}")
        return [json.loads(line) for line in lines]

    def write_data(self, record: dict[str, Any]) -> None:
        """Remember which images the run is on; `UsageError` where it was on others before."""
        file, text = self.path / "data.json", json.dumps(record, indent=2) + "\n"
        if not self._writes:
            return
        if not file.exists():
            self.write("data.json", text)
        elif (then := read_json(file, {"class_names": [], "splits": {}})) != record:
            changed = ["class names"] if then["class_names"] != record["class_names"] else []
            if then.get("replicas") != record.get("replicas"):
                raise UsageError(
                    f"{self.path} holds a run over {then.get('replicas')} replicas, and {record.get('replicas')} "
                    "devices would make it another one; choose as many by --devices, or another --workdir"
                )
            for split, now in record["splits"].items():
                if (old := then["splits"].get(split)) != now:
                    what = "other ones" if old and old["images"] == now["images"] else f"{now['images']:,}"
                    changed.append(f"{split} images, {old['images'] if old else 0:,} then and {what} now")
            raise UsageError(f"{self.path} holds a run on other data ({'; '.join(changed)}); choose another --workdir")

    def skipped(self) -> Rows:
        """Return the images that the run has skipped so far: split, index in it, name, error."""
        file = self.path / "skipped.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def write_skipped(self, rows: Rows) -> None:
        """Write skipped.jsonl anew, ordered by split and index."""
        ordered = sorted(rows, key=lambda row: (row["split"], row["index"]))
        self.write("skipped.jsonl", "".join(json.dumps(row) + "\n" for row in ordered))

    def rollbacks(self) -> Rows:
        """Return where the run went back after divergence so far: number, step, step gone back to, seed from there."""
        file = self.path / "rollbacks.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def write_rollback(self, record: dict[str, Any]) -> None:
        """Add to rollbacks.jsonl; what was there under this number or a later one was undone by a kill."""
        rows = [row for row in self.rollbacks() if row["number"] < record["number"]]
        self.write("rollbacks.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, record]))

    def write_rows(self, rows: Rows) -> None:
        """Write metrics.jsonl and metrics.csv anew."""
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", table.getvalue())
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write_predictions(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Write predictions.npz: the classes of the test images, int32 [n] each, in the data set's order."""
        file = io.BytesIO()
        np.savez_compressed(file, labels=labels, predictions=predictions)
        self.write("predictions.npz", file.getvalue())


def environment(layout: Layout | None = None, stacked: int = 1) -> dict[str, str]:
    """Return versions, devices, git commit and the like: what a number may depend on besides its config."""
    packages = ("jaxclf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
    packages += ("grain", "pillow", "simplejpeg")
    device = jax.devices()[0]
    return {
        "git": _git_commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": str(layout.devices if layout else jax.device_count()),
        "processes": str(layout.hosts if layout else jax.process_count()),
        "stacked": str(stacked),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
        "processor": f"{platform.machine()}, {cores()} core{'s' * (cores() > 1)}",
        # It splits its sums over them, so on CPU their number decides the last bit.
        "xla_threads": str(_xla_threads(device.platform)),
        **_flags(),
        **(_drivers() if device.platform == "gpu" else {}),
    }


def _flags() -> dict[str, str]:
    """Return the variables that hold flags of compilers, where they are set; the number of devices is not one here."""
    flags = {name: os.environ.get(name, "").split() for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    kept = {name: [one for one in given if "host_platform_device_count" not in one] for name, given in flags.items()}
    return {name: " ".join(given) for name, given in kept.items() if given}


def _drivers() -> dict[str, str]:
    """Return the versions of what computes on an NVIDIA GPU beneath JAX: its driver, and the wheels of CUDA."""
    packages = {dist.name: dist.version for dist in importlib.metadata.distributions() if dist.name}
    found = {name: version for name, version in packages.items() if re.match(r"nvidia-cud(nn|a-runtime)", name)}
    file = Path("/proc/driver/nvidia/version")
    return {"driver": driver_version(file.read_text() if file.exists() else ""), **dict(sorted(found.items()))}


def driver_version(text: str) -> str:
    """Return the version that /proc/driver/nvidia/version states.

    >>> driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23")
    '570.86.15'
    >>> driver_version("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build")
    '580.65.06'
    """
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else "unknown"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _xla_threads(backend: str) -> int:
    """Return how many threads XLA computes with on the CPU; 0 elsewhere.

    One for each core, or as many as the environment variable NPROC says, or as there are virtual devices, if that is
    more (measured: bits change with the largest of these, and not with the others).
    """
    if backend != "cpu":
        return 0
    return max(int(os.environ.get("NPROC") or cores()), jax.local_device_count())


def _git_commit() -> str:
    """Return the commit of the source tree, with "+changes" behind it, or "none" for an installed package."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    if not (root / ".git").exists():
        return "none"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"
