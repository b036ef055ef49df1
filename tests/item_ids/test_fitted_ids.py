import json
import shutil

import numpy as np
import pytest

from mbgen_hf.item_ids.fit import fit_item_ids
from mbgen_hf.item_ids.fitted_ids import ItemIds, catalog_fingerprint


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def ids(features):
    names = np.array([f"item-{number:03d}" for number in range(150)])
    return fit_item_ids(names, "balanced", features, code_sizes=(6, 6), hidden=(16,), latent_dim=4, max_epochs=5)


@pytest.fixture
def folder(tmp_path, ids):
    ids.save(tmp_path)
    return tmp_path


def test_a_folder_holds_everything_and_no_pickle(folder, ids, features):
    assert sorted(file.name for file in folder.iterdir()) == [
        "catalog.safetensors", "item_ids.json", "quantizer.safetensors",
    ]  # fmt: skip
    again = ItemIds.load(folder)
    assert np.array_equal(again.codes, ids.codes) and np.array_equal(again.item_ids, ids.item_ids)
    assert (again.code_sizes, again.method, again.seed) == (ids.code_sizes, "balanced", 0)
    assert np.array_equal(again.quantizer.codes(features), ids.quantizer.codes(features))
    record = json.loads((folder / "item_ids.json").read_text())
    assert record["report"] == ids.report().to_dict() and record["catalog_fingerprint"] == ids.fingerprint
    assert ids.describe().startswith("balanced IDs, code sizes 6 x 6 x ")


@pytest.mark.parametrize("name", ["catalog.safetensors", "item_ids.json", "quantizer.safetensors"])
def test_damaged_folders_are_refused(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(ValueError, match="expected whole files"):
        ItemIds.load(folder)


def test_files_of_two_fits_are_not_mixed(folder, tmp_path_factory, ids):
    with pytest.raises(ValueError, match="expected a folder of item IDs holding item_ids.json"):
        ItemIds.load(folder / "nowhere")
    other = tmp_path_factory.mktemp("other")
    fit_item_ids(ids.item_ids, "chunked", base=6, num_levels=3).save(other)
    shutil.copy(other / "catalog.safetensors", folder)
    with pytest.raises(ValueError, match="expected the codes that item_ids.json tells of"):
        ItemIds.load(folder)


def test_codes_follow_the_order_of_a_catalog(ids):
    mixed = np.random.default_rng(1).permutation(150)
    assert np.array_equal(ids.for_catalog(ids.item_ids[mixed]), ids.codes[mixed])


def test_another_catalog_is_refused(ids):
    other = ids.item_ids.copy()
    other[3] = "item-999"
    with pytest.raises(
        ValueError, match="1 items have no codes, 1 with codes are not in the data, such as 'item-999'"
    ):
        ids.for_catalog(other)
    with pytest.raises(ValueError, match="1 with codes are not in the data, such as 'item-149'"):
        ids.for_catalog(ids.item_ids[:-1])
    assert catalog_fingerprint(np.array(["17"])) != catalog_fingerprint(np.array([17]))


def test_new_items_get_the_cell_of_their_features_and_move_nothing(ids, features):
    near = np.array([5, 80, 5])
    larger = ids.append(["new-a", "new-b", "new-c"], features[near] + 1e-4)
    assert np.array_equal(larger.codes[:150], ids.codes) and larger.code_sizes == ids.code_sizes
    assert np.array_equal(larger.codes[150:, :2], ids.quantizer.codes(features[near]))
    assert larger.report().collisions == 0
    assert larger.item_ids.tolist()[-3:] == ["new-a", "new-b", "new-c"]
    # The lowest digits that are free.
    cell = (ids.codes[:, :2] == ids.codes[5, :2]).all(1).sum()
    assert larger.codes[[150, 152], 2].tolist() == [cell, cell + 1]


def test_appending_twice_is_appending_at_once(tmp_path, ids, features):
    names = [f"new-{number}" for number in range(40)]
    new = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32)
    at_once = ids.append(names, new)
    first = ids.append(names[:15], new[:15])
    first.save(tmp_path)
    twice = ItemIds.load(tmp_path).append(names[15:], new[15:])
    assert np.array_equal(twice.codes, at_once.codes) and twice.details == at_once.details


def test_a_full_cell_sends_items_to_the_next_best_one(ids, features):
    size = ids.code_sizes[-1]
    larger = ids.append([f"new-{number}" for number in range(size)], np.repeat(features[:1], size, axis=0))
    new = larger.codes[150:]
    own = (ids.codes[:, :2] == ids.codes[0, :2]).all(1).sum()
    inside = (new[:, :2] == ids.codes[0, :2]).all(1)
    assert inside.sum() == size - own and inside[: size - own].all(), "its own cell first, until it is full"
    assert larger.details["appended"] == {"items": size, "outside_their_cell": int(own)}
    assert larger.report().collisions == 0 and (new[:, 0] == ids.codes[0, 0]).all(), "then its neighbours"


def test_a_full_grid_is_refused(ids, features):
    space = int(np.prod(ids.code_sizes))
    with pytest.raises(ValueError, match="expected a free combination"):
        ids.append([f"new-{number}" for number in range(space)], np.repeat(features[:1], space, axis=0))


@pytest.mark.parametrize(("method", "options"), [("chunked", {"base": 5}), ("single", {})])
def test_ids_without_features_give_free_combinations(method, options):
    ids = fit_item_ids(np.arange(30), method, spare_fraction=0.2, **options)
    larger = ids.append(np.arange(100, 106))
    assert np.array_equal(larger.codes[:30], ids.codes) and larger.report().collisions == 0
    room = int(np.prod(ids.code_sizes)) - 30
    with pytest.raises(ValueError, match=f"expected at most {room} new items"):
        ids.append(np.arange(100, 101 + room))


@pytest.mark.parametrize(
    ("items", "rows", "message"),
    [
        (["item-003"], 1, "`item_ids`: expected new items, found 'item-003'"),
        (["new", "new"], 2, "expected every id once"),
        ([17], 1, "`item_ids`: expected ids like 'item-000', found 17"),
        (["new"], 0, "`features`: expected a row for each of 1 new items, found 0 rows"),
    ],
)
def test_bad_new_items_are_refused(ids, features, items, rows, message):
    with pytest.raises(ValueError, match=message):
        ids.append(items, features[:rows])
    with pytest.raises(ValueError, match="`features`: expected none for single IDs"):
        fit_item_ids(np.arange(3), "single").append([7], features[:1])


def test_ids_that_break_their_promises_are_refused():
    codes = np.array([[0, 1], [1, 0]], dtype=np.int32)
    for change, message in (
        ({"codes": codes[[0, 0]]}, "found 2 items that share them"),
        ({"code_sizes": [2, 1]}, r"`codes`: expected codes below \[2, 1\]"),
        ({"item_ids": np.array([4, 4])}, "`item_ids`: expected every id once"),
        ({"method": "other"}, "`method`: expected one of"),
        ({"codes": codes[:1]}, "`codes`: expected shape"),
    ):
        arguments = {"item_ids": np.array([4, 9]), "codes": codes, "code_sizes": [2, 2], "method": "single", "seed": 0}
        with pytest.raises(ValueError, match=message):
            ItemIds(**arguments | change)
