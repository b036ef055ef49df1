from pathlib import Path

from mbgen_hf import build_dataset
from mbgen_hf.cli import main
from mbgen_hf.public_datasets.catalog import PUBLIC_DATASETS
from mbgen_hf.public_datasets.statistics import LogStatistics, format_statistics, published_statistics


def test_the_papers_row_stands_beside_ours(raw_folder, tmp_path: Path, capsys) -> None:
    build_dataset("shortvideoad", raw_folder("shortvideoad", "smb"), tmp_path / "s", config="session")
    build_dataset("retail", raw_folder("retail", "mbgen"), tmp_path / "r", min_item_count=0, min_user_interactions=0)
    assert main(["statistics", str(tmp_path / "s"), str(tmp_path / "r")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].split()[-6:] == ["2", "4", "8", "6", "4.00", "2.00"]
    assert lines[2].startswith("GAMER table 1 (session)")
    assert lines[2].split()[-6:] == ["48,779", "168,530", "7,877,083", "1,874,719", "161.49", "46.74"]
    assert lines[3].split()[-6:] == ["0.000", "0.000", "0.000", "0.000", "0.025", "0.043"]
    assert lines[4].startswith("behaviors: p3s 4 (50.0%, level 0), click 2") and lines[4].endswith("target conversion")
    assert lines[7].split()[-6:] == ["2", "3", "10", "-", "5.00", "3.33"]
    assert lines[8].split()[-6:] == ["147,894", "97,842", "7,651,493", "-", "51.74", "78.20"]


def test_published_rows_are_those_of_the_papers() -> None:
    printed = {name: published_statistics(name)[0].cells() for name in PUBLIC_DATASETS}
    assert printed["ijcai"][:4] == [423119, 351221, 32685371, None]
    assert printed["tmall"][:4] == [217374, 379450, 3818122, 856756]
    assert printed["jdata"][:4] == [10010, 17100, 1643212, 195860]


def test_a_log_of_ones_own_has_its_row_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,behavior,timestamp\n" + "1,5,buy,1\n" * 4)
    command = ["prepare", str(tmp_path / "log.csv"), "--behaviors", "buy", "--min-item-count", "0"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["statistics", str(tmp_path / "out")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["statistics", str(tmp_path)]) == 2
    assert "expected a prepared folder holding sequences.parquet" in capsys.readouterr().err


def test_shares_are_given_where_both_have_a_number() -> None:
    text = format_statistics(LogStatistics("ours", 10, 20, 40), [LogStatistics("theirs", 20, 20, 160, 7)])
    assert text.splitlines()[3].split()[-6:] == ["0.500", "1.000", "0.250", "-", "0.500", "0.250"]
