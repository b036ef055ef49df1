"""Errors of the network between here and the Hub, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn what the network library raises where the Hub can not be reached into an `OSError` of one line."""
    try:
        yield
    except Exception as error:
        # The library has changed its network client before; what both clients share is the name.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise OSError(
            f"{repo_id}: expected a Hub that can be reached, found {type(error).__name__}: {error}"
        ) from error


__all__ = ["hub_errors"]
