"""The benchmark scripts run from start to end."""

import importlib.util
import json
from pathlib import Path

import pytest

from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.simulation import simulate_shop


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compare_models_writes_tables_and_its_curves_can_be_drawn(tmp_path, capsys):
    data, results = tmp_path / "data", tmp_path / "results"
    data.mkdir()
    shop = simulate_shop(num_users=120, num_items=24, seed=3).table()
    with_sessions(shop, SessionRule("gap", gap_seconds=20_000)).save(data)
    options = [str(data), "--output", str(results), "--protocol", "session_wise", "--users", "40", "--num-beams", "10"]
    options += ["--models", "sasrec,gamer + copying", "--steps", "2", "--validations", "1", "--sasrec-epochs", "1"]
    options += ["--validation-users", "10", "--seeds", "0"]
    compare = load("compare_models").main
    found = compare(options)
    assert set(found) == {"sasrec", "gamer + copying"}
    assert json.loads((results / "results.json").read_text()) == json.loads(json.dumps(found))
    table = (results / "results.md").read_text()
    assert table.count("| recency |") == 2 and table.count("| gamer + copying |") == 2
    assert compare(options) == json.loads(json.dumps(found))  # read back, not run again
    load("learning_curves").main([str(results), str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    checkpoint = str(results / "gamer+copying-seed0")
    reports = load("calibration").main(
        [str(data), checkpoint, "--protocol", "session_wise", "--users", "40", "--num-beams", "20"]
        + ["--output", str(tmp_path / "calibration.png")]
    )
    assert reports["gamer+copying-seed0"].history_mass > 0
    assert (tmp_path / "calibration.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="expected runs of `compare_models.py`, found none"):
        load("learning_curves").main([str(data), str(tmp_path / "none.png")])


@pytest.mark.parametrize("order", ["time", "user"])
def test_both_sides_of_the_data_benchmark_do_the_same(tmp_path, order):
    prepare = load("prepare")
    prepare.write_log(tmp_path / "log.txt", 20_000, order)
    ours, rival = prepare.ours(tmp_path / "log.txt"), prepare.rival(tmp_path / "log.txt")
    for name in ("rows", "users", "items", "checksum"):
        assert ours[name] == rival[name] > 0
    assert 0 < ours["rows"] < 20_000 and ours["peak"] > 0 and ours["seconds"] > 0
