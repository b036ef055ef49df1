"""Builder of the ShortVideoAD log; README.md beside it says what it is, where to get it and under which terms.

    builder = ShortVideoADBuilder(config_name="session", data_dir="raw/shortvideoad")
    builder.download_and_prepare()
    dataset = builder.as_dataset()

VERSION goes up with any change of the rows.
"""

import datasets

from mbgen_hf.public_datasets.builder import PublicDatasetBuilder


class ShortVideoADBuilder(PublicDatasetBuilder):
    """Splits in order of time: `sequential` holds out interactions (MBGen), `session` sessions (GAMER)."""

    DATASET = "shortvideoad"
    VERSION = datasets.Version("1.0.0")
