"""RQ-VAE semantic IDs: several codebooks, each on what the ones before leave over (TIGER, Rajput et al. 2023)."""

from collections.abc import Sequence

import numpy as np

from mbgen_hf.item_ids.balanced_semantic import automatic_hidden, check_code_sizes, standardized_features
from mbgen_hf.item_ids.quantized_autoencoder import train_autoencoder
from mbgen_hf.item_ids.semantic_quantizer import SemanticQuantizer


def fit_residual_quantizer(
    features: np.ndarray,
    code_sizes: Sequence[int] | None = None,
    hidden: Sequence[int] | None = None,
    latent_dim: int = 32,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
    **training,
) -> tuple[SemanticQuantizer, np.ndarray, dict[str, float]]:
    """Learn the codes of an RQ-VAE; items may share them, which a collision digit has to mend.

    Differs from TIGER in that the codebooks follow running averages, as in MBGen, instead of gradients.

    Args:
        features: `(num_items, num_features)`.
        code_sizes: codes of each level; by default three levels of `automatic_code_size(num_items)`.
        hidden, latent_dim, seed, device, progress, training: see `fit_balanced_quantizer`.

    Returns:
        The quantiser, `(num_items, levels)` codes, and what the training reported.
    """
    sizes = check_code_sizes(code_sizes, 3 if code_sizes is None else len(code_sizes), len(features))
    mean, scale, standardized = standardized_features(features, device)
    network, report = train_autoencoder(
        standardized, hidden or automatic_hidden(len(features)), latent_dim, sizes,
        seed=seed, progress=progress, **training,
    )  # fmt: skip
    codebooks = [codebook.codes for codebook in network.codebooks]
    quantizer = SemanticQuantizer.from_encoder(mean, scale, network.encoder, codebooks)
    return quantizer, quantizer.codes(features), report


__all__ = ["fit_residual_quantizer"]
