"""`model.attn_implementation`: a choice of the training run, not of the checkpoint."""

import json

import pytest

from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.checkpoint import load_checkpoint
from mbgen_hf.training.settings import load_settings
from mbgen_hf.training.train import build_model, train_model


SHORT = {
    "training.max_steps": 3,
    "training.eval_strategy": "steps",
    "training.eval_steps": 3,
    "training.logging_steps": 1,
    "training.per_device_train_batch_size": 16,
    "training.disable_tqdm": True,
    "training.use_cpu": True,
    "validation.max_users": 5,
    "validation.num_beams": 10,
}
PLAIN = {
    "mbgen-small": {"model.dropout_rate": 0.0, "model.num_layers": 1, "model.num_decoder_layers": 1},
    "gamer-small": {
        "model.hidden_dropout": 0.0,
        "model.attention_dropout": 0.0,
        "model.expert_dropout": 0.0,
        "model.num_hidden_layers": 2,
    },
}


@pytest.fixture(scope="module")
def table():
    return simulate_shop(num_users=60, num_items=24, seed=3).table()


@pytest.mark.parametrize("preset", PLAIN)
def test_eager_attention_reaches_the_model_and_not_the_checkpoint(tmp_path, table, preset):
    histories = []
    for attention in ("sdpa", "eager"):
        settings = load_settings(preset, {**SHORT, **PLAIN[preset], "model.attn_implementation": attention})
        trained = train_model(table, settings, tmp_path / attention)
        # An encoder and a decoder have configurations of their own.
        parts = {module.config._attn_implementation for module in trained.model.modules() if hasattr(module, "config")}
        assert parts == {attention}
        histories.append([entry["loss"] for entry in trained.history if "loss" in entry])
    assert len(histories[0]) == 3 and histories[1] == pytest.approx(histories[0], abs=1e-5)
    assert not [key for key in json.loads((tmp_path / "eager" / "config.json").read_text()) if "attn" in key]
    model, _ = load_checkpoint(tmp_path / "eager", device="cpu")
    assert model.config._attn_implementation == "sdpa"
    # The default is the same as ever.
    assert build_model(table, load_settings(preset))[0].config._attn_implementation == "sdpa"


FLEX = {"model.attn_implementation": "flex_attention"}


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("gamer-small", FLEX, "expected `model.attention_dropout` 0 beside 'flex_attention', found 0.1"),
        (
            "gamer-small",
            FLEX | PLAIN["gamer-small"],
            "expected a GPU for 'flex_attention', .*, found the device 'cpu'",
        ),
        ("gamer-small", FLEX | PLAIN["gamer-small"] | {"model.head_dim": 8}, "`model.head_dim` of at least 16"),
        ("mbgen-small", FLEX, r"expected one of \['sdpa', 'eager'\] for mbgen, found 'flex_attention'"),
        (
            "gamer-small",
            {"model.attn_implementation": "flash_attention_2"},
            r"expected one of \['sdpa', 'eager', 'flex_attention'\] for gamer, found 'flash_attention_2'",
        ),
        ("mbgen-small", {"model.attn_implementation": None}, "expected one of .* found None"),
    ],
)
def test_what_can_not_train_is_refused_in_one_line(tmp_path, table, preset, changes, message):
    with pytest.raises(ValueError, match=f"^`model.attn_implementation`: .*{message}") as refused:
        train_model(table, load_settings(preset, {**SHORT, **changes}), tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_flex_attention_is_built_where_it_can_run(table):
    model, _ = build_model(table, load_settings("gamer-small", FLEX | PLAIN["gamer-small"]))
    assert model.config._attn_implementation == model.model.config._attn_implementation == "flex_attention"
