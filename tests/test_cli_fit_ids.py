"""`mbgen fit-ids` as a user types it, up to recommendations."""

import json

import numpy as np
import pytest

from mbgen_hf.cli import main
from mbgen_hf.data.prepare import prepare
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.item_ids.fitted_ids import ItemIds
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.checkpoint import load_checkpoint


FIT = ["--cpu", "--sasrec-epochs", 1, "--max-epochs", 3, "--hidden", "16,8", "--latent-dim", 4]
TRAIN = (
    "--cpu --max-steps 4 --batch-size 16 --set training.eval_strategy=steps --set training.eval_steps=4 "
    "--set training.disable_tqdm=true --set validation.max_users=5 --set validation.num_beams=10 "
    "--set model.d_model=16 --set model.d_ff=16 --set model.num_layers=1 --set model.num_decoder_layers=1"
).split()


def run(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "data"
    folder.mkdir()
    simulate_shop(num_users=150, num_items=24, seed=3).table().save(folder)
    return folder


@pytest.mark.parametrize("method", ["balanced", "rq-vae", "chunked", "single", "released"])
def test_ids_of_every_kind_go_from_the_log_to_recommendations(data, tmp_path, capsys, method):
    options = {"balanced": [*FIT, "--code-sizes", "6,5"], "rq-vae": FIT, "chunked": ["--base", 5], "single": []}
    index = {item: [f"<a_{n % 3}>", "<b_1>"] for n, item in enumerate(SequenceTable.load(data).item_ids.tolist())}
    (tmp_path / "Shop.index.json").write_text(json.dumps(index))
    options["released"] = ["--index-file", tmp_path / "Shop.index.json"]
    ids, model = tmp_path / "ids", tmp_path / "model"
    run("fit-ids", data, "--method", method, "--output", ids, *options[method])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{method} IDs, code sizes") and "0 collisions" in printed and "mbgen train" in printed
    assert ("24 items shared all of their codes" in printed) == (method == "released")
    run("train", data, "--item-ids", ids, "--output", model, *TRAIN)
    fitted, (_, tokenizer) = ItemIds.load(ids), load_checkpoint(model)
    assert np.array_equal(tokenizer.item_codes, fitted.codes)
    assert tokenizer.token_space.code_sizes == tuple(fitted.code_sizes)
    if method == "balanced":
        assert fitted.code_sizes[:2] == [6, 5]
    run("evaluate", model, "--data", data, "--max-users", 5, "--num-beams", 10, "--tasks", "target")
    run("recommend", model, "--data", data, "--users", "0", "-k", 3)


def test_ids_of_a_real_log_train_a_model(data_dir, tmp_path, capsys):
    prepared, ids = tmp_path / "data", tmp_path / "ids"
    columns = {"user_id": "user", "item_id": "item", "behavior": "behavior", "timestamp": "timestamp"}
    log = data_dir / "retailrocket_kcore" / "interactions.csv.gz"
    table, _ = prepare(log, prepared, columns=columns, behaviors=["view", "cart", "buy"], min_item_count=20)
    run("fit-ids", prepared, "--output", ids, *FIT)
    assert len(ItemIds.load(ids)) == table.num_items > 100
    run("train", prepared, "--item-ids", ids, "--output", tmp_path / "model", *TRAIN)


HOSTILE = {
    "no data": ("fit-ids {data}/none --output {new}", "expected a folder that `mbgen prepare` or"),
    "unknown method": ("fit-ids {data} --output {new} --method kmeans", "invalid choice"),
    "sizes of letters": ("fit-ids {data} --output {new} --code-sizes a,b", "expected positive integers"),
    "too many sizes": (
        "fit-ids {data} --output {new} --cpu --sasrec-epochs 1 --code-sizes 4,4,4",
        "`code_sizes`: expected 2 positive sizes",
    ),
    "no such features": ("fit-ids {data} --output {new} --features none.npy", "`features`: expected a file"),
    "features for none": (
        "fit-ids {data} --output {new} --method single --features f.npy",
        "`features`: expected none",
    ),
    "option of another": ("fit-ids {data} --output {new} --method single --base 5", "`base`: expected an option"),
    "no index": ("fit-ids {data} --output {new} --method released", "`index_file`: expected the file"),
    "no sessions": ("fit-ids {data} --output {new} --protocol session_wise --cpu", "session"),
    "output in use": ("fit-ids {data} --output {data} --method single", "expected a new or empty folder"),
    "no ids": ("train {data} --output {new} --item-ids {data}", "expected a folder of item IDs holding item_ids.json"),
    "ids and base": (
        "train {data} --output {new} --item-ids {data} --set item_ids.base=5",
        "`item_ids`: expected settings ['path'], found 'base'",
    ),
    "method to fit first": ("train {data} --output {new} --set item_ids.method=balanced", "given as `item_ids.path`"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_mistakes_end_in_one_line_and_leave_nothing(data, tmp_path, capsys, name):
    command, expected = HOSTILE[name]
    assert main(command.format(data=data, new=tmp_path / "new").split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("mbgen: error: ") and error.count("\n") == 1 and expected in error
    assert not (tmp_path / "new").exists()
