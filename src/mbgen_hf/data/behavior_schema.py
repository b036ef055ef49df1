"""The behavior schema: which behaviors a log holds, how deep each one is, and which one is the target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BehaviorSchema:
    """Names, levels and target of the behaviors of one log.

    Args:
        names: behavior names; a behavior's index in this tuple is the class label used everywhere else.
        levels: level of each behavior, 0 = weakest; levels may tie (GAMER section 3.3).
        target: name of the target behavior.

    Raises:
        ValueError: a name is empty, repeated or holds whitespace or one of `<>`, the counts of names and levels
            differ, a level is negative, or `target` is not among the names.
    """

    names: tuple[str, ...]
    levels: tuple[int, ...]
    target: str

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("`names`: expected at least one behavior, found none")
        for name in self.names:
            if not isinstance(name, str) or not name or any(c.isspace() or c in "<>" for c in name):
                raise ValueError(f"`names`: expected behavior names without whitespace, '<' or '>', found {name!r}")
        if "any" in self.names:
            raise ValueError("`names`: expected names other than 'any', which asks for every behavior, found 'any'")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"`names`: expected each behavior once, found {list(self.names)}")
        if len(self.levels) != len(self.names):
            raise ValueError(f"`levels`: expected one level for each of {list(self.names)}, found {list(self.levels)}")
        if any(not isinstance(level, int) or level < 0 for level in self.levels):
            raise ValueError(f"`levels`: expected non-negative integers, found {list(self.levels)}")
        if self.target not in self.names:
            raise ValueError(f"`target`: expected one of {list(self.names)}, found {self.target!r}")

    @classmethod
    def from_names(
        cls, names: Sequence[str], target: str | None = None, levels: Mapping[str, int] | None = None
    ) -> "BehaviorSchema":
        """Build a schema from names in order of depth: levels default to 0, 1, ... and the target to the last name."""
        names = tuple(names)
        if levels is None:
            return cls(names, tuple(range(len(names))), target or (names[-1] if names else ""))
        unknown = sorted(set(levels) - set(names))
        missing = [name for name in names if name not in levels]
        if unknown or missing:
            raise ValueError(
                f"`levels`: expected one level for each of {list(names)}, found unknown {unknown}, missing {missing}"
            )
        return cls(names, tuple(int(levels[name]) for name in names), target or names[-1])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def target_index(self) -> int:
        return self.names.index(self.target)

    def index(self, name: str) -> int:
        """Class label of a behavior name; raises `ValueError` for an unknown one."""
        if name not in self.names:
            raise ValueError(f"`behavior`: expected one of {list(self.names)}, found {name!r}")
        return self.names.index(name)

    def to_dict(self) -> dict[str, Any]:
        return {"names": list(self.names), "levels": list(self.levels), "target": self.target}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BehaviorSchema":
        return cls(tuple(values["names"]), tuple(values["levels"]), values["target"])


__all__ = ["BehaviorSchema"]
