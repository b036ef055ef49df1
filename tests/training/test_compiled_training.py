"""`training.torch_compile`: the same training, in batches of few shapes."""

import pytest
from torch._dynamo.utils import counters

from mbgen_hf.data.batch_shapes import FEW
from mbgen_hf.data.batches import PrefixCollator
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.train import train_model


@pytest.mark.slow
def test_compiled_training_is_the_same_and_in_few_shapes_where_each_is_recorded(tmp_path, tiny_settings, monkeypatch):
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
    compiled = {"training__torch_compile": True, "training__torch_compile_backend": "aot_eager"}
    for changes in ({}, compiled, {**compiled, "training__torch_compile_mode": "reduce-overhead"}):
        shapes.clear()
        settings = tiny_settings(model__dropout_rate=0.0, **changes)
        histories.append(train_model(table, settings, tmp_path / str(len(histories))).history)
        found.append(set(shapes))
    plain, *others = ([e["loss"] for e in history if "loss" in e] for history in histories)
    assert len(plain) == 12
    for losses in others:
        assert losses == pytest.approx(plain, abs=1e-5) and losses[0] == pytest.approx(plain[0], abs=1e-6)
    assert found[1] == found[0] and len(found[2]) <= FEW < len(found[0]) and max(found[2]) <= 1 + 3 * 50
    # Lengths become variable: few graphs in either case.
    assert 1 <= counters["stats"]["unique_graphs"] <= FEW
