"""How processes find each other, and what asks a run to stop."""

import http.server
import os
import signal
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax._src import distributed

from jaxclf.config import Cluster
from jaxclf.devices import cluster, preemption
from jaxclf.devices.layout import Layout, check_batch, one_device
from jaxclf.devices.preemption import Requests
from jaxclf.errors import RunError, UsageError

SRUN = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[007-009],other12",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}
MPIRUN = {
    "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::1,2620::3]:43370",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
}


def place(environment: dict[str, str]) -> tuple[str | None, int | None, int, str]:
    """Return the coordinator, number of processes, rank and visible devices with which JAX would connect."""
    state = distributed.State()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(jax.distributed, "initialize", state.initialize)
        patched.setattr("jax._src.distributed._jax.get_distributed_runtime_client", far_enough)
        try:
            with pytest.raises(UsageError, match=r"this process finds no others \(far enough\)"):
                cluster.join(Cluster())
            devices = jax.config.values["jax_cuda_visible_devices"]
            return state.coordinator_address, state.num_processes, state.process_id, devices
        finally:
            jax.config.update("jax_cuda_visible_devices", "all")
            jax.config.update("jax_rocm_visible_devices", "all")


def far_enough(*_: object, **__: object) -> None:
    raise RuntimeError("far enough")


def test_places_of_srun_and_mpirun() -> None:
    assert place(SRUN) == ("node007:61444", 6, 3, "1")
    assert place(SRUN | {"SLURM_STEP_NODELIST": "a5,b6"})[0] == "a5:61444"
    assert place(SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x6)"})[3] == "all"  # of the node
    assert place(SRUN | {"CUDA_VISIBLE_DEVICES": "3"})[3] == "all"  # that it is shown, which is one
    assert place(SRUN | {"CUDA_VISIBLE_DEVICES": "0,1"})[3] == "1"
    assert place(SRUN | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})[3] == "2,3"
    own = {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert place(MPIRUN) == ("fe80::1:62880", 4, 2, "2")
    uri = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
    assert place(MPIRUN | uri | own) == ("10.96.0.1:62624", 4, 2, "all")
    cluster.join(Cluster(launcher="none"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Cluster(coordinator="a:1", processes=2), "go together; missing: --process"),
        (Cluster(processes=2, process=0), "go together; missing: --coordinator"),
        (Cluster(coordinator="a:1", processes=2, process=2), "--process is 2 but must be from 0 to 1"),
        (Cluster(coordinator="a", processes=2, process=1), "--coordinator is 'a' but must be HOST:PORT"),
        (Cluster(launcher="slurm", coordinator="a:1", processes=2, process=1), "and so does --coordinator; give one"),
        (Cluster(launcher="slurm"), "not started by srun: SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_PROCID,"),
        (Cluster(launcher="ompi"), "not started by mpirun: OMPI_MCA_orte_hnp_uri"),
        (Cluster(devices=0), "--devices is 0 but must be at least 1"),
        (Cluster(peer_timeout=0), "--peer-timeout is 0 but must be at least 1 second"),
    ],
)
def test_flags_that_cannot_work_are_refused(given: Cluster, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        cluster.join(given)
    assert said in str(caught.value)


def test_processes_that_are_connected_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("NNODES", "2")
    cluster.join(Cluster())


def test_jax_asks_kubernetes_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **given: asked.append({"place": place, **given}))
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name == "kubernetes" or None)
    for name, value in {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}.items():
        monkeypatch.setenv(name, value)
    cluster.join(Cluster())
    assert asked == [{"place": (), "heartbeat_timeout_seconds": 100}]


def test_a_process_alone_is_answered_at_once() -> None:
    assert cluster.gather("héllo") == ["héllo"]
    assert cluster.together(lambda: 7) == 7

    def fail() -> None:
        raise RunError("no")

    with pytest.raises(RunError, match=r"^no$"):
        cluster.together(fail)
    assert [cluster.Votes(one_device()).stop(wanted) for wanted in (False, True)] == [False, True]


def test_the_nearest_batches_that_devices_divide_are_named() -> None:
    class Eight(Layout):
        devices = 8  # pyright: ignore[reportAssignmentType]

    eight = Eight(one_device().mesh)
    check_batch(eight, "data.batch_size", 64)
    with pytest.raises(UsageError, match=r"^data\.batch_size is 100, which 8 devices do .* do: 96 and 104$"):
        check_batch(eight, "data.batch_size", 100)
    with pytest.raises(UsageError, match=r"that they do: 8$"):
        check_batch(eight, "data.batch_size", 3)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_the_first_signal_asks_and_the_second_finds_the_systems_handler(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in preemption.SIGNALS]
    with Requests() as requests:
        assert requests.reason is None
        os.kill(os.getpid(), number)
        assert requests.reason == number.name
        assert [signal.getsignal(one) for one in preemption.SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(one) for one in preemption.SIGNALS] == before


def test_outside_the_main_thread_signals_stay_as_they_are() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with Requests():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.fixture
def metadata() -> Iterator[tuple[str, dict[str, str]]]:
    """A server that answers as Google's does, and its answers."""
    answers = {"/preempted": "FALSE", "/maintenance-event": "NONE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path].encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", answers
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "answer"), [("/preempted", "TRUE"), ("/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_a_maintenance_notice_asks_to_stop(
    path: str, answer: str, metadata: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preemption, "POLL", 0.05)
    url, answers = metadata
    with Requests(url) as requests:
        time.sleep(0.3)
        assert requests.reason is None
        answers[path] = answer
        deadline = time.monotonic() + 10
        while requests.reason is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert requests.reason == f"the notice {path[1:]}: {answer}"


def test_a_server_that_does_not_answer_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "POLL", 0.05)
    with Requests("http://127.0.0.1:9/") as requests:
        time.sleep(0.3)
        assert requests.reason is None


def test_rows_of_one_device_are_whole() -> None:
    alone = one_device()
    placed = alone.rows({"a": np.arange(6).reshape(3, 2)}, 3)
    assert np.array_equal(placed["a"], np.arange(6).reshape(3, 2))
