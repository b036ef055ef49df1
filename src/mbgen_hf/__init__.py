"""Generative multi-behavior recommendation on Hugging Face: MBGen as `transformers` models.

Importing the package registers its classes with the Auto classes. Everything that needs `datasets` or `polars` is
imported on first use, so that models load where these are not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.item_trie import ItemTrie
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.token_space import TokenSpace
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.version import __version__


AutoConfig.register("mbgen", MBGenConfig)
AutoModel.register(MBGenConfig, MBGenForConditionalGeneration)
AutoModelForSeq2SeqLM.register(MBGenConfig, MBGenForConditionalGeneration)
AutoTokenizer.register(MBGenConfig, fast_tokenizer_class=InteractionTokenizer)
