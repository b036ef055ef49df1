"""Prepared folders to a dataset repository: Parquet shards and a card that plain `load_dataset` reads."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from mbgen_hf.data.dataset_rows import schema_rows
from mbgen_hf.data.output_folder import check_output_folder, written_whole
from mbgen_hf.data.prepare import REPORT_FILE, format_report
from mbgen_hf.data.sequence_table import CATALOG_FILE, SCHEMA_FILE, SequenceTable
from mbgen_hf.data.sessions import recorded_session_rule
from mbgen_hf.hub_errors import hub_errors
from mbgen_hf.public_datasets.cards import published_card
from mbgen_hf.public_datasets.catalog import PUBLIC_DATASETS
from mbgen_hf.public_datasets.splits import CONFIG_PROTOCOLS, SPLITS, split_tables


SHARD_INTERACTIONS = 8_000_000
"""About 100 MB of Parquet."""
PUBLISHED_FILES = ("README.md", "data")
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CATALOG_SUFFIX, BEHAVIORS_SUFFIX = "_catalog", "_behaviors"
"""What follows the name of a config in those of its catalog and of its behaviors."""
BEHAVIORS_FILE = "behaviors.parquet"


def write_published_folder(
    prepared: Sequence[str | Path],
    output: str | Path,
    repo_id: str,
    overwrite: bool = False,
    shard_interactions: int = SHARD_INTERACTIONS,
) -> list[Path]:
    """Write what a dataset repository holds: shards for each config and split, the catalogs, the card.

    A folder that was prepared with sessions becomes the config `session`, with the splits of the session-wise
    protocol; any other `sequential`, leave-one-out. `CONFIG_catalog` holds the raw item ids, `CONFIG_behaviors` the
    behaviors with their levels: from the three `SequenceTable.from_dataset` gets the table back.

    Args:
        prepared: folders written by `mbgen prepare`, at most one for each config.
        output: folder to write, whole or not at all.
        repo_id: `owner/name`, for the card.
        overwrite: replace the result of an earlier run in `output`.
        shard_interactions: about so many interactions go into one shard.

    Returns:
        The files, relative to `output`.

    Raises:
        ValueError: not a prepared folder, two for one config or of different logs, or a bad name or output folder.
    """
    if not REPOSITORY.fullmatch(repo_id):
        raise ValueError(f"`repo_id`: expected owner/name, found {repo_id!r}")
    folder = check_output_folder(output, overwrite, PUBLISHED_FILES)
    by_config = _by_config(prepared)
    datasets = {config: _dataset(source) for config, source in by_config.items()}
    if len(set(datasets.values())) > 1:
        raise ValueError(f"`prepared`: expected folders of one log, found {datasets}")
    dataset = PUBLIC_DATASETS.get(next(iter(datasets.values())))
    configs: dict[str, dict[str, str]] = {}
    details: dict[str, str] = {}
    with written_whole(folder) as new:
        for config, source in by_config.items():
            table = SequenceTable.load(source)
            (new / "data" / config).mkdir(parents=True)
            for split in SPLITS:
                _write_shards(new / "data" / config, table, config, split, shard_interactions)
            for name in (CATALOG_FILE, SCHEMA_FILE):
                (new / "data" / config / name).write_bytes((source / name).read_bytes())
            pq.write_table(schema_rows(table.schema), new / "data" / config / BEHAVIORS_FILE)
            configs[config] = {split: f"data/{config}/{split}-*.parquet" for split in SPLITS}
            details[config] = format_report(_report(source))
        for config in by_config:
            configs[config + CATALOG_SUFFIX] = {"catalog": f"data/{config}/{CATALOG_FILE}"}
            configs[config + BEHAVIORS_SUFFIX] = {"behaviors": f"data/{config}/{BEHAVIORS_FILE}"}
        title = repo_id.rpartition("/")[2] if dataset is None else dataset.title
        card = published_card(title, repo_id, configs, details, table.schema, dataset)
        (new / "README.md").write_text(card, encoding="utf-8")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def push_dataset(
    folder: str | Path, repo_id: str, private: bool = False, message: str | None = None, api: HfApi | None = None
) -> str:
    """Upload a folder that `write_published_folder` wrote and return the address of the repository.

    Raises:
        ValueError: the folder holds no card.
        OSError: the Hub can not be reached.
    """
    folder = Path(folder)
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder}: expected a published folder holding README.md, found none")
    api = api or HfApi()
    with hub_errors(repo_id):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=str(folder),
            delete_patterns="data/*",  # shards of an earlier upload must not be read beside the new ones
            commit_message=message or "Upload dataset",
        )
    return str(url)


def _by_config(prepared: Sequence[str | Path]) -> dict[str, Path]:
    if not prepared:
        raise ValueError("`prepared`: expected at least one prepared folder, found none")
    found: dict[str, Path] = {}
    for source in map(Path, prepared):
        for name in (SCHEMA_FILE, REPORT_FILE):
            if not (source / name).is_file():
                raise ValueError(
                    f"{source}: expected a prepared folder holding {name}, found none; run `mbgen prepare`"
                )
        config = "sequential" if recorded_session_rule(source) is None else "session"
        if config in found:
            raise ValueError(f"`prepared`: expected one folder for {config!r}, found {found[config]} and {source}")
        found[config] = source
    return {config: found[config] for config in CONFIG_PROTOCOLS if config in found}


def _report(source: Path) -> dict:
    return json.loads((source / REPORT_FILE).read_text(encoding="utf-8"))


def _dataset(source: Path) -> str | None:
    return _report(source).get("options", {}).get("dataset")


def _write_shards(folder: Path, table: SequenceTable, config: str, split: str, shard_interactions: int) -> None:
    """Write a split; shards are named when it is known how many there are."""
    paths: list[Path] = []
    rows: list[pa.Table] = []
    interactions = 0
    for block in split_tables(table, CONFIG_PROTOCOLS[config], split, min(shard_interactions, 1 << 20)):
        rows.append(block)
        interactions += pc.sum(pc.list_value_length(block["item_ids"])).as_py() or 0
        if interactions >= shard_interactions:
            paths.append(_write_shard(folder, split, len(paths), rows))
            rows, interactions = [], 0
    if rows or not paths:
        paths.append(_write_shard(folder, split, len(paths), rows))
    for number, path in enumerate(paths):
        path.rename(folder / f"{split}-{number:05d}-of-{len(paths):05d}.parquet")


def _write_shard(folder: Path, split: str, number: int, rows: list[pa.Table]) -> Path:
    path = folder / f"{split}-{number:05d}.unfinished"
    pq.write_table(pa.concat_tables(rows), path, compression="zstd")
    return path


__all__ = [
    "BEHAVIORS_SUFFIX",
    "CATALOG_SUFFIX",
    "PUBLISHED_FILES",
    "REPOSITORY",
    "push_dataset",
    "write_published_folder",
]
