"""`jaxclf data bench` measures every stage, the whole input and a training step, and says which of them waits."""

import itertools
import multiprocessing
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from jaxclf.cli.main import main
from jaxclf.config import Loader
from jaxclf.tools import throughput
from jaxclf.tools.throughput import rate, stream_verdict
from jaxclf.training.setup import IN_THREADS, Setup, set_up
from tests.data.streamed import without_split

BACKBONE = "tests.tiny:Tiny"
TINY = ("--seconds", "0.1", "--backbone", BACKBONE, "--batch-size", "8", "--image-size", "24")
STAGES = ["read", "decode", "transform", "transfer", "stream", "step"]


def bench(name: str, *args: str) -> list[str]:
    """Return the arguments of a short measurement."""
    return ["data", "bench", name, *TINY, *args]


def rates(lines: Iterable[str]) -> dict[str, float]:
    """Return images/s by stage."""
    found = [re.match(r"(\w+) +([\d,.]+) images/s  \w", line) for line in lines]
    return {one[1]: float(one[2].replace(",", "")) for one in found if one}


def measured(setup: Setup, loader: Loader = IN_THREADS) -> Iterator[str]:
    return throughput.measure(
        *(setup.config, setup.program, setup.data, setup.order, setup.init_state),
        group=setup.group,
        loader=loader,
        seconds=0.05,
    )


@pytest.mark.slow
def test_every_stage_of_a_stream_has_a_rate(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(bench(f"folder:{photo_folder}", "--loader.threads", "2")) == 0
    out, err = capsys.readouterr()
    first, *lines, verdict = out.splitlines()
    assert err == ""
    assert first == f"folder:{photo_folder}, 24 x 24, batches of 8, {BACKBONE} on cpu"
    found = rates(lines)
    assert [*found] == STAGES
    assert min(found.values()) > 0
    assert re.search(r"decode .* to pixels, median \d\d x \d\d, one thread$", lines[1])
    assert lines[4].endswith("all of it, 2 threads")
    assert lines[5].endswith("training, float32, learned head of 4 classes")
    assert re.match(
        r"The input (keeps the device busy: it gives [\d.]+ times|gives only \d+ % of) what the st", verdict
    )
    assert re.search(r"; the slowest stage is (read|decode|transform), \d+ % of a thread's time\.", verdict)


@pytest.mark.slow
def test_a_resident_set_has_a_step_and_its_augmentation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(bench("digits")) == 0
    first, nothing, *lines, verdict = capsys.readouterr().out.splitlines()
    assert first == f"digits, 24 x 24, batches of 8, {BACKBONE} on cpu"
    assert nothing == "its images are in the device's memory before the first step: there is nothing to stream"
    found = rates(lines)
    assert [*found] == ["augment", "step"]
    assert min(found.values()) > 0
    assert re.fullmatch(r"The input keeps the device busy: augmentation is [\d.]+ % of the step\.", verdict)


def test_a_set_without_test_images_is_measured(own_imagenet: Path) -> None:
    without_split(own_imagenet, "validation")
    config = throughput.bench_config(
        "synthetic_imagenet", data_dir=str(own_imagenet), image_size=24, batch_size=8, backbone=BACKBONE
    )
    with set_up(config) as setup:
        lines = itertools.islice(measured(setup), 6)
        assert [*rates(lines)] == STAGES[:5]


@pytest.mark.slow
def test_broken_images_do_not_stop_it(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(photo_folder, tmp_path / "set")
    for file in root.glob("train/*/[0-4].jpg"):
        file.write_bytes(b"no image")
    assert main(bench(f"folder:{root}")) == 0
    assert [*rates(capsys.readouterr().out.splitlines())] == STAGES
    for file in root.glob("train/*/*"):
        file.write_bytes(b"no image")
    assert main(bench(f"folder:{root}")) == 2
    assert capsys.readouterr().err == (
        f"jaxclf: none of 32 training images can be read, the first of them {root}/train/ant/0.jpg\n"
    )


@pytest.mark.parametrize(
    "loader", [Loader(threads=2), pytest.param(Loader(workers=1), marks=pytest.mark.slow)], ids=str
)
def test_nothing_is_left_when_it_ends_or_is_left_early(loader: Loader, photo_folder: Path) -> None:
    config = throughput.bench_config(f"folder:{photo_folder}", image_size=24, batch_size=8, backbone=BACKBONE)
    threads = set(threading.enumerate())
    for count in (8, 6):  # all; as far as the stream
        with set_up(config, loader) as setup:
            lines = measured(setup, loader)
            for _ in range(count):
                next(lines)
        assert not [thread for thread in set(threading.enumerate()) - threads if "grain" in thread.name]
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("digits", "--seconds", "0"), "--seconds is 0 but must be above 0, and finite"),
        (("digits", "--seconds", "nan"), "--seconds is nan but must be above 0, and finite"),
        (("digits", "--batch-size", "0"), "data.batch_size is 0 but must be at least 1"),
        (("digits", "--batch-size", "2000"), "data.batch_size 2000 leaves no whole batch of 1352"),
        (("digits", "--backbone", "resnet9"), "unknown backbone 'resnet9'; did you mean 'resnet"),
        (("digits", "--loader.workers", "-1"), "loader.workers is -1 but must be at least 0"),
        (("folder:/nowhere",), "folder:/nowhere: there is no directory /nowhere"),
    ],
)
def test_what_is_refused_is_one_line(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "bench", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"jaxclf: {message}")
    assert err.count("\n") == 1


def test_what_is_not_said_depends_on_the_set(photo_folder: Path) -> None:
    streamed, resident = (throughput.bench_config(name) for name in (f"folder:{photo_folder}", "digits"))
    assert [(one.data.image_size, one.model.backbone, one.augment.crop) for one in (streamed, resident)] == [
        (224, "resnet18", "random_resized"),
        (None, "resnet20", "none"),
    ]


# The clock


@pytest.mark.parametrize(
    ("costs", "images", "seconds", "expected"),
    [
        ([1.0] * 10 + [5.0] * 2 + [2.0] * 5, 6, 30.0, 3.0),  # windows of 10 seconds: 10, 2 and 5 times
        ([100.0], 50, 3.0, 0.5),  # what takes longer than the seconds is done once
    ],
)
def test_a_rate_is_the_median_of_windows(
    costs: list[float], images: int, seconds: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, left = 0.0, iter(costs)
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def work() -> int:
        nonlocal now
        now += next(left)
        return images

    assert rate(work, seconds) == expected
    assert next(left, None) is None


# What is said of the rates

SLOW = {"read": 8000.0, "decode": 1000.0, "transform": 2000.0, "transfer": 9e4, "stream": 500.0, "step": 1000.0}
DECODE = "the slowest stage is decode, 62 % of a thread's time"
ONLY_HALF = f"The input gives only 50 % of what the step takes; {DECODE}."


@pytest.mark.parametrize(
    ("changed", "cpu", "said"),
    [
        ({}, False, ONLY_HALF + " About 2 threads with a core each would keep the device busy."),
        ({"transfer": 999.0}, False, ONLY_HALF + " Copying to the device alone is slower than the step."),
        ({}, True, ONLY_HALF + " Here both need the same cores, and a run is slower than either."),
        (
            {"stream": 1500.0},
            False,
            f"The input keeps the device busy: it gives 1.5 times what the step takes; {DECODE}.",
        ),
    ],
)
def test_the_verdict_says_what_would_help(changed: dict[str, float], cpu: bool, said: str) -> None:
    assert stream_verdict(SLOW | changed, cpu=cpu) == said
