"""A folder is read as it was written, and what is wrong with it is said with file and line."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from report.planted import Given, write_log

from gradsurgery.report import ReportError, read_run
from gradsurgery.report import table as table_module

NAN = float("nan")


def _log(folder: Path, text: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_numbers_read_back_exactly_and_empty_cells_are_not_nan(tmp_path: Path) -> None:
    given = [0.1, NAN, Given("nan"), float("-inf"), 1e-300, -7.0]
    run = read_run(write_log(tmp_path, {"loss/a": given, "norm/a": [1.0] * 6}))
    values = run.columns["loss/a"]
    assert values[[0, 4, 5]].tolist() == [0.1, 1e-300, -7.0]
    assert np.isnan(values[1])
    assert np.isinf(values[[2, 3]]).all(), "NaN that was measured is told from nothing"
    assert np.isnan(run.column("loss/a")[1:4]).all()
    assert run.series("loss/a")[0].tolist() == [0, 4, 5]


def test_rows_of_a_step_become_one_and_order_does_not_matter(tmp_path: Path) -> None:
    run = read_run(_log(tmp_path, "step,loss/a,val/x\n1,0.5,\n2,0.4,\n2,,0.9\n5,1,\n3,2,\n3,7,\n"))
    assert run.steps.tolist() == [1, 2, 3, 5]
    assert run.columns["loss/a"].tolist() == [0.5, 0.4, 7.0, 1.0]
    assert [part.tolist() for part in run.series("val/x")] == [[2], [0.9]]


@pytest.mark.parametrize("ending", ["", "3,0.", "3,0.25,0", '3,"'])
def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, ending: str) -> None:
    run = read_run(_log(tmp_path, f"step,loss/a,loss/b\n1,1,1\n2,2,2\n{ending}"))
    assert run.steps.tolist() == [1, 2]
    assert bool(run.remarks) == bool(ending)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "found an empty file"),
        ("step,loss/a\n", "found a header alone"),
        ("step,loss/a\n1,2", "found a header alone"),
        ("epoch,loss/a\n1,2\n", "expected a column named 'step', found 'epoch', 'loss/a'"),
        ("step,loss/a\n1,2\n2,zwei\n", "line 3, column 'loss/a': expected a number or nothing, found 'zwei'"),
        ("step,loss/a\n1,2\n2\n3,4\n", "line 3: expected 2 cells, one a column of the header, found 1"),
        ("step,loss/a\n1,2,3\n", "line 2: expected 2 cells"),
        ("step,loss/a\n1.5,2\n", "expected a whole number in every cell of the column 'step', found 1.5"),
        ("step,loss/a\n,2\n", "expected a whole number in every cell of the column 'step', found nan"),
        ("step,loss/a\n1e300,2\n", "expected a whole number"),
        (b"step,loss/\xff\n1,2\n", "expected column names in UTF-8"),
        (b"step,loss/a\n1,\x00\n", "expected a number or nothing"),
        ("step\nstep\n", "column 'step': expected a number or nothing, found 'step'"),
    ],
)
def test_a_log_that_is_none_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(ReportError) as caught:
        read_run(_log(tmp_path, text))
    assert says in str(caught.value)
    assert "log.csv" in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="expected a folder, found nothing"):
        read_run(tmp_path / "absent")
    with pytest.raises(ReportError, match=r"expected a log.csv in it, found none; name the folder"):
        read_run(tmp_path)
    write_log(tmp_path / "inner", {"loss/a": [1.0]})
    with pytest.raises(ReportError, match="there are runs in it: name one of 'inner'"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="found a file; name its folder"):
        read_run(tmp_path / "inner" / "log.csv")
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "events.out.tfevents.1").write_bytes(b"")
    with pytest.raises(ReportError, match="TensorBoard events are not read"):
        read_run(tmp_path / "board")


@pytest.mark.parametrize(
    "tasks", [("a",), ("left-hand", "right hand", "-"), ("<b>x</b>", "深度", 'q"uo,te'), tuple("abcdefghijkl")]
)
def test_tasks_and_pairs_are_found_whatever_their_names(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    columns = {f"norm/{task}": [1.0] for task in tasks}
    columns |= {f"cosine/{one}-{other}": [0.5] for one, other in combinations(tasks, 2)}
    run = read_run(write_log(tmp_path, columns))
    assert run.tasks == tasks
    assert tuple(run.pairs) == tuple(combinations(tasks, 2))


def test_a_column_that_fits_two_pairs_is_left_out_and_said(tmp_path: Path) -> None:
    columns = {f"norm/{task}": [1.0] for task in ("a", "b-c", "a-b", "c")} | {"cosine/a-b-c": [0.5], "cosine/b-c-c": [0.1]}
    run = read_run(write_log(tmp_path, columns))
    assert run.pairs == {("b-c", "c"): "cosine/b-c-c"}
    assert "'cosine/a-b-c' may be of more than one pair" in run.remarks[0]


def test_a_loss_that_is_of_no_task_is_none(tmp_path: Path) -> None:
    columns = {"loss/a": [1.0], "loss/b": [1.0], "loss/total": [2.0]}
    assert read_run(write_log(tmp_path / "with", {**columns, "norm/a": [1.0], "norm/b": [1.0]})).tasks == ("a", "b")
    assert read_run(write_log(tmp_path / "without", columns)).tasks == ("a", "b", "total")


def test_settings_are_read_where_they_are_and_bad_json_is_said(tmp_path: Path) -> None:
    write_log(tmp_path, {"loss/a": [1.0]})
    (tmp_path / "config.json").write_text('{"arguments": {"method": "pcgrad", "form": "parameters"}}')
    (tmp_path / "metrics.json").write_text("{")
    run = read_run(tmp_path)
    assert (run.method, run.balancer, run.at) == ("pcgrad", None, " at the trunk's parameters")
    assert "metrics.json could not be read" in run.remarks[0]


def test_layers_are_grids_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    write_log(tmp_path, {"norm/a": [1.0] * 4, "norm/b": [1.0] * 4})
    (tmp_path / "layers.csv").write_text(
        'step,steps,layer,cosine/a-b\n1,2,"x,1",0.5\n1,2,y,\n3,2,"x,1",-0.25\n3,2,y,1\n1,2,y,0.75\n5,2,"x,'
    )
    layers = read_run(tmp_path).layers
    assert layers is not None
    assert (layers.names, layers.ends.tolist(), layers.torn) == (("x,1", "y"), [1, 3], True)
    assert layers.column("cosine/a-b").tolist() == [[0.5, -0.25], [0.75, 1.0]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("step,layer\n1,x\n", "found no steps"),
        ("step,steps,layer,norm/a\n1,2,x\n", "expected 4 cells"),
        ("step,steps,layer,norm/a\n1,2,x,y\n", "column 'norm/a': expected a number or nothing, found 'y'"),
        ("step,steps,layer,norm/a\n,2,x,1\n", "expected a number in every cell of the columns step and steps"),
    ],
)
def test_layers_that_are_none_are_refused(tmp_path: Path, text: str, says: str) -> None:
    write_log(tmp_path, {"norm/a": [1.0]})
    (tmp_path / "layers.csv").write_text(text)
    with pytest.raises(ReportError) as caught:
        read_run(tmp_path)
    assert says in str(caught.value)


def test_pieces_of_a_long_log_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "CHUNK", 64)
    values = np.random.default_rng(0).standard_normal(200)
    text = "step,loss/a,loss/b\r\n" + "".join(f"{step},{value!r},\r\n" for step, value in enumerate(values.tolist()))
    run = read_run(_log(tmp_path, text))
    assert run.steps.tolist() == list(range(200))
    assert run.columns["loss/a"].tolist() == values.tolist()
    assert np.isnan(run.columns["loss/b"]).all()
    broken = text.replace(f"150,{values.tolist()[150]!r}", "150,x")
    with pytest.raises(ReportError, match="line 152, column 'loss/a'"):
        read_run(_log(tmp_path, broken))
