import sys

import numpy as np
import pytest

from mbgen_hf.item_ids.balance_picture import draw_balance


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 4, (30, 3))


def test_it_draws_a_picture(tmp_path, codes):
    pytest.importorskip("matplotlib")
    draw_balance(codes, [4, 4, 4], tmp_path / "balance.png")
    draw_balance(codes[:, :1], [4], tmp_path / "one.png")
    assert (tmp_path / "balance.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "one.png").stat().st_size > 1000


def test_without_matplotlib_it_says_what_to_install(tmp_path, codes, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install mbgen-hf\[plots\]"):
        draw_balance(codes, [4, 4, 4], tmp_path / "balance.png")
