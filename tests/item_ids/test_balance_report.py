import itertools
import json

import numpy as np
import pytest

from mbgen_hf.item_ids.balance_report import BalanceReport, balance_report


def test_released_codes_give_the_golden_values(golden_dir):
    codes = np.load(golden_dir / "mbgen_retail_released_codes.npz")["codes"]
    report = balance_report(codes, [64, 64])
    assert report.levels[0].variance == pytest.approx(90_092.70, abs=0.005)
    assert report.levels[1].variance == pytest.approx(70.978, abs=0.0005)
    assert report.levels[1].largest == 68
    cells = codes[:, 0].astype(np.int64) * 64 + codes[:, 1]
    assert (np.bincount(cells) > 64).sum() == 2
    # Last digits in row order, as released: five items reach past the 64 ids of the level.
    order = np.argsort(cells, kind="stable")
    digits = np.empty_like(cells)
    digits[order] = np.arange(len(cells)) - np.searchsorted(cells[order], cells[order])
    full = balance_report(np.column_stack([codes, digits]), [64, 64, 64])
    assert full.aliased == 5 and [level.aliased for level in full.levels] == [0, 0, 5]
    assert full.levels[2].variance == pytest.approx(0.2339265, abs=5e-8)
    assert full.collisions == 0


def test_every_number_agrees_with_counting_all_cells():
    codes = np.random.default_rng(0).integers(0, [3, 4, 5], (40, 3))
    codes[codes[:, 1] == 2, 1] = 0
    report = balance_report(codes, [3, 4, 5])
    for level, sizes in enumerate(([3], [3, 4], [3, 4, 5])):
        counts = np.array(
            [(codes[:, : level + 1] == cell).all(1).sum() for cell in itertools.product(*map(range, sizes))]
        )
        found = report.levels[level]
        assert (found.cells, found.used_cells) == (len(counts), (counts > 0).sum())
        assert found.variance == pytest.approx(counts.var()) and found.mean == pytest.approx(counts.mean())
        assert (found.largest, found.sharing) == (counts.max(), counts[counts > 1].sum())
    assert report.levels[1].unused_codes == 1 and report.collisions == report.levels[2].sharing > 0


def test_a_grid_too_large_for_any_array_is_no_trouble():
    codes = np.random.default_rng(0).integers(0, 8192, (500, 6))
    report = balance_report(codes, [8192] * 6)
    assert report.levels[-1].cells == 8192**6
    assert report.levels[-1].variance == pytest.approx(500 / 8192**6, rel=1e-6)


def test_it_reads_as_table_and_json():
    report = balance_report(np.array([[0, 1], [0, 1], [1, 0], [2, 5]]), [4, 2])
    assert BalanceReport.from_dict(json.loads(report.to_json())) == report
    lines = report.format_table().splitlines()
    assert lines[0] == "4 items, 2 collisions"
    assert lines[1].split()[:3] == ["level", "size", "unused"] and len(lines) == 4
    assert lines[3].split() == ["L2", "2", "0", "2", "8", "0.375", "0.484375", "2", "2", "1"]


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        (np.zeros((0, 2)), [2, 2], "`codes`: expected shape"),
        (np.zeros((3, 2)), [2], "`codes`: expected shape"),
        (np.array([[-1]]), [2], "`codes`: expected 0 or more"),
    ],
)
def test_bad_codes_are_refused(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        balance_report(codes, sizes)
