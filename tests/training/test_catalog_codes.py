import logging

import numpy as np
import pytest

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.item_ids.fit import fit_item_ids
from mbgen_hf.learned_features import fit_ids
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.catalog_codes import catalog_codes
from mbgen_hf.training.settings import load_settings
from mbgen_hf.training.train import train_model


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, shop_table):
    folder = tmp_path_factory.mktemp("ids") / "ids"
    fit_ids(shop_table, folder, device="cpu", max_epochs=2, hidden=(8,), latent_dim=4, sasrec={"num_epochs": 1})
    return folder


def test_presets_give_chunked_ids(shop_table):
    codes, sizes = catalog_codes(shop_table, load_settings("mbgen-small")["item_ids"], "leave_one_out")
    expected, expected_sizes = chunked_item_ids(24, None, 2)
    assert np.array_equal(codes, expected) and sizes == expected_sizes


def test_another_method_or_path_takes_the_place_of_the_section(shop_table, fitted):
    single = load_settings("gamer-paper", {"item_ids.method": "single"})["item_ids"]
    assert single == {"method": "single"}
    assert catalog_codes(shop_table, single, "leave_one_out")[1] == [24]
    path = load_settings("gamer-paper", {"item_ids.path": str(fitted)})["item_ids"]
    assert path == {"path": str(fitted)}
    base = load_settings("gamer-paper", {"item_ids.method": "chunked", "item_ids.base": 5})["item_ids"]
    assert base == {"method": "chunked", "base": 5, "num_levels": None, "seed": 2024}


def test_fitted_codes_come_in_the_order_of_the_data(tmp_path, shop_table):
    mixed = np.random.default_rng(0).permutation(24)
    ids = fit_item_ids(shop_table.item_ids[mixed], "chunked", base=3)
    ids.save(tmp_path)
    codes, sizes = catalog_codes(shop_table, {"path": str(tmp_path)}, "leave_one_out")
    assert np.array_equal(codes[mixed], ids.codes) and sizes == ids.code_sizes


def test_codes_of_another_catalog_are_refused(fitted):
    other = simulate_shop(num_users=150, num_items=25, seed=3).table()
    with pytest.raises(ValueError, match="1 items have no codes, 0 with codes are not in the data"):
        catalog_codes(other, {"path": str(fitted)}, "leave_one_out")


def test_codes_learned_from_held_out_interactions_are_refused(shop_table, fitted, caplog):
    with pytest.raises(ValueError, match="learned under the protocol 'session_wise', found 'leave_one_out'"):
        catalog_codes(shop_table, {"path": str(fitted)}, "session_wise")
    catalog_codes(shop_table, {"path": str(fitted)}, "leave_one_out")
    assert not caplog.records
    other = SequenceTable(**vars(shop_table) | {"items": shop_table.items[::-1].copy()})
    with caplog.at_level(logging.WARNING):
        catalog_codes(other, {"path": str(fitted)}, "leave_one_out")
    assert "learned from another log" in caplog.text


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "balanced"}, "`item_ids.method`: expected 'chunked' or 'single', found 'balanced'; other kinds"),
        ({}, "`item_ids.method`: expected 'chunked' or 'single', found None"),
        ({"method": "single", "base": 3}, r"`item_ids`: expected settings \['method'\], found 'base'"),
        ({"path": "runs/ids", "base": 3}, r"`item_ids`: expected settings \['path'\], found 'base'"),
        ({"path": 3}, "`item_ids.path`: expected str, found 3"),
        ({"path": "no/such/folder"}, "expected a folder of item IDs holding item_ids.json"),
        ({"method": "chunked", "base": True, "num_levels": 2, "seed": 0}, "`item_ids.base`: expected int or null"),
        ({"method": "chunked", "base": 8}, "`item_ids`: expected settings .* found no 'num_levels'"),
    ],
)
def test_bad_sections_are_refused(shop_table, section, message):
    with pytest.raises(ValueError, match=message):
        catalog_codes(shop_table, section, "leave_one_out")


def test_a_run_is_not_resumed_with_other_codes(tmp_path, shop_table, tiny_settings):
    settings = tiny_settings()
    settings["item_ids"] = {"path": str(tmp_path / "ids")}
    fit_ids(shop_table, tmp_path / "ids", "chunked", base=5)
    trained = train_model(shop_table, settings, tmp_path / "run")
    assert trained.tokenizer.token_space.code_sizes == (5, 5)
    train_model(shop_table, settings, tmp_path / "run", resume=True)
    fit_ids(shop_table, tmp_path / "ids", "chunked", base=5, seed=1, overwrite=True)
    with pytest.raises(ValueError, match="`item_ids_fingerprint` was"):
        train_model(shop_table, settings, tmp_path / "run", resume=True)
