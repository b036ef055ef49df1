"""What differs between training MBGen and training GAMER: configuration, token layout, examples."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from mbgen_hf.data.augmentation import Augmentation
from mbgen_hf.data.batches import PrefixCollator, RowCollator
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import PrefixExamples, training_examples
from mbgen_hf.data.user_prefixes import PrefixRowCollator, PrefixRows
from mbgen_hf.data.user_rows import TrainingRows, held_out_rows
from mbgen_hf.evaluation.protocols import EvaluationCases
from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.training.attention_choice import check_attention
from mbgen_hf.training.checkpoint import MODEL_CLASSES


@dataclass(frozen=True)
class TrainingData:
    """Numbered training examples followed by validation examples.

    Args:
        collator: turns a list of numbers into a batch; is told the epoch.
        lengths: `(num_training,)` history lengths of the training examples.
        num_validation: number of validation examples behind them.
    """

    collator: PrefixCollator | RowCollator
    lengths: np.ndarray
    num_validation: int


def mbgen_data(
    table: SequenceTable,
    training_end: np.ndarray,
    validation: EvaluationCases,
    tokenizer: InteractionTokenizer,
    window: str,
    max_history: int,
    cold_start: bool,
    causal_encoder: bool = False,
    few_shapes: bool = False,
) -> TrainingData:
    """Every prefix is an example of its own (MBGen section 3.3); with a causal encoder a user is one."""
    training = training_examples(table, training_end, window, max_history, cold_start)
    held_out = PrefixExamples(validation.users, validation.history_start, validation.history_end)
    if causal_encoder:
        rows, others = PrefixRows.of_examples(training), PrefixRows.of_examples(held_out)
        return TrainingData(PrefixRowCollator(table, rows + others, tokenizer, few_shapes), rows.lengths, len(others))
    joined = PrefixExamples(
        np.concatenate([training.users, held_out.users]),
        np.concatenate([training.starts, held_out.starts]),
        np.concatenate([training.targets, held_out.targets]),
    )
    return TrainingData(PrefixCollator(table, joined, tokenizer, few_shapes), training.lengths, len(validation))


def gamer_data(
    table: SequenceTable,
    training_end: np.ndarray,
    validation: EvaluationCases,
    tokenizer: InteractionTokenizer,
    max_history: int,
    augmentation: int,
    ratios: str,
    packing: bool,
    augmentation_draw: str = "each_epoch",
    session_wise: bool = False,
    loss_on_behaviors: bool = True,
    seed: int = 0,
    few_shapes: bool = False,
) -> TrainingData:
    """A user is an example (GAMER section 3.4); rows hold one interaction more than a history, the one predicted."""
    copies = Augmentation(augmentation, ratios, seed) if augmentation else None
    held_out = held_out_rows(table, validation.history_start, validation.history_end)
    rows = TrainingRows(table, training_end, max_history + 1, copies, held_out, augmentation_draw)
    collator = RowCollator(rows, tokenizer, session_wise, packing, loss_on_behaviors, few_shapes)
    return TrainingData(collator, rows.lengths[: rows.num_training], len(held_out))


@dataclass(frozen=True)
class Architecture:
    """One of the two models.

    Args:
        config_class, model_class: its classes.
        data: makes `TrainingData` of a table; the keyword arguments are the `data` settings.
        history_suffix: special token behind a history.
        attentions: the implementations of attention that it can be trained with, the default first.
    """

    config_class: type
    model_class: type[PreTrainedModel]
    data: Callable[..., TrainingData]
    history_suffix: str | None
    attentions: tuple[str, ...]

    def build(
        self, table: SequenceTable, codes: np.ndarray, code_sizes: list[int], fields: dict[str, Any], max_history: int
    ) -> tuple[PreTrainedModel, InteractionTokenizer]:
        """A fresh model and its tokenizer for the catalog and behaviors of a table.

        `fields` are those of the configuration, and `attn_implementation`, which is none.

        Raises:
            ValueError: unknown or contradicting fields.
        """
        fields = dict(fields)
        attention = fields.pop("attn_implementation", self.attentions[0])
        known = {field.name for field in dataclasses.fields(self.config_class)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"`model`: expected fields of {self.config_class.__name__}, found {unknown}")
        try:
            config = self.config_class(
                behaviors=list(table.schema.names),
                behavior_levels=list(table.schema.levels),
                target_behavior=table.schema.target,
                code_sizes=code_sizes,
                attn_implementation=attention,
                **fields,
            )
        except StrictDataclassError as error:
            raise ValueError(f"`model`: {error.__cause__ or error}") from error
        check_attention(attention, self.attentions, config)
        causal = getattr(config, "causal_encoder", False)
        tokenizer = InteractionTokenizer(
            behaviors=config.behaviors,
            code_sizes=config.code_sizes,
            num_user_tokens=config.token_space.num_user_tokens,
            target_behavior=config.target_behavior,
            max_history=max_history,
            history_prefix="<bos>" if causal or getattr(config, "add_bos_token", False) else None,
            history_suffix=None if causal else self.history_suffix,
            item_codes=codes,
            item_ids=table.item_ids,
        )
        model = self.model_class(config)
        model.set_catalog(codes)
        return model, tokenizer


ARCHITECTURES = {
    "mbgen": Architecture(MBGenConfig, MODEL_CLASSES["mbgen"], mbgen_data, "<eos>", ("sdpa", "eager")),
    "gamer": Architecture(GamerConfig, MODEL_CLASSES["gamer"], gamer_data, None, ("sdpa", "eager", "flex_attention")),
}


__all__ = ["ARCHITECTURES", "Architecture", "TrainingData"]
