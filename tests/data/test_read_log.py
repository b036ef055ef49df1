import csv
import gzip
import io
from collections import Counter
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pytest
from shared_files import shared_path

from mbgen_hf.data.read_log import InteractionLog, read_interaction_log


NAMED = {"user_id": "user", "item_id": "item", "behavior": "behavior", "timestamp": "timestamp"}
NUMBERED = {"user_id": 0, "item_id": 1, "behavior": 2, "timestamp": 3}
DEPTH = ["view", "cart", "buy"]
HEADER = "user,item,behavior,timestamp\n"
LOG = HEADER + "2,10,view,120\n1,11,cart,110\n1,10,view,100\n2,12,buy,130\n"


def read(folder: Path, text: str | bytes, name: str = "log.csv", **options: object) -> InteractionLog:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_interaction_log(path, **({"columns": NAMED, "behaviors": DEPTH} | options))


def rows(log: InteractionLog) -> list[tuple]:
    return log.frame.rows()


GOOD_ROWS = [(2, 10, 0, 120), (1, 11, 1, 110), (1, 10, 0, 100), (2, 12, 2, 130)]


def test_read_log_keeps_file_order_and_types(tmp_path: Path) -> None:
    log = read(tmp_path, LOG)
    assert rows(log) == GOOD_ROWS
    assert log.frame.schema == {"user_id": pl.Int64, "item_id": pl.Int64, "behavior": pl.Int8, "timestamp": pl.Int64}
    assert (log.schema.names, log.schema.levels, log.schema.target) == (("view", "cart", "buy"), (0, 1, 2), "buy")


def as_parquet(text: str) -> bytes:
    target = io.BytesIO()
    pl.read_csv(text.encode()).write_parquet(target)
    return target.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        LOG.encode().replace(b",", b"\t"),
        LOG.encode().replace(b",", b";"),
        LOG.encode().replace(b",", b"|"),
        LOG.encode().replace(b"\n", b"\r\n"),
        LOG.encode().rstrip(),
        b"\xef\xbb\xbf" + LOG.encode(),
        LOG.encode().replace(b"view", b'"view"').replace(b"user", b'"user"'),
        gzip.compress(LOG.encode()),
        gzip.compress(LOG[:40].encode()) + gzip.compress(LOG[40:].encode()),
        pa.compress(LOG.encode(), codec="zstd", asbytes=True),
        as_parquet(LOG),
        gzip.compress(as_parquet(LOG)),
    ],
    ids=["tab", "semicolon", "bar", "crlf", "no_last_line_end", "bom", "quotes", "gzip", "gzip_of_two_members", "zstd",
         "parquet", "parquet_in_gzip"],
)  # fmt: skip
def test_read_log_recognises_the_form_by_content(content: bytes, tmp_path: Path) -> None:
    assert rows(read(tmp_path, content, "log.dat")) == GOOD_ROWS


@pytest.mark.parametrize("separator", [" ", "\x01", "^", "]", "\\", "-"])
def test_read_log_takes_any_separator(separator: str, tmp_path: Path) -> None:
    assert rows(read(tmp_path, LOG.replace(",", separator), separator=separator)) == GOOD_ROWS
    quoted = LOG.replace("view", '"view"').replace(",", separator)
    assert rows(read(tmp_path, quoted, separator=separator)) == GOOD_ROWS


def test_read_log_header_and_column_choices(tmp_path: Path) -> None:
    body = LOG.removeprefix(HEADER)
    assert rows(read(tmp_path, body, columns=NUMBERED)) == GOOD_ROWS
    assert rows(read(tmp_path, LOG, columns=NUMBERED, has_header=True)) == GOOD_ROWS
    shuffled = "timestamp,x,behavior,item,user\n120,,view,10,2\n"
    assert rows(read(tmp_path, shuffled)) == GOOD_ROWS[:1]
    assert rows(read(tmp_path, LOG, columns=NAMED | {"user_id": 0})) == GOOD_ROWS
    plain = LOG.replace("user", "user_id").replace("item", "item_id")
    assert rows(read(tmp_path, plain, columns=None)) == GOOD_ROWS


def test_read_log_concatenates_files_of_different_layout(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LOG)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"item\tuser\ttimestamp\tbehavior\n7\t3\t90\tbuy\n"))
    log = read_interaction_log([tmp_path / "b.tsv.gz", tmp_path / "a.csv"], NAMED, DEPTH)
    assert rows(log) == [(3, 7, 2, 90), *GOOD_ROWS]
    assert [(Path(file.path).name, file.rows) for file in log.report.files] == [("b.tsv.gz", 1), ("a.csv", 4)]


def test_read_log_quoted_fields_hold_separators_and_quotes(tmp_path: Path) -> None:
    text = HEADER + '"a,b","say ""x""",view,1\nc,"",cart,2\n,"d",buy,3\n"e","f","buy","4"\n'
    log = read(tmp_path, text, on_bad_rows="skip")
    assert rows(log) == [("a,b", 'say "x"', 0, 1), ("e", "f", 2, 4)]
    assert log.report.skipped == {"empty user_id": 1, "empty item_id": 1}


def test_read_log_open_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    text = HEADER + '1,"10",view,1\n1,"11,view,2\n"1","12",view,3\n1,13"",view,4\n1,"14",buy,5\n'
    log = read(tmp_path, text, on_bad_rows="skip")
    assert rows(log) == [(1, 10, 0, 1), (1, 12, 0, 3), (1, 14, 2, 5)]
    assert log.report.skipped == {"malformed line": 2}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["7", "0", "-3"], [7, 0, -3]),
        (["266079.0", "12"], [266079, 12]),
        (["9007199254740993.0", "1"], [9007199254740993, 1]),
        (["7", "007"], ["7", "007"]),
        (["7", "+7"], ["7", "+7"]),
        (["7", "u7"], ["7", "u7"]),
        (["1.5", "2.0"], ["1.5", "2.0"]),
        (["7", " 7"], ["7", " 7"]),
        (["7", "99999999999999999999"], ["7", "99999999999999999999"]),
        (["é", "项"], ["é", "项"]),
    ],
)
def test_read_log_id_types(ids: list[str], expected: list[int | str], tmp_path: Path) -> None:
    text = HEADER + "".join(f"{i},{i},view,{t}\n" for t, i in enumerate(ids))
    log = read(tmp_path, text)
    assert log.frame["user_id"].to_list() == log.frame["item_id"].to_list() == expected


def test_read_log_id_types_are_decided_over_all_files_and_good_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LOG)
    (tmp_path / "b.csv").write_text(HEADER + "u9,10.0,view,1\n")
    log = read_interaction_log([tmp_path / "a.csv", tmp_path / "b.csv"], NAMED, DEPTH)
    assert log.frame["user_id"].to_list() == ["2", "1", "1", "2", "u9"]
    assert log.frame["item_id"].to_list() == [10, 11, 10, 12, 10]
    assert log.report.id_types == {"user_id": "string", "item_id": "integer"}
    skipping = read(tmp_path, LOG + "#,#,#,#\nx,y,view,never\n,5,view,7\n", on_bad_rows="skip")
    assert rows(skipping) == GOOD_ROWS
    assert skipping.report.skipped == {"unknown behavior": 1, "bad timestamp": 1, "empty user_id": 1}


def test_read_log_behaviors_map_and_drop_numbers_however_written(tmp_path: Path) -> None:
    text = HEADER + "1,1,1,1\n1,1,1.0,2\n1,1,2,3\n1,1,3.0,4\n1,1,3,5\n1,1,0,6\n"
    log = read(tmp_path, text, behaviors={0: "click", "1.0": "click", 2: "buy"}, drop_behaviors=[3, 9])
    assert log.frame["behavior"].to_list() == [0, 0, 1, 0]
    assert log.report.dropped == {"3": 2, "9": 0}
    assert log.report.behaviors == {"click": 3, "buy": 1}
    assert (log.report.rows, log.report.kept) == (6, 4)


def test_read_log_without_mapping_needs_something_that_orders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`behaviors`: .* found none for the values \['buy', 'cart', 'view'\]"):
        read(tmp_path, LOG, behaviors=None)
    by_target = read(tmp_path, LOG, behaviors=None, target="buy")
    assert (by_target.schema.names, by_target.schema.levels) == (("cart", "view", "buy"), (0, 0, 1))
    assert by_target.report.behavior_source == "sorted values, target last"
    by_level = read(tmp_path, LOG, behaviors=None, levels={"buy": 2, "view": 0, "cart": 1})
    assert by_level.schema.names == ("view", "cart", "buy") and by_level.schema.target == "buy"
    with pytest.raises(ValueError, match="column 'behavior': expected one of .* found 'cart'"):
        read(tmp_path, LOG, behaviors=None, levels={"buy": 1, "view": 0})


def test_read_log_found_behaviors_leave_out_broken_rows(tmp_path: Path) -> None:
    text = LOG + "1,2,oops\n" + HEADER + "1,2,,3\n"
    log = read(tmp_path, text, behaviors=None, target="buy", on_bad_rows="skip")
    assert log.schema.names == ("cart", "view", "buy")
    assert log.report.skipped == {"malformed line": 1, "repeated header": 1, "unknown behavior": 1}


def test_read_log_session_ids(tmp_path: Path) -> None:
    text = "s,user,item,behavior,timestamp\n9,1,1,view,1\nx,1,2,buy,2\n"
    log = read(tmp_path, text, columns=NAMED | {"session_id": "s"})
    assert log.frame["session_id"].to_list() == ["9", "x"]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["0", "1511544070", "253402300799"], {}, [0, 1511544070, 253402300799]),
        (["12", "1511544070.0"], {}, [12, 1511544070]),
        (["1511544070999", "0"], {"timestamp_format": "ms"}, [1511544070, 0]),
        (["2016-01-31 23:59:02"], {"timestamp_format": "%Y-%m-%d %H:%M:%S"}, [1454284742]),
        (
            ["2016-01-31 23:59:02"],
            {"timestamp_format": "%Y-%m-%d %H:%M:%S", "timezone": "Asia/Shanghai"},
            [1454284742 - 8 * 3600],
        ),
        (["20160131"], {"timestamp_format": "%Y%m%d"}, [1454198400]),
        (["2016-01-31T23:59:02+0800"], {"timestamp_format": "%Y-%m-%dT%H:%M:%S%z"}, [1454284742 - 8 * 3600]),
        (["511", "1111", "0229"], {"timestamp_format": "%m%d", "year": 2016}, [1462924800, 1478822400, 1456704000]),
        (["229"], {"timestamp_format": "%m%d"}, [951782400]),
    ],
)
def test_read_log_timestamps(values: list[str], options: dict, expected: list[int], tmp_path: Path) -> None:
    text = HEADER + "".join(f"1,1,view,{value}\n" for value in values)
    assert read(tmp_path, text, **options).frame["timestamp"].to_list() == expected


def test_read_log_reports_the_assumed_year(tmp_path: Path) -> None:
    text = HEADER + "1,1,view,511\n"
    assert read(tmp_path, text, timestamp_format="%m%d").report.assumed_year == 2000
    assert read(tmp_path, text, timestamp_format="%m%d", year=2015).report.assumed_year == 2015
    assert read(tmp_path, LOG).report.assumed_year is None


@pytest.mark.parametrize("zone", [None, "Asia/Shanghai"])
def test_read_log_parquet_dates_need_no_format(zone: str | None, tmp_path: Path) -> None:
    times = [datetime(2017, 11, 25, 1, 2, 3), datetime(2017, 12, 1)]
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": ["a", "b"], "behavior": ["view", "buy"], "timestamp": times})
    frame.write_parquet(tmp_path / "log")
    log = read_interaction_log(tmp_path / "log", NAMED, DEPTH, timezone=zone)
    local = ZoneInfo(zone or "UTC")
    assert log.frame["timestamp"].to_list() == [int(time.replace(tzinfo=local).timestamp()) for time in times]
    assert log.frame["user_id"].to_list() == [1, 2] and log.frame["item_id"].to_list() == ["a", "b"]


def test_read_log_skip_accounts_for_every_row(tmp_path: Path) -> None:
    bad = ["1,2,view", "1,2,view,3,4", "", "1,2,like,3", "1,2,view,-3", "1,2,view,x", ",2,view,3", "1,,view,3"]
    text = LOG + "".join(f"{line}\n" for line in bad) + HEADER + "5,5,remove,1\n" + "6,6,buy,1\n"
    log = read(tmp_path, text, on_bad_rows="skip", drop_behaviors=["remove"])
    assert rows(log) == [*GOOD_ROWS, (6, 6, 2, 1)]
    assert log.report.skipped == {
        "malformed line": 3,
        "repeated header": 1,
        "unknown behavior": 1,
        "bad timestamp": 2,
        "empty user_id": 1,
        "empty item_id": 1,
    }
    assert log.report.dropped == {"remove": 1}
    assert log.report.rows == 15 == log.report.kept + 1 + sum(log.report.skipped.values())


def test_read_log_row_order_and_numbers_survive_parallel_reading(tmp_path: Path) -> None:
    count = 300_000
    lines = [f"{i * 7919 % 1009},{i},view,{i}\n" for i in range(count)]
    assert read(tmp_path, HEADER + "".join(lines)).frame["item_id"].to_list() == list(range(count))
    lines[-3] = "1,2,view\n"
    with pytest.raises(ValueError, match=f"line {count - 1}: expected 4 fields"):
        read(tmp_path, HEADER + "".join(lines))


def test_read_log_mixed_row_lengths_that_cancel_out(tmp_path: Path) -> None:
    # As many separators as a sound file has, and last fields that may be empty: only a count for each line tells.
    text = "user,item,behavior,timestamp,note\n1,2,view,3\n1,2,view,3,,\n1,2,view,3,\n1,2,view,4,x\n"
    log = read(tmp_path, text, on_bad_rows="skip")
    assert log.frame["timestamp"].to_list() == [3, 4] and log.report.skipped == {"malformed line": 2}


# Real logs: (folder, files, columns, separate header, behaviors, dropped, further options), and SOURCE.md's numbers.
STAMP = "%Y-%m-%d %H:%M:%S"
ONE = ["interactions.csv.gz"]
JDATA16 = [f"JData_Action_20160{month}.csv.gz" for month in (2, 3, 4)]
CHINA = {"timezone": "Asia/Shanghai"}
REAL = [
    ("taobao_kcore_fav_cart_buy", ONE, ["user", "item", "behavior", "timestamp"], ["fav", "cart", "buy"], {},
     (286787, 25518, 30670, {"buy": 134664, "cart": 112307, "fav": 39816})),
    ("retailrocket_kcore", ONE, ["user", "item", "behavior", "timestamp"], ["view", "cart", "buy"], {},
     (97381, 2174, 29905, {"view": 75374, "cart": 12456, "buy": 9551})),
    ("ijcai15_kcore", ONE, ["user", "item", "behavior", "timestamp"], ["fav", "cart", "buy"], {},
     (359103, 22438, 35229, {"buy": 199654, "fav": 158119, "cart": 1330})),
    ("ijcai15_raw_users1to100", ["data_sample.csv.gz"], ["user_id", "item_id", "action_type", "time_stamp"],
     [0, 3, 1, 2], {"timestamp_format": "%m%d", "year": 2015} | CHINA,
     (13260, 100, 7248, {"0": 11891, "2": 839, "3": 493, "1": 37})),
    ("jdata2016_month_heads", JDATA16, ["user_id", "sku_id", "type", "time"], [1, 6, 5, 2, 4, 3],
     {"timestamp_format": STAMP} | CHINA,
     (89997, 3009, 3366, {"6": 53209, "1": 34226, "2": 1549, "3": 590, "5": 223, "4": 200})),
    ("taobao_userbehavior_head", ["UserBehavior_head.csv.gz"], [0, 1, 3, 4], ["pv", "fav", "cart", "buy"], {},
     (61143, 587, 41252, {"pv": 54814, "cart": 3307, "fav": 1704, "buy": 1318})),
    ("jdata2018_mkmsr_demo", ["train.csv.gz", "test_new_item.csv.gz"], ["user_id", "sku_id", "type", "action_time"],
     [1, 4, 3, 2], {"timestamp_format": STAMP} | CHINA,
     (30360, 3880, 12971, {"1": 27161, "2": 2164, "4": 530, "3": 505})),
]  # fmt: skip


def plain_rows(paths: list[Path], columns: list[str | int]) -> list[list[str]]:
    """The four raw columns by Python's csv module, floats of an id cut to integers."""
    result = []
    for path in paths:
        with gzip.open(path, "rt", newline="") as file:
            reader = csv.reader(file)
            header = next(reader) if isinstance(columns[0], str) else []
            positions = [header.index(column) if header else column for column in columns]
            result += [[row[i].removesuffix(".0") for i in positions] for row in reader]
    return result


def plain_seconds(raw: str, options: dict) -> int:
    if "timestamp_format" not in options:
        return int(raw)
    text, form = (raw, STAMP) if options["timestamp_format"] == STAMP else (f"{options['year']}{raw:0>4}", "%Y%m%d")
    return int(datetime.strptime(text, form).replace(tzinfo=ZoneInfo(options["timezone"])).timestamp())


@pytest.mark.parametrize(
    ("folder", "names", "columns", "depth", "options", "numbers"), REAL, ids=lambda v: str(v)[:24]
)
def test_read_log_real_logs_agree_with_their_source_and_with_plain_csv(
    folder: str, names: list[str], columns: list, depth: list, options: dict, numbers: tuple, data_dir: Path
) -> None:
    paths = [shared_path(data_dir / folder, "real log") / name for name in names]
    roles = dict(zip(["user_id", "item_id", "behavior", "timestamp"], columns, strict=True))
    log = read_interaction_log(paths, roles, depth, **options)
    report = log.report
    assert (report.rows, report.users, report.items, report.behaviors) == numbers and report.kept == report.rows
    expected = plain_rows(paths, columns)
    assert log.frame["user_id"].to_list() == [int(row[0]) for row in expected]
    assert log.frame["item_id"].to_list() == [int(row[1]) for row in expected]
    assert [log.schema.names[label] for label in log.frame["behavior"]] == [row[2] for row in expected]
    seconds = {raw: plain_seconds(raw, options) for raw in {row[3] for row in expected}}
    assert log.frame["timestamp"].to_list() == [seconds[row[3]] for row in expected]


def test_read_log_real_log_with_dropped_behavior(data_dir: Path) -> None:
    paths = [shared_path(data_dir / "jdata2016_month_heads", "real log") / name for name in JDATA16]
    roles = {"user_id": "user_id", "item_id": "sku_id", "behavior": "type", "timestamp": "time"}
    log = read_interaction_log(paths, roles, [1, 6, 5, 2, 4], drop_behaviors=[3], timestamp_format=STAMP)
    assert log.report.dropped == {"3": 590} and log.report.kept == 89997 - 590
    assert log.frame["user_id"].dtype == pl.Int64
    raw = Counter(row[2] for row in plain_rows(paths, ["user_id", "sku_id", "type", "time"]))
    assert log.report.behaviors == {name: raw[name] for name in "16524"}
