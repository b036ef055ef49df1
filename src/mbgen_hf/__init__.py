"""Generative multi-behavior recommendation on Hugging Face: MBGen and GAMER as `transformers` models.

Importing the package registers its classes with the Auto classes. Whatever needs `datasets` or `polars` is imported on
first use, so that models load where these are not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.item_trie import ItemTrie
from mbgen_hf.models.logits_processors import BehaviorConstraint, CatalogConstraint
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.pipeline_recommendation import TASK, RecommendationPipeline
from mbgen_hf.models.token_space import TokenSpace
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.version import __version__


if TYPE_CHECKING:
    from mbgen_hf.data.behavior_schema import BehaviorSchema
    from mbgen_hf.data.prepare import prepare
    from mbgen_hf.data.read_log import read_interaction_log
    from mbgen_hf.data.sequence_table import SequenceTable
    from mbgen_hf.evaluation.evaluator import Recommender, evaluate_tasks
    from mbgen_hf.item_ids.balance_report import balance_report
    from mbgen_hf.item_ids.chunked import chunked_item_ids
    from mbgen_hf.item_ids.fit import fit_item_ids
    from mbgen_hf.item_ids.fitted_ids import ItemIds
    from mbgen_hf.learned_features import fit_ids
    from mbgen_hf.public_datasets.build import build_dataset
    from mbgen_hf.public_datasets.published import load_published
    from mbgen_hf.recommendation import recommend
    from mbgen_hf.simulation import simulate_shop
    from mbgen_hf.training.checkpoint import load_checkpoint, push_checkpoint, save_checkpoint
    from mbgen_hf.training.settings import load_settings
    from mbgen_hf.training.train import build_model, train_model

PIPELINE_REGISTRY.register_pipeline(
    TASK, RecommendationPipeline, pt_model=(AutoModelForCausalLM, AutoModelForSeq2SeqLM)
)
AutoConfig.register("mbgen", MBGenConfig)
AutoModel.register(MBGenConfig, MBGenForConditionalGeneration)
AutoModelForSeq2SeqLM.register(MBGenConfig, MBGenForConditionalGeneration)
AutoTokenizer.register(MBGenConfig, fast_tokenizer_class=InteractionTokenizer)
AutoConfig.register("gamer", GamerConfig)
AutoModel.register(GamerConfig, GamerForCausalLM)
AutoModelForCausalLM.register(GamerConfig, GamerForCausalLM)
AutoTokenizer.register(GamerConfig, fast_tokenizer_class=InteractionTokenizer)

_ON_FIRST_USE = {
    "BehaviorSchema": "data.behavior_schema",
    "ItemIds": "item_ids.fitted_ids",
    "Recommender": "evaluation.evaluator",
    "SequenceTable": "data.sequence_table",
    "balance_report": "item_ids.balance_report",
    "build_dataset": "public_datasets.build",
    "build_model": "training.train",
    "chunked_item_ids": "item_ids.chunked",
    "evaluate_tasks": "evaluation.evaluator",
    "fit_ids": "learned_features",
    "fit_item_ids": "item_ids.fit",
    "load_checkpoint": "training.checkpoint",
    "load_published": "public_datasets.published",
    "load_settings": "training.settings",
    "prepare": "data.prepare",
    "push_checkpoint": "training.checkpoint",
    "read_interaction_log": "data.read_log",
    "recommend": "recommendation",
    "save_checkpoint": "training.checkpoint",
    "simulate_shop": "simulation",
    "train_model": "training.train",
}


def __getattr__(name: str):
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "BehaviorConstraint",
    "BehaviorSchema",
    "CatalogConstraint",
    "GamerConfig",
    "GamerForCausalLM",
    "InteractionTokenizer",
    "ItemIds",
    "ItemTrie",
    "MBGenConfig",
    "MBGenForConditionalGeneration",
    "RecommendationPipeline",
    "Recommender",
    "SequenceTable",
    "TokenSpace",
    "__version__",
    "balance_report",
    "build_dataset",
    "build_model",
    "chunked_item_ids",
    "evaluate_tasks",
    "fit_ids",
    "fit_item_ids",
    "load_checkpoint",
    "load_published",
    "load_settings",
    "prepare",
    "push_checkpoint",
    "read_interaction_log",
    "recommend",
    "save_checkpoint",
    "simulate_shop",
    "train_model",
]
