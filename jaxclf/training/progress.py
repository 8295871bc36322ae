"""Show a person how a run goes on: a bar with ETA and images/s on a terminal, a line an epoch elsewhere."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import rich.console
import rich.progress


class Lines:
    """Says on stderr how far something long is, in a line now and then."""

    def __init__(self, seconds: float = 10.0) -> None:
        """Say something every so many seconds; what is done earlier is never mentioned."""
        self._seconds, self._said = seconds, time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Say that `done` of `total` (None: nobody knows) are done, if it is time to."""
        if time.monotonic() - self._said >= self._seconds:
            self._said = time.monotonic()
            rich.console.Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"{what}: {done:,}" + ("" if total is None else f" of {total:,}"), markup=False
            )


class Progress:
    """Progress and throughput of one run."""

    def __init__(self, title: str, *, epochs: int, step: int, steps: int, quiet: bool) -> None:
        """Start at `step` of `steps` in all; `quiet` shows nothing and still measures."""
        self._title, self._epochs = title, epochs
        self._console = rich.console.Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[speed]}"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, completed=step, speed="")
        self._images, self._seconds = 0, 0.0
        self._running: float | None = None

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def images_per_second(self) -> float:
        """Training images over the seconds in which the clock ran; 0 before any."""
        return self._images / self._seconds if self._seconds else 0.0

    def resume(self) -> None:
        """Let the clock run; the device must be idle."""
        self._running = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock; the device must be idle."""
        if self._running is not None:
            self._seconds += time.perf_counter() - self._running
        self._running = None

    def dispatched(self, steps: int, images: int) -> None:
        """Move the bar by steps that are finished; count their images if the clock runs."""
        self._images += images if self._running is not None else 0
        speed = f"{self.images_per_second:,.0f} images/s" if self._seconds else ""
        self._bar.update(self._task, advance=steps, speed=speed)

    def go_back(self, step: int) -> None:
        """Move the bar to an earlier step."""
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False)

    def epoch(self, row: Mapping[str, Any], split: str, *, skipped: int = 0) -> None:
        """Print one epoch's metrics; `split` is what was evaluated, "test" or "validation"."""
        words = [f"{self._title} epoch {row['epoch']}/{self._epochs}", f"lr {row['lr']:.3g}"]
        words += [f"train loss {row['train_loss']:.4f} top-1 {row['train_top1']:.2f} %"]
        if (top1 := row[f"{split}_top1"]) is not None:
            words += [f"{split} loss {row[f'{split}_loss']:.4f} top-1 {top1:.2f} %"]
        if self._seconds:
            words += [f"{self.images_per_second:,.0f} images/s"]
        if skipped:
            words += [f"{skipped:,} images skipped"]
        self.say("  ".join(words))
