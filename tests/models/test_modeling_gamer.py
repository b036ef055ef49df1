import pytest
import torch
from golden_layouts import load_golden, our_gamer_config, to_our_gamer_ids, to_our_gamer_weights
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer, tiny_gamer_config
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM, StaticCache

from mbgen_hf.models.modeling_gamer import GamerForCausalLM


@pytest.fixture(scope="module")
def gamer():
    return tiny_gamer()


@pytest.fixture(scope="module")
def gamer_tok(gamer):
    return gamer_tokenizer(gamer)


def random_rows(model, rows: int = 3, interactions: int = 6, seed: int = 0) -> torch.Tensor:
    """`[BOS, (b, c0..c_{m-1}) x n]` with items of the catalog and random behaviors."""
    generator = torch.Generator().manual_seed(seed)
    space = model.config.token_space
    items = torch.randint(0, model.config.num_items, (rows, interactions), generator=generator)
    behaviors = torch.randint(0, len(space.behaviors), (rows, interactions, 1), generator=generator)
    codes = model.item_codes.long()[items] + torch.tensor(space.code_offsets)
    tokens = torch.cat([behaviors + space.behavior_offset, codes], dim=-1).view(rows, -1)
    return torch.cat([torch.ones(rows, 1, dtype=torch.long), tokens], dim=1)


@pytest.mark.parametrize("name", ["gamer_a", "gamer_b", "gamer_c"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_logits(golden_dir, name, attention, dtype):
    golden, tensors = load_golden(golden_dir / f"{name}.safetensors")
    config = our_gamer_config(golden)
    config._attn_implementation = attention
    model = GamerForCausalLM(config).to(dtype).eval()
    weights = {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}
    missing, unexpected = model.load_state_dict(to_our_gamer_weights(weights, golden), strict=False)
    assert missing == ["item_codes"] and not unexpected
    ids = to_our_gamer_ids(tensors["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=tensors["attention_mask"]).logits.float()
    logits = torch.cat([logits[..., :3], logits[..., 4:]], dim=-1)
    visible = tensors["attention_mask"].bool()
    torch.testing.assert_close(logits[visible], tensors["logits"][visible], atol=2e-5, rtol=1e-5)
    labels = tensors["input_ids"].masked_fill(~visible, -100)[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, tensors["loss"][0], atol=1e-5, rtol=1e-5)


def test_eager_and_sdpa_agree_forward_and_backward_with_padding_on_either_side():
    ids = random_rows(tiny_gamer())
    for padding in ((0, 4), (3, 0)):
        padded = torch.nn.functional.pad(ids, padding)
        labels = padded.masked_fill(padded == 0, -100)
        found = []
        for attention in ("eager", "sdpa"):
            model = tiny_gamer(attention)
            output = model(input_ids=padded, labels=labels)
            output.loss.backward()
            gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
            assert gradients.isfinite().all()
            found.append((output.logits[padded != 0].detach(), gradients))
        torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_flex_attention_agrees_with_eager_and_gives_zero_where_nothing_is_seen():
    """One shape, padded on both sides: each new shape is another kernel to compile."""
    ids = torch.nn.functional.pad(random_rows(tiny_gamer()), (4, 4))
    eager, flex = tiny_gamer("eager"), tiny_gamer("flex_attention")
    crossed = []
    for model in (eager, flex):
        for layer in model.model.layers:
            if layer.cross_attn is not None:
                layer.cross_attn.register_forward_hook(lambda m, i, o: crossed.append(o))
    with torch.no_grad():
        expected, found = (model(input_ids=ids).logits for model in (eager, flex))
    torch.testing.assert_close(found[ids != 0], expected[ids != 0], atol=1e-5, rtol=1e-5)
    assert len(crossed) == 4
    for one, two in zip(crossed[:2], crossed[2:], strict=True):
        assert torch.equal(one.abs().amax(-1) == 0, two.abs().amax(-1) == 0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_no_token_changes_an_earlier_logit_and_each_changes_later_ones(attention, training):
    """With gradients other code computes than without."""
    gamer = tiny_gamer(attention)
    # A token among others, so that rows are padded and the changed one is not alone.
    ids = random_rows(gamer, rows=2, interactions=5)
    ids[1, -8:] = 0
    space = gamer.config.token_space
    starts = (space.behavior_offset, *space.code_offsets)
    sizes = (len(space.behaviors), *space.code_sizes)
    with torch.set_grad_enabled(training):
        base = gamer(input_ids=ids).logits
        for t in range(1, ids.shape[1]):
            slot = int(space.slots(ids)[0, t]) - 1
            changed = ids.clone()
            changed[0, t] = starts[slot] + (ids[0, t] - starts[slot] + 1) % sizes[slot]
            logits = gamer(input_ids=changed).logits
            assert torch.equal(logits[:, :t], base[:, :t]), t
            assert t + 1 == ids.shape[1] or (logits[0, t + 1 :] - base[0, t + 1 :]).abs().amax() > 1e-3, t
            assert torch.equal(logits[1], base[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_token_with_nothing_to_see_gets_exactly_zero(attention):
    model = tiny_gamer(attention)
    seen = {}
    for layer in model.model.layers:
        if layer.cross_attn is not None:
            layer.cross_attn.register_forward_hook(lambda m, i, o: seen.setdefault(m.layer_idx, o))
    ids = torch.nn.functional.pad(random_rows(model, rows=4, interactions=8), (2, 3))
    model(input_ids=ids)
    space, levels = model.config.token_space, torch.tensor([9, *model.config.behavior_levels])
    rows = space.behavior_indices(ids, include_behavior_tokens=True)
    assert sorted(seen) == [4, 5]
    for output in seen.values():
        for row, level in zip(range(len(ids)), levels[rows], strict=True):
            for t in range(ids.shape[1]):
                sees = rows[row, t] > 0 and bool((level[:t] < level[t]).any())
                assert bool((output[row, t] != 0).any()) == sees


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_token_with_nothing_to_see_sends_no_gradient(attention):
    model = tiny_gamer(attention)
    cross = model.model.layers[model.config.cross_level_layers[0]].cross_attn
    kept = {}
    cross.register_forward_pre_hook(lambda m, args: kept.update(given=args[0]))
    cross.register_forward_hook(lambda m, args, output: kept.update(output=output))
    # Views and carts of one level, then a purchase: only its tokens see anything.
    ids = torch.nn.functional.pad(random_rows(model, rows=1, interactions=3), (2, 3))
    ids[0, 3::4][:3] = model.config.token_space.behavior_offset + torch.tensor([1, 1, 3])
    model(input_ids=ids)
    seen = kept["output"][0].abs().amax(-1) > 0
    assert seen.nonzero()[:, 0].tolist() == [11, 12, 13, 14]
    blind = torch.randn_like(kept["output"]) * ~seen[None, :, None]
    (nothing,) = torch.autograd.grad(kept["output"], kept["given"], blind, retain_graph=True)
    assert nothing.abs().max() == 0
    weights = [cross.q_proj.weight, cross.k_proj.weight, cross.v_proj.weight, cross.gating.weight]
    for gradient in torch.autograd.grad(kept["output"], weights, blind, retain_graph=True):
        assert gradient.abs().max() == 0
    (something,) = torch.autograd.grad(kept["output"], kept["given"], torch.ones_like(kept["output"]))
    assert something.abs().max() > 0


def test_ties_in_level_see_nothing_of_each_other():
    tied, apart = tiny_gamer(behavior_levels=[0, 0, 0, 0]), tiny_gamer(behavior_levels=[0, 1, 2, 3])
    ids = random_rows(tied)
    without = tiny_gamer(cross_level_layers=[])
    without.load_state_dict(tied.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(tied(input_ids=ids).logits, without(input_ids=ids).logits, atol=1e-6, rtol=0)
        assert (apart(input_ids=ids).logits - without(input_ids=ids).logits).abs().amax() > 1e-2


def test_padding_side_and_batch_make_no_difference(gamer):
    rows = [random_rows(gamer, 1, n, seed=n) for n in (2, 5, 7)]
    width = max(row.shape[1] for row in rows)
    right = torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows])
    left = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    positions = (left != 0).cumsum(1).sub(1).clamp(min=0)
    with torch.no_grad():
        found = gamer(input_ids=right).logits, gamer(input_ids=left, position_ids=positions).logits
        for n, row in enumerate(rows):
            alone = gamer(input_ids=row).logits[0]
            torch.testing.assert_close(found[0][n, : len(alone)], alone, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found[1][n, width - len(alone) :], alone, atol=1e-5, rtol=1e-4)


def test_step_by_step_with_a_cache_equals_the_whole(gamer):
    ids = random_rows(gamer)
    with torch.no_grad():
        whole = gamer(input_ids=ids).logits
        cache, steps = None, []
        for step in range(ids.shape[1]):
            seen = ids[:, : step + 1]
            output = gamer(
                input_ids=ids[:, step : step + 1], all_input_ids=seen, past_key_values=cache, use_cache=True
            )
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="`all_input_ids`: expected the ids behind a filled cache"):
        gamer(input_ids=ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("session_wise", [False, True])
def test_packed_rows_give_the_logits_and_loss_of_single_ones(session_wise):
    model = tiny_gamer(session_wise_attention=session_wise)
    rows = [random_rows(model, 1, n, seed=n) for n in (3, 1, 4)]
    packed = torch.cat(rows, dim=1)
    sequence_ids = torch.cat([torch.full_like(row, n) for n, row in enumerate(rows)], dim=1)
    sessions = [torch.arange(-1, row.shape[1] - 1)[None] // 8 for row in rows]
    options = {"session_ids": torch.cat(sessions, dim=1)} if session_wise else {}
    with torch.no_grad():
        output = model(input_ids=packed, sequence_ids=sequence_ids, labels=packed, **options)
        alone = []
        for row, session in zip(rows, sessions, strict=True):
            own = {"session_ids": session} if session_wise else {}
            alone.append((model(input_ids=row, labels=row, **own), row.shape[1] - 1))
    torch.testing.assert_close(output.logits, torch.cat([o.logits for o, _ in alone], dim=1), atol=1e-5, rtol=1e-4)
    mean = sum(o.loss * n for o, n in alone) / sum(n for _, n in alone)
    torch.testing.assert_close(output.loss, mean, atol=1e-5, rtol=1e-5)


def test_with_every_mechanism_off_it_is_stock_qwen3_bit_for_bit():
    ours = tiny_gamer("eager", cross_level_layers=[], routed_layers=[], injection_layers=[])
    shared = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "rope_parameters tie_word_embeddings pad_token_id max_position_embeddings"
    ).split()
    stock = Qwen3ForCausalLM(Qwen3Config(**{name: getattr(ours.config, name) for name in shared})).eval()
    stock.load_state_dict(
        {
            name.replace("post_cross_attention_layernorm", "post_attention_layernorm"): tensor
            for name, tensor in ours.state_dict().items()
            if name != "item_codes"
        }
    )
    stock.set_attn_implementation("eager")
    ids = random_rows(ours)
    with torch.no_grad():
        mine, theirs = ours(input_ids=ids, labels=ids), stock(input_ids=ids, labels=ids)
    assert torch.equal(mine.logits, theirs.logits) and torch.equal(mine.loss, theirs.loss)
    # What runs in training, and the other attention, compute the same in another order.
    training = ours.train()(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(training, theirs.loss, atol=1e-6, rtol=1e-6)
    ours.eval().set_attn_implementation("sdpa")
    torch.testing.assert_close(ours(input_ids=ids).logits, theirs.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("crossed", [[], [0, 1]])
def test_session_wise_attention_sees_earlier_sessions_and_its_own_interaction_only(attention, crossed):
    model = tiny_gamer(attention, session_wise_attention=True, cross_level_layers=crossed, num_hidden_layers=2,
        routed_layers=[0], injection_layers=[0])  # fmt: skip
    ids = random_rows(model, rows=1, interactions=6)
    # A weaker behavior and a stronger one in each session: what cross-level attention would look at.
    ids[0, 1::4] = model.config.token_space.behavior_offset + torch.tensor([0, 3]).repeat(3)
    # Two interactions in each of three sessions, four tokens each, after BOS.
    sessions = torch.tensor([[-1] + [0] * 8 + [1] * 8 + [2] * 8])
    space = model.config.token_space
    ranges = [(space.behavior_offset, 4), *zip(space.code_offsets, space.code_sizes, strict=True)]
    with torch.no_grad():
        base = model(input_ids=ids, session_ids=sessions).logits
        for t in range(1, ids.shape[1]):
            changed = ids.clone()
            slot = int(space.slots(ids)[0, t])
            start, size = ranges[slot - 1]
            if slot > 1:
                changed[0, t] = start + (ids[0, t] - start + 1) % size
            else:  # To a behavior of another level.
                changed[0, t] = start + 3 - (ids[0, t] - start)
            moved = (model(input_ids=changed, session_ids=sessions).logits - base).abs().amax(-1)[0] > 1e-6
            own = (torch.arange(25) - 1) // 4 == (t - 1) // 4
            expected = (sessions[0] > sessions[0, t]) | (own & (torch.arange(25) >= t))
            assert torch.equal(moved, expected), t
    with pytest.raises(ValueError, match="`session_ids`: expected a session for every token"):
        model(input_ids=ids)


def test_loss_switches(gamer):
    ids = random_rows(gamer)
    with torch.no_grad():
        logits = gamer(input_ids=ids).logits[:, :-1]
        targets = ids[:, 1:]
        plain = gamer(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        released = tiny_gamer(loss_on_behaviors=False, loss_temperature=0.7)
        items = gamer.config.token_space.slots(targets) > 1
        expected = torch.nn.functional.cross_entropy(logits[items] / 0.7, targets[items])
        torch.testing.assert_close(released(input_ids=ids, labels=ids).loss, expected)


def test_save_and_load_and_checkpoint_keys(tmp_path, gamer):
    gamer.save_pretrained(tmp_path)
    loaded = GamerForCausalLM.from_pretrained(tmp_path).eval()
    ids = random_rows(gamer)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, gamer(input_ids=ids).logits)
    assert torch.equal(loaded.item_codes, gamer.item_codes)
    assert {
        "item_codes",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.behavior_embedding.weight",
        "model.layers.2.cross_attn.q_behavior_embedding.weight",
        "model.layers.2.post_self_attention_layernorm.weight",
        "model.layers.3.post_cross_attention_layernorm.weight",
    } <= set(gamer.state_dict())
    assert gamer.state_dict()["model.layers.0.mlp.gate_up_proj.weight"].std().item() == pytest.approx(0.4, rel=0.1)


def test_gradient_checkpointing_and_bf16_run(gamer):
    model = tiny_gamer().train()
    model.gradient_checkpointing_enable()
    ids = random_rows(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(loss, gamer(input_ids=ids, labels=ids).loss, atol=0.2, rtol=0.05)


@torch.no_grad()
def exhaustive(model, encoded, behavior: int) -> torch.Tensor:
    """Log-probability of every item given history and behavior, one row at a time."""
    tokens = model.item_codes.long() + torch.tensor(model.config.token_space.code_offsets)
    scores = []
    for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True):
        row = torch.cat([ids[mask.bool()], torch.tensor([behavior])]).expand(len(tokens), -1)
        logits = model(input_ids=torch.cat([row, tokens], dim=1)).logits[:, row.shape[1] - 1 : -1]
        scores.append(logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(1))
    return torch.stack(scores)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_wide_beam_equals_exhaustive_ranking(gamer, gamer_tok, padding_side, use_cache):
    encoded = gamer_tok.encode_history(HISTORIES, padding_side=padding_side)
    output = gamer.generate(
        **encoded,
        prompt=["<bos>", "buy"],
        num_beams=30,
        num_return_sequences=30,
        use_cache=use_cache,
        return_dict_in_generate=True,
    )
    expected, items = exhaustive(gamer, encoded, 7).sort(dim=1, descending=True)
    assert output.item_indices.tolist() == items.tolist()
    torch.testing.assert_close(output.sequences_scores.view(3, 30), expected, atol=1e-5, rtol=1e-5)
    assert gamer_tok.decode_items(output.sequences)[:3] == [f"item-{i:02d}" for i in items[0, :3].tolist()]


def test_cold_start_begins_with_bos_or_with_the_behavior(gamer, gamer_tok):
    cold = gamer.generate(behavior="buy", num_beams=6, num_return_sequences=4)
    assert cold[:, :2].tolist() == [[1, 7]] * 4
    assert torch.equal(
        cold, gamer.generate(**gamer_tok.encode_history([]), prompt=["buy"], num_beams=6, num_return_sequences=4)
    )
    bare = tiny_gamer(add_bos_token=False)
    assert bare.generate(behavior="buy", num_beams=2)[0, 0] == 7
    with pytest.raises(ValueError, match="`prompt`: expected a behavior to start from"):
        bare.generate(num_beams=2)


@pytest.mark.parametrize("prompt", [["buy"], []])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_session_wise_generation_opens_a_new_session(prompt, padding_side):
    model = tiny_gamer(session_wise_attention=True)
    tokenizer = gamer_tokenizer(model)
    encoded = tokenizer.encode_history(HISTORIES[:2], padding_side=padding_side)
    sessions = torch.full_like(encoded["input_ids"], -1)
    real = encoded["attention_mask"].bool()
    sessions[real] = torch.cat([torch.tensor([-1] + [0] * 8 + [3] * 8), torch.tensor([-1] + [0] * 4)])
    output = model.generate(
        **encoded, session_ids=sessions, prompt=["<bos>", *prompt], num_beams=6, return_dict_in_generate=True
    )
    for row in range(2):
        # The whole row at once, what was generated in the session after the last one.
        ids, own = encoded["input_ids"][row][real[row]], sessions[row][real[row]]
        ids = torch.cat([ids, output.sequences[row][-4:]])[None]
        own = torch.cat([own, own.max().expand(4) + 1])[None]
        with torch.no_grad():
            steps = model(input_ids=ids, session_ids=own).logits.log_softmax(-1)[0, -5:-1]
        steps = steps.gather(-1, ids[0, -4:, None])[len(prompt) :].sum()
        torch.testing.assert_close(output.sequences_scores[row], steps, atol=1e-5, rtol=1e-5)


def test_flash_attention_which_ignores_levels_is_refused():
    with pytest.raises(ValueError, match="Flash Attention"):
        tiny_gamer().set_attn_implementation("flash_attention_2")


def test_attentions_are_those_of_self_attention():
    model = tiny_gamer("eager")
    ids = random_rows(model)
    with torch.no_grad():
        attentions = model(input_ids=ids, output_attentions=True).attentions
    assert [tuple(each.shape) for each in attentions] == [(3, 4, 25, 25)] * 4


def test_an_empty_history_among_others_is_refused_as_it_is_alone():
    bare = tiny_gamer(add_bos_token=False)
    encoded = gamer_tokenizer(bare).encode_history([HISTORIES[0], []])
    with pytest.raises(ValueError, match="`prompt`: expected a behavior to start from"):
        bare.generate(**encoded, num_beams=2)


def test_the_whole_model_compiles_without_a_graph_break(gamer):
    ids = random_rows(gamer)
    compiled = torch.compile(
        lambda ids: gamer(input_ids=ids, use_cache=False).logits, backend="aot_eager", fullgraph=True
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids), gamer(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_agrees_with_inference_session_by_session(attention):
    """Each interaction of a row, packed with another row, from its earlier sessions alone."""
    model = tiny_gamer(attention, session_wise_attention=True)
    rows = random_rows(model, rows=2, interactions=6)
    sessions = torch.tensor([[-1] + [0] * 8 + [1] * 8 + [2] * 8, [-1] + [0] * 4 + [1] * 12 + [2] * 8])
    packed = torch.arange(2)[:, None].expand(rows.shape).reshape(1, -1)
    with torch.no_grad():
        together = model(input_ids=rows, session_ids=sessions).logits
        as_one = model(input_ids=rows.view(1, -1), session_ids=sessions.view(1, -1), sequence_ids=packed).logits
        torch.testing.assert_close(as_one.view_as(together), together, atol=1e-5, rtol=1e-5)
        for row, own, logits in zip(rows, sessions, together, strict=True):
            for begin in range(1, rows.shape[1], 4):
                known = torch.cat([(own < own[begin]).nonzero()[:, 0], torch.arange(begin, begin + 4)])
                alone = model(input_ids=row[None, known], session_ids=own[None, known]).logits[0, -4:]
                torch.testing.assert_close(alone, logits[begin : begin + 4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bos", [True, False])
def test_rows_announced_as_whole_give_the_same(bos):
    """Without gradients nothing looks at the data, as on a GPU."""
    model = tiny_gamer(add_bos_token=bos)
    ids = torch.nn.functional.pad(random_rows(model)[:, not bos :], (0, 4))
    with torch.no_grad():
        expected, found = (model(input_ids=ids, labels=ids, whole_rows=whole) for whole in (False, True))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits[ids != 0], expected.logits[ids != 0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="`whole_rows`: expected rows of"):
        model(input_ids=ids.flip(1), labels=ids, whole_rows=True)


def test_caches_without_room_for_cross_level_layers(gamer):
    ids = random_rows(gamer)
    with torch.no_grad():
        expected = gamer(input_ids=ids).logits
        cache = DynamicCache(config=gamer.config)
        gamer(input_ids=ids[:, :9], past_key_values=cache, use_cache=True)
        found = gamer(input_ids=ids[:, 9:], all_input_ids=ids, past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(found, expected[:, 9:], atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match="`past_key_values`: expected a DynamicCache, or a cache of 6 layers"):
            gamer(input_ids=ids, past_key_values=StaticCache(gamer.config, max_cache_len=30), use_cache=True)


def test_static_caches_are_refused(gamer):
    with pytest.raises(ValueError, match="`cache_implementation`: expected to be left out"):
        gamer.generate(behavior="buy", cache_implementation="static")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_level_layers": [4]}, "`cross_level_layers`: expected distinct layers from 0 to 3"),
        ({"behavior_levels": [0, 1]}, "`behavior_levels`: expected 4 levels"),
        ({"behavior_levels": [0, 1, -1, 2]}, "`behavior_levels`: expected 4 levels from 0"),
        ({"intermediate_size": 50}, "`intermediate_size`: expected a multiple of 8"),
        ({"loss_temperature": 0.0}, "`loss_temperature`: expected a positive number"),
    ],
)
def test_contradicting_configurations_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_gamer_config(**changes)
