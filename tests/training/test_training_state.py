import random

import numpy as np
import pytest
import torch

from mbgen_hf.training.settings import load_settings, parse_change, preset_names
from mbgen_hf.training.training_state import (
    load_optimizer,
    load_random_states,
    load_scheduler,
    save_optimizer,
    save_random_states,
    save_scheduler,
)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_continues_where_it_was(tmp_path, kind):
    def make():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        optimizer = kind([{"params": [layer.weight], "weight_decay": 0.1}, {"params": [layer.bias]}], lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return layer, optimizer, schedule

    def step(layer, optimizer, schedule):
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    one = make()
    for _ in range(3):
        step(*one)
    save_optimizer(one[1], tmp_path)
    save_scheduler(one[2], tmp_path)
    two = make()
    two[0].load_state_dict(one[0].state_dict())
    load_optimizer(two[1], tmp_path)
    load_scheduler(two[2], tmp_path)
    for each in (one, two):
        step(*each)
    assert torch.equal(one[0].weight, two[0].weight) and torch.equal(one[0].bias, two[0].bias)
    assert one[2].get_last_lr() == two[2].get_last_lr()


def test_random_generators_continue_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()

    np.random.randn()
    save_random_states(tmp_path, 0)
    expected = draw()
    draw()
    load_random_states(tmp_path, 0)
    assert draw() == expected
    with pytest.raises(ValueError, match="random states of process 1"):
        load_random_states(tmp_path, 1)


def test_every_preset_reads_and_changes_apply():
    assert {"gamer-official", "gamer-paper", "gamer-small", "mbgen-official", "mbgen-paper", "mbgen-small"} <= set(
        preset_names()
    )
    for name in preset_names():
        assert set(load_settings(name)) == {"architecture", "item_ids", "model", "data", "training", "validation"}
        assert name.startswith(load_settings(name)["architecture"])
    changed = load_settings("mbgen-paper", {"model.d_model": 8, "training.num_train_epochs": 2})
    assert changed["model"]["d_model"] == 8 and "max_steps" not in changed["training"]


def test_changes_are_parsed_as_json_or_text():
    assert parse_change("model.d_model=128") == ("model.d_model", 128)
    assert parse_change("data.window=sliding") == ("data.window", "sliding")
    assert parse_change("item_ids.base=null") == ("item_ids.base", None)
    for text, message in (("model.d_model", "expected SECTION.NAME=VALUE"),):
        with pytest.raises(ValueError, match=message):
            parse_change(text)
    with pytest.raises(ValueError, match="expected SECTION.NAME with a section"):
        load_settings("mbgen-small", {"modle.d_model": 1})
    with pytest.raises(ValueError, match="`preset`: expected one of"):
        load_settings("mbgen-huge")
