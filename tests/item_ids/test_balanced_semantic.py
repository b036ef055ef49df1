import numpy as np
import pytest

from mbgen_hf.item_ids.balance_report import balance_report
from mbgen_hf.item_ids.balanced_semantic import (
    PAPER_HIDDEN,
    automatic_code_size,
    automatic_hidden,
    fit_balanced_quantizer,
)
from mbgen_hf.item_ids.residual_quantized import fit_residual_quantizer


SHORT = {"hidden": (32,), "latent_dim": 8, "max_epochs": 30, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def features():
    """600 items in a hierarchy: 6 kinds of very different popularity, 5 sorts in each."""
    rng = np.random.default_rng(0)
    kind = rng.choice(6, 600, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    sort = rng.integers(0, 5, 600)
    values = 4 * rng.normal(size=(6, 24))[kind] + 1.5 * rng.normal(size=(6, 5, 24))[kind, sort]
    return (values + 0.3 * rng.normal(size=values.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def balanced(features):
    return fit_balanced_quantizer(features, (8, 8), **SHORT)


def test_the_quantizer_gives_back_the_codes_it_was_fitted_with(features, balanced):
    quantizer, codes, report = balanced
    assert quantizer.code_sizes == [8, 8] and codes.shape == (600, 2) and codes.max() < 8
    assert (quantizer.codes(features) == codes).all(1).mean() > 0.995
    assert 0 < report["epochs"] <= 30


def test_second_codes_come_from_a_clustering_of_each_cell(features, balanced):
    """Items of one cell lie closer together in latent space than items that share the first code alone."""
    quantizer, codes, _ = balanced
    latent = quantizer.latent(features).numpy()

    def spread(cells):
        return sum(((latent[cells == cell] - latent[cells == cell].mean(0)) ** 2).sum() for cell in np.unique(cells))

    assert spread(codes[:, 0] * 8 + codes[:, 1]) < 0.3 * spread(codes[:, 0])


def test_it_is_more_balanced_than_one_codebook_for_all_residuals(features, balanced):
    """Table 7 of the paper."""
    _, codes, _ = balanced
    _, shared, _ = fit_residual_quantizer(features, (8, 8), **SHORT)
    ours, theirs = (balance_report(found, (8, 8)).levels[1] for found in (codes, shared))
    assert ours.variance < theirs.variance and ours.largest < theirs.largest and ours.used_cells > theirs.used_cells


def test_the_seed_decides_and_repeats(features, balanced):
    _, codes, _ = balanced
    assert np.array_equal(fit_balanced_quantizer(features, (8, 8), **SHORT)[1], codes)
    assert not np.array_equal(fit_balanced_quantizer(features, (8, 8), **SHORT, seed=1)[1], codes)


def test_features_are_standardised(features, balanced):
    quantizer, codes, _ = balanced
    scaled = features * np.linspace(0.1, 50, 24, dtype=np.float32) + 3
    other, found, _ = fit_balanced_quantizer(scaled, (8, 8), **SHORT)
    # Up to rounding in the features, hence not item by item.
    assert (found == codes).all(1).mean() > 0.9
    constant = np.column_stack([features, np.full(600, 7.0, dtype=np.float32)])
    assert np.isfinite(fit_balanced_quantizer(constant, (8, 8), **SHORT)[0].latent(constant).numpy()).all()


def test_automatic_sizes_are_those_of_the_paper_at_its_scale():
    assert [automatic_code_size(n) for n in (1, 24, 5_758, 20_000, 97_842, 351_221)] == [8, 8, 24, 40, 64, 96]
    assert automatic_hidden(97_842) == PAPER_HIDDEN and automatic_hidden(20_000) == (512, 256, 128)


@pytest.mark.parametrize(
    ("features", "sizes", "message"),
    [
        (np.zeros((0, 3)), None, "`features`: expected shape"),
        (np.full((9, 2), np.inf), None, "`features`: expected finite values, found others for item 0"),
        (np.zeros((9, 2)), (3,), "`code_sizes`: expected 2 positive sizes"),
    ],
)
def test_bad_input_is_refused(features, sizes, message):
    with pytest.raises(ValueError, match=message):
        fit_balanced_quantizer(features, sizes)
