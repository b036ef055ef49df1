"""From a log alone to codes: what is learned, what must not be, and items that come later."""

import numpy as np
import pytest

from mbgen_hf.data.filters import keep_users_with_sessions
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.evaluation.protocols import session_training_end
from mbgen_hf.item_ids.fitted_ids import ItemIds
from mbgen_hf.learned_features import fit_ids, learn_item_features
from mbgen_hf.recommendation import histories_of, recommend
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.settings import load_settings
from mbgen_hf.training.train import train_model


SASREC = {"dim": 32, "num_layers": 1, "num_epochs": 8, "batch_size": 32, "learning_rate": 5e-3, "max_history": 20}
SHORT = {"sasrec": SASREC, "device": "cpu", "max_epochs": 60, "hidden": (64,), "latent_dim": 16, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def shop():
    """Shoppers who stay in the departments they like."""
    return simulate_shop(num_users=500, num_items=96, seed=2, follow=0.1, favorite_share=0.95, num_favorites=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shop):
    path = tmp_path_factory.mktemp("ids") / "balanced"
    fit_ids(shop.table(), path, **SHORT)
    return path


def cosines(features, groups):
    """Mean cosine of pairs within a group, and of all pairs."""
    features = features - features.mean(0)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike, pairs = features @ features.T, ~np.eye(len(features), dtype=bool)
    return alike[pairs & (groups[:, None] == groups)].mean(), alike[pairs].mean()


def test_items_that_share_codes_are_alike(shop, folder):
    ids = ItemIds.load(folder)
    features, _ = learn_item_features(shop.table(), device="cpu", **SASREC)
    first, chance = cosines(features, ids.codes[:, 0])
    both, _ = cosines(features, ids.codes[:, 0] * 1000 + ids.codes[:, 1])
    assert abs(chance) < 0.05 and first > 0.3 and both > 0.7
    # And so they are in the shop itself, which the codes never saw.
    pairs = ~np.eye(shop.num_items, dtype=bool)
    same_department = shop.departments[:, None] == shop.departments
    same_code = pairs & (ids.codes[:, :1] == ids.codes[:, 0])
    assert same_department[same_code].mean() > 3 * same_department[pairs].mean()


def test_held_out_interactions_change_nothing(tmp_path, shop, folder):
    """Items planted in every held-out place leave features and codes as they are."""
    table = shop.table()
    planted = SequenceTable(**vars(table) | {"items": table.items.copy()})
    for back in (1, 2):
        planted.items[table.offsets[1:] - back] = 7
    fit_ids(planted, tmp_path / "ids", **SHORT)
    one, two = ItemIds.load(folder), ItemIds.load(tmp_path / "ids")
    assert np.array_equal(one.codes, two.codes) and one.fingerprint == two.fingerprint
    # One training interaction of every user is seen.
    planted.items[table.offsets[1:] - 3] = 7
    changed, _ = learn_item_features(planted, device="cpu", **SASREC)
    assert not np.array_equal(changed, learn_item_features(table, device="cpu", **SASREC)[0])


def test_held_out_sessions_change_nothing():
    table = with_sessions(simulate_shop(num_users=100, num_items=24, seed=1).table(), SessionRule.parse("gap:20000"))
    table, _ = keep_users_with_sessions(table, 3)
    planted = SequenceTable(**vars(table) | {"items": table.items.copy()})
    ends = session_training_end(table)
    held_out = np.arange(table.num_interactions) >= np.repeat(ends, table.lengths)
    planted.items[held_out] = 7
    features = [learn_item_features(log, "session_wise", device="cpu", **SASREC)[0] for log in (table, planted)]
    assert held_out.sum() > 2 * table.num_users and np.array_equal(*features)


def test_items_nobody_was_seen_with_get_the_features_of_others(shop):
    table = shop.table()
    hidden = 5
    kept = np.arange(table.num_interactions) < np.repeat(table.offsets[1:] - 2, table.lengths)
    table.items[kept & (table.items == hidden)] = 6
    features, origin = learn_item_features(table, device="cpu", **SASREC)
    assert origin["unseen_items"] == "1"
    assert (features[hidden] == np.delete(features, hidden, axis=0)).all(1).sum() == 1


def test_the_folder_tells_where_features_come_from_and_keeps_them(tmp_path, shop, folder):
    table = shop.table()
    origin = ItemIds.load(folder).details["features"]
    assert origin == {
        "source": "sasrec",
        "protocol": "leave_one_out",
        "data_fingerprint": table.fingerprint(),
        "unseen_items": "0",
    }
    options = {name: value for name, value in SHORT.items() if name != "sasrec"}
    again = fit_ids(table, tmp_path / "again", features=folder / "features.safetensors", **options)
    assert np.array_equal(again.codes, ItemIds.load(folder).codes) and again.details["features"] == origin
    np.save(tmp_path / "given.npy", np.random.default_rng(0).normal(size=(96, 5)))
    given = fit_ids(table, tmp_path / "given", "rq-vae", features=tmp_path / "given.npy", picture=True, **options)
    assert given.details["features"] == {"source": "given", "file": "given.npy"}
    assert (tmp_path / "given" / "balance.png").is_file()
    assert not (tmp_path / "given" / "features.safetensors").exists()


def test_bad_requests_leave_nothing_behind(tmp_path, shop):
    table = shop.table()
    for arguments, message in (
        ({"method": "chunked", "features": "f.npy"}, "`features`: expected none for chunked IDs"),
        ({"method": "single", "sasrec": {"dim": 8}}, "`sasrec`: expected only where features are learned"),
        ({"protocol": "random"}, "`protocol`: expected one of"),
        ({"sasrec": {"num_epochs": 0}}, "`num_epochs`: expected at least 1"),
        ({"method": "single", "code_sizes": (3, 3)}, "`code_sizes`: expected an option of single IDs"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_ids(table, tmp_path / "ids", **arguments)
    assert not list(tmp_path.iterdir())
    fit_ids(table, tmp_path / "ids", "single")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        fit_ids(table, tmp_path / "ids", "single")


@pytest.mark.parametrize("preset", ["mbgen-small", pytest.param("gamer-small", marks=pytest.mark.slow)])
def test_a_trained_model_recommends_a_new_item_at_once(tmp_path, shop, folder, preset):
    """An item like a popular one is reachable, and ranked like it rather than at random."""
    table, ids = shop.table(), ItemIds.load(folder)
    width = "model.d_model" if preset == "mbgen-small" else "model.hidden_size"
    changes = {"item_ids.path": str(folder), width: 32, "training.max_steps": 250, "training.eval_steps": 250,
               "training.eval_strategy": "steps", "training.disable_tqdm": True, "training.use_cpu": True,
               "training.per_device_train_batch_size": 32, "validation.max_users": 10}  # fmt: skip
    trained = train_model(table, load_settings(preset, changes), tmp_path / "run")
    model, tokenizer = trained.model.eval(), trained.tokenizer
    assert tokenizer.token_space.code_sizes == tuple(ids.code_sizes)
    features, _ = learn_item_features(table, device="cpu", **SASREC)
    popular = int(np.bincount(table.items, minlength=96).argmax())
    # Shoppers of its department, who should like what is like it, and an item of a department they do not visit.
    fans = np.flatnonzero(shop.tastes.argmax(1) == shop.departments[popular])[:30]
    elsewhere = int(np.flatnonzero(shop.departments == (shop.departments[popular] + 6) % 12)[0])
    histories = histories_of(table, table.user_ids[fans].tolist())
    ranks = {}
    for like in (popular, elsewhere):
        noise = 0.05 * features.std() * np.random.default_rng(0).normal(size=features.shape[1])
        larger = ids.append(["novelty"], features[like : like + 1] + noise.astype(np.float32))
        tokenizer.set_catalog(larger.codes, larger.item_ids)
        model.set_catalog(larger.codes)
        lists = recommend(model, tokenizer, histories, behavior="purchase", k=97, num_beams=97)
        assert all(len(row) == 97 for row in lists), "everything is reachable"
        ranks[like] = np.mean([[entry.item_id for entry in row].index("novelty") for row in lists])
    assert ranks[popular] < 0.7 * 48, "a random place is 48 on average"
    assert ranks[popular] < 0.5 * ranks[elsewhere]
    # What the model writes about it, it also reads.
    follow_up = [{**histories[0], "item_ids": ["novelty"], "behaviors": [0]}]
    assert recommend(model, tokenizer, follow_up, behavior="purchase", k=3)[0]
