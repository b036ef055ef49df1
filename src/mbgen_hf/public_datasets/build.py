"""From the raw files of a public log to its sequence table, by the papers' rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbgen_hf.data.input_error import listed
from mbgen_hf.data.output_folder import check_output_folder
from mbgen_hf.data.prepare import (
    PREPARED_FILES,
    PreparationRules,
    preparation_rules,
    prepare_log,
    save_prepared,
)
from mbgen_hf.data.read_log import InteractionLog, read_interaction_log
from mbgen_hf.data.selection import Selection
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.public_datasets.catalog import CONFIGS, PublicDataset, RawForm, public_dataset
from mbgen_hf.public_datasets.session_json import read_session_json


COMPRESSED = ("", ".gz", ".zst")
ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz")


@dataclass(frozen=True)
class RawFiles:
    """The raw files of a public log: their form and the files in the order they are read."""

    dataset: PublicDataset
    form: RawForm
    paths: tuple[Path, ...]


def find_raw_files(dataset: PublicDataset, data_dir: str | Path, form: str | None = None) -> RawFiles:
    """Look for the raw files of a log, plain or compressed.

    Args:
        dataset: the log.
        data_dir: the folder they were put in.
        form: name of the raw form to look for; any that the log has by default.

    Raises:
        ValueError: none is complete, or more than one without `form`; it says which file is missing, where to get
            it and where to put it.
    """
    folder = Path(data_dir)
    forms = [dataset.form(form)] if form is not None else list(dataset.forms)
    found = {one.name: [_matches(folder, pattern, one) for pattern in one.files] for one in forms}
    complete = [one for one in forms if all(found[one.name])]
    if len(complete) > 1:
        names = [one.name for one in complete]
        raise ValueError(f"{folder}: expected one raw form of {dataset.name}, found {names}; choose one with `form`")
    if not complete:
        raise _missing(dataset, folder, forms, found)
    paths = tuple(path for matches in found[complete[0].name] for path in matches)
    if complete[0].reading is None and len(paths) != len(complete[0].files):
        raise ValueError(f"{folder}: expected one log in GAMER's form, found {listed(path.name for path in paths)}")
    return RawFiles(dataset, complete[0], paths)


def read_raw_log(raw: RawFiles, on_bad_rows: str | None = None, selection: Selection | None = None) -> InteractionLog:
    """Read the raw files: the report's counts are those of the files, whatever is selected.

    Args:
        raw: the files.
        on_bad_rows: see `read_interaction_log`; by default as the form says, else `raise`.
        selection: see `read_interaction_log`. GAMER's JSON is read whole all the same.

    Raises:
        ValueError: a file is bad.
    """
    if raw.form.reading is None:
        return read_session_json(*raw.paths)
    return read_interaction_log(raw.paths, **_reading(raw, on_bad_rows), selection=selection)


def dataset_rules(dataset: PublicDataset, form: RawForm, config: str, **changes: Any) -> PreparationRules:
    """The papers' rules for a log in a raw form, with changes of the caller's.

    Raises:
        ValueError: an unknown config or rule.
    """
    if config not in CONFIGS:
        raise ValueError(f"`config`: expected one of {list(CONFIGS)}, found {config!r}")
    of_form = dict(form.rules)
    if form.reading is None and config == "session":
        of_form["sessions"] = "given"
    if "sessions" in changes and changes["sessions"] is None:
        changes.setdefault("min_sessions", None)
    return preparation_rules(dataset.presets[config], of_form | changes)


def build_dataset(
    name: str,
    data_dir: str | Path,
    output: str | Path | None = None,
    config: str = "sequential",
    form: str | None = None,
    files: Sequence[str | Path] | None = None,
    on_bad_rows: str | None = None,
    overwrite: bool = False,
    **rules: Any,
) -> tuple[SequenceTable, dict[str, Any]]:
    """Build a public log by the papers' rules; `mbgen prepare NAME --data-dir DATA_DIR` does the same.

    Args:
        name: `retail`, `ijcai`, `tmall`, `jdata` or `shortvideoad`.
        data_dir: folder with its raw files.
        output: prepared folder to write, see `mbgen_hf.prepare`; nothing is written by default.
        config: `sequential` (MBGen's filters) or `session` (GAMER's sessions).
        form: raw form, where `data_dir` holds more than one.
        files: the raw files of `form` where they have other names than the usual ones.
        on_bad_rows: see `read_interaction_log`.
        overwrite: replace the result of an earlier run in `output`.
        rules: fields of `PreparationRules` that differ from the preset, such as `sample_users=0.01`.

    Returns:
        The table, and the report of what became of every row.

    Raises:
        ValueError: raw files are missing or bad, or an argument is.
    """
    dataset = public_dataset(name)
    folder = None if output is None else check_output_folder(output, overwrite, PREPARED_FILES)
    if files is None:
        raw = find_raw_files(dataset, data_dir, form)
    elif form is None:
        raise ValueError("`form`: expected the raw form of `files`, found none")
    else:
        raw = RawFiles(dataset, dataset.form(form), tuple(Path(data_dir, file) for file in files))
    settled = dataset_rules(dataset, raw.form, config, **rules)
    options = {"dataset": name, "config": config, "form": raw.form.name}
    if raw.form.reading is not None:
        options |= _reading(raw, on_bad_rows)
    log = read_raw_log(raw, on_bad_rows, settled.selection)
    table, report = prepare_log(log, raw.paths, settled, options)
    if folder is not None:
        save_prepared(folder, table, report, settled)
    return table, report


def _reading(raw: RawFiles, on_bad_rows: str | None) -> dict[str, Any]:
    """Arguments of `read_interaction_log`."""
    levels = {name: raw.dataset.levels[name] for name in raw.form.reading["behaviors"].values()}
    bad_rows = {} if on_bad_rows is None else {"on_bad_rows": on_bad_rows}
    return {"levels": levels, "target": raw.dataset.target, **raw.form.reading, **bad_rows}


def _matches(folder: Path, pattern: str, form: RawForm) -> list[Path]:
    """Files of a pattern, each at most once: plain before compressed."""
    by_name: dict[str, Path] = {}
    for suffix in COMPRESSED if form.reading is not None else COMPRESSED[:1]:
        for path in sorted(folder.glob(pattern + suffix)):
            by_name.setdefault(path.name.removesuffix(suffix), path)
    return [by_name[name] for name in sorted(by_name)]


def _missing(
    dataset: PublicDataset, folder: Path, forms: list[RawForm], found: dict[str, list[list[Path]]]
) -> ValueError:
    """Which file is missing of the form of which most is there; of all forms where nothing is."""
    begun = max(forms, key=lambda form: sum(map(bool, found[form.name])))
    if any(found[begun.name]):
        missing = [name for name, paths in zip(begun.files, found[begun.name], strict=True) if not paths]
        return ValueError(
            f"{folder}: expected the raw files of {dataset.name} in the form {begun.name!r}, found no "
            f"{' and no '.join(missing)}; get it from {begun.source} and put it into this folder"
        )
    choices = " or ".join(f"{', '.join(form.files)} from {form.source}" for form in forms)
    return ValueError(
        f"{folder}: expected the raw files of {dataset.name}, found {_contents(folder)}; get {choices}; "
        "put the files, text plain or as .gz or .zst, into this folder"
    )


def _contents(folder: Path) -> str:
    """What there is instead of the raw files, for an error."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    entries = sorted(folder.iterdir())
    if not entries:
        return "none of them, the folder is empty"
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
    unpack = " (unpack the archive)" if any(name.lower().endswith(ARCHIVES) for name in names) else ""
    return f"none of them but {listed(names, 5)}{unpack}"


__all__ = ["RawFiles", "build_dataset", "dataset_rules", "find_raw_files", "read_raw_log"]
