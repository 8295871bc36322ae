"""jaxclf predict: classes of image files."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.cli.weights import OfWeights
from jaxclf.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(OfWeights):
    """Classify image files: the most probable classes of each; a file that cannot be read is named."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files; - stands for the paths on standard input, one a line."""
    weights: Path
    """A weight file or directory, or a run directory."""
    top: int = 5
    """Classes to show."""
    json: bool = False
    """Print a JSON object a line: file, and guesses (index, name, probability, logit) or error."""

    def run(self) -> None:
        """Print the answers; if a file could not be read, raise `UsageError` after those of the others."""
        from jaxclf.tools.predict import predict

        files = [file for given in self.images for file in (_from_stdin() if str(given) == "-" else [given])]
        if not files:
            raise UsageError("there is no image to classify: give files, or - and their paths on standard input")
        loaded, preprocessing = self.prepared(self.weights)
        names = loaded.record.class_names
        answers = predict(loaded.model, loaded.variables, preprocessing, files, names, top=self.top)
        for answer in answers:
            if self.json:
                print(json.dumps(dataclasses.asdict(answer), allow_nan=False))
                continue
            print(answer.file if answer.error is None else f"{answer.file}: {answer.error}")
            for guess in answer.guesses:
                print(f"  {guess.probability:7.2%}  {guess.name}")
        if broken := [str(answer.file) for answer in answers if answer.error is not None]:
            raise UsageError(f"{len(broken)} of {len(answers)} files could not be read: {', '.join(broken)}")


def _from_stdin() -> list[Path]:
    return [Path(line) for line in sys.stdin.read().splitlines() if line]
