import pytest
import torch
from torch import nn

from mbgen_hf.models.routed_feed_forward import RoutedFeedForward, Routing, grouped_matmul


def layer(num_experts=5, injection_dim=8, d_model=8, d_ff=16) -> RoutedFeedForward:
    torch.manual_seed(0)
    module = RoutedFeedForward(d_model, d_ff, num_experts, 3, injection_dim, nn.ReLU(), dropout=0.0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def by_masks(module: RoutedFeedForward, states, slots, behaviors):
    """The plain rule: each expert on the tokens of its slot, one after the other."""
    inputs = torch.cat([states, module.behavior_embedding(behaviors)], dim=-1)
    output = torch.zeros_like(states)
    for slot in range(module.wi.weight.shape[0]):
        mask = slots == slot
        inner = torch.relu(inputs[mask] @ module.wi.weight[slot].T)
        output[mask] = inner @ module.wo.weight[slot].T
    return output


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (4, 50)])
@pytest.mark.parametrize("absent", [None, 0, 4])
def test_equals_one_expert_at_a_time_forward_and_backward(shape, absent):
    module = layer()
    slots = torch.randint(0, 5, shape)
    if absent is not None:
        slots[slots == absent] = 2
    behaviors = torch.randint(0, 4, shape)
    states = torch.randn(*shape, 8)
    one, two = states.clone().requires_grad_(), states.clone().requires_grad_()
    mine = module(one, Routing.from_slots(slots, behaviors, 5))
    mine.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    plain = by_masks(module, two, slots, behaviors)
    plain.square().sum().backward()
    torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.grad, two.grad, atol=1e-4, rtol=1e-4)
    for gradient, parameter in zip(gradients, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_without_a_graph_break_and_trains_alike(dtype):
    module = layer(d_model=16, injection_dim=8).to(dtype)
    slots, behaviors = torch.randint(0, 5, (3, 9)), torch.randint(0, 4, (3, 9))
    states = torch.randn(3, 9, 16, dtype=dtype)

    def run(states, slots, behaviors):
        return module(states, Routing.from_slots(slots, behaviors, 5))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    one, two = states.clone().requires_grad_(), states.clone().requires_grad_()
    eager, traced = run(one, slots, behaviors), compiled(two, slots, behaviors)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    torch.testing.assert_close(traced, eager, **tolerance)
    eager.float().square().sum().backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    traced.float().square().sum().backward()
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 2.0, "rtol": 0.05}
    torch.testing.assert_close(two.grad, one.grad, **tolerance)
    for gradient, parameter in zip(expected, module.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **tolerance)


@pytest.mark.slow
def test_compiles_with_the_default_backend():
    module = layer()
    slots, behaviors = torch.randint(0, 5, (3, 9)), torch.randint(0, 4, (3, 9))
    states = torch.randn(3, 9, 8)

    def run(states, slots, behaviors):
        return module(states, Routing.from_slots(slots, behaviors, 5))

    expected = run(states, slots, behaviors)
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(states, slots, behaviors), expected)


def test_runs_in_the_autocast_type():
    states, weight = torch.randn(6, 8), torch.randn(2, 8, 8)
    ends = torch.tensor([2, 6], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_matmul(states, weight, ends).dtype == torch.bfloat16
    assert grouped_matmul(states, weight, ends).dtype == torch.float32


def test_float64_agrees_with_float32():
    states, weight = torch.randn(7, 8), torch.randn(3, 8, 4)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    exact = grouped_matmul(states.double(), weight.double(), ends)
    torch.testing.assert_close(grouped_matmul(states, weight, ends), exact.float(), atol=1e-5, rtol=1e-5)
