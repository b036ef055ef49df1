"""From a sequence table to a trained checkpoint: what `mbgen train` and the examples call."""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import EarlyStoppingCallback, SchedulerType, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from mbgen_hf.data.batches import ExampleIndices, PrefixCollator
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import PrefixExamples, training_examples
from mbgen_hf.evaluation.evaluator import Recommender
from mbgen_hf.evaluation.protocols import leave_one_out_cases, training_end
from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.training.checkpoint import save_checkpoint
from mbgen_hf.training.settings import SECTIONS
from mbgen_hf.training.trainer import RecommendationTrainer, TaskValidation


SETTINGS_FILE = "training_settings.json"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainedModel:
    """A model, its tokenizer, and what was logged on the way (`trainer.state.log_history`)."""

    model: MBGenForConditionalGeneration
    tokenizer: InteractionTokenizer
    history: list[dict[str, float]]


def build_model(
    table: SequenceTable, settings: dict[str, dict[str, Any]]
) -> tuple[MBGenForConditionalGeneration, InteractionTokenizer]:
    """A fresh MBGen and its tokenizer for the catalog and behaviors of a table.

    Args:
        table: the sequences.
        settings: as from `load_settings`; `item_ids`, `model` and `data.max_history` are read.

    Raises:
        ValueError: unknown or contradicting settings.
    """
    codes, code_sizes = chunked_item_ids(table.num_items, **settings["item_ids"])
    known = {field.name for field in dataclasses.fields(MBGenConfig)}
    unknown = sorted(set(settings["model"]) - known)
    if unknown:
        raise ValueError(f"`model`: expected fields of MBGenConfig, found {unknown}")
    try:
        config = MBGenConfig(
            behaviors=list(table.schema.names),
            behavior_levels=list(table.schema.levels),
            target_behavior=table.schema.target,
            code_sizes=code_sizes,
            **settings["model"],
        )
    except StrictDataclassError as error:
        raise ValueError(f"`model`: {error.__cause__ or error}") from error
    tokenizer = InteractionTokenizer(
        behaviors=config.behaviors,
        code_sizes=config.code_sizes,
        num_user_tokens=config.num_user_tokens,
        target_behavior=config.target_behavior,
        max_history=settings["data"]["max_history"],
        item_codes=codes,
        item_ids=table.item_ids,
    )
    model = MBGenForConditionalGeneration(config)
    model.set_catalog(codes)
    return model, tokenizer


def train_mbgen(
    table: SequenceTable,
    settings: dict[str, dict[str, Any]],
    output_dir: str | Path,
    seed: int = 42,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainedModel:
    """Train MBGen under leave-one-out and write a folder that `AutoModel.from_pretrained` loads.

    The checkpoint with the best validation metric is kept. Under `accelerate launch` the same call trains on all
    processes.

    Args:
        table: the sequences; each user's last two interactions are held out.
        settings: as from `load_settings`.
        output_dir: where the checkpoint goes; `checkpoints/` in it holds the states to resume from.
        seed: of weights, order and dropout.
        resume: continue from the latest whole checkpoint in `output_dir`, if there is one.
        overwrite: start anew where `output_dir` holds an earlier run.

    Raises:
        ValueError: bad settings, an `output_dir` that holds another run, or nothing to validate on.
    """
    unknown = sorted(set(settings) - set(SECTIONS))
    if unknown:
        raise ValueError(f"`settings`: expected the sections {list(SECTIONS)}, found {unknown}")
    output_dir = Path(output_dir)
    args = _training_arguments(settings, output_dir, seed)
    set_seed(seed)
    model, tokenizer = build_model(table, settings)
    examples, num_training = _examples(table, settings["data"])
    validation = settings["validation"]
    recommender = Recommender(model, tokenizer, table, validation["num_beams"], args.per_device_eval_batch_size)
    with args.main_process_first(local=False):
        last = _claim_folder(output_dir, {**settings, "seed": seed}, resume, overwrite, args.should_save)
    trainer = RecommendationTrainer(
        model=model,
        args=args,
        train_dataset=ExampleIndices(range(num_training)),
        eval_dataset=ExampleIndices(range(num_training, len(examples))),
        data_collator=PrefixCollator(table, examples, tokenizer),
        processing_class=tokenizer,
        train_lengths=examples.lengths[:num_training],
        validation=TaskValidation(recommender, validation["task"], validation["max_users"]),
        callbacks=[EarlyStoppingCallback(validation["patience"])],
    )
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        save_checkpoint(output_dir, model, tokenizer, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return TrainedModel(model, tokenizer, trainer.state.log_history)


def _training_arguments(settings: dict[str, dict[str, Any]], output_dir: Path, seed: int) -> TrainingArguments:
    """`TrainingArguments` from the `training` section; what the section leaves out follows this package's defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    unknown = sorted(set(settings["training"]) - set(defaults))
    if unknown:
        raise ValueError(f"`training`: expected fields of TrainingArguments, found {unknown}")
    for name, value in settings["training"].items():
        # `TrainingArguments` takes any type and fails, if at all, when the value is used.
        if isinstance(defaults[name], (int, float)) and not isinstance(value, (int, float)):
            raise ValueError(f"`training.{name}`: expected a number or true or false, found {value!r}")
    if settings["training"].get("lr_scheduler_type", "linear") not in list(SchedulerType):
        raise ValueError(
            f"`training.lr_scheduler_type`: expected one of {[kind.value for kind in SchedulerType]}, "
            f"found {settings['training']['lr_scheduler_type']!r}"
        )
    if settings["training"].get("fp16"):
        # Gradients would be clipped while scaled, as in the released code (M11).
        raise ValueError("`fp16`: expected bf16 or float32 training, found fp16")
    values = {
        "output_dir": str(output_dir / CHECKPOINTS_FOLDER),
        "seed": seed,
        "per_device_eval_batch_size": 64,
        "logging_steps": 50,
        # The best checkpoint can only be kept if one is written at every validation.
        "save_strategy": settings["training"].get("eval_strategy", "epoch"),
        **({"save_steps": steps} if (steps := settings["training"].get("eval_steps")) is not None else {}),
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "ndcg@10",
        "greater_is_better": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        **settings["training"],
    }
    try:
        return TrainingArguments(**values)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"`training`: expected values that TrainingArguments takes, found others ({error})"
        ) from error


def _examples(table: SequenceTable, data: dict[str, Any]) -> tuple[PrefixExamples, int]:
    """Training examples followed by one validation example per user, and the number of the former."""
    training = training_examples(table, training_end(table), **data)
    cases = leave_one_out_cases(table, "validation", data["max_history"])
    joined = PrefixExamples(
        np.concatenate([training.users, cases.users]),
        np.concatenate([training.starts, cases.history_start]),
        np.concatenate([training.targets, cases.history_end]),
    )
    return joined, len(training)


def _claim_folder(output_dir: Path, settings: dict, resume: bool, overwrite: bool, main: bool) -> str | None:
    """Check that the folder is ours to write, record the settings, and find the checkpoint to resume from."""
    checkpoints, record = output_dir / CHECKPOINTS_FOLDER, output_dir / SETTINGS_FILE
    if not main:
        return get_last_checkpoint(checkpoints) if resume and checkpoints.is_dir() else None
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{output_dir}: expected a folder to write to, found a file")
    if resume and record.is_file():
        earlier = json.loads(record.read_text(encoding="utf-8"))
        if earlier != json.loads(json.dumps(settings)):
            raise ValueError(f"{record}: expected the settings of the run to resume; {_difference(earlier, settings)}")
        return get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not overwrite:
            raise ValueError(
                f"{output_dir}: expected a new or empty folder, found an earlier run; resume it or allow overwriting"
            )
        shutil.rmtree(checkpoints, ignore_errors=True)
        (output_dir / "config.json").unlink(missing_ok=True)
    output_dir.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, record)
    return None


def _difference(earlier: dict, now: dict) -> str:
    """The first setting that differs, in words."""
    for section in earlier.keys() | now.keys():
        old, new = earlier.get(section), now.get(section)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                name = next(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
                return f"`{section}.{name}` was {old.get(name)!r} and is {new.get(name)!r}"
            return f"`{section}` was {old!r} and is {new!r}"
    return "no difference"


__all__ = ["TrainedModel", "build_model", "train_mbgen"]
