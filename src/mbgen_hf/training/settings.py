"""Settings of a training run: a preset, and what the user changes in it."""

import copy
import json
from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Any


SECTIONS = ("item_ids", "model", "data", "training", "validation")


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def load_settings(preset: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a preset and apply changes.

    Args:
        preset: one of `preset_names()`.
        changes: `{"section.name": value}`, such as `{"model.d_model": 128, "training.num_train_epochs": 5}`.
            `item_ids.path` takes the place of the whole section, as does another `item_ids.method`.

    Returns:
        `{"architecture": name, section: {name: value}, ...}` with the sections `item_ids`, `model`, `data`, `training`
        and `validation`.

    Raises:
        ValueError: an unknown preset or section.
    """
    if preset not in preset_names():
        raise ValueError(f"`preset`: expected one of {preset_names()}, found {preset!r}")
    settings = json.loads((_folder() / f"{preset}.json").read_text(encoding="utf-8"))
    if changes and ("item_ids.path" in changes or changes.get("item_ids.method", "chunked") != "chunked"):
        # What the preset says about chunked IDs means nothing to others.
        settings["item_ids"] = {}
    for key, value in (changes or {}).items():
        section, dot, name = key.partition(".")
        if section not in SECTIONS or not dot or not name:
            raise ValueError(f"`changes`: expected SECTION.NAME with a section of {list(SECTIONS)}, found {key!r}")
        settings[section][name] = copy.deepcopy(value)
    if "training.num_train_epochs" in (changes or {}) and "training.max_steps" not in (changes or {}):
        # A number of steps would silently win over the epochs asked for.
        settings["training"].pop("max_steps", None)
    return settings


def parse_change(text: str) -> tuple[str, Any]:
    """`"model.d_model=128"` to `("model.d_model", 128)`; a value that is not JSON is taken as a string.

    Raises:
        ValueError: no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"`--set`: expected SECTION.NAME=VALUE, found {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def check_section(
    section: str, values: Mapping[str, Any], types: Mapping[str, tuple[type, ...]], optional: Collection[str] = ()
) -> None:
    """Check that a section has the settings that it should have, of the right plain types; raises `ValueError`."""
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"`{section}`: expected settings {sorted(types)}, found {name!r}")
        if not isinstance(value, types[name]) or (isinstance(value, bool) and bool not in types[name]):
            kinds = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types[name])
            raise ValueError(f"`{section}.{name}`: expected {kinds}, found {value!r}")
    if missing := sorted(set(types) - set(values) - set(optional)):
        raise ValueError(f"`{section}`: expected settings {sorted(types)}, found no {missing[0]!r}")


def _folder():
    return files("mbgen_hf.training") / "presets"


__all__ = ["SECTIONS", "check_section", "load_settings", "parse_change", "preset_names"]
