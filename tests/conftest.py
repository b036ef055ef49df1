import os
from pathlib import Path

import pytest
from shared_files import shared_path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Weights, inputs and outputs of the papers' own networks; `MBGEN_GOLDEN_DIR` or `../shared/golden`."""
    return shared_path(Path(os.environ.get("MBGEN_GOLDEN_DIR", SHARED / "golden")), "golden files")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real logs, which are not ours to redistribute; `MBGEN_DATA_DIR` or `../shared/data`."""
    return shared_path(Path(os.environ.get("MBGEN_DATA_DIR", SHARED / "data")), "real logs (MBGEN_DATA_DIR)")
