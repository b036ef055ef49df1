import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mbgen_hf.cli import main
from mbgen_hf.data import output_folder
from mbgen_hf.data.prepare import PREPARED_FILES, format_report, prepare
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import recorded_session_rule


LOG = (
    "user,item,behavior,timestamp\n2,10,view,120\n1,11,cart,110\n1,10,view,100\n2,12,buy,130\n3,1,like,1\n4,1,view,x\n"
)
NAMED = {"user_id": "user", "item_id": "item", "behavior": "behavior", "timestamp": "timestamp"}
OPTIONS = {
    "columns": NAMED,
    "behaviors": ["view", "cart", "buy"],
    "drop_behaviors": ["like"],
    "on_bad_rows": "skip",
    "min_item_count": 0,
    "min_user_interactions": 2,
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepare_writes_table_and_report(log: Path, tmp_path: Path) -> None:
    table, report = prepare(log, tmp_path / "deep" / "out", **OPTIONS)
    assert set(contents(tmp_path / "deep" / "out")) == set(PREPARED_FILES)
    loaded = SequenceTable.load(tmp_path / "deep" / "out")
    assert loaded.items.tolist() == table.items.tolist() == [0, 1, 0, 2]
    assert json.loads((tmp_path / "deep" / "out" / "report.json").read_text()) == report
    digest = hashlib.sha256(LOG.encode()).hexdigest()
    assert report["inputs"] == [{"path": str(log), "bytes": len(LOG), "sha256": digest}]
    assert report["options"]["columns"] == NAMED and report["options"]["min_user_interactions"] == 2
    assert report["reading"]["dropped"] == {"like": 1} and report["reading"]["skipped"] == {"bad timestamp": 1}
    assert report["result"]["behaviors"] == {"view": 2, "cart": 1, "buy": 1} and report["assumed_year"] is None
    assert (report["result"]["rows"], report["result"]["users"], report["result"]["items"]) == (4, 2, 3)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_prepare_twice_writes_the_same_bytes(log: Path, tmp_path: Path) -> None:
    prepare(log, tmp_path / "a", **OPTIONS)
    prepare(log, tmp_path / "b", **OPTIONS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_prepare_refuses_a_full_folder_unless_told_to_overwrite(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(log, out, **OPTIONS)  # an empty folder is as good as none
    before = contents(out)
    with pytest.raises(ValueError, match="expected a new or empty folder, found .*report.json.*`overwrite`"):
        prepare(log, out, **OPTIONS)
    assert contents(out) == before
    prepare(log, out, **OPTIONS | {"target": "cart"}, overwrite=True)
    assert SequenceTable.load(out).schema.target == "cart"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]


def test_prepare_never_replaces_what_it_did_not_write(log: Path, tmp_path: Path) -> None:
    prepare(log, tmp_path / "out", **OPTIONS)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="an earlier result only, found also .*thesis.tex"):
        prepare(log, tmp_path / "out", **OPTIONS, overwrite=True)
    with pytest.raises(ValueError, match="expected a folder, found the file"):
        prepare(log, log, **OPTIONS, overwrite=True)
    assert log.read_text() == LOG and (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_prepare_failing_while_writing_keeps_the_earlier_result(
    error: BaseException, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(log, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(SequenceTable, "save", fail)
    with pytest.raises(type(error)):
        prepare(log, tmp_path / "out", **OPTIONS, overwrite=True)
    with pytest.raises(type(error)):
        prepare(log, tmp_path / "new", **OPTIONS)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]


def test_prepare_failing_between_the_two_renames_puts_the_earlier_result_back(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(log, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")
    rename = output_folder.os.replace

    def fail_on_new(source: Path, target: Path) -> None:
        if str(source).endswith(".new"):
            raise OSError("no luck")
        rename(source, target)

    monkeypatch.setattr(output_folder.os, "replace", fail_on_new)
    with pytest.raises(OSError, match="no luck"):
        prepare(log, tmp_path / "out", **OPTIONS, overwrite=True)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]


def test_format_report_is_a_small_table(log: Path, tmp_path: Path) -> None:
    _, report = prepare(log, tmp_path / "out", **OPTIONS)
    text = format_report(report)
    lines = text.splitlines()
    assert lines[0].split() == ["rows", "users", "items"]
    assert [line.split()[-1] for line in lines[1:4]] == ["6", "-1", "-1"]
    assert lines[4].split() == ["read", "4", "2", "3"] and "users with at least 2 interactions" in lines[6]
    assert "buy (target)=1 at level 2" in text and "1970-01-01T00:01:40+00:00" in text and max(map(len, lines)) < 119


def test_cli_prepare_takes_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.txt"
    log.write_text("1\t10\t0\t511\n1\t11\t1\t1111\n1\t12\t2\t611\n1\t12\t3\t611\n1\t12\tx\t611\n")
    command = ["prepare", str(log), "--columns", "user_id=0,item_id=1,behavior=2,timestamp=3", "--no-header"]
    command += ["--behaviors", "0=click,1=cart,2=buy", "--drop-behaviors", "3", "--target", "cart"]
    command += ["--levels", "click=0,cart=1,buy=1", "--time-format", "%m%d", "--year", "2015", "--separator", "tab"]
    command += ["--timezone", "Asia/Shanghai", "--min-item-count", "1", "--min-user-interactions", "1"]
    command += ["--item-count-over", "all", "--iterative", "--on-bad-rows", "skip", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert "year: the log has none, 2015 is assumed" in capsys.readouterr().out
    table = SequenceTable.load(tmp_path / "out")
    assert table.schema.to_dict() == {"names": ["click", "cart", "buy"], "levels": [0, 1, 1], "target": "cart"}
    assert table.timestamps.tolist() == [1431273600, 1433952000, 1447171200]
    assert main(command) == 2 and main([*command, "--overwrite"]) == 0


VISITS = "user_id,item_id,behavior,timestamp,session_id\n" + "".join(
    f"{user},{item},{behavior},{time},{session}\n"
    for user, item, behavior, time, session in [
        (1, 10, "view", 0, "a"), (1, 11, "buy", 50, "a"), (1, 10, "view", 90_000, "b"), (1, 10, "buy", 180_000, "c"),
        (2, 12, "view", 10, "d"), (2, 12, "buy", 2000, "e"),
        (3, 10, "view", 57_599, "f"), (3, 11, "view", 57_600, "f"), (3, 13, "buy", 60_000, "g"),
    ]
)  # fmt: skip
SESSION_OPTIONS = {
    "columns": {name: name for name in ("user_id", "item_id", "behavior", "timestamp", "session_id")},
    "behaviors": ["view", "buy"],
    "min_item_count": 0,
    "min_user_interactions": 0,
}


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    path = tmp_path / "visits.csv"
    path.write_text(VISITS)
    return path


@pytest.mark.parametrize(
    ("rule", "minimum", "expected", "before"),
    [
        ("gap:1000", None, [0, 0, 1, 2], 7),
        ("given", None, [0, 0, 1, 2], 7),
        ("gap:1800", 2, [0, 0, 1, 2, 0, 1, 0, 0, 1], 7),
        ("day:Asia/Shanghai", 2, [0, 0, 1, 2, 0, 1, 1], 6),
        ("day:UTC", 2, [0, 0, 1, 2], 5),
    ],
)
def test_prepare_cuts_sessions_and_says_whom_it_dropped(
    rule: str, minimum: int | None, expected: list[int], before: int, visits: Path, tmp_path: Path
) -> None:
    table, report = prepare(visits, tmp_path / "out", **SESSION_OPTIONS, sessions=rule, min_sessions=minimum)
    loaded = SequenceTable.load(tmp_path / "out")
    assert loaded.session_ids.tolist() == table.session_ids.tolist() == expected
    assert str(recorded_session_rule(tmp_path / "out")) == rule and json.loads(json.dumps(report)) == report
    after = sum(a != b for a, b in zip([-1, *expected], expected, strict=False))
    dropped = 3 - table.num_users
    assert report["sessions"] == {
        "rule": rule, "min_sessions": minimum or 3, "sessions_before": before, "sessions_after": after,
        "users_dropped": dropped,
    }  # fmt: skip
    step = report["filters"][-1]
    assert step["name"] == f"users with at least {minimum or 3} sessions"
    assert (step["users_before"], step["users_after"], step["rows_after"]) == (3, table.num_users, len(expected))
    assert report["result"]["users"] == table.num_users and report["result"]["items"] == loaded.num_items
    assert f"sessions: {rule}, {after} of {before} kept, {dropped} users dropped" in format_report(report)


def test_prepare_without_a_rule_keeps_a_session_column_and_every_user(visits: Path, tmp_path: Path) -> None:
    table, report = prepare(visits, tmp_path / "out", **SESSION_OPTIONS)
    assert table.num_users == 3 and table.session_ids.tolist() == [0, 0, 1, 2, 0, 1, 0, 0, 1]
    assert "sessions" not in report and recorded_session_rule(tmp_path / "out") is None
    assert "sessions" not in format_report(report)


def test_cli_prepare_cuts_sessions_or_ends_in_one_line(
    log: Path, visits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", str(visits), "--behaviors", "view,buy", "--min-item-count", "0"]
    command += ["--min-user-interactions", "0", "--output", str(tmp_path / "out")]
    assert main([*command, "--sessions", "gap:1800", "--min-sessions", "2"]) == 0
    assert "sessions: gap:1800, 7 of 7 kept, 0 users dropped" in capsys.readouterr().out
    for options, message in {
        "--sessions week": "`sessions`: expected gap:SECONDS, day:ZONE or given, found 'week'",
        "--sessions day:Mars": "`timezone`: expected an IANA zone",
        "--sessions gap:0": "`gap_seconds`: expected a positive number",
        "--min-sessions 2": "`min_sessions`: expected only with `sessions`, found 2",
        "--sessions gap:60 --min-sessions -1": "`min_sessions`: expected a non-negative integer, found -1",
        "--sessions gap:60 --min-sessions 9": "`min_sessions`: expected users with at least 9 sessions, found none",
    }.items():
        assert main([*command[:-1], str(tmp_path / "new"), *options.split()]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="`table`: expected session_ids, found none"):
        prepare(log, tmp_path / "new", **OPTIONS, sessions="given")


def test_cli_help_version_and_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--version"]) == 0 and "mbgen-hf" in capsys.readouterr().out
    assert main(["prepare", "--help"]) == 0 and "--item-count-over" in capsys.readouterr().out
    assert main([]) == 2 and capsys.readouterr().err.count("\n") == 1

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mbgen_hf.data.prepare.prepare", interrupt)
    assert main(["prepare", "x", "--output", "y"]) == 130


def test_cli_itself_imports_nothing_heavy() -> None:
    source = Path(sys.modules["mbgen_hf.cli"].__file__)
    code = (
        "import importlib.util, sys, types; sys.modules['mbgen_hf'] = package = types.ModuleType('mbgen_hf');"
        f"package.__path__ = [{str(source.parent)!r}]; import mbgen_hf.cli as cli; cli.main(['--version']);"
        "print(sorted({'torch', 'polars', 'datasets', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
