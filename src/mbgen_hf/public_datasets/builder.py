"""The `datasets` builder that the builders of the public logs derive from.

`datasets` no longer runs scripts, so a builder is used directly:

    builder = RetailBuilder(config_name="session", data_dir="raw/retail")
    builder.download_and_prepare()
    dataset = builder.as_dataset()  # train, validation, test
"""

import hashlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pyarrow as pa

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.public_datasets.build import build_dataset, find_raw_files
from mbgen_hf.public_datasets.catalog import CONFIGS, public_dataset
from mbgen_hf.public_datasets.splits import CONFIG_PROTOCOLS, SPLITS, split_features, split_tables


@dataclass
class PublicDatasetConfig(datasets.BuilderConfig):
    """`sequential` or `session`, and what differs from its preset.

    Args:
        form: raw form, where the data folder holds more than one.
        rules: fields of `PreparationRules`, such as `{"sample_users": 0.01}`.
    """

    form: str | None = None
    rules: dict[str, Any] = field(default_factory=dict)


class PublicDatasetBuilder(datasets.ArrowBasedBuilder):
    """Builds one public log; a class of its own, in a file of its own, names it.

    The cache folder goes by the content of the raw files and of the code that reads them: `datasets` by itself would
    return what was built from other files of the same folder, or by another builder of the same name.

    Args:
        data_dir: folder with the raw files.
        arguments: those of `datasets.DatasetBuilder` and fields of `PublicDatasetConfig`.

    Raises:
        ValueError: raw files are missing; it says which, where to get them and where to put them.
    """

    DATASET: ClassVar[str]
    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = PublicDatasetConfig
    DEFAULT_CONFIG_NAME = "sequential"

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # The cache goes by the version of the config; a config without one would stay at 0.0.0.
        cls.BUILDER_CONFIGS = [PublicDatasetConfig(name=name, version=cls.VERSION) for name in CONFIGS]

    def __init__(self, *, data_dir: str | Path, hash: str | None = None, form: str | None = None, **arguments: Any):
        raw = find_raw_files(public_dataset(self.DATASET), data_dir, form)
        if form is not None:
            arguments["form"] = form
        self._built: SequenceTable | None = None
        arguments.setdefault("dataset_name", self.DATASET)
        super().__init__(data_dir=str(data_dir), hash=hash or _fingerprint(raw.paths, type(self)), **arguments)

    @property
    def table(self) -> SequenceTable:
        """The sequence table all splits are cut from, with the raw item ids and the behavior schema."""
        if self._built is None:
            config = self.config
            self._built, _ = build_dataset(
                self.DATASET, config.data_dir, config=config.name, form=config.form, **config.rules
            )
        return self._built

    def _info(self) -> datasets.DatasetInfo:
        dataset = public_dataset(self.DATASET)
        return datasets.DatasetInfo(description=f"{dataset.title}. {dataset.description}", license=dataset.terms)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        # Known once the raw files are read: users are integers or strings, behaviors those of the raw form.
        self.info.features = split_features(self.table)
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in SPLITS]

    def _generate_tables(self, split: str) -> Iterator[tuple[Any, pa.Table]]:
        yield from enumerate(split_tables(self.table, CONFIG_PROTOCOLS[self.config.name], split))


def _fingerprint(paths: tuple[Path, ...], builder: type) -> str:
    """A hash of the raw files' names and content, of the builder's file and of the code it runs."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(json.dumps([path.name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    digest.update(Path(inspect.getfile(builder)).read_bytes())
    for package in ("mbgen_hf.data", "mbgen_hf.public_datasets", "mbgen_hf.evaluation"):
        for source in sorted(files(package).iterdir(), key=lambda source: source.name):
            if source.name.endswith(".py"):
                digest.update(source.read_bytes())
    return digest.hexdigest()


__all__ = ["PublicDatasetBuilder", "PublicDatasetConfig"]
