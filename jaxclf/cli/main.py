"""The command line: python -m jaxclf train | eval | table | sweep | summary | convert | predict | data."""

import dataclasses
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import rich.console
import rich.table
import tyro

from jaxclf.config import Cluster, Config, DataConfig, Loader, Watching
from jaxclf.data import datasets
from jaxclf.devices import cluster
from jaxclf.errors import RunError, Stopped, UsageError, unknown
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.report import tables
from jaxclf.report.experiment import CountTable, Table
from jaxclf.report.sweep import check_rows, outline, parse_grid, parse_seeds, sweep_table
from jaxclf.tools import inspection, preparation, throughput, verification
from jaxclf.tools import predict as prediction
from jaxclf.training import evaluation, loop, weights
from jaxclf.training.progress import Lines
from jaxclf.training.run_directory import Result, read_config
from jaxclf.training.setup import set_up

USAGE = """usage: jaxclf COMMAND ...

  train CONFIG.py --workdir DIR [--model.head identity --optim.lr 0.05 ...]   train, or go on with, one run
  eval --workdir DIR [--checkpoint best]                                      evaluate a run's checkpoint
  table EXPERIMENT.py --workdir DIR [--jobs 2 --run.epochs 1 ...]             run what a table lacks and render it
  sweep CONFIG.py --workdir DIR --grid optim.lr=0.1,0.01 [--seeds 0,1 ...]    run a grid, table it, name the best
  summary NAME [--num-classes K --head H --json]                              parameters and operations by layer
  summary CONFIG.py [--optim.lr 0.05 ...]                                     a recipe in short, its learning rate
  convert IN OUT [--model NAME]                                               weights from and to PyTorch's files
  predict --weights FILE [--model NAME] IMAGE...                              classify image files
  data list | info NAME | prepare NAME | verify NAME                          the data sets: facts, what is broken
  data bench NAME [--batch-size 64 --backbone resnet18]                       images/s of the input and of a step

jaxclf COMMAND --help shows every field with type, default and meaning."""

STOPPED = 75
"""Exit code of a run that ended early and goes on by the same command: EX_TEMPFAIL of sysexits.h, try again."""
COMMAND = (sys.executable, "-m", "jaxclf")
"""Starts this program in another process."""
TOTALS = ("trainable", "fixed", "statistics", "macs", "flops_2020")
DATA_FLAGS = {
    "list": (),
    "info": ("data_dir", "sample"),
    "prepare": ("data_dir", "downloads"),
    "verify": ("data_dir",),
    "bench": ("data_dir", "image_size", "batch_size", "backbone", "seconds", "loader"),
}
"""Options of `jaxclf data` by action."""
BARE = (".pth", ".pt")
"""Files that say nothing about themselves; their last layer is taken for a learned one."""

Recipe = Annotated[Path, tyro.conf.Positional]
Fields = Annotated[Config, tyro.conf.arg(name="")]
Machines = Annotated[Cluster, tyro.conf.arg(name="")]
Watched = Annotated[Watching, tyro.conf.arg(name="")]
Request = Annotated[tables.Request, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one config, or go on where a run of the same config stopped in the same directory."""

    recipe: Recipe
    """A file with get_config() -> Config, as in configs/."""
    workdir: Path
    """The run directory."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)
    watching: Watched = dataclasses.field(default_factory=Watching)
    config: Fields = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluate a run on its test images."""

    workdir: Path
    """The run directory."""
    checkpoint: Literal["last", "best"] = "last"
    """best: the checkpoint with the highest test accuracy, a diagnosis rather than a result."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)


@dataclasses.dataclass(frozen=True)
class RunTable:
    """Run what a table lacks, then write table.md, index.html and results.jsonl into the directory.

    Fields of the config (--run.epochs 1 ...) override those of every run.
    """

    experiment: Recipe
    """A file with get_table() -> Table, as in experiments/."""
    request: Request


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a grid over a recipe's fields, then write table.md, index.html and results.jsonl into the directory.

    What is complete is not run again. Other fields (--run.epochs 1 ...) override those of the recipe.
    """

    recipe: Recipe
    """A file with get_config() -> Config, as in configs/."""
    request: Request
    grid: tuple[str, ...]
    """Axes, as in optim.lr=0.1,0.01 model.head=learned,identity; values are JSON, words need no quotes."""
    seeds: str = "0,1,2"
    """Seeds of every point."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """Show a recipe in short: model, parameters, length, and its learning rate as a curve."""

    recipe: Recipe
    """A file with get_config() -> Config, as in configs/."""
    config: Fields = dataclasses.field(default_factory=Config)


@dataclasses.dataclass(frozen=True)
class Data:
    """Show, prepare, check or time data sets."""

    action: Annotated[Literal["list", "info", "prepare", "verify", "bench"], tyro.conf.Positional]
    """list: all names; info: one set's facts; prepare: make one readable, once; verify: read and decode all of it and
    name what is broken; bench: images/s of every stage of the input, and of the training step that it feeds."""
    name: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the data set, or folder:PATH."""
    data_dir: str | None = None
    """TFDS directory; None is TFDS's own default."""
    downloads: Path | None = None
    """prepare: directory with the original files already downloaded, for machines without a network."""
    sample: int = 10_000
    """info: training images of a streamed set that are measured, evenly spread; 0 measures all."""
    image_size: int | None = None
    """bench: side of the images in pixels; None is 224 for streamed sets and their own size for others."""
    batch_size: int = 64
    """bench: images per batch."""
    backbone: str | None = None
    """bench: network of the training step; None is resnet18 for streamed sets and resnet20 for others."""
    seconds: float = 3.0
    """bench: how long each stage is measured."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    """bench: what reads a streamed set."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Show a network's layers: output shapes, parameters by collection, operations for one image.

    Of a recipe, `summary CONFIG.py`: the run in short and its learning rate; it takes the fields that train takes.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Name of a backbone, or a recipe file."""
    num_classes: int = 1000
    """Classes of the head."""
    head: str = "learned"
    """Name of a head."""
    maps: int | None = None
    """End the backbone in this many feature maps (under identity: one a class)."""
    image_size: int | None = None
    """Side of the image; None is the one the backbone was designed for."""
    channels: int = 3
    """Channels of the image."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights between .safetensors, .pth, .pt and a directory of ours, or out of a run directory."""

    source: Recipe
    """The file or directory to read; of a run, its newest checkpoint."""
    target: Recipe
    """What to write; its suffix says the format, and none is a directory of ours. It must not exist."""
    model: str | None = None
    """Name of the backbone, where the source does not say it."""
    num_classes: int | None = None
    """None is what the source says, or the size of its last layer."""
    head: str | None = None
    """Name of the head, where the source does not say it; learned for .pth."""
    maps: int | None = None
    """The backbone's option maps, likewise."""
    shortcut: str | None = None
    """The backbone's option shortcut, likewise."""
    maps_shortcut: str | None = None
    """The backbone's option maps_shortcut, likewise."""
    bias: bool | None = None
    """The head's option bias, likewise."""
    class_names: Path | None = None
    """A text file with one class name a line, in class order; None is what the source says."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify image files: the most probable classes of each; a file that cannot be read is named."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    weights: Path
    """A weight file or directory, or a run directory."""
    model: str | None = None
    """Name of the backbone, where the weights do not say it."""
    head: str | None = None
    """Name of the head; None is what the weights say, or learned where they say nothing."""
    class_names: Path | None = None
    """A text file with one class name a line, in class order; None is what the weights say."""
    top: int = 5
    """Classes to show."""


def train(args: Sequence[str]) -> None:
    """Run `jaxclf train`."""
    chosen = _with_recipe(Train, "jaxclf train", args)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the traceback of what it raises as well
    cluster.join(chosen.cluster)
    given = {"loader": chosen.loader, "devices": chosen.cluster.devices, "watching": chosen.watching}
    print_result(loop.train(chosen.config, chosen.workdir, **given))


def _with_recipe(kind: type, prog: str, args: Sequence[str]) -> Any:
    """Parse `kind` with the recipe's config as the default; its other arguments stay required."""
    recipe = next((Path(arg) for arg in args if arg.endswith(".py")), None)
    config = _config_of(recipe) if recipe else Config()
    default = [("config", Fields, dataclasses.field(default=config))]
    form = dataclasses.make_dataclass(
        kind.__name__, default, bases=(kind,), namespace={"__doc__": kind.__doc__}, frozen=True
    )
    chosen = tyro.cli(form, prog=prog, args=args)
    if recipe is None:
        raise UsageError(f"the recipe is {str(chosen.recipe)!r} but must be a .py file with get_config()")
    return chosen


def _config_of(recipe: Path) -> Config:
    """Return the config that a recipe file makes; `UsageError` unless it is one, with fields of the right types."""
    config = load(recipe, "get_config")()
    if not isinstance(config, Config):
        raise UsageError(f"{recipe}: get_config() returned {config!r} but must return a Config")
    try:
        return Config.from_dict(config.to_dict())
    except UsageError as error:
        raise UsageError(f"{recipe}: {error}") from error


def evaluate(args: Sequence[str]) -> None:
    """Run `jaxclf eval`."""
    chosen = tyro.cli(Eval, prog="jaxclf eval", args=args)
    config = read_config(chosen.workdir)
    cluster.join(chosen.cluster)
    given = {"checkpoint": chosen.checkpoint, "loader": chosen.loader, "devices": chosen.cluster.devices}
    print_result(evaluation.evaluate(config, chosen.workdir, **given))


def table(args: Sequence[str]) -> None:
    """Run `jaxclf table`."""
    chosen, overrides = tyro.cli(RunTable, prog="jaxclf table", args=args, return_unknown_args=True)
    whole: Table | CountTable = load(chosen.experiment, "get_table")()
    workdir = chosen.request.workdir
    if isinstance(whole, CountTable):
        tables.show(tables.render_counts(whole, workdir))
        return
    everything = tables.jobs(whole, workdir, lambda config: _override("jaxclf table", config, overrides))
    command = [*COMMAND, "table", str(chosen.experiment), *overrides]
    tables.complete(whole, everything, chosen.request, command, root=chosen.experiment.parent)


def sweep(args: Sequence[str]) -> None:
    """Run `jaxclf sweep`."""
    chosen, overrides = tyro.cli(Sweep, prog="jaxclf sweep", args=args, return_unknown_args=True)
    base = _override("jaxclf sweep", _config_of(chosen.recipe), overrides)
    grid, seeds = parse_grid(chosen.grid, base), parse_seeds(chosen.seeds)
    whole = sweep_table(chosen.recipe.stem, base, grid, seeds, overrides=overrides)
    check_rows(whole)
    everything = tables.jobs(whole, chosen.request.workdir)
    command = [*COMMAND, "sweep", str(chosen.recipe), "--grid", *chosen.grid, "--seeds", chosen.seeds, *overrides]
    tables.complete(whole, everything, chosen.request, command, root=chosen.recipe.parent)


def summary(args: Sequence[str]) -> None:
    """Run `jaxclf summary`."""
    if any(arg.endswith(".py") for arg in args):
        print(outline(_with_recipe(Outline, "jaxclf summary", args).config))
        return
    chosen = tyro.cli(Summary, prog="jaxclf summary", args=args)
    options: dict[str, Any] = {} if chosen.maps is None else {"maps": chosen.maps}
    model = create_model(chosen.name, num_classes=chosen.num_classes, head=chosen.head, **options)
    size = chosen.image_size or model.backbone.image_size
    counted = count(model, (size, size, chosen.channels))
    totals = {field: counted.total(field) for field in TOTALS}
    if chosen.json:
        layers = [dataclasses.asdict(layer) for layer in counted.layers]
        print(json.dumps({**dataclasses.asdict(chosen), "image_size": size, "totals": totals, "layers": layers}))
        return
    table = rich.table.Table(title=f"{chosen.name}, {chosen.head}, {chosen.num_classes} classes, {size}x{size}")
    for column in ("layer", "output", *TOTALS):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for layer in counted.layers:
        numbers = [f"{value:,}" if (value := getattr(layer, field)) else "" for field in TOTALS]
        table.add_row(layer.path or "(pool)", "x".join(map(str, layer.output)), *numbers)
    table.add_section()
    table.add_row("total", "", *(f"{value:,}" for value in totals.values()))
    rich.console.Console(width=None if sys.stdout.isatty() else 140).print(table)


def convert(args: Sequence[str]) -> None:
    """Run `jaxclf convert`."""
    chosen = tyro.cli(Convert, prog="jaxclf convert", args=args)
    given = {name: value for name, value in vars(chosen).items() if value is not None}
    if chosen.source.suffix in BARE:
        given.setdefault("head", "learned")
    given["class_names"] = _class_names(given.pop("class_names", None))
    record = weights.convert(given.pop("source"), given.pop("target"), **given)
    print(f"{chosen.target}: {record.model}, head {record.head}, {record.num_classes} classes")


def predict(args: Sequence[str]) -> None:
    """Run `jaxclf predict`; a file that cannot be read makes the exit code 2 after the others are answered."""
    chosen = tyro.cli(Predict, prog="jaxclf predict", args=args)
    head = chosen.head or ("learned" if chosen.weights.suffix in BARE else None)
    names = _class_names(chosen.class_names)
    loaded = weights.read(chosen.weights, model=chosen.model, head=head, class_names=names)
    record = loaded.record
    if record.preprocessing is None:
        raise UsageError(f"{chosen.weights} does not say how {record.model} wants its images prepared")
    answers = prediction.predict(
        loaded.model, loaded.variables, record.preprocessing, chosen.images, record.class_names, top=chosen.top
    )
    for answer in answers:
        print(answer.file if answer.error is None else f"{answer.file}: {answer.error}")
        for guess in answer.guesses:
            print(f"  {guess.probability:7.2%}  {guess.name}")
    if broken := [str(answer.file) for answer in answers if answer.error is not None]:
        raise UsageError(f"{len(broken)} of {len(answers)} files could not be read: {', '.join(broken)}")


def _class_names(file: Path | None) -> tuple[str, ...] | None:
    return None if file is None else tuple(file.read_text().splitlines())


def data(args: Sequence[str]) -> None:
    """Run `jaxclf data`."""
    chosen = tyro.cli(Data, prog="jaxclf data", args=args)
    for line in _data(chosen):
        print(_printable(line), flush=True)


def _printable(line: str) -> str:
    """Escape what print refuses, as bytes of a file's name that are no text, and what would end the line."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def _data(chosen: Data) -> Iterator[str]:
    """Yield the lines of a data command as they become known."""
    name, where, plain = chosen.name, chosen.data_dir, Data(chosen.action)
    known = ("action", "name", *DATA_FLAGS[chosen.action])
    if extra := [flag for flag, value in vars(chosen).items() if flag not in known and value != getattr(plain, flag)]:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in extra)
        raise UsageError(f"jaxclf data {chosen.action} takes no {flags}")
    if chosen.action == "list":
        if name is not None:
            raise UsageError(f"jaxclf data list takes no name, but was given {name!r}; `jaxclf data info` does")
        yield from inspection.listing()
        return
    if name is None:
        raise UsageError(f"jaxclf data {chosen.action} needs the name of a data set; `jaxclf data list` shows them")
    if chosen.action == "info":
        yield from inspection.describe(inspection.inspect(name, data_dir=where, sample=chosen.sample, report=Lines()))
    elif chosen.action == "verify":
        yield from verification.verify(name, data_dir=where, report=Lines())
    elif chosen.action == "bench":
        config = throughput.bench_config(
            name, data_dir=where, image_size=chosen.image_size, batch_size=chosen.batch_size, backbone=chosen.backbone
        )
        with set_up(config, chosen.loader) as setup:
            yield from throughput.measure(
                *(config, setup.program, setup.data, setup.order, setup.init_state),
                group=setup.group,
                loader=chosen.loader,
                seconds=chosen.seconds,
            )
    elif name.startswith(datasets.FOLDER):
        source = datasets.resolve(DataConfig(name)).facts.source
        yield f"{source}: nothing has to be prepared, folders are read as they are"
    else:
        yield str(preparation.prepare(name, data_dir=where, downloads=chosen.downloads, report=Lines()))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "table": table,
    "sweep": sweep,
    "summary": summary,
    "convert": convert,
    "predict": predict,
    "data": data,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 after one line on stderr that says what was wrong, or 75 for `Stopped`."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    _cache_compilations()
    with warnings.catch_warnings():
        # Another process may have been killed while it wrote the entry; the program is compiled again.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache entry")
        warnings.showwarning = lambda message, *_, **__: print(f"jaxclf: warning: {message}", file=sys.stderr)
        code = _run(args)
    if code and cluster.joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a regular exit waits for the other processes, which wait for this one
    return code


def _run(args: Sequence[str]) -> int:
    try:
        if args[0] not in COMMANDS:
            raise unknown("command", args[0], COMMANDS)
        COMMANDS[args[0]](args[1:])
    except Stopped as error:
        print(f"jaxclf: {error}", file=sys.stderr)
        return STOPPED
    except (UsageError, RunError, OSError) as error:
        print(f"jaxclf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxclf: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _cache_compilations() -> None:
    """Keep compiled programs in ~/.cache/jaxclf, unless JAX_COMPILATION_CACHE_DIR names another place."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxclf" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load(file: Path, function: str) -> Callable[..., Any]:
    """Return a function of a recipe or experiment file; what such a file imports is found beside its directory."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    sys.path.insert(0, str(file.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise UsageError(f"{file} defines no {function}()")
    return getattr(module, function)


def _override(prog: str, config: Config, args: Sequence[str]) -> Config:
    return tyro.cli(Config, prog=prog, args=args, default=config)


def print_result(result: Result) -> None:
    """Print what a run ended with; of several processes, the first does."""
    if jax.process_index():
        return
    known = [top1 for top1 in result.per_class if top1 is not None]
    per_class = f"{min(known):.2f} to {max(known):.2f} %"
    print(f"test top-1 {result.top1:.2f} %  top-5 {result.top5:.2f} %  loss {result.loss:.4f}  per class {per_class}")
    counts = "  ".join(f"{name} {count:,}" for name, count in result.parameters.items())
    speed = f"  {result.images_per_second:,.0f} training images/s" if result.images_per_second else ""
    print(f"step {result.step:,}  {counts}{speed}")
    if result.skipped:
        print(
            f"{result.skipped:,} images could not be read and were skipped: {result.workdir}/skipped.jsonl names them"
        )
    if result.rollbacks:
        print(f"went back {result.rollbacks} times after divergence: {result.workdir}/rollbacks.jsonl tells where")
    print(f"sha256 {result.sha256}  {result.workdir}")
