import pytest
import torch
import torch.nn.functional as F
from model_fixtures import tiny_gamer, tiny_model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from mbgen_hf.models.by_hand import kept_scale
from mbgen_hf.models.fused_operations import (
    Dropout,
    FusedQwen3RMSNorm,
    attend,
    dropout,
    joint_linear,
    norm_and_rotate,
    reorder,
    rms_norm,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_norm_has_the_derivatives_of_the_formula():
    states = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    expected = states / (states.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm(states, weight, 1e-6), expected)
    assert torch.autograd.gradcheck(lambda *tensors: rms_norm(*tensors, 1e-3), (states, weight))


def test_norm_of_bfloat16_is_taken_in_float32():
    stock = Qwen3RMSNorm(16).to(torch.bfloat16)
    ours = FusedQwen3RMSNorm(16).to(torch.bfloat16)
    states = torch.randn(4, 16, dtype=torch.bfloat16)
    assert ours(states).dtype == stock(states).dtype == torch.bfloat16
    torch.testing.assert_close(ours(states), stock(states))


@pytest.mark.parametrize("batch", [1, 3])
def test_norm_and_rotate_is_norm_then_rotary_embedding(batch):
    norm, stock = FusedQwen3RMSNorm(8).double(), Qwen3RMSNorm(8).double()
    norm.weight.data.normal_()
    stock.load_state_dict(norm.state_dict())
    states = torch.randn(3, 5, 2, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(batch, 5, 4, dtype=torch.float64).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    expected = apply_rotary_pos_emb(stock(states), stock(states), cos, sin, unsqueeze_dim=2)[0]
    # The stock norm is taken in float32 even here.
    torch.testing.assert_close(norm_and_rotate(states, norm, cos, sin), expected, atol=1e-6, rtol=1e-6)

    def run(states, weight):
        norm.weight = torch.nn.Parameter(weight) if not isinstance(weight, torch.nn.Parameter) else weight
        return norm_and_rotate(states, norm, cos, sin)

    assert torch.autograd.gradcheck(run, (states, norm.weight))


def test_reordering_has_the_gradient_of_indexing():
    rows = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(6)
    assert torch.equal(reorder(rows, order, order.argsort()), rows[order])
    assert torch.autograd.gradcheck(lambda rows: reorder(rows, order, order.argsort()), (rows,))


def test_dropout_drops_the_share_asked_for_and_keeps_the_mean():
    states = torch.ones(400, 501, requires_grad=True)
    dropped = dropout(states, 0.3, training=True)
    share = (dropped == 0).float()
    assert abs(share.mean() - 0.3) < 0.005 and abs(dropped.mean() - 1) < 0.005
    assert abs(share.mean(0) - 0.3).max() < 0.15 and abs(share.mean(1) - 0.3).max() < 0.15
    # Neighbours, which share one random number, are independent.
    assert abs((share[:, :-1] * share[:, 1:]).mean() - 0.09) < 0.005
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped.detach())
    torch.manual_seed(3)
    one = dropout(states, 0.3, training=True)
    torch.manual_seed(3)
    assert torch.equal(one, dropout(states, 0.3, training=True))
    assert dropout(states, 0.3, training=False) is states and dropout(states, 0.0, training=True) is states
    assert Dropout(0.3).eval()(states) is states and (Dropout(0.3)(states) == 0).any()


@pytest.mark.parametrize("keys", [7, 130, 530])
@pytest.mark.parametrize("kind", ["boolean", "bias", "gradient", "none"])
def test_attention_is_softmax_of_scores_times_values(keys, kind):
    queries, bias = torch.randn(2, 4, 5, 8, requires_grad=True), None
    pairs = [torch.randn(2, 2, keys, 8, requires_grad=True) for _ in range(2)]
    visible = torch.rand(2, 1, 5, keys) < 0.7
    visible[..., 0] = True
    if kind == "boolean":
        bias = visible
    elif kind != "none":
        bias = torch.randn(2, 4, 5, keys).masked_fill(~visible, -1e30)
    if kind == "gradient":
        bias.requires_grad_()
    output = attend(queries, *pairs, bias, scaling=0.4)
    repeated = [tensor.repeat_interleave(2, dim=1) for tensor in pairs]
    scores = queries @ repeated[0].transpose(2, 3) * 0.4
    if kind == "boolean":
        scores = scores.masked_fill(~visible, -torch.inf)
    elif bias is not None:
        scores = scores + bias
    expected = (scores.softmax(-1) @ repeated[1]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    inputs = [queries, *pairs, *([bias] if kind == "gradient" else [])]
    seed = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(output, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length, total", [(150, 150), (101, 130), (5, 5), (1, 70)])
@pytest.mark.parametrize("kind", ["boolean", "bias", "gradient"])
def test_causal_attention_by_blocks_skips_hidden_keys_only(length, total, kind):
    """With dropout of next to nothing, so that rows longer than those of plain attention go by hand as well."""
    queries = torch.randn(2, 4, length, 8, requires_grad=True)
    pairs = [torch.randn(2, 2, total, 8, requires_grad=True) for _ in range(2)]
    visible = torch.arange(total) <= torch.arange(total - length, total)[:, None]
    hidden = torch.rand(2, 1, 1, total) < 0.3
    visible = visible & (~hidden | torch.eye(total, dtype=torch.bool)[total - length :])
    bias = visible if kind == "boolean" else torch.randn(2, 4, length, total).masked_fill(~visible, -1e30)
    bias.requires_grad_(kind == "gradient")
    output = attend(queries, *pairs, bias, 0.4, probability=1e-9, causal=True)
    scores = queries @ pairs[0].repeat_interleave(2, dim=1).transpose(2, 3) * 0.4
    scores = scores.masked_fill(~visible, -torch.inf) if kind == "boolean" else scores + bias
    expected = (scores.softmax(-1) @ pairs[1].repeat_interleave(2, dim=1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    inputs, seed = [queries, *pairs, *([bias] if kind == "gradient" else [])], torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(output, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_attention_weights_are_dropped():
    queries, keys, values = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4000, 4), torch.ones(1, 1, 4000, 4)
    output = attend(queries, keys, values, None, 1.0, probability=0.5)
    assert 0.8 < output[0, 0, 0] < 1.2 and output[0, 0, 0] != 1


def test_joint_linear_is_one_product_of_plain_layers_and_leaves_others_alone():
    class Adapted(torch.nn.Linear):
        def forward(self, states):
            return super().forward(states) + 1

    states = torch.randn(2, 3, 8)
    one, two = torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(8, 6, bias=False)
    for mine, layer in zip(joint_linear(states, one, two), (one, two), strict=True):
        torch.testing.assert_close(mine, layer(states))
    adapted = Adapted(8, 4, bias=False)
    torch.testing.assert_close(joint_linear(states, one, adapted)[1], F.linear(states, adapted.weight) + 1)


@pytest.mark.parametrize("make", [tiny_model, tiny_gamer], ids=["mbgen", "gamer"])
def test_reentrant_checkpoints_drop_the_same_again(make):
    """The gradient along a direction, under a fixed seed, against a difference quotient."""
    dropout = {"dropout_rate": 0.2} if make is tiny_model else {"hidden_dropout": 0.2, "attention_dropout": 0.2}
    model = make(**dropout).double().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    ids = torch.tensor([[1, 4, 8, 12, 16, 5, 9, 13, 17]]) if make is tiny_gamer else torch.tensor([[4, 8, 12, 16, 2]])
    labels = ids if make is tiny_gamer else torch.tensor([[5, 8, 12, 16, 2]])
    parameter = model.get_input_embeddings().weight
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(step: float) -> torch.Tensor:
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
        torch.manual_seed(3)
        value = model(input_ids=ids, labels=labels).loss
        with torch.no_grad():
            parameter.add_(direction, alpha=-step)
        return value

    torch.manual_seed(3)
    model(input_ids=ids, labels=labels).loss.backward()
    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close((parameter.grad * direction).sum(), numeric, atol=1e-5, rtol=1e-4)


def test_reentrant_checkpoints_drop_the_same_in_the_experts():
    """Many rows in bfloat16, where the products of special tokens run by themselves."""
    ids = torch.tensor([[1, 4, 8, 12, 16, 5, 9, 13, 17], [1, 5, 9, 11, 16, 5, 8, 13, 17]]).repeat(200, 1)
    gradients = []
    for reentrant in (False, True):
        model = tiny_gamer(expert_dropout=0.5, hidden_dropout=0.0, attention_dropout=0.0).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None]))
    # Other masks give 0.6; without dropout rounding gives 0.045.
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


def test_everything_can_be_dropped():
    assert kept_scale((3, 5), 1.0, torch.float32).abs().max() == 0
    assert kept_scale((300, 500), 1.0, torch.bfloat16).abs().max() == 0


@pytest.mark.parametrize("make", [tiny_model, tiny_gamer], ids=["mbgen", "gamer"])
def test_hooks_of_linear_layers_run(make):
    """Offloading, pruning and the like live in hooks: weights must not be read past them."""
    model = make().train()
    ids = torch.tensor([[1, 4, 8, 12, 16]]) if make is tiny_gamer else torch.tensor([[4, 8, 12, 16, 2]])
    named = dict(model.named_modules())
    linear = [name for name in named if name.endswith((".q", ".q_proj", ".gate_up_proj", ".down_proj", ".wi", ".wo"))]
    calls = dict.fromkeys(linear, 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    plain = model(input_ids=ids, labels=ids).loss
    for register in ("register_forward_pre_hook", "register_full_backward_hook"):
        calls.update(dict.fromkeys(linear, 0))
        handles = [getattr(named[name], register)(count(name)) for name in linear]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.testing.assert_close(loss, plain)
        assert linear and all(calls.values()), register
        for handle in handles:
            handle.remove()


def test_half_precision_generates():
    for make in (tiny_model, tiny_gamer):
        output = make().half().generate(behavior="buy", num_beams=4, return_dict_in_generate=True)
        assert torch.isfinite(output.sequences_scores).all()


def test_attentions_are_refused_where_there_are_none_to_give():
    with pytest.raises(ValueError, match="expected `attn_implementation='eager'` beside it, found 'sdpa'"):
        tiny_model()(input_ids=torch.tensor([[4, 8, 12, 16, 2]]), labels=torch.tensor([[2]]), output_attentions=True)
