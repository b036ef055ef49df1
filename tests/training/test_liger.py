"""The switch for Liger's loss; its kernel itself runs where the package is, on a GPU or in Triton's interpreter."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.token_loss import token_loss
from mbgen_hf.models.token_space import EOS
from mbgen_hf.training import liger
from mbgen_hf.training.train import train_model


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter has to be chosen before anything imports Triton.
RUNS = is_liger_kernel_available() and (DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1")
with_liger = pytest.mark.skipif(not RUNS, reason="needs the package liger-kernel, and a GPU or TRITON_INTERPRET=1")
CODES = (40, 50)


def model_and_batch(kind: str, seed: int = 0, **changes):
    """A tiny model in training mode, and a batch for it with labels."""
    torch.manual_seed(seed)
    behaviors = ["click", "cart", "buy"]
    if kind == "gamer":
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "behavior_embedding_dim": 8, "loss_temperature": 0.7}
        model = GamerForCausalLM(GamerConfig(behaviors=behaviors, code_sizes=CODES, **sizes | changes))
    else:
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 2}
        sizes |= {"num_user_tokens": 0, "behavior_embedding_dim": 8}
        model = MBGenForConditionalGeneration(MBGenConfig(behaviors=behaviors, code_sizes=CODES, **sizes | changes))
    space = model.config.token_space
    ranges = [space.slot_range(slot) for slot in (1, 2, 3)]
    ids = torch.stack([torch.randint(first, first + count, (5, 6)) for first, count in ranges], dim=2).flatten(1)
    ids[1:3, 9:] = 0
    if kind == "gamer":
        batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}
    else:
        batch = {"input_ids": ids, "labels": torch.cat([ids[:, :3], torch.full((5, 1), EOS)], dim=1)}
    batch["num_items_in_batch"] = torch.tensor(41)
    return model.to(DEVICE).train(), {name: values.to(DEVICE) for name, values in batch.items()}


def loss_and_gradients(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return {
        "loss": loss.detach(),
        **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    }


def arguments(tmp_path, **options) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), report_to="none", **{"use_cpu": True, **options})


def summed(states, weight, labels):
    return F.cross_entropy((states @ weight.t()).float(), labels, reduction="sum")


@pytest.mark.parametrize("kind", ["gamer", "mbgen"])
def test_a_kernel_gets_what_has_a_label_and_gives_the_loss(kind):
    model, batch = model_and_batch(kind)
    expected = loss_and_gradients(model, batch)
    calls = []

    def kernel(states, weight, labels):
        calls.append(len(labels))
        assert states.shape == (len(labels), 32) and weight.shape == (model.config.vocab_size, 32)
        return summed(states, weight, labels)

    model.loss_kernel = kernel
    found = loss_and_gradients(model, batch)
    counted = batch["labels"][:, 1:] if kind == "gamer" else batch["labels"]
    assert calls == [int((counted != -100).sum())]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_a_kernel_is_for_the_whole_vocabulary():
    model, batch = model_and_batch("gamer", loss_over="slot", loss_temperature=1.0)
    model.loss_kernel = summed
    with pytest.raises(
        ValueError, match="`loss_over`: expected 'vocabulary' with a kernel for the loss, found 'slot'"
    ):
        model(**batch)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {}, "expected a GPU, which Triton's kernels run on, found the device 'cpu'"),
        ({"copy_from_history": True}, {}, "expected a model without a copying head"),
        ({"loss_over": "slot"}, {}, "expected the loss over the 'vocabulary' beside it, found `loss_over` 'slot'"),
        ({}, {"torch_compile": True}, "expected `torch_compile` false beside it, found true"),
        ({}, {"liger_kernel_config": {"rope": True}}, "'fused_linear_cross_entropy' alone in its config, found"),
    ],
)
@pytest.mark.parametrize("kind", ["gamer", "mbgen"])
def test_what_the_kernel_can_not_do_is_refused(monkeypatch, tmp_path, kind, changes, options, message):
    monkeypatch.setattr(liger, "is_liger_kernel_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "0" if not changes and not options else "1")
    model, _ = model_and_batch(kind, **changes)
    with pytest.raises(ValueError, match=f"`training.use_liger_kernel`: .*{message}"):
        liger.apply_liger_kernel(model, arguments(tmp_path, **options))
    assert model.loss_kernel is None


def test_without_the_package_a_run_is_refused_before_it_begins(monkeypatch, tmp_path, shop_table, tiny_settings):
    monkeypatch.setattr(liger, "is_liger_kernel_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"expected the package liger-kernel, found none; run `pip install mbgen-hf\["
    ):
        train_model(shop_table, tiny_settings(training__use_liger_kernel=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@with_liger
@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_has_the_loss_and_gradients_of_chunked_logits(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 90, (3,), generator=generator).tolist()
    states = torch.randn(*sizes[:2], 16, generator=generator).to(DEVICE).requires_grad_()
    weight = torch.randn(sizes[2] + 7, 16, generator=generator).to(DEVICE).requires_grad_()
    labels = torch.randint(0, sizes[2], sizes[:2], generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.6] = -100
    labels[0, 0] = 1
    options = {"labels": labels.to(DEVICE), "temperature": 0.7, "num_labels": 13}
    expected = token_loss(states, weight, **options)
    found = token_loss(states, weight, **options, kernel=liger.summed_cross_entropy)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    pairs = zip(
        torch.autograd.grad(2 * found, (states, weight)),
        torch.autograd.grad(2 * expected, (states, weight)),
        strict=True,
    )
    for mine, ours in pairs:
        torch.testing.assert_close(mine, ours, atol=1e-5, rtol=1e-5)
    nothing = token_loss(states, weight, torch.full_like(options["labels"], -100), 1, liger.summed_cross_entropy)
    assert nothing == 0 and not torch.autograd.grad(nothing, states)[0].any()


@with_liger
@pytest.mark.parametrize("kind", ["gamer", "mbgen"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_models_train_the_same_with_the_kernel(tmp_path, kind, precision):
    model, batch = model_and_batch(kind)
    with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
        expected = loss_and_gradients(model, batch)
        liger.apply_liger_kernel(model, arguments(tmp_path, use_cpu=DEVICE == "cpu"))
        assert model.loss_kernel is liger.summed_cross_entropy
        found = loss_and_gradients(model, batch)
    assert found.keys() == expected.keys() and found["loss"].dtype == torch.float32
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if precision == torch.float32 else {"atol": 3e-3, "rtol": 1e-2}
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, **tolerance, msg=lambda text, n=name: f"{n}: {text}")
    with torch.no_grad():
        assert torch.isfinite(model.eval()(**batch, skip_logits=True).loss)


@with_liger
def test_a_run_with_the_switch_has_the_losses_of_one_without(tmp_path, shop_table, tiny_settings):
    curves = []
    for switch in (False, True):
        settings = tiny_settings(training__use_liger_kernel=switch, training__use_cpu=DEVICE == "cpu")
        trained = train_model(shop_table, settings, tmp_path / str(switch))
        assert (trained.model.loss_kernel is not None) == switch
        curves.append([entry[name] for entry in trained.history for name in ("loss", "eval_loss") if name in entry])
    assert len(curves[0]) > 10
    np.testing.assert_allclose(*curves, rtol=1e-4)
