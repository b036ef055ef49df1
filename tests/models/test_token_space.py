import hashlib

import numpy as np
import pytest
import torch

from mbgen_hf.models.token_space import TokenSpace


SPACE = TokenSpace(("view", "buy"), (3, 2), 4)


def test_layout_follows_the_contract():
    assert (
        SPACE.tokens
        == (
            "<pad> <bos> <eos> <mask> <view> <buy> <a_0> <a_1> <a_2> <b_0> <b_1> <user_0> <user_1> <user_2> <user_3>"
        ).split()
    )
    assert (SPACE.vocab_size, SPACE.behavior_offset, SPACE.code_offsets, SPACE.user_offset) == (15, 4, (6, 9), 11)
    assert SPACE.num_slots == 4


def test_slots_of_every_id():
    expected = [0] * 4 + [1] * 2 + [2] * 3 + [3] * 2 + [0] * 4
    assert SPACE.slots(torch.arange(15)).tolist() == expected


def test_behaviors_carry_forward_to_item_tokens_only():
    #                    user view a_1 b_0 buy a_2 b_1 eos pad
    ids = torch.tensor([[12, 4, 7, 9, 5, 8, 10, 2, 0]])
    assert SPACE.behavior_indices(ids).tolist() == [[0, 0, 1, 1, 0, 2, 2, 0, 0]]
    assert SPACE.behavior_indices(ids, include_behavior_tokens=True).tolist() == [[0, 1, 1, 1, 2, 2, 2, 0, 0]]
    left = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], dim=1)
    assert SPACE.behavior_indices(left)[:, 2:].tolist() == SPACE.behavior_indices(ids).tolist()


def test_an_item_token_without_a_behavior_before_it_has_none():
    assert SPACE.behavior_indices(torch.tensor([[7, 9, 4, 7]])).tolist() == [[0, 0, 0, 1]]


def test_user_tokens_hash_the_text_of_the_id():
    digest = hashlib.blake2b(b"17", digest_size=8).digest()
    expected = 11 + int.from_bytes(digest, "big") % 4
    assert SPACE.user_token_ids([17, "17", np.int64(17)]).tolist() == [expected] * 3
    # The hash is a checkpoint contract: these values may never change.
    wide = TokenSpace(("buy",), (2,), 2000)
    assert (wide.user_token_ids(["17", "alice", -3]) - wide.user_offset).tolist() == [996, 729, 601]


@pytest.mark.parametrize("token", [1, "<bos>"])
def test_prompts_resolve_from_ids_tokens_and_names(token):
    assert SPACE.resolve([token, "buy"]) == [1, 5]
    assert SPACE.resolve([token, "<buy>", "<a_2>", 9]) == [1, 5, 8, 9]


@pytest.mark.parametrize("token", ["rent", "<a_3>", "<c_0>", "a", "", 15, -1])
def test_unknown_prompt_tokens_are_refused(token):
    with pytest.raises(ValueError, match="`prompt`: expected"):
        SPACE.resolve([token])
