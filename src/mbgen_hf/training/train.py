"""From a sequence table to a trained checkpoint: what `mbgen train` and the examples call."""

import dataclasses
import inspect
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, SchedulerType, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from mbgen_hf.data.batches import ExampleIndices
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.evaluator import Recommender, sample
from mbgen_hf.evaluation.protocols import TASKS, protocol_cases, protocol_training_end, task_cases
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.processes import launched_on_cpu
from mbgen_hf.training.architectures import ARCHITECTURES, TrainingData
from mbgen_hf.training.attention_choice import check_attention_device
from mbgen_hf.training.catalog_codes import catalog_codes, check_item_id_settings, item_ids_fingerprint
from mbgen_hf.training.checkpoint import (
    HISTORY_FILE,
    forget_model,
    load_checkpoint,
    save_checkpoint,
    write_text_whole,
)
from mbgen_hf.training.liger import check_liger_kernel
from mbgen_hf.training.memory import keep_freed_memory
from mbgen_hf.training.settings import SECTIONS, check_section
from mbgen_hf.training.trainer import RecommendationTrainer, TaskValidation


SETTINGS_FILE = "training_settings.json"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainedModel:
    """A model, its tokenizer, and what was logged on the way (`trainer.state.log_history`)."""

    model: PreTrainedModel
    tokenizer: InteractionTokenizer
    history: list[dict[str, float]]


def build_model(table: SequenceTable, settings: dict[str, Any]) -> tuple[PreTrainedModel, InteractionTokenizer]:
    """A fresh model and its tokenizer for the catalog and behaviors of a table.

    Args:
        table: the sequences.
        settings: as from `load_settings`; `architecture`, `item_ids`, `model`, `data.max_history` and `data.protocol`
            are read.

    Raises:
        ValueError: unknown or contradicting settings.
    """
    codes, code_sizes = catalog_codes(table, settings["item_ids"], settings["data"]["protocol"])
    return ARCHITECTURES[settings["architecture"]].build(
        table, codes, code_sizes, settings["model"], settings["data"]["max_history"]
    )


def train_model(
    table: SequenceTable,
    settings: dict[str, Any],
    output_dir: str | Path,
    seed: int = 42,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainedModel:
    """Train MBGen or GAMER and write a folder that `AutoModel.from_pretrained` loads.

    The checkpoint with the best validation metric is kept. Under `accelerate launch` the same call trains on all
    processes.

    Args:
        table: the sequences; each user's last two interactions, or sessions, are held out.
        settings: as from `load_settings`; `data.protocol` is `"leave_one_out"` or `"session_wise"`.
        output_dir: where the checkpoint goes; `checkpoints/` in it holds the states to resume from.
        seed: of weights, order and dropout.
        resume: continue from the latest whole checkpoint in `output_dir`, if there is one; a finished run is only
            read back.
        overwrite: start anew where `output_dir` holds an earlier run.

    Raises:
        ValueError: bad settings, an `output_dir` that holds another run, or nothing to validate on.
    """
    unknown = sorted(set(settings) - set(SECTIONS) - {"architecture"})
    if unknown:
        raise ValueError(f"`settings`: expected the sections {list(SECTIONS)}, found {unknown}")
    if settings["architecture"] not in ARCHITECTURES:
        raise ValueError(f"`architecture`: expected one of {list(ARCHITECTURES)}, found {settings['architecture']!r}")
    _check_settings(settings)
    keep_freed_memory()
    output_dir = Path(output_dir)
    args = _training_arguments(settings, output_dir, seed)
    set_seed(seed)
    model, tokenizer = build_model(table, settings)
    check_attention_device(model.config._attn_implementation, args.device)
    if args.use_liger_kernel:
        check_liger_kernel(model.config, args)
    data = _training_data(table, tokenizer, settings, seed, few_shapes=_records_each_shape(args))
    num_training = len(data.lengths)
    validation, protocol = settings["validation"], settings["data"]["protocol"]
    recommender = Recommender(model, tokenizer, table, validation["num_beams"], args.per_device_eval_batch_size)
    with args.main_process_first(local=False):
        record = {**settings, "seed": seed, "data_fingerprint": table.fingerprint()}
        record |= item_ids_fingerprint(settings["item_ids"])
        last = _claim_folder(output_dir, record, resume, overwrite, args.should_save)
    if resume and (output_dir / "config.json").is_file():
        model, tokenizer = load_checkpoint(output_dir)
        history = json.loads((output_dir / HISTORY_FILE).read_text(encoding="utf-8"))
        return TrainedModel(model, tokenizer, history)
    trainer = RecommendationTrainer(
        model=model,
        args=args,
        train_dataset=ExampleIndices(range(num_training)),
        eval_dataset=ExampleIndices(range(num_training, num_training + data.num_validation)),
        data_collator=data.collator,
        processing_class=tokenizer,
        train_lengths=data.lengths,
        validation=TaskValidation(recommender, validation["task"], validation["max_users"], protocol),
        callbacks=[EarlyStoppingCallback(validation["patience"])],
    )
    trainer.train(resume_from_checkpoint=last)
    if trainer.is_world_process_zero():
        save_checkpoint(output_dir, model, tokenizer, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return TrainedModel(model, tokenizer, trainer.state.log_history)


def _check_settings(settings: dict[str, Any]) -> None:
    """Check names and plain types of what no class checks by itself; raises `ValueError`."""
    data = inspect.signature(ARCHITECTURES[settings["architecture"]].data).parameters
    data = {name: p for name, p in data.items() if p.annotation in _TYPES and name not in _FOLLOWING}
    optional = {name for name, parameter in data.items() if parameter.default is not parameter.empty}
    expected = {
        "validation": {"task": (str,), "num_beams": (int,), "max_users": (int, type(None)), "patience": (int,)},
        "data": {"protocol": (str,), **{name: _TYPES[p.annotation] for name, p in data.items()}},
    }
    for section, types in expected.items():
        check_section(section, settings[section], types, optional)
    check_item_id_settings(settings["item_ids"])
    validation = settings["validation"]
    if validation["task"] not in TASKS:
        raise ValueError(f"`validation.task`: expected one of {list(TASKS)}, found {validation['task']!r}")
    for name in ("num_beams", "max_users", "patience"):
        if validation[name] is not None and validation[name] < 1:
            raise ValueError(f"`validation.{name}`: expected at least 1, found {validation[name]}")


_TYPES = {int: (int,), bool: (bool,), str: (str,)}
# What the data's makers are told by the model's settings and those of the run; no settings of their own.
_FOLLOWING = ("causal_encoder", "few_shapes", "loss_on_behaviors", "seed", "session_wise")


def _training_arguments(settings: dict[str, Any], output_dir: Path, seed: int) -> TrainingArguments:
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
    _check_training_numbers(settings["training"])
    if (strategy := settings["training"].get("eval_strategy", "epoch")) not in ("steps", "epoch"):
        raise ValueError(
            "`training.eval_strategy`: expected steps or epoch, since the checkpoint that validates best is kept, "
            f"found {strategy!r}"
        )
    if settings["training"].get("dataloader_persistent_workers"):
        # A loader draws its workers' seed whenever it starts; if it never starts again, a resumed run draws others.
        raise ValueError(
            "`training.dataloader_persistent_workers`: expected false, with which runs resume exactly, found true"
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
        # Without it a resumed run would forget how long it has been waiting for a better checkpoint.
        "restore_callback_states_from_checkpoint": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "use_cpu": launched_on_cpu(),
        **settings["training"],
    }
    try:
        return TrainingArguments(**values)
    except (TypeError, KeyError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"`training`: expected values that TrainingArguments takes, found others ({error})"
        ) from error


def _check_training_numbers(section: dict[str, Any]) -> None:
    """Refuse numbers that fail only once training has begun, or train nothing; raises `ValueError`."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if section.get(name, 1) < 1:
            raise ValueError(f"`training.{name}`: expected at least 1, found {section[name]}")
    rate = section.get("learning_rate", 1.0)
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"`training.learning_rate`: expected a number of at least 0, found {rate}")
    if section.get("max_steps", -1) < 1 and not section.get("num_train_epochs", 1) > 0:
        raise ValueError(f"`training.num_train_epochs`: expected more than 0, found {section['num_train_epochs']}")


def _records_each_shape(args: TrainingArguments) -> bool:
    """Whether what is compiled is recorded anew for each shape; otherwise lengths become variable."""
    return args.torch_compile and args.torch_compile_mode in ("reduce-overhead", "max-autotune")


def _training_data(
    table: SequenceTable, tokenizer: InteractionTokenizer, settings: dict, seed: int, few_shapes: bool
) -> TrainingData:
    """Training examples, then those of the validation split."""
    options = dict(settings["data"], few_shapes=few_shapes)
    protocol = options.pop("protocol")
    if settings["architecture"] == "gamer":
        options["session_wise"] = settings["model"].get("session_wise_attention", False)
        options["seed"] = seed
        options["loss_on_behaviors"] = settings["model"].get("loss_on_behaviors", True)
    else:
        options["causal_encoder"] = settings["model"].get("causal_encoder", False)
    cases = protocol_cases(table, protocol, "validation", options["max_history"])
    if len(task_cases(cases, settings["validation"]["task"], table.schema)) == 0:
        raise ValueError(
            f"`validation.task`: expected validation cases of the {settings['validation']['task']!r} task, found no "
            f"user whose held-out behavior is {table.schema.target!r}; `validation.task=behavior` takes every behavior"
        )
    # A session has a case for each of its behaviors, but one next interaction.
    first = sample(np.unique(cases.users, return_index=True)[1], settings["validation"]["max_users"])
    architecture = ARCHITECTURES[settings["architecture"]]
    ends = protocol_training_end(table, protocol)
    return architecture.data(table, ends, cases.select(first), tokenizer, **options)


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
        if not record.is_file():
            raise ValueError(
                f"{output_dir}: expected a new or empty folder, found files that no run of this package wrote"
            )
        if not overwrite:
            raise ValueError(
                f"{output_dir}: expected a new or empty folder, found an earlier run; resume it or allow overwriting"
            )
        shutil.rmtree(checkpoints, ignore_errors=True)
        forget_model(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text_whole(record, json.dumps(settings, indent=2) + "\n")
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


__all__ = ["TrainedModel", "build_model", "train_model"]
