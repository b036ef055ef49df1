"""Balanced semantic IDs: quantised auto-encoder, one k-means per first code, unique last digit (MBGen section 3.2)."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from mbgen_hf.item_ids.grouped_kmeans import grouped_kmeans
from mbgen_hf.item_ids.quantized_autoencoder import train_autoencoder
from mbgen_hf.item_ids.semantic_quantizer import SemanticQuantizer, standardization


PAPER_HIDDEN = (2048, 1024, 512, 256)
SMALL_HIDDEN = (512, 256, 128)
LARGE_CATALOG = 50_000


def fit_balanced_quantizer(
    features: np.ndarray,
    code_sizes: Sequence[int] | None = None,
    hidden: Sequence[int] | None = None,
    latent_dim: int = 32,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
    max_rounds: int = 50,
    **training,
) -> tuple[SemanticQuantizer, np.ndarray, dict[str, float]]:
    """Learn the first two levels of balanced semantic IDs.

    The first code is the nearest entry of the auto-encoder's codebook; the second comes from a k-means of its own
    over the residuals of all items with that first code, which is what balances it.

    Args:
        features: `(num_items, num_features)`, standardised here (M7).
        code_sizes: codes of the two levels; by default `automatic_code_size(num_items)` for both.
        hidden: widths of the encoder's hidden layers; by default the paper's 2048-1024-512-256 from 50,000 items on,
            512-256-128 below.
        latent_dim: width of the latent vectors.
        seed: of everything random.
        device: where it is fitted.
        progress: show bars.
        max_rounds: cap on the rounds of the k-means.
        training: see `train_autoencoder`: `beta`, `learning_rate`, `batch_size`, `max_epochs`, `patience`.

    Returns:
        The quantiser, `(num_items, 2)` codes, and what the training of the auto-encoder reported.
    """
    sizes = check_code_sizes(code_sizes, 2, len(features))
    mean, scale, standardized = standardized_features(features, device)
    network, report = train_autoencoder(
        standardized, hidden or automatic_hidden(len(features)), latent_dim, sizes[:1],
        seed=seed, progress=progress, **training,
    )  # fmt: skip
    codebook = network.codebooks[0]
    with torch.no_grad():
        latent = torch.cat([network.encoder(rows) for rows in standardized.split(16_384)])
    first = torch.cat([codebook.nearest(rows) for rows in latent.split(16_384)])
    clusters = grouped_kmeans(
        latent - codebook.codes[first], first, sizes[0], sizes[1], seed, max_rounds, progress=progress
    )
    quantizer = SemanticQuantizer.from_encoder(mean, scale, network.encoder, [codebook.codes, clusters.centers])
    codes = torch.stack([first, clusters.labels], dim=1)
    return quantizer, codes.int().cpu().numpy(), report


def automatic_code_size(num_items: int) -> int:
    """4/3 of the cube root of the catalog, rounded up to a multiple of 8.

    It gives the sizes of the paper for its two catalogs: 64 for 97,842 items, 96 for 351,221.
    """
    return 8 * math.ceil(num_items ** (1 / 3) / 6)


def automatic_hidden(num_items: int) -> tuple[int, ...]:
    """Hidden widths of the encoder: the paper's for large catalogs, smaller ones below 50,000 items."""
    return PAPER_HIDDEN if num_items >= LARGE_CATALOG else SMALL_HIDDEN


def check_code_sizes(code_sizes: Sequence[int] | None, levels: int, num_items: int) -> list[int]:
    """The sizes of so many levels; raises `ValueError` for others."""
    if code_sizes is None:
        return [automatic_code_size(num_items)] * levels
    if len(code_sizes) != levels or min(code_sizes) < 1:
        raise ValueError(f"`code_sizes`: expected {levels} positive sizes, found {list(code_sizes)}")
    return list(code_sizes)


def standardized_features(features: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, scale and standardised features on a device.

    Raises:
        ValueError: no items, not a matrix, or values that are not finite.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"`features`: expected shape (num_items, num_features), found {features.shape}")
    if not np.isfinite(features).all():
        item = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise ValueError(f"`features`: expected finite values, found others for item {item}")
    values = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)
    mean, scale = standardization(values)
    return mean, scale, (values - mean) / scale


__all__ = [
    "automatic_code_size",
    "automatic_hidden",
    "check_code_sizes",
    "fit_balanced_quantizer",
    "standardized_features",
]
