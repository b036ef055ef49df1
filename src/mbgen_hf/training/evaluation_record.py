"""Evaluating a checkpoint folder: scores on its data, recorded beside it."""

import json
from pathlib import Path

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.evaluator import Recommender, evaluate_tasks
from mbgen_hf.evaluation.protocols import Protocol
from mbgen_hf.processes import process_state
from mbgen_hf.training.checkpoint import EVALUATION_FILE, checkpoint_file, load_checkpoint, write_text_whole
from mbgen_hf.training.model_card import write_model_card


def evaluate_checkpoint(
    recommender: Recommender, folder: str | Path | None, dataset: str, split: str = "test", **options
) -> dict:
    """Evaluate a model and write `evaluation.json` and the model card into its folder.

    Args:
        recommender: the model on its data.
        folder: the checkpoint folder; `None` writes nothing (a model from the Hub).
        dataset: name of the data, for the record.
        split: `"validation"` or `"test"`.
        options: as for `evaluate_tasks`.

    Returns:
        `{"dataset", "protocol", "split", "histories", "exclude_seen", "num_beams", "max_users", "seed", ...,
        "tasks": {...}}`
    """
    table: SequenceTable = recommender.table
    tasks = evaluate_tasks(recommender, split, **options)
    evaluation = {
        "dataset": dataset,
        "protocol": options.get("protocol", "leave_one_out"),
        "split": split,
        "histories": str(options.get("reduce_histories") or "whole"),
        "exclude_seen": recommender.exclude_seen,
        "num_beams": recommender.num_beams,
        "max_users": options.get("max_users"),
        "seed": options.get("seed", 0),
        "num_users": table.num_users,
        "num_items": table.num_items,
        "num_interactions": table.num_interactions,
        "max_history": recommender.tokenizer.max_history,
        "tasks": tasks,
    }
    if folder is not None and process_state().is_main_process:
        write_text_whole(Path(folder) / EVALUATION_FILE, json.dumps(evaluation, indent=2) + "\n")
        write_model_card(folder, recommender.model, recommender.tokenizer, evaluation)
    return evaluation


def trained_protocol(folder: str | Path) -> Protocol:
    """The protocol a checkpoint was trained under, from a folder or a Hub repository.

    Raises:
        ValueError: its settings are not at hand.
    """
    record = checkpoint_file(folder, "training_settings.json")
    return json.loads(record.read_text(encoding="utf-8"))["data"]["protocol"]


def name_card_after(folder: str | Path, repo_id: str) -> None:
    """Write the model card again so that its example loads `repo_id`; needs a recorded evaluation.

    Raises:
        ValueError: no whole checkpoint, or no evaluation.
    """
    model, tokenizer = load_checkpoint(folder)
    file = Path(folder) / EVALUATION_FILE
    if not file.is_file():
        raise ValueError(f"{folder}: expected {EVALUATION_FILE}, found none; run `mbgen evaluate` first")
    write_model_card(folder, model, tokenizer, json.loads(file.read_text(encoding="utf-8")), repo_id)


__all__ = ["EVALUATION_FILE", "evaluate_checkpoint", "name_card_after", "trained_protocol"]
