"""The catalog file of a checkpoint: codes and raw ids of the items, as safetensors."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


CATALOG_FILE = "catalog.safetensors"


def write_catalog(file: Path, item_codes: np.ndarray, item_ids: np.ndarray) -> None:
    """Write `(num_items, m)` codes and `(num_items,)` raw ids."""
    tensors = {"item_codes": np.ascontiguousarray(item_codes), **id_tensors(item_ids)}
    save_file(tensors, file, metadata={"format": "np"})


def read_catalog(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Codes and raw ids as `write_catalog` was given them."""
    tensors = load_file(file)
    return tensors["item_codes"], ids_of_tensors(tensors)


def id_tensors(item_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Raw ids as tensors: integers as they are, text as utf-8 bytes with their ends."""
    if item_ids.dtype.kind != "U":
        return {"item_ids": item_ids.astype(np.int64)}
    encoded = [item.encode() for item in item_ids.tolist()]
    return {
        "item_id_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "item_id_ends": np.cumsum([len(item) for item in encoded], dtype=np.int64),
    }


def ids_of_tensors(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Raw ids as `id_tensors` was given them."""
    if "item_ids" in tensors:
        return tensors["item_ids"]
    text, ends = tensors["item_id_bytes"].tobytes(), tensors["item_id_ends"].tolist()
    starts = [0, *ends[:-1]]
    return np.array([text[a:b].decode() for a, b in zip(starts, ends, strict=True)])


__all__ = ["CATALOG_FILE", "id_tensors", "ids_of_tensors", "read_catalog", "write_catalog"]
