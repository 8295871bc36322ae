"""`jaxclf table`: runs what is missing, and nothing else; renders what there is."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from jaxclf.cli.main import main
from jaxclf.cli.recipe import load
from jaxclf.config import Config
from jaxclf.errors import RunError, UsageError
from jaxclf.report import tables

EXPERIMENT = """
from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, RunConfig
from jaxclf.report.experiment import Row, Table

def recipe(head):
    return Config(
        data=DataConfig(batch_size=256, drop_last=True, image_size=8), augment=AugmentConfig(pad=0, flip=False),
        model=ModelConfig("tests.tiny:Tiny", head, maps=10 if head == "identity" else None),
        run=RunConfig(epochs=5),
    )

def get_table():
    return Table(
        name="two",
        title="Two heads",
        caption="What is compared.",
        source="",
        recipe=recipe,
        rows=(Row("Learned head", "digits", {"head": "learned"}), Row("identity", "digits", {"head": "identity"})),
        seeds=(0, 1),
    )
"""
RUNS = ["learned-head/seed0", "learned-head/seed1", "identity/seed0", "identity/seed1"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("project") / "experiments" / "two.py"
    file.parent.mkdir()
    file.write_text(EXPERIMENT)
    return str(file)


@pytest.fixture(scope="module")
def rendered(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, run one after another, one epoch each."""
    workdir = tmp_path_factory.mktemp("table")
    assert main(["table", experiment, "--workdir", str(workdir), "--run.epochs", "1"]) == 0
    return workdir


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def result_times(workdir: Path) -> dict[str, int]:
    return {run: (workdir / run / "result.json").stat().st_mtime_ns for run in RUNS}


def test_every_run_has_its_directory_and_the_overrides(rendered: Path) -> None:
    for run in RUNS:
        config = json.loads((rendered / run / "config.json").read_text())
        assert config["run"]["epochs"] == 1
        assert config["run"]["seed"] == int(run[-1])
        assert (rendered / run / "result.json").exists()


def test_rendered_files_show_all_runs(rendered: Path) -> None:
    found = records(rendered)
    assert [(record["label"], record["seed"]) for record in found] == [
        ("Learned head", 0),
        ("Learned head", 1),
        ("identity", 0),
        ("identity", 1),
    ]
    for record, run in zip(found, RUNS, strict=True):
        result = json.loads((rendered / run / "result.json").read_text())
        assert {name: record[name] for name in ("top1", "top5", "loss", "parameters")} == {
            name: result[name] for name in ("top1", "top5", "loss", "parameters")
        }
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


def test_page_has_class_maps_for_the_identity_row_alone(experiment: str, rendered: Path) -> None:
    table = load(Path(experiment), "get_table")()
    jobs = tables.jobs(table, rendered, lambda config: config)
    maps = [tables._class_maps(job) for job in saved(jobs) if job.config.model.head == "identity" and job.seed == 0]
    assert [item.maps.shape[1:] for item in maps] == [(4, 4, 10)]
    assert 2 < len(maps[0].images) <= 6  # after one epoch few classes have an image that is right


def saved(jobs: list[tables.Job]) -> list[tables.Job]:
    """Give each job the config that its directory holds."""
    return [
        dataclasses.replace(job, config=Config.from_json((job.directory / "config.json").read_text())) for job in jobs
    ]


def test_complete_table_is_only_rendered(experiment: str, rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, rows = result_times(rendered), (rendered / "results.jsonl").read_text()
    (rendered / "table.md").unlink()
    assert main(["table", experiment, "--workdir", str(rendered), "--run.epochs", "1"]) == 0
    assert result_times(rendered) == before
    assert (rendered / "results.jsonl").read_text() == rows
    out = capsys.readouterr().out
    assert ": test top-1" not in out  # nothing was trained
    assert (rendered / "table.md").read_text() in out


def test_only_what_is_missing_runs(experiment: str, rendered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run was cut off before its result, one never began."""
    before, rows = result_times(rendered), records(rendered)
    checkpoint = rendered / RUNS[1] / "checkpoints" / "5"
    written = checkpoint.stat().st_mtime_ns
    (rendered / RUNS[1] / "result.json").unlink()
    shutil.rmtree(rendered / RUNS[2])
    command = ["table", experiment, "--workdir", str(rendered), "--run.epochs", "1"]
    assert main([*command, "--rows", "Learned head", "--no-render"]) == 0
    assert not (rendered / RUNS[2]).exists()
    assert (rendered / RUNS[1] / "result.json").exists()
    assert main(command) == 0
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if ": test top-1" in line]
    assert said == ["Learned head, seed 1", "identity, seed 0"]
    after = result_times(rendered)
    assert [run for run in RUNS if after[run] != before[run]] == [RUNS[1], RUNS[2]]
    assert checkpoint.stat().st_mtime_ns == written  # it went on from there
    for row in (*rows, *(again := records(rendered))):
        row.pop("images_per_second")
    assert again == rows


def test_unfinished_table_is_rendered_with_what_there_is(experiment: str, tmp_path: Path) -> None:
    command = ["table", experiment, "--workdir", str(tmp_path), "--run.epochs", "1", "--rows", "Learned head"]
    assert main(command) == 0
    assert [record["label"] for record in records(tmp_path)] == ["Learned head", "Learned head"]
    assert not (tmp_path / "identity").exists()
    assert "| digits | identity | – | 0 | – |" in (tmp_path / "table.md").read_text()


def test_row_that_does_not_exist_is_named(experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", experiment, "--workdir", str(tmp_path), "--rows", "identiy"]) == 2
    assert capsys.readouterr().err == (
        "jaxclf: unknown row 'identiy'; did you mean 'identity'? Valid: Learned head, identity\n"
    )
    assert list(tmp_path.iterdir()) == []
    table = load(Path(experiment), "get_table")()
    with pytest.raises(UsageError, match="unknown row"):
        tables.select(table, ["learned head"])
    assert [row.label for row in tables.select(table, ["identity"]).rows] == ["identity"]
    assert tables.select(table, []) == table


def test_number_of_jobs_must_be_positive(experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", experiment, "--workdir", str(tmp_path), "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "jaxclf: --jobs is 0 but must be at least 1\n"


def test_run_directory_of_another_config_is_refused(
    experiment: str, rendered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", experiment, "--workdir", str(rendered), "--run.epochs", "2"]) == 2
    assert "holds a run of another config (run.epochs: 1 != 2)" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are shared out on Linux alone")
def test_parallel_jobs_name_a_failing_row_and_finish_the_table(
    experiment: str,
    tmp_path: Path,
    rendered: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On a share of the cores the last bits differ, so this checks that all runs are there, not their bits."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    (tmp_path / "identity").write_text("in the way")
    command = ["table", experiment, "--workdir", str(tmp_path), "--jobs", "2", "--run.epochs", "1"]
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
def test_rows_share_the_cores_and_the_failing_one_is_named(
    experiment: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    everything, cores = tables.jobs(load(Path(experiment), "get_table")(), tmp_path), os.sched_getaffinity(0)
    script = "import os, sys; print(*os.sched_getaffinity(0)); sys.exit(2 * (sys.argv[1] == 'identity'))"
    with pytest.raises(RunError, match=r"^1 of 2 rows failed: identity \(exit code 2\); their messages are above$"):
        tables.run_missing_in_parallel(everything, 2, lambda label: [sys.executable, "-c", script, label])
    assert os.sched_getaffinity(0) == cores
    one, other = ({int(core) for core in line.split()} for line in capfd.readouterr().out.splitlines())
    assert one | other == cores
    assert one == other or not one & other  # where there is one core, both have it


def test_records_of_a_twin_fill_their_column(experiment: str, rendered: Path, tmp_path: Path) -> None:
    table = dataclasses.replace(load(Path(experiment), "get_table")(), baseline_results="results/twin.jsonl")
    everything = [job for job in tables.jobs(table, rendered) if (job.directory / "config.json").exists()]
    shutil.copytree(rendered, tmp_path / "w")
    (tmp_path / "results").mkdir()
    finished = saved(
        [dataclasses.replace(job, directory=tmp_path / "w" / job.directory.relative_to(rendered)) for job in everything]
    )
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
