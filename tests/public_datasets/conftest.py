from pathlib import Path

import pytest
from raw_forms import RAW_FORMS, write_raw


@pytest.fixture(scope="session")
def raw_folder(tmp_path_factory):
    """Write one raw form into a folder of its own: `raw_folder("retail", "mbgen")`."""

    def make(dataset: str, form: str) -> Path:
        return write_raw(tmp_path_factory.mktemp(f"{dataset}-{form}"), RAW_FORMS[dataset, form][0])

    return make
