"""Bad input from a grammar: each is answered by exit code 2 and one line, and a good run beside it stays as it was."""

import contextlib
import io
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxclf.cli.main import COMMANDS, main
from jaxclf.training.loop import train
from jaxclf.training.weights import READ
from tests.tiers import quick
from tests.training.runs import config, recipe_of

Case = tuple[list[str], dict[str, bytes]]
"""Arguments, where {dir} is a new directory, {run} a good run, {recipe} its recipe; and files to write into {dir}."""
WORDS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=2, max_size=12)
VALUES = {
    "optim.lr": ["0", "-1", "nan", "inf", "fast", "1e"],
    "optim.momentum": ["1", "-0.1", "nan", "much"],
    "optim.ema": ["1", "2", "-1"],
    "optim.weight-decay": ["-1", "nan"],
    "optim.name": ["sdg", "ADAM"],
    "optim.schedule": ["linea", "Cosine"],
    "run.epochs": ["0", "-3", "1.5", "ten"],
    "run.seed": ["-1", "4294967296", "x"],
    "run.eval-every": ["0", "-1"],
    "data.batch-size": ["0", "-1", "99999", "x"],
    "data.image-size": ["0", "-2", "1000000"],
    "data.classes": ["1", "0", "11"],
    "data.dataset": ["folder:/nowhere", "/nowhere", "no.module:Name", "digit"],
    "model.maps": ["0", "-1"],
    "model.head": ["identiy", "Learned"],
    "model.backbone": ["resnet21x", "no.module:Name", "tests.tiny:Nothing"],
    "model.dropout": ["1", "-0.5"],
    "loss.label-smoothing": ["1", "-1"],
    "augment.erasing": ["2", "-1"],
}
RECIPES = [
    "raise ValueError('{}')",
    "import {}_missing",
    "get_config = '{}'",
    "def get_config({}): return Config()",
    "def get_config(): return '{}'",
    "def get_config(): return Config({}=3)",
    "def get_config(): return Config(optim='{}')",
    "def get_config(): return {}_undefined",
    "def get_config(): return Config(",
    "def {}(): return Config()",
    "class {}",
]
JSON = [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b'"text"', b"{'a': 1}"]
LAYOUTS = [
    {},
    {"readme.txt": b""},
    {"training/a/1.png": b""},
    {"train/a/1.png": b"", "train/b/1.png": b"", "val/a/1.png": b""},
    {"train/a/1.png": b"", "val/b/1.png": b""},
    {"train/1.png": b"", "val/a/1.png": b""},
    {"train/a/1.txt": b"", "val/a/1.png": b""},
]


@st.composite
def commands(draw: st.DrawFn) -> Case:
    word = draw(WORDS.filter(lambda word: word not in COMMANDS))
    return draw(st.sampled_from([[word], [word, "--help"], ["data", word], ["data", "info", f"{word}_missing"]])), {}


@st.composite
def flags(draw: st.DrawFn) -> Case:
    field, word = draw(st.sampled_from(sorted(VALUES))), draw(WORDS)
    return ["train", "{recipe}", "--workdir", "{dir}/run", f"--{field}-{word}", "1"], {}


@st.composite
def values(draw: st.DrawFn) -> Case:
    field = draw(st.sampled_from(sorted(VALUES)))
    return ["train", "{recipe}", "--workdir", "{dir}/run", f"--{field}", draw(st.sampled_from(VALUES[field]))], {}


@st.composite
def recipes(draw: st.DrawFn) -> Case:
    body = draw(st.sampled_from(RECIPES)).replace("{}", draw(WORDS) + "_")
    text = f"from jaxclf.config import Config\n{body}\n"
    return ["train", "{dir}/recipe.py", "--workdir", "{dir}/run"], {"recipe.py": text.encode()}


@st.composite
def files(draw: st.DrawFn) -> Case:
    ending = draw(st.sampled_from([*(one for one in READ if one), ".onnx", ".h5"]))
    command = draw(
        st.sampled_from(
            [
                ["convert", "{dir}/w" + ending, "{dir}/out.safetensors", "--model", "resnet8"],
                ["predict", "--weights", "{dir}/w" + ending, "--model", "resnet8", "{dir}/x.png"],
                ["eval", "--weights", "{dir}/w" + ending, "--model", "resnet8", "--data.dataset", "digits"],
                ["convert", "{run}", "{dir}/w" + ending],
            ]
        )
    )
    return command, {"w" + ending: draw(st.binary(max_size=64))}


@st.composite
def directories(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(["config.json", "environment.json", "result.json"]))
    return ["train", "{recipe}", "--workdir", "{dir}/copy"], {f"copy/{name}": draw(st.sampled_from(JSON))}


@st.composite
def folders(draw: st.DrawFn) -> Case:
    action = draw(st.sampled_from(["info", "verify"]))
    return ["data", action, "folder:{dir}"], draw(st.sampled_from(LAYOUTS))


KINDS: dict[str, tuple[Callable[[], st.SearchStrategy[Case]], int]] = {
    "commands": (commands, 80),
    "flags": (flags, 150),
    "values": (values, 50),
    "recipes": (recipes, 95),
    "files": (files, 95),
    "directories": (directories, 20),
    "folders": (folders, 12),
}
"""Kinds, and how many of each there are among 500; Hypothesis draws none twice."""


@pytest.mark.parametrize("count", quick([15, 500], 15))
def test_bad_input_gives_one_line_and_changes_no_good_run(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = tmp_path / "run", recipe_of(config(epochs=1), tmp_path / "project")
    train(config(epochs=1), run, quiet=True)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    numbers, seen = itertools.count(), Counter[str]()

    def check(kind: str, case: Case) -> None:
        seen[kind] += 1
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        args, written = case
        if any(name.startswith("copy/") for name in written):
            shutil.copytree(run, directory / "copy")
        for name, content in written.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
        places = {"{dir}": directory, "{run}": run, "{recipe}": recipe}
        for mark, place in places.items():
            args = [arg.replace(mark, str(place)) for arg in args]
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(args)
        lines = [line for line in said.getvalue().splitlines() if not line.startswith("jaxclf: warning: ")]
        assert code in (2, 75), (args, written, code, lines)
        assert len(lines) == 1, (args, written, lines)
        assert lines[0].startswith("jaxclf: "), (args, lines)
        assert "Traceback" not in lines[0]
        shutil.rmtree(directory)

    def check_kind(kind: str, strategy: st.SearchStrategy[Case], examples: int) -> None:
        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        @given(strategy)
        def one(case: Case) -> None:
            check(kind, case)

        one()

    shares = {kind: max(1, share * count // 500) for kind, (_, share) in KINDS.items()}
    for kind, (strategy, _) in KINDS.items():
        check_kind(kind, strategy(), shares[kind])
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert seen == shares
    with capsys.disabled():
        print(f"\nbad input: {', '.join(f'{number} {kind}' for kind, number in seen.items())}")
