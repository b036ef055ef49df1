"""The lines of a delimited text file: one pass over the bytes finds every line a CSV reader would quietly repair.

polars fills short rows with nulls and cuts or rejects long ones, so the number of fields is settled here. A line is
a row: a quoted field may hold separators and doubled quotes but no line break.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mbgen_hf.data.input_error import bad_input, shown


BLOCK_BYTES = 1 << 22
SEPARATORS = (",", "\t", ";", "|")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NOT_SEPARATORS = set('"\r\n\0')


@dataclass(frozen=True)
class TextFile:
    """A checked text file.

    Args:
        path: the file as the caller named it.
        plain: the decompressed file.
        separator: the character between fields.
        header: the fields of the first line.
        first_line: line number of the first row: 2 below a header, else 1.
        num_rows: number of lines from `first_line` on.
        malformed: ascending row numbers of the lines without exactly one field for each column.
        quoted: whether any double quote occurs.
    """

    path: Path
    plain: Path
    separator: str
    header: list[str]
    first_line: int
    num_rows: int
    malformed: np.ndarray
    quoted: bool

    @classmethod
    def open(cls, path: Path, plain: Path, separator: str | None, has_header: bool) -> "TextFile":
        """Read through the file once.

        Raises:
            ValueError: NUL bytes, bytes that are not UTF-8, carriage returns as line ends, no rows, or an
                unreadable first line.
        """
        first = _first_line(path, plain)
        separator = _check_separator(separator) if separator is not None else _guess_separator(first)
        header = _split(path, first, separator)
        num_lines, malformed, quoted = _scan(path, plain, separator, len(header))
        first_line = 2 if has_header else 1
        num_rows = num_lines - first_line + 1
        if num_rows == 0:
            raise bad_input(path, "at least one row below the header", "only the header line", at="line 1")
        if quoted:
            malformed = _quoted_malformed(plain, separator, len(header))
        malformed = malformed - (first_line - 1)
        return cls(path, plain, separator, header, first_line, num_rows, malformed[malformed >= 0], quoted)

    @property
    def num_fields(self) -> int:
        return len(self.header)

    def rows(self, positions: Mapping[str, int]) -> pl.LazyFrame:
        """A string column for each role, one row for each line; arbitrary strings where a line is malformed."""
        if self.quoted and len(self.malformed):
            return self._rows_by_pattern(positions)
        names = [f"column_{i}" for i in range(self.num_fields)]
        lazy = pl.scan_csv(
            self.plain,
            has_header=False,
            skip_lines=self.first_line - 1,
            separator=self.separator,
            quote_char='"' if self.quoted else None,
            schema=dict.fromkeys(names, pl.String),
            empty_string_is_null=False,
            extra_columns="ignore",
            missing_columns="insert",
            glob=False,
        )
        return lazy.select(pl.col(names[position]).alias(role) for role, position in positions.items())

    def explain(self, row: int) -> tuple[str, str, str | None]:
        """Expected, found and remedy for a malformed line."""
        text = pl.scan_lines(self.plain, glob=False).slice(row + self.first_line - 1, 1).collect().item()
        expected = f"{self.num_fields} fields separated by {shown(self.separator)}"
        if not text.strip():
            return expected, "an empty line", None
        try:
            fields = next(csv.reader([text], delimiter=self.separator, strict=True)) if self.quoted else None
        except csv.Error:
            fields = []
        found = text.count(self.separator) + 1 if fields is None else len(fields)
        if fields is not None and found in (0, self.num_fields):
            return "every quoted field to end in its line", f"unbalanced quotes in {shown(text)}", None
        others = [sep for sep in SEPARATORS if sep != self.separator and text.count(sep) + 1 == self.num_fields]
        remedy = f"this line is separated by {shown(others[0])}" if others else None
        return expected, f"{found} in {shown(text)}", remedy

    def _rows_by_pattern(self, positions: Mapping[str, int]) -> pl.LazyFrame:
        """Split line by line, so that an open quote cannot swallow the lines below it."""
        order = sorted(positions, key=positions.__getitem__)
        pattern = _line_pattern(self.separator, self.num_fields, capture=set(positions.values()))
        lines = pl.scan_lines(self.plain, glob=False).slice(self.first_line - 1)
        groups = pl.col("line").str.strip_prefix("\ufeff").str.extract_groups(pattern)
        fields = lines.select(groups.alias("groups")).select(
            pl.col("groups").struct.field(str(i + 1)).alias(role) for i, role in enumerate(order)
        )
        inner = pl.all().str.strip_prefix('"').str.strip_suffix('"').str.replace_all('""', '"', literal=True)
        unquoted = pl.when(pl.all().str.starts_with('"')).then(inner).otherwise(pl.all())
        return fields.select(unquoted.fill_null("")).select(list(positions))


def _first_line(path: Path, plain: Path) -> str:
    with plain.open("rb") as file:
        line = file.readline(BLOCK_BYTES)
    if b"\0" in line:
        wide = line[:2] in (b"\xff\xfe", b"\xfe\xff")
        remedy = "it looks like UTF-16: convert it to UTF-8" if wide else None
        raise bad_input(path, "UTF-8 text", f"a NUL byte at byte {line.index(0)}", at="line 1", remedy=remedy)
    try:
        text = line.removeprefix(BYTE_ORDER_MARK).decode("utf-8").rstrip("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise _encoding_error(path, 1, line, error) from error
    if not text.strip():
        raise bad_input(path, "a header or a row", "an empty line", at="line 1")
    if "\r" in text:
        raise bad_input(path, "lines that end in line feeds", "carriage returns alone", at="line 1")
    return text


def _encoding_error(path: Path, line: int, block: bytes, error: UnicodeDecodeError) -> ValueError:
    found = f"byte 0x{block[error.start]:02x}"
    return bad_input(path, "UTF-8 text", found, at=f"line {line}", remedy="convert the file to UTF-8")


def _check_separator(separator: str) -> str:
    if len(separator) != 1 or not separator.isascii() or separator.isalnum() or separator in NOT_SEPARATORS:
        expected = "one ASCII character, no letter, digit, quote or line end"
        raise ValueError(f"`separator`: expected {expected}, found {shown(separator)}")
    return separator


def _guess_separator(line: str) -> str:
    return max(SEPARATORS, key=line.count)


def _split(path: Path, line: str, separator: str) -> list[str]:
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error as error:
        found = f"unbalanced quotes in {shown(line)}"
        raise bad_input(path, "every quoted field to end in its line", found, at="line 1") from error


def _blocks(plain: Path) -> Iterator[bytes]:
    """The file in blocks of whole lines, each ending in a line feed."""
    rest = b""
    with plain.open("rb") as file:
        while chunk := file.read(BLOCK_BYTES):
            end = chunk.rfind(b"\n") + 1
            if end:
                yield rest + chunk[:end]
                rest = chunk[end:]
            else:
                rest += chunk
    if rest:
        yield rest + b"\n"


def _scan(path: Path, plain: Path, separator: str, num_fields: int) -> tuple[int, np.ndarray, bool]:
    """Count the lines, find those with a wrong number of separators, and say whether any quote occurs."""
    delimiters = separator.encode() + b"\n"
    others = bytes(byte for byte in range(256) if byte not in delimiters)
    good_line = delimiters[:1] * (num_fields - 1) + b"\n"
    num_lines, malformed, quoted = 0, [], False
    for block in _blocks(plain):
        _check_block(path, block, num_lines)
        quoted = quoted or b'"' in block
        found = block.translate(None, others)
        lines = len(found) // num_fields
        if found != good_line * lines:
            ends = np.flatnonzero(np.frombuffer(found, dtype=np.uint8) == ord("\n"))
            lines = len(ends)
            malformed.append(np.flatnonzero(np.diff(ends, prepend=-1) != num_fields) + num_lines)
        num_lines += lines
    return num_lines, np.concatenate([np.empty(0, dtype=np.int64), *malformed]), quoted


def _check_block(path: Path, block: bytes, lines_before: int) -> None:
    if (nul := block.find(b"\0")) >= 0:
        line = lines_before + block.count(b"\n", 0, nul) + 1
        raise bad_input(path, "text", "a NUL byte", at=f"line {line}", remedy="the file is damaged or binary")
    if block.isascii():
        return
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = lines_before + block.count(b"\n", 0, error.start) + 1
        raise _encoding_error(path, line, block, error) from error


def _line_pattern(separator: str, num_fields: int, capture: set[int] | frozenset[int] = frozenset()) -> str:
    """A regular expression that a well-formed line matches, with a group for each position in `capture`."""
    sep = f"\\x{ord(separator):02x}"
    plain = f'(?:[^{sep}"]*|"(?:[^"]|"")*")'
    return "^" + sep.join(f"({plain})" if i in capture else plain for i in range(num_fields)) + "$"


def _quoted_malformed(plain: Path, separator: str, num_fields: int) -> np.ndarray:
    """Line numbers, from 0, that do not match where separators and quotes may stand."""
    line = pl.col("line").str.strip_prefix("\ufeff")
    wrong = (~line.str.contains(_line_pattern(separator, num_fields))).arg_true()
    found = pl.scan_lines(plain, glob=False).select(wrong).collect(engine="streaming")
    return found.to_series().to_numpy().astype(np.int64)


__all__ = ["TextFile"]
