"""Reading a part of a log gives what reading all of it and selecting afterwards gives, the report included."""

import gzip
import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mbgen_hf.data import batch_groups, log_file
from mbgen_hf.data.prepare import PreparationRules, prepare
from mbgen_hf.data.read_log import read_interaction_log
from mbgen_hf.data.sequence_table import SequenceTable


COLUMNS = {"user_id": "user", "item_id": "item", "behavior": "behavior", "timestamp": "time"}
READING = {"columns": COLUMNS, "behaviors": ["view", "cart", "buy"], "drop_behaviors": ["like"]}
RULES = {
    "window": {"window": "3@2017-11-27:Asia/Shanghai"},
    "last_days": {"window": "2:Asia/Shanghai"},
    "sample": {"sample_users": 0.3, "sample_seed": 2},
    "both": {"window": "4@2017-11-26", "sample_users": 0.4},
    "last_days_of_a_sample": {"window": "3:America/New_York", "sample_users": 0.2},
    "everything": {"window": "60", "sample_users": 1.0},
}
START = int(datetime(2017, 11, 25, tzinfo=UTC).timestamp())


def frame(rows: int = 4000, seed: int = 0) -> pl.DataFrame:
    """Nine days of 150 users in no order; many ties in time."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 150, rows) * 7,
            "item": rng.integers(0, 400, rows),
            "behavior": rng.choice(["view", "cart", "buy", "like"], rows),
            "time": START + rng.integers(0, 9 * 24, rows) * 3600,
        }
    )


def text(rows: pl.DataFrame) -> bytes:
    return rows.write_csv().encode()


def parquet(rows: pl.DataFrame) -> bytes:
    target = io.BytesIO()
    rows.write_parquet(target)
    return target.getvalue()


def words(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.format("u{}", "user").alias("user"), pl.format("i,{}", "item").alias("item"))


def broken(content: bytes, quote: bool = False) -> bytes:
    """Every kind of bad row, spread over the file."""
    lines = content.splitlines(keepends=True)
    bad = [
        b"1,2,view\n",
        b"7,5,view,1511800000,9\n",
        lines[0],
        b"7,5,wish,1511800000\n",
        b"7,5,view,yesterday\n",
        b",5,view,1511800000\n",
        b"\n",
    ]
    if quote:
        bad += [b'7,"5,view,1511800000\n', b'"7",8,view,1511800000\n']
    for place, line in enumerate(bad):
        for start in (40, 1500, 3300):
            lines.insert(start + 91 * place, line)
    return b"".join(lines)


LOCAL = frame().with_columns(pl.from_epoch("time").dt.strftime("%Y-%m-%d %H:%M:%S"))
FLOATS = frame().with_columns(
    pl.format("{}{}", "user", pl.when(pl.int_range(pl.len()) > 3500).then(pl.lit(".0")).otherwise(pl.lit("")))
    .alias("user")
)  # fmt: skip
SKIP = {"on_bad_rows": "skip"}
ZSTD = pa.compress(text(words(frame())), codec="zstd", asbytes=True)
LOGS = {
    "integers": ([text(frame())], {}),
    "strings": ([text(words(frame()))], {}),
    "milliseconds": ([text(frame().with_columns(pl.col("time") * 1000 + 999))], {"timestamp_format": "ms"}),
    "local_times": ([text(LOCAL)], {"timestamp_format": "%Y-%m-%d %H:%M:%S", "timezone": "Asia/Shanghai"}),
    "in_order_of_time": ([text(frame().sort("time"))], {}),
    "against_it": ([text(words(frame().sort("time", descending=True)))], {}),
    "bad_rows": ([broken(text(frame()))], SKIP),
    "bad_rows_and_quotes": ([broken(text(frame()), quote=True)], SKIP),
    "float_ids_at_the_end": ([text(FLOATS)], {}),
    "strings_in_the_second_file": ([text(frame()), broken(text(words(frame(3500, 1)))), text(frame(50, 2))], SKIP),
    "found_behaviors": ([text(frame())], {"behaviors": None, "target": "buy"}),
    "gzip_and_zstd": ([gzip.compress(text(words(frame(900, 4)))), ZSTD], {}),
    "parquet": ([parquet(frame()), parquet(frame(700, 3))], {}),
    "parquet_dates": ([parquet(words(frame()).with_columns(pl.from_epoch("time")))], {"timezone": "Asia/Shanghai"}),
    "sessions": (
        [text(frame().with_columns((pl.col("time") // 86400).alias("visit")))],
        {"columns": COLUMNS | {"session_id": "visit"}},
    ),
}


@pytest.fixture(autouse=True)
def many_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_groups, "MERGED_AT_ONCE", 100)
    monkeypatch.setattr(log_file, "PARQUET_BATCH_ROWS", 300)
    monkeypatch.setattr(log_file, "BATCH_ROWS", 400)


def written(folder: Path, contents: list[bytes]) -> list[Path]:
    paths = [folder / f"part{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("log", LOGS)
def test_it_is_the_same_as_selecting_afterwards(log: str, rules: str, tmp_path: Path) -> None:
    contents, options = LOGS[log]
    paths, reading = written(tmp_path, contents), READING | options
    whole = read_interaction_log(paths, **reading)
    filters = {"min_item_count": 2, "min_user_interactions": 0, "item_count_over": "all"}
    after = PreparationRules(**RULES[rules], **filters)
    expected, steps, _ = after.apply(SequenceTable.from_log(whole.frame, whole.schema))
    table, report = prepare(paths, tmp_path / "out", **reading, **RULES[rules], **filters)
    assert table.fingerprint() == expected.fingerprint()
    assert report["reading"] == whole.report.to_dict()
    assert report["filters"] == [step.to_dict() for step in steps]
    assert whole.selected is None and report["reading"]["dropped"]["like"] > 500


def test_batches_are_small_here(tmp_path: Path) -> None:
    for log in ("integers", "parquet", "bad_rows_and_quotes"):
        (path,) = written(tmp_path, LOGS[log][0][:1])
        file = log_file.open_log_file(path, tmp_path, COLUMNS, True, None, None)
        assert len(list(file.batches(file.rows))) > 4


def test_rows_keep_the_order_of_the_files(tmp_path: Path) -> None:
    paths = written(tmp_path, LOGS["strings_in_the_second_file"][0])
    options = READING | {"drop_behaviors": [], "on_bad_rows": "skip", "behaviors": ["view", "cart", "buy", "like"]}
    whole = read_interaction_log(paths, **options).frame
    rules = PreparationRules(sample_users=0.3)
    log = read_interaction_log(paths, **options, selection=rules.selection)
    kept = log.frame["user_id"].unique()
    assert log.frame.equals(whole.filter(pl.col("user_id").is_in(kept.implode())))
    assert 0.1 * whole.height < log.frame.height < 0.6 * whole.height and log.selected[0].users_after == len(kept)


def test_the_first_bad_row_is_named_though_it_is_not_selected(tmp_path: Path) -> None:
    paths = written(tmp_path, LOGS["bad_rows"][0])
    for rules in ({}, {"window": "1@2017-12-01"}, {"sample_users": 0.01}):
        with pytest.raises(ValueError, match="part0, line 41: expected 4 fields .*, found 3"):
            prepare(paths, tmp_path / "out", **READING, **rules)


def test_nothing_selected_is_an_error(tmp_path: Path) -> None:
    paths = written(tmp_path, LOGS["integers"][0])
    found = r"found 1@2015-01-01:UTC in a log from 2017-11-25 to 2017-12-03"
    with pytest.raises(ValueError, match=rf"`window`: expected days the log holds, {found}"):
        prepare(paths, tmp_path / "out", **READING, window="1@2015-01-01")
    with pytest.raises(ValueError, match="`sample_users`: expected users to be left, found none of 150 at 1e-09"):
        prepare(paths, tmp_path / "out", **READING, sample_users=1e-9)
    with pytest.raises(ValueError, match=r"no interaction left: of 4000 rows \{'view': "):
        prepare(paths, tmp_path / "out", **READING | {"drop_behaviors": ["view", "cart", "buy", "like"],
                "behaviors": ["wish"]}, window="1")  # fmt: skip
