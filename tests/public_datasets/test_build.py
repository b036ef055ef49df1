"""Raw files to tables: every raw form, every real log, the presets, and what is said where files are missing."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from raw_forms import RAW_FORMS, gamer_files, write_raw
from shared_files import shared_path

from mbgen_hf import build_dataset
from mbgen_hf.cli import main
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import recorded_session_rule
from mbgen_hf.public_datasets.build import RawFiles, dataset_rules, find_raw_files, read_raw_log
from mbgen_hf.public_datasets.catalog import CONFIGS, PUBLIC_DATASETS, public_dataset


EVERYTHING = {"window": None, "sample_users": None, "min_item_count": 0, "min_user_interactions": 0}


def flat_rows(table: SequenceTable) -> list[tuple]:
    users = np.repeat(table.user_ids, table.lengths).tolist()
    names = [table.schema.names[label] for label in table.behaviors]
    return list(zip(users, table.item_ids[table.items].tolist(), names, table.timestamps.tolist(), strict=True))


def in_order(rows: list[tuple]) -> list[tuple]:
    return sorted(rows, key=lambda row: (row[0], row[3]))  # stable: ties keep the order of the files


def test_every_form_has_a_fixture() -> None:
    assert set(RAW_FORMS) == {(name, form.name) for name, data in PUBLIC_DATASETS.items() for form in data.forms}


@pytest.mark.parametrize(("dataset", "form"), RAW_FORMS)
def test_a_raw_form_gives_exactly_its_rows(dataset: str, form: str, raw_folder) -> None:
    expected = RAW_FORMS[dataset, form][1]
    folder = raw_folder(dataset, form)
    raw = find_raw_files(public_dataset(dataset), folder)
    log = read_raw_log(raw)
    assert raw.form.name == form
    got = log.frame.select("user_id", "item_id", "behavior", "timestamp").rows()
    assert [(user, item, log.schema.names[label], time) for user, item, label, time in got] == expected
    levels = PUBLIC_DATASETS["shortvideoad" if form == "smb" else dataset].levels
    assert dict(zip(log.schema.names, log.schema.levels, strict=True)).items() <= levels.items()
    assert log.schema.target == PUBLIC_DATASETS["shortvideoad" if form == "smb" else dataset].target
    table, report = build_dataset(dataset, folder, **EVERYTHING)
    assert flat_rows(table) == in_order(expected)
    assert report["options"]["dataset"] == dataset and report["options"]["form"] == form
    assert json.loads(json.dumps(report)) == report


def test_rows_that_are_no_interactions_are_counted(raw_folder) -> None:
    _, report = build_dataset("retail", raw_folder("retail", "userbehavior"), **EVERYTHING)
    assert report["reading"]["skipped"] == {"bad timestamp": 1}
    with pytest.raises(ValueError, match="UserBehavior.csv, line 5.*-13490"):
        build_dataset("retail", raw_folder("retail", "userbehavior"), on_bad_rows="raise")
    assert build_dataset("jdata", raw_folder("jdata", "jdata2016"), **EVERYTHING)[1]["reading"]["dropped"] == {"3": 1}
    assert build_dataset("jdata", raw_folder("jdata", "jdata2018"), **EVERYTHING)[1]["reading"]["dropped"] == {"4": 1}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_command_gives_the_same_rows(config: str, raw_folder, tmp_path: Path, capsys) -> None:
    folder = raw_folder("retail", "mbgen")
    options = ["--min-item-count", "1", "--min-user-interactions", "2", "--item-count-over", "all"]
    command = ["prepare", "retail", "--data-dir", str(folder), "--config", config, "--output", str(tmp_path / "out")]
    assert main([*command, *options]) == 0
    assert "purchase (target)=3 at level 2" in capsys.readouterr().out
    table, report = build_dataset(
        "retail", folder, config=config, min_item_count=1, min_user_interactions=2, item_count_over="all"
    )
    assert SequenceTable.load(tmp_path / "out").fingerprint() == table.fingerprint()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    rule = recorded_session_rule(tmp_path / "out")
    assert (str(rule) if rule else None) == ("gap:1800" if config == "session" else None)
    written, _ = build_dataset("retail", folder, tmp_path / "two", config, min_item_count=0)
    assert SequenceTable.load(tmp_path / "two").fingerprint() == written.fingerprint()


def test_the_presets_hold_the_values_of_the_papers() -> None:
    rules = {
        (name, config): dataset_rules(dataset, dataset.forms[-1], config).to_dict()
        for name, dataset in PUBLIC_DATASETS.items()
        for config in CONFIGS
    }
    for name in PUBLIC_DATASETS:
        assert (rules[name, "sequential"]["min_item_count"], rules[name, "sequential"]["min_user_interactions"]) == (
            5,
            4,
        )
        assert rules[name, "session"]["min_sessions"] == 3 and rules[name, "session"]["min_item_count"] == 0
        assert {rules[name, config]["item_count_over"] for config in CONFIGS} == {"train"}
    for config in CONFIGS:
        assert rules["tmall", config]["sample_users"] == 0.25 and rules["jdata", config]["sample_users"] == 0.1
        assert rules["tmall", config]["window"] == "7:Asia/Shanghai"
    sessions = {name: rules[name, "session"]["sessions"] for name in PUBLIC_DATASETS}
    day, pause = "day:Asia/Shanghai", "gap:1800"
    assert sessions == {"retail": pause, "ijcai": day, "tmall": day, "jdata": pause, "shortvideoad": "given"}
    tmall = public_dataset("tmall")
    gamer = dataset_rules(tmall, tmall.form("smb"), "session").to_dict()
    assert (gamer["sessions"], gamer["sample_users"], gamer["window"]) == ("given", None, None)
    changed = dataset_rules(tmall, tmall.form("log"), "session", sessions="gap:900", sample_users=0.5).to_dict()
    assert (changed["sessions"], changed["sample_users"], changed["min_sessions"]) == ("gap:900", 0.5, 3)
    assert dataset_rules(tmall, tmall.form("log"), "session", sessions=None).min_sessions is None


def test_sessions_of_gamer_are_taken_as_they_are(raw_folder) -> None:
    table, report = build_dataset("shortvideoad", raw_folder("shortvideoad", "smb"), config="session")
    assert table.session_ids.tolist() == [0, 0, 1, 2] * 2 and report["sessions"]["rule"] == "given"
    assert table.schema.to_dict() == {"names": ["p3s", "click", "conversion"], "levels": [0, 1, 2],
                                      "target": "conversion"}  # fmt: skip


# Real logs: folder, data set, form, files under their names here, and the numbers of SOURCE.md before any filter.
MONTHS = [f"JData_Action_20160{month}.csv.gz" for month in (2, 3, 4)]
REAL = {
    "taobao_userbehavior_head": ("retail", "userbehavior", ["UserBehavior_head.csv.gz"], (61143, 587, 41252),
                                 {"page_view": 54814, "cart": 3307, "favorite": 1704, "purchase": 1318}, {}),
    "ijcai15_raw_users1to100": ("ijcai", "sample", ["data_sample.csv.gz"], (13260, 100, 7248),
                                {"click": 11891, "purchase": 839, "favorite": 493, "cart": 37}, {}),
    "jdata2016_month_heads": ("jdata", "jdata2016", MONTHS, (89997, 3009, 3366),
                              {"click": 53209, "page_view": 34226, "cart": 1549, "collect": 223, "purchase": 200},
                              {"3": 590}),
    "jdata2018_mkmsr_demo": ("jdata", "jdata2018", ["train.csv.gz", "test_new_item.csv.gz"], (30360, 3880, 12971),
                             {"page_view": 27161, "purchase": 2164, "collect": 505, "cart": 0}, {"4": 530}),
}  # fmt: skip


@pytest.mark.parametrize("folder", REAL)
def test_real_logs_have_the_counts_of_their_source(folder: str, data_dir: Path) -> None:
    dataset, form, names, (rows, users, items), behaviors, dropped = REAL[folder]
    paths = tuple(shared_path(data_dir / folder, "real log") / name for name in names)
    raw = RawFiles(public_dataset(dataset), public_dataset(dataset).form(form), paths)
    report = read_raw_log(raw).report
    assert (report.rows, report.behaviors, report.dropped) == (rows, behaviors, dropped)
    if dropped:  # SOURCE.md counts users and items of the dropped rows too
        keep = {"drop_behaviors": (), "behaviors": {**raw.form.reading["behaviors"], **dict.fromkeys(dropped, "cart")}}
        form_with_all = type(raw.form)(form, raw.form.files, "", {**raw.form.reading, **keep})
        report = read_raw_log(RawFiles(raw.dataset, form_with_all, paths)).report
    assert (report.kept, report.users, report.items, report.skipped) == (rows, users, items, {})


@pytest.mark.parametrize("config", CONFIGS)
def test_a_real_log_is_built_under_its_usual_name(config: str, data_dir: Path, tmp_path: Path) -> None:
    source = shared_path(data_dir / "jdata2016_month_heads", "real log")
    table, report = build_dataset("jdata", source, tmp_path / "out", config, sample_users=None)
    assert report["reading"]["rows"] == 89997 and table.num_interactions == report["result"]["rows"] > 0
    files = ["train.csv.gz", "test_new_item.csv.gz"]
    if config == "sequential":
        other = shared_path(data_dir / "jdata2018_mkmsr_demo", "real log")
        table, report = build_dataset("jdata", other, form="jdata2018", files=files, sample_users=None)
        assert [Path(entry["path"]).name for entry in report["inputs"]] == files and table.num_users > 0


def test_missing_files_are_named_with_where_to_get_and_put_them(raw_folder, tmp_path: Path, capsys) -> None:
    folder = raw_folder("jdata", "jdata2016")
    (folder / "JData_Action_201604.csv").unlink()
    with pytest.raises(ValueError) as error:
        build_dataset("jdata", folder)
    for part in (str(folder), "no JData_Action_201604.csv", "'jdata2016'", "jdata.jd.com", "put it into this folder"):
        assert part in str(error.value)
    for name, file, place in (
        ("retail", "UserBehavior.csv", "tianchi.aliyun.com/dataset/649"),
        ("ijcai", "user_log_format1.csv", "tianchi.aliyun.com"),
        ("tmall", "tianchi_2014002_rec_tmall_log_part", "tianchi.aliyun.com/dataset/140281"),
        ("shortvideoad", "*.SMB.inter.json", "github.com/wzf2000/GAMER"),
    ):
        (tmp_path / "readme.txt").write_text("x")
        for where, found in (
            (tmp_path, "none of them but ['readme.txt'];"),
            (tmp_path / "nowhere", "no such folder"),
            (tmp_path / "readme.txt", "found a file;"),
        ):
            assert main(["prepare", name, "--data-dir", str(where), "--output", str(tmp_path / "out")]) == 2
            message = capsys.readouterr().err
            assert file in message and place in message and found in message and "into this folder" in message
            assert message.count("\n") == 1 and not (tmp_path / "out").exists()


def test_archives_and_folders_instead_of_the_files_are_named(tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match="found none of them, the folder is empty; get retail.txt"):
        build_dataset("retail", tmp_path)
    (tmp_path / "Taobao").mkdir()
    with zipfile.ZipFile(tmp_path / "UserBehavior.csv.zip", "w") as archive:
        archive.writestr("UserBehavior.csv", "1,2,3,pv,4\n")
    with pytest.raises(ValueError, match=r"but \['Taobao/', 'UserBehavior.csv.zip'\] \(unpack the archive\); get"):
        build_dataset("retail", tmp_path)
    (tmp_path / "UserBehavior.csv.zip").rename(tmp_path / "UserBehavior.csv")
    with pytest.raises(ValueError, match="UserBehavior.csv: expected text or Parquet.*, found a zip archive; unpack"):
        build_dataset("retail", tmp_path)


def test_an_error_tells_what_the_preset_took_away_before(raw_folder) -> None:
    with pytest.raises(ValueError, match="`sample_users`: expected users to be left, .*; None keeps all users"):
        build_dataset("jdata", raw_folder("jdata", "jdata2018"))
    before = r"no interaction left .*; kept before that: 4 of 4 rows by 2014-09-14 to 2014-09-20 \(Asia/Shanghai\), "
    with pytest.raises(ValueError, match=before + "1 of 4 rows by a sample of 25% of the users, seed 0"):
        build_dataset("tmall", raw_folder("tmall", "log"))


def test_a_folder_with_two_forms_wants_to_know_which(tmp_path: Path) -> None:
    for form in ("mbgen", "userbehavior"):
        write_raw(tmp_path, RAW_FORMS["retail", form][0])
    with pytest.raises(ValueError, match=r"expected one raw form of retail, found \['mbgen', 'userbehavior'\]"):
        build_dataset("retail", tmp_path)
    assert build_dataset("retail", tmp_path, form="mbgen", **EVERYTHING)[0].num_interactions == 10
    write_raw(tmp_path / "two", gamer_files("A") | gamer_files("B"))
    with pytest.raises(ValueError, match="expected one log in GAMER's form, found"):
        build_dataset("jdata", tmp_path / "two")


HOSTILE = {
    "retail": "`--data-dir`: expected the folder with the raw files of retail, found none",
    "netflix --data-dir {raw}": "`--data-dir`: expected one public log of",
    "retail ijcai --data-dir {raw}": "found retail, ijcai",
    "retail --data-dir {raw} --columns user_id=0": "`--data-dir`: expected no option on how files are read",
    "retail --data-dir {raw} --config weekly": "invalid choice",
    "retail --data-dir {raw} --form smb": "`form`: expected one of ['mbgen', 'userbehavior'] for retail",
    "retail --data-dir {raw} --window week": "`window`: expected DAYS",
    "retail --data-dir {raw} --sample-users half": "expected a share such as 0.25",
    "retail --data-dir {raw} --sample-users 2": "`sample_users`: expected a fraction",
    "retail --data-dir {raw} --min-sessions 2": "`min_sessions`: expected only with `sessions`",
    "{raw}/retail.txt --config session": "`--data-dir`: expected a public log with ['config']",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_requests_end_in_one_line(case: str, raw_folder, tmp_path: Path, capsys) -> None:
    command = case.format(raw=raw_folder("retail", "mbgen")).split()
    assert main(["prepare", *command, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert HOSTILE[case] in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_build_rejects_unknown_arguments(raw_folder) -> None:
    folder = raw_folder("retail", "mbgen")
    with pytest.raises(ValueError, match="`dataset`: expected one of .*found 'netflix'"):
        build_dataset("netflix", folder)
    with pytest.raises(ValueError, match="`config`: expected one of .*found 'weekly'"):
        build_dataset("retail", folder, config="weekly")
    with pytest.raises(ValueError, match="`rules`: expected .*found .*'min_items'"):
        build_dataset("retail", folder, min_items=3)
    with pytest.raises(ValueError, match="`form`: expected the raw form of `files`"):
        build_dataset("retail", folder, files=["retail.txt"])
