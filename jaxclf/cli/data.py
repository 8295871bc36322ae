"""jaxclf data: the data sets."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.config import DataConfig, Loader


@dataclasses.dataclass(frozen=True)
class Listing:
    """Show all names."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each data set."""
        from jaxclf.tools import inspection

        yield from inspection.listing()


@dataclasses.dataclass(frozen=True)
class OfOneSet:
    """The flags of commands on one data set."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the data set, or folder:PATH."""
    data_dir: str | None = None
    """TFDS directory; None is TFDS's own default."""


@dataclasses.dataclass(frozen=True)
class Info(OfOneSet):
    """Show one set's facts."""

    sample: int = 10_000
    """Training images of a streamed set that are measured, evenly spread; 0 measures all."""

    def lines(self) -> Iterator[str]:
        """Yield a line for each fact."""
        from jaxclf.tools import inspection
        from jaxclf.training.progress import Lines

        facts = inspection.inspect(self.name, data_dir=self.data_dir, sample=self.sample, report=Lines())
        yield from inspection.describe(facts)


@dataclasses.dataclass(frozen=True)
class Prepare(OfOneSet):
    """Make one set readable, once."""

    downloads: Path | None = None
    """Directory with the original files already downloaded, for machines without a network."""

    def lines(self) -> Iterator[str]:
        """Prepare the set and yield its place."""
        from jaxclf.data import datasets
        from jaxclf.tools import preparation
        from jaxclf.training.progress import Lines

        if self.name.startswith(datasets.FOLDER):
            source = datasets.resolve(DataConfig(self.name)).facts.source
            yield f"{source}: nothing has to be prepared, folders are read as they are"
        else:
            downloads = self.downloads
            yield str(preparation.prepare(self.name, data_dir=self.data_dir, downloads=downloads, report=Lines()))


@dataclasses.dataclass(frozen=True)
class Verify(OfOneSet):
    """Read and decode all of one set and name what is broken."""

    def lines(self) -> Iterator[str]:
        """Yield the damages as they are found."""
        from jaxclf.tools import verification
        from jaxclf.training.progress import Lines

        yield from verification.verify(self.name, data_dir=self.data_dir, report=Lines())


@dataclasses.dataclass(frozen=True)
class Bench(OfOneSet):
    """Measure images/s of every stage of the input, and of the training step that it feeds."""

    image_size: int | None = None
    """Side of the images in pixels; None is 224 for streamed sets and their own size for others."""
    batch_size: int = 64
    """Images per batch."""
    backbone: str | None = None
    """Network of the training step; None is resnet18 for streamed sets and resnet20 for others."""
    seconds: float = 3.0
    """Seconds for which each stage is measured."""
    loader: Loader = dataclasses.field(default_factory=Loader)

    def lines(self) -> Iterator[str]:
        """Yield a line for each stage as it is measured."""
        from jaxclf.tools import throughput
        from jaxclf.training.setup import set_up

        sizes = {"image_size": self.image_size, "batch_size": self.batch_size}
        config = throughput.bench_config(self.name, data_dir=self.data_dir, backbone=self.backbone, **sizes)
        with set_up(config, self.loader) as setup:
            yield from throughput.measure(
                *(config, setup.program, setup.data, setup.order, setup.init_state),
                group=setup.group,
                loader=self.loader,
                seconds=self.seconds,
            )


Action = (
    Annotated[Listing, tyro.conf.subcommand("list")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


@dataclasses.dataclass(frozen=True)
class Data:
    """Show, prepare, check or time data sets."""

    action: Annotated[Action, tyro.conf.arg(name="")]

    def run(self) -> None:
        """Print the lines of the action as they become known."""
        for line in self.action.lines():
            print(_printable(line), flush=True)


def _printable(line: str) -> str:
    """Escape characters of a file's name that are no text, and those that would end the line."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
