import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from mbgen_hf.item_ids.item_features import read_item_features, save_item_features


ITEMS = np.array([2, 3, 5, 7])
FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)
MIXED = np.array([3, 1, 0, 2])


def test_rows_of_an_array_are_in_catalog_order(tmp_path):
    np.save(tmp_path / "f.npy", FEATURES.astype(np.float64))
    features, origin = read_item_features(tmp_path / "f.npy", ITEMS)
    assert np.array_equal(features, FEATURES) and features.dtype == np.float32 and origin == {}


@pytest.mark.parametrize("kind", [np.int64, np.str_])
@pytest.mark.parametrize("form", ["safetensors", "lists", "columns"])
def test_rows_with_ids_are_matched_by_them(tmp_path, kind, form):
    # One item more than the catalog holds, in another order.
    ids = np.append(ITEMS[MIXED], 11).astype(kind)
    rows = np.concatenate([FEATURES[MIXED], np.full((1, 3), 99, dtype=np.float32)])
    file = tmp_path / ("f.safetensors" if form == "safetensors" else "f.parquet")
    if form == "safetensors":
        save_item_features(file, rows, ids, {"source": "here"})
    elif form == "lists":
        pl.DataFrame({"item_id": ids, "features": rows.tolist()}).write_parquet(file)
    else:
        pl.DataFrame({"item_id": ids, "a": rows[:, 0], "b": rows[:, 1], "c": rows[:, 2]}).write_parquet(file)
    catalog = np.sort(ITEMS.astype(kind))
    features, origin = read_item_features(file, catalog)
    assert np.array_equal(features, FEATURES) and origin == ({"source": "here"} if form == "safetensors" else {})


def test_bad_files_are_refused(tmp_path):
    np.save(tmp_path / "short.npy", FEATURES[:3])
    np.save(tmp_path / "nan.npy", np.where(FEATURES == 7, np.nan, FEATURES))
    np.save(tmp_path / "flat.npy", FEATURES[:, 0])
    np.save(tmp_path / "objects.npy", np.array([{}] * 4), allow_pickle=True)
    save_item_features(tmp_path / "fewer.safetensors", FEATURES[:2], ITEMS[:2], {})
    save_item_features(tmp_path / "twice.safetensors", FEATURES, ITEMS[[0, 1, 2, 2]], {})
    save_item_features(tmp_path / "text.safetensors", FEATURES, ITEMS.astype(np.str_), {})
    save_file({"other": FEATURES}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 4)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    pl.DataFrame({"features": FEATURES.tolist()}).write_parquet(tmp_path / "noid.parquet")
    pl.DataFrame({"item_id": [2, None], "a": [0.0, 1.0]}).write_parquet(tmp_path / "null.parquet")
    ragged = [[1.0], [1.0, 2.0], [1.0], [1.0]]
    pl.DataFrame({"item_id": ITEMS, "features": ragged}).write_parquet(tmp_path / "ragged.parquet")
    for name, message in {
        "short.npy": "expected a row for each of 4 items, found 3",
        "nan.npy": "expected finite numbers, found others for item 5",
        "flat.npy": r"expected numbers of shape \(num_items, num_features\)",
        "objects.npy": "expected an array of numbers",
        "fewer.safetensors": "found none for 2, such as 5",
        "twice.safetensors": "expected every item once, found 5",
        "text.safetensors": "expected item ids like 2",
        "other.safetensors": "expected a tensor 'features'",
        "broken.safetensors": "expected a safetensors file",
        "broken.parquet": "expected a Parquet file",
        "noid.parquet": "expected rows of item_id and features",
        "null.parquet": "expected no nulls",
        "ragged.parquet": "expected lists of one length",
        "missing.npy": "expected a file, found none",
        "features.csv": "expected a file ending in",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_item_features(tmp_path / name, ITEMS)
