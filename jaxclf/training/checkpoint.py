"""Checkpoints by Orbax: the last two (so that a damaged newest one has a predecessor) and the best one.

A checkpoint holds the arrays of a TrainState and a JSON record: the number of metric rows written by then, a
SHA-256 over the arrays, and shape and hash of each fixed matrix, by its path, which ends in its name. Exact ones are
not stored but regenerated, and their hash is compared (matrices.py says why random ones are stored).
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers

from jaxclf.devices.cluster import together, warn
from jaxclf.devices.layout import AXIS
from jaxclf.errors import RunError, UsageError, one_line
from jaxclf.models.matrices import digest, is_random, matrix
from jaxclf.storage import Location, absolute, checksum_name, checksums, retire
from jaxclf.training.step import TrainState

T = TypeVar("T")
Which = Literal["last", "best"] | int
"""Which checkpoint of a run: the newest, that with the highest top-1 on the images evaluated, or that of a step."""
Flat = dict[str, np.ndarray]
MANIFESTS = {"SHA-256": "sha256.json", "CRC32C": "crc32c.json"}
"""In each checkpoint: the checksums of its files, in a bucket those that it keeps itself."""
ORBAX_TIMES = "_CHECKPOINT_METADATA"
NOT_EVALUATED = -1.0
"""Stands for the top-1 of a checkpoint inside an epoch: below every real one."""


COLLECTIONS = ("params", "batch_stats", "fixed", "head_state")
"""The parts of a TrainState that are a model's variables."""


def is_exact(name: str) -> bool:
    """Tell whether a dotted path of variables is that of an exact fixed matrix, which is regenerated, not stored.

    >>> is_exact("fixed.head.hadamard"), is_exact("fixed.head.orthogonal")
    (True, False)
    """
    return name.startswith("fixed.") and not is_random(name.rsplit(".", 1)[-1])


def fixed_record(flat: Flat) -> dict[str, Any]:
    """Return what is kept of the fixed matrices among flat variables: shape and hash; the path's end is the matrix."""
    return {
        name: {"shape": list(value.shape), "sha256": digest(value)}
        for name, value in flat.items()
        if name.startswith("fixed.")
    }


def regenerate(record: Mapping[str, Any]) -> Flat:
    """Return the exact matrices of a `fixed_record`; `UsageError` where one has not the hash that was recorded."""
    flat: Flat = {}
    for name in filter(is_exact, record):
        flat[name] = matrix(name.rsplit(".", 1)[-1], *record[name]["shape"]).astype(np.float32)
        if digest(flat[name]) != record[name]["sha256"]:
            raise UsageError(
                f"{name}, regenerated, has not the SHA-256 of the matrix that was trained with ({record[name]}): "
                "this version of the code builds another matrix, or its file was changed"
            )
    return flat


def state_digest(state: TrainState) -> str:
    """Return a SHA-256 over names, types, shapes and bytes of all arrays of a state."""
    return _digest(_flatten(state))


class NoCheckpoint(RunError):
    """A directory without a checkpoint that can be read."""


class Damaged(RunError):
    """A checkpoint whose files or arrays are not what was written."""


class Checkpoints:
    """The checkpoints of one run directory, which all processes of the run open together.

    A checkpoint is written beside the training that goes on, in a directory of another name that gets its own when
    every file is there; in a bucket it gets a marker then. So the newest one is whole at any moment; what goes wrong is
    said by the call after.
    """

    def __init__(self, directory: Location, *, read_only: bool = False) -> None:
        """Open the directory. A run creates it, if need be, and removes half-written checkpoints of a killed run.

        With `read_only` nothing in it changes, whatever is damaged, and a run may train there meanwhile.

        Raises `UsageError` for checkpoints that were copied from a disk to a bucket.
        """
        self.directory, self._read_only = absolute(directory), read_only
        self._writing: int | None = None
        together(lambda: _require_marked(self.directory))
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            return
        together(lambda: _hide_unreadable_metrics(self.directory) if _first() else None)
        keep = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(get_metric_fn=_top1, n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            cleanup_tmp_directories=True,
            best_fn=_top1,  # without it Orbax does not write the metrics that the policy reads
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is being written, and end Orbax's threads; an error is raised unless one is on its way."""
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            self.settle()
            self._manager.close()

    def steps(self) -> list[int]:
        """Return the steps that have a complete checkpoint, oldest first."""
        return sorted(step for step in self._manager.all_steps() if step != self._writing)

    def save(self, state: TrainState, *, rows: int, top1: float | None) -> None:
        """Begin to write a checkpoint; with `top1` it competes for best. Waits for the one before.

        Raises `RunError` if either cannot be written.
        """
        self.settle()
        flat, step = _flatten(state), int(state.step)
        stored = {name: _shared(value) for name, value in flat.items() if not is_exact(name)}
        record = {"rows": rows, "sha256": _digest(flat), "fixed": fixed_record(flat)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(stored), record=ocp.args.JsonSave(record))
        metrics = {"top1": NOT_EVALUATED if top1 is None else top1}
        self._writing = step
        with self._or_say_what_is_kept():
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def drop(self, step: int) -> None:
        """Delete the checkpoint of a step."""
        self._manager.delete(step)

    def settle(self) -> None:
        """Wait until what is being written is whole; raises `RunError` if it cannot be written."""
        with self._or_say_what_is_kept():
            self._manager.wait_until_finished()
        self._writing = None

    def _seal(self) -> None:
        """Write the checksums of a checkpoint that is about to be whole; runs in Orbax's thread.

        It gets its name then. In a bucket, where nothing can be renamed, it has it and gets a marker.
        """
        if _first():
            unnamed = list(self.directory.glob(f"{self._writing}.orbax-checkpoint-tmp*"))
            for checkpoint in unnamed or [self.directory / str(self._writing)]:
                _write_manifest(checkpoint)

    @contextlib.contextmanager
    def _or_say_what_is_kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types for a full or broken disk
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise  # another process is gone
            manifests = self.directory.glob(f"*/{_manifest(self.directory)}")
            whole = [int(file.parent.name) for file in manifests if file.parent.name.isdigit()]
            kept = f"the last good one is of step {max(whole)}" if whole else "there is none before it"
            raise RunError(
                f"step {self._writing}: the checkpoint could not be written to {self.directory} "
                f"({one_line(error)}); {kept}"
            ) from error

    def restore(self, template: TrainState, which: Which = "last") -> tuple[TrainState, int]:
        """Return the state of a checkpoint and its number of metric rows; "last" is the newest that can be read.

        A damaged newest one is named by a warning and the one before is taken; a run that goes on moves it to
        `damaged_checkpoints`. Its arrays lie on this process's default device, whatever devices wrote them. Raises
        `RunError` when none can be read, and `UsageError` for a step or a best one that is not there.
        """
        return self._first_readable(which, lambda step: self._read(template, step))

    def variables(self, which: Which = "last") -> dict[str, Any]:
        """Return the model's variables in a checkpoint, for readers that know no TrainState; errors as of `restore`."""
        return self._first_readable(which, self._read_variables)

    def _first_readable(self, which: Which, read: Callable[[int], T]) -> T:
        damaged: dict[int, str] = {}
        while candidates := [step for step in self._chosen(which) if step not in damaged]:
            step = candidates[-1]
            try:
                return read(step)
            except UsageError:
                raise
            except Exception as error:  # Orbax and TensorStore raise many types for damaged files
                if not (self.directory / str(step)).exists():
                    self._manager.reload()  # the run that trains here has newer ones, and deleted this one meanwhile
                    continue
                damaged[step] = one_line(error)
                if which == "last":
                    if not self._read_only:
                        self._set_aside(step)
                    warn(f"the checkpoint of step {step} is damaged ({damaged[step]}); taking the one before")
        tried = "; ".join(f"step {step} ({reason})" for step, reason in damaged.items())
        raise NoCheckpoint(f"no readable checkpoint in {self.directory}: {tried or 'it is empty'}")

    def _chosen(self, which: Which) -> list[int]:
        """Return the steps to try, the first choice last; `UsageError` where none is there."""
        steps = self.steps()
        if which == "last":
            return steps
        step = self.best_step() if which == "best" else which
        if step is None:
            raise UsageError(f"{self.directory.parent} has no best checkpoint: none was evaluated")
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise UsageError(f"{self.directory.parent} has no checkpoint of step {step}; there: {there}")
        return [step]

    def best_step(self) -> int | None:
        """Return the step of the best checkpoint by top-1 (the later one of equals), None if none has one."""
        scores = {step: _top1(_metrics(self.directory / str(step))) for step in self.steps()}
        evaluated = [step for step, score in scores.items() if score != NOT_EVALUATED]
        return max(evaluated, key=lambda step: (scores[step], step), default=None)

    def _read_variables(self, step: int) -> dict[str, Any]:
        _check_files(self.directory / str(step))
        # Without shapes Orbax would put the arrays on the devices that wrote them, which may not be here.
        shapes = ocp.StandardCheckpointHandler().metadata(self._manager.directory / str(step) / "state").tree
        as_numpy = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(as_numpy), record=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        stored, prefix = restored["state"], "average."  # where there is a moving average, it is what was evaluated
        stored |= {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}
        flat = {name: np.asarray(value) for name, value in stored.items() if name.split(".")[0] in COLLECTIONS}
        return traverse_util.unflatten_dict({**flat, **regenerate(restored["record"]["fixed"])}, sep=".")

    def _read(self, template: TrainState, step: int) -> tuple[TrainState, int]:
        together(lambda: _check_files(self.directory / str(step)))
        flat = _flatten(template)
        stored = {name: value for name, value in flat.items() if not is_exact(name)}
        items = ocp.args.Composite(state=ocp.args.StandardRestore(stored), record=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        if restored is None:
            raise ValueError("nothing was read")
        record = restored["record"]
        flat |= regenerate(record["fixed"])
        flat |= {name: np.asarray(value) for name, value in restored["state"].items()}
        if _digest(flat) != record["sha256"]:
            raise ValueError("its arrays do not have the SHA-256 that was recorded")
        nested = traverse_util.unflatten_dict({**_empty_nodes(template), **flat}, sep=".")
        state: Any = serialization.from_state_dict(template, jax.tree.map(jax.numpy.asarray, nested))
        return state, record["rows"]

    def _set_aside(self, step: int) -> None:
        def move() -> None:
            target = self.directory.parent / "damaged_checkpoints"
            target.mkdir(exist_ok=True)
            number = len(list(target.glob(f"{step}.*")))
            retire(self.directory / str(step), target / f"{step}.{number}")

        together(move if _first() else lambda: None)
        self._manager.reload()


def saved(run: Location) -> Checkpoints:
    """Open the checkpoints of a run directory to read them; `UsageError` where it has none."""
    if not (directory := run / "checkpoints").is_dir() or not any(path.name.isdigit() for path in directory.iterdir()):
        raise UsageError(f"{run} has no checkpoint; train into it first")
    return Checkpoints(directory, read_only=True)


def _first() -> bool:
    """Whether this process is the one that writes what only one can."""
    return jax.process_index() == 0


def _shared(value: np.ndarray) -> np.ndarray | jax.Array:
    """Return an array that all processes hold as one of JAX's, of which each writes its share."""
    if jax.process_count() == 1:
        return value
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), value)


def _manifest(directory: Location) -> str:
    return MANIFESTS[checksum_name(directory)]


def _write_manifest(checkpoint: Location) -> None:
    """Write the checksum of every file of a checkpoint into it.

    TensorStore meets a damaged file in the middle of many concurrent reads and prints a traceback for each of the
    others, so files are compared before it sees them. Orbax writes the time into its own file afterwards.
    """
    found = checksums(checkpoint)
    kept = {name: found[name] for name in found if name.rpartition("/")[2] != ORBAX_TIMES}
    (checkpoint / _manifest(checkpoint)).write_text(json.dumps(kept, indent=2) + "\n")


def _check_files(checkpoint: Location) -> None:
    """Compare a checkpoint's files with its manifest; raises `Damaged`."""
    manifest = checkpoint / _manifest(checkpoint)
    if not manifest.exists():
        return
    found = checksums(checkpoint)
    for name, expected in json.loads(manifest.read_text()).items():
        if name not in found:
            raise Damaged(f"{name} is missing")
        if found[name] != expected:
            raise Damaged(f"{name} does not have the {checksum_name(checkpoint)} that was recorded")


def _require_marked(directory: Location) -> None:
    """Raise `UsageError` for checkpoints of a disk in a bucket: without a marker Orbax would delete them."""
    written = MANIFESTS["SHA-256"]
    if _manifest(directory) != written and any(directory.glob(f"*/{written}")):
        raise UsageError(
            f"{directory} holds checkpoints that were written on a disk, and Orbax takes what it has not marked in a "
            "bucket for half-written; go on where they were written, or take the weights by `jaxclf convert`"
        )


def _hide_unreadable_metrics(directory: Location) -> None:
    """Rename metrics that are no JSON: Orbax would fail on opening the directory, while it can do without them."""
    for file in directory.glob("*/metrics/metrics"):
        try:
            json.loads(file.read_text())
        except ValueError:
            retire(file, file.with_name("metrics.damaged"))


def _metrics(checkpoint: Location) -> dict[str, Any]:
    """Return the metrics of a checkpoint; empty where they are damaged, which costs no more than being the best."""
    try:
        return json.loads((checkpoint / "metrics" / "metrics").read_text())
    except (OSError, ValueError):
        return {}


def _top1(metrics: Any) -> float:
    return metrics.get("top1", NOT_EVALUATED)


def _flatten(state: TrainState) -> Flat:
    nested = jax.device_get(serialization.to_state_dict(state))  # not device_get(state): a TrainState holds jax arrays
    return {name: np.asarray(value) for name, value in traverse_util.flatten_dict(nested, sep=".").items()}


def _empty_nodes(state: TrainState) -> dict[str, Any]:
    """Return the branches without arrays, which a flat dictionary cannot hold."""
    nested = serialization.to_state_dict(state)
    flat = traverse_util.flatten_dict(nested, sep=".", keep_empty_nodes=True)
    return {name: value for name, value in flat.items() if value is traverse_util.empty_node}


def _digest(flat: Flat) -> str:
    total = hashlib.sha256()
    for name in sorted(flat):
        value = np.ascontiguousarray(flat[name])
        total.update(f"{name} {value.dtype} {flat[name].shape}".encode() + value.tobytes())
    return total.hexdigest()
