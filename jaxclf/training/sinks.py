"""Where the numbers of a run are sent while it trains: TensorBoard's event files, Weights & Biases.

tensorboard/     event files
wandb.json       id of the run at Weights & Biases and its last step there;  wandb/   its own files
"""

import importlib
import importlib.util
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclf.config import Config, Watching, validate
from jaxclf.errors import UsageError
from jaxclf.storage import Location, replace_file

Values = Mapping[str, float]


def require_sinks(watching: Watching) -> None:
    """Raise `UsageError` for a field that is out of range and for a sink whose package is not installed."""
    validate(watching)
    wanted = {"tensorboard": watching.tensorboard, "wandb": watching.wandb is not None}
    for name, want in wanted.items():
        if want and not _installed(name):
            raise UsageError(f"{name} needs a package that is not installed: pip install 'jaxclf[{name}]'")


def _installed(package: str) -> bool:
    """Return whether a package is there; a mere directory of its name, as both write one, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


class TensorBoard:
    """One event file of a directory; what earlier files hold of later steps is no longer shown.

    The records are what torch.utils.tensorboard writes, by the same package, but written by the caller and not by a
    thread behind a queue: a kill loses none of them, and a full disk is an error here and now. tensorboardX is 0.1 MB
    instead of 50 but shows nothing, has that queue in its SummaryWriter, and its own records take these same lines.
    """

    def __init__(self, directory: Path, step: int) -> None:
        """Go on behind `step`; raises `OSError`."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        event, summary = vars(event_pb2), vars(summary_pb2)  # made at run time, so no attributes to a type checker
        self._event, self._summary, session = event["Event"], summary["Summary"], event["SessionLog"]
        directory.mkdir(exist_ok=True)
        # TensorBoard reads a directory's files in the order of their names.
        self._file = (directory / f"events.out.tfevents.{time.time_ns()}").open("xb")
        self._records = RecordWriter(self._file)
        self._add(file_version="brain.Event:2")
        self._start = session(status=session.START)
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Let what was written of steps behind `step` be shown no more; raises `OSError`."""
        self._add(step=step + 1, session_log=self._start)

    def write(self, step: int, values: Values) -> None:
        """Add values as scalars of a step; raises `OSError`."""
        each = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step=step, summary=self._summary(value=each))

    def close(self, *, failed: bool) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


class WeightsAndBiases:
    """One run at Weights & Biases, the same one however often a run directory goes on.

    Its id is drawn once and kept in wandb.json, beside the last step sent: two directories of one config are two runs,
    and a directory that moves is still the same. Steps that were sent before a kill are not sent again.
    """

    def __init__(self, project: str, config: Config, *, directory: Location, own: Path) -> None:
        """Start or resume the run, with its id in a run directory and wandb's own files in the local one `own`.

        Raises `UsageError` if nobody is logged in, and what wandb raises.
        """
        wandb = importlib.import_module("wandb")
        self._file = directory / "wandb.json"
        if not self._file.exists():
            self._remember(secrets.token_hex(4), step=0)
        record = json.loads(self._file.read_text())
        self._id, self._sent = record["id"], record["step"]
        self._last = self._sent
        # By default it waits without end for an upload at the end of a run, and takes over stdout and stderr.
        settings = wandb.Settings(console="off", silent=True, finish_timeout=60)
        names = {"project": project, "id": self._id, "name": config.run_id(), "dir": str(own)}
        try:
            self._run = wandb.init(**names, resume="allow", config=config.to_dict(), settings=settings)
        except wandb.errors.UsageError as error:
            raise UsageError(f"wandb {project}: {error}") from error
        self.url: str | None = None if self._run.offline else self._run.url
        """Page of the run; None offline."""

    def go_back(self, step: int) -> None:
        """Do nothing: what was sent cannot be taken back, and steps up to there are not sent again."""
        self._sent = self._last

    def write(self, step: int, values: Values) -> None:
        """Send values of a step that is behind all that were sent before this process, or before it went back."""
        if step > self._sent:
            self._run.log(dict(values), step=step)
            self._remember(self._id, step)
            self._last = step

    def close(self, *, failed: bool) -> None:
        """Wait up to a minute for what is still to be sent; what is left then, `wandb sync` sends."""
        self._run.finish(exit_code=int(failed))

    def _remember(self, id: str, step: int) -> None:
        replace_file(self._file, json.dumps({"id": id, "step": step}) + "\n")
