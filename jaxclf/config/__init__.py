"""The config of a run: frozen dataclasses that hash, compare, round-trip through JSON, and know nothing of JAX.

A recipe file in `configs/` returns one `Config`; the command line overrides single fields; the run directory keeps
the resolved one. Every default of the project stands here or in a recipe, never at the point of use.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from jaxclf.config.fields import build, faults
from jaxclf.config.options import Cluster, Launcher, Loader, Probing, Request, Searching, Watching, profiled_steps
from jaxclf.config.sections import (
    MARGINS,
    UNSMOOTHED,
    AugmentConfig,
    DataConfig,
    ElasticConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Remat,
    RunConfig,
)
from jaxclf.errors import UsageError

__all__ = [
    "MARGINS",
    "UNSMOOTHED",
    "AugmentConfig",
    "Cluster",
    "Config",
    "DataConfig",
    "ElasticConfig",
    "Launcher",
    "Loader",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Probing",
    "Remat",
    "Request",
    "RunConfig",
    "Searching",
    "Watching",
    "profiled_steps",
    "validate",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    elastic: ElasticConfig = dataclasses.field(default_factory=ElasticConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the config as JSON text, one field a line."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Any) -> "Config":
        """Return the config with these fields; lists pass for tuples, and whole numbers for floats.

        Raises `UsageError` for an unknown field and a value of a wrong type.
        """
        return build(cls, values)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Return the config that `to_json` wrote.

        >>> Config.from_json(Config().to_json()) == Config()
        True
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"the config is no JSON: {error}") from error
        return cls.from_dict(values)

    def run_id(self) -> str:
        """Return a readable name: data set, backbone, head, seed, and six hex digits.

        The digits are the first 24 bits of the SHA-256 of the config's JSON with sorted keys. Two different configs
        share them with a chance of one in 16.8 million: a name tells runs apart for a reader, `differences` decides.

        >>> Config().run_id()
        'digits-resnet20-learned-s0-d69e6e'
        """
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:6]
        return f"{self.data.dataset}-{self.model.backbone}-{self.model.head}-s{self.run.seed}-{digest}"

    def differences(self, other: "Config") -> list[str]:
        """List the fields in which two configs differ, as `section.field: mine != theirs`."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{section}.{field}: {value!r} != {theirs[section][field]!r}"
            for section, fields in mine.items()
            for field, value in fields.items()
            if value != theirs[section][field]
        ]


def validate(part: Config | Loader | Probing | Searching | Watching, path: str = "") -> None:
    """Raise one `UsageError` that lists every field of a config, or of options, with a value that is not allowed.

    Checks that need data or models are made with those. `path` stands before the fields' names.
    """
    wrong = [*faults(part, path), *(_contradictions(part) if isinstance(part, Config) else ())]
    if wrong:
        raise UsageError("; ".join(wrong))


def _contradictions(config: Config) -> Iterator[str]:
    """Yield a line for each field that is wrong beside another."""
    optim, augment, loss = config.optim, config.augment, config.loss
    if optim.nesterov and (optim.momentum == 0 or optim.dampening > 0):
        yield "optim.nesterov is True but must be off without momentum and with dampening"
    if optim.schedule == "hyperrule" and (optim.warmup or optim.warmup_start):
        yield f"optim.warmup is {optim.warmup} but must be 0 for hyperrule, which has a warm-up of its own"
    run = config.run
    if run.parallel == "jit" and (run.replicas is not None or run.replica_statistics != "average"):
        given = f"run.replicas is {run.replicas} and run.replica_statistics {run.replica_statistics!r}"
        yield f"{given}, but they must be None and 'average' unless run.parallel is 'pmap'"
    if not run.epochs and config.model.weights is None:
        yield "run.epochs is 0, which evaluates model.weights, but model.weights is None"
    if config.model.freeze_statistics and (run.recalibrate or config.model.ghost_batch):
        yield "model.freeze_statistics is True, but run.recalibrate and model.ghost_batch are about moving statistics"
    if config.model.head_assign != "index" and run.epochs < 2:
        given = f"model.head_assign is {config.model.head_assign!r}, which assigns rows after the first epoch"
        yield f"{given}, but run.epochs is {run.epochs}; it must be at least 2"
    if optim.name == "lbfgs" and optim.accumulate > 1:
        yield f"optim.accumulate is {optim.accumulate} but must be 1 for lbfgs"
    if loss.name in UNSMOOTHED and loss.label_smoothing > 0:
        yield f"loss.label_smoothing is {loss.label_smoothing} but must be 0 for {loss.name}"
    if loss.margin is not None and loss.name not in MARGINS:
        yield f"loss.margin is {loss.margin} but must be None for {loss.name}; it is of {' and '.join(MARGINS)}"
    if config.data.resize is not None and config.data.resize < (config.data.image_size or 1):
        yield f"data.resize is {config.data.resize} but must be at least data.image_size {config.data.image_size}"
    if augment.test_crop is not None and not augment.test.endswith("crop"):
        yield f"augment.test_crop is {augment.test_crop} but must be None unless augment.test is five_crop or ten_crop"
