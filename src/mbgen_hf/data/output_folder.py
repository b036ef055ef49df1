"""Write a folder whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from mbgen_hf.data.input_error import listed


def check_output_folder(folder: str | Path, overwrite: bool, known_files: Collection[str]) -> Path:
    """Resolve an output folder and make sure that writing it destroys nothing of value.

    Args:
        folder: where the result goes.
        overwrite: whether a folder that holds an earlier result may be replaced.
        known_files: names an earlier result may hold; a folder with anything else is never replaced.

    Raises:
        ValueError: it is a file, or not empty without `overwrite`, or holds something else.
    """
    if not str(folder):
        raise ValueError("`output`: expected a folder, found an empty name")
    path = Path(folder).resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"`output`: expected a folder, found the file {folder}")
    inside = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
    if inside and not overwrite:
        raise ValueError(
            f"`output`: expected a new or empty folder, found {listed(inside)} in {folder}; use `overwrite`"
        )
    if foreign := [name for name in inside if name not in known_files]:
        expected = "expected to replace an earlier result only"
        raise ValueError(f"`output`: {expected}, found also {listed(foreign)} in {folder}; use another folder")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary sibling folder to fill, which takes the place of `path` when the block ends well.

    Whatever stood at `path` stays there until the new folder is complete; on any error the sibling is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    new, old = path.with_name(f".{path.name}.{unique}.new"), path.with_name(f".{path.name}.{unique}.old")
    new.mkdir()
    try:
        yield new
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


__all__ = ["check_output_folder", "written_whole"]
