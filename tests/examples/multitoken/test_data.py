"""The windows by hand, random ones as a function of (seed, epoch, index), files that are refused, and the grammar's promises."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from harness.errors import DataError, MissingDataError
from multitoken.data import GENERATED, GENERATED_BYTES, open_text
from multitoken.data.grammar import Grammar, write_text
from multitoken.data.windows import IGNORE, RandomWindows, TiledWindows, targets, window

TEXT = torch.tensor(list(b"abcdefghij"), dtype=torch.uint8)


def _letters(tensor: torch.Tensor) -> str:
    return "".join("-" if value == IGNORE else chr(value) for value in tensor.tolist())


@pytest.mark.parametrize(
    ("start", "read", "asked"),
    [
        (0, "abcd", ("bcde", "cdef", "defg")),
        (3, "defg", ("efgh", "fghi", "ghij")),
        (4, "efgh", ("fghi", "ghij", "hij-")),  # the text ends: nothing is asked beyond
        (6, "ghij", ("hij-", "ij--", "j---")),
        (8, "ij\0\0", ("j---", "----", "----")),
    ],
)
def test_each_head_is_asked_for_the_bytes_that_far_ahead(start: int, read: str, asked: tuple[str, ...]) -> None:
    sample = window(TEXT, start, context=4, tokens=3)
    assert _letters(sample["input"]) == read
    assert tuple(_letters(targets(sample["target"], ahead, 4)) for ahead in (1, 2, 3)) == asked
    batch = torch.stack([sample["target"]] * 2)
    assert torch.equal(targets(batch, 2, 4), torch.stack([targets(sample["target"], 2, 4)] * 2))


def test_tiles_ask_for_every_byte_but_the_first_once() -> None:
    for length in range(2, 11):
        data = TiledWindows(TEXT[:length], 4, 3, count=None)
        asked = "".join(_letters(targets(data[index]["target"], 1, 4)) for index in range(len(data)))
        assert asked.rstrip("-") == "bcdefghij"[: length - 1]
        assert len(asked) < length - 1 + 4  # no window without a target
    assert len(TiledWindows(TEXT, 4, 3, count=2)) == 2
    assert len(TiledWindows(TEXT, 4, 3, count=9)) == 3
    with pytest.raises(IndexError, match=r"expected 0\.\.1, found 2"):
        TiledWindows(TEXT, 4, 3, count=2)[2]


def test_random_windows_are_a_function_of_seed_epoch_and_index() -> None:
    text = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8))

    def draw(seed: int, epoch: int, order: list[int]) -> dict[int, torch.Tensor]:
        data = RandomWindows(text, 8, 3, count=20, seed=seed)
        data.set_epoch(epoch)
        return {index: torch.cat([data[index]["input"], data[index]["target"][-3:]]) for index in order}

    first = draw(1, 2, list(range(20)))
    torch.manual_seed(99)  # the global random state has no say
    again = draw(1, 2, list(range(19, -1, -1)))
    assert all(torch.equal(first[index], again[index]) for index in first)
    assert len({tuple(sample.tolist()) for sample in first.values()}) == 20
    for other in (draw(2, 2, [0]), draw(1, 3, [0])):
        assert not torch.equal(first[0], other[0])


def test_random_windows_reach_both_ends_and_have_a_target_everywhere() -> None:
    data = RandomWindows(TEXT, 4, 3, count=200, seed=0)
    starts = {_letters(data[index]["input"]) for index in range(200)}
    assert starts == {"abcd", "bcde", "cdef", "defg"}
    assert all((data[index]["target"] != IGNORE).all() for index in range(200))
    with pytest.raises(IndexError, match=r"expected 0\.\.199, found 200"):
        data[200]


def test_a_file_is_split_by_position(tmp_path: Path) -> None:
    content = bytes(range(256)) + "ä€".encode()  # any bytes at all
    (tmp_path / "text").write_bytes(content)
    train, val = open_text(str(tmp_path / "text"), seed=0, at_least=26)
    assert (bytes(train.tolist()), bytes(val.tolist())) == (content[:-26], content[-26:])
    assert train.dtype == val.dtype == torch.uint8


def test_files_that_are_no_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere: expected 'generated' or the path of a file, found nothing"):
        open_text(str(tmp_path / "nowhere"), seed=0, at_least=1)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="expected a file, found a folder with nothing in it"):
        open_text(str(folder), seed=0, at_least=1)
    (folder / "part.txt").touch()
    with pytest.raises(DataError, match=r"found a folder with \['part.txt'\]; name one file"):
        open_text(str(folder), seed=0, at_least=1)
    with pytest.raises(DataError, match=r"part.txt: expected text, found an empty file"):
        open_text(str(folder / "part.txt"), seed=0, at_least=1)
    with pytest.raises(DataError, match=r"/dev/null: expected an ordinary file"):
        open_text("/dev/null", seed=0, at_least=1)
    (folder / "part.txt").write_bytes(b"x" * 99)
    with pytest.raises(DataError, match=r"expected at least 100 bytes, .* holds a window of 10; found 99\. Take a longer text"):
        open_text(str(folder / "part.txt"), seed=0, at_least=10)
    with pytest.raises(DataError, match=r"--data generated: expected at least \d+ bytes"):
        open_text(GENERATED, seed=0, at_least=GENERATED_BYTES)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "fromfile", refuse)
    with pytest.raises(DataError, match=r"part.txt: could not be read \(Permission denied\)"):
        open_text(str(folder / "part.txt"), seed=0, at_least=1)


def test_generated_lines_end_as_they_begin_and_brackets_close_as_their_words_want() -> None:
    grammar = Grammar(3)
    words = {word.letters: word for word in grammar.words}
    for _ in range(200):
        line = grammar.line()
        name, terms, copy = re.fullmatch(r"(\w+): (.*) \.(\w+)\n", line).groups()  # type: ignore[union-attr]
        assert name == copy
        for term in terms.split(" + "):
            rest = term
            while call := re.search(r"([a-z]+)([(\[{<])([0-9,]*)([)\]}>])", rest):  # innermost first
                word = words[call[1]]
                assert (call[2] + call[4], call[3].count(",") + 1) == (word.brackets, word.arguments)
                rest = rest[: call.start()] + "0" + rest[call.end() :]
            assert re.fullmatch("[0-9]", rest)


def test_generated_text_is_a_function_of_the_seed() -> None:
    assert write_text(1, 500) == write_text(1, 500)
    assert write_text(1, 500) != write_text(2, 500)
    assert write_text(1, 300) == write_text(1, 500)[:300]
    train, val = open_text(GENERATED, seed=4, at_least=100)
    assert bytes(torch.cat([train, val]).tolist()).decode() == write_text(4, GENERATED_BYTES)
