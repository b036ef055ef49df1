"""Which codes a training run gives its items: the `item_ids` section of the settings."""

import logging
from typing import Any

import numpy as np

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import Protocol
from mbgen_hf.item_ids.fit import fit_item_ids
from mbgen_hf.item_ids.fitted_ids import ItemIds
from mbgen_hf.learned_features import LEARNED
from mbgen_hf.training.settings import check_section


logger = logging.getLogger(__name__)

_WHOLE = (int, type(None))
_SETTINGS: dict[str, dict[str, tuple[type, ...]]] = {
    "chunked": {"method": (str,), "base": _WHOLE, "num_levels": _WHOLE, "seed": (int,)},
    "single": {"method": (str,)},
    "path": {"path": (str,)},
}


def check_item_id_settings(section: dict[str, Any]) -> None:
    """Check names and types of the section.

    It is `{"method": "chunked", "base": ..., "num_levels": ..., "seed": ...}`, `{"method": "single"}`, or
    `{"path": folder}` with what `mbgen fit-ids` wrote.

    Raises:
        ValueError: anything else.
    """
    kind = "path" if "path" in section else section.get("method")
    if kind not in _SETTINGS:
        raise ValueError(
            f"`item_ids.method`: expected 'chunked' or 'single', found {kind!r}; other kinds are fitted first, by "
            "`mbgen fit-ids`, and given as `item_ids.path`"
        )
    check_section("item_ids", section, _SETTINGS[kind])


def catalog_codes(table: SequenceTable, section: dict[str, Any], protocol: Protocol) -> tuple[np.ndarray, list[int]]:
    """Codes `(num_items, m)` of a table's catalog, in its order, and the code sizes.

    Args:
        table: the sequences.
        section: see `check_item_id_settings`.
        protocol: the protocol of the run, whose held-out interactions codes must not have been learned from.

    Raises:
        ValueError: bad settings, or fitted codes of another catalog or learned under another protocol.
    """
    check_item_id_settings(section)
    if "path" not in section:
        ids = fit_item_ids(table.item_ids, **section)
        return ids.codes, ids.code_sizes
    ids = ItemIds.load(section["path"])
    codes = ids.for_catalog(table.item_ids)
    origin = ids.details.get("features", {})
    if origin.get("source") == LEARNED:
        if origin["protocol"] != protocol:
            raise ValueError(
                f"`item_ids.path`: expected IDs learned under the protocol {protocol!r}, found "
                f"{origin['protocol']!r}, which holds out other interactions; run `mbgen fit-ids --protocol "
                f"{protocol}`"
            )
        if origin["data_fingerprint"] != table.fingerprint():
            logger.warning(
                "the item IDs were learned from another log with the same catalog: make sure that it holds no "
                "interaction that is held out here"
            )
    return codes, ids.code_sizes


def item_ids_fingerprint(section: dict[str, Any]) -> dict[str, str]:
    """What a run records about fitted IDs, so that it is not resumed with others under the same path."""
    if "path" not in section:
        return {}
    return {"item_ids_fingerprint": ItemIds.load(section["path"]).codes_fingerprint}


__all__ = ["catalog_codes", "check_item_id_settings", "item_ids_fingerprint"]
