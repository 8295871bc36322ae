"""The program `jaxclf`: commands by name, exit codes, warnings, and the place of compiled programs."""

import contextlib
import dataclasses
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

import jaxclf
from jaxclf.cli.activations import Activations
from jaxclf.cli.convert import Convert
from jaxclf.cli.data import Data
from jaxclf.cli.evaluate import Evaluate
from jaxclf.cli.heads import Heads
from jaxclf.cli.maps import Maps
from jaxclf.cli.models import Models
from jaxclf.cli.predict import Predict
from jaxclf.cli.probe import Probe
from jaxclf.cli.recipe import STOPPED, Stoppable, read_flags, with_recipe
from jaxclf.cli.search import Search
from jaxclf.cli.strongest import Strongest
from jaxclf.cli.summary import Outline, Summary
from jaxclf.cli.sweep import Sweep
from jaxclf.cli.table import RunTable
from jaxclf.cli.train import Train
from jaxclf.devices.preemption import end_with_parent
from jaxclf.errors import RunError, Stopped, UsageError, unknown

COMMANDS: dict[str, type] = {
    "train": Train,
    "eval": Evaluate,
    "table": RunTable,
    "sweep": Sweep,
    "search": Search,
    "models": Models,
    "heads": Heads,
    "summary": Summary,
    "convert": Convert,
    "predict": Predict,
    "maps": Maps,
    "activations": Activations,
    "strongest": Strongest,
    "probe": Probe,
    "data": Data,
}
OF_A_RECIPE: dict[str, type] = {"train": Train, "summary": Outline}
"""Commands whose defaults are those of a recipe file, where one is given."""
DESCRIPTION = f"""{jaxclf.__doc__} `jaxclf COMMAND --help` shows every flag with type, default and meaning;
`jaxclf --version` prints the version."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line on stderr that says what was wrong, or for `Stopped` its stop code.

    Raises `SystemExit` after help.
    """
    args = sys.argv[1:] if args is None else args
    if list(args) == ["--version"]:
        print(f"jaxclf {jaxclf.__version__}")
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of classes and files that its encoding lacks
    _cache_compilations()
    end_with_parent()
    with warnings.catch_warnings():
        # Another process may have been killed while it wrote the entry; the program is compiled again.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
        warnings.showwarning = lambda message, *_, **__: print(f"jaxclf: warning: {message}", file=sys.stderr)
        with _without_echoes():
            code = _run(args)
    cluster = sys.modules.get("jaxclf.devices.cluster")  # imported by commands that join others
    if code and cluster is not None and cluster.joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a regular exit waits for the other processes, which wait for this one
    return code


@contextlib.contextmanager
def _without_echoes() -> Iterator[None]:
    """Leave out what TensorStore prints, once per array, when a write fails whose event loop Orbax has closed."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _run(args: Sequence[str]) -> int:
    stop_code = STOPPED
    try:
        command = parse(args)
        if not 1 <= (stop_code := _stop_code(command)) <= 255:
            raise UsageError(f"--stop-code is {stop_code} but must be from 1 to 255")
        import absl.logging  # noqa: F401  # makes its logger, whose level would otherwise be set anew

        for name in ("absl", "asyncio", "gcsfs"):  # they log tracebacks of what they raise as well, Orbax once an array
            logging.getLogger(name).setLevel(logging.CRITICAL)
        command.run()
    except Stopped as error:
        print(f"jaxclf: {error}", file=sys.stderr)
        return stop_code
    except (UsageError, RunError, OSError) as error:
        print(f"jaxclf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxclf: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _stop_code(command: object) -> int:
    return command.stop_code if isinstance(command, Stoppable) else STOPPED


def parse(args: Sequence[str]) -> Any:
    """Return the command with its flags; raises `UsageError`, and `SystemExit` after help."""
    if "" in args:
        raise UsageError(f"argument {list(args).index('') + 1} is empty; give a path, a name or a number")
    commands = dict(COMMANDS)
    name = args[0] if args else ""
    if name and not name.startswith("-") and name not in commands:
        raise unknown("command", name, commands)
    if name in OF_A_RECIPE and any(arg.endswith(".py") for arg in args):
        commands[name] = with_recipe(OF_A_RECIPE[name], args)
    form: Any = Union[*(Annotated[kind, tyro.conf.subcommand(one)] for one, kind in commands.items())]
    markers = (tyro.conf.PositionalMetavarFromFieldName,)
    given: dict[str, Any] = {"prog": "jaxclf", "description": DESCRIPTION, "args": args, "config": markers}
    if not hasattr(commands.get(name), "overrides"):
        return read_flags(form, **given)
    chosen, overrides = read_flags(form, **given, return_unknown_args=True)
    return dataclasses.replace(chosen, overrides=tuple(overrides))


def _cache_compilations() -> None:
    """Keep compiled programs in ~/.cache/jaxclf, unless JAX's own variables say otherwise; without a home, nowhere.

    JAX reads the variables when it is imported, which a command does after this.
    """
    with contextlib.suppress(RuntimeError):  # neither HOME nor an entry of this user among the system's
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "jaxclf" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
