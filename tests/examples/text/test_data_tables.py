"""CSV and TSV: what is read, and every error by file and line."""

from pathlib import Path

import pytest
from harness.errors import DataError
from text.data.sources import joined, open_path
from text.data.tables import Table, read_table

TASKS = ("sentiment", "topic")


def _written(folder: Path, content: str | bytes, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv(tmp_path: Path) -> None:
    content = 'id,topic,text,sentiment\r\n1,food,"hot, ""fresh"" soup\nand bread",good\r\n2,,plain,  \r\n\r\n3, film ,x,bad\r\n'
    table = read_table(_written(tmp_path, content), TASKS)
    assert table.texts == ('hot, "fresh" soup\nand bread', "plain", "x")
    assert table.labels == {"sentiment": ("good", None, "bad"), "topic": ("food", None, "film")}
    assert table.name == str(tmp_path / "train.csv")


def test_tsv_with_a_byte_order_mark(tmp_path: Path) -> None:
    content = "\ufefftext\tsentiment\ttopic\nso, so\tgood\tfood\n".encode()
    table = read_table(_written(tmp_path, content, "train.TSV"), TASKS)
    assert table == Table(str(tmp_path / "train.TSV"), ("so, so",), {"sentiment": ("good",), "topic": ("food",)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.csv: expected columns text, sentiment, topic, found an empty file"),
        ("\n\n", "train.csv: expected columns text, sentiment, topic, found an empty file"),
        ("text,sentiment,topic\n", "train.csv: expected at least one line of data, found only column names"),
        ("text,label\na,b\n", r"train.csv, line 1: .*found no sentiment and no topic among \['text', 'label'\]"),
        ("text;sentiment;topic\na;b;c\n", "train.csv, line 1: .*found no text and no sentiment and no topic .*separated by commas"),
        ("text,sentiment,topic,text\na,b,c,d\n", "train.csv, line 1: expected each column once, found 'text' several times"),
        ("text,sentiment,topic\na,b,c\nd,e\n", "train.csv, line 3: expected 3 cells as in line 1, found 2"),
        (
            "text,sentiment,topic\n\na, b,c,d\n",
            "train.csv, line 3: expected 3 cells as in line 1, found 4; put texts that hold commas",
        ),
        ("text,sentiment,topic\na,b,c\n  ,b,c\n", "train.csv, line 3: expected a text, found a blank cell"),
        (
            'text,sentiment,topic\n"a\nb",b,c\nx,"y,z\nu,v,w\n',
            "train.csv, line 4: the row that starts here .*unexpected end of data",
        ),
        ('text,sentiment,topic\n"a"b,b,c\n', "train.csv, line 2: the row that starts here is not read"),
        ('text,sentiment,topic\na,b,c\n"' + "x" * 200_000 + "\n", "train.csv, line 3: the row that starts here .*field larger"),
        (b"text,sentiment,topic\na,b,c\nd\xe9j\xe0,b,c\n", "train.csv, line 3: expected UTF-8, found the byte 0xe9"),
        ("text,sentiment,topic\n".encode("utf-16"), "train.csv, line 1: expected UTF-8, found the byte 0xff"),
    ],
)
def test_refused_by_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(_written(tmp_path, content), TASKS)


def test_not_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.xlsx: expected a \.csv or \.tsv file, found the suffix '\.xlsx'"):
        read_table(_written(tmp_path, "x", "train.xlsx"), TASKS)
    with pytest.raises(DataError, match=r"nowhere\.csv: expected a file, found nothing"):
        read_table(tmp_path / "nowhere.csv", TASKS)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: expected a file, found a folder"):
        read_table(tmp_path / "folder.csv", TASKS)


HEAD = "text,sentiment\n"


def test_a_folder_of_two(tmp_path: Path) -> None:
    _written(tmp_path, HEAD + "a,good\nb,bad\n")
    _written(tmp_path, HEAD.replace(",", "\t") + "c\tgood\n", "val.tsv")
    train, val = open_path("--data", tmp_path, ("sentiment",), seed=0)
    assert (train.texts, val.texts) == (("a", "b"), ("c",))
    _written(tmp_path, HEAD, "val.csv")
    with pytest.raises(DataError, match=r"--data: expected one of val\.csv and val\.tsv in .*found train\.csv, val\.csv, val\.tsv"):
        open_path("--data", tmp_path, ("sentiment",), seed=0)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(DataError, match=r"--data: expected one of train\.csv and train\.tsv in .*found val"):
        open_path("--data", tmp_path, ("sentiment",), seed=0)
    with pytest.raises(DataError, match=r"--topic: expected a folder .*columns text, topic; found nothing at .*nowhere"):
        open_path("--topic", tmp_path / "nowhere", ("topic",), seed=0)


def test_a_fifth_of_a_single_file_is_held_out(tmp_path: Path) -> None:
    path = _written(tmp_path, HEAD + "".join(f"text {row},{row % 3}\n" for row in range(50)), "all.csv")
    train, val = open_path("--data", path, ("sentiment",), seed=3)
    assert (len(train), len(val)) == (40, 10)
    rows = [int(text.split()[1]) for table in (train, val) for text in table.texts]
    assert sorted(rows) == list(range(50))
    assert [str(row % 3) for row in rows] == [*train.labels["sentiment"], *val.labels["sentiment"]]
    assert open_path("--data", path, ("sentiment",), seed=3) == (train, val)
    assert open_path("--data", path, ("sentiment",), seed=4) != (train, val)
    with pytest.raises(DataError, match="expected at least two lines of data, of which some are held out, found 1"):
        open_path("--data", _written(tmp_path, HEAD + "a,b\n", "one.csv"), ("sentiment",), seed=0)


def test_joined_tables_keep_to_their_own_tasks() -> None:
    one = Table("one", ("a", "b"), {"sentiment": ("good", None)})
    other = Table("other", ("c",), {"topic": ("food",)})
    assert joined([one, other]) == Table(
        "one + other", ("a", "b", "c"), {"sentiment": ("good", None, None), "topic": (None, None, "food")}
    )
    assert joined([one]) == one
