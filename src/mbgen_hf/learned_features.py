"""From a sequence table alone to item IDs: features learned from its training interactions, then codes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbgen_hf.baselines.baseline import training_mask
from mbgen_hf.baselines.sasrec import SASRecBaseline
from mbgen_hf.data.output_folder import check_output_folder, written_whole
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.protocols import Protocol, protocol_training_end
from mbgen_hf.item_ids.fit import SEMANTIC_METHODS, fit_item_ids
from mbgen_hf.item_ids.fitted_ids import IDS_FILES, ItemIds
from mbgen_hf.item_ids.item_features import read_item_features, save_item_features
from mbgen_hf.item_ids.quantized_autoencoder import check_training


FEATURES_FILE = "features.safetensors"
PICTURE_FILE = "balance.png"
LARGE_CATALOG = 10_000
LEARNED = "sasrec"
"""Source of features that were learned from a log."""


def learn_item_features(
    table: SequenceTable,
    protocol: Protocol = "leave_one_out",
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    **sasrec: Any,
) -> tuple[np.ndarray, dict[str, str]]:
    """Item embeddings of a SASRec trained on the training part of a log.

    An item without a training interaction, of which nothing is known, gets the features of a random other item.

    Args:
        table: the sequences.
        protocol: decides which interactions are held out; none of them is read.
        seed: of everything random.
        device: where it is trained; a GPU if there is one by default.
        progress: show a bar.
        sasrec: see `SASRecBaseline`. Embeddings start small here (`initial_std` 0.02), so that what a rare item has
            learned is not lost in noise; from 10,000 items on, the loss is over 2,000 of them at a time.

    Returns:
        `(num_items, dim)` features, and where they come from.
    """
    if sasrec.get("num_epochs", 1) < 1:
        raise ValueError(f"`num_epochs`: expected at least 1, found {sasrec['num_epochs']}")
    ends = protocol_training_end(table, protocol)
    defaults = {"initial_std": 0.02, "num_sampled": 2_000 if table.num_items >= LARGE_CATALOG else None}
    baseline = SASRecBaseline(seed=seed, device=device, progress=progress, **{**defaults, **sasrec})
    features = baseline.fit(table, ends).item_embeddings()
    seen = np.zeros(table.num_items, dtype=bool)
    seen[table.items[training_mask(table, ends)]] = True
    if not seen.any():
        raise ValueError("`table`: expected interactions to train on, found none before the held-out ones")
    unseen = np.flatnonzero(~seen)
    features[unseen] = features[np.random.default_rng(seed).choice(np.flatnonzero(seen), len(unseen))]
    origin = {
        "source": LEARNED,
        "protocol": protocol,
        "data_fingerprint": table.fingerprint(),
        "unseen_items": str(len(unseen)),
    }
    return features, origin


def fit_ids(
    table: SequenceTable,
    output: str | Path,
    method: str = "balanced",
    features: str | Path | None = None,
    protocol: Protocol = "leave_one_out",
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
    overwrite: bool = False,
    picture: bool = False,
    sasrec: dict[str, Any] | None = None,
    **options: Any,
) -> ItemIds:
    """Item IDs for the catalog of a table, written as a folder: what `mbgen fit-ids` calls.

    Args:
        table: the sequences.
        output: folder to write: `item_ids.json`, `catalog.safetensors`, `quantizer.safetensors` and, where features
            were learned here, `features.safetensors`, which serves as `features` of another fit.
        method: see `fit_item_ids`, as for `options`.
        features: file to read, see `read_item_features`; by default the semantic methods learn features from the log.
        protocol: see `learn_item_features`; training under another protocol refuses IDs learned from the log.
        seed: of everything random.
        device: where networks are trained; a GPU if there is one by default.
        progress: show bars.
        overwrite: replace an earlier result in `output`.
        picture: draw the balance report as `balance.png`.
        sasrec: changes to the network that learns the features.

    Raises:
        ValueError: bad arguments, features or folder.
    """
    folder = check_output_folder(output, overwrite, (*IDS_FILES, FEATURES_FILE, PICTURE_FILE))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: value for name, value in options.items() if value is not None}
    check_training(**{**given, "seed": seed})
    values, origin, learned = None, None, False
    if method in SEMANTIC_METHODS:
        if features is None:
            values, origin = learn_item_features(table, protocol, seed, device, progress, **(sasrec or {}))
            learned = True
        else:
            values, origin = read_item_features(features, table.item_ids)
    elif features is not None:
        raise ValueError(f"`features`: expected none for {method} IDs, found {features}")
    if sasrec and not learned:
        raise ValueError("`sasrec`: expected only where features are learned from the log, found it without need")
    ids = fit_item_ids(table.item_ids, method, values, seed=seed, device=device, progress=progress, **options)
    if origin is not None:
        ids.details["features"] = origin or {"source": "given", "file": Path(features).name}
    with written_whole(folder) as new:
        ids.save(new)
        if learned:
            save_item_features(new / FEATURES_FILE, values, table.item_ids, origin)
        if picture:
            from mbgen_hf.item_ids.balance_picture import draw_balance

            draw_balance(ids.codes, ids.code_sizes, new / PICTURE_FILE)
    return ids


__all__ = ["FEATURES_FILE", "LEARNED", "PICTURE_FILE", "fit_ids", "learn_item_features"]
