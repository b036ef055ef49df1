"""Item IDs as an object: codes of a catalog, how they came about, and how new items get theirs."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mbgen_hf.item_ids.balance_report import BalanceReport, balance_report
from mbgen_hf.item_ids.semantic_quantizer import SemanticQuantizer
from mbgen_hf.item_ids.unique_digit import FreeDigits
from mbgen_hf.models.catalog_file import CATALOG_FILE, read_catalog, write_catalog


IDS_FILE = "item_ids.json"
QUANTIZER_FILE = "quantizer.safetensors"
IDS_FILES = (IDS_FILE, CATALOG_FILE, QUANTIZER_FILE)
FORMAT = 1
METHODS = ("balanced", "rq-vae", "chunked", "single", "released")


@dataclass(frozen=True)
class ItemIds:
    """Codes of every item of a catalog.

    Args:
        item_ids: `(num_items,)` raw item ids, integers or strings.
        codes: `(num_items, m)` `int32` codes, different for every item.
        code_sizes: ids of each code level; the last may hold more than any cell needs, for items to come.
        method: one of `METHODS`.
        seed: seed of everything random.
        details: how the codes came about, as plain values: options, where features came from, what training reported.
        quantizer: what turns features into codes, for the semantic methods.
    """

    item_ids: np.ndarray
    codes: np.ndarray
    code_sizes: list[int]
    method: str
    seed: int
    details: dict[str, Any] = field(default_factory=dict)
    quantizer: SemanticQuantizer | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method`: expected one of {list(METHODS)}, found {self.method!r}")
        if self.codes.shape != (len(self.item_ids), len(self.code_sizes)) or len(self.codes) == 0:
            raise ValueError(
                f"`codes`: expected shape ({len(self.item_ids)}, {len(self.code_sizes)}) with at least one item, "
                f"found {self.codes.shape}"
            )
        if len(np.unique(self.item_ids)) != len(self.item_ids):
            raise ValueError("`item_ids`: expected every id once, found some more than once")
        if self.codes.min() < 0 or (self.codes >= np.array(self.code_sizes)).any():
            raise ValueError(f"`codes`: expected codes below {list(self.code_sizes)}, found others")
        if shared := self.report().collisions:
            raise ValueError(f"`codes`: expected different codes for every item, found {shared} items that share them")

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def fingerprint(self) -> str:
        """Hash of the catalog: the raw ids, in any order."""
        return catalog_fingerprint(self.item_ids)

    @property
    def codes_fingerprint(self) -> str:
        """Hash of the raw ids and their codes."""
        order = np.argsort(self.item_ids, kind="stable")
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.codes[order], dtype="<i4").tobytes())
        digest.update(json.dumps(list(self.code_sizes)).encode())
        return digest.hexdigest()

    def report(self) -> BalanceReport:
        """How evenly the items are spread."""
        return balance_report(self.codes, self.code_sizes)

    def describe(self) -> str:
        """A few lines for a person: the method, what is worth knowing about it, and the balance report."""
        lines = [f"{self.method} IDs, code sizes {' x '.join(map(str, self.code_sizes))}, seed {self.seed}"]
        if shared := self.details.get("items_that_share_codes"):
            lines.append(f"{shared} items shared all of their codes: a last digit was added that tells them apart")
        if left_out := self.details.get("items_left_out"):
            lines.append(f"{left_out} items of the index are not in the catalog and were left out")
        if appended := self.details.get("appended"):
            lines.append(
                f"{appended['items']} items appended, {appended['outside_their_cell']} outside their own cell"
            )
        return "\n".join([*lines, self.report().format_table()])

    def for_catalog(self, item_ids: np.ndarray) -> np.ndarray:
        """The codes in the order of a catalog.

        Args:
            item_ids: `(num_items,)` raw item ids, the same as here in any order.

        Raises:
            ValueError: another catalog.
        """
        item_ids = np.asarray(item_ids)
        if catalog_fingerprint(item_ids) != self.fingerprint:
            missing, extra = np.setdiff1d(item_ids, self.item_ids), np.setdiff1d(self.item_ids, item_ids)
            example = [f", such as {items[0].item()!r}" for items in (missing, extra) if len(items)][:1]
            raise ValueError(
                f"`item_ids`: expected codes for the catalog of the data (fingerprint "
                f"{catalog_fingerprint(item_ids)}), found those of another one ({self.fingerprint}): {len(missing)} "
                f"items have no codes, {len(extra)} with codes are not in the data{''.join(example)}; run "
                "`mbgen fit-ids` on it"
            )
        order = np.argsort(self.item_ids, kind="stable")
        return self.codes[order][np.argsort(np.argsort(item_ids, kind="stable"), kind="stable")]

    def append(self, item_ids: Sequence, features: np.ndarray | None = None) -> Self:
        """IDs of a larger catalog: new items behind the others, whose codes stay as they are.

        With a quantiser, a new item gets the cell its features belong to and the lowest free digit there; where that
        cell is full, the next best fitting cell with a free digit. Code sizes do not change, so a trained model can
        recommend new items as soon as `set_catalog` has told it and its tokenizer. Without a quantiser, items get
        combinations that are free, which tell a model nothing about them.

        Args:
            item_ids: `(num_new,)` raw ids.
            features: `(num_new, num_features)` of the same kind as the quantiser was fitted on.

        Raises:
            ValueError: an id that is there already, features that are missing or do not fit, or no free combination.
        """
        item_ids = np.asarray(item_ids)
        if len(item_ids) and (item_ids.dtype.kind == "U") != (self.item_ids.dtype.kind == "U"):
            known, new = self.item_ids[0].item(), item_ids[0].item()
            raise ValueError(f"`item_ids`: expected ids like {known!r}, found {new!r}")
        known = item_ids[np.isin(item_ids, self.item_ids)]
        if len(known):
            raise ValueError(f"`item_ids`: expected new items, found {known[0].item()!r}, which has codes already")
        if self.quantizer is not None and (features is None or len(features) != len(item_ids)):
            found = "none" if features is None else f"{len(features)} rows"
            raise ValueError(f"`features`: expected a row for each of {len(item_ids)} new items, found {found}")
        if self.quantizer is None and features is not None:
            raise ValueError(f"`features`: expected none for {self.method} IDs, which have no quantiser, found some")
        if self.quantizer is None:
            new, moved = self._free_codes(len(item_ids)), 0
        else:
            new, moved = self._nearest_codes(np.asarray(features))
        appended = self.details.get("appended", {"items": 0, "outside_their_cell": 0})
        appended = {
            "items": appended["items"] + len(new),
            "outside_their_cell": appended["outside_their_cell"] + moved,
        }
        return dataclasses.replace(
            self,
            item_ids=np.concatenate([self.item_ids, item_ids]) if len(item_ids) else self.item_ids,
            codes=np.concatenate([self.codes, new]),
            details={**self.details, "appended": appended},
        )

    def _nearest_codes(self, features: np.ndarray) -> tuple[np.ndarray, int]:
        """Codes of new items, and how many of them did not fit into the cell they belong to."""
        free, moved = FreeDigits(self.codes, self.code_sizes[-1]), 0
        codes = np.empty((len(features), len(self.code_sizes)), dtype=np.int32)
        for row, cell in enumerate(map(tuple, self.quantizer.codes(features).tolist())):
            digit = free.take(cell)
            if digit is None:
                moved += 1
                cell, digit = self._next_free(features[row], free)
            codes[row] = *cell, digit
        return codes, moved

    def _next_free(self, features: np.ndarray, free: FreeDigits) -> tuple[tuple[int, ...], int]:
        for cell in self.quantizer.cells_by_distance(features):
            if (digit := free.take(cell)) is not None:
                return cell, digit
        raise ValueError(
            f"`item_ids`: expected a free combination of {self.code_sizes} codes, found none left; fit IDs anew with "
            "a larger `spare_fraction`"
        )

    def _free_codes(self, count: int) -> np.ndarray:
        """The first combinations in numerical order that no item has."""
        space = int(np.prod([int(size) for size in self.code_sizes], dtype=object))
        if space - len(self) < count:
            raise ValueError(
                f"`item_ids`: expected at most {space - len(self)} new items, which is what codes of "
                f"{self.code_sizes} leave free, found {count}; fit IDs anew"
            )
        taken = np.ravel_multi_index(tuple(self.codes.T.astype(np.int64)), self.code_sizes) if space < 2**62 else None
        if taken is None:
            raise ValueError(f"`code_sizes`: expected fewer than 2**62 combinations, found {self.code_sizes}")
        numbers = np.setdiff1d(np.arange(min(space, len(self) + count)), taken)[:count]
        return np.stack(np.unravel_index(numbers, self.code_sizes), axis=1).astype(np.int32)

    def save(self, folder: str | Path) -> None:
        """Write `item_ids.json`, `catalog.safetensors` and, where there is one, `quantizer.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_catalog(folder / CATALOG_FILE, self.codes, self.item_ids)
        if self.quantizer is not None:
            save_file(self.quantizer.tensors(), folder / QUANTIZER_FILE)
        record = {
            "format": FORMAT,
            "method": self.method,
            "code_sizes": list(self.code_sizes),
            "num_items": len(self),
            "seed": self.seed,
            "catalog_fingerprint": self.fingerprint,
            "codes_fingerprint": self.codes_fingerprint,
            "details": self.details,
            "report": self.report().to_dict(),
        }
        (folder / IDS_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "ItemIds":
        """Read what `save` wrote.

        Raises:
            ValueError: a file is missing or damaged, or the files do not belong together.
        """
        folder = Path(folder)
        for name in (IDS_FILE, CATALOG_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"{folder}: expected a folder of item IDs holding {name}, found none; "
                                 "run `mbgen fit-ids`")  # fmt: skip
        try:
            record = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
            codes, item_ids = read_catalog(folder / CATALOG_FILE)
            has_quantizer = (folder / QUANTIZER_FILE).is_file()
            tensors = load_file(folder / QUANTIZER_FILE) if has_quantizer else None
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder}: expected whole files of item IDs, found a damaged one ({error})") from error
        if record.get("format") != FORMAT:
            raise ValueError(f"{folder}: expected item IDs of format {FORMAT}, found {record.get('format')!r}")
        quantizer = None if tensors is None else SemanticQuantizer.from_tensors(tensors)
        found = cls(
            item_ids, codes, record["code_sizes"], record["method"], record["seed"], record["details"], quantizer
        )
        if found.codes_fingerprint != record["codes_fingerprint"]:
            raise ValueError(
                f"{folder}: expected the codes that {IDS_FILE} tells of (fingerprint {record['codes_fingerprint']}), "
                f"found others ({found.codes_fingerprint})"
            )
        return found


def catalog_fingerprint(item_ids: np.ndarray) -> str:
    """Hash of a set of raw item ids, whatever their order; 17 and "17" differ."""
    item_ids = np.sort(np.asarray(item_ids))
    kind = "text" if item_ids.dtype.kind == "U" else "integers"
    text = "\n".join([kind, *map(str, item_ids.tolist())])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


__all__ = ["IDS_FILE", "IDS_FILES", "METHODS", "QUANTIZER_FILE", "ItemIds", "catalog_fingerprint"]
