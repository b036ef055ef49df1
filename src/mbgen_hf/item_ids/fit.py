"""One door to all kinds of item IDs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mbgen_hf.item_ids.balanced_semantic import fit_balanced_quantizer
from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.item_ids.fitted_ids import METHODS, ItemIds
from mbgen_hf.item_ids.released import released_item_ids
from mbgen_hf.item_ids.residual_quantized import fit_residual_quantizer
from mbgen_hf.item_ids.unique_digit import unique_digits, with_room


SEMANTIC_METHODS = ("balanced", "rq-vae")
DEFAULT_SPARE_FRACTION = 0.1

_TRAINING = ("hidden", "latent_dim", "beta", "learning_rate", "batch_size", "max_epochs", "patience")
_OPTIONS = {
    "balanced": ("code_sizes", *_TRAINING, "max_rounds"),
    "rq-vae": ("code_sizes", *_TRAINING),
    "chunked": ("base", "num_levels"),
    "single": (),
    "released": ("index_file",),
}


def fit_item_ids(
    item_ids: np.ndarray,
    method: str = "balanced",
    features: np.ndarray | None = None,
    spare_fraction: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
    **options: Any,
) -> ItemIds:
    """Codes for a catalog.

    Args:
        item_ids: `(num_items,)` raw item ids.
        method: `"balanced"` (semantic, MBGen), `"rq-vae"` (semantic, TIGER), `"chunked"`, `"single"` (one code per
            item, the `w/o item tokenizer` of MBGen table 6) or `"released"` (read from a file).
        features: `(num_items, num_features)` for the semantic methods, in the order of `item_ids`.
        spare_fraction: ids beyond what the catalog needs, for items to come, as a share: of the largest cell in the
            last level of semantic IDs (0.1 by default), of the items for chunked and single IDs (0 by default).
        seed: of everything random.
        device: where quantisers are fitted.
        progress: show bars.
        options: of the method: see `fit_balanced_quantizer` (balanced), `fit_residual_quantizer` (rq-vae),
            `chunked_item_ids` (`base`, `num_levels`) and `released_item_ids` (`index_file`).

    Raises:
        ValueError: an unknown method or option, features that are missing, superfluous or bad, or codes that can not
            hold the catalog.
    """
    if method not in METHODS:
        raise ValueError(f"`method`: expected one of {list(METHODS)}, found {method!r}")
    if unknown := sorted(set(options) - set(_OPTIONS[method])):
        raise ValueError(f"`{unknown[0]}`: expected an option of {method} IDs {list(_OPTIONS[method])}, found another")
    item_ids = np.asarray(item_ids)
    if method in SEMANTIC_METHODS:
        if features is None or len(features) != len(item_ids):
            found = "none" if features is None else f"{len(features)} rows"
            raise ValueError(f"`features`: expected a row for each of {len(item_ids)} items, found {found}")
        fit = fit_balanced_quantizer if method == "balanced" else fit_residual_quantizer
        spare = DEFAULT_SPARE_FRACTION if spare_fraction is None else spare_fraction
        return _semantic(
            item_ids, method, fit, features, spare, seed, {"device": device, "progress": progress}, options
        )
    if features is not None:
        raise ValueError(f"`features`: expected none for {method} IDs, found some")
    if method == "released":
        if spare_fraction is not None:
            raise ValueError(f"`spare_fraction`: expected none for released IDs, found {spare_fraction}")
        if "index_file" not in options:
            raise ValueError("`index_file`: expected the file of released IDs, found none")
        return released_item_ids(Path(options["index_file"]), item_ids, seed)
    codes, sizes = _featureless(len(item_ids), method, spare_fraction or 0.0, seed, options)
    return ItemIds(item_ids, codes, sizes, method, seed, {"options": options})


def _semantic(
    item_ids: np.ndarray,
    method: str,
    fit: Callable,
    features: np.ndarray,
    spare_fraction: float,
    seed: int,
    running: dict[str, Any],
    options: dict[str, Any],
) -> ItemIds:
    """Codes of a quantiser, and a last digit that tells items with the same ones apart."""
    with_room(0, spare_fraction)
    quantizer, semantic, training = fit(np.asarray(features), seed=seed, **running, **options)
    digits = unique_digits(semantic, seed)
    largest = int(digits.max()) + 1
    sizes = [*quantizer.code_sizes, with_room(largest, spare_fraction)]
    details = {
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
        "num_features": features.shape[1],
        "training": training,
        "largest_cell": largest,
        "spare_fraction": spare_fraction,
    }
    codes = np.concatenate([semantic, digits[:, None]], axis=1)
    return ItemIds(item_ids, codes, sizes, method, seed, details, quantizer)


def _featureless(
    num_items: int, method: str, spare_fraction: float, seed: int, options: dict[str, Any]
) -> tuple[np.ndarray, list[int]]:
    """Codes of a catalog with room for items to come, spread over the room in random order."""
    room = with_room(num_items, spare_fraction)
    if method == "single":
        return np.arange(num_items, dtype=np.int32)[:, None], [room]
    codes, sizes = chunked_item_ids(room, seed=seed, **options)
    return codes[:num_items], sizes


__all__ = ["DEFAULT_SPARE_FRACTION", "SEMANTIC_METHODS", "fit_item_ids"]
