"""What `mbgen push-dataset` published, from a folder or the Hub, back to the sequence table it was made from."""

from pathlib import Path

from datasets import get_dataset_config_names, load_dataset

from mbgen_hf.data.sequence_table import SCHEMA_FILE, SequenceTable
from mbgen_hf.hub_errors import hub_errors
from mbgen_hf.public_datasets.publish import BEHAVIORS_SUFFIX, CATALOG_SUFFIX, PUBLISHED_FILES, REPOSITORY


def load_published(source: str | Path, config: str | None = None) -> SequenceTable:
    """Load a published dataset with plain `load_dataset` and rebuild its table.

    It is the table of the prepared folder it was made from: the same users, sequences, catalog, behaviors and levels,
    so that training and evaluation are the same. What was never published does not come back: with sessions, users of
    fewer than three of them.

    Args:
        source: a folder that `mbgen push-dataset` wrote, or `owner/name` on the Hub.
        config: `sequential` or `session`; the only one by default.

    Raises:
        ValueError: it was not published by `mbgen push-dataset`, or `config` is needed or unknown.
        OSError: the Hub can not be reached, or has no such dataset.
    """
    source = str(source)
    with hub_errors(source):
        names = get_dataset_config_names(source)
        configs = [name for name in names if {name + CATALOG_SUFFIX, name + BEHAVIORS_SUFFIX} <= set(names)]
        if not configs:
            raise ValueError(
                f"{source}: expected a dataset that `mbgen push-dataset` wrote, found the configs {names}"
            )
        if config not in configs and (config is not None or len(configs) > 1):
            raise ValueError(f"`config`: expected one of {configs} of {source}, found {config!r}")
        config = config or configs[0]
        rows = load_dataset(source, config)
        catalog = load_dataset(source, config + CATALOG_SUFFIX, split="catalog")
        behaviors = load_dataset(source, config + BEHAVIORS_SUFFIX, split="behaviors")
    return SequenceTable.from_dataset(rows, catalog, behaviors)


def load_table(source: str | Path, config: str | None = None) -> SequenceTable:
    """The sequences of a prepared folder, a published folder or a published dataset on the Hub.

    Args:
        source: a folder that `mbgen prepare` or `mbgen push-dataset` wrote, or `owner/name`. A folder comes first.
        config: of a published dataset with several, see `load_published`.

    Raises:
        ValueError: it is none of these, or what `load_published` raises.
        OSError: no such folder, and the Hub can not be reached or has no such dataset.
    """
    folder = Path(source)
    expected = "a folder that `mbgen prepare` or `mbgen push-dataset` wrote, or owner/name on the Hub"
    if all((folder / name).exists() for name in PUBLISHED_FILES):
        return load_published(source, config)
    if not folder.exists() and REPOSITORY.fullmatch(str(source)):
        try:
            return load_published(source, config)
        except OSError as error:
            raise OSError(f"{source}: expected {expected}, found no such folder, and: {error}") from error
    if not (folder / SCHEMA_FILE).is_file():
        found = f"no {SCHEMA_FILE} in it" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise ValueError(f"{source}: expected {expected}, found {found}")
    if config is not None:
        raise ValueError(f"`config`: expected with published data only, found {config!r} with the prepared {source}")
    return SequenceTable.load(folder)


__all__ = ["load_published", "load_table"]
