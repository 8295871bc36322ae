"""Recipe and experiment files, and a config's fields as flags."""

import contextlib
import dataclasses
import importlib.util
import io
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxclf.config import Config
from jaxclf.errors import UsageError, one_line

RecipeFile = Annotated[Path, tyro.conf.Positional]
Fields = Annotated[Config, tyro.conf.arg(name="")]
Overrides = Annotated[tuple[str, ...], tyro.conf.Suppress]
"""Flags that a command does not have itself: fields of configs, which are known when its file is read."""
COMMAND = (sys.executable, "-m", "jaxclf")
"""Starts this program in another process."""
STOPPED = 75
"""Exit code of a run that ended early and goes on by the same command: EX_TEMPFAIL of sysexits.h, try again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stoppable:
    """The flag of commands that train."""

    stop_code: int = STOPPED
    """Exit code of a run that was asked to stop and goes on by the same command. Some launchers start it again only on
    certain ones, as xpk on 42 and on 127 to 255."""


def load(file: Path, function: str) -> Callable[..., Any]:
    """Return a function of a recipe or experiment file; what such a file imports is found beside its directory.

    Whatever it raises, when it is read or called, becomes a `UsageError` with its line.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    sys.path.insert(0, str(file.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    _locating(file, spec.loader.exec_module)(module)
    if not callable(found := getattr(module, function, None)):
        raise UsageError(f"{file} defines no {function}()")
    return _locating(file, found)


def _locating(file: Path, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a file whose errors are `UsageError`s that say the line of the file."""

    def call(*args: Any, **given: Any) -> Any:
        try:
            return function(*args, **given)
        except Exception as error:  # whatever a recipe's code raises
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
            line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
            said = one_line(str(error)) if isinstance(error, UsageError) else one_line(error)
            raise UsageError(f"{file}{'' if line is None else f', line {line}'}: {said}") from error

    return call


def config_of(recipe: Path) -> Config:
    """Return the config that a recipe file makes; `UsageError` unless it is one, with fields of the right types."""
    config = load(recipe, "get_config")()
    if not isinstance(config, Config):
        raise UsageError(f"{recipe}: get_config() returned {config!r} but must return a Config")
    try:
        return Config.from_dict(config.to_dict())
    except UsageError as error:
        raise UsageError(f"{recipe}: {error}") from error


def must_be_python(recipe: Path) -> None:
    """Raise `UsageError` for a recipe that is no .py file, of which `with_recipe` knows nothing."""
    if recipe.suffix != ".py":
        raise UsageError(f"the recipe is {str(recipe)!r} but must be a .py file with get_config()")


def with_recipe(kind: type, args: Sequence[str]) -> type:
    """Return a command with the config of the .py file among its arguments as default of its field `config`.

    Its other fields stay required. Without such a file the command is returned as it is.
    """
    recipe = next((Path(arg) for arg in args if arg.endswith(".py")), None)
    if recipe is None:
        return kind
    default = [("config", Fields, dataclasses.field(default=config_of(recipe)))]
    namespace = {"__doc__": kind.__doc__}
    return dataclasses.make_dataclass(kind.__name__, default, bases=(kind,), namespace=namespace, frozen=True)


def read_flags(form: Any, **given: Any) -> Any:
    """Return what tyro makes of flags; `UsageError`, in one line, for those that it cannot read.

    Raises `SystemExit` after help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(form, **given)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise UsageError(_unframed(said.getvalue())) from None


def _unframed(text: str) -> str:
    """Return in one line what tyro says in a frame: a title, then parts between rules."""
    parts = [""]
    for line in (line.strip("│╭╮╰╯ ") for line in text.splitlines()[1:]):
        if set(line) <= {"─", "-"}:
            parts.append("")
        else:
            parts[-1] += f" {line}"
    return "; ".join(one_line(part) for part in parts if part)


def override(config: Config, flags: Sequence[str], *, prog: str) -> Config:
    """Return the config under flags such as `--run.epochs 1`."""
    return read_flags(Config, prog=prog, args=flags, default=config)
