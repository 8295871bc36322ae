"""`jaxclf table`: runs what is missing, and nothing else; renders what there is."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jaxclf.cli.main import main
from jaxclf.config import Config, DataConfig, Request
from jaxclf.errors import RunError, UsageError
from jaxclf.report import tables
from jaxclf.report.experiment import Row
from tests.report.two_heads import get_table
from tests.tiers import quick

pytestmark = pytest.mark.long

RUNS = ["learned-head/seed0", "learned-head/seed1", "identity/seed0", "identity/seed1"]


def table(workdir: Path, *flags: str) -> list[str]:
    """Return the command that runs the table for one epoch."""
    file = Path(__file__).with_name("two_heads.py")
    return ["table", str(file), "--workdir", str(workdir), "--run.epochs", "1", *flags]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, run one after another."""
    workdir = tmp_path_factory.mktemp("table")
    assert main(table(workdir)) == 0
    return workdir


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def result_times(workdir: Path) -> dict[str, int]:
    return {run: (workdir / run / "result.json").stat().st_mtime_ns for run in RUNS}


def test_every_run_has_its_directory_and_the_overrides(rendered: Path) -> None:
    stated = "These runs overrode fields of their recipe: run.epochs: 5 became 1."
    assert all(stated in (rendered / name).read_text() for name in ("table.md", "index.html"))
    for run in RUNS:
        config = json.loads((rendered / run / "config.json").read_text())
        assert (config["run"]["epochs"], config["run"]["seed"]) == (1, int(run[-1]))
        assert (rendered / run / "result.json").exists()


def test_rendered_files_show_all_runs(rendered: Path) -> None:
    found = records(rendered)
    for record, run in zip(found, RUNS, strict=True):
        assert (record["label"].lower().replace(" ", "-"), record["seed"]) == (run[:-6], int(run[-1]))
        result = json.loads((rendered / run / "result.json").read_text())
        assert all(record[name] == result[name] for name in ("top1", "top5", "loss", "parameters"))
        assert [point["epoch"] for point in record["curve"]] == [1]
        assert record["environment"]["jax"]
    text = (rendered / "table.md").read_text()
    assert "| digits | Learned head |" in text
    assert "| digits | identity |" in text
    assert text.count(" | 2 | ") == 2
    page = (rendered / "index.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "Two heads" in page
    assert "data:image/png;base64," in page  # the class maps of the identity row's images


def saved(jobs: list[tables.Job], label: str) -> list[tables.Job]:
    """Return a row's jobs with the configs that their directories hold."""
    return [
        dataclasses.replace(job, config=Config.from_json((job.directory / "config.json").read_text()))
        for job in jobs
        if job.row.label == label
    ]


def test_page_has_class_maps_of_the_first_identity_run(rendered: Path) -> None:
    maps = tables._class_maps(saved(tables.jobs(get_table(), rendered), "identity")[0])
    assert maps.maps.shape[1:] == (4, 4, 10)
    assert 2 < len(maps.images) <= 6  # after one epoch few classes have an image that is right


def test_complete_table_is_only_rendered(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, rows = result_times(rendered), (rendered / "results.jsonl").read_text()
    (rendered / "table.md").unlink()
    assert main(table(rendered)) == 0
    assert result_times(rendered) == before
    assert (rendered / "results.jsonl").read_text() == rows
    out = capsys.readouterr().out
    assert ": test top-1" not in out  # nothing was trained
    assert (rendered / "table.md").read_text() in out


@pytest.mark.slow
def test_only_what_is_missing_runs(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run was cut off before its result, and a row never began, without which the others are rendered."""
    before, rows = result_times(rendered), records(rendered)
    checkpoint = rendered / RUNS[1] / "checkpoints" / "5"
    written = checkpoint.stat().st_mtime_ns
    (rendered / RUNS[1] / "result.json").unlink()
    shutil.rmtree(rendered / "identity")
    assert main(table(rendered, "--rows", "Learned head")) == 0
    assert [record["label"] for record in records(rendered)] == ["Learned head", "Learned head"]
    assert not (rendered / "identity").exists()
    assert "| digits | identity | – | 0 | – |" in (rendered / "table.md").read_text()
    assert main(table(rendered)) == 0
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": test top-1" in line]
    assert said == ["Learned head, seed 1", "identity, seed 0", "identity, seed 1"]
    assert [run for run in RUNS if result_times(rendered)[run] != before[run]] == RUNS[1:]
    assert checkpoint.stat().st_mtime_ns == written  # it went on from there
    for row in (*rows, *(again := records(rendered))):
        for name in ("images_per_second", "finished", "seconds"):
            row.pop(name)
    assert again == rows


@pytest.mark.slow
def test_features_of_finished_runs_are_probed_once(rendered: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "table"
    shutil.copytree(rendered, workdir)
    probed = dataclasses.replace(get_table(), probe=DataConfig("digits", classes=3))
    everything = [
        dataclasses.replace(job, config=Config.from_json((job.directory / "config.json").read_text()))
        for job in tables.jobs(probed, workdir)
    ]
    files, times = [workdir / run / tables.PROBE for run in RUNS], []
    for _ in range(2):
        tables.complete(probed, everything, Request(workdir), [], root=workdir)
        found = [json.loads(file.read_text()) for file in files]
        assert [one["scores"][0]["classifier"] for one in found] == ["linear probe"] * 4
        assert {one["num_classes"] for one in found} == {3}
        assert [one["probe"] for one in records(workdir)] == [one["scores"][0]["top1"] for one in found]
        times.append([file.stat().st_mtime_ns for file in files])
    assert times[0] == times[1]
    assert "| gap | probe on digits % |" in (workdir / "table.md").read_text()
    assert 'data-name="Probe, %"' in (workdir / "index.html").read_text()
    assert {one["probe"] for one in records(rendered)} == {None}


def test_row_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table(tmp_path, "--rows", "identiy")) == 2
    assert capsys.readouterr().err == (
        "jaxclf: unknown row 'identiy'; did you mean 'identity'? Valid: Learned head, identity\n"
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="unknown row"):
        tables.select(get_table(), ["learned head"])
    assert [row.label for row in tables.select(get_table(), ["identity"]).rows] == ["identity"]
    assert tables.select(get_table(), []) == get_table()
    rows = (*get_table().rows, Row("again", "digits", {"head": "learned"}, of="Learned head"))
    derived = dataclasses.replace(get_table(), rows=rows)
    assert [row.label for row in tables.select(derived, ["again"]).rows] == ["Learned head", "again"]


@pytest.mark.slow
def test_a_row_of_another_starts_from_its_weights_and_runs_after_it(rendered: Path, tmp_path: Path) -> None:
    """Its runs of no epochs repeat the results of those that they start from."""
    given, workdir = get_table(), tmp_path / "table"
    shutil.copytree(rendered / "learned-head", workdir / "learned-head")

    def recipe(head: str, epochs: int = 1) -> Config:
        config = given.recipe(head)
        return dataclasses.replace(config, run=dataclasses.replace(config.run, epochs=epochs))

    rows = (given.rows[0], Row("again", "digits", {"head": "learned", "epochs": 0}, of="Learned head"))
    whole = dataclasses.replace(given, recipe=recipe, rows=rows)
    for _ in range(2):
        tables.complete(whole, tables.jobs(whole, workdir), Request(workdir), [], root=tmp_path)
    found = {(record["label"], record["seed"]): record for record in records(workdir)}
    for seed in (0, 1):
        start, again = found["Learned head", seed], found["again", seed]
        assert (again["top1"], again["loss"]) == (start["top1"], start["loss"])
        assert again["curve"] == []


def test_run_directory_of_another_config_is_refused(rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(table(rendered, "--run.epochs", "2")) == 2
    assert "holds a run of another config (run.epochs: 1 != 2)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are shared out on Linux alone")
def test_parallel_jobs_name_a_failing_row_and_finish_the_table(
    tmp_path: Path,
    rendered: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On a share of the cores the last bits differ, so this checks that all runs are there, not their bits."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    (tmp_path / "identity").write_text("in the way")
    command = table(tmp_path, "--jobs", "2")
    assert main(command) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    *_, last = err.splitlines()
    assert last == "jaxclf: 1 of 2 rows failed: identity (exit code 2); their messages are above"
    assert f"jaxclf: cannot write to the run directory {tmp_path}/identity/seed0: Not a directory" in err
    assert (tmp_path / "learned-head" / "seed1" / "result.json").exists()  # the other row went on
    (tmp_path / "identity").unlink()
    assert main(command) == 0
    mine, theirs = records(tmp_path), records(rendered)
    assert [(r["label"], r["seed"], r["parameters"]) for r in mine] == [
        (r["label"], r["seed"], r["parameters"]) for r in theirs
    ]
    assert [r["top1"] for r in mine] == pytest.approx([r["top1"] for r in theirs], abs=15)
    assert "data:image/png;base64," in (tmp_path / "index.html").read_text()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are shared out on Linux alone")
def test_rows_share_the_cores_and_the_failing_one_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    everything, cores = tables.jobs(get_table(), tmp_path), os.sched_getaffinity(0)
    script = "import os, sys; print(*os.sched_getaffinity(0)); sys.exit(2 * (sys.argv[1] == 'identity'))"
    with pytest.raises(RunError, match=r"^1 of 2 rows failed: identity \(exit code 2\); their messages are above$"):
        tables.run_missing_in_parallel(everything, 2, lambda label: [sys.executable, "-c", script, label])
    assert os.sched_getaffinity(0) == cores
    one, other = ({int(core) for core in line.split()} for line in capfd.readouterr().out.splitlines())
    assert one | other == cores
    assert one == other or not one & other  # where there is one core, both have it


def test_records_of_a_twin_fill_their_column(rendered: Path, tmp_path: Path) -> None:
    table = dataclasses.replace(get_table(), baseline_results="results/twin.jsonl")
    finished = saved(tables.jobs(table, rendered), "Learned head")
    (tmp_path / "results").mkdir()
    tables.render(table, finished, tmp_path / "w", root=tmp_path)
    assert "PyTorch" not in (tmp_path / "w" / "table.md").read_text()  # there is no such file
    twin = [line | {"top1": 50.0 + line["seed"]} for line in records(rendered) if line["label"] == "identity"]
    (tmp_path / "results" / "twin.jsonl").write_text("".join(json.dumps(line) + "\n" for line in twin))
    tables.render(table, finished, tmp_path / "w", root=tmp_path)
    text = (tmp_path / "w" / "table.md").read_text()
    assert "| group | row | PyTorch here | jaxclf | n |" in text
    assert "| digits | identity | 50.50 ± 0.71, n 2 | " in text
    assert "50.50" in (tmp_path / "w" / "index.html").read_text()


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "twin.jsonl"
    for line, fault in (("{", "Expecting property name"), ('{"label": "a", "seeds": 0}', "argument")):
        file.write_text(line + "\n")
        with pytest.raises(UsageError, match=rf"twin\.jsonl, line 1 is no record: .*{fault}"):
            tables.read_records(file)


SLEEPER = (
    "import os, pathlib, sys, time\nfrom jaxclf.devices.preemption import end_with_parent\n"
    "end_with_parent()\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(100)"
)
DRIVER = (
    "import sys, types\nfrom jaxclf.report import tables\n"
    "rows = [types.SimpleNamespace(row=types.SimpleNamespace(label=label)) for label in 'abc']\n"
    "command = lambda label: [sys.executable, '-c', sys.argv[1], f'{sys.argv[2]}/{label}']\n"
    "tables.run_missing_in_parallel(rows, 2, command)"
)


@pytest.mark.parametrize("number", quick([signal.SIGTERM, signal.SIGINT, signal.SIGKILL], signal.SIGTERM))
def test_processes_of_a_table_end_with_it(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, SLEEPER, str(tmp_path)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(numbers := [file.read_text() for file in tmp_path.iterdir()]) < 2 or "" in numbers:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    driver.send_signal(number)
    _, said = driver.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert f"Stopped: {number.name}: the runs of the table have stopped" in said
    for process in map(int, numbers):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(process).wait(timeout=30)
    assert len(list(tmp_path.iterdir())) == 2  # the third row never began
