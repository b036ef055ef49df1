"""Released item IDs in the form of GAMER's `index.json`: an object of item -> list of code tokens."""

import json
import re
from pathlib import Path

import numpy as np

from mbgen_hf.item_ids.fitted_ids import ItemIds
from mbgen_hf.item_ids.unique_digit import cell_numbers, unique_digits


_TOKEN = re.compile(r"<?([a-z])_(\d+)>?")


def released_item_ids(index_file: str | Path, item_ids: np.ndarray, seed: int = 0) -> ItemIds:
    """Item IDs that others have fitted.

    Where items share all of their codes, every item gets one more digit, in seeded random order among those that
    share, so that each can be recommended by itself; `details` tells how many, and lists the largest group.

    Args:
        index_file: JSON such as `{"17": ["<a_3>", "<b_0>"], ...}`, the letter naming the level.
        item_ids: `(num_items,)` raw ids of the catalog; further items of the file are left out, and counted.
        seed: of the last digit.

    Raises:
        ValueError: a file of another form, or an item without codes.
    """
    codes_of = read_index(index_file)
    names = [str(item) for item in item_ids.tolist()]
    missing = [name for name in names if name not in codes_of]
    if missing:
        raise ValueError(
            f"{index_file}: expected codes for every item, found none for {len(missing)}, such as {missing[0]!r}"
        )
    codes = np.array([codes_of[name] for name in names], dtype=np.int32)
    sizes = [int(size) for size in codes.max(axis=0) + 1]
    details = {
        "index_file": Path(index_file).name,
        "items_left_out": len(codes_of) - len(names),
        "items_that_share_codes": 0,
        "last_digit_added": False,
    }
    cells = cell_numbers(codes)
    counts = np.bincount(cells)
    if counts.max() > 1:
        largest = np.flatnonzero(cells == counts.argmax())
        details |= {
            "items_that_share_codes": int(counts[counts > 1].sum()),
            "shared_codes": int((counts > 1).sum()),
            "largest_group": [item_ids[item].item() for item in largest[:10]],
            "largest_group_size": int(counts.max()),
            "last_digit_added": True,
        }
        codes = np.concatenate([codes, unique_digits(codes, seed)[:, None]], axis=1)
        sizes.append(int(counts.max()))
    return ItemIds(item_ids, codes, sizes, "released", seed, details)


def read_index(file: str | Path) -> dict[str, list[int]]:
    """The codes of each item of an index file.

    Raises:
        ValueError: no such file, no JSON, or entries of another form.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`index_file`: expected a file, found none at {file}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected JSON, found something else ({error})") from error
    if not isinstance(index, dict) or not index:
        raise ValueError(f"{file}: expected an object of items and their code tokens, found {type(index).__name__}")
    codes_of = {item: _codes(tokens, item, file) for item, tokens in index.items()}
    lengths = {len(codes) for codes in codes_of.values()}
    if len(lengths) > 1:
        raise ValueError(f"{file}: expected as many codes for every item, found {sorted(lengths)}")
    return codes_of


def _codes(tokens: object, item: str, file: str | Path) -> list[int]:
    codes = []
    for level, token in enumerate(tokens if isinstance(tokens, list) else []):
        match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is None or ord(match[1]) - 97 != level:
            raise ValueError(
                f"{file}: expected <{chr(97 + level)}_N> at level {level} of item {item}, found {token!r}"
            )
        codes.append(int(match[2]))
    if not codes:
        raise ValueError(f"{file}: expected a list of code tokens for item {item}, found {tokens!r}")
    return codes


__all__ = ["read_index", "released_item_ids"]
