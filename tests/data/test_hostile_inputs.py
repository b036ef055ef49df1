"""Every known way to break a log or a command line ends in one line on stderr, status 2 and no trace on disk."""

import gzip
import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from mbgen_hf.cli import main


HEADER = b"user,item,behavior,timestamp\n"
ROWS = b"1,10,view,100\n1,11,cart,110\n2,10,view,120\n2,12,buy,130\n"
LOG = HEADER + ROWS
NAMED = "user_id=user,item_id=item,behavior=behavior,timestamp=timestamp"
NUMBERED = "user_id=0,item_id=1,behavior=2,timestamp=3"
PARQUET = pl.read_csv(LOG)


@dataclass
class Case:
    """One hostile input: files to write, further arguments (they win over the standard ones), what stderr must say."""

    name: str
    content: bytes | dict[str, bytes]
    says: list[str]
    args: list[str] = field(default_factory=list)
    columns: str | None = NAMED
    inputs: list[str] | None = None

    @property
    def files(self) -> dict[str, bytes]:
        return self.content if isinstance(self.content, dict) else {"log.csv": self.content}


def parquet(frame: pl.DataFrame) -> bytes:
    target = io.BytesIO()
    frame.write_parquet(target)
    return target.getvalue()


def changed(line: bytes, row: int = 2) -> bytes:
    """The good log with one row, counted from 1 below the header, replaced."""
    lines = LOG.splitlines(keepends=True)
    lines[row] = line + b"\n"
    return b"".join(lines)


def noisy(size: int) -> bytes:
    """A log that does not compress to nothing, so that damage hits data."""
    return HEADER + b"".join(b"%d,%d,view,%d\n" % (i * 7919 % 1000, i * 104729 % 5003, 100 + i) for i in range(size))


def damaged(archive: bytes) -> bytes:
    middle = len(archive) // 2
    return archive[:middle] + bytes(byte ^ 0x5A for byte in archive[middle : middle + 64]) + archive[middle + 64 :]


GZIP = gzip.compress(noisy(4000), mtime=0)
ZSTD = pa.compress(noisy(4000), codec="zstd", asbytes=True)
BIG_PARQUET = parquet(pl.read_csv(noisy(4000)))
TIME_FORMAT = ["--time-format", "%Y-%m-%d %H:%M:%S"]

STRUCTURE = [
    Case("missing_column", b"user,item,timestamp\n1,2,3\n",
         ["log.csv, line 1", "'behavior'", "found ['user', 'item'"]),
    Case("two_missing_columns", b"a,item,b,timestamp\n1,2,view,3\n", ["'user', 'behavior'", "found ['a', 'item'"]),
    Case("header_differs_in_case", LOG.replace(b"user", b"User"), ["expected columns ['user']", "'User'"]),
    Case("header_with_spaces", LOG.replace(b",item", b", item"), ["expected columns ['item']", "' item'"]),
    Case("headerless_read_by_name", ROWS, ["line 1", "expected columns", "'1', '10'", "0-based index"]),
    Case("named_columns_without_header", ROWS, ["expected a header", "0-based indices"], ["--no-header"]),
    Case("header_read_as_data", LOG, ["line 1", "'view'", "found 'behavior'", "`has_header`"], columns=NUMBERED),
    Case("index_out_of_range", ROWS, ["below 4", "9 for 'timestamp'"], columns=NUMBERED.replace("=3", "=9")),
    Case("index_and_name_of_one_column", LOG, ["log.csv", "a column of its own", "'user_id' and 'item_id'"],
         columns=NAMED.replace("item_id=item", "item_id=0")),
    Case("duplicate_header", b"user,item,item,timestamp,behavior\n1,2,3,4,view\n",
         ["line 1", "'item'", "each header"]),
    Case("duplicate_unused_header", b"x,x," + LOG.replace(b"\n", b"\n0,0,")[:-4],
         ["line 1", "column 'x'", "repeated"]),
    Case("empty_file", b"", ["log.csv", "an empty file (0 bytes)"]),
    Case("only_line_ends", b"\n\n\n", ["line 1", "an empty line"]),
    Case("byte_order_mark_only", b"\xef\xbb\xbf", ["line 1", "an empty line"]),
    Case("header_only", HEADER, ["expected at least one row", "only the header line"]),
    Case("header_only_without_line_end", HEADER.strip(), ["only the header line"]),
    Case("header_only_in_second_file", {"a.csv": LOG, "b.csv": HEADER}, ["b.csv", "only the header line"]),
    Case("missing_file", {}, ["absent.csv", "nothing there"], inputs=["absent.csv"]),
    Case("directory", {"folder/log.csv": LOG}, ["folder", "found a directory"], inputs=["folder"]),
    Case("file_given_twice", LOG, ["log.csv", "given twice"], inputs=["log.csv", "log.csv"]),
    Case("nul_in_row", changed(b"1,1\x001,cart,110"), ["line 3", "a NUL byte"]),
    Case("nul_in_header", LOG.replace(b"item", b"it\0m"), ["line 1", "a NUL byte"]),
    Case("nul_in_skip_mode", changed(b"1,1\x001,cart,110"), ["line 3", "a NUL byte"], ["--on-bad-rows", "skip"]),
    Case("binary_tail", LOG + bytes(100), ["line 6", "a NUL byte"]),
    Case("utf_16", LOG.decode().encode("utf-16"), ["line 1", "UTF-16", "convert it to UTF-8"]),
    Case("latin_1_item", changed(b"1,caf\xe9,cart,110"), ["line 3", "UTF-8", "0xe9"]),
    Case("gbk_header", LOG.replace(b"item", "商品".encode("gbk")), ["line 1", "UTF-8"]),
    Case("old_mac_line_ends", LOG.replace(b"\n", b"\r"), ["line 1", "carriage returns"]),
    Case("unbalanced_quote_in_header", LOG.replace(b"item", b'"item'), ["line 1", "unbalanced quotes"]),
]  # fmt: skip
ARCHIVES = [
    Case("gzip_cut_in_half", {"log.csv.gz": GZIP[: len(GZIP) // 2]},
         ["log.csv.gz", "whole gzip", "truncated archive"]),
    Case("gzip_without_trailer", {"log.csv.gz": GZIP[:-6]}, ["log.csv.gz", "truncated archive"]),
    Case("gzip_cut_to_its_header", {"log.csv.gz": GZIP[:7]}, ["log.csv.gz", "truncated archive"]),
    Case("gzip_corrupt", {"log.csv.gz": damaged(GZIP)}, ["log.csv.gz", "expected a whole gzip", "corrupt archive"]),
    Case("gzip_wrong_checksum", {"log.csv.gz": GZIP[:-8] + b"\1\2\3\4" + GZIP[-4:]}, ["corrupt archive"]),
    Case("gzip_with_tail", {"log.csv.gz": GZIP + b"tail"}, ["log.csv.gz", "corrupt archive"]),
    Case("gzip_of_nothing", {"log.csv.gz": gzip.compress(b"")}, ["an empty file inside gzip"]),
    Case("zip_archive", {"log.zip": b"PK\x03\x04" + bytes(40)}, ["log.zip", "found a zip archive; unpack it first"]),
    Case("gzip_twice", {"log.csv.gz": gzip.compress(GZIP)}, ["gzip inside gzip"]),
    Case("gzip_cut_in_skip_mode", {"log.csv.gz": GZIP[:-6]}, ["truncated archive"], ["--on-bad-rows", "skip"]),
    Case("zstd_truncated", {"log.csv.zst": ZSTD[: len(ZSTD) // 2]},
         ["log.csv.zst", "whole zstd", "truncated archive"]),
    Case("zstd_with_tail", {"log.csv.zst": ZSTD + b"tail"}, ["log.csv.zst", "corrupt archive"]),
    Case("second_archive_truncated", {"a.gz": GZIP, "b.gz": GZIP[:-20]}, ["b.gz", "truncated archive"]),
    Case("parquet_truncated", {"log.parquet": BIG_PARQUET[:-100]}, ["log.parquet", "expected a whole Parquet file"]),
    Case("parquet_data_damaged", {"log.parquet": BIG_PARQUET[:40] + bytes(2000) + BIG_PARQUET[2040:]},
         ["log.parquet", "expected a whole Parquet file"]),
    Case("parquet_missing_column", {"log.parquet": parquet(PARQUET.drop("item"))}, ["log.parquet", "'item'", "found"]),
    Case("parquet_without_rows", {"log.parquet": parquet(PARQUET.head(0))}, ["log.parquet", "at least one row"]),
    Case("parquet_list_column", {"log.parquet": parquet(PARQUET.with_columns(pl.concat_list("item")))},
         ["log.parquet", "column 'item'", "list<"]),
    Case("parquet_binary_column", {"log.parquet": parquet(PARQUET.with_columns(pl.col("behavior").cast(pl.Binary)))},
         ["log.parquet", "column 'behavior'", "binary"]),
    Case("parquet_null_id", {"log.parquet": parquet(PARQUET.with_columns(pl.col("item").replace(11, None)))},
         ["log.parquet, row 2", "column 'item'", "item_id"]),
    Case("parquet_negative_time", {"log.parquet": parquet(PARQUET.with_columns(pl.col("timestamp") - 115))},
         ["log.parquet, row 1", "column 'timestamp'", "'-15'"]),
]  # fmt: skip
ROW_FAULTS = [
    Case("short_row", changed(b"1,11,cart"), ["log.csv, line 3", "4 fields", "found 3 in '1,11,cart'"]),
    Case("one_field_row", changed(b"oops"), ["line 3", "4 fields", "found 1 in 'oops'"]),
    Case("long_row", changed(b"1,11,cart,110,9"), ["line 3", "4 fields", "found 5"]),
    Case("trailing_separator", changed(b"1,11,cart,110,"), ["line 3", "4 fields", "found 5"]),
    Case("short_and_long_row", changed(b"1,11,cart\n2,1,cart,110,9"), ["line 3", "found 3"]),
    Case("short_row_in_wide_file", LOG.replace(b"\n", b",,\n").replace(b"1,11,cart,110,,", b"1,11,cart,110,"),
         ["line 3", "6 fields", "found 5"]),
    Case("blank_line", changed(b""), ["line 3", "an empty line"]),
    Case("blank_last_line", LOG + b"\n", ["line 6", "an empty line"]),
    Case("mixed_delimiters", changed(b"1;11;cart;110"), ["line 3", "found 1", "separated by ';'"]),
    Case("tab_in_comma_file", changed(b"1\t11\tcart\t110"), ["line 3", "separated by '\\t'"]),
    Case("wrong_separator", LOG, ["line 1", "expected columns", "'user,item,behavior,timestamp'"],
         ["--separator", ";"]),
    Case("cut_last_row", LOG[:-5], ["line 5", "found 3 in '2,12,buy'"]),
    Case("lone_carriage_return", LOG.replace(b"110\n", b"110\r"), ["line 3", "found 7"]),
    Case("unbalanced_quote", changed(b'1,"11,cart,110'), ["line 3", "quote", "'1,\"11,cart,110'"]),
    Case("quote_over_two_lines", changed(b'1,"1\n1",cart,110'), ["line 3", "unbalanced quotes"]),
    Case("text_after_quote", changed(b'1,"11"x,cart,110'), ["line 3", "unbalanced quotes"]),
    Case("quote_within_field", changed(b'1,1"1"1,cart,110'), ["line 3", "unbalanced quotes"]),
    Case("header_again", LOG + HEADER, ["line 6", "found the header line again"]),
    Case("header_again_at_once", HEADER + LOG, ["line 2", "found the header line again"]),
    Case("empty_user", changed(b",11,cart,110"), ["line 3", "column 'user'", "an id for 'user_id'", "found ''"]),
    Case("empty_item", changed(b"1,,cart,110"), ["line 3", "column 'item'", "an id for 'item_id'", "found ''"]),
    Case("blank_item", changed(b"1,  ,cart,110"), ["line 3", "column 'item'", "found '  '"]),
    Case("nan_user", changed(b"nan,11,cart,110"), ["line 3", "column 'user'", "found 'nan'"]),
    Case("null_item_among_names", LOG.replace(b",1", b",i1").replace(b"i11", b"NULL").replace(b",i1", b",1").replace(
        b",10,", b",ten,"), ["line 3", "column 'item'", "found 'NULL'"]),
    Case("empty_session", b"s," + LOG.replace(b"\n", b"\n,")[:-1], ["line 2", "column 's'", "session_id"],
         columns=NAMED + ",session_id=s"),
    Case("unknown_behavior", changed(b"1,11,like,110"), ["line 3", "column 'behavior'", "'buy'", "found 'like'"]),
    Case("behavior_with_space", changed(b"1,11, cart,110"), ["line 3", "column 'behavior'", "found ' cart'"]),
    Case("behavior_in_capitals", changed(b"1,11,CART,110"), ["line 3", "found 'CART'", "`drop_behaviors`"]),
    Case("empty_behavior", changed(b"1,11,,110"), ["line 3", "column 'behavior'", "found ''"]),
    Case("unknown_behavior_in_second_file", {"a.csv": LOG, "b.csv": changed(b"1,11,like,110")}, ["b.csv, line 3"]),
    Case("word_as_time", changed(b"1,11,cart,noon"), ["line 3", "column 'timestamp'", "epoch seconds", "'noon'"]),
    Case("empty_time", changed(b"1,11,cart,"), ["line 3", "column 'timestamp'", "found ''"]),
    Case("negative_time", changed(b"1,11,cart,-5"), ["line 3", "column 'timestamp'", "non-negative", "'-5'"]),
    Case("fractional_time", changed(b"1,11,cart,110.5"), ["line 3", "column 'timestamp'", "'110.5'"]),
    Case("hexadecimal_time", changed(b"1,11,cart,0x6e"), ["line 3", "column 'timestamp'", "'0x6e'"]),
    Case("exponent_time", changed(b"1,11,cart,1e9"), ["line 3", "column 'timestamp'", "'1e9'"]),
    Case("infinite_time", changed(b"1,11,cart,inf"), ["line 3", "column 'timestamp'", "'inf'"]),
    Case("milliseconds_as_seconds", changed(b"1,11,cart,1511544070000"), ["line 3", "milliseconds", "'ms'"]),
    Case("time_beyond_64_bits", changed(b"1,11,cart," + b"9" * 25), ["line 3", "column 'timestamp'", "year 9999"]),
    Case("negative_milliseconds", changed(b"1,11,cart,-1"), ["line 3", "milliseconds", "'-1'"],
         ["--time-format", "ms"]),
    Case("date_as_seconds", changed(b"1,11,cart,2017-11-25"), ["line 3", "epoch seconds", "'2017-11-25'"]),
    Case("seconds_as_date", LOG, ["line 2", "%Y-%m-%d %H:%M:%S", "'100'"], TIME_FORMAT),
    Case("february_30", HEADER + b"1,2,view,2017-02-30 00:00:00\n", ["line 2", "'2017-02-30 00:00:00'"], TIME_FORMAT),
    Case("before_1970", HEADER + b"1,2,view,1969-12-31 00:00:00\n", ["line 2", "1970 or later"], TIME_FORMAT),
    Case("hour_that_the_clock_skips", HEADER + b"1,2,view,2016-03-13 02:30:00\n", ["line 2", "02:30"],
         [*TIME_FORMAT, "--timezone", "America/New_York"]),
    Case("february_29_of_a_common_year", HEADER + b"1,2,view,229\n", ["line 2", "'229'"],
         ["--time-format", "%m%d", "--year", "2015"]),
    Case("bad_row_in_gzip", {"log.csv.gz": gzip.compress(changed(b"1,11,cart,noon"))},
         ["log.csv.gz, line 3", "'noon'"]),
    Case("bad_row_deep_in_file", noisy(50_000) + b"1,2,view,x\n", ["line 50002", "column 'timestamp'", "'x'"]),
    Case("crlf_bad_row", changed(b"1,11,cart,noon").replace(b"\n", b"\r\n"), ["line 3", "'noon'"]),
]  # fmt: skip
ARGUMENTS = [
    Case("unknown_role", LOG, ["`columns`", "unknown ['price']"], columns=NAMED + ",price=p"),
    Case("missing_role", LOG, ["`columns`", "missing ['timestamp']"], columns="user_id=user,item_id=item,behavior=b"),
    Case("one_column_for_two_roles", LOG, ["`columns`", "'item' for both"], columns=NAMED.replace("user,", "item,")),
    Case("role_given_twice", LOG, ["--columns", "'user_id' twice"], columns=NAMED + ",user_id=x"),
    Case("columns_no_pairs", LOG, ["--columns", "KEY=VALUE", "'user'"], columns="user"),
    Case("unknown_target", LOG, ["`target`", "'purchase'"], ["--target", "purchase"]),
    Case("levels_of_other_names", LOG, ["`levels`", "missing ['buy']"], ["--levels", "view=0,cart=1"]),
    Case("level_no_number", LOG, ["--levels", "'high'"], ["--levels", "view=0,cart=1,buy=high"]),
    Case("behavior_mapped_and_dropped", LOG, ["`drop_behaviors`", "'view'"], ["--drop-behaviors", "view"]),
    Case("behavior_name_with_space", LOG, ["`names`", "add to cart"], ["--behaviors", "view=view,cart=add to cart"]),
    Case("raw_value_given_as_1_and_1.0", LOG, ["`behaviors`", "'1' twice"], ["--behaviors", "1=view,1.0=buy"]),
    Case("time_format_without_day", LOG, ["`timestamp_format`", "'%H:%M'"], ["--time-format", "%H:%M"]),
    Case("time_format_unknown", LOG, ["`timestamp_format`", "'seconds'"], ["--time-format", "seconds"]),
    Case("year_with_epoch", LOG, ["`year`", "2015"], ["--year", "2015"]),
    Case("year_no_number", LOG, ["--year", "'MMXV'"], ["--year", "MMXV"]),
    Case("unknown_timezone", LOG, ["`timezone`", "'Mars/Olympus'"], [*TIME_FORMAT, "--timezone", "Mars/Olympus"]),
    Case("timezone_with_epoch", LOG, ["`timezone`", "UTC by definition"], ["--timezone", "Asia/Shanghai"]),
    Case("long_separator", LOG, ["`separator`", "'::'"], ["--separator", "::"]),
    Case("letter_as_separator", LOG, ["`separator`", "'e'"], ["--separator", "e"]),
    Case("negative_minimum", LOG, ["`min_item_count`", "-1"], ["--min-item-count", "-1"]),
    Case("everything_filtered", LOG, ["no interaction left", "5 training", "4 rows"], ["--min-item-count", "5"]),
    Case("everything_dropped", LOG, ["no interaction left", "4 rows"],
         ["--behaviors", "like", "--drop-behaviors", "view,cart,buy"]),
    Case("everything_skipped", LOG, ["no interaction left", "'bad timestamp': 4"],
         [*TIME_FORMAT, "--on-bad-rows", "skip"]),
    Case("unknown_option", LOG, ["--frobnicate", "mbgen"], ["--frobnicate"]),
    Case("wrong_choice", LOG, ["--on-bad-rows", "'ignore'"], ["--on-bad-rows", "ignore"]),
]  # fmt: skip
CASES = STRUCTURE + ARCHIVES + ROW_FAULTS + ARGUMENTS


def run_prepare(folder: Path, case: Case) -> int:
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    inputs = [str(folder / name) for name in case.inputs or case.files]
    standard = ["--behaviors", "view,cart,buy", "--min-item-count", "0", "--min-user-interactions", "0"]
    output = ["--output", str(folder / "new" / "prepared")]
    return main(["prepare", *inputs, "--columns", case.columns, *output, *standard, *case.args])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_input_gives_one_line_and_leaves_nothing(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    status = run_prepare(tmp_path, case)
    out, err = capsys.readouterr()
    assert status == 2, out
    assert err.startswith("mbgen: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in err and out == ""
    assert [fragment for fragment in case.says if fragment not in err] == [], err
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []


def test_hostile_table_is_large_and_its_base_log_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 65
    assert run_prepare(tmp_path, Case("good", LOG, [])) == 0
    out, err = capsys.readouterr()
    assert err == "" and "buy (target)=1" in out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["prepared"]


@pytest.mark.parametrize("archive", [GZIP, ZSTD, BIG_PARQUET], ids=["gzip", "zstd", "parquet"])
def test_hostile_archives_are_good_before_the_damage(archive: bytes, tmp_path: Path) -> None:
    assert run_prepare(tmp_path, Case("good", {"log": archive}, [])) == 0


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing there"):
        main(["--debug", "prepare", str(tmp_path / "absent"), "--output", str(tmp_path / "new")])
