"""`jaxclf heads`: its numbers, its refusals, and its page."""

import re
from pathlib import Path

import pytest

from jaxclf.cli.main import main
from jaxclf.report.head_table import COLUMNS, cells, head_rows

pytestmark = pytest.mark.filterwarnings("ignore:hadamard")


def test_a_row_says_what_a_head_can_do_and_what_it_costs() -> None:
    names = ("learned", "hadamard", "biorthogonal_hadamard", "gaussian", "reponet_orthoplex", "conv3x3", "identity")
    rows = [cells(row) for row in head_rows(names, 100, 64)]
    assert COLUMNS[1:7] == ("rank", "distinct", "cos max", "bound", "cos min", "orthant")
    assert rows[0] == ["learned", *[""] * 6, "6,500", "0", "6,400"]
    assert rows[1] == ["hadamard", "64", "64", "1.000", "0.000", "0.000", "0.713", "101", "0", "6,400"]
    assert rows[2][1:7] == ["64", "100", "0.000", "0.000", "-1.000", "0.702"]
    assert rows[3][7:] == ["100", "6,400", "6,400"]  # drawn, so checkpoints store it
    assert rows[4][7:] == ["3,200", "0", "8,200"]  # the neck's 64 * 50, and 50 * 100
    assert rows[5][7:] == ["57,700", "0", "57,600"]  # one position of 3x3x64 for each class
    name, why = rows[6]
    assert name == "identity"
    assert why.endswith("there are 100 classes and 64 features; end the backbone in maps=100")


def test_the_command_prints_the_table_and_writes_page_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heads"
    given = ["--num-classes", "12", "--features", "16"]
    assert main(["heads", "simplex", "kerdock", "learned", "polygon", "etf", *given, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"simplex +│ +11 │ +12 │ +-0.091 │ +-0.091 ", said)
    assert said.endswith(f"{out / 'index.html'}\n")
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "http" not in page
    assert sorted(file.name for file in out.iterdir()) == [
        *("etf.png", "index.html", "kerdock.png", "polygon.png", "simplex.png")
    ]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["simplx"], "unknown head 'simplx'; did you mean 'simplex'"),
        (["simplex", "--features", "0"], "--features is 0 but must be at least 1"),
        (["simplex", "--num-classes", "1"], "num_classes is 1 but must be a whole number, at least 2"),
        (["simplex", "--out", "/dev/null/x"], "cannot write to /dev/null/x: "),
    ],
)
def test_bad_numbers_and_names_are_one_line(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxclf: {text}")
