"""Comparisons from run folders written by hand: means, spreads, Δm, refusals; and the command around a trainer that is a stub."""

import json
import math
import statistics
from pathlib import Path

import compare
import pytest
from harness.arms import Run, plan
from harness.comparison import collect, markdown, summarize, write_csv
from harness.comparison_plots import plot_metrics, plot_scores
from harness.errors import RunError
from harness.metric import Metric
from harness.run_table import Row, read_table, write_table
from matplotlib.image import imread

ACCURACY = Metric("kind/accuracy", best=1, primary=True)
ERROR = Metric("depth/absolute_error_m", unit=" m", primary=True)


def _finish(run: Run, out: Path, accuracy: float | None, error: float | None, **arguments: object) -> None:
    folder = run.folder(out)
    folder.mkdir(parents=True)
    common = {"lr": 0.1, "epochs": 3, "seed": run.seed, "out": str(folder), "tasks": ["kind"], "method": run.arm}
    (folder / "config.json").write_text(json.dumps({"arguments": common | arguments}))
    rows = [Row(metric, 0.5, value) for metric, value in ((ACCURACY, accuracy), (ERROR, error)) if value is not None]
    write_table(folder / "table.csv", rows)
    conflicts = ["0", "1"] if len(rows) == 2 else ["", ""]
    lines = ["step,epoch,conflicts,score", *(f"{step},0,{value},{step / 10}" for step, value in enumerate(conflicts, start=1))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for run, accuracy, error in zip(
        plan(["equal", "pcgrad", "single"], [0, 1], ["kind", "depth"]),
        [0.6, 0.8, 0.5, None, 0.7, 0.9, 0.5, None],
        [1.0, 0.8, None, 2.0, 1.2, 0.9, None, 2.0],
        strict=True,
    ):
        _finish(run, tmp_path, accuracy, error)
    return tmp_path


RUNS = plan(["equal", "pcgrad", "single"], [0, 1], ["kind", "depth"])


def test_means_deviations_and_delta_m(out: Path) -> None:
    metrics, summaries = summarize(collect(RUNS, out))
    assert [metric.name for metric in metrics] == [
        "kind/accuracy", "depth/absolute_error_m", "all/Δm", "all/share_of_steps_in_conflict",
    ]  # fmt: skip
    assert list(summaries) == ["equal", "pcgrad"]
    equal = summaries["equal"]
    assert equal["kind/accuracy"].mean == pytest.approx(0.65)
    assert equal["kind/accuracy"].deviation == pytest.approx(statistics.stdev([0.6, 0.7]))
    assert equal["kind/accuracy"].seeds == (0.6, 0.7)
    # Against 0.5 and 2.0 alone: seed 0 is 20 % more accurate and has half the error, seed 1 40 % more and 40 % less.
    assert equal["all/Δm"].seeds == pytest.approx((-(20 + 50) / 2, -(40 + 40) / 2))
    assert equal["all/share_of_steps_in_conflict"].mean == 0.5


def test_without_single_runs_there_is_no_delta_m_and_with_one_seed_no_deviation(out: Path) -> None:
    metrics, summaries = summarize(collect(plan(["equal"], [0], []), out))
    assert "all/Δm" not in [metric.name for metric in metrics]
    assert math.isnan(summaries["equal"]["kind/accuracy"].deviation)
    assert "±" not in markdown(metrics, summaries)


def test_the_table_names_units_directions_and_seeds(out: Path) -> None:
    head, rule, equal, pcgrad = markdown(*summarize(collect(RUNS, out))).splitlines()
    assert head == "| arm | seeds | kind accuracy ↑ | depth absolute error [m] ↓ | Δm [%] ↓ | share of steps in conflict |"
    assert rule.count("---") == 6
    assert equal.startswith("| equal | 2 | 0.650 ± 0.071 | 1.100 ± 0.141 | -37.500 ± 3.536 | 0.500")
    assert pcgrad.startswith("| pcgrad | 2 | 0.850")


def test_rows_are_written_with_every_seed(out: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", *summarize(collect(RUNS, out)))
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[:2] == ["arm,metric,mean,deviation,seeds", "equal,kind/accuracy,0.65,0.0707,0.6 0.7"]
    assert len(lines) == 1 + 2 * 4


def test_runs_with_other_options_are_not_compared(out: Path) -> None:
    (other,) = plan(["cagrad"], [0], [])
    _finish(other, out, 0.1, 0.2, lr=0.2, epochs=4)
    with pytest.raises(RunError, match=r"cagrad/seed-0 and .*equal/seed-0 cannot be compared: they differ in epochs, lr;"):
        collect([*RUNS, other], out)


def test_unfinished_runs_are_left_out_and_a_damaged_table_is_named(out: Path) -> None:
    (RUNS[0].folder(out) / "table.csv").unlink()
    assert len(collect(RUNS, out)) == len(RUNS) - 1
    (RUNS[1].folder(out) / "table.csv").write_text("metric,best\nkind/accuracy,one\n")
    with pytest.raises(RunError, match=r"pcgrad/seed-0/table\.csv: not a table of a finished run"):
        collect(RUNS, out)


def test_tables_read_back_exactly(tmp_path: Path) -> None:
    rows = [Row(ACCURACY, 1 / 3, 0.1), Row(ERROR, 1e-9, 2 / 7)]
    write_table(tmp_path / "table.csv", rows)
    assert read_table(tmp_path / "table.csv") == rows


def test_pictures_are_drawn(out: Path, tmp_path: Path) -> None:
    finished = collect(RUNS, out)
    plot_metrics(*summarize(finished), tmp_path / "metrics.png", title="t")
    plot_scores(finished, out, tmp_path / "scores.png", title="t")
    assert all(imread(tmp_path / name).std() > 0.01 for name in ("metrics.png", "scores.png"))


STUB = """
import json, sys
from pathlib import Path
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if arguments["--method"] == "cagrad" and not Path(sys.argv[0]).with_name("mended").exists():
    sys.exit("error: no luck today")
out = Path(arguments["--out"])
out.mkdir(parents=True)
(out / "config.json").write_text(json.dumps({"arguments": {"lr": arguments["--lr"]}}))
(out / "log.csv").write_text("step,epoch,conflicts,score\\n1,0,1,0.5\\n")
(out / "table.csv").write_text("metric,best,unit,primary,floor,value\\nkind/accuracy,1.0,,1,0.5,0." + arguments["--seed"] + "\\n")
with open(Path(sys.argv[0]).with_name("ran"), "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
"""


def test_the_command_runs_what_is_missing_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = tmp_path / "nyuv2"
    stub.mkdir()
    (stub / "train.py").write_text(STUB)
    monkeypatch.setattr(compare, "EXAMPLES", tmp_path)
    out = tmp_path / "out"
    command = ["nyuv2", "--arms", "equal", "cagrad", "--seeds", "6", "8", "--jobs", "2", "--out", str(out), "--", "--lr", "0.1"]
    assert compare.main(command) == 1
    shown = capsys.readouterr()
    assert "| equal | 2 | 0.700 ± 0.141 |" in shown.out
    assert "error: cagrad, seed 6: error: no luck today" in shown.err
    ran = (stub / "ran").read_text().splitlines()
    assert sorted(line.split("--seed ")[1].split()[0] for line in ran) == ["6", "8"]
    assert all(line.startswith("--lr 0.1 --method sum --balancer none") for line in ran)

    (stub / "mended").touch()
    assert compare.main(command) == 0
    assert "| cagrad | 2 | 0.700 ± 0.141 |" in capsys.readouterr().out
    assert len((stub / "ran").read_text().splitlines()) == 4, "what was finished did not run again"
    assert {"table.md", "table.csv", "metrics.png", "scores.png", "logs"} <= {path.name for path in out.iterdir()}


def test_options_that_the_comparison_sets_itself_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["nyuv2", "--arms", "equal", "--out", str(tmp_path), "--", "--seed", "1", "--method=pcgrad"]) == 1
    assert "--method --seed: expected before --" in capsys.readouterr().err
