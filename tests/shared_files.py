"""Files that are not ours to redistribute: a test that needs them skips without them, or fails where they must be."""

import os
from pathlib import Path

import pytest


REQUIRED = "MBGEN_REQUIRE_SHARED"


def shared_path(path: Path, what: str) -> Path:
    """The path, if it is there; skips the test if not, or fails it where `MBGEN_REQUIRE_SHARED` is set to 1."""
    if path.exists():
        return path
    message = f"{what} not found at {path}"
    if os.environ.get(REQUIRED, "0") not in ("", "0"):
        pytest.fail(f"{message}, and {REQUIRED} is set", pytrace=False)
    pytest.skip(message)
