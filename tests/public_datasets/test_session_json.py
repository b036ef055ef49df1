import json
from pathlib import Path

import pytest
from raw_forms import GAMER_FILES, write_raw

from mbgen_hf.public_datasets.session_json import read_session_json


PARTS = ("SMB.inter", "SMB.behavior", "SMB.session", "SMB.time", "behavior_level")


def read(folder: Path, **changes: object):
    content = {part: GAMER_FILES[part] for part in PARTS}
    content |= {part.replace("__", "."): value for part, value in changes.items()}
    files = {f"X.{part}.json": v if isinstance(v, str) else json.dumps(v) for part, v in content.items()}
    write_raw(folder, files)
    return read_session_json(*(folder / f"X.{part}.json" for part in PARTS))


def test_ids_keep_the_type_they_have(tmp_path: Path) -> None:
    log = read(tmp_path)
    assert log.frame["user_id"].to_list() == [0] * 4 + [12] * 4 and log.frame["item_id"].to_list()[:2] == [5, 7]
    assert log.report.id_types == {"user_id": "integer", "item_id": "integer", "session_id": "integer"}
    assert (log.report.rows, log.report.users, log.report.items) == (8, 2, 4)
    assert log.report.behaviors == {"p3s": 4, "click": 2, "conversion": 2}
    renamed = {
        part.replace(".", "__"): {"007": v["0"], "12": v["12"]} for part, v in GAMER_FILES.items() if "SMB" in part
    }
    assert read(tmp_path, **renamed).frame["user_id"].to_list() == ["007"] * 4 + ["12"] * 4
    strings = {user: [f"v{item}" for item in items] for user, items in GAMER_FILES["SMB.inter"].items()}
    assert read(tmp_path, SMB__inter=strings).frame["item_id"].to_list()[:2] == ["v5", "v7"]


def test_users_may_come_in_another_order_in_each_file(tmp_path: Path) -> None:
    times = dict(reversed(GAMER_FILES["SMB.time"].items()))
    assert read(tmp_path, SMB__time=times).frame.equals(read(tmp_path).frame)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("SMB__inter", "{", r"X.SMB.inter.json: expected JSON"),
        ("SMB__inter", {}, "expected at least one user, found none"),
        ("SMB__inter", [1, 2], "expected an object from user to list"),
        (
            "SMB__inter",
            {"0": [5, "7", 5, 9], "12": [1, 1, 1, 1]},
            r"all integers or all strings, found \['int'",
        ),
        ("SMB__inter", {"0": [True] * 4, "12": [False] * 4}, r"found \['bool'\]"),
        ("SMB__behavior", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("SMB__behavior", {"0": ["p3s"] * 4}, "the users of X.SMB.inter.json, found user '12' in one of the two only"),
        ("SMB__behavior", {"0": ["p3s"] * 4, "12": ["p3s"] * 3}, "user 12: expected 4 values as in .*, found 3"),
        ("SMB__behavior", {"0": ["p3s"] * 4, "12": ["p3s", "p3s", "buy", "p3s"]}, "user 12, place 3: .*found 'buy'"),
        ("SMB__session", {"0": [0, 0, 1.5, 2], "12": [0] * 4}, "user 0, place 3: expected a whole number, found 1.5"),
        ("SMB__time", {"0": ["yesterday"] * 4, "12": ["2024-03-01 09:00:00"] * 4}, "user 0, place 1: .*'yesterday'"),
        ("SMB__time", {"0": [1] * 4, "12": ["2024-03-01 09:00:00"] * 4}, "user 0, place 1: .* found 1"),
        ("behavior_level", {"p3s": 0, "click": 2, "conversion": 2}, "one behavior at the highest level"),
        ("behavior_level", {"p3s": "low"}, "an object from behavior to level"),
        ("behavior_level", {"p3s": 0, "click": 1}, "X.SMB.behavior.json, user 0, place 4: .* found 'conversion'"),
    ],
)
def test_bad_files_are_named_with_the_place(part: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, **{part: value})
    assert "\n" not in str(error.value)
