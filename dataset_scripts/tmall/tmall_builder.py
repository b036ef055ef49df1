"""Builder of the Tmall log; README.md beside it says what it is, where to get it and under which terms.

    builder = TmallBuilder(config_name="session", data_dir="raw/tmall")
    builder.download_and_prepare()
    dataset = builder.as_dataset()

VERSION goes up with any change of the rows.
"""

import datasets

from mbgen_hf.public_datasets.builder import PublicDatasetBuilder


class TmallBuilder(PublicDatasetBuilder):
    """Splits in order of time: `sequential` holds out interactions (MBGen), `session` sessions (GAMER)."""

    DATASET = "tmall"
    VERSION = datasets.Version("1.0.0")
