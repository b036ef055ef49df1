"""What was published comes back: plain `load_dataset`, then the same table, cases, training and commands."""

from datetime import UTC, datetime
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_dataset

from mbgen_hf import load_published
from mbgen_hf.cli import main
from mbgen_hf.data.prepare import PreparationRules, prepare_log, save_prepared
from mbgen_hf.data.read_log import read_interaction_log
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import PROTOCOLS, protocol_cases, protocol_training_end
from mbgen_hf.public_datasets.publish import write_published_folder
from mbgen_hf.public_datasets.published import load_table
from mbgen_hf.public_datasets.splits import CONFIG_PROTOCOLS
from mbgen_hf.simulation import simulate_shop


RULES = {"sequential": {}, "session": {"sessions": "gap:20000", "min_item_count": 0, "min_user_interactions": 0}}


def prepared(folder: Path, config: str, words: bool) -> SequenceTable:
    """A folder with behaviors whose levels tie, whose target is not the last, and whose ids are maybe words."""
    log = folder.parent / f"log-{words}.csv"
    simulate_shop(num_users=80, num_items=24, seed=3).write_csv(log)
    if words:
        header, *lines = log.read_text().splitlines()
        log.write_text("\n".join([header, *(f"u{a},i {b},{rest}" for a, b, rest in (x.split(",", 2) for x in lines))]))
    read = read_interaction_log(log, behaviors=["click", "purchase", "cart"], target="purchase",
                                levels={"click": 0, "purchase": 2, "cart": 2})  # fmt: skip
    rules = PreparationRules(**RULES[config])
    table, report = prepare_log(read, [log], rules, {})
    save_prepared(folder, table, report, rules)
    return table


@pytest.fixture(scope="module", params=[False, True], ids=["integers", "words"])
def shop(request, tmp_path_factory) -> tuple[Path, dict[str, SequenceTable]]:
    root = tmp_path_factory.mktemp("shop")
    tables = {config: prepared(root / config, config, request.param) for config in RULES}
    shards = 150 if request.param else 8_000_000
    write_published_folder([root / config for config in RULES], root / "published", "me/shop",
                           shard_interactions=shards)  # fmt: skip
    return root, tables


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parts(folder: Path, config: str) -> tuple[DatasetDict, Dataset, Dataset]:
    """As a user writes it."""
    return (
        load_dataset(str(folder), config),
        load_dataset(str(folder), f"{config}_catalog", split="catalog"),
        load_dataset(str(folder), f"{config}_behaviors", split="behaviors"),
    )


@pytest.mark.parametrize("config", RULES)
def test_the_table_comes_back_whole(config: str, shop) -> None:
    root, tables = shop
    table = tables[config]
    dataset, catalog, behaviors = parts(root / "published", config)
    for rows in (dataset, dataset["test"], dataset["test"].shuffle(seed=1)):
        again = SequenceTable.from_dataset(rows, catalog, behaviors)
        assert again.fingerprint() == table.fingerprint() and again.schema == table.schema
        for name in ("user_ids", "item_ids", "offsets", "items", "behaviors", "timestamps", "session_ids"):
            ours, theirs = getattr(again, name), getattr(table, name)
            assert (ours is theirs is None) or (ours.dtype == theirs.dtype and np.array_equal(ours, theirs)), name
    assert load_published(root / "published", config).fingerprint() == table.fingerprint()
    assert table.schema.levels == (0, 2, 2) and table.schema.target == "purchase"


@pytest.mark.parametrize("config", RULES)
def test_the_splits_are_those_that_were_published(config: str, shop) -> None:
    dataset, catalog, behaviors = parts(shop[0] / "published", config)
    again = SequenceTable.from_dataset(dataset, catalog, behaviors)
    protocol = CONFIG_PROTOCOLS[config]
    assert protocol in PROTOCOLS
    ends = protocol_training_end(again, protocol) - again.offsets[:-1]
    assert ends.tolist() == dataset["train"]["history_length"][:]
    for split in ("validation", "test"):
        cases = protocol_cases(again, protocol, split, 10**6)
        shown = dict(zip(again.user_ids[cases.users].tolist(), (cases.history_end - cases.history_start).tolist(),
                         strict=True))  # fmt: skip
        assert shown == dict(zip(dataset[split]["user_id"][:], dataset[split]["history_length"][:], strict=True))
        held_out = {user: set() for user in shown}
        for user, items in zip(again.user_ids[cases.users].tolist(), cases.targets.tolist(), strict=True):
            held_out[user] |= set(items) - {-1}
        assert held_out == {row["user_id"]: set(row["item_ids"][row["history_length"] :]) for row in dataset[split]}


def test_a_part_of_the_users_keeps_the_catalog(shop) -> None:
    root, tables = shop
    dataset, catalog, behaviors = parts(root / "published", "session")
    some = set(tables["session"].user_ids[3:9].tolist())
    few = dataset.filter(lambda user: user in some, input_columns="user_id")
    table = SequenceTable.from_dataset(few, catalog, behaviors)
    assert table.item_ids.tolist() == tables["session"].item_ids.tolist() and table.num_users == 6
    with pytest.raises(ValueError, match="expected the same users in every split, found others in 'train'"):
        SequenceTable.from_dataset(DatasetDict(dataset | {"test": few["test"]}), catalog, behaviors)


def test_rows_of_ones_own_need_no_catalog() -> None:
    rows = Dataset.from_dict(
        {
            "user_id": ["b", "a"],
            "item_ids": [["x", "y", "x"], ["z"]],
            "behaviors": [["view", "buy", "view"], ["buy"]],
            "timestamps": [[1, 2, 2], [5]],
            "session_ids": [[7, 7, 3], [9]],
        }
    )
    schema = {"behavior": ["view", "wish", "buy"], "level": [0, 1, 1], "target": [False, False, True]}
    table = SequenceTable.from_dataset(rows, behaviors=Dataset.from_dict(schema))
    assert (table.user_ids.tolist(), table.item_ids.tolist()) == (["a", "b"], ["x", "y", "z"])
    assert (table.items.tolist(), table.behaviors.tolist()) == ([2, 0, 1, 0], [2, 0, 2, 0])
    assert (table.offsets.tolist(), table.session_ids.tolist()) == ([0, 1, 4], [0, 0, 0, 1])
    assert table.schema.levels == (0, 1, 1) and table.schema.target == "buy"


def test_times_are_seconds_or_dates() -> None:
    columns = {"user_id": [0, 1], "item_ids": [["x", "y"], ["z"]], "behaviors": [["buy", "buy"], ["buy"]]}
    schema = Dataset.from_dict({"behavior": ["buy"], "level": [0], "target": [True]})
    whole = [[1577836800, 1577836860], [1577836801]]
    dates = [[datetime.fromtimestamp(second, UTC) for second in row] for row in whole]
    for times in (whole, dates):
        table = SequenceTable.from_dataset(Dataset.from_dict({**columns, "timestamps": times}), behaviors=schema)
        assert table.timestamps.tolist() == [1577836800, 1577836860, 1577836801]
    for name, values, message in (
        ("timestamps", [[1.5, 2.0], [3.0]], "whole seconds or dates, found Float64"),
        ("timestamps", [["1", "2"], ["3"]], "whole seconds or dates, found String"),
        ("item_ids", ["x", "y"], "expected a list in each row of 'item_ids', found string"),
        ("user_id", [1.0, 2.0], "expected integers or strings in 'user_id', found Float64"),
    ):
        rows = Dataset.from_dict({**columns, "timestamps": whole, name: values})
        with pytest.raises(ValueError, match=message):
            SequenceTable.from_dataset(rows, behaviors=schema)


def test_splits_are_compared_by_their_users(shop) -> None:
    dataset, catalog, behaviors = parts(shop[0] / "published", "session")
    whole = SequenceTable.from_dataset(dataset, catalog, behaviors)
    shuffled = DatasetDict(dataset | {"train": dataset["train"].shuffle(seed=1).flatten_indices()})
    assert SequenceTable.from_dataset(shuffled, catalog, behaviors).fingerprint() == whole.fingerprint()
    count = dataset["test"].num_rows // 2
    apart = {name: split.select(range(count)) for name, split in dataset.items()}
    apart["test"] = dataset["test"].select(range(count, 2 * count))
    with pytest.raises(ValueError, match="expected the same users in every split"):
        SequenceTable.from_dataset(DatasetDict(apart), catalog, behaviors)


def changed(rows: Dataset, name: str, change) -> Dataset:
    return rows.map(lambda row: {name: change(row[name])}, features=rows.features, load_from_cache_file=False)


def test_what_is_no_such_dataset_is_refused(shop) -> None:
    dataset, catalog, behaviors = parts(shop[0] / "published", "session")
    test = dataset["test"]
    falling = changed(test, "timestamps", lambda times: times[::-1])
    for arguments, message in (
        ((dataset, catalog), "`behaviors`: expected levels and the target, found None; pass"),
        ((dataset, catalog, catalog), r"`behaviors`: expected the columns \['behavior', 'level', 'target'\]"),
        ((dataset, behaviors, behaviors), "`catalog`: expected the column 'item_id'"),
        ((dataset, catalog.select(range(3)), behaviors), "rows of the catalog, 0 to 2, found 0 to 23"),
        ((dataset, catalog.select([1, 0]), behaviors), "`catalog`: expected each raw item id once, in ascending"),
        ((dataset["train"], catalog, behaviors), "found another 'history_length'; pass the whole dataset"),
        ((DatasetDict(train=test), catalog, behaviors), r"found the splits \['train'\]; pass one of them"),
        ((catalog, catalog, behaviors), r"found \['item_id'\] without \['user_id', 'item_ids'"),
        ((falling, catalog, behaviors), "expected timestamps in ascending order within each user"),
        ((test.select([0, 0]), catalog, behaviors), "expected one row for each user"),
        ((test.select([]), catalog, behaviors), "expected at least one row, found none"),
        ((changed(test, "item_ids", lambda ids: ids[1:]), catalog, behaviors), "found .* values in 'behaviors' and"),
        ((changed(test, "item_ids", lambda ids: [None, *ids[1:]]), catalog, behaviors), "no nulls, found some in 'i"),
        ((test, catalog, behaviors.select([0, 1])), r"found none for \['cart'\]"),
        ((test.to_iterable_dataset(), catalog, behaviors), "not streamed, found IterableDataset"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            SequenceTable.from_dataset(*arguments)
        assert "\n" not in str(error.value)


def test_commands_take_prepared_and_published_data(shop, tmp_path: Path, capsys) -> None:
    root, tables = shop
    published = str(root / "published")
    assert load_table(root / "session").fingerprint() == tables["session"].fingerprint()
    assert load_table(published, "sequential").fingerprint() == tables["sequential"].fingerprint()
    command = ["fit-ids", published, "--config", "session", "--method", "chunked", "--output", str(tmp_path / "ids")]
    assert main(command) == 0
    assert f"next: mbgen train {published} --config session --item-ids" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([published], "`config`: expected one of ['sequential', 'session']"),
        ([published, "--config", "weekly"], "found 'weekly'"),
        ([str(root / "session"), "--config", "session"], "`config`: expected with published data only"),
        ([str(tmp_path / "empty")], "expected a folder that `mbgen prepare` or `mbgen push-dataset` wrote, or owner"),
        ([str(tmp_path / "none")], "found no such folder"),
        (
            ["me/nothing"],
            "me/nothing: expected a folder that `mbgen prepare` or `mbgen push-dataset` wrote, or owner/",
        ),
    ):
        assert main(["fit-ids", *words, "--method", "chunked", "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    (root / "other" / "data").mkdir(parents=True, exist_ok=True)
    (root / "other" / "README.md").write_text("x")
    catalog = Dataset.from_dict({"a": [1]})
    catalog.to_parquet(root / "other" / "data" / "train.parquet")
    with pytest.raises(ValueError, match="expected a dataset that `mbgen push-dataset` wrote, found the configs"):
        load_table(root / "other")


@pytest.mark.parametrize("shop", [False], ids=["integers"], indirect=True)
def test_training_on_it_is_training_on_the_original(shop, tmp_path: Path) -> None:
    root, _ = shop
    options = ["--model", "gamer", "--max-steps", "2", "--cpu", "--seed", "1"]
    small = [
        "data.protocol=session_wise",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.intermediate_size=16",
    ]
    options += [word for change in small for word in ("--set", change)]
    for name, data in (("a", [str(root / "session")]), ("b", [str(root / "published"), "--config", "session"])):
        assert main(["train", *data, *options, "--output", str(tmp_path / name)]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    for name, data in (("a", [str(root / "session")]), ("b", [str(root / "published"), "--config", "session"])):
        words = [
            "--max-users",
            "10",
            "--num-beams",
            "10",
            "--dataset-name",
            "shop",
            "--output",
            str(tmp_path / f"{name}.json"),
        ]
        assert main(["evaluate", str(tmp_path / "a"), "--data", *data, *words]) == 0
    records = [(tmp_path / f"{name}.json").read_text() for name in "ab"]
    assert records[0] == records[1]
