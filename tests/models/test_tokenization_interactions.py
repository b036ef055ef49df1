import numpy as np
import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer, tiny_model, tokenizer_of
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


def by_hand(tokenizer, history, user=None) -> list[int]:
    space = tokenizer.token_space
    ids = [] if user is None else space.user_token_ids([user]).tolist()
    for behavior, item in history:
        codes = tokenizer.item_codes[tokenizer.item_ids.tolist().index(item)]
        ids += [space.behavior_id(behavior), *(int(c) + o for c, o in zip(codes, space.code_offsets, strict=True))]
    return [*ids, 2]


def test_histories_are_laid_out_token_by_token(tokenizer):
    encoded = tokenizer.encode_history(HISTORIES, user_id=["u", 17, "17"])
    rows = [by_hand(tokenizer, h, u) for h, u in zip(HISTORIES, ["u", 17, 17], strict=True)]
    for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True):
        assert ids[: len(row)].tolist() == row and (ids[len(row) :] == 0).all()
        assert mask.tolist() == [1] * len(row) + [0] * (len(ids) - len(row))


def test_left_padding_shifts_rows(tokenizer):
    encoded = tokenizer.encode_history(HISTORIES, padding_side="left")
    for ids, mask, history in zip(encoded["input_ids"], encoded["attention_mask"], HISTORIES, strict=True):
        row = by_hand(tokenizer, history)
        assert ids.tolist() == [0] * (len(ids) - len(row)) + row and int(mask.sum()) == len(row)


def test_one_history_a_dict_and_labels_mean_the_same(tokenizer):
    expected = tokenizer.encode_history(HISTORIES[:1], user_id=[3])["input_ids"]
    assert torch.equal(tokenizer.encode_history(HISTORIES[0], user_id=3)["input_ids"], expected)
    row = {"user_id": 3, "item_ids": [item for _, item in HISTORIES[0]], "behaviors": np.array([0, 1, 2, 0])}
    assert torch.equal(tokenizer.encode_history(row)["input_ids"], expected)


def test_long_histories_keep_the_latest_and_empty_ones_only_the_end(tokenizer):
    long = [("click", f"item-{i % 30:02d}") for i in range(60)]
    assert tokenizer.encode_history(long)["input_ids"][0].tolist() == by_hand(tokenizer, long[-50:])
    assert tokenizer.encode_history(long, max_history=2)["input_ids"][0].tolist() == by_hand(tokenizer, long[-2:])
    assert tokenizer.encode_history([])["input_ids"].tolist() == [[2]]
    assert tokenizer.encode_history([[], HISTORIES[1]])["input_ids"].tolist()[0] == [2, 0, 0, 0, 0]


def test_text_and_ids_agree(tokenizer):
    ids = tokenizer.encode_history(HISTORIES[1], user_id=1)["input_ids"][0].tolist()
    text = tokenizer.decode(ids)
    assert text.startswith("<user_") and text.endswith("<eos>") and "<buy> <a_" in text
    assert tokenizer(text)["input_ids"] == ids


def test_items_decode_to_raw_ids(tokenizer, model):
    space = tokenizer.token_space
    codes = model.item_codes.long() + torch.tensor(space.code_offsets)
    rows = torch.cat([torch.tensor([[1, 6]]).expand(30, -1), codes], dim=1)
    assert tokenizer.decode_items(rows) == tokenizer.item_ids.tolist()
    assert tokenizer.decode_interactions(rows[:1]) == [("buy", "item-00")]
    assert tokenizer.decode_items(torch.zeros(2, 5, dtype=torch.long)) == [None, None]


@pytest.mark.parametrize("ids", [list(range(100, 130)), [f"ключ {i}" for i in range(30)]])
def test_save_and_load_keeps_catalog_and_vocabulary(tmp_path, ids):
    tokenizer = tokenizer_of(tiny_model(), item_ids=ids)
    tokenizer.save_pretrained(tmp_path)
    loaded = InteractionTokenizer.from_pretrained(tmp_path)
    assert loaded.item_ids.tolist() == ids and np.array_equal(loaded.item_codes, tokenizer.item_codes)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.token_space == tokenizer.token_space
    history = [("buy", ids[3]), ("click", ids[0])]
    assert torch.equal(loaded.encode_history(history).input_ids, tokenizer.encode_history(history).input_ids)
    plain = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(plain).__mro__[0] is not None and plain("<buy> <a_1> <eos>")["input_ids"] == [6, 8, 2]
    assert {file.suffix for file in tmp_path.iterdir()} <= {".json", ".py", ".safetensors"}


def test_plain_loading_needs_only_the_vocabulary_file(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    plain = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert plain.get_vocab() == tokenizer.get_vocab()


def test_sessions_travel_with_the_history():
    tokenizer = tokenizer_of(tiny_model())
    history = {"item_ids": ["item-01", "item-02"], "behaviors": ["buy", "click"], "session_ids": [4, 6]}
    encoded = tokenizer.encode_history([history, []], with_sessions=True)
    assert encoded["session_ids"].tolist() == [[0] * 4 + [1] * 4 + [-1], [-1] * 9]
    with pytest.raises(ValueError, match="expected 1 `session_ids` for as many items"):
        tokenizer.encode_history({"item_ids": ["item-01"], "behaviors": ["buy"]}, with_sessions=True)


@pytest.mark.parametrize("item", ["9" * 30, 101.7, "piano", None])
def test_integer_catalogs_refuse_what_is_no_integer(item):
    with pytest.raises(ValueError, match="`item_ids`: expected integers"):
        tokenizer_of(tiny_model(), item_ids=list(range(100, 130))).item_indices([item])


def test_integer_catalogs_take_numbers_as_text():
    tokenizer = tokenizer_of(tiny_model(), item_ids=list(range(100, 130)))
    assert tokenizer.item_indices(["103", 101, np.int64(129)]).tolist() == [3, 1, 29]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode_history([("buy", "nothing")]), "expected items of the catalog .* found 'nothing'"),
        (lambda t: t.encode_history([("rent", "item-01")]), "`behaviors`: expected one of .* found 'rent'"),
        (lambda t: t.encode_history([("buy", "item-01"), "item-02"]), r"expected \(behavior, item id\) pairs"),
        (lambda t: t.encode_history({"item_ids": ["item-01"], "behaviors": []}), "expected 1 for as many items"),
        (lambda t: t.encode_history(HISTORIES, user_id=[1, 2]), "expected 3 ids for as many histories, found 2"),
        (lambda t: t.encode_history(HISTORIES, user_id=[1, None, 3]), "for every history or for none"),
        (lambda t: t.encode_history(HISTORIES, padding_side="both"), "`padding_side`: expected"),
        (lambda t: t.decode_items(torch.zeros(1, 3, dtype=torch.long)), "`sequences`: expected shape"),
        (lambda t: t.set_catalog(t.item_codes, ["x"] * 30), "expected every id once, found"),
        (lambda t: t.set_catalog(t.item_codes, ["x"]), "expected 30 ids for as many codes"),
        (lambda t: InteractionTokenizer().encode_history([]), "expected a catalog, found none"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer_of(tiny_model()))


def test_pairs_count_as_one_session():
    model = tiny_gamer(session_wise_attention=True)
    tokenizer = gamer_tokenizer(model)
    encoded = tokenizer.encode_history([("click", "item-03"), ("buy", "item-07")], with_sessions=True)
    assert encoded["session_ids"].tolist() == [[-1] + [0] * 8]
    assert model.generate(**encoded, behavior="buy", num_beams=2).shape[0] == 1
    with pytest.raises(ValueError, match="expected `item_ids` and `behaviors`, found none of"):
        tokenizer.encode_history({"item_ids": ["item-03"]})
    with pytest.raises(ValueError, match="`max_history`: expected 0 or more, found -1"):
        tokenizer.encode_history([("click", "item-03")], max_history=-1)
