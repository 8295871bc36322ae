"""Write which tier each network's tests are in and the seconds they took, as Markdown: python -m tests.network_seconds.

It runs tests/models/test_zoo.py and test_backbones.py, both tiers, one after the other: 25 minutes on two busy cores.
"""

import collections
import dataclasses
import datetime
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

FILES = ("tests/models/test_backbones.py", "tests/models/test_zoo.py")
TIERS = ("default", "slow")
PARAMETERS = ("name", "backbone")
"""Parameters of a test that say which network it looks at: a record of the reference, or a backbone of ours."""
OUT = Path("docs/networks.md")


@dataclasses.dataclass
class Recorder:
    """A pytest plugin that adds up the seconds of each network's tests by tier."""

    seconds: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Network -> tier -> seconds."""
    tests: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Tests by tier."""
    of: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    """Test's id -> (network, tier); networks are named as `jaxclf.list_models` names them."""

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> None:
        """Note which network each test looks at, by the test module's `NETWORKS` and `backbone_of`."""
        for item in items:
            assert isinstance(item, pytest.Function)
            module: Any = item.module
            given: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
            name = str(next((given[key] for key in PARAMETERS if key in given), "of no single network"))
            if name in module.NETWORKS:
                name = module.backbone_of(name)
            self.of[item.nodeid] = (name, TIERS[item.get_closest_marker("slow") is not None])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase of a test."""
        name, tier = self.of[report.nodeid]
        row = self.seconds.setdefault(name, {})
        row[tier] = row.get(tier, 0.0) + report.duration
        self.tests[tier] += report.when == "call"


def markdown(recorder: Recorder, order: Sequence[str], when: datetime.date) -> str:
    """Return the table, networks in this order."""
    lines = [
        f"These seconds are of one run on {when}, on {os.cpu_count()} cores that did other work meanwhile, with no "
        "compiled program kept from before: they compare networks, and promise nothing.",
        "",
    ]
    totals = [(tier, sum(row.get(tier, 0.0) for row in recorder.seconds.values())) for tier in TIERS]
    said = ", ".join(f"the {tier} tier's {recorder.tests[tier]} tests took {took:.0f} s" for tier, took in totals)
    lines += [f"`python -m tests.network_seconds` wrote this page from {' and '.join(FILES)}: {said}."]
    lines += [
        "A network in both tiers has its quick tests in the default one, and its other tests in the slow one.",
        "",
    ]
    lines += ["| network | default tier, s | slow tier, s |", "|---|---:|---:|"]
    for name in sorted(recorder.seconds, key=lambda name: order.index(name) if name in order else len(order)):
        cells = [f"{recorder.seconds[name][tier]:.1f}" if tier in recorder.seconds[name] else "" for tier in TIERS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Run the tests and write the page; return pytest's exit code, and write nothing unless it is 0."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache  # before conftest imports jax
        code = pytest.main([*FILES, "-q", "-m", "slow or not slow"], plugins=[recorder])
    if code == 0:
        from jaxclf import list_models

        OUT.write_text(markdown(recorder, list_models(), datetime.datetime.now(datetime.UTC).date()))
        print(OUT)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
