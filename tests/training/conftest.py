import pytest

from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.settings import load_settings


TINY_MODEL = {
    "model.d_model": 16,
    "model.d_kv": 8,
    "model.d_ff": 32,
    "model.num_heads": 2,
    "model.num_layers": 1,
    "model.num_decoder_layers": 1,
    "model.behavior_embedding_dim": 8,
}


TINY_GAMER = {
    "model.hidden_size": 16,
    "model.intermediate_size": 16,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 1,
    "model.head_dim": 8,
    "model.behavior_embedding_dim": 8,
}


@pytest.fixture(scope="session")
def shop_table():
    return simulate_shop(num_users=150, num_items=24, seed=3).table()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, shop_table):
    folder = tmp_path_factory.mktemp("data") / "shop"
    folder.mkdir()
    shop_table.save(folder)
    return folder


@pytest.fixture
def tiny_settings():
    """Settings of a run of seconds, changed further by keyword arguments such as `training__max_steps=4`."""

    def make(model="mbgen", **changes):
        short = {
            **(TINY_MODEL if model == "mbgen" else TINY_GAMER),
            "training.max_steps": 12,
            "training.eval_strategy": "steps",
            "training.eval_steps": 6,
            "training.logging_steps": 1,
            "training.per_device_train_batch_size": 16,
            "training.disable_tqdm": True,
            "training.use_cpu": True,
            "validation.max_users": 20,
            "validation.num_beams": 10,
        }
        return load_settings(f"{model}-small", {**short, **{k.replace("__", "."): v for k, v in changes.items()}})

    return make
