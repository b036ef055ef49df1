import numpy as np
import pytest

from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.item_ids.fit import fit_item_ids


SHORT = {"hidden": (16,), "latent_dim": 4, "max_epochs": 3}
ITEMS = np.arange(200) * 3


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)


@pytest.mark.parametrize(("method", "levels"), [("balanced", 3), ("rq-vae", 4)])
def test_semantic_ids_are_unique_by_their_last_digit(features, method, levels):
    ids = fit_item_ids(ITEMS, method, features, **SHORT)
    assert ids.codes.shape == (200, levels) and ids.report().collisions == 0
    largest = ids.report().levels[-2].largest
    assert ids.details["largest_cell"] == largest == ids.codes[:, -1].max() + 1
    assert ids.code_sizes == [8] * (levels - 1) + [largest + -(-largest // 10)]
    assert fit_item_ids(ITEMS, method, features, 0.0, **SHORT).code_sizes[-1] == largest


def test_rq_vae_takes_as_many_levels_as_sizes(features):
    assert fit_item_ids(ITEMS, "rq-vae", features, code_sizes=(16, 4), **SHORT).code_sizes[:2] == [16, 4]


def test_chunked_ids_are_those_of_training(features):
    ids = fit_item_ids(ITEMS, "chunked", base=8, seed=5)
    codes, sizes = chunked_item_ids(200, 8, seed=5)
    assert np.array_equal(ids.codes, codes) and ids.code_sizes == sizes


def test_single_ids_are_one_code_per_item():
    ids = fit_item_ids(ITEMS, "single", spare_fraction=0.05)
    assert ids.codes[:, 0].tolist() == list(range(200)) and ids.code_sizes == [210]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kmeans"}, "`method`: expected one of"),
        ({"method": "balanced"}, "`features`: expected a row for each of 200 items, found none"),
        ({"method": "chunked", "features": np.zeros((200, 3))}, "`features`: expected none for chunked IDs"),
        ({"method": "single", "base": 3}, r"`base`: expected an option of single IDs \[\]"),
        ({"method": "balanced", "features": np.zeros((200, 3)), "spare_fraction": -1.0}, "`spare_fraction`"),
        ({"method": "released"}, "`index_file`: expected the file"),
    ],
)
def test_bad_requests_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_item_ids(ITEMS, **arguments)
