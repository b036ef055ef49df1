"""The tokenizer: interactions to token ids and back.

The text form is one word per token, `<user_17> <purchase> <a_12> <b_3> <c_0> <eos>`; `tokenizer.json` holds it as a
word-level vocabulary that plain `AutoTokenizer` loads. The class here adds the catalog, so that histories of raw item
ids go in and raw item ids come out.
"""

import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BatchEncoding, PreTrainedTokenizerFast

from .catalog_file import CATALOG_FILE, read_catalog, write_catalog
from .item_trie import ItemTrie
from .token_space import PAD, SPECIAL_TOKENS, TokenSpace


# What the base class derives from `tokenizer.json`; the vocabulary here follows from the token space instead.
_UNUSED_INIT_KWARGS = (
    "tokenizer_file",
    "vocab",
    "merges",
    "post_processor",
    "tokenizer_padding",
    "tokenizer_truncation",
)


class InteractionTokenizer(PreTrainedTokenizerFast):
    """Word-level tokenizer over a token space, with the catalog of items.

    A history becomes `[prefix?, user?, (b, c0..c_{m-1}) x n, suffix?]`: MBGen has suffix EOS, GAMER prefix BOS.

    Args:
        behaviors: behavior names in class-label order.
        code_sizes: number of ids of each code level.
        num_user_tokens: size of the hashed user vocabulary; 0 for none.
        target_behavior: the target behavior; the last one by default.
        max_history: number of interactions a history is cut to, keeping the latest.
        history_prefix, history_suffix: special tokens around a history, such as `"<eos>"`, or `None`.
        item_codes: `(num_items, m)` codes of the catalog.
        item_ids: `(num_items,)` raw item ids, integers or strings.
        catalog_file: a `catalog.safetensors` that holds both; what loading passes.

    Raises:
        ValueError: codes and ids of different lengths, repeated ids, or codes outside `code_sizes`.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "catalog_file": CATALOG_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        behaviors: Sequence[str] = ("click", "purchase"),
        code_sizes: Sequence[int] = (64, 64, 64),
        num_user_tokens: int = 0,
        target_behavior: str | None = None,
        max_history: int = 50,
        history_prefix: str | None = None,
        history_suffix: str | None = "<eos>",
        item_codes: np.ndarray | None = None,
        item_ids: Sequence | None = None,
        catalog_file: str | None = None,
        **kwargs,
    ):
        self.token_space = TokenSpace(tuple(behaviors), tuple(code_sizes), num_user_tokens)
        vocabulary = {token: index for index, token in enumerate(self.token_space.tokens)}
        backend = Tokenizer(WordLevel(vocabulary))
        backend.pre_tokenizer = WhitespaceSplit()
        for name in _UNUSED_INIT_KWARGS:
            kwargs.pop(name, None)
        special = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL_TOKENS, strict=True))
        super().__init__(
            tokenizer_object=backend,
            behaviors=list(behaviors),
            code_sizes=list(code_sizes),
            num_user_tokens=num_user_tokens,
            target_behavior=target_behavior or behaviors[-1],
            max_history=max_history,
            history_prefix=history_prefix,
            history_suffix=history_suffix,
            **{**kwargs, **special},
        )
        self.target_behavior = target_behavior or behaviors[-1]
        self.max_history = max_history
        self.history_prefix, self.history_suffix = history_prefix, history_suffix
        if catalog_file is not None:
            item_codes, item_ids = read_catalog(catalog_file)
        self.item_codes: np.ndarray | None = None
        self.item_ids: np.ndarray | None = None
        if item_codes is not None or item_ids is not None:
            self.set_catalog(item_codes, item_ids)

    def set_catalog(self, item_codes: np.ndarray, item_ids: Sequence) -> None:
        """Set the items: `(num_items, m)` codes and `(num_items,)` raw ids (integers or strings)."""
        item_codes, item_ids = np.asarray(item_codes, dtype=np.int32), np.asarray(item_ids)
        if item_ids.dtype.kind not in "iuU":
            raise ValueError(f"`item_ids`: expected integers or strings, found dtype {item_ids.dtype}")
        if len(item_codes) != len(item_ids):
            raise ValueError(f"`item_ids`: expected {len(item_codes)} ids for as many codes, found {len(item_ids)}")
        self._trie = ItemTrie(torch.from_numpy(item_codes), self.token_space.code_sizes)
        self._id_order = np.argsort(item_ids, kind="stable")
        self._sorted_ids = item_ids[self._id_order]
        repeated = self._sorted_ids[1:][self._sorted_ids[1:] == self._sorted_ids[:-1]]
        if len(repeated):
            raise ValueError(f"`item_ids`: expected every id once, found {repeated[0]!r} more than once")
        self.item_codes, self.item_ids = item_codes, item_ids

    def encode_history(
        self,
        history,
        user_id=None,
        max_history: int | None = None,
        padding_side: str = "right",
        return_tensors: str | None = "pt",
        with_sessions: bool = False,
    ) -> BatchEncoding:
        """Turn histories of raw item ids into model inputs.

        Args:
            history: one history or a list of them. A history is a list of `(behavior, item_id)` pairs, oldest first,
                or a dict with `item_ids`, `behaviors` and optionally `user_id` (a row of a sequence table with raw
                ids); behaviors are names or class labels. An empty list is a user without history.
            user_id: raw id of the user, or one per history; used where the model has user tokens.
            max_history: keep the latest so many interactions; `self.max_history` by default.
            padding_side: `"right"` or `"left"`.
            return_tensors: `"pt"`, `"np"` or `None`.
            with_sessions: add `session_ids`, which session-wise attention needs; a history that is a dict then holds
                `session_ids` beside its items, the pairs of any other count as one session.

        Returns:
            `BatchEncoding` with `input_ids` and `attention_mask` of shape `(batch_size, seq_len)`.

        Raises:
            ValueError: an item that is not in the catalog, an unknown behavior, or lists of different lengths.
        """
        histories, users = _as_batch(history, user_id)
        columns = [_columns(entry) for entry in histories]
        lengths = np.array([len(items) for items, _ in columns], dtype=np.int64)
        items = self.item_indices([item for items, _ in columns for item in items])
        behaviors = self.behavior_indices([behavior for _, behaviors in columns for behavior in behaviors])
        ends = np.cumsum(lengths)
        user_tokens = None
        if self.token_space.num_user_tokens and any(user is not None for user in users):
            if any(user is None for user in users):
                raise ValueError("`user_id`: expected an id for every history or for none, found both")
            user_tokens = self.token_space.user_token_ids(users)
        sessions = _sessions(histories, lengths) if with_sessions else None
        encoded = self.encode_interactions(
            items, behaviors, ends - lengths, ends, user_tokens, max_history, padding_side, sessions
        )
        return BatchEncoding(encoded, tensor_type=return_tensors)

    def encode_interactions(
        self,
        items: np.ndarray,
        behaviors: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        user_tokens: np.ndarray | None = None,
        max_history: int | None = None,
        padding_side: str = "right",
        sessions: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Turn slices of flat interaction arrays into padded token ids, without a loop over rows.

        Args:
            items: `(num_interactions,)` catalog indices.
            behaviors: `(num_interactions,)` class labels.
            starts, ends: `(batch_size,)` slice of each row's history.
            user_tokens: `(batch_size,)` token ids of the users, or `None` to leave the user token out.
            max_history: keep the latest so many interactions; `self.max_history` by default.
            padding_side: `"right"` or `"left"`.
            sessions: `(num_interactions,)` session numbers, for models with session-wise attention.

        Returns:
            `input_ids` and `attention_mask`, `int64` of shape `(batch_size, seq_len)`; with `sessions` also
            `session_ids`, counted one by one from 0 at the first interaction kept, -1 for anything but interactions.
        """
        if max_history is not None and max_history < 0:
            raise ValueError(f"`max_history`: expected 0 or more, found {max_history}")
        if padding_side not in ("right", "left"):
            raise ValueError(f"`padding_side`: expected 'right' or 'left', found {padding_side!r}")
        starts = np.maximum(starts, ends - (self.max_history if max_history is None else max_history))
        lengths = ends - starts
        width = self.token_space.num_code_levels + 1
        before = (self.history_prefix is not None) + (user_tokens is not None)
        sizes = before + lengths * width + (self.history_suffix is not None)
        ids = np.full((len(lengths), sizes.max(initial=0)), PAD, dtype=np.int64)
        left = ids.shape[1] - sizes if padding_side == "left" else np.zeros_like(sizes)
        rows = np.arange(len(lengths))
        if self.history_prefix is not None:
            ids[rows, left] = SPECIAL_TOKENS.index(self.history_prefix)
        if user_tokens is not None:
            ids[rows, left + before - 1] = user_tokens
        # Position of every kept interaction in the flat arrays, and its rank within its row.
        row = np.repeat(rows, lengths)
        rank = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = self.interaction_token_ids(items, behaviors, starts[row] + rank)
        column = (left[row] + before + rank * width)[:, None] + np.arange(width)
        ids[row[:, None], column] = tokens
        if self.history_suffix is not None:
            ids[rows, left + sizes - 1] = SPECIAL_TOKENS.index(self.history_suffix)
        encoded = {"input_ids": ids}
        if sessions is not None:
            encoded["session_ids"] = np.full_like(ids, -1)
            own = sessions[starts[row] + rank]
            # Counted one by one: a session of which nothing is kept leaves no gap in the positions.
            opens = np.zeros(len(own), dtype=np.int64)
            opens[1:] = (own[1:] != own[:-1]) & (row[1:] == row[:-1])
            number = np.cumsum(opens)
            number -= np.repeat(number[rank == 0], lengths[lengths > 0])
            encoded["session_ids"][row[:, None], column] = number[:, None]
        position = np.arange(ids.shape[1])
        mask = (position >= left[:, None]) & (position < (left + sizes)[:, None])
        return encoded | {"attention_mask": mask.astype(np.int64)}

    def interaction_token_ids(self, items: np.ndarray, behaviors: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Tokens `[b, c0..c_{m-1}]` of the interactions at `positions`, shape `(len(positions), m + 1)`."""
        self._require_catalog()
        tokens = np.empty((len(positions), self.token_space.num_code_levels + 1), dtype=np.int64)
        tokens[:, 0] = behaviors[positions].astype(np.int64) + self.token_space.behavior_offset
        tokens[:, 1:] = self.token_space.item_token_ids(self.item_codes[items[positions]])
        return tokens

    def decode_interactions(self, sequences) -> list[tuple[str, Any] | None]:
        """The interaction at the end of each generated row, as `(behavior, raw item id)`; `None` for a blank row.

        Args:
            sequences: `(num_rows, len)` ids as `generate` returns them; the last m are the codes of an item.
        """
        self._require_catalog()
        ids = torch.as_tensor(sequences).cpu()
        levels = self.token_space.num_code_levels
        if ids.ndim != 2 or ids.shape[1] <= levels:
            raise ValueError(f"`sequences`: expected shape (num_rows, {levels + 1} or more), found {tuple(ids.shape)}")
        codes = ids[:, -levels:] - torch.tensor(self.token_space.code_offsets)
        items = self._trie.items(codes).tolist()
        labels = (ids[:, -levels - 1] - self.token_space.behavior_offset).tolist()
        names = self.token_space.behaviors
        return [
            (names[label], self.item_ids[item].item()) if item >= 0 and 0 <= label < len(names) else None
            for item, label in zip(items, labels, strict=True)
        ]

    def decode_items(self, sequences) -> list:
        """The raw item id at the end of each generated row; `None` for a blank row."""
        return [pair and pair[1] for pair in self.decode_interactions(sequences)]

    def item_indices(self, item_ids: Sequence) -> np.ndarray:
        """Catalog indices of raw item ids, `(len(item_ids),)`; "17" finds 17 where the catalog holds integers.

        Raises:
            ValueError: an id that is not in the catalog.
        """
        self._require_catalog()
        if len(item_ids) == 0:
            return np.empty(0, dtype=np.int64)
        if self.item_ids.dtype.kind == "U":
            wanted = np.array([str(item) for item in item_ids])
        else:
            wanted = np.array([_as_integer(item) for item in item_ids], dtype=np.int64)
        place = np.searchsorted(self._sorted_ids, wanted).clip(max=len(self._sorted_ids) - 1)
        missing = np.flatnonzero(self._sorted_ids[place] != wanted)
        if len(missing):
            raise ValueError(
                f"`item_ids`: expected items of the catalog ({len(self.item_ids)} items, such as "
                f"{self.item_ids[0].item()!r}), found {item_ids[missing[0]]!r}"
            )
        return self._id_order[place]

    def item_sets(self, item_ids: Sequence) -> np.ndarray | list[np.ndarray]:
        """Catalog indices of raw item ids, for `candidates` and `exclude` of `generate`.

        Args:
            item_ids: raw ids for all rows, or a list of them for every row.

        Raises:
            ValueError: an id that is not in the catalog.
        """
        if any(isinstance(row, (list, tuple, set, np.ndarray)) for row in item_ids):
            return [self.item_indices(list(row)) for row in item_ids]
        return self.item_indices(list(item_ids))

    def behavior_indices(self, behaviors: Sequence[str | int]) -> np.ndarray:
        """Class labels of behaviors given as names or labels."""
        names = self.token_space.behaviors
        labels = {**{name: label for label, name in enumerate(names)}, **{label: label for label in range(len(names))}}
        unknown = [behavior for behavior in behaviors if _plain(behavior) not in labels]
        if unknown:
            raise ValueError(f"`behaviors`: expected one of {list(names)}, found {unknown[0]!r}")
        return np.array([labels[_plain(behavior)] for behavior in behaviors], dtype=np.int64)

    def _require_catalog(self) -> None:
        if self.item_codes is None:
            raise ValueError("`item_codes`: expected a catalog, found none; call `set_catalog` or load a checkpoint")

    def _save_pretrained(self, save_directory, file_names, **kwargs) -> tuple[str, ...]:
        saved = super()._save_pretrained(save_directory=save_directory, file_names=file_names, **kwargs)
        # With the name of the base class, plain `AutoTokenizer` loads `tokenizer.json` without remote code; with
        # trust, `auto_map` leads to this class.
        config_file = Path(save_directory) / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config_file.write_text(
            json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if self.item_codes is None:
            return saved
        catalog_file = Path(save_directory) / CATALOG_FILE
        write_catalog(catalog_file, self.item_codes, self.item_ids)
        return *saved, str(catalog_file)


def _as_integer(item) -> int:
    """An id of a catalog that holds integers."""
    try:
        number = int(item, 10) if isinstance(item, str) else operator.index(item)
    except (TypeError, ValueError):
        raise ValueError(f"`item_ids`: expected integers as in the catalog, found {item!r}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"`item_ids`: expected integers of 64 bits as in the catalog, found {item!r}")
    return number


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def as_histories(history) -> tuple[list, bool]:
    """One history or a list of them, as `encode_history` takes it, as a list, and whether it was one."""
    single = isinstance(history, dict) or len(history) == 0 or _is_pair(history[0])
    return [history] if single else list(history), single


def _as_batch(history, user_id) -> tuple[list, list]:
    """Lists of histories and of users, however many were given."""
    histories, single = as_histories(history)
    if single or user_id is None or isinstance(user_id, (str, int, np.generic)):
        users = [user_id] * len(histories)
    else:
        users = list(user_id)
    if len(users) != len(histories):
        raise ValueError(f"`user_id`: expected {len(histories)} ids for as many histories, found {len(users)}")
    own = [entry.get("user_id") if isinstance(entry, dict) else None for entry in histories]
    return histories, [user if user is not None else mine for user, mine in zip(users, own, strict=True)]


def _is_pair(entry) -> bool:
    return isinstance(entry, (tuple, list)) and len(entry) == 2 and not isinstance(entry[0], (tuple, list, dict))


def history_items(history) -> list:
    """Raw item ids of one history, as `encode_history` takes it."""
    return list(_columns(history)[0])


def _columns(history) -> tuple[Sequence, Sequence]:
    """Item ids and behaviors of one history."""
    if isinstance(history, dict):
        if missing := {"item_ids", "behaviors"} - set(history):
            raise ValueError(f"`history`: expected `item_ids` and `behaviors`, found none of {sorted(missing)}")
        items, behaviors = history["item_ids"], history["behaviors"]
        if len(items) != len(behaviors):
            raise ValueError(f"`behaviors`: expected {len(items)} for as many items, found {len(behaviors)}")
        return items, behaviors
    wrong = [entry for entry in history if not _is_pair(entry)]
    if wrong:
        raise ValueError(f"`history`: expected (behavior, item id) pairs, found {wrong[0]!r}")
    return [item for _, item in history], [behavior for behavior, _ in history]


def _sessions(histories: list, lengths: np.ndarray) -> np.ndarray:
    """The session numbers of all histories, one after the other."""
    sessions: list[int] = []
    for history, length in zip(histories, lengths, strict=True):
        # Pairs know no sessions: all of them count as one.
        own = history.get("session_ids") if isinstance(history, dict) else [0] * int(length)
        if own is None or len(own) != length:
            raise ValueError(f"`history`: expected {length} `session_ids` for as many items, found {own!r}")
        sessions.extend(own)
    return np.array(sessions, dtype=np.int64)


InteractionTokenizer.register_for_auto_class()

__all__ = ["InteractionTokenizer", "as_histories", "history_items"]
