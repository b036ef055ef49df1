"""Reads golden files into our layout: ids, weights, and how the vocabularies map."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.token_space import BOS, EOS, PAD


def load_golden(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in file.keys()}


def our_config(golden: dict) -> MBGenConfig:
    return MBGenConfig(
        behaviors=[f"b{i}" for i in range(golden["num_behaviors"])],
        code_sizes=[golden["codebook_size"]] * golden["code_levels"],
        num_user_tokens=golden["num_user_tokens"],
        routed_encoder_layers=golden["sparse_layers_encoder"],
        routed_decoder_layers=golden["sparse_layers_decoder"],
        injection_encoder_layers=golden["behavior_injection_encoder"],
        injection_decoder_layers=golden["behavior_injection_decoder"],
        inject_behavior_tokens=golden["semantics"] != "paper",
        **{
            name: golden[name]
            for name in (
                "d_model d_ff num_heads d_kv num_layers num_decoder_layers behavior_embedding_dim "
                "relative_attention_num_buckets relative_attention_max_distance layer_norm_epsilon"
            ).split()
        },
    )


def golden_id_of_ours(golden: dict, vocab_size: int) -> torch.Tensor:
    """For each of our ids the golden id whose embedding it takes; MASK, which the golden file lacks, takes PAD's."""
    ids = torch.zeros(vocab_size, dtype=torch.long)
    ids[EOS] = golden["eos_token_id"]
    ids[PAD] = ids[BOS] = golden["pad_token_id"]
    # Behaviors, code levels and user tokens follow each other in both layouts: from golden id 1, from ours 4.
    shared = vocab_size - 4
    ids[4:] = torch.arange(1, 1 + shared)
    return ids


def to_our_ids(ids: torch.Tensor, golden: dict) -> torch.Tensor:
    ours = ids + 3
    ours[ids == golden["pad_token_id"]] = PAD
    ours[ids == golden["eos_token_id"]] = EOS
    return ours


def to_our_weights(weights: dict[str, torch.Tensor], golden: dict, vocab_size: int) -> dict[str, torch.Tensor]:
    rows = golden_id_of_ours(golden, vocab_size)
    levels = golden["code_levels"]
    ours: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight")):
            ours[name] = value[rows]
        elif ".experts.expert_0.wi." in name or ".experts.expert_0.wo." in name:
            stem, matrix = name.split(".experts.expert_0.")
            if name.startswith("encoder"):
                order = range(levels + 2)
            else:
                # Decoder experts go by position there: BOS 1, behavior 2, level j at 3 + j, the last level 0.
                order = [1, 2, *range(3, 2 + levels), 0]
            ours[f"{stem}.{matrix}"] = torch.stack([weights[f"{stem}.experts.expert_{e}.{matrix}"] for e in order])
        elif ".mlp.mlp." in name:
            ours[name.replace(".mlp.mlp.", ".mlp.")] = value
        elif ".experts." not in name:
            ours[name] = value
    return ours


def our_gamer_config(golden: dict, **changes) -> GamerConfig:
    return GamerConfig(
        behaviors=[f"b{i}" for i in range(golden["num_behaviors"])],
        behavior_levels=golden["behavior_levels"],
        code_sizes=[golden["codebook_size"]] * golden["code_levels"],
        cross_level_layers=golden["cross_level_layers"],
        routed_layers=golden["sparse_layers"],
        injection_layers=golden["behavior_injection_layers"],
        rope_theta=golden["rope_theta"],
        add_bos_token=False,
        **{
            name: golden[name]
            for name in (
                "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
                "behavior_embedding_dim rms_norm_eps"
            ).split()
        },
        **changes,
    )


def to_our_gamer_ids(ids: torch.Tensor) -> torch.Tensor:
    """MASK = 3 of ours shifts everything from 3 on."""
    return torch.where(ids >= 3, ids + 1, ids)


def to_our_gamer_weights(weights: dict[str, torch.Tensor], golden: dict) -> dict[str, torch.Tensor]:
    rows = torch.tensor([0, 1, 2, 0, *range(3, golden["vocab_size"])])
    ours: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            ours[name] = value[rows]
        elif ".experts.expert_0." in name:
            stem, matrix = name.split(".experts.expert_0.")
            experts = range(golden["code_levels"] + 2)
            ours[f"{stem}.{matrix}"] = torch.stack([weights[f"{stem}.experts.expert_{e}.{matrix}"] for e in experts])
        elif ".mlp.mlp." in name:
            ours[name.replace(".mlp.mlp.", ".mlp.")] = value
        elif ".experts." not in name:
            ours[name] = value
    for name in [name for name in ours if name.endswith(".gate_proj.weight") and ours[name].dim() == 3]:
        both = [ours.pop(name), ours.pop(name.replace("gate_proj", "up_proj"))]
        ours[name.replace("gate_proj", "gate_up_proj")] = torch.cat(both, dim=1)
    return ours
