"""`jaxclf table --executor ray`: rows equal the serial ones, whatever becomes of the workers."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxclf.cli.main import main
from jaxclf.config import Config
from jaxclf.devices.preemption import Requests
from jaxclf.errors import Stopped, UsageError
from jaxclf.report import ray_executor
from jaxclf.report.ray_executor import Outcome, RayCluster, Run
from tests.conftest import script

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "tiny.py")
MIDDLE = 160
"""Steps to the first of the two checkpoints of a run, 64 epochs of five."""
RUNS = ("learned-head/seed0", "learned-head/seed1")


def table(workdir: Path, *flags: str) -> list[str]:
    """Return the command that runs the two long runs of a row."""
    length = ["--run.epochs", "64", "--run.eval-every", "64", "--run.checkpoint-every", str(MIDDLE)]
    file = Path(__file__).with_name("two_heads.py")
    return ["table", str(file), "--workdir", str(workdir), "--rows", "Learned head", *length, *flags]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table, one run after another in this process."""
    workdir = tmp_path_factory.mktemp("serial")
    assert main(table(workdir)) == 0
    return workdir


@dataclasses.dataclass(frozen=True)
class Started:
    """A cluster of one machine with room for two runs."""

    address: str
    temporary: Path
    """The temporary directory of its workers."""


@pytest.fixture(scope="module")
def cluster(ray_secret: None) -> Iterator[Started]:
    port = script("fake_gcs").free_port()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as home:  # short: it holds sockets
        (temporary := Path(home) / "tmp").mkdir()
        threads = RayCluster().threads
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--port", str(port), "--num-cpus", str(2 * threads), "--include-dashboard", "false"]
        command += ["--temp-dir", home, "--node-ip-address", "127.0.0.1"]
        environment = {**os.environ, "TMPDIR": str(temporary)}
        with (Path(home) / "said").open("w") as said:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        try:
            wait_for(lambda: "Ray runtime started" in (Path(home) / "said").read_text(), "the cluster to start")
            yield Started(f"127.0.0.1:{port}", temporary)
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for(condition: Any, what: str, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)
    return found


def holder(lock: Path) -> int | None:
    """Return the id of the process, not this one, that has a run directory's lock open."""
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if entry.readlink() == lock and int(entry.parts[2]) != os.getpid():
                return int(entry.parts[2])
        except OSError:  # another user's, or gone
            continue
    return None


def kill_worker(root: Path, pattern: str) -> tuple[int, float]:
    """Kill the worker of the first run below `root` that has written its first checkpoint; return its seed, and when.

    The checkpoint's time tells later that it is still the one that was written before.
    """
    found = wait_for(lambda: next(iter(root.glob(f"{pattern}/checkpoints/{MIDDLE}/sha256.json")), None), "a checkpoint")
    directory = found.parents[2]
    process = holder(directory / "lock")
    assert process is not None, "the run ended before the kill"
    os.kill(process, signal.SIGKILL)
    wait_for(lambda: holder(directory / "lock") != process, "the end of the worker", 30)
    assert not (directory / "result.json").exists(), "the run ended before the kill"
    return json.loads((directory / "config.json").read_text())["run"]["seed"], found.stat().st_mtime


def ended(workdir: Path) -> dict[str, Any]:
    """Return the results that must be the same however a table was run."""
    found = {}
    for run in RUNS:
        result = json.loads((workdir / run / "result.json").read_text())
        environment = json.loads((workdir / run / "environment.json").read_text())
        parts = (result["sha256"], result["top1"], result["loss"], environment["xla_threads"])
        found[run] = (*parts, (workdir / run / "metrics.jsonl").read_bytes())
    return found


def records(workdir: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    times = ("images_per_second", "finished", "seconds")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the worker to kill in /proc")
@pytest.mark.parametrize("shared", [True, False], ids=["shared directory", "no shared directory"])
def test_a_table_that_loses_a_worker_equals_the_serial_one(
    shared: bool,
    serial: Path,
    cluster: Started,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    root, pattern = tmp_path / "table", "learned-head/seed[01]"
    if not shared:
        root, pattern = cluster.temporary, f"jaxclf-{os.getuid()}/*"
        hidden = contextlib.nullcontext(str(tmp_path / "of another machine"))
        monkeypatch.setattr(ray_executor, "_token", lambda _: hidden)
    command = table(tmp_path / "table", "--executor", "ray", "--address", cluster.address, "--jobs", "2")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_worker, root, pattern)
        code = main(command)
    out, err = capfd.readouterr()
    assert code == 0, err
    seed, written = killed.result()
    lost = f"jaxclf: Learned head, seed {seed}: its worker was lost (WorkerCrashedError); another takes the run over"
    assert [line for line in err.splitlines() if line.startswith("jaxclf")] == [lost]
    assert "Traceback" not in err
    said = sorted(line.split(":")[0] for line in out.splitlines() if ": test top-1" in line)
    assert said == ["Learned head, seed 0", "Learned head, seed 1"]
    assert ended(tmp_path / "table") == ended(serial)
    assert records(tmp_path / "table") == records(serial)
    assert (tmp_path / "table" / "table.md").read_text() == (serial / "table.md").read_text()
    manifest = tmp_path / "table" / "learned-head" / f"seed{seed}" / "checkpoints" / str(MIDDLE) / "sha256.json"
    assert manifest.stat().st_mtime == pytest.approx(written, abs=1e-3)  # it went on from there
    names = sorted(path.name for path in (tmp_path / "table").iterdir())
    assert names == ["index.html", "learned-head", "results.jsonl", "table.md"]
    assert not any(cluster.temporary.glob(f"jaxclf-{os.getuid()}/*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_signal_ends_the_workers_and_the_same_command_goes_on(
    sent: signal.Signals, serial: Path, cluster: Started, tmp_path: Path
) -> None:
    command = table(tmp_path, "--no-render")
    driver = subprocess.Popen(
        [sys.executable, "-m", "jaxclf", *command, "--executor", "ray", "--address", cluster.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoint = tmp_path / RUNS[0] / "checkpoints" / str(MIDDLE) / "sha256.json"
    wait_for(lambda: checkpoint.exists() or driver.poll() is not None, "a checkpoint")
    driver.send_signal(sent)
    out, err = driver.communicate(timeout=120)
    assert (driver.returncode, out) == (75, ""), err
    assert err.splitlines()[-1] == f"jaxclf: stopped by {sent.name}; the same command goes on from the last checkpoints"
    assert "Traceback" not in err
    written = checkpoint.stat().st_mtime
    wait_for(lambda: not any(holder(lock) for lock in tmp_path.glob("*/*/lock")), "the end of the workers", 10)
    assert not list(tmp_path.glob("*/*/result.json"))
    assert main(command) == 0
    assert checkpoint.stat().st_mtime == written
    assert ended(tmp_path) == ended(serial)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_complete(
    tmp_path: Path, ray_secret: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a cluster of its own; a run that diverges is not tried again."""
    monkeypatch.chdir(ROOT)
    command = ["sweep", TINY, "--grid", "optim.lr=1e30,0.1", "--seeds", "0", "--workdir", str(tmp_path)]
    assert main([*command, "--executor", "ray", "--jobs", "2", "--cpus", "1"]) == 2
    out, err = capfd.readouterr()
    first, last = (line for line in err.splitlines() if line.startswith("jaxclf"))
    assert first.startswith("jaxclf: lr=1e30, seed 0: step ")
    assert "loss or update is not finite (lr 1e+30)" in first
    assert last == "jaxclf: 1 of 2 runs failed: lr=1e30, seed 0; their messages are above"
    assert "Traceback" not in err
    assert out.startswith("lr=0.1, seed 0: test top-1 ")
    assert not (tmp_path / "lr-1e30" / "seed0" / "result.json").exists()
    environment = json.loads((tmp_path / "lr-0-1" / "seed0" / "environment.json").read_text())
    assert environment["xla_threads"] == "1"  # --cpus


@pytest.mark.slow
def test_a_fault_that_all_runs_share_is_said_once(
    tmp_path: Path, cluster: Started, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = table(tmp_path, "--data.batch-size", "2000", "--executor", "ray", "--address", cluster.address)
    assert main(command) == 2
    assert capfd.readouterr().err == "jaxclf: data.batch_size 2000 leaves no whole batch of 1352\n"
    assert list(tmp_path.iterdir()) == []


# Without a cluster.


def test_without_ray_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(table(tmp_path / "w", "--executor", "ray")) == 2
    said = "jaxclf: --executor ray needs Ray, which is not installed: pip install 'jaxclf[ray]'\n"
    assert capsys.readouterr().err == said
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--address auto --gpus 1", "--address, --gpus given with --executor local, but only ray takes them"),
        ("--jobs 0", "--jobs is 0 but must be at least 1"),
        ("--executor ray --cpus 0", "--cpus is 0 but must be at least 1"),
        ("--executor ray --gpus -1", "--gpus is -1 but must be at least 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(table(tmp_path, *flags.split())) == 2
    assert capsys.readouterr().err == f"jaxclf: {message}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_driver_leaves_its_gpu_to_the_runs(tmp_path: Path) -> None:
    """With a platform that does not exist, the first use of a device would fail."""
    script = """
        import sys
        from jaxclf.report import tables
        from jaxclf.cli.main import main
        tables.train_on_ray = lambda runs, *_: print(*(run.name for run in runs), sep="; ")
        recipe, workdir = sys.argv[1:]
        sys.exit(main(["sweep", recipe, "--grid", "optim.lr=1,2", "--seeds", "0", "--workdir", workdir,
                       "--executor", "ray", "--no-render"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), TINY, str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "lr=1, seed 0; lr=2, seed 0\n"), done.stderr


@pytest.mark.parametrize("address", ["nowhere", "ray://127.0.0.1:10001", "127.0.0.1:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError) as refused, ray_executor._connected(SimpleNamespace(), RayCluster(address)):
        pass
    assert str(refused.value) == f"--address is '{address}' but must be HOST:PORT of a Ray cluster, or auto"


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UsageError) as refused, ray_executor._connected(SimpleNamespace(), RayCluster(address)):
            pass
    assert str(refused.value).startswith(f"--address {address}: no Ray cluster can be reached there (")
    assert time.monotonic() - start < 1


class Lost(Exception):
    """Stands for the errors of a lost worker."""


class Other(Exception):
    """Stands for Ray's base class of errors."""


def stand_in(answers: dict[str, list[Any]], machines: tuple[dict[str, float], ...] = ()) -> Any:
    """Return what `_train_all` and `_options` use of Ray; `answers` are by seed, an exception is raised."""
    names = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "ObjectLostError")
    errors = SimpleNamespace(RayError=Other, **dict.fromkeys(names, Lost))

    def get(task: str) -> Any:
        answer = answers[task].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    looks = itertools.count()

    def wait(tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        done = next(looks) % 2  # every other look finds nothing yet
        return tasks[:done], tasks[done:]

    total = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in ("CPU", "GPU")}
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    return SimpleNamespace(exceptions=errors, get=get, wait=wait, nodes=lambda: nodes, cluster_resources=lambda: total)


def seeded(seed: int, directory: Path) -> Run:
    config = Config()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))
    return Run(f"row, seed {seed}", config, directory / f"seed{seed}")


def test_a_run_that_loses_every_worker_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, asked = Outcome("far", 2.0, (), top1=50.0), Outcome("far", 1.0, (), stopped="stopped at step 3 by SIGTERM")
    ray = stand_in({"0": [Lost()] * 5, "1": [Lost(), asked, good], "2": [Other("no such thing")]})
    task = SimpleNamespace(remote=lambda config, *_: str(Config.from_json(config).run.seed))
    runs = [seeded(seed, tmp_path) for seed in range(3)]
    assert ray_executor._train_all(ray, task, runs, 1, "token", Requests()) == ["row, seed 2", "row, seed 0"]
    out, err = capsys.readouterr()
    assert out == "row, seed 1: test top-1 50.00 % after 2.0 s on far\n"
    for seed, lost, times in ((0, "Lost", 4), (1, "Lost", 1), (1, "stopped at step 3 by SIGTERM", 1)):
        assert err.count(f"row, seed {seed}: its worker was lost ({lost}); another takes the run over\n") == times
    assert "row, seed 2: unexpected: no such thing\n" in err
    assert err.endswith("row, seed 0: 5 workers were lost, the last by Lost; Ray's logs say why\n")


def test_a_run_takes_a_gpu_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_PLATFORMS", "NPROC", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_executor, "cores", lambda: 6)
    ray = stand_in({}, ({"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}))
    options = ray_executor._options(ray, RayCluster("auto"))
    variables = options["runtime_env"]["env_vars"]
    assert (options["num_cpus"], options["num_gpus"], options["max_calls"]) == (1, 1, 1)
    assert "JAX_PLATFORMS" not in variables
    options = ray_executor._options(ray, RayCluster("auto", gpus=0))
    variables = options["runtime_env"]["env_vars"]
    assert (options["num_cpus"], options["num_gpus"]) == (6, 0)
    assert [variables[name] for name in ("JAX_PLATFORMS", "NPROC", "OMP_NUM_THREADS")] == ["cpu", "6", "6"]
    variables = ray_executor._options(ray, RayCluster("auto", gpus=0, cpus=2))["runtime_env"]["env_vars"]
    assert (variables["NPROC"], variables["OMP_NUM_THREADS"]) == ("2", "6")


def test_what_no_machine_has_is_waited_for_elsewhere_and_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    ray = stand_in({}, ({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}))
    said = "a run takes 3 CPUs and 1 GPUs (--cpus, --gpus) of one machine, but there are 4 and 0 or 2 and 1"
    assert ray_executor._options(ray, RayCluster("auto", cpus=3, gpus=1))["num_gpus"] == 1
    assert capsys.readouterr().err == f"jaxclf: warning: {said}; waiting for a larger machine to join\n"
    with pytest.raises(UsageError) as refused:
        ray_executor._options(ray, RayCluster(cpus=3, gpus=1))
    assert str(refused.value) == said


def test_a_begun_run_that_the_worker_cannot_see_is_not_trained_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "seed0"
    outcome = ray_executor._work(Config().to_json(), str(directory), str(tmp_path / "token"), begun=True)
    assert outcome.error is not None
    assert outcome.error.startswith(f"{directory} holds a begun run that this machine cannot see")
    assert not directory.exists()


def test_a_directory_comes_home_whole_or_not_at_all(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "row" / "seed0"
    (there / "checkpoints" / "21").mkdir(parents=True)
    for name, text in (("lock", ""), ("result.json", "{}"), ("checkpoints/21/array", "bytes")):
        (there / name).write_text(text)
    archive = ray_executor._pack(there)
    assert archive.dtype == np.uint8
    ray_executor._unpack(archive, here)
    files = sorted(str(path.relative_to(here)) for path in here.rglob("*") if path.is_file())
    assert files == ["checkpoints/21/array", "result.json"]
    (here / "result.json").write_text("older")
    run, outcome = seeded(0, tmp_path / "row"), Outcome("far", 1.0, (), archive=archive)
    said = ray_executor._finish(run, outcome)
    assert said == f"the run of far could not be written to {here}: Directory not empty"
    assert (here / "result.json").read_text() == "older"
    assert [path.name for path in here.parent.iterdir()] == ["seed0"]


def test_warnings_of_a_worker_are_said_with_the_runs_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome("far", 1.0, ("it goes on under another environment",), error="step 3: the disk is full")
    assert ray_executor._finish(seeded(0, tmp_path), outcome) == "step 3: the disk is full (on far)"
    assert capsys.readouterr().err == "jaxclf: warning: row, seed 0: it goes on under another environment\n"


def test_a_request_that_was_heard_while_ray_waited_stops_the_table(tmp_path: Path) -> None:
    """And no answer that came meanwhile is taken."""
    ray, requests = stand_in({"0": []}), Requests()
    task = SimpleNamespace(remote=lambda config, *_: str(Config.from_json(config).run.seed))

    def wait(tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        assert timeout < 1
        os.kill(os.getpid(), signal.SIGINT)
        return tasks, []

    ray.wait = wait
    with requests, pytest.raises(Stopped, match="stopped by SIGINT; the same command goes on"):
        ray_executor._train_all(ray, task, [seeded(0, tmp_path)], 1, "token", requests)
