import pytest
import torch
import torch.nn.functional as F

from mbgen_hf.models import token_loss as module
from mbgen_hf.models.token_loss import label_log_probs, token_loss
from mbgen_hf.models.token_space import BEHAVIOR_SLOT, TokenSpace


SPACE = TokenSpace(("click", "buy"), (5, 7), num_user_tokens=3)


def case(seed: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(3, 11, 8, generator=generator, dtype=dtype)
    weight = torch.randn(SPACE.vocab_size, 8, generator=generator, dtype=dtype)
    labels = torch.randint(SPACE.behavior_offset, SPACE.user_offset, (3, 11), generator=generator)
    labels[torch.rand(3, 11, generator=generator) < 0.3] = -100
    return states.requires_grad_(), weight.requires_grad_(), labels


def gradients(value, *tensors):
    return torch.autograd.grad(value, tensors)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_loss_and_gradients_are_those_of_all_logits(monkeypatch, seed, chunk):
    monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 1)
    states, weight, labels = case(seed)
    logits = states @ weight.t() / 0.7
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = token_loss(states, weight, labels, temperature=0.7)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    pairs = zip(gradients(loss, states, weight), gradients(expected, states, weight), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=1e-12)


def test_log_probs_can_be_weighted_label_by_label():
    states, weight, labels = case(5)
    factors = torch.randn(3, 11, dtype=torch.float64)
    log_probs = label_log_probs(states, weight, labels)
    every = (states @ weight.t()).log_softmax(-1)
    expected = torch.where(labels >= 0, every.gather(2, labels.clamp(min=0)[..., None])[..., 0], 0.0)
    torch.testing.assert_close(log_probs, expected)
    assert (log_probs[labels < 0] == 0).all() and (log_probs[labels >= 0] < 0).all()
    pairs = zip(
        gradients((log_probs * factors).sum(), states, weight),
        gradients((expected * factors).sum(), states, weight),
        strict=True,
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


def test_over_the_slot_probabilities_sum_to_one_over_what_the_slot_holds():
    states, weight, labels = case(6)
    mine = label_log_probs(states, weight, labels, loss_over="slot", space=SPACE)
    logits, slots = states @ weight.t(), SPACE.slots(torch.arange(SPACE.vocab_size))
    inside = slots == SPACE.slots(labels)[..., None]
    every = logits.masked_fill(~inside, -torch.inf).log_softmax(-1)
    expected = torch.where(labels >= 0, every.gather(2, labels.clamp(min=0)[..., None])[..., 0], 0.0)
    torch.testing.assert_close(mine, expected)
    for mine_grad, expected_grad in zip(
        gradients(mine.sum(), states, weight), gradients(expected[labels >= 0].sum(), states, weight), strict=True
    ):
        torch.testing.assert_close(mine_grad, expected_grad)
    special = torch.full_like(labels, 2)
    assert not label_log_probs(states, weight, special, loss_over="slot", space=SPACE).any()
    assert SPACE.slot_range(BEHAVIOR_SLOT) == (SPACE.behavior_offset, 2)


@pytest.mark.parametrize("loss_over", ["vocabulary", "slot"])
def test_compiled_it_is_the_same(loss_over):
    states, weight, labels = case(7, torch.float32)

    def run(states, weight):
        return token_loss(states, weight, labels, loss_over=loss_over, space=SPACE)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, traced = run(states, weight), compiled(states, weight)
    torch.testing.assert_close(traced, expected)
    for mine, theirs in zip(gradients(traced, states, weight), gradients(expected, states, weight), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_under_autocast_the_product_is_bfloat16_and_the_probabilities_float32():
    states, weight, labels = case(8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = label_log_probs(states, weight, labels)
    assert log_probs.dtype == torch.float32
    exact = label_log_probs(states, weight, labels)
    assert not torch.equal(log_probs, exact)
    torch.testing.assert_close(log_probs, exact, atol=0.1, rtol=0.02)
    grads = gradients(log_probs.sum(), states, weight)
    for mine, theirs in zip(grads, gradients(exact.sum(), states, weight), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.1, rtol=0.05)


def test_labels_are_counted_or_the_count_is_given():
    states, weight, labels = case(9)
    total = -label_log_probs(states, weight, labels).sum()
    torch.testing.assert_close(token_loss(states, weight, labels), total / (labels >= 0).sum())
    torch.testing.assert_close(token_loss(states, weight, labels, 5), total / 5)


def test_bad_arguments_are_refused():
    states, weight, labels = case(0)
    with pytest.raises(ValueError, match="expected 'vocabulary' or 'slot', found 'items'"):
        label_log_probs(states, weight, labels, loss_over="items")
    with pytest.raises(ValueError, match="expected the layout of ids"):
        label_log_probs(states, weight, labels, loss_over="slot")
