"""Item features from a file: `.npy` in catalog order, safetensors or Parquet by raw id."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mbgen_hf.models.catalog_file import id_tensors, ids_of_tensors


def read_item_features(file: str | Path, item_ids: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """Features of every item of a catalog.

    `.npy` holds `(num_items, num_features)` numbers in catalog order, which is that of the raw ids, ascending.
    `.safetensors` holds a tensor `features` and maybe `item_ids` (integers, or see `save_item_features` for strings).
    `.parquet` holds a column `item_id` and either a column `features` of lists or one numeric column per feature.
    Where raw ids are given, rows are matched by them, and further items are ignored.

    Args:
        file: what to read.
        item_ids: `(num_items,)` raw ids of the catalog.

    Returns:
        `(num_items, num_features)` `float32` and what the file says about its origin, if anything.

    Raises:
        ValueError: an unreadable file, missing items, or values that are not finite numbers.
    """
    path = Path(file)
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"`features`: expected a file ending in {', '.join(readers)}, found {path.name}")
    if not path.is_file():
        raise ValueError(f"`features`: expected a file, found none at {file}")
    features, ids, origin = readers[path.suffix](path)
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise ValueError(
            f"{file}: expected numbers of shape (num_items, num_features), found {features.dtype} {features.shape}"
        )
    if ids is not None:
        features = features[_rows_of(item_ids, ids, file)]
    elif len(features) != len(item_ids):
        raise ValueError(f"{file}: expected a row for each of {len(item_ids)} items, found {len(features)}")
    features = features.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise ValueError(f"{file}: expected finite numbers, found others for item {item_ids[wrong[0]].item()!r}")
    return features, origin


def save_item_features(file: str | Path, features: np.ndarray, item_ids: np.ndarray, origin: dict[str, str]) -> None:
    """Write features with their raw ids as safetensors; `origin` tells where they come from."""
    tensors = {"features": np.ascontiguousarray(features, dtype=np.float32), **id_tensors(item_ids)}
    save_file(tensors, file, metadata=origin)


def _rows_of(item_ids: np.ndarray, ids: np.ndarray, file: str | Path) -> np.ndarray:
    """Row of each catalog item in a file."""
    if (ids.dtype.kind == "U") != (item_ids.dtype.kind == "U"):
        raise ValueError(f"{file}: expected item ids like {item_ids[0].item()!r}, found {ids[:1].tolist()}")
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    if len(repeated := ordered[1:][ordered[1:] == ordered[:-1]]):
        raise ValueError(f"{file}: expected every item once, found {repeated[0].item()!r} more than once")
    place = np.searchsorted(ordered, item_ids).clip(max=max(len(ids) - 1, 0))
    missing = item_ids[ordered[place] != item_ids] if len(ids) else item_ids
    if len(missing):
        raise ValueError(
            f"{file}: expected features for every item, found none for {len(missing)}, such as {missing[0].item()!r}"
        )
    return order[place]


def _read_npy(path: Path) -> tuple[np.ndarray, None, dict[str, str]]:
    try:
        return np.load(path, allow_pickle=False), None, {}
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected an array of numbers, found something else ({error})") from error


def _read_safetensors(path: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, str]]:
    try:
        with safe_open(path, "np") as file:
            origin = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, found a damaged one ({error})") from error
    if "features" not in tensors:
        raise ValueError(f"{path}: expected a tensor 'features', found {sorted(tensors)}")
    ids = ids_of_tensors(tensors) if {"item_ids", "item_id_bytes"} & set(tensors) else None
    if ids is not None and len(ids) != len(tensors["features"]):
        raise ValueError(f"{path}: expected {len(ids)} rows for as many item ids, found {len(tensors['features'])}")
    return tensors["features"], ids, origin


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    # Only here: everything else about item IDs works without it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a Parquet file, found something else ({error})") from error
    if "item_id" not in table.column_names or table.num_columns < 2 or table.num_rows == 0:
        raise ValueError(f"{path}: expected rows of item_id and features, found {table.column_names}")
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{path}: expected no nulls, found some")
    raw = table["item_id"].to_pylist()
    ids = np.array(raw if all(isinstance(item, int) for item in raw) else [str(item) for item in raw])
    if "features" in table.column_names:
        rows = table["features"].to_pylist()
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"{path}: expected lists of one length in 'features', found several")
        return np.array(rows, dtype=np.float32), ids, {}
    columns = [name for name in table.column_names if name != "item_id"]
    return np.stack([table[name].to_numpy() for name in columns], axis=1), ids, {}


__all__ = ["read_item_features", "save_item_features"]
