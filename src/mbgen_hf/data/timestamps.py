"""Timestamps of a raw log, in whatever form it has them, to seconds since 1970 (UTC)."""

import re
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from mbgen_hf.data.input_error import shown


DEFAULT_YEAR = 2000  # a leap year, so that 29 February stays a date
MAX_SECONDS = 253_402_300_799  # 9999-12-31 23:59:59
FIXED_WIDTHS = {"Y": 4, "y": 2, "m": 2, "d": 2, "j": 3, "H": 2, "M": 2, "S": 2}
YEAR_DIRECTIVES = set("YyCGgDFxcsv+")
PROBE = datetime(2004, 11, 25, 13, 14, 15)


@dataclass(frozen=True)
class TimestampFormat:
    """How a raw log writes time.

    Args:
        format: `s` (epoch seconds), `ms` (epoch milliseconds) or a strptime format such as `%Y-%m-%d %H:%M:%S`.
        year: the year of a format without one; without it the year 2000 is assumed.
        timezone: IANA name of the zone of local times; UTC without it. Of the two readings of an hour that
            a clock change repeats, the earlier counts.

    Raises:
        ValueError: the format does not fix a day, the zone is unknown, or `year` or `timezone` does not apply.
    """

    format: str = "s"
    year: int | None = None
    timezone: str | None = None

    def __post_init__(self) -> None:
        if self.timezone is not None:
            self._check_timezone()
        if self.year is not None and (self.is_epoch or self._has_year):
            raise ValueError(
                f"`year`: expected only with a format without year, found {self.year} with {self.format!r}"
            )
        if self.year is not None and not 1970 <= self.year <= 9999:
            raise ValueError(f"`year`: expected a year from 1970 to 9999, found {self.year}")
        if not self.is_epoch:
            self._check_format()

    @property
    def is_epoch(self) -> bool:
        return self.format in ("s", "ms")

    @property
    def assumed_year(self) -> int | None:
        """The year that completes a format without one, `None` when the log itself says the year."""
        return None if self.is_epoch or self._has_year else (self.year or DEFAULT_YEAR)

    @property
    def expected(self) -> str:
        """What a value should look like, for error messages."""
        names = {"s": "epoch seconds (a non-negative integer)", "ms": "epoch milliseconds (a non-negative integer)"}
        return names.get(self.format, f"a time as {self.format!r}, 1970 or later")

    def seconds(self, value: pl.Expr, as_float: bool = False) -> pl.Expr:
        """Seconds of string values, null where a value has another form or is out of range.

        Args:
            value: string expression.
            as_float: also take integral floats such as `1511544070.0` as epoch times.
        """
        if self.is_epoch:
            integer = value.str.strip_suffix(".0") if as_float else value
            seconds = integer.cast(pl.Int64, strict=False)
            seconds = seconds // 1000 if self.format == "ms" else seconds  # floors, so negative stays negative
        else:
            seconds = self.from_datetime(self._parsed(value))
        return pl.when(seconds.is_between(0, MAX_SECONDS)).then(seconds)

    def from_datetime(self, value: pl.Expr, zoned: bool | None = None) -> pl.Expr:
        """Seconds of `Datetime` values; those without a zone are local times of `timezone`."""
        if zoned if zoned is not None else self._has_zone:
            return value.dt.epoch("s")
        if self.timezone is not None:
            value = value.dt.replace_time_zone(self.timezone, ambiguous="earliest", non_existent="null")
        return value.dt.epoch("s")

    def _parsed(self, value: pl.Expr) -> pl.Expr:
        if self._fixed_width:
            value = value.str.zfill(self._fixed_width)  # 511 is 0511
        pattern = self.format
        if self.assumed_year is not None:
            value, pattern = pl.concat_str(pl.lit(f"{self.assumed_year}-"), value), f"%Y-{pattern}"
        return value.str.to_datetime(pattern, time_unit="us", strict=False)

    @property
    def _directives(self) -> list[str]:
        return re.findall(r"%[-_0]?[:.]*[0-9]*([A-Za-z+%])", self.format)

    @property
    def _has_year(self) -> bool:
        return bool(YEAR_DIRECTIVES & set(self._directives))

    @property
    def _has_zone(self) -> bool:
        return bool({"z", "+", "s"} & set(self._directives))

    @property
    def _fixed_width(self) -> int:
        """Number of digits of a format made of fixed-width numbers only, else 0."""
        only_numbers = re.fullmatch(r"(?:%[YymdjHMS])+", self.format)
        return sum(FIXED_WIDTHS[name] for name in self._directives) if only_numbers else 0

    def _check_timezone(self) -> None:
        if self._has_zone and not self.is_epoch:
            raise ValueError(f"`timezone`: expected none with a format that names the zone, found {self.timezone!r}")
        try:
            pl.Series([PROBE]).dt.replace_time_zone(self.timezone)
        except pl.exceptions.PolarsError as error:
            expected = "an IANA time zone such as 'Asia/Shanghai'"
            raise ValueError(f"`timezone`: expected {expected}, found {shown(self.timezone)}") from error

    def _check_format(self) -> None:
        """Write a known day in the format and read it back, so that a format that loses the day is found here."""
        if "Z" in self._directives:
            raise ValueError(
                f"`timestamp_format`: expected %z or `timezone`: zone names are no offsets, found {shown(self.format)}"
            )
        try:
            probe = pl.Series("probe", [PROBE]).dt.replace_time_zone("UTC" if self._has_zone else None)
            parsed = self._parsed(pl.col("probe").dt.to_string(self.format)).dt.date()
            day = probe.to_frame().select(parsed).item()
        except (pl.exceptions.PolarsError, ValueError):
            day = None
        if day is None or (day.month, day.day) != (PROBE.month, PROBE.day):
            expected = "'s', 'ms' or a strptime format that fixes the day (with %H also %M)"
            raise ValueError(f"`timestamp_format`: expected {expected}, found {shown(self.format)}")


__all__ = ["DEFAULT_YEAR", "MAX_SECONDS", "TimestampFormat"]
