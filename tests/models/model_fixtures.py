"""Tiny models, tokenizers and histories for the tests of the hub room."""

import torch

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


NUM_ITEMS = 30


def tiny_config(**changes) -> MBGenConfig:
    # The large initial weights make the network far from linear, so that differences can not hide below tolerances.
    values = {
        "behaviors": ["click", "cart", "buy"],
        "code_sizes": [3, 4, 5],
        "num_user_tokens": 7,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "behavior_embedding_dim": 8,
        "initializer_factor": 1.5,
        "routed_encoder_layers": [1],
    }
    return MBGenConfig(**{**values, **changes})


def random_codes(code_sizes, num_items: int = NUM_ITEMS, seed: int = 0) -> torch.Tensor:
    every = torch.cartesian_prod(*map(torch.arange, code_sizes)).view(-1, len(code_sizes))
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:num_items]]


def tiny_model(**changes) -> MBGenForConditionalGeneration:
    torch.manual_seed(1)
    model = MBGenForConditionalGeneration(tiny_config(**changes)).eval()
    model.set_catalog(random_codes(model.config.code_sizes))
    return model


def tokenizer_of(model, item_ids=None) -> InteractionTokenizer:
    config = model.config
    return InteractionTokenizer(
        behaviors=config.behaviors,
        code_sizes=config.code_sizes,
        num_user_tokens=config.num_user_tokens,
        item_codes=model.item_codes.numpy(),
        item_ids=[f"item-{i:02d}" for i in range(config.num_items)] if item_ids is None else item_ids,
    )


HISTORIES = [
    [("click", "item-03"), ("cart", "item-07"), ("buy", "item-07"), ("click", "item-11")],
    [("buy", "item-29")],
    [("cart", "item-00"), ("click", "item-01")],
]


def tiny_gamer_config(**changes) -> GamerConfig:
    values = {
        "behaviors": ["click", "cart", "fav", "buy"],
        "behavior_levels": [0, 1, 1, 2],
        "code_sizes": [3, 4, 5],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "behavior_embedding_dim": 8,
        "initializer_range": 0.4,
    }
    return GamerConfig(**{**values, **changes})


def tiny_gamer(attention: str = "sdpa", **changes) -> GamerForCausalLM:
    torch.manual_seed(1)
    config = tiny_gamer_config(**changes)
    config._attn_implementation = attention
    model = GamerForCausalLM(config).eval()
    model.set_catalog(random_codes(model.config.code_sizes))
    return model


def gamer_tokenizer(model, item_ids=None) -> InteractionTokenizer:
    config = model.config
    return InteractionTokenizer(
        behaviors=config.behaviors,
        code_sizes=config.code_sizes,
        history_prefix="<bos>" if config.add_bos_token else None,
        history_suffix=None,
        item_codes=model.item_codes.numpy(),
        item_ids=[f"item-{i:02d}" for i in range(config.num_items)] if item_ids is None else item_ids,
    )
