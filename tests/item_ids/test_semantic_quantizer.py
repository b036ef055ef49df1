import numpy as np
import pytest
import torch

from mbgen_hf.item_ids.semantic_quantizer import SemanticQuantizer


@pytest.fixture(params=["one codebook a level", "one for each first code"])
def quantizer(request):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    second = draw(5, 3) if request.param.startswith("one codebook") else draw(4, 5, 3)
    if second.ndim == 3:
        second[1, 2:] = torch.inf
        second[3] = torch.inf
    return SemanticQuantizer(draw(6), draw(6).abs() + 0.5, (draw(8, 6), draw(3, 8)), (draw(8), draw(3)),
                             (draw(4, 3), second))  # fmt: skip


def brute_force(quantizer, features):
    """Codes of one item, in float64 and without blocks."""
    rest = (torch.from_numpy(features) - quantizer.mean.double()) / quantizer.scale.double()
    rest = torch.relu(quantizer.weights[0].double() @ rest + quantizer.biases[0].double())
    rest = quantizer.weights[1].double() @ rest + quantizer.biases[1].double()
    codes = []
    for codebook in quantizer.codebooks:
        entries = (codebook if codebook.ndim == 2 else codebook[codes[0]]).double()
        codes.append(int((entries - rest).square().sum(1).nan_to_num(nan=torch.inf).argmin()))
        rest = rest - entries[codes[-1]]
    return codes


def usable(quantizer, features):
    """Rows whose first code has entries at the second level; a fitted quantiser has no others."""
    if quantizer.codebooks[1].ndim == 2:
        return features
    quantizer.codebooks[0][3] = 1e6
    return features


def test_codes_are_the_nearest_entries(quantizer):
    features = usable(quantizer, np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32))
    expected = [brute_force(quantizer, row.astype(np.float64)) for row in features]
    assert quantizer.codes(features).tolist() == expected


def test_cells_come_in_order_of_distance_and_each_once(quantizer):
    features = usable(quantizer, np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32))
    for row, codes in zip(features, quantizer.codes(features).tolist(), strict=True):
        cells = list(quantizer.cells_by_distance(row))
        assert list(cells[0]) == codes
        exists = quantizer.codebooks[1].isfinite().all(-1)
        assert len(set(cells)) == len(cells) == (20 if exists.ndim == 1 else int(exists.sum()))
        assert [cell[0] for cell in cells[:2]] == [codes[0]] * 2, "the last level varies first"


def test_it_survives_a_round_trip_through_tensors(quantizer):
    features = usable(quantizer, np.random.default_rng(2).normal(size=(50, 6)).astype(np.float32))
    again = SemanticQuantizer.from_tensors(quantizer.tensors())
    assert np.array_equal(again.codes(features), quantizer.codes(features))
    assert again.code_sizes == [4, 5] and again.num_features == 6


def test_bad_features_are_refused(quantizer):
    with pytest.raises(ValueError, match=r"`features`: expected shape \(num_items, 6\)"):
        quantizer.codes(np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(ValueError, match="`features`: expected finite"):
        quantizer.codes(np.full((3, 6), np.nan, dtype=np.float32))
