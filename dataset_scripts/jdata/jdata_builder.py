"""Builder of the JData log; README.md beside it says what it is, where to get it and under which terms.

    builder = JDataBuilder(config_name="session", data_dir="raw/jdata")
    builder.download_and_prepare()
    dataset = builder.as_dataset()

VERSION goes up with any change of the rows.
"""

import datasets

from mbgen_hf.public_datasets.builder import PublicDatasetBuilder


class JDataBuilder(PublicDatasetBuilder):
    """Splits in order of time: `sequential` holds out interactions (MBGen), `session` sessions (GAMER)."""

    DATASET = "jdata"
    VERSION = datasets.Version("1.0.0")
