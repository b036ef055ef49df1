import pytest
import torch
from golden_layouts import load_golden, our_config, to_our_ids, to_our_weights
from model_fixtures import HISTORIES, tiny_config, tiny_model, tokenizer_of
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersLayerFF

from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration


def golden_model(path, dtype):
    golden, tensors = load_golden(path)
    config = our_config(golden)
    model = MBGenForConditionalGeneration(config).to(dtype).eval()
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    missing, unexpected = model.load_state_dict(to_our_weights(weights, golden, config.vocab_size), strict=False)
    assert missing == ["item_codes"] and not unexpected
    return golden, tensors, model


@pytest.mark.parametrize("name", ["mbgen_a", "mbgen_b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_logits_and_encoder_states(golden_dir, name, dtype):
    golden, tensors, model = golden_model(golden_dir / f"{name}.safetensors", dtype)
    with torch.no_grad():
        output = model(
            input_ids=to_our_ids(tensors["input_ids"], golden),
            attention_mask=tensors["attention_mask"],
            labels=to_our_ids(tensors["labels"], golden),
        )
    visible = tensors["attention_mask"].bool()
    torch.testing.assert_close(
        output.encoder_last_hidden_state[visible].float(),
        tensors["encoder_last_hidden_state"][visible],
        atol=2e-5,
        rtol=1e-5,
    )
    # Golden ids 1.. (behaviors, codes, users) are ours 4.., EOS is the last one there and 2 here, PAD = BOS is 0.
    ours = torch.cat([output.logits[..., :1], output.logits[..., 4:], output.logits[..., 2:3]], dim=-1).float()
    torch.testing.assert_close(ours, tensors["logits"], atol=2e-5, rtol=1e-5)
    labels = tensors["labels"]
    loss = torch.nn.functional.cross_entropy(ours.view(-1, ours.shape[-1]), labels.view(-1))
    torch.testing.assert_close(loss, tensors["loss"][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def logits_of(model, tokenizer, histories, labels, **encoding):
    return model(**tokenizer.encode_history(histories, **encoding), labels=labels).logits


def labels_for(model, rows: int) -> torch.Tensor:
    space = model.config.token_space
    codes = model.item_codes[:rows].long() + torch.tensor(space.code_offsets)
    behaviors = torch.arange(rows)[:, None] % len(space.behaviors) + space.behavior_offset
    return torch.cat([behaviors, codes, torch.full((rows, 1), 2)], dim=1)


def test_left_padding_right_padding_and_single_rows_give_the_same_logits(model, tokenizer):
    labels = labels_for(model, 3)
    users = [1, 2, 3]
    right = logits_of(model, tokenizer, HISTORIES, labels, user_id=users)
    left = logits_of(model, tokenizer, HISTORIES, labels, user_id=users, padding_side="left")
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-5)
    for row in range(3):
        single = logits_of(model, tokenizer, HISTORIES[row], labels[row : row + 1], user_id=users[row])
        torch.testing.assert_close(single, right[row : row + 1], atol=1e-4, rtol=1e-5)


def test_an_attention_mask_is_derived_from_padding(model, tokenizer):
    labels = labels_for(model, 3)
    encoded = tokenizer.encode_history(HISTORIES)
    with torch.no_grad():
        derived = model(input_ids=encoded["input_ids"], labels=labels).logits
    torch.testing.assert_close(derived, logits_of(model, tokenizer, HISTORIES, labels), atol=0, rtol=0)


def test_step_by_step_with_a_cache_equals_the_whole(model, tokenizer):
    labels = labels_for(model, 3)
    whole = logits_of(model, tokenizer, HISTORIES, labels)
    decoder_ids = model._shift_right(labels)
    behaviors = model.config.token_space.behavior_indices(decoder_ids)
    encoded = tokenizer.encode_history(HISTORIES)
    cache, steps = None, []
    with torch.no_grad():
        encoder_outputs = model.encoder(**encoded)
        for step in range(decoder_ids.shape[1]):
            output = model(
                attention_mask=encoded["attention_mask"],
                encoder_outputs=encoder_outputs,
                decoder_input_ids=decoder_ids[:, step : step + 1],
                decoder_behavior_ids=behaviors[:, step : step + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-5)


def test_a_cached_step_without_behaviors_is_refused(model, tokenizer):
    encoded = tokenizer.encode_history(HISTORIES[:1])
    with torch.no_grad():
        encoder_outputs = model.encoder(**encoded)
        first = model(encoder_outputs=encoder_outputs, decoder_input_ids=torch.tensor([[1, 6]]), use_cache=True)
        with pytest.raises(ValueError, match="`decoder_behavior_ids`: expected behaviors of the new tokens"):
            model(
                encoder_outputs=encoder_outputs,
                decoder_input_ids=torch.tensor([[8]]),
                past_key_values=first.past_key_values,
            )


def test_later_decoder_tokens_do_not_change_earlier_logits_and_earlier_ones_do(model, tokenizer):
    labels = labels_for(model, 3)
    base = logits_of(model, tokenizer, HISTORIES, labels)
    space = model.config.token_space
    for position in range(labels.shape[1] - 1):
        changed = labels.clone()
        # Another id of the same slot.
        starts = (space.behavior_offset, *space.code_offsets)
        sizes = (len(space.behaviors), *space.code_sizes)
        changed[:, position] = starts[position] + (labels[:, position] - starts[position] + 1) % sizes[position]
        logits = logits_of(model, tokenizer, HISTORIES, changed)
        torch.testing.assert_close(logits[:, : position + 1], base[:, : position + 1], atol=1e-6, rtol=0)
        assert (logits[:, position + 1 :] - base[:, position + 1 :]).abs().amax() > 1e-2


def test_every_history_token_matters_and_padding_does_not(model, tokenizer):
    labels = labels_for(model, 1)
    encoded = tokenizer.encode_history(HISTORIES[:1], user_id=5)
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    hidden = torch.cat([mask, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    with torch.no_grad():
        base = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        garbage = padded.clone()
        garbage[:, -3:] = torch.tensor([4, 9, 12])
        masked = model(input_ids=garbage, attention_mask=hidden, labels=labels).logits
        torch.testing.assert_close(masked, base, atol=1e-4, rtol=1e-5)
        for position in range(ids.shape[1] - 1):
            changed = ids.clone()
            changed[0, position] = changed[0, position] + 1
            assert (model(input_ids=changed, attention_mask=mask, labels=labels).logits - base).abs().amax() > 1e-3


def test_injection_reaches_the_output_and_its_switch_works():
    model = tiny_model(injection_encoder_layers=[], injection_decoder_layers=[0])
    labels = labels_for(model, 3)
    tokenizer = tokenizer_of(model)
    paper = logits_of(model, tokenizer, HISTORIES, labels)
    model.decoder.config.inject_behavior_tokens = True
    official = logits_of(model, tokenizer, HISTORIES, labels)
    # The behavior token itself is the first to see a difference; BOS before it sees none.
    torch.testing.assert_close(official[:, 0], paper[:, 0], atol=0, rtol=0)
    assert (official[:, 1] - paper[:, 1]).abs().amax() > 1e-2


def test_routing_sends_each_slot_to_its_own_expert(model, tokenizer):
    labels = labels_for(model, 3)
    base = logits_of(model, tokenizer, HISTORIES, labels)
    weight = model.decoder.block[0].layer[-1].mlp.wo.weight
    for slot in range(model.config.token_space.num_slots):
        with torch.no_grad():
            kept = weight[slot].clone()
            weight[slot] = 0
            changed = (logits_of(model, tokenizer, HISTORIES, labels) - base).abs().amax(dim=(0, 2))
            weight[slot] = kept
        # Decoder rows are [BOS, b, c0, c1, c2]: slot s first shows at position s.
        assert (changed[:slot] < 1e-6).all()
        assert changed[slot] > 1e-3


def test_without_routing_and_injection_it_is_the_stock_network_bit_for_bit():
    ours = tiny_model(
        routed_encoder_layers=[],
        routed_decoder_layers=[],
        injection_encoder_layers=[],
        injection_decoder_layers=[],
        num_layers=3,
        num_decoder_layers=3,
    )
    shared = ("vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads dropout_rate").split()
    stock_config = SwitchTransformersConfig(
        **{name: getattr(ours.config, name) for name in shared},
        num_sparse_encoder_layers=0,
        num_sparse_decoder_layers=0,
        decoder_start_token_id=1,
        eos_token_id=2,
    )
    stock = SwitchTransformersForConditionalGeneration(stock_config).eval()
    weights = {name: tensor for name, tensor in ours.state_dict().items() if name != "item_codes"}
    # With no sparse layer asked for, the stock stacks still make their second layer sparse.
    for stack in (stock.encoder, stock.decoder):
        stack.block[1].layer[-1] = SwitchTransformersLayerFF(stock_config, is_sparse=False)
    stock.eval().load_state_dict(weights)
    labels = labels_for(ours, 3)
    encoded = tokenizer_of(ours).encode_history(HISTORIES)
    with torch.no_grad():
        theirs = stock(**encoded, labels=labels)
        ours.set_attn_implementation("eager")  # The only one that the stock network has.
        mine = ours(**encoded, labels=labels)
    assert torch.equal(mine.logits, theirs.logits) and torch.equal(mine.loss, theirs.loss)
    # What runs in training, and the other attention, compute the same in another order.
    training = ours.train()(**encoded, labels=labels).loss
    torch.testing.assert_close(training, theirs.loss, atol=1e-6, rtol=1e-6)
    ours.eval().set_attn_implementation("sdpa")
    torch.testing.assert_close(ours(**encoded, labels=labels).logits, theirs.logits, atol=1e-5, rtol=1e-5)


def test_weights_start_at_the_scale_of_the_stock_network():
    model = tiny_model(initializer_factor=1.0, d_model=128, d_kv=32, d_ff=256)
    attention = model.encoder.block[0].layer[0].SelfAttention
    expert, dense = model.decoder.block[0].layer[-1].mlp, model.encoder.block[0].layer[-1].mlp
    expected = {
        (128 * 32) ** -0.5: attention.q.weight,
        128**-0.5: attention.k.weight,
        1.0: model.shared.weight,
        128**-0.5 + 0.0: expert.wo.weight,
        256**-0.5: dense.wo.weight,
    }
    for std, weight in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert expert.wi.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert attention.relative_attention_bias.weight.std().item() == pytest.approx(128**-0.5, rel=0.35)


def test_checkpoint_keys_are_the_public_format():
    keys = set(tiny_model().state_dict())
    assert {
        "item_codes",
        "shared.weight",
        "encoder.block.1.layer.1.mlp.wi.weight",
        "encoder.block.0.layer.1.mlp.behavior_embedding.weight",
        "decoder.block.0.layer.2.mlp.wo.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
        "lm_head.weight",
    } <= keys
    assert len(keys) == 55


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_keeps_logits_buffers_and_settings(tmp_path, model, tokenizer, dtype):
    model.save_pretrained(tmp_path)
    loaded = MBGenForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(loaded.item_codes, model.item_codes) and loaded.item_codes.dtype == torch.int32
    assert loaded.config.behaviors == model.config.behaviors
    if dtype == torch.float32:
        labels = labels_for(model, 3)
        expected = logits_of(model, tokenizer, HISTORIES, labels)
        torch.testing.assert_close(logits_of(loaded, tokenizer, HISTORIES, labels), expected, atol=0, rtol=0)


def test_a_missing_weight_is_initialised_and_reported(tmp_path, model):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = "decoder.block.1.layer.2.mlp.wi.weight"
    del weights[gone], weights["item_codes"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = MBGenForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {gone, "item_codes"}
    assert loaded.decoder.block[1].layer[2].mlp.wi.weight.std().item() == pytest.approx(1.5 * 32**-0.5, rel=0.1)
    with pytest.raises(ValueError, match="expected a catalog to generate from"):
        loaded.generate(behavior="buy")


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    plain, checkpointed = tiny_model(), tiny_model()
    checkpointed.gradient_checkpointing_enable()
    labels = labels_for(plain, 3)
    encoded = tokenizer.encode_history(HISTORIES)
    for each in (plain, checkpointed):
        each.train()
        each(**encoded, labels=labels).loss.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_behavior": "rent"}, "`target_behavior`: expected one of"),
        ({"behavior_levels": [0, 1]}, "`behavior_levels`: expected 3 levels"),
        ({"routed_decoder_layers": [0, 2]}, "`routed_decoder_layers`: expected distinct layers from 0 to 1"),
        ({"injection_encoder_layers": [1, 1]}, "`injection_encoder_layers`: expected distinct layers"),
        ({"vocab_size": 10}, "`vocab_size`: expected"),
        ({"code_sizes": [3, 0]}, "`code_sizes`: expected positive sizes"),
        ({"d_ff": 50}, "`d_ff`: expected a multiple of 8 where layers are routed"),
        ({"behaviors": ["a b"]}, "`behaviors`: expected names without whitespace"),
        ({"behaviors": ["a_1", "buy"]}, "`behaviors`: expected names that differ from other tokens"),
    ],
)
def test_contradicting_configurations_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**changes)
