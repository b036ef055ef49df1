"""The catalog file of a checkpoint: codes and raw ids of the items, as safetensors."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


CATALOG_FILE = "catalog.safetensors"


def write_catalog(file: Path, item_codes: np.ndarray, item_ids: np.ndarray) -> None:
    """Write `(num_items, m)` codes and `(num_items,)` raw ids; text ids go in as utf-8 bytes with their ends."""
    tensors = {"item_codes": np.ascontiguousarray(item_codes)}
    if item_ids.dtype.kind == "U":
        encoded = [item.encode() for item in item_ids.tolist()]
        tensors["item_id_bytes"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        tensors["item_id_ends"] = np.cumsum([len(item) for item in encoded], dtype=np.int64)
    else:
        tensors["item_ids"] = item_ids.astype(np.int64)
    save_file(tensors, file, metadata={"format": "np"})


def read_catalog(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Codes and raw ids as `write_catalog` was given them."""
    tensors = load_file(file)
    if "item_ids" in tensors:
        return tensors["item_codes"], tensors["item_ids"]
    text, ends = tensors["item_id_bytes"].tobytes(), tensors["item_id_ends"].tolist()
    starts = [0, *ends[:-1]]
    return tensors["item_codes"], np.array([text[a:b].decode() for a, b in zip(starts, ends, strict=True)])


__all__ = ["CATALOG_FILE", "read_catalog", "write_catalog"]
