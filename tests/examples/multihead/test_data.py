"""Readers, vocabularies, bins and views: what is promised holds, and what is broken is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.errors import DataError
from multihead.data import TASKS, GeneratedProducts, JsonProducts, ProductDataset
from multihead.data.augment import View, draw_view, show
from multihead.data.images import fit
from multihead.data.products import COMPANIES, OUTLINES
from multihead.targets import Binned, Standardised, Vocabulary, fit_targets, targets_from_state, targets_state, unseen
from PIL import Image


def record(number: int = 0, **changed: Any) -> dict[str, Any]:
    return {"image": f"{number}.png", "company": "a", "model": "m", "diameter": 1.5, "length": 2, **changed}


def write(folder: Path, records: Any, name: str = "train.json") -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(8):
        Image.new("RGB", (12, 8), (number * 20, 0, 90)).save(folder / f"{number}.png")
    path = folder / name
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return path


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in record().items() if name != key}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[{", "train.json: expected a list .* not valid JSON .*line 1"),
        ({"image": "x"}, "train.json: expected a list .*, found an object"),
        ("7", "found a number"),
        ([], "found an empty list"),
        ([record(), 3], "train.json, record 1: expected an object, found a number"),
        ([record(), record(), without("model")], "train.json, record 2: expected the keys .* found none named model"),
        ([without("image")], "record 0: .* none named image"),
        ([record(), record(diameter="59.7")], "train.json, record 1: expected a number .* under 'diameter' .*found '59.7'"),
        ([record(length=True)], "record 0: expected a number .* under 'length' .* found True"),
        ([record(length=[2])], r"under 'length' .* found \[2\]"),
        ([record(length=-3)], "not negative under 'length' .* found -3"),
        ('[{"image": "0.png", "company": "a", "model": "m", "diameter": NaN, "length": 1}]', "under 'diameter' .* found nan"),
        ([record(company=1.5)], "expected a name or a whole number under 'company' .* found 1.5"),
        ([record(company=True)], "expected a name .* found True"),
        ([record(length=10**400)], "not negative under 'length' .* found 1000"),
        ([record(length=1e39)], "not negative under 'length' .* found 1e.39"),
        ('[{"length": 1' + "0" * 5000 + "}]", "train.json: expected a list .* not valid JSON"),
        ([record(), record(image="no/where.png")], "train.json, record 1: expected the image 'no/where.png' .* relative"),
        ([record(image=5)], "record 0: expected a path under 'image', found 5"),
    ],
)
def test_broken_records_are_refused_by_file_index_and_fault(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        JsonProducts(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json: .* check the path"):
        JsonProducts(tmp_path / "nowhere.json")


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"no image at all", lambda data: b""])
def test_broken_images_are_refused_by_file_index_and_path(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path, [record(0), record(1)])
    picture = tmp_path / "1.png"
    Image.effect_noise((40, 40), 50).save(picture)
    picture.write_bytes(damage(picture.read_bytes()))
    source = JsonProducts(path)
    assert source.load(0, 8).shape == (3, 8, 8)
    with pytest.raises(DataError, match=r"train\.json, record 1: expected an image in .*1\.png, found one that does not decode"):
        source.load(1, 8)


def test_missing_labels_and_spellings(tmp_path: Path) -> None:
    records = [record(company=None, model="", diameter=-1, length=-1.0), record(company=-1, model="-1", diameter="", length=None),
               record(company=7, diameter=0)]  # fmt: skip
    labels = JsonProducts(write(tmp_path, records)).labels
    assert labels[0] == labels[1] == dict.fromkeys(TASKS)
    assert labels[2] == {"company": "7", "model": "m", "diameter": 0.0, "length": 2.0}


def test_count_takes_records_evenly_and_errors_keep_their_index(tmp_path: Path) -> None:
    path = write(tmp_path, [record(number, company=str(number)) for number in range(8)])
    source = JsonProducts(path, count=3)
    assert [label["company"] for label in source.labels] == ["0", "2", "5"]
    (tmp_path / "5.png").write_bytes(b"")
    with pytest.raises(DataError, match="record 5"):
        source.load(2, 8)


def labels_of(**columns: list[Any]) -> list[dict[str, Any]]:
    length = max(map(len, columns.values()))
    full = {task: columns.get(task, ["x", "y"] * length if task in ("company", "model") else [1.0, 2.0] * length) for task in TASKS}
    return [{task: values[index] for task, values in full.items()} for index in range(length)]


def test_vocabularies_and_standardisation_come_from_training() -> None:
    labels = labels_of(company=["b", None, "a", "b"], diameter=[1.0, 5.0, None, 3.0])
    targets = fit_targets(labels, TASKS, numbers="regression", bins=4, where="here")
    assert targets["company"] == Vocabulary(("a", "b"))
    assert targets["diameter"] == Standardised(3.0, pytest.approx((8 / 3) ** 0.5))  # mean and std of 1, 5, 3 by hand
    assert targets["company"].encode("c") is None
    assert dict(unseen(labels_of(company=["c", "a", None, "c"]), targets)["company"]) == {"c": 2}
    assert targets_from_state(targets_state(targets)) == targets


@pytest.mark.parametrize(("column", "words"), [
    ({"company": ["a", "a", None]}, "here: .* 'company' of at least two kinds, found all 2 of them 'a'.*--tasks model"),
    ({"length": [None, None, None]}, "of 'length' .* found none in 3 records"),
    ({"diameter": [4.0, 4.0, 4.0]}, "of 'diameter' .* found all 3 of them 4.0"),
])  # fmt: skip
def test_a_task_with_nothing_to_learn_is_refused(column: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_targets(labels_of(**column), TASKS, numbers="regression", bins=4, where="here")


def test_bins_are_quantiles_and_go_round() -> None:
    values = [float(value) for value in [1, 2, 3, 4, 5, 6, 7, 8, 100, 101, 102, 103]]
    target = fit_targets(labels_of(length=values), ["length"], numbers="binned", bins=3, where="here")["length"]
    assert isinstance(target, Binned)
    assert target == Binned((4.5, 54.0), (2.5, 6.5, 101.5))
    assert target.bin_of(torch.tensor([-50.0, 4.0, 5.0, 100.0, 1e6])).tolist() == [0, 0, 1, 2, 2]
    certain = torch.eye(3) * 1e4
    torch.testing.assert_close(target.predict(certain), torch.tensor(target.means))
    assert target.bin_of(target.predict(certain)).tolist() == [0, 1, 2]
    between = torch.tensor([[0.0, 0.0, -1e9]])  # two bins equally likely: the mean of their means
    torch.testing.assert_close(target.predict(between), torch.tensor([4.5]))
    assert targets_from_state(targets_state({"length": target})) == {"length": target}


def test_mixed_precision_does_not_round_the_bins_answer() -> None:
    target = Binned((2000.0,), (1234.5, 70_001.0))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            answer = target.predict(torch.tensor([[1e4, 0.0], [0.0, 1e4]], dtype=dtype))
        assert answer.dtype == torch.float32
        assert answer.tolist() == [1234.5, 70_001.0]


def test_ties_make_fewer_bins_and_none_is_empty() -> None:
    values = [5.0] * 20 + [6.0, 7.0]
    target = fit_targets(labels_of(length=values), ["length"], numbers="binned", bins=16, where="here")["length"]
    assert isinstance(target, Binned)
    assert target.means == (5.0, 6.0, 7.0)


def test_unknown_and_unseen_labels_are_masked(tmp_path: Path) -> None:
    train = fit_targets(labels_of(company=["a", "b"]), TASKS, numbers="regression", bins=4, where="here")
    source = JsonProducts(write(tmp_path, [record(company="b", model="x"), record(company="z", model=None, diameter=-1)]))
    data = ProductDataset(source, train, size=8, augment=False, seed=0)
    assert data.known("company").tolist() == [True, False]
    assert data.known("model").tolist() == [True, False]
    assert data.known("diameter").tolist() == [True, False]
    assert data.known("length").tolist() == [True, True]
    assert data[0]["company"] == 1
    whole = ProductDataset(JsonProducts(write(tmp_path, [record(company="b", model="x")])), train, size=8, augment=False, seed=0)
    assert {sample[task].dtype for sample in (data[0], whole[0]) for task in TASKS} == {torch.float32}
    assert data[0]["diameter"] == 1.5


def test_pictures_keep_their_proportions() -> None:
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    image[:, :, 18:22] = 255
    square = fit(image, 20)
    assert square.shape == (3, 20, 20)
    assert (square[0, :, 9:11] > 128).all()
    assert (square[0, 0] == square[0, 10]).all()  # the edge goes on above and below
    assert (square[0, :, :8] == 0).all()


def test_views_are_a_function_of_seed_epoch_and_index_and_do_not_zoom() -> None:
    assert draw_view(1, 2, 3) == draw_view(1, 2, 3)
    assert len({draw_view(*numbers) for numbers in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3))}) == 4
    image = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    image[:, 15:25, 12:28] = 0
    assert show(image, View()) is image
    for index in range(10):
        view = draw_view(0, 0, index)
        dark = (255 - show(image, View(view.across, view.down, view.turn)).float()).sum() / 255 / 3
        assert dark == pytest.approx(160, rel=0.02)  # as much ink as before


def test_generated_products_repeat_differ_and_miss_some_labels() -> None:
    one, again = (GeneratedProducts(split="train", seed=0, count=300) for _ in range(2))
    assert one.labels == again.labels
    assert torch.equal(one.load(7, 32), again.load(7, 32))
    for other in (GeneratedProducts(split="val", seed=0, count=8), GeneratedProducts(split="train", seed=1, count=8)):
        assert not torch.equal(one.load(7, 32), other.load(7, 32))
    for task, names in (("company", COMPANIES), ("model", OUTLINES)):
        assert {label[task] for label in one.labels} == {*names, None}
    assert all(0 < sum(label[task] is None for label in one.labels) < 60 for task in TASKS)


def test_diameter_and_length_are_what_the_picture_shows() -> None:
    source = GeneratedProducts(split="train", seed=0, count=60)
    for index, product in enumerate(source._products):
        if product.model == "can" and product.company == "Maple":
            image = source.load(index, 200).float()  # a pixel is a millimetre
            backdrop = torch.tensor(product.backdrop) * 255
            area = ((image - backdrop[:, None, None]).abs().amax(0) > 45).sum()  # its shaded rim is darker, too
            assert area == pytest.approx(product.diameter * product.length, rel=0.1)
            break
    else:
        pytest.fail("no plain can among 60 products")
