"""The commands as a user types them, on the simulated shop and on real logs."""

import json
import shutil

import pytest

from mbgen_hf.cli import main
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.checkpoint import load_checkpoint, push_checkpoint


SHOP_COLUMNS = "user_id=user_id,item_id=item_id,behavior=behavior,timestamp=timestamp"
SHORT = (
    "--cpu --max-steps 4 --batch-size 16 --set training.eval_strategy=steps --set training.eval_steps=4 "
    "--set training.disable_tqdm=true --set validation.max_users=5 --set validation.num_beams=10 "
    "--set model.d_model=16 --set model.d_ff=16 --set model.num_layers=1 --set model.num_decoder_layers=1"
).split()
K = "--columns user_id=user,item_id=item,behavior=behavior,timestamp=timestamp"
LOCAL = "--timezone Asia/Shanghai"
REAL_LOGS = {
    "taobao_kcore_fav_cart_buy": f"interactions.csv.gz {K} --behaviors fav,cart,buy --target buy",
    "retailrocket_kcore": f"interactions.csv.gz {K} --behaviors view,cart,buy",
    "ijcai15_raw_users1to100": "data_sample.csv.gz --columns user_id=user_id,item_id=item_id,behavior=action_type,"
    f"timestamp=time_stamp --behaviors 0=click,3=favourite,1=cart,2=purchase --time-format %m%d --year 2015 {LOCAL}",
    "jdata2016_month_heads": "JData_Action_201602.csv.gz JData_Action_201603.csv.gz JData_Action_201604.csv.gz "
    "--columns user_id=user_id,item_id=sku_id,behavior=type,timestamp=time "
    "--behaviors 1=browse,6=click,5=follow,2=cart,4=order --drop-behaviors 3 "
    f"--time-format %Y-%m-%dT%H:%M:%S {LOCAL}",
    "taobao_userbehavior_head": "UserBehavior_head.csv.gz --columns user_id=0,item_id=1,behavior=3,timestamp=4 "
    "--behaviors pv,fav,cart,buy",
}


def run(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A prepared folder and a checkpoint trained on it for a moment."""
    root = tmp_path_factory.mktemp("shop")
    simulate_shop(num_users=150, num_items=24, seed=3).write_csv(root / "log.csv")
    run("prepare", root / "log.csv", "--columns", SHOP_COLUMNS, "--behaviors", "click,cart,purchase",
        "--output", root / "data")  # fmt: skip
    run("train", root / "data", "--output", root / "model", *SHORT)
    return root


@pytest.mark.parametrize("name", REAL_LOGS)
def test_real_logs_run_from_raw_file_to_recommendations(tmp_path, data_dir, capsys, name):
    words = [word.replace("T%H", " %H") for word in REAL_LOGS[name].split()]
    files = [data_dir / name / word if word.endswith(".gz") else word for word in words]
    data, model, output = tmp_path / "data", tmp_path / "model", tmp_path / "lists.json"
    run("prepare", *files, "--output", data)
    run("train", data, "--output", model, *SHORT)
    capsys.readouterr()
    run("evaluate", model, "--data", data, "--max-users", 20, "--num-beams", 10)
    table = capsys.readouterr().out
    assert table.count("recency ") == table.count("recency_by_behavior") == table.count("popularity") == 3
    users = load_users(data)[:2]
    run("recommend", model, "--data", data, "--users", ",".join(map(str, users)), "-k", 4, "--output", output)
    lists = json.loads(output.read_text())
    assert [row["user_id"] for row in lists] == users and all(len(r["recommendations"]) == 4 for r in lists)
    items = {entry["item_id"] for row in lists for entry in row["recommendations"]}
    assert items <= set(load_checkpoint(model)[1].item_ids.tolist())


def load_users(folder) -> list:
    from mbgen_hf import SequenceTable

    return SequenceTable.load(folder).user_ids.tolist()


@pytest.mark.parametrize(
    ("protocol", "session_wise"), [("leave_one_out", False), ("session_wise", False), ("session_wise", True)]
)
def test_gamer_runs_through_the_same_commands(shop, tmp_path, capsys, protocol, session_wise):
    data, model = tmp_path / "data", tmp_path / "model"
    run("prepare", shop / "log.csv", "--columns", SHOP_COLUMNS, "--behaviors", "click,cart,purchase",
        "--sessions", "gap:20000", "--output", data)  # fmt: skip
    small = "--set model.hidden_size=16 --set model.intermediate_size=16 --set model.num_hidden_layers=2".split()
    run("train", data, "--model", "gamer", "--output", model, *SHORT[:15], *small, "--set", "data.augmentation=2",
        "--set", f"data.protocol={protocol}",
        "--set", f"model.session_wise_attention={json.dumps(session_wise)}")  # fmt: skip
    capsys.readouterr()
    run("evaluate", model, "--data", data, "--max-users", 20, "--num-beams", 10)
    assert capsys.readouterr().out.count("recency ") == (3 if protocol == "leave_one_out" else 2)
    assert json.loads((model / "evaluation.json").read_text())["protocol"] == protocol
    assert "**GAMER**" in (model / "README.md").read_text()
    run("recommend", model, "--history", "click=mug-001", "-k", 3)
    run("recommend", model, "--history", "-k", 2)
    assert len(capsys.readouterr().out.splitlines()) == 7
    # The same interactions, every one a session of its own: they differ for session-wise attention alone.
    run("prepare", shop / "log.csv", "--columns", SHOP_COLUMNS, "--behaviors", "click,cart,purchase",
        "--sessions", "gap:1", "--output", tmp_path / "other")  # fmt: skip
    lists, users = [], load_users(data)[:5]
    for prepared in (data, tmp_path / "other"):
        run("recommend", model, "--data", prepared, "--users", ",".join(map(str, users)), "-k", 4,
            "--output", tmp_path / "lists.json")  # fmt: skip
        lists.append(json.loads((tmp_path / "lists.json").read_text()))
    scores = [[entry["score"] for row in rows for entry in row["recommendations"]] for rows in lists]
    assert all(len(row["recommendations"]) == 4 for row in lists[0])
    assert (scores[0] == pytest.approx(scores[1], abs=1e-6)) != session_wise


def test_evaluate_records_what_it_prints_and_writes_the_card(shop, capsys, tmp_path):
    copy = tmp_path / "copy.json"
    run("evaluate", shop / "model", "--data", shop / "data", "--num-beams", 10, "--output", copy)
    printed = capsys.readouterr().out
    record = json.loads((shop / "model" / "evaluation.json").read_text())
    assert record == json.loads(copy.read_text()) and record["dataset"] == "data"
    for task in ("target", "behavior", "behavior_item"):
        for model in ("model", "recency", "popularity"):
            overall = record["tasks"][task][model]["overall"]
            assert {"hr@1", "hr@5", "hr@10", "recall@10", "ndcg@1", "ndcg@10", "n"} <= set(overall)
            assert f"{overall['ndcg@10']:.4f}" in printed
    model = record["tasks"]["behavior"]["model"]
    for behavior in ("click", "cart", "purchase"):
        scores = model[f"behavior:{behavior}"]
        lines = [line for line in printed.splitlines() if line.startswith(f"  {behavior} ({scores['n']})")]
        assert len(lines) == 2 and lines[0].split()[-1] == f"{scores['ndcg@10']:.4f}"
    assert model["merged"] == pytest.approx(model["overall"])
    card = (shop / "model" / "README.md").read_text()
    assert "library_name: transformers" in card and "trust_remote_code=True" in card
    assert f"{record['tasks']['target']['model']['overall']['hr@10']:.4f}" in card
    assert f"value: {round(record['tasks']['behavior']['model']['overall']['ndcg@10'], 4)}" in card


def test_evaluate_with_reduced_histories_keeps_the_record(shop, tmp_path):
    run("evaluate", shop / "model", "--data", shop / "data", "--num-beams", 10, "--tasks", "target")
    kept = (shop / "model" / "evaluation.json").read_bytes()
    reports = {}
    changes = {
        "targets": ["--drop-targets"],
        "whole": ["--drop-low-levels", "0"],
        "half": ["--drop-low-levels", "0.5"],
        "clickless": ["--drop-low-levels", "1"],
        "new": ["--exclude-seen"],
    }
    for name, flags in changes.items():
        output = tmp_path / f"{name}.json"
        run("evaluate", shop / "model", "--data", shop / "data", "--num-beams", 10, "--tasks", "target", *flags,
            "--output", output)  # fmt: skip
        reports[name] = json.loads(output.read_text())
    assert (shop / "model" / "evaluation.json").read_bytes() == kept
    kept = json.loads(kept)["tasks"]["target"]
    assert reports["whole"]["tasks"]["target"] == kept
    assert reports["half"]["histories"] == "without 0.5 of the lowest level"
    assert reports["targets"]["histories"] == "without targets"
    # The model sees the shorter histories as well as the baselines, and what is left out of them is counted right.
    shown = [kept, *(reports[name]["tasks"]["target"] for name in ("half", "clickless", "targets"))]
    for model in ("model", "recency"):
        assert len({json.dumps(scores[model]) for scores in shown}) == 4
    assert reports["clickless"]["tasks"]["target"]["recency"]["overall"]["hr@10"] == recency_without_clicks(shop)
    # Of lists without what was seen, nothing is found again; popularity and the model have room for what is new.
    for model in ("model", "recency", "recency_by_behavior", "popularity"):
        assert reports["new"]["tasks"]["target"][model]["repeat"]["hr@10"] == 0
        assert (reports["new"]["tasks"]["target"][model]["new"]["hr@10"] > 0) == ("recency" not in model)
    assert reports["new"]["exclude_seen"] and not reports["whole"]["exclude_seen"]
    # Whoever lists the history alone finds nothing once the targets are gone from it.
    assert reports["targets"]["tasks"]["target"]["recency"]["overall"]["hr@10"] == 0
    assert kept["recency"]["overall"]["hr@10"] > 0


def recency_without_clicks(shop) -> float:
    """HR@10 of the latest ten items that were not just clicked, by a loop over the users."""
    from mbgen_hf import SequenceTable

    table, hits = SequenceTable.load(shop / "data"), []
    for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True):
        if table.behaviors[end - 1] == table.schema.target_index:
            row = list(zip(table.items[start : end - 1][-50:], table.behaviors[start : end - 1][-50:], strict=True))
            items = [item for item, behavior in row if table.schema.names[behavior] != "click"]
            hits.append(table.items[end - 1] in list(dict.fromkeys(reversed(items)))[:10])
    return pytest.approx(sum(hits) / len(hits))


def test_recommend_takes_a_history_from_the_command_line(shop, capsys):
    run("recommend", shop / "model", "--history", "click=mug-001", "cart=tea-001", "-k", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "history" and [line.split()[:2] for line in lines[1:]] == [
        [str(rank), "purchase"] for rank in (1, 2, 3)
    ]
    run("recommend", shop / "model", "--history", "-k", 1, "--num-beams", 1)
    assert len(capsys.readouterr().out.splitlines()) == 2
    seen = lines[1].split()[2]
    run("recommend", shop / "model", "--history", f"click={seen}", "-k", 200)
    assert seen in capsys.readouterr().out
    run("recommend", shop / "model", "--history", f"click={seen}", "-k", 200, "--exclude-seen")
    assert seen not in capsys.readouterr().out
    run("recommend", shop / "model", "--history", "-k", 2, "--behavior", "any")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_card_says_when_only_a_sample_was_scored(shop, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shop / "model", model, ignore=shutil.ignore_patterns("checkpoints"))
    run("evaluate", model, "--data", shop / "data", "--num-beams", 5, "--tasks", "target", "--max-users", 7)
    assert "Only a random sample of at most 7 cases per task was scored" in (model / "README.md").read_text()
    run("evaluate", model, "--data", shop / "data", "--num-beams", 5, "--tasks", "target")
    assert "random sample" not in (model / "README.md").read_text()


def test_a_hub_out_of_reach_is_one_line_and_leaves_the_card_alone(shop, tmp_path):
    from mbgen_hf.training.checkpoint import push_checkpoint

    class ConnectError(Exception):
        __module__ = "httpx"

    class Unreachable:
        def create_repo(self, *args, **kwargs):
            raise ConnectError("[Errno 111] Connection refused")

    run("evaluate", shop / "model", "--data", shop / "data", "--num-beams", 5, "--tasks", "target")
    prepared = []
    with pytest.raises(OSError, match="me/shop: expected a Hub that can be reached, found ConnectError"):
        push_checkpoint(shop / "model", "me/shop", api=Unreachable(), prepare=lambda *given: prepared.append(given))
    assert not prepared


def test_recommend_reads_behaviors_by_name(shop, tmp_path):
    """The same log prepared with its behaviors in another order gives the same lists."""
    other = tmp_path / "other"
    run("prepare", shop / "log.csv", "--columns", SHOP_COLUMNS, "--behaviors", "purchase,cart,click",
        "--target", "purchase", "--output", other)  # fmt: skip
    users, lists = ",".join(map(str, load_users(other)[:3])), []
    for data in (shop / "data", other):
        output = tmp_path / "lists.json"
        run("recommend", shop / "model", "--data", data, "--users", users, "-k", 5, "--output", output)
        lists.append(json.loads(output.read_text()))
    assert lists[0] == lists[1]


def test_push_uploads_the_checkpoint_without_training_states(shop, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shop / "model", folder)
    calls = []

    class Hub:
        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, **options):
            calls.append(options)

    (folder / "README.md").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="holding README.md, found none; run `mbgen evaluate`"):
        push_checkpoint(folder, "me/shop", api=Hub())
    run("evaluate", folder, "--data", shop / "data", "--max-users", 5, "--num-beams", 10)
    assert push_checkpoint(folder, "me/shop", private=True, api=Hub()) == "https://hub.example/me/shop"
    assert calls[0] == ("me/shop", {"private": True, "exist_ok": True})
    assert "checkpoints/*" in calls[1]["ignore_patterns"] and calls[1]["folder_path"] == str(folder)


HOSTILE = {
    "train on nothing": (
        "train {root}/nothing --output {new}",
        "expected a folder that `mbgen prepare` or `mbgen push-dataset` wrote, or owner/name on the Hub, found no",
    ),
    "train on a file": ("train {root}/log.csv --output {new}", "or owner/name on the Hub, found a file"),
    "unknown preset": ("train {root}/data --output {new} --preset huge", "`preset`: expected one of"),
    "unknown section": ("train {root}/data --output {new} --set modle.d_model=8", "expected SECTION.NAME"),
    "no value": ("train {root}/data --output {new} --set model.d_model", "expected SECTION.NAME=VALUE"),
    "unknown field": ("train {root}/data --output {new} --set model.width=8", "fields of MBGenConfig"),
    "wrong type": ("train {root}/data --output {new} --set model.d_model=wide", "d_model"),
    "not a multiple": ("train {root}/data --output {new} --set model.d_ff=10", "expected a multiple of 8"),
    "unknown validation": ("train {root}/data --output {new} --set validation.num_beam=3", "found 'num_beam'"),
    "unknown ids": ("train {root}/data --output {new} --set item_ids.foo=1", "`item_ids`: expected settings"),
    "base of letters": ("train {root}/data --output {new} --set item_ids.base=abc", "`item_ids.base`: expected int"),
    "patience of letters": ("train {root}/data --output {new} --set validation.patience=x", "`validation.patience`"),
    "no patience": ("train {root}/data --output {new} --set validation.patience=0", "expected at least 1"),
    "unknown task to validate": ("train {root}/data --output {new} --set validation.task=x", "`validation.task`"),
    "history of letters": ("train {root}/data --output {new} --set data.max_history=abc", "`data.max_history`"),
    "unknown protocol": ("train {root}/data --output {new} --set data.protocol=x", "`protocol`: expected one of"),
    "no sessions": ("train {root}/data --output {new} --set data.protocol=session_wise", "session"),
    "unknown architecture": ("train {root}/data --output {new} --model bert", "invalid choice"),
    "mistyped folder": ("evaluate typo/model --data {root}/data", "found no such folder"),
    "unknown argument": ("train {root}/data --output {new} --set training.speed=9", "fields of TrainingArguments"),
    "half precision": ("train {root}/data --output {new} --set training.fp16=true", "expected bf16 or float32"),
    "wrong rate": ("train {root}/data --output {new} --set training.learning_rate=high", "learning_rate"),
    "unknown schedule": ("train {root}/data --output {new} --set training.lr_scheduler_type=zigzag", "zigzag"),
    "bad number": ("train {root}/data --output {new} --epochs many", "--epochs"),
    "folder in use": ("train {root}/data --output {root}", "expected a new or empty folder"),
    "output is a file": ("train {root}/data --output {root}/log.csv", "found a file"),
    "no output": ("train {root}/data", "--output"),
    "no checkpoint": (
        "evaluate {root}/nothing --data {root}/data",
        "expected a checkpoint folder holding config.json",
    ),
    "prepared folder as checkpoint": ("evaluate {root}/data --data {root}/data", "holding config.json, found none"),
    "config is not JSON": ("evaluate {broken_config} --data {root}/data", "config.json: expected JSON"),
    "another model": (
        "evaluate {other_model} --data {root}/data",
        "expected a model of type ['mbgen', 'gamer'], found 'bert'",
    ),
    "damaged weights": ("evaluate {broken_weights} --data {root}/data", "found a damaged one"),
    "weights are missing": ("evaluate {no_weights} --data {root}/data", "model.safetensors"),
    "catalog is missing": ("evaluate {no_catalog} --data {root}/data", "expected catalog.safetensors"),
    "other data": ("evaluate {root}/model --data {other_data}", "expected the catalog of the checkpoint"),
    "unknown task": ("evaluate {root}/model --data {root}/data --tasks guess", "`tasks`: expected some of"),
    "protocol it was not trained under": (
        "evaluate {root}/model --data {root}/data --protocol session_wise",
        "`--protocol`: expected 'leave_one_out', which the checkpoint was trained under",
    ),
    "record in no folder": (
        "evaluate {root}/model --data {root}/data --output {new}/deep/x.json",
        "`--output`: expected a file in an existing folder",
    ),
    "no users": ("evaluate {root}/model --data {root}/data --max-users 0", "expected a positive integer"),
    "preset of the other model": (
        "train {root}/data --model gamer --preset mbgen-small --output {new}",
        "`--preset`: expected a preset of gamer, found 'mbgen-small'",
    ),
    "data beside a history": (
        "recommend {root}/model --data {root}/data --history click=mug-001",
        "`--data`: expected it with --users only",
    ),
    "no beams": ("evaluate {root}/model --data {root}/data --num-beams 0", "expected a positive integer"),
    "unknown user": (
        "recommend {root}/model --data {root}/data --users nobody",
        "expected users of the prepared data",
    ),
    "users without data": ("recommend {root}/model --users 1", "expected the prepared folder that holds --users"),
    "neither users nor history": ("recommend {root}/model", "found both or neither"),
    "unknown item": ("recommend {root}/model --history click=piano", "expected items of the catalog"),
    "unknown behavior": ("recommend {root}/model --history rent=mug-001", "`behaviors`: expected one of"),
    "not an interaction": ("recommend {root}/model --history mug-001", "expected BEHAVIOR=ITEM"),
    "unknown target": ("recommend {root}/model --history --behavior rent", "`behavior`: expected one of"),
    "no list": ("recommend {root}/model --history -k 0", "expected a positive integer"),
    "push nothing": ("push {root}/nothing me/shop", "expected a checkpoint folder"),
    "unknown command": ("recomend x", "invalid choice"),
}


@pytest.fixture(scope="module")
def hostile_places(shop, tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    places = {"root": shop, "new": root / "new"}
    for name in ("broken_config", "other_model", "broken_weights", "no_weights", "no_catalog"):
        places[name] = root / name
        shutil.copytree(shop / "model", places[name], ignore=shutil.ignore_patterns("checkpoints"))
    (places["broken_config"] / "config.json").write_text("{")
    (places["other_model"] / "config.json").write_text('{"model_type": "bert"}')
    (places["broken_weights"] / "model.safetensors").write_bytes(b"\x00" * 40)
    (places["no_weights"] / "model.safetensors").unlink()
    (places["no_catalog"] / "catalog.safetensors").unlink()
    places["other_data"] = root / "other_data"
    places["other_data"].mkdir()
    simulate_shop(num_users=60, num_items=36, seed=4).table().save(places["other_data"])
    return places


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_requests_end_in_one_line(hostile_places, capsys, case):
    command, message = HOSTILE[case]
    status = main(command.format(**hostile_places).split())
    error = capsys.readouterr().err
    assert status == 2 and message in error, error
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("mbgen: error: ") and "Traceback" not in error
    assert not hostile_places["new"].exists()
