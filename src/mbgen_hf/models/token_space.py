"""One id space for specials, behaviors, item codes and users, laid out once and shared by every model.

``PAD=0, BOS=1, EOS=2, MASK=3 | behaviors | code level 0 | ... | code level m-1 | user tokens``

Every code level has its own id range, so the role of a token (its *slot*) is a function of its id alone: no position
arithmetic, no dependence on the padding side.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch


PAD, BOS, EOS, MASK = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<mask>")

# Slots: 0 for special and user tokens, 1 for behaviors, 2 + j for code level j. They are also the expert numbers.
SPECIAL_SLOT, BEHAVIOR_SLOT, FIRST_CODE_SLOT = 0, 1, 2


@dataclass(frozen=True)
class TokenSpace:
    """The layout of token ids.

    Args:
        behaviors: behavior names in class-label order.
        code_sizes: number of ids of each code level, `m` entries.
        num_user_tokens: number of user tokens; 0 for none.

    Raises:
        ValueError: no behavior, no code level, a size below 1, or names whose tokens collide.
    """

    behaviors: tuple[str, ...]
    code_sizes: tuple[int, ...]
    num_user_tokens: int = 0
    code_offsets: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """First id of each code level."""

    def __post_init__(self) -> None:
        if not self.behaviors:
            raise ValueError("`behaviors`: expected at least one name, found none")
        if not self.code_sizes or min(self.code_sizes) < 1:
            raise ValueError(
                f"`code_sizes`: expected positive sizes, one per code level, found {list(self.code_sizes)}"
            )
        if len(self.code_sizes) > 26:
            raise ValueError(f"`code_sizes`: expected at most 26 code levels, found {len(self.code_sizes)}")
        if self.num_user_tokens < 0:
            raise ValueError(f"`num_user_tokens`: expected 0 or more, found {self.num_user_tokens}")
        for name in self.behaviors:
            if not name or any(c.isspace() or c in "<>" for c in name):
                raise ValueError(f"`behaviors`: expected names without whitespace, '<' or '>', found {name!r}")
        for number, name in enumerate(self.behaviors):
            if name in self.behaviors[:number] or f"<{name}>" in SPECIAL_TOKENS or self._names_a_code_or_user(name):
                raise ValueError(f"`behaviors`: expected names that differ from other tokens, found {name!r}")
        # Set here and not as a cached property, whose lock `torch.compile` can not trace.
        first, offsets = self.behavior_offset + len(self.behaviors), []
        for size in self.code_sizes:
            offsets.append(first)
            first += size
        object.__setattr__(self, "code_offsets", tuple(offsets))

    def _names_a_code_or_user(self, name: str) -> bool:
        prefix, _, number = name.partition("_")
        if not number.isdecimal() or number != str(int(number)):
            return False
        if prefix == "user":
            return int(number) < self.num_user_tokens
        level = ord(prefix) - 97 if len(prefix) == 1 else -1
        return 0 <= level < len(self.code_sizes) and int(number) < self.code_sizes[level]

    @property
    def num_code_levels(self) -> int:
        return len(self.code_sizes)

    @property
    def num_slots(self) -> int:
        """Number of slots, which is the number of experts of a routed layer: m + 2."""
        return len(self.code_sizes) + FIRST_CODE_SLOT

    @property
    def behavior_offset(self) -> int:
        return len(SPECIAL_TOKENS)

    @property
    def user_offset(self) -> int:
        return self.code_offsets[-1] + self.code_sizes[-1]

    @property
    def vocab_size(self) -> int:
        return self.user_offset + self.num_user_tokens

    @property
    def tokens(self) -> list[str]:
        """The text of every token, by id: `<pad> .. <purchase> .. <a_0> .. <b_0> .. <user_0> ..`."""
        codes = [f"<{chr(97 + level)}_{code}>" for level, size in enumerate(self.code_sizes) for code in range(size)]
        users = [f"<user_{user}>" for user in range(self.num_user_tokens)]
        return [*SPECIAL_TOKENS, *(f"<{name}>" for name in self.behaviors), *codes, *users]

    def behavior_id(self, name: str) -> int:
        """Token id of a behavior, given as `purchase` or `<purchase>`."""
        bare = name[1:-1] if name.startswith("<") and name.endswith(">") else name
        if bare not in self.behaviors:
            raise ValueError(f"`behavior`: expected one of {list(self.behaviors)}, found {name!r}")
        return self.behavior_offset + self.behaviors.index(bare)

    def slot_range(self, slot: int) -> tuple[int, int]:
        """First id and number of ids of the behaviors (`BEHAVIOR_SLOT`) or of a code level (`FIRST_CODE_SLOT + j`)."""
        if slot == BEHAVIOR_SLOT:
            return self.behavior_offset, len(self.behaviors)
        return self.code_offsets[slot - FIRST_CODE_SLOT], self.code_sizes[slot - FIRST_CODE_SLOT]

    def slots(self, ids: torch.Tensor) -> torch.Tensor:
        """Slot of every id, same shape as `ids`.

        Counts the range starts at or below each id: a look-up without a table, hence without a buffer that loading
        could leave unfilled, and without copying one to the device.
        """
        slots = torch.zeros_like(ids)
        for start in (self.behavior_offset, *self.code_offsets):
            slots = slots + (ids >= start)
        return torch.where(ids >= self.user_offset, SPECIAL_SLOT, slots)

    def behavior_indices(self, ids: torch.Tensor, include_behavior_tokens: bool = False) -> torch.Tensor:
        """Behavior of every token: 0 = none (padding row), `1 + class label` otherwise.

        An item token has the behavior of the nearest behavior token at or before it; special and user tokens have
        none. Behavior tokens have none as well (MBGen section 3.4) unless `include_behavior_tokens` (the released
        code, and GAMER).

        Args:
            ids (`torch.LongTensor` of shape `(batch_size, seq_len)`): whole rows, not a cached step.
        """
        slots = self.slots(ids)
        position = torch.arange(ids.shape[-1], device=ids.device)
        last = torch.where(slots == BEHAVIOR_SLOT, position, -1).cummax(dim=-1).values
        behavior = ids.gather(-1, last.clamp(min=0)) - self.behavior_offset + 1
        lowest_slot = BEHAVIOR_SLOT if include_behavior_tokens else FIRST_CODE_SLOT
        return torch.where((last >= 0) & (slots >= lowest_slot), behavior, 0)

    def item_token_ids(self, codes: np.ndarray) -> np.ndarray:
        """Token ids of item codes, shape `(..., m)` to `(..., m)`."""
        return codes + np.asarray(self.code_offsets)

    def user_token_ids(self, user_ids: Iterable) -> np.ndarray:
        """Token ids of raw user ids: `blake2b-64(utf-8 of str(user_id))`, read big-endian, modulo `num_user_tokens`.

        The hash is part of the checkpoint format. 17 and "17" are one user.
        """
        digests = (hashlib.blake2b(str(user).encode(), digest_size=8).digest() for user in user_ids)
        hashed = (int.from_bytes(digest, "big") % self.num_user_tokens for digest in digests)
        return self.user_offset + np.fromiter(hashed, dtype=np.int64)

    def resolve(self, tokens: Sequence[int | str]) -> list[int]:
        """Token ids of a prompt given as ids, token texts (`<bos>`, `<purchase>`, `<a_3>`) or behavior names.

        Raises:
            ValueError: an id outside the vocabulary or a name that is no token.
        """
        return [self._resolve_one(token) for token in tokens]

    def _resolve_one(self, token: int | str) -> int:
        if isinstance(token, str):
            if token in SPECIAL_TOKENS:
                return SPECIAL_TOKENS.index(token)
            if token.strip("<>") in self.behaviors:
                return self.behavior_id(token)
            level, _, code = token.strip("<>").partition("_")
            level = ord(level) - 97 if len(level) == 1 else -1
            if code.isdecimal() and 0 <= level < len(self.code_sizes) and int(code) < self.code_sizes[level]:
                return self.code_offsets[level] + int(code)
            raise ValueError(f"`prompt`: expected token ids, tokens or one of {list(self.behaviors)}, found {token!r}")
        if not 0 <= int(token) < self.vocab_size:
            raise ValueError(f"`prompt`: expected ids from 0 to {self.vocab_size - 1}, found {int(token)}")
        return int(token)


@lru_cache(maxsize=64)
def token_space(behaviors: tuple[str, ...], code_sizes: tuple[int, ...], num_user_tokens: int = 0) -> TokenSpace:
    """The one `TokenSpace` of these sizes: configurations are asked for it several times in every pass."""
    return TokenSpace(behaviors, code_sizes, num_user_tokens)


__all__ = [
    "BEHAVIOR_SLOT",
    "BOS",
    "EOS",
    "FIRST_CODE_SLOT",
    "MASK",
    "PAD",
    "SPECIAL_SLOT",
    "SPECIAL_TOKENS",
    "TokenSpace",
    "token_space",
]
