"""The flags that say which weights a command takes."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxclf.config import DataConfig
from jaxclf.errors import UsageError
from jaxclf.storage import location

if TYPE_CHECKING:
    from jaxclf.data.transforms import Preprocessing
    from jaxclf.training.weights import Weights

OWN = "own"
"""Name of the data set of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfWeights:
    """The flags of commands that answer by weights."""

    model: str | None = None
    """Name of the backbone, where the weights do not say it."""
    head: str | None = None
    """Name of the head, where the weights do not say it; None is learned then."""
    class_names: Path | None = None
    """A text file with one class name a line, in class order; None is what the weights say."""
    weights_key: str | None = None
    """Key of the state dict in a PyTorch file that holds several, as model_ema."""
    checkpoint: Literal["last", "best"] | int = "last"
    """Checkpoint of a run: the newest, that of a step, or the best on its test images: a diagnosis, not a result."""

    def given(self, file: Path) -> dict[str, Any]:
        """Return the arguments of `weights.read` for a file."""
        from jaxclf.training import weights

        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(OfWeights)}
        if weights.is_bare(file):
            given["head"] = self.head or "learned"
        return given | {"class_names": read_names(self.class_names)}

    def prepared(self, file: Path) -> "tuple[Weights, Preprocessing]":
        """Read weights that say how image files are prepared; `UsageError` for those that do not."""
        from jaxclf.training import weights

        loaded = weights.read(file, **self.given(file))
        if loaded.record.preprocessing is None:
            raise UsageError(f"{location(file)} does not say how {loaded.record.model} wants its images prepared")
        return loaded, loaded.record.preprocessing

    def data_of(self, weights: Path, data: DataConfig) -> DataConfig:
        """Return the data set of the flags `data`; of a run's own set, they change single fields."""
        from jaxclf.tools.inputs import PREPARED
        from jaxclf.training.run_directory import read_config

        if data.dataset != OWN:
            return data
        if not ((place := location(weights)) / "config.json").exists():
            raise UsageError(f"{place} is no run, whose data set would be {OWN}; give --data.dataset")
        own = dataclasses.replace(read_config(weights).data, **dict.fromkeys(PREPARED))
        plain = DataConfig(OWN)
        flags = {field.name: getattr(data, field.name) for field in dataclasses.fields(plain)}
        changed = {name: value for name, value in flags.items() if value != getattr(plain, name)}
        return dataclasses.replace(own, **changed)


def read_names(file: Path | None) -> tuple[str, ...] | None:
    """Return the class names in a text file, one a line."""
    try:
        return None if file is None else tuple(file.read_text().splitlines())
    except ValueError as error:
        raise UsageError(f"{file} is no text of class names, one a line: {error}") from error
