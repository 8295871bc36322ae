"""Run what a table lacks, collect what there is, render it: Markdown, one HTML page, results.jsonl."""

import collections
import concurrent.futures
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxclf.config import Config, DataConfig, Probing, Request
from jaxclf.data import datasets
from jaxclf.devices.preemption import Requests, ending_with_this_process
from jaxclf.errors import RunError, Stopped, UsageError, unknown
from jaxclf.report import page
from jaxclf.report.class_maps import class_maps, pick_examples
from jaxclf.report.experiment import CountTable, Record, Row, Table, count_markdown, evaluated_on, markdown, summarise
from jaxclf.report.map_pictures import ClassMaps
from jaxclf.report.ray_executor import RayCluster, Run, train_on_ray
from jaxclf.storage import Location, location, write_whole
from jaxclf.tools.transfer import transfer
from jaxclf.training import weights
from jaxclf.training.evaluation import restore
from jaxclf.training.loop import train
from jaxclf.training.run_directory import Result, Rows, RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.stack import but_for_seeds, room, train_stacked
from jaxclf.training.weights import with_preprocessing

Override = Callable[[Config], Config]

ESSENTIAL = ("data.dataset", "data.batch_size", "optim.name", "optim.lr", "optim.schedule", "run.epochs")
"""Fields of a config that a page shows even at their defaults."""

PROBE = "probe.json"
"""File in a run's directory, where its table has a `probe`: what `transfer` found."""
POLL = 0.2
"""Seconds between two looks at whether somebody asked the table to stop."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a table."""

    row: Row
    seed: int
    config: Config
    directory: Location

    @property
    def name(self) -> str:
        """The name that messages give the run."""
        return f"{self.row.label}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return (self.directory / "result.json").exists()


def jobs(table: Table, workdir: Location, override: Override = lambda config: config) -> list[Job]:
    """List all runs of a table with their directories, DIR/row-label/seedN.

    Raises `UsageError` for labels that give one directory.
    """
    slugs = collections.Counter(_slug(row.label) for row in table.rows)
    if same := [row.label for row in table.rows if slugs[_slug(row.label)] > 1]:
        raise UsageError(f"table {table.name}: rows {', '.join(same)} would share directories; label them apart")
    found, workdir = [], location(workdir)
    for row in table.rows:
        for seed in table.seeds:
            directory, config = workdir / _slug(row.label) / f"seed{seed}", override(table.config(row, seed))
            if row.of is not None:
                start = str(workdir / _slug(row.of) / f"seed{seed}")
                config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=start))
            found.append(_prepared(Job(row, seed, config, directory)))
    return found


def _prepared(job: Job) -> Job:
    """Return a job whose config says how the weights that it starts from want their images, if they are there yet."""
    return dataclasses.replace(job, config=with_preprocessing(job.config, job.directory))


def overridden(table: Table, override: Override) -> Table:
    """Return the table with a caption that states which fields of its recipe `override` changes."""
    pairs = [(config, override(config)) for row in table.rows for config in [table.config(row, table.seeds[0])]]
    changed = dict.fromkeys(text for config, other in pairs for text in config.differences(other))
    if not changed:
        return table
    texts = "; ".join(text.replace(" != ", " became ") for text in changed)
    return dataclasses.replace(table, caption=f"{table.caption} These runs overrode fields of their recipe: {texts}.")


def select(table: Table, labels: Sequence[str]) -> Table:
    """Return the table with only the rows named, and those that they start from; none named keeps all.

    Unknown ones raise `UsageError`.
    """
    known = [row.label for row in table.rows]
    for label in labels:
        if label not in known:
            raise unknown("row", label, known)
    wanted = {*labels, *(row.of for row in table.rows if row.label in labels)}
    return dataclasses.replace(table, rows=tuple(row for row in table.rows if not labels or row.label in wanted))


def complete(table: Table, everything: Sequence[Job], request: Request, command: Sequence[str], *, root: Path) -> None:
    """Train what is not complete of the rows asked for, then render the table and print it.

    `command` starts the same in another process, to which it adds the request for a single row. `root` is that of
    `render`.
    """
    _require_consistent(request)
    labels = {row.label for row in select(table, request.rows).rows}
    wanted = [job for job in everything if job.row.label in labels]
    _train([job for job in wanted if job.row.of is None], request, command)
    if any(job.row.of for job in wanted):
        everything = [_prepared(job) if job.row.of else job for job in everything]
        _train([job for job in everything if job.row.of and job.row.label in labels], request, command)
    if table.probe is not None:
        for job in wanted:
            _probe(job, table.probe)
    if request.render:
        show(render(table, everything, request.workdir, root=root))


def _train(wanted: Sequence[Job], request: Request, command: Sequence[str]) -> None:
    """Train what is not complete of some runs, none of which starts from another."""
    pending = [job for job in wanted if not job.done]
    if request.stack:
        run_missing_stacked(wanted)
    elif request.executor == "ray":
        runs = [Run(job.name, job.config, job.directory) for job in pending]
        cluster = RayCluster(request.address, request.jobs, request.cpus, request.gpus)
        if runs:
            train_on_ray(runs, location(request.workdir), cluster)
    else:
        _complete_here(pending, request, command)


def _require_consistent(request: Request) -> None:
    for name, least in (("jobs", 1), ("cpus", 1), ("gpus", 0)):
        value = getattr(request, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} is {value} but must be at least {least}")
    given = [f"--{name}" for name in ("address", "cpus", "gpus") if getattr(request, name) is not None]
    if given and request.executor != "ray":
        raise UsageError(f"{', '.join(given)} given with --executor {request.executor}, but only ray takes them")
    if request.stack and (request.executor != "local" or (request.jobs or 1) > 1):
        given = f"--executor {request.executor} --jobs {request.jobs or 1}"
        raise UsageError(f"--stack given with {given}, but it is one program of one process: --executor local --jobs 1")


def _complete_here(pending: Sequence[Job], request: Request, command: Sequence[str]) -> None:
    for job in pending[:1]:
        set_up(job.config)  # a fault that all runs share is said once, before any process starts
    jobs = request.jobs or 1
    if jobs > 1 and len({job.row.label for job in pending}) > 1:
        part = [*command, "--workdir", str(request.workdir), "--no-render", "--rows"]
        run_missing_in_parallel(pending, jobs, lambda label: [*part, label])
    else:
        run_missing(pending)


def show(files: Sequence[Location]) -> None:
    """Print the paths of rendered files, then the Markdown among them."""
    print(*files, sep="\n")
    for file in files:
        if file.suffix == ".md":
            print(file.read_text())


def run_missing(pending: Sequence[Job]) -> None:
    """Train the runs that are not complete, one after another; a run that was cut off goes on where it stopped."""
    for job in pending:
        start = time.perf_counter()
        result = train(job.config, job.directory, quiet=not sys.stderr.isatty())
        _say(job, result, time.perf_counter() - start)


def _probe(job: Job, data: DataConfig) -> None:
    """Judge the features of a run by a linear probe on a data set, unless that has been done."""
    file = job.directory / PROBE
    if not file.exists():
        found = transfer(weights.read(job.directory), data, Probing(shots=()))
        write_whole(file, f"{json.dumps(dataclasses.asdict(found), allow_nan=False, indent=2)}\n".encode())


def _say(job: Job, result: Result, seconds: float) -> None:
    print(f"{job.name}: test top-1 {result.top1:.2f} % after {seconds:.1f} s", flush=True)


def run_missing_stacked(wanted: Sequence[Job]) -> None:
    """Train those of some runs that are not complete, stacked where they differ in seeds alone; print what that gains.

    Which are stacked hangs on all the runs, so that a table which was cut off goes on with the same stacks.
    """
    groups: dict[Config, list[Job]] = {}
    for job in wanted:
        groups.setdefault(but_for_seeds(job.config), []).append(job)
    for group in groups.values():
        if all(job.done for job in group):
            continue
        count = room([job.config for job in group])
        if count < len(group):
            print(f"{_labels(group)}: the device has room for {count} of {len(group)} runs at a time", flush=True)
        for start in range(0, len(group), count):
            _run_stacked(group[start : start + count])


def _run_stacked(group: Sequence[Job]) -> None:
    start, pending = time.perf_counter(), [job for job in group if not job.done]
    if len(group) == 1:
        run_missing(pending)
        return
    done = train_stacked([job.config for job in group], [job.directory for job in group], quiet=not sys.stderr.isatty())
    for job, result in zip(group, done.results, strict=True):
        if job in pending:
            _say(job, result, time.perf_counter() - start)
    if done.alone:
        print(
            f"{_labels(group)}: {len(pending)} runs in one program: {done.together:,.0f} images/s together, "
            f"{done.alone:,.0f} images/s of one alone: {done.together / done.alone:.2f} times",
            flush=True,
        )


def _labels(group: Sequence[Job]) -> str:
    return ", ".join(dict.fromkeys(job.row.label for job in group))


def run_missing_in_parallel(pending: Sequence[Job], workers: int, command: Callable[[str], list[str]]) -> None:
    """Train with `workers` processes, each on its share of the cores and on one row (one compilation) at a time.

    `command` makes the command line for a row. SIGTERM asks the processes to stop, with a checkpoint, and SIGINT ends
    them at once; they also end when this process is killed. Raises `Stopped` then, and `RunError` that names the rows
    whose process failed.
    """
    rows = list(dict.fromkeys(job.row.label for job in pending))
    cores = sorted(os.sched_getaffinity(0))
    shares = collections.deque(cores[worker::workers] or cores for worker in range(workers))
    started: list[subprocess.Popen[bytes]] = []

    def work(label: str) -> int:
        share = shares.popleft()
        os.sched_setaffinity(0, share)  # of this thread, and so of the process it starts
        try:
            if requests.reason:
                return 0
            started.append(process := subprocess.Popen(command(label), env=os.environ | ending_with_this_process()))
            return process.wait()
        finally:
            shares.append(share)

    asked: set[subprocess.Popen[bytes]] = set()
    with Requests() as requests, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, label) for label in rows]
        while concurrent.futures.wait(futures, timeout=POLL).not_done:
            for process in set(started) - asked if requests.reason else ():
                process.kill() if requests.reason == "SIGINT" else process.terminate()
                asked.add(process)
    if requests.reason:
        raise Stopped(f"{requests.reason}: the runs of the table have stopped; the same command goes on")
    codes = {label: future.result() for label, future in zip(rows, futures, strict=True)}
    failed = [f"{label} (exit code {code})" for label, code in codes.items() if code]
    if failed:
        raise RunError(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}; their messages are above")


def render(table: Table, all_jobs: Sequence[Job], workdir: Location, *, root: Path) -> list[Location]:
    """Write results.jsonl, table.md and index.html from the complete runs; return their paths.

    `root` is the directory of the table's file, where `Table.baseline_results` is looked for.
    """
    finished = [job for job in all_jobs if job.done]
    records = [_record(job) for job in finished]
    names, confusions = _confusions(finished)
    maps = [_class_maps(job) for job in finished if job.config.model.head == "identity" and job.seed == table.seeds[0]]
    twin = root / table.baseline_results if table.baseline_results else None
    summaries = summarise(table, records, read_records(twin) if twin and twin.exists() else ())
    html = page.render(
        table,
        summaries,
        records,
        confusions=confusions,
        class_names=names,
        class_maps=maps,
        recipe=shared_fields([job.config for job in all_jobs]),
    )
    lines = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
    return _write(workdir, {"results.jsonl": lines, "table.md": markdown(table, summaries), "index.html": html})


def _write(workdir: Location, texts: Mapping[str, str]) -> list[Location]:
    workdir = location(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (workdir / name).write_text(text)
    return [workdir / name for name in texts]


def read_records(file: Path) -> list[Record]:
    """Read a results.jsonl; a line that is no `Record` raises `UsageError`."""
    records = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            records.append(Record(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise UsageError(f"{file}, line {number} is no record: {error}") from error
    return records


def render_counts(table: CountTable, workdir: Location) -> list[Location]:
    """Write table.md and index.html of a table of counts; return their paths."""
    return _write(workdir, {"table.md": count_markdown(table), "index.html": page.render_counts(table)})


def _record(job: Job) -> Record:
    with RunDirectory(job.directory, job.config, create=False) as directory:
        result = directory.result()
        if result is None:
            raise UsageError(f"{job.directory} is not complete")
        rows = directory.rows(job.config.run.epochs)
        environment = json.loads((directory.path / "environment.json").read_text())
    record = record_of(job.row.label, job.seed, result, rows=rows, environment=environment)
    file = job.directory / PROBE
    probe = json.loads(file.read_text())["scores"][0]["top1"] if file.exists() else None
    return dataclasses.replace(record, probe=probe)


def record_of(label: str, seed: int, result: Result, *, rows: Rows, environment: Mapping[str, str]) -> Record:
    """Return the record of a finished run from what its directory holds: result, rows of metrics, environment."""
    return Record(
        label=label,
        seed=seed,
        top1=result.top1,
        top5=result.top5,
        loss=result.loss,
        parameters=result.parameters,
        curve=[row for row in rows if evaluated_on(row)],
        images_per_second=result.images_per_second,
        environment=environment,
        finished=result.finished,
        seconds=result.seconds,
    )


def shared_fields(configs: Sequence[Config]) -> dict[str, str]:
    """Return the fields that all configs share, as text: those that are not at their default, and the `ESSENTIAL`."""
    defaults, (first, *others) = Config().to_dict(), [config.to_dict() for config in configs]
    return {
        name: ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        for section, fields in first.items()
        for field, value in fields.items()
        if all(other[section][field] == value for other in others)
        and ((name := f"{section}.{field}") in ESSENTIAL or value != defaults[section][field])
    }


def _confusions(finished: Sequence[Job]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return class names and, per row, counts [true, predicted] summed over seeds.

    A row over the first classes only has a smaller matrix; its names are the first of the names returned.
    """
    names: tuple[str, ...] = ()
    confusions: dict[str, np.ndarray] = {}
    for job in finished:
        own = datasets.resolve(job.config.data).class_names
        names = max(names, own, key=len)
        with (job.directory / "predictions.npz").open("rb") as stream, np.load(stream) as file:
            counts = np.zeros((len(own), len(own)), np.int64)
            read = file["labels"] >= 0
            np.add.at(counts, (file["labels"][read], file["predictions"][read]), 1)
        confusions[job.row.label] = confusions.get(job.row.label, 0) + counts
    return names, confusions


def _class_maps(job: Job, count: int = 6) -> ClassMaps:
    """Return the class maps of a few test images under the run's last checkpoint."""
    setup = set_up(job.config)
    with RunDirectory(job.directory, job.config, create=False) as directory:
        state = restore(setup, directory)
    with (job.directory / "predictions.npz").open("rb") as stream, np.load(stream) as file:
        read = np.flatnonzero(file["labels"] >= 0)
        chosen = read[pick_examples(file["labels"][read], file["predictions"][read], count)]
    images, labels = setup.data.examples("test", chosen.astype(np.int32))
    maps = class_maps(setup.program, state, images)
    return ClassMaps(job.row.label, images, maps, labels, setup.data.class_names)


def _slug(label: str) -> str:
    """Return a directory name for a row's label.

    >>> _slug("ResNet-32, 100 ch. / identity")
    'resnet-32-100-ch-identity'
    """
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
