import pytest
import torch
from torch import nn
from transformers.activations import SiLUActivation

from mbgen_hf.models import routed_feed_forward, slot_order
from mbgen_hf.models.routed_feed_forward import RoutedFeedForward, RoutedGatedFeedForward, Routing, grouped_matmul
from mbgen_hf.models.slot_order import Blocks


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


def rows_of(kind: str, period: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots of rows, and which tokens are padding."""
    lengths = torch.tensor([3, 1, 2])
    if kind == "whole":
        lengths[:] = 3
    special = {"bos and user": 2, "none in front": 0}.get(kind, 1)
    slots, padding = torch.zeros(3, special + 12, dtype=torch.long), torch.ones(3, special + 12, dtype=torch.bool)
    for row, interactions in enumerate(lengths):
        end = special + period * int(interactions)
        slots[row, special:end] = torch.arange(1, period + 1).repeat(interactions)
        padding[row, :end] = False
    if kind == "padded on the left":
        shifts = padding.sum(1).tolist()
        return tuple(
            torch.stack([row.roll(n) for row, n in zip(rows, shifts, strict=True)]) for rows in (slots, padding)
        )
    if kind == "packed":
        # As wide as a row of four interactions, so that only its content tells it from one.
        return tuple(torch.cat([rows[:, :5], rows[:, :12]], dim=1) for rows in (slots, padding))
    if kind == "one column":
        return slots[:, 3:4], padding[:, 3:4]
    if kind == "a part":
        return slots[:, :8], padding[:, :8]
    return slots, padding


@pytest.mark.parametrize("dtypes", [[torch.float32] * 2, [torch.float64] * 2, [torch.float32, torch.float64]])
@pytest.mark.parametrize("kind", ["whole", "padded on the right", "bos and user", "none in front"])
def test_rows_of_interactions_are_recognised(kind, dtypes):
    slots, padding = rows_of(kind)
    special = slots.shape[1] - 12
    routing = Routing.from_slots(slots, torch.zeros_like(slots), 5, padding)
    assert routing.grid == (special, 3)
    assert torch.equal(routing.slots()[~padding], slots[~padding])
    # Strided copies give the order that an index gives.
    one, two = torch.randn(*slots.shape, 2), torch.randn(*slots.shape, 3)
    blocks = Blocks.of_columns([one, two], routing, dtypes)
    order = routing.slots().flatten().argsort(stable=True)
    expected = torch.cat([one, two], dim=-1).view(-1, 5)[order]
    assert [block.dtype for block in blocks.of_runs] == dtypes
    assert torch.equal(torch.cat([block.flatten(0, 1).float() for block in blocks.of_runs]), expected)
    for back, part in zip(
        blocks.to_columns(routing, [(2, torch.float32), (3, torch.float32)]), (one, two), strict=True
    ):
        assert torch.equal(back, part)


@pytest.mark.parametrize("kind", ["padded on the left", "packed", "one column", "a part"])
def test_other_rows_keep_every_slot(kind):
    slots, padding = rows_of(kind)
    routing = Routing.from_slots(slots, torch.zeros_like(slots), 5, padding)
    assert routing.grid is None
    assert torch.equal(routing.slots(), slots)
    # Counted into order: what a stable sort gives.
    assert torch.equal(routing.order, slots.flatten().argsort(stable=True))
    assert torch.equal(routing.order[routing.restore], torch.arange(slots.numel()))


@pytest.mark.parametrize("kind", ["whole", "padded on the right", "bos and user", "none in front"])
@pytest.mark.parametrize("gated", [True, False])
def test_announced_rows_take_one_batched_product_on_every_device(kind, gated, monkeypatch):
    """As on a GPU, where nothing looks at the data: the same results and gradients as one expert at a time."""
    monkeypatch.setattr(slot_order, "fuses_by_hand", lambda _: False)
    monkeypatch.setattr(routed_feed_forward, "fuses_by_hand", lambda _: False)
    monkeypatch.setattr(routed_feed_forward, "grouped_matmul", lambda *_: pytest.fail("no batched product"))
    torch.manual_seed(0)
    module = (RoutedGatedFeedForward if gated else RoutedFeedForward)(8, 16, 5, 3, 4, nn.SiLU(), dropout=0.0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    slots, padding = rows_of(kind)
    behaviors = torch.randint(0, 4, slots.shape)
    states = torch.randn(*slots.shape, 8, requires_grad=True)
    routing = Routing.from_slots(slots, behaviors, 5, padding, num_special=slots.shape[1] - 12)
    assert routing.order is None and torch.equal(routing.slots()[~padding], slots[~padding])
    seed = torch.randn(*slots.shape, 8).masked_fill(padding[..., None], 0.0)
    parameters = [states, *module.parameters()]
    mine = module(states, routing)
    found = torch.autograd.grad(mine, parameters, seed)
    plain = one_expert_at_a_time(module, states, slots, behaviors)
    torch.testing.assert_close(mine[~padding], plain[~padding], atol=1e-5, rtol=1e-5)
    for one, two in zip(found, torch.autograd.grad(plain, parameters, seed), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_rows_that_are_not_what_was_announced_are_refused():
    slots, padding = rows_of("padded on the right")
    with pytest.raises(ValueError, match="`whole_rows`: expected rows of 0 special tokens and interactions of 4"):
        Routing.from_slots(slots, slots, 5, padding, num_special=0)
    left, hidden = rows_of("padded on the left")
    with pytest.raises(ValueError, match="padded on the right, found 13 tokens in another order"):
        Routing.from_slots(left, left, 5, hidden, num_special=1)
    # A first row without any interaction hides what the others have.
    first = slots[0].clone()
    slots[0, 1:], padding[0, 1:] = 0, True
    assert Routing.from_slots(slots, slots, 5, padding, num_special=1).grid == (1, 3)
    assert Routing.from_slots(first[None, :1], first[None, :1], 5, num_special=1).grid is None


@pytest.mark.parametrize("kind", ["whole", "ragged"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_products_in_bfloat16_stay_close(kind, gated, weights):
    """Enough tokens for products in a narrow type: under autocast, and with weights of that type."""
    torch.manual_seed(0)
    module = (RoutedGatedFeedForward if gated else RoutedFeedForward)(32, 48, 5, 3, 8, nn.SiLU(), dropout=0.0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    slots = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, 5).repeat(12)]).repeat(16, 1)
    if kind == "ragged":
        slots = slots[:, torch.randperm(slots.shape[1])]
    behaviors, states = torch.randint(0, 4, slots.shape), torch.randn(*slots.shape, 32)
    seed = torch.randn_like(states)
    expected = one_expert_at_a_time(module, states.requires_grad_(), slots, behaviors)
    expected = [expected, *torch.autograd.grad(expected, [states, *module.parameters()], seed)]
    module.to(weights)
    states = states.detach().to(weights).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        mine = module(states, Routing.from_slots(slots, behaviors, 5))
    found = [mine, *torch.autograd.grad(mine, [states, *module.parameters()], seed.to(mine.dtype))]
    for number, (one, two) in enumerate(zip(found, expected, strict=True)):
        # The behavior embedding sums over hundreds of tokens in its own type.
        bound = 2e-2 if weights == torch.bfloat16 and number == 2 else 1e-2
        assert (one.float() - two).norm() <= bound * two.norm(), number


@pytest.mark.parametrize("kind", ["whole", "packed"])
def test_frozen_weights_get_no_gradient_and_others_the_same(kind):
    slots, padding = rows_of(kind)
    routing = Routing.from_slots(slots, slots.clamp(max=3), 5, padding)
    module = RoutedGatedFeedForward(8, 16, 5, 3, 0, nn.SiLU(), dropout=0.0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    states = torch.randn(*slots.shape, 8, requires_grad=True)
    whole = torch.autograd.grad(module(states, routing).sum(), [states, *module.parameters()])
    for frozen in range(2):
        module.requires_grad_(True)
        parameters = list(module.parameters())
        parameters[frozen].requires_grad_(False)
        found = torch.autograd.grad(module(states, routing).sum(), [states, parameters[1 - frozen]])
        assert torch.equal(found[0], whole[0]) and torch.equal(found[1], whole[2 - frozen])


def test_no_rows_are_fine():
    module, none = layer(), torch.zeros(0, 9, dtype=torch.long)
    output = module(torch.zeros(0, 9, 8, requires_grad=True), Routing.from_slots(none, none, 5))
    assert output.shape == (0, 9, 8)
    output.sum().backward()


def test_tokens_inside_a_row_and_unknown_padding_keep_their_slot():
    slots, padding = rows_of("padded on the right")
    assert Routing.from_slots(slots, slots, 5).grid is None
    padding[0, 4], slots[0, 4] = True, 0
    assert Routing.from_slots(slots, slots, 5, padding).grid is None


def one_expert_at_a_time(module: RoutedFeedForward, states, slots, behaviors) -> torch.Tensor:
    """Every token with the weights of its own slot."""
    inputs = torch.cat([states, module.behavior_embedding(behaviors)], dim=-1)
    first, last = (layer.weight[slots] for layer in module._maps())
    before = torch.einsum("blod,bld->blo", first, inputs)
    if isinstance(module, RoutedGatedFeedForward):
        gate, up = before.chunk(2, dim=-1)
        inner = module.activation(gate) * up
    else:
        inner = module.activation(before)
    return torch.einsum("blod,bld->blo", last, inner)


KINDS = ["whole", "padded on the right", "bos and user", "none in front", "padded on the left", "packed"]


@pytest.mark.parametrize("kind", [*KINDS, "one column", "a part"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_every_kind_of_row_has_the_gradients_of_one_expert_at_a_time(kind, gated, autocast):
    torch.manual_seed(0)
    shape = RoutedGatedFeedForward if gated else RoutedFeedForward
    # At the kink of ReLU rounding to bfloat16 turns a gradient on or off.
    activation = SiLUActivation() if gated or autocast else nn.ReLU()
    module = shape(8, 16, 5, 3, 4, activation, dropout=0.0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    slots, padding = rows_of(kind)
    behaviors = torch.randint(0, 4, slots.shape)
    one = torch.randn(*slots.shape, 8, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    seed = torch.randn(*slots.shape, 8).masked_fill(padding[..., None], 0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine = module(one, Routing.from_slots(slots, behaviors, 5, padding))
    (mine * seed).sum().backward()
    gradients = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    plain = one_expert_at_a_time(module, two, slots, behaviors)
    (plain * seed).sum().backward()

    def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
        return (found - expected).norm() <= (1e-2 if autocast else 1e-5) * expected.norm()

    assert close(mine[~padding], plain[~padding]) and close(one.grad, two.grad)
    for gradient, parameter in zip(gradients, module.parameters(), strict=True):
        assert close(gradient, parameter.grad)


def test_dropout_of_inner_states_is_the_same_forward_and_backward():
    """The gradient along a direction, under a fixed seed, against a difference quotient."""
    module = RoutedGatedFeedForward(8, 16, 5, 3, 0, SiLUActivation(), dropout=0.3).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    slots, padding = rows_of("padded on the right")
    routing = Routing.from_slots(slots, slots, 5, padding)
    states = torch.randn(*slots.shape, 8, dtype=torch.float64)

    def run(*inputs):
        torch.manual_seed(3)
        return module(inputs[0], routing)

    assert torch.autograd.gradcheck(run, (states.requires_grad_(), *module.parameters()))
    assert not torch.allclose(run(states), module.eval()(states, routing))
