"""The model card of a checkpoint, with the scores that were measured."""

from importlib.resources import files
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from mbgen_hf.evaluation.report import TASK_TITLES, format_report
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.training.checkpoint import CARD_FILE, write_text_whole


TAGS = ("recommendation", "sequential-recommendation", "multi-behavior", "generative-retrieval")
DESCRIPTIONS = {
    "mbgen": "**MBGen** (Liu et al. 2024), an encoder-decoder on SwitchTransformers",
    "gamer": "**GAMER** (Wang et al. 2025), a decoder on Qwen3",
}


def write_model_card(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: InteractionTokenizer,
    evaluation: dict,
    repo_id: str | None = None,
) -> None:
    """Write `README.md` into a checkpoint folder.

    Args:
        folder: the checkpoint folder.
        model: the model in it.
        tokenizer: its tokenizer.
        evaluation: what `mbgen evaluate` records: `{"split", "num_beams", "dataset", "tasks": {task: ...}}`.
        repo_id: the name the example loads; the folder's name by default.
    """
    folder = Path(folder)
    config = model.config
    name = repo_id or folder.resolve().name
    items = tokenizer.item_ids[:2].tolist()
    behaviors = zip(config.behaviors, config.behavior_levels, strict=True)
    template = files("mbgen_hf.training") / "model_card_template.md"
    card = ModelCard.from_template(
        ModelCardData(
            library_name="transformers",
            tags=[*TAGS, config.model_type],
            model_name=name,
            eval_results=_eval_results(evaluation),
        ),
        template_str=template.read_text(encoding="utf-8"),
        title=name,
        repo_id=name,
        description=DESCRIPTIONS[config.model_type],
        num_parameters=f"{model.num_parameters():,}",
        num_levels=len(config.code_sizes),
        behaviors=", ".join(f"{behavior} ({level})" for behavior, level in behaviors),
        target=config.target_behavior,
        num_items=f"{config.num_items:,}",
        code_sizes=" x ".join(map(str, config.code_sizes)),
        max_history=tokenizer.max_history,
        example_history=repr([(config.behaviors[0], item) for item in items]),
        with_sessions=", with_sessions=True" if getattr(config, "session_wise_attention", False) else "",
        results=_results_text(evaluation),
    )
    write_text_whole(folder / CARD_FILE, str(card))


def _eval_results(evaluation: dict) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="recommendation",
            task_name=TASK_TITLES[task],
            dataset_type="sequential",
            dataset_name=evaluation["dataset"],
            dataset_config=task,  # Without it the tasks would be merged into one result.
            dataset_split=evaluation["split"],
            metric_type=metric,
            metric_name=metric,
            metric_value=round(rows["model"]["overall"][metric], 4),
        )
        for task, rows in evaluation["tasks"].items()
        for metric in rows["model"]["overall"]
        if metric.startswith(("hr@", "ndcg@"))  # With one target per case recall is the hit rate.
    ]


def _results_text(evaluation: dict) -> str:
    protocol, split = evaluation["protocol"].replace("_", "-"), evaluation["split"]
    intro = (
        f"{protocol.capitalize()} on {evaluation['dataset']}, {split} split, {evaluation['num_beams']} beams, "
        "ranked over the whole catalog; baselines on the same cases."
    )
    if evaluation["max_users"] is not None:
        intro += f" **Only a random sample of at most {evaluation['max_users']} cases per task was scored.**"
    return f"{intro}\n\n```text\n{format_report(evaluation['tasks'])}\n```"


__all__ = ["write_model_card"]
