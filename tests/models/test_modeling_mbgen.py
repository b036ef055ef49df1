import pytest
import torch
from golden_mbgen import load_golden, our_config, to_our_ids, to_our_weights

from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration


def golden_model(path, dtype):
    golden, tensors = load_golden(path)
    config = our_config(golden)
    model = MBGenForConditionalGeneration(config).to(dtype).eval()
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    missing, unexpected = model.load_state_dict(to_our_weights(weights, golden, config.vocab_size), strict=False)
    assert missing == ["item_codes"] and not unexpected
    return golden, tensors, model


@pytest.mark.parametrize("name", ["mbgen_a", "mbgen_b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_logits_and_encoder_states(golden_dir, name, dtype):
    golden, tensors, model = golden_model(golden_dir / f"{name}.safetensors", dtype)
    with torch.no_grad():
        output = model(
            input_ids=to_our_ids(tensors["input_ids"], golden),
            attention_mask=tensors["attention_mask"],
            labels=to_our_ids(tensors["labels"], golden),
        )
    visible = tensors["attention_mask"].bool()
    torch.testing.assert_close(
        output.encoder_last_hidden_state[visible].float(),
        tensors["encoder_last_hidden_state"][visible],
        atol=2e-5,
        rtol=1e-5,
    )
    # Golden ids 1.. (behaviors, codes, users) are ours 4.., EOS is the last one there and 2 here, PAD = BOS is 0.
    ours = torch.cat([output.logits[..., :1], output.logits[..., 4:], output.logits[..., 2:3]], dim=-1).float()
    torch.testing.assert_close(ours, tensors["logits"], atol=2e-5, rtol=1e-5)
    labels = tensors["labels"]
    loss = torch.nn.functional.cross_entropy(ours.view(-1, ours.shape[-1]), labels.view(-1))
    torch.testing.assert_close(loss, tensors["loss"][0], atol=1e-5, rtol=1e-5)
