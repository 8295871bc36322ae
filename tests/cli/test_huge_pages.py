"""The program starts again with huge pages: once, and only where they help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxclf.cli import huge_pages
from tests.conftest import ROOT


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that a kernel and a glibc that can are asked to start; the variables are empty."""
    found: list[list[str]] = []
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "KERNEL", tmp_path / "enabled")
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.35"))
    monkeypatch.setattr(os, "execv", lambda _, command: found.append(command))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "jaxclf", "train"])
    for name in ("GLIBC_TUNABLES", huge_pages.SWITCH):
        monkeypatch.setenv(name, "")  # so that what is set here is taken back
    return found


def test_the_same_command_is_started_with_the_tunable(started: list[list[str]]) -> None:
    huge_pages.start_again()
    assert started == [[sys.executable, "-m", "jaxclf", "train"]]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    huge_pages.start_again()
    assert len(started) == 1


def test_other_tunables_stay(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    huge_pages.start_again()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    assert len(started) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0"), (huge_pages.SWITCH, "0")],
    ids=["tunable", "switch"],
)
def test_a_variable_keeps_the_program_as_it_is(
    name: str, value: str, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    huge_pages.start_again()
    assert not started


@pytest.mark.parametrize("library", [("glibc", "2.34"), ("glibc", "1.9"), ("", ""), ("musl", "1.2")])
def test_a_library_without_the_tunable_keeps_it(
    library: tuple[str, str], started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: library)
    huge_pages.start_again()
    assert not started


@pytest.mark.parametrize("enabled", ["[always] madvise never", "always madvise [never]", None])
def test_a_kernel_that_decides_alone_keeps_it(enabled: str | None, started: list[list[str]]) -> None:
    if enabled is None:
        huge_pages.KERNEL.unlink()
    else:
        huge_pages.KERNEL.write_text(enabled)
    huge_pages.start_again()
    assert not started


def test_a_program_starts_again_under_its_process_id() -> None:
    if not huge_pages._helps():
        pytest.skip("huge pages would not help on this machine")
    code = "import os, sys; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), flush=True); "
    code += "sys.argv[1:] = ['nonsense']; from jaxclf.__main__ import run; sys.exit(run())"
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", huge_pages.SWITCH)
    }
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    first, second = (line.split() for line in ended.stdout.splitlines())
    assert (first[0], first[1]) == (second[0], "None")
    assert second[1] == "glibc.malloc.hugetlb=1"
    assert ended.returncode == 2
    assert "nonsense" in ended.stderr
