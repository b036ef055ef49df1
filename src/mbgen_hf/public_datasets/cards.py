"""Dataset cards: what a public log is, and what a published folder holds."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.public_datasets.catalog import CONFIGS, PublicDataset, RawForm
from mbgen_hf.public_datasets.statistics import format_statistics, published_statistics


TAGS = ["recommendation", "sequential-recommendation", "multi-behavior"]
COLUMNS = """\
| column | type | |
|---|---|---|
| `user_id` | int64 or string | raw user id |
| `item_ids` | list of int32 | rows of the config's catalog, which holds the raw item ids |
| `behaviors` | list of ClassLabel | in order of depth |
| `timestamps` | list of int64 | seconds since 1970 (UTC), ascending |
| `session_ids` | list of int32 | counted from 0 within each user; where sessions were cut |
| `history_length` | int32 | so many interactions may be shown; those behind them are held out |

One row for each user and split. `train` holds what comes before the validation interaction (or session), `validation`
reaches to the end of it, `test` to the end of the log: nothing held out is in the rows of an earlier split."""


def source_card(dataset: PublicDataset) -> str:
    """The card beside a builder: source, terms, columns, behaviors, presets, and the statistics the papers print."""
    name = dataset.name
    rows = published_statistics(name)
    forms = "\n".join(_form_line(form) for form in dataset.forms)
    presets = "\n".join(_preset_line(config, dataset) for config in CONFIGS)
    tables = "\n".join(format_statistics(row) for row in rows)
    data = DatasetCardData(license="other", pretty_name=dataset.title, tags=TAGS)
    return f"""---
{data.to_yaml()}
---

# {dataset.title}

{dataset.description}

**Terms.** To our knowledge: {dataset.terms} No row of it is part of this repository.

## How to obtain

Put the files of one form, text plain or as `.gz` or `.zst`, into one folder:

| form | files | from | |
|---|---|---|---|
{forms}

```bash
mbgen prepare {name} --data-dir raw/{name} --output data/{name}                    # as MBGen does
mbgen prepare {name} --data-dir raw/{name} --config session --output data/{name}-s # as GAMER does
mbgen statistics data/{name}                                     # beside what the papers print
mbgen push-dataset me/{name} data/{name} data/{name}-s --output published/{name} --dry-run
```

In Python `build_dataset("{name}", data_dir="raw/{name}")` gives the same rows, and `{name}_builder.py` a `datasets`
builder with the configs `sequential` and `session`.

## Behaviors

{_levels_line(dataset.levels, dataset.target)} A behavior is a step towards those of higher levels; levels may tie.

## Configs

| config | what is kept, in this order |
|---|---|
{presets}

Every rule is an option of `mbgen prepare` and an argument of `build_dataset`. Items are counted in training
interactions alone. Which users and days the papers drew was not published, nor how GAMER made sessions of raw logs:
from raw files expect numbers near the papers', not equal ones.

## Columns

{COLUMNS}

## Published statistics

```text
{tables}
```
"""


def published_card(
    title: str,
    repo_id: str,
    configs: Mapping[str, Mapping[str, str]],
    details: Mapping[str, str],
    schema: BehaviorSchema,
    dataset: PublicDataset | None = None,
) -> str:
    """The card of a published folder, with the `configs:` that plain `load_dataset` goes by.

    Args:
        title: heading.
        repo_id: the name the example loads.
        configs: config -> split -> pattern of its files.
        details: config -> what was read and what each filter took away.
        schema: the behaviors.
        dataset: the public log it is, if it is one.
    """
    listed: list[dict[str, Any]] = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": path} for split, path in splits.items()],
            **({"default": True} if number == 0 else {}),
        }
        for number, (config, splits) in enumerate(configs.items())
    ]
    data = DatasetCardData(license="other", pretty_name=title, tags=TAGS, configs=listed)
    first = next(iter(details))
    about = "A multi-behavior interaction log." if dataset is None else dataset.description
    terms = "Those of the log it was made from." if dataset is None else f"To our knowledge: {dataset.terms}"
    sections = "\n\n".join(f"### {config}\n\n```text\n{text}\n```" for config, text in details.items())
    text = f"""---
{data.to_yaml()}
---

# {title}

{about} Prepared with mbgen-hf for generative multi-behavior recommendation.

**Terms.** {terms}

```python
from datasets import load_dataset

dataset = load_dataset("{repo_id}", "{first}")            # train, validation, test
catalog = load_dataset("{repo_id}", "{first}_catalog", split="catalog")
behaviors = load_dataset("{repo_id}", "{first}_behaviors", split="behaviors")  # in order of depth, with their levels
catalog[dataset["test"][0]["item_ids"][0]]["item_id"]     # the raw id of an item
```

With mbgen-hf, `SequenceTable.from_dataset(dataset, catalog, behaviors)` is the log to train on again, and
`mbgen train {repo_id} --config {first} --output FOLDER` does so at once.

## Behaviors

{_levels_line(dict(zip(schema.names, schema.levels, strict=True)), schema.target)}

## Columns

{COLUMNS}

## How it was made

{sections}
"""
    return str(DatasetCard(text))


def _levels_line(levels: Mapping[str, int], target: str) -> str:
    named = ", ".join(f"`{name}` (level {level})" for name, level in levels.items())
    return f"{named}; the target is `{target}`."


def _form_line(form: RawForm) -> str:
    names = ", ".join(f"`{name}`" for name in form.files)
    return f"| `{form.name}` | {names} | {form.source} | {form.note.replace('|', '/')} |"


def _preset_line(config: str, dataset: PublicDataset) -> str:
    rules = dataset.presets[config]
    parts = []
    if rules.window is not None:
        parts.append(f"a window of {rules.window.days} days (`{rules.window}`)")
    if rules.sample_users is not None:
        parts.append(f"{rules.sample_users:.0%} of the users")
    if rules.min_item_count:
        parts.append(f"items with {rules.min_item_count} or more training interactions")
    if rules.min_user_interactions:
        parts.append(f"users with {rules.min_user_interactions} or more interactions")
    if rules.sessions is not None:
        parts.append(f"sessions `{rules.sessions}`, users with {rules.min_sessions} or more")
    return f"| `{config}` | {'; '.join(parts)} |"


__all__ = ["published_card", "source_card"]
