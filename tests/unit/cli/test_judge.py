"""`qatval judge` as a user runs it."""

import os
from pathlib import Path

import pytest

from qatval.cli.main import main
from qatval.testing.scenarios import REAL_DATA_VARIABLE

BESIDE = Path(__file__).parents[4] / "shared" / "real"
RECORD = Path(os.environ.get(REAL_DATA_VARIABLE) or BESIDE) / "collapse" / "results.csv"
HEADER = "epoch,train/box_loss,train/cls_loss,metrics/mAP50-95(B)\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, values, losses):
        rows = zip(values, losses, strict=True)
        lines = (f"{n},{loss},1,{value}\n" for n, (value, loss) in enumerate(rows, start=1))
        Path(name).write_text(HEADER + "".join(lines))
        return name

    return write


def test_a_block_for_each_file(write, capsys):
    files = [
        write("healthy.csv", [0.2, 0.3, 0.4], [4, 3, 2]),
        write("evaluated.csv", [0.2, 0.4, 0.1, 0.1], [4, 3, 2.5, 2]),
        write("trained.csv", [0.2, 0.4, 0.1, 0.1], [4, 3, 9, 9]),
        write("nothing.csv", [0, 0], [4, 4]),
    ]
    assert main(["judge", *files]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "healthy.csv: held",
        "  rests on metrics/mAP50-95(B) of 3 epochs and a training loss (2 columns) of 5 at first, "
        "3 at last",
        "evaluated.csv: evaluation diverged at epoch 3",
        "  epoch 3: from 0.400 (epoch 2) down to 0.100 (epoch 3), below half of it for 2 epochs, "
        "to the end; training loss did not rise: 4 at the lowest before, 3.5 then",
        "  rests on metrics/mAP50-95(B) of 4 epochs and a training loss (2 columns) of 5 at first, "
        "3 at last",
        "trained.csv: training diverged at epoch 3",
        "  epoch 3: from 0.400 (epoch 2) down to 0.100 (epoch 3), below half of it for 2 epochs, "
        "to the end; training loss rose: 4 at the lowest before, 10 then",
        "  rests on metrics/mAP50-95(B) of 4 epochs and a training loss (2 columns) of 5 at first, "
        "10 at last",
        "nothing.csv: never learned",
        "  rests on metrics/mAP50-95(B) of 2 epochs and a training loss (2 columns) of 5 at first, "
        "5 at last",
    ]
    assert err == ""


def test_what_cannot_be_read_is_a_line_and_the_others_are_judged(write, capsys):
    good = write("good.csv", [0.2], [4])
    assert main(["judge", "missing.csv", good]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("good.csv: held\n")
    assert err.startswith("qatval: error: missing.csv: cannot be read (No such file")
    assert len(err.splitlines()) == 1


def test_nothing_of_a_file_moves_the_cursor(write, capsys):
    name = write("bad\x1b[2J\n.csv", [0.2], [4])
    odd = "odd.csv"
    Path(odd).write_text(HEADER + "1,\x1b[31m,1,0.2\n")
    assert main(["judge", name, odd]) == 1
    out, err = capsys.readouterr()
    assert (out + err).replace("\n", "").isprintable()
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1


def test_a_file_without_losses_says_so(capsys, tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("epoch,metrics/mAP50-95(B)\n1,0.4\n2,0.1\n")
    assert main(["judge", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"{file}: diverged at epoch 2" in out
    assert "of 2 epochs and no training loss" in out


@pytest.mark.skipif(not RECORD.exists(), reason=f"needs the recorded collapse, {RECORD}")
def test_the_recorded_collapse(capsys):
    assert main(["judge", str(RECORD)]) == 0
    verdict, first, second, rests = capsys.readouterr().out.splitlines()
    assert verdict.endswith(
        ": evaluation diverged at epochs 16 and 32, with nothing left from epoch 41"
    )
    assert first.startswith("  epoch 16: from 0.204 (epoch 13) down to 0.025 (epoch 16), ")
    assert second.startswith("  epoch 32: from 0.226 (epoch 29) down to 0.001 (epoch 56), ")
    assert all("training loss did not rise" in line for line in (first, second))
    assert "of 70 epochs and a training loss (6 columns)" in rests
