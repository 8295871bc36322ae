"""A function of a number, done ahead of its use: by threads of this process, or by processes; grain does the work."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grain
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from jaxclf.config import Loader
from jaxclf.errors import RunError, one_line

T = TypeVar("T")

FOREVER = 2**40
"""Numbers of a reading; it ends when it is closed."""


class Reading(Generic[T]):
    """Tasks from `start` on, in order, done ahead of their use by threads of this process or by other processes."""

    def __init__(self, task: Callable[[int], T], start: int, loader: Loader, ahead: int) -> None:
        """Prepare to read; nothing starts before the first `next`. About `ahead` tasks are done ahead."""
        threads = thread_count(loader)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * threads, ahead))
        dataset = grain.MapDataset.range(start, FOREVER).map(task).to_iter_dataset(options)
        self._workers = loader.workers
        if loader.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its flags when it starts a process
            many = grain.MultiprocessingOptions(
                num_workers=loader.workers, per_worker_buffer_size=max(1, -(-ahead // loader.workers))
            )
            dataset = dataset.mp_prefetch(many, worker_init_fn=_end_with_parent)
        self._dataset, self._iterator = dataset, None
        self._threads: set[threading.Thread] = set()
        self._processes: list[Any] = []

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._iterator is None:
            return self._start()
        try:
            return next(self._iterator)
        except RunError:
            raise
        except RuntimeError as error:
            raise self._dead(error) from error

    def _start(self) -> T:
        threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
        self._iterator = iter(self._dataset)
        try:
            self._iterator.start_prefetch()
            return next(self)
        finally:
            self._threads = {thread for thread in set(threading.enumerate()) - threads if "grain" in thread.name}
            self._processes = [one for one in multiprocessing.active_children() if one not in processes]

    def _dead(self, error: RuntimeError) -> RunError:
        """Name the process that ended; grain's own error holds its exit code alone."""
        ended = [
            f"worker {number} of {self._workers} (process {one.pid}) ended with {_exit(one.exitcode)}"
            for number, one in enumerate(self._processes, 1)
            if one.exitcode not in (None, 0)
        ]
        return RunError(f"the input stopped: {', '.join(ended) or one_line(error)}")

    def close(self) -> None:
        """Stop, and wait until no thread and no process of it is left."""
        if self._iterator is not None:
            self._iterator.close()
        for one in (*self._threads, *self._processes):
            one.join()
        if self._workers:
            _end_pool()


def _end_pool() -> None:
    """End the threads that grain frees shared memory with, which it keeps for good; without them it frees it itself."""
    with SharedMemoryArray._lock:
        pool, SharedMemoryArray._del_thread_pool = SharedMemoryArray._del_thread_pool, None
    if pool is not None:
        pool.close()
        pool.join()


def thread_count(loader: Loader) -> int:
    """Return how many threads read, in each process where there are some."""
    return loader.threads or max(1, _cores() // max(loader.workers, 1))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end_with_parent(_number: int, _count: int) -> None:
    """Let a worker process leave Ctrl-C to its parent, and end when the parent ends, kill -9 included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=wait, name="jaxclf-end-with-parent", daemon=True).start()
