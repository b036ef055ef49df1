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


def test_item_ids_measures_itself_and_its_rival(capsys):
    assert load("item_ids").main(["--items", "3000", "--dim", "8", "--codes", "6", "--rival-items", "1500"]) == 0
    printed = capsys.readouterr().out
    assert "3000 items x 8, 6 groups" in printed and "times as fast, inertia" in printed
