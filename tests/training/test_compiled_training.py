"""`training.torch_compile`: the same training, in batches of few shapes."""

import pytest
from torch._dynamo.utils import counters

from mbgen_hf.data.batch_shapes import FEW
from mbgen_hf.data.batches import PrefixCollator
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.train import train_model


@pytest.mark.slow
def test_compiled_training_is_the_same_in_few_shapes(tmp_path, tiny_settings, monkeypatch):
    # `TrainingArguments` leaves these behind, and later trainers of the process would compile as well.
    for name in ("BACKEND", "MODE", "USE_DYNAMIC", "USE_FULLGRAPH"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    counters.clear()
    shapes, collate = set(), PrefixCollator.__call__

    def recorded(self, numbers):
        batch = collate(self, numbers)
        shapes.add(batch["input_ids"].shape[1])
        return batch

    monkeypatch.setattr(PrefixCollator, "__call__", recorded)
    histories, found = [], []
    table = simulate_shop(num_users=100, num_items=24, seed=3, min_length=4, max_length=60).table()
    for changes in ({}, {"training__torch_compile": True, "training__torch_compile_backend": "aot_eager"}):
        shapes.clear()
        settings = tiny_settings(model__dropout_rate=0.0, **changes)
        histories.append(train_model(table, settings, tmp_path / str(len(histories))).history)
        found.append(set(shapes))
    one, two = ([e["loss"] for e in history if "loss" in e] for history in histories)
    assert len(one) == 12 and two == pytest.approx(one, abs=1e-5) and two[0] == pytest.approx(one[0], abs=1e-6)
    assert len(found[1]) <= FEW < len(found[0]) and max(found[1]) <= 1 + 3 * 50
    assert 1 <= counters["stats"]["unique_graphs"] <= FEW
