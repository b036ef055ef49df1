import json

import pytest
from launching import launch

from mbgen_hf.cli import main
from mbgen_hf.recommendation import recommend
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.checkpoint import load_checkpoint, save_checkpoint
from mbgen_hf.training.settings import load_settings
from mbgen_hf.training.train import build_model


# Each line of a file is a command; the users that this process asked the model about are counted on the way.
SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from mbgen_hf.cli import main
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer

encode, asked, folder = InteractionTokenizer.encode_history, [], Path(sys.argv[1])

def counted(self, history, user_id=None, **options):
    asked.extend(user_id)
    return encode(self, history, user_id=user_id, **options)

InteractionTokenizer.encode_history = counted
states, runs = [], []
for command in json.loads((folder / "commands.json").read_text()):
    asked.clear()
    states.append(main(command))
    runs.append(list(asked))
(folder / f"process-{PartialState().process_index}.json").write_text(json.dumps([states, runs]))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A prepared folder and a checkpoint with random weights."""
    root = tmp_path_factory.mktemp("shop")
    table = simulate_shop(num_users=40, num_items=24, seed=3).table()
    (root / "data").mkdir()
    table.save(root / "data")
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    changes = {f"model.{name}": value for name, value in sizes.items()}
    save_checkpoint(root / "model", *build_model(table, load_settings("mbgen-small", changes)))
    return root, table


def test_two_processes_answer_every_user_once_with_the_lists_of_one(shop, tmp_path):
    root, table = shop
    users = table.user_ids.tolist()
    cases = {"several batches": (users[::-1], 3), "one batch": (users[:9], 64), "one user": (users[5:6], 1)}

    def command(users, batch_size, output, behavior="any") -> list[str]:
        words = f"recommend {root / 'model'} --data {root / 'data'} --num-beams 6 -k 4 --exclude-seen "
        words += f"--batch-size {batch_size} --output {output} --behavior {behavior} --users "
        return [*words.split(), ",".join(map(str, users))]

    commands = [command(*case, tmp_path / f"two-{name}.json".replace(" ", "-")) for name, case in cases.items()]
    # One process alone has a batch to fail on; the other must not wait for it.
    commands.append(command(users[:2], 8, tmp_path / "never.json", behavior="rent"))
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launch(tmp_path / "script.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]

    (states, first), (others, second) = (json.loads((tmp_path / f"process-{n}.json").read_text()) for n in (0, 1))
    assert states == others == [0, 0, 0, 2] and not (tmp_path / "never.json").exists()
    assert "`behavior`: expected one of" in done.stderr and "expected the share of every process" in done.stderr
    for number, (name, (asked, batch_size)) in enumerate(cases.items()):
        assert sorted(first[number] + second[number]) == sorted(asked), name
        file = tmp_path / f"two-{name}.json".replace(" ", "-")
        assert main(command(asked, batch_size, tmp_path / "one.json")) == 0
        assert file.read_bytes() == (tmp_path / "one.json").read_bytes(), name
        assert [row["user_id"] for row in json.loads(file.read_text())] == asked
    assert len(first[0]) > 12 < len(second[0]) and not second[2]
    # Only one process prints: a line for every user.
    assert done.stdout.count("user ") == sum(len(asked) for asked, _ in cases.values())
    assert not list(tmp_path.glob("*.tmp"))


def test_lists_are_shorter_where_fewer_items_are_reachable_and_there_may_be_none(shop):
    root, table = shop
    model, tokenizer = load_checkpoint(root / "model", device="cpu")
    items = table.item_ids.tolist()
    history = [("click", item) for item in items[3:]]
    (few,) = recommend(model, tokenizer, [history], behavior="purchase", k=5, exclude_seen=True)
    assert sorted(entry.item_id for entry in few) == sorted(items[:3])
    assert {entry.behavior for entry in few} == {"purchase"} and recommend(model, tokenizer, []) == []
    assert [entry.score for entry in few] == sorted((entry.score for entry in few), reverse=True)
    with pytest.raises(ValueError, match="`k`: expected at least 1, found 0"):
        recommend(model, tokenizer, [history], k=0)
