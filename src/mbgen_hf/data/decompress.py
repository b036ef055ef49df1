"""What a file is by its first bytes, and plain bytes out of gzip and zstd."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mbgen_hf.data.input_error import bad_input


MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "parquet"}
UNREAD = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
CHUNK_BYTES = 1 << 22


def sniff_format(path: Path) -> str:
    """`gzip`, `zstd`, `parquet` or `text`, by content: names lie too often."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "text")


def check_regular_file(path: Path) -> None:
    """Raise `ValueError` unless `path` is a regular file that holds bytes and is no archive of another kind."""
    if path.is_dir():
        raise bad_input(path, "a file", "a directory", remedy="name the files in it one by one")
    if not path.exists():
        raise bad_input(path, "a file", "nothing there", remedy="check the path")
    if not path.is_file():
        raise bad_input(path, "a regular file", "a device or pipe", remedy="write it to a file first")
    if path.stat().st_size == 0:
        raise bad_input(path, "an interaction log", "an empty file (0 bytes)")
    with path.open("rb") as file:
        start = file.read(8)
    if archive := next((name for magic, name in UNREAD.items() if start.startswith(magic)), None):
        raise bad_input(
            path, "text or Parquet, maybe in gzip or zstd", f"a {archive} archive", remedy="unpack it first"
        )


def plain_file(path: Path, folder: Path, name: str) -> Path:
    """The file itself when it is not compressed, else a decompressed copy in `folder`.

    Args:
        path: an existing file.
        folder: existing folder for the copy; the caller removes it.
        name: file name of the copy.

    Raises:
        ValueError: the archive is truncated, damaged, empty, or holds another archive.
    """
    kind = sniff_format(path)
    if kind not in ("gzip", "zstd"):
        return path
    copy = folder / name
    with copy.open("wb") as target:
        for chunk in _decompressed(path, kind):
            target.write(chunk)
    if copy.stat().st_size == 0:
        raise bad_input(path, "an interaction log", f"an empty file inside {kind}")
    if sniff_format(copy) in ("gzip", "zstd"):
        raise bad_input(
            path, "one layer of compression", f"{sniff_format(copy)} inside {kind}", remedy="unpack it once"
        )
    return copy


def _decompressed(path: Path, kind: str) -> Iterator[bytes]:
    done = 0
    try:
        with gzip.open(path) if kind == "gzip" else pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                done += len(chunk)
                yield chunk
    except (EOFError, OSError, zlib.error) as error:
        cut = isinstance(error, EOFError) or "Truncated" in str(error)
        found = f"a {'truncated' if cut else 'corrupt'} archive after {done} decompressed bytes"
        raise bad_input(path, f"a whole {kind} archive", found, remedy="fetch or compress it again") from error


__all__ = ["check_regular_file", "plain_file", "sniff_format"]
