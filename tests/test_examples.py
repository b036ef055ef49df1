"""The scripts run from start to end."""

from functools import partial

import pytest
from script_loading import load_script

from mbgen_hf.simulation import simulate_shop


load = partial(load_script, "examples")


def test_quickstart_walks_the_whole_path(tmp_path, capsys):
    load("quickstart").main(["--output", str(tmp_path), "--max-steps", "2", "--num-users", "150"])
    printed = capsys.readouterr().out
    assert printed.count("$ mbgen") == 4 and printed.count("user ") >= 3
    assert (tmp_path / "model" / "README.md").is_file()


@pytest.mark.slow
def test_quickstart_beats_both_baselines_clearly(tmp_path):
    import json

    load("quickstart").main(["--output", str(tmp_path)])
    rows = json.loads((tmp_path / "model" / "evaluation.json").read_text())["tasks"]["target"]
    scores = {name: groups["overall"]["hr@10"] for name, groups in rows.items()}
    assert scores["model"] > 0.7 and scores["model"] > 1.8 * max(scores["recency"], scores["popularity"])


@pytest.mark.parametrize("architecture", ["mbgen", "gamer"])
def test_train_scripts_train_and_score(tmp_path, capsys, architecture):
    (tmp_path / "data").mkdir()
    simulate_shop(num_users=150, num_items=24, seed=3).table().save(tmp_path / "data")
    preset = [] if architecture == "gamer" else ["--preset", "mbgen-quickstart"]
    report = load(f"train_{architecture}").main(
        [
            *("--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--max_users", "10"),
            *("--num_beams", "10", *preset, "--changes", "training.max_steps=2", "training.eval_strategy=steps"),
            *("training.eval_steps=2", "training.disable_tqdm=true", "validation.max_users=5"),
        ]
    )
    assert set(report) == {"target", "behavior", "behavior_item"}
    assert "popularity" in capsys.readouterr().out


def test_a_train_script_refuses_a_preset_of_the_other_model(tmp_path):
    with pytest.raises(ValueError, match="expected one of gamer, found 'mbgen-small'"):
        load("train_gamer").main(["--data", "unread", "--output", str(tmp_path / "run"), "--preset", "mbgen-small"])
