import json

import numpy as np
import pytest

from mbgen_hf.item_ids.released import released_item_ids


def write(folder, index) -> str:
    file = folder / "Shop.index.json"
    file.write_text(index if isinstance(index, str) else json.dumps(index))
    return file


def test_codes_are_read_as_they_are(tmp_path):
    file = write(tmp_path, {"7": ["<a_3>", "<b_0>"], "5": ["<a_0>", "<b_9>"], "6": ["<a_3>", "<b_1>"]})
    ids = released_item_ids(file, np.array([5, 7]))
    assert ids.codes.tolist() == [[0, 9], [3, 0]] and ids.code_sizes == [4, 10]
    assert ids.method == "released" and ids.details["items_left_out"] == 1 and not ids.details["last_digit_added"]
    assert "1 items of the index are not in the catalog" in ids.describe()


def test_items_that_share_codes_are_reported_and_told_apart(tmp_path):
    index = {name: ["<a_1>", "<b_2>"] for name in ("x", "y", "z")} | {"w": ["<a_0>", "<b_0>"]}
    ids = released_item_ids(write(tmp_path, index), np.array(["w", "x", "y", "z"]))
    assert ids.details["items_that_share_codes"] == 3 and ids.details["shared_codes"] == 1
    assert ids.details["largest_group"] == ["x", "y", "z"] and ids.details["largest_group_size"] == 3
    assert ids.codes[:, :2].tolist() == [[0, 0]] + [[1, 2]] * 3 and ids.code_sizes == [2, 3, 3]
    assert ids.codes[0, 2] == 0 and sorted(ids.codes[1:, 2].tolist()) == [0, 1, 2]
    assert "3 items shared all of their codes" in ids.describe()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "expected JSON"),
        ([1], "expected an object of items"),
        ({"5": ["<a_1>"]}, "expected codes for every item, found none for 1, such as '7'"),
        ({"5": ["<b_1>"]}, "expected <a_N> at level 0 of item 5, found '<b_1>'"),
        ({"5": [3]}, "found 3"),
        ({"5": "<a_1>"}, "expected a list of code tokens for item 5"),
        ({"5": ["<a_1>"], "7": ["<a_1>", "<b_1>"]}, "expected as many codes for every item"),
    ],
)
def test_other_files_are_refused(tmp_path, index, message):
    with pytest.raises(ValueError, match=message):
        released_item_ids(write(tmp_path, index), np.array([5, 7]))
    with pytest.raises(ValueError, match="`index_file`: expected a file"):
        released_item_ids(tmp_path / "none.json", np.array([5]))
