import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.evaluation.attention import HistoryGrid, attention_report, layer_attention
from mbgen_hf.evaluation.attention_weights import Observation, observe_attention
from mbgen_hf.evaluation.protocols import EvaluationCases, leave_one_out_cases, session_wise_cases
from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.interactions import Interactions
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.token_space import BOS
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.simulation import simulate_shop


CODE_SIZES = (5, 6)


@pytest.fixture(scope="module")
def table() -> SequenceTable:
    shop = simulate_shop(num_users=40, num_items=24, seed=3).table()
    return with_sessions(shop, SessionRule("gap", gap_seconds=20_000))


def few_cases(table: SequenceTable, count: int = 9) -> EvaluationCases:
    """Cases with histories of very different lengths, the shortest of one interaction."""
    cases = leave_one_out_cases(table, "test", 20)
    ends = np.minimum(cases.history_end, cases.history_start + np.arange(len(cases)) % 7 + 1)
    return replace(cases, history_end=ends).select(np.arange(count))


def tokenizer_for(table: SequenceTable, config, **options) -> InteractionTokenizer:
    codes = np.stack(np.divmod(np.arange(table.num_items), CODE_SIZES[1]), axis=1)
    return InteractionTokenizer(
        behaviors=config.behaviors, code_sizes=CODE_SIZES, item_codes=codes, item_ids=table.item_ids, **options
    )


def gamer_for(table: SequenceTable, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "behavior_embedding_dim": 8, "initializer_range": 0.4}
    layers = {"cross_level_layers": [0, 2]}
    config = GamerConfig(behaviors=list(table.schema.names), code_sizes=CODE_SIZES, **sizes | layers | changes)
    return GamerForCausalLM(config).eval(), tokenizer_for(table, config, history_prefix="<bos>", history_suffix=None)


def mbgen_for(table: SequenceTable, **changes):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 3}
    sizes |= {"num_user_tokens": 7, "behavior_embedding_dim": 8, "initializer_factor": 1.5}
    config = MBGenConfig(behaviors=list(table.schema.names), code_sizes=CODE_SIZES, **sizes | changes)
    causal = {"history_prefix": "<bos>", "history_suffix": None} if config.causal_encoder else {}
    return MBGenForConditionalGeneration(config).eval(), tokenizer_for(table, config, num_user_tokens=7, **causal)


KINDS = {
    "gamer": lambda table: gamer_for(table),
    "gamer copying": lambda table: gamer_for(table, copy_from_history=True),
    "mbgen": lambda table: mbgen_for(table),
    "mbgen causal copying": lambda table: mbgen_for(table, copy_from_history=True, causal_encoder=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_attention_is_counted_once_and_padding_gets_none(table, kind):
    model, tokenizer = KINDS[kind](table)
    cases = few_cases(table)
    observations, gates = observe_attention(model, tokenizer, table, cases, batch_size=4)
    assert (gates is not None) == ("copying" in kind)
    lengths = cases.history_end - cases.history_start
    behind = np.arange(lengths.max()) >= lengths[:, None]
    for seen in observations:
        total = seen.mass.sum(2) + seen.special + seen.prompt
        np.testing.assert_allclose(total[seen.sees], 1, atol=1e-6)
        np.testing.assert_allclose(seen.slots[seen.sees].sum(1), seen.mass[seen.sees].mean(1).sum(1), atol=1e-6)
        assert not seen.mass.transpose(0, 2, 1)[behind].any() and not seen.visible[behind].any()
    alone = [observe_attention(model, tokenizer, table, cases.select([row]))[0] for row in range(len(cases))]
    for layer, seen in enumerate(observations):
        for row, single in enumerate(alone):
            for field in fields(Observation)[1:]:
                mine, its = getattr(seen, field.name)[row], getattr(single[layer], field.name)[0]
                mine = mine[..., : its.shape[-1]] if mine.ndim else mine
                np.testing.assert_allclose(mine, its, atol=1e-5, err_msg=f"{seen.name}: {field.name}")


def row_of(tokenizer, table, cases, row: int) -> tuple[list[int], int]:
    """The tokens of a history, and the behavior token asked for."""
    encoded = tokenizer.encode_interactions(
        table.items, table.behaviors, cases.history_start[[row]], cases.history_end[[row]]
    )
    return encoded["input_ids"][0].tolist(), int(cases.behavior[row]) + tokenizer.token_space.behavior_offset


def test_self_attention_of_gamer_is_that_of_its_output(table):
    model, tokenizer = gamer_for(table)
    cases = few_cases(table)
    observations, _ = observe_attention(model, tokenizer, table, cases)
    names = [seen.name for seen in observations]
    assert names == ["self-attention 1", "cross-level 1", "self-attention 2", "self-attention 3", "cross-level 3"]
    assert model.config._attn_implementation == "sdpa"
    eager = gamer_for(table)[0]
    eager.set_attn_implementation("eager")
    for row in range(5):
        history, prompt = row_of(tokenizer, table, cases, row)
        with torch.no_grad():
            output = eager(input_ids=torch.tensor([[*history, prompt]]), output_attentions=True)
        for layer, place in enumerate((0, 2, 3)):
            weights = output.attentions[layer][0, :, -1].numpy()
            # [BOS, (b, c0, c1) x n, prompt], the latest interaction first.
            of_interactions = weights[:, 1:-1].reshape(4, -1, 3)[:, ::-1]
            seen = observations[place]
            np.testing.assert_allclose(
                seen.mass[row, :, : of_interactions.shape[1]], of_interactions.sum(2), atol=1e-5
            )
            np.testing.assert_allclose(seen.special[row], weights[:, 0], atol=1e-5)
            np.testing.assert_allclose(seen.prompt[row], weights[:, -1], atol=1e-5)
            np.testing.assert_allclose(seen.slots[row], of_interactions.sum(1).mean(0), atol=1e-5)


def test_cross_level_attention_sees_lower_levels_alone(table):
    model, tokenizer = gamer_for(table)
    with torch.no_grad():  # Attention to every visible token alike.
        for layer in (0, 2):
            model.model.layers[layer].cross_attn.q_norm.weight.zero_()
    cases = few_cases(table, 30)
    history = HistoryGrid.of(table, cases)
    lower = (history.behaviors >= 0) & (history.behaviors < cases.behavior[:, None])
    seen = observe_attention(model, tokenizer, table, cases)[0][1]
    assert seen.name == "cross-level 1"
    assert 0 < seen.sees.sum() < len(cases)
    np.testing.assert_array_equal(seen.sees, lower.any(1))
    np.testing.assert_array_equal(seen.visible[seen.sees], 3 * lower[seen.sees])
    expected = lower[seen.sees] / lower[seen.sees].sum(1, keepdims=True)
    np.testing.assert_allclose(seen.mass[seen.sees].mean(1), expected, atol=1e-6)
    layer = layer_attention(seen, history, len(table.schema))
    assert layer.seeing == seen.sees.mean() and layer.target.lift == pytest.approx(1, abs=1e-5)
    assert layer.target.lift_over_place == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(layer.behaviors, layer.uniform_behaviors, atol=1e-6)


def test_cross_attention_of_mbgen_is_that_of_its_output(table):
    model, tokenizer = mbgen_for(table)
    cases = few_cases(table)
    observations, _ = observe_attention(model, tokenizer, table, cases)
    assert [seen.name for seen in observations] == [f"cross-attention {layer}" for layer in (1, 2, 3)]
    eager = mbgen_for(table)[0]
    eager.set_attn_implementation("eager")
    for row in range(5):
        history, prompt = row_of(tokenizer, table, cases, row)
        user = int(tokenizer.token_space.user_token_ids([table.user_ids[cases.users[row]].item()])[0])
        with torch.no_grad():
            output = eager(
                input_ids=torch.tensor([[user, *history]]),
                decoder_input_ids=torch.tensor([[BOS, prompt]]),
                output_attentions=True,
            )
        for layer, seen in enumerate(observations):
            weights = output.cross_attentions[layer][0, :, 1].numpy()
            of_interactions = weights[:, 1:-1].reshape(4, -1, 3)[:, ::-1]
            np.testing.assert_allclose(
                seen.mass[row, :, : of_interactions.shape[1]], of_interactions.sum(2), atol=1e-5
            )
            np.testing.assert_allclose(seen.special[row], weights[:, 0] + weights[:, -1], atol=1e-5)
            assert not seen.prompt[row].any()


@pytest.mark.parametrize("make", [gamer_for, mbgen_for])
def test_copying_is_what_the_head_chooses_from(table, make):
    model, tokenizer = make(table, copy_from_history=True)
    cases = few_cases(table)
    observations, gates = observe_attention(model, tokenizer, table, cases, batch_size=5)
    seen = observations[-1]
    assert seen.name == "copying" and seen.mass.shape[1] == 1
    space = model.config.token_space
    for row in range(5):
        history, prompt = row_of(tokenizer, table, cases, row)
        with torch.no_grad():
            if make is gamer_for:
                ids = torch.tensor([[*history, prompt]])
                states = model.model(input_ids=ids).last_hidden_state
                last = torch.tensor([[ids.shape[1] - 1]])
                choice = model.copying.within_row(states, last, Interactions.of(ids, space))
            else:
                user = int(tokenizer.token_space.user_token_ids([table.user_ids[cases.users[row]].item()])[0])
                ids = torch.tensor([[user, *history]])
                states = model.encoder(input_ids=ids)[0]
                asked = model.decoder(input_ids=torch.tensor([[BOS, prompt]]), encoder_hidden_states=states)[0]
                choice = model.copying.from_encoder(asked[:, 1:], states, Interactions.of(ids, space))
        weights = choice.log_weights[0, -1].exp()
        weights = weights[weights > 0].flip(0).numpy()
        np.testing.assert_allclose(seen.mass[row, 0, : len(weights)], weights, atol=1e-5)
        assert gates[row] == pytest.approx(choice.log_copy[0, -1].exp().item(), abs=1e-5)


def test_sessions_limit_what_is_seen_as_they_do_in_generation(table):
    model, tokenizer = gamer_for(table, session_wise_attention=True)
    cases = session_wise_cases(table, "test", 20)
    observations, _ = observe_attention(model, tokenizer, table, cases, batch_size=16)
    lengths = cases.history_end - cases.history_start
    # Every earlier session is visible to what is asked for, which has a session of its own.
    np.testing.assert_array_equal((observations[0].visible == 3).sum(1), lengths)


def observation_by_hand() -> tuple[Observation, HistoryGrid]:
    """Two heads, codes of one level, up to three interactions, all visible; in the last case nothing is."""
    mass = np.array(
        [
            [[0.5, 0.2, 0.1], [0.1, 0.4, 0.3]],  # items 7, 8, 7: the target is 7
            [[0.6, 0.2, 0.0], [0.4, 0.2, 0.0]],  # items 9, 8: a new one
            [[0.3, 0.4, 0.0], [0.3, 0.4, 0.0]],  # items 5, 6: the target is 5
            [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
        ]
    )
    visible = np.array([[2, 2, 2], [2, 2, 0], [2, 2, 0], [0, 0, 0]])
    prompt = np.full((4, 2), 0.1)
    seen = Observation(
        name="by hand",
        mass=mass,
        special=1 - mass.sum(2) - prompt,
        prompt=prompt,
        slots=np.full((4, 2), 0.25),
        visible=visible,
        visible_slots=np.stack([visible.sum(1) // 2] * 2, axis=1),
        visible_special=np.ones(4),
        visible_prompt=np.ones(4),
        sees=np.array([True, True, True, False]),
    )
    items = np.array([[7, 8, 7], [9, 8, -1], [5, 6, -1], [5, 5, 5]])
    behaviors = np.array([[0, 1, 1], [1, 0, -1], [1, 1, -1], [0, 0, 0]])
    held = np.array([[True, False, True], [False] * 3, [True, False, False], [True] * 3])
    return seen, HistoryGrid(items, behaviors, held)


def test_a_layer_by_hand():
    layer = layer_attention(*observation_by_hand(), num_behaviors=2)
    assert layer.seeing == 0.75 and layer.prompt == pytest.approx(0.1)
    np.testing.assert_allclose(layer.recency, [(0.3 + 0.5 + 0.3) / 3, (0.3 + 0.2 + 0.4) / 3, 0.2])
    np.testing.assert_allclose(layer.uniform_recency, [(2 / 8 + 2 / 6 + 2 / 6) / 3] * 2 + [2 / 8])
    np.testing.assert_allclose(layer.behaviors, [(0.3 + 0.2 + 0) / 3, (0.5 + 0.5 + 0.7) / 3])
    np.testing.assert_allclose(layer.uniform_behaviors, [(2 / 8 + 2 / 6 + 0) / 3, (4 / 8 + 2 / 6 + 4 / 6) / 3])
    np.testing.assert_allclose(layer.uniform_slots, [(3 / 8 + 2 / 6 + 2 / 6) / 3] * 2)
    assert layer.uniform_special == layer.uniform_prompt == pytest.approx((1 / 8 + 1 / 6 + 1 / 6) / 3)
    target = layer.target
    assert target.mass == pytest.approx((0.5 + 0.3) / 2) and target.uniform == pytest.approx((4 / 8 + 2 / 6) / 2)
    # Histories of two: the latest gets (0.5 + 0.3) / 2 on average; of three there is one alone.
    assert target.place == pytest.approx((0.5 + 0.4) / 2)
    assert target.lift == pytest.approx(0.4 / (5 / 12)) and target.lift_over_place == pytest.approx(0.4 / 0.45)
    np.testing.assert_allclose(target.head_mass, [(0.6 + 0.3) / 2, (0.4 + 0.3) / 2])
    # Item 7 gets 0.5 in its two occurrences, more than 8; item 5 less than 6.
    assert target.found == 0.5 and target.latest == 1.0


def test_without_repeats_there_is_no_attention_to_them():
    seen, history = observation_by_hand()
    nothing = replace(history, holds_target=np.zeros_like(history.holds_target))
    assert layer_attention(seen, nothing, 2).target is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_goes_into_a_json_file(table, kind):
    model, tokenizer = KINDS[kind](table)
    cases = leave_one_out_cases(table, "test", 20)
    report = attention_report(model, tokenizer, table, cases)
    held = HistoryGrid.of(table, cases).holds_target
    assert report.num_repeats == held.any(1).sum() > 0
    assert report.latest_is_target == held[held.any(1), 0].mean()
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert len(values["layers"]) == len(report.layers) and values["layers"][0]["target"]["lift"] > 0
    assert (values["copy_gate"] is None) == ("copying" not in kind)
    assert model.config._attn_implementation == "sdpa" and not model.training


def test_cases_without_a_history_are_refused(table):
    model, tokenizer = gamer_for(table)
    cases = few_cases(table)
    for wrong in (cases.select([]), replace(cases, history_end=cases.history_start)):
        with pytest.raises(ValueError, match="expected one or more, each with a history"):
            attention_report(model, tokenizer, table, wrong)
