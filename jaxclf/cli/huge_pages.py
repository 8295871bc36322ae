"""Memory in huge pages, for which the program starts again: glibc reads its tunables when a process starts.

On a CPU, XLA allocates what lies between layers anew each step, and the kernel maps and clears each page of it when it
is first touched: with pages of 2 MB instead of 4 kB, 512 times as few.
"""

import contextlib
import os
import platform
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
SWITCH = "JAXCLF_HUGE_PAGES"
"""Environment variable that is 0 where the program is to stay as it was started."""
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_again() -> None:
    """Start this program again with glibc's tunable, once, under the same process id; return where it would not help.

    It would not where glibc is older than 2.35 or not there, where the variable says something about the tunable, and
    where the kernel gives huge pages to all or to none.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in given or os.environ.get(SWITCH) == "0" or not sys.executable or not _helps():
        return
    os.environ["GLIBC_TUNABLES"] = f"{given}:{TUNABLE}=1".lstrip(":")
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _helps() -> bool:
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return False
    with contextlib.suppress(OSError):
        return "[madvise]" in KERNEL.read_text()
    return False
