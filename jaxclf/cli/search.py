"""jaxclf search: the best network within a budget out of an elastic one."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.config import Searching
from jaxclf.errors import UsageError
from jaxclf.storage import location


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Search a run's elastic network for the setting with the best validation top-1 within a budget, by evolution."""

    workdir: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    macs: int | None = None
    """The budget: multiply-accumulates of an image."""
    parameters: int | None = None
    """The budget: trainable parameters; one of the two."""
    out: Path | None = None
    """Write the network that was found into this weight file, with the BatchNorm statistics of the run."""
    searching: Annotated[Searching, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Searching)
    json: bool = False
    """Print every setting that was evaluated as JSON, the best first."""

    def run(self) -> None:
        """Search and print what was found."""
        from jaxclf.tools.search import flags, search
        from jaxclf.training import weights

        if self.out is not None and (out := location(self.out)).exists():
            raise UsageError(f"{out} exists already; remove it or choose another name")
        say = (lambda _: None) if self.json else print
        found = search(self.workdir, self.searching, macs=self.macs, parameters=self.parameters, say=say)
        best = found[0]
        if self.out is not None:
            setting = dataclasses.asdict(best.setting)
            weights.write(self.out, weights.extracted(weights.read(self.workdir), **setting))
        if self.json:
            rows = [{**dataclasses.asdict(one.setting), **one.cost._asdict(), "top1": one.top1} for one in found]
            print(json.dumps(rows, allow_nan=False))
            return
        print(f"{len(found)} settings were evaluated; the best: {best.top1:.2f} % of the validation images")
        print(flags(best.setting))
