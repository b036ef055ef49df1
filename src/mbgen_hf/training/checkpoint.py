"""Checkpoint folders: written whole, loaded with every weight, pushed with their card."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import cached_file, logging

from mbgen_hf.hub_errors import hub_errors
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.processes import process_state


MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "mbgen": MBGenForConditionalGeneration,
    "gamer": GamerForCausalLM,
}
HISTORY_FILE = "training_history.json"
EVALUATION_FILE = "evaluation.json"
CARD_FILE = "README.md"
UNPUBLISHED = ["checkpoints/*", "unfinished-*", "*.tmp"]


def save_checkpoint(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: InteractionTokenizer,
    history: list[dict[str, float]] | None = None,
) -> None:
    """Write model, code, tokenizer and catalog so that the folder is either loadable and whole or not loadable.

    Files are written beside and moved in; `config.json`, without which nothing loads, goes first and comes last.
    """
    folder = Path(folder)
    staging = folder / "unfinished-model"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.config.use_cache = True  # `Trainer` turns it off for its own passes.
    with _without_progress_bars():
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    if history is not None:
        (staging / HISTORY_FILE).write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    forget_model(folder)
    for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, folder / file.name)
    staging.rmdir()


def forget_model(folder: str | Path) -> None:
    """Remove what belongs to the model a folder held: its config, without which nothing loads, scores and card."""
    for name in ("config.json", EVALUATION_FILE, CARD_FILE, HISTORY_FILE):
        (Path(folder) / name).unlink(missing_ok=True)


def load_checkpoint(name: str | Path, device: str | None = None) -> tuple[PreTrainedModel, InteractionTokenizer]:
    """Load a model and its tokenizer from a folder or a Hub repository.

    Args:
        name: a folder, or `owner/name` on the Hub.
        device: where the model goes; by default a GPU if there is one, under `accelerate launch` that of the process.

    Raises:
        ValueError: a folder that holds no whole checkpoint, or a repository that can not be reached.
    """
    model_class = _model_class(checkpoint_file(name, "config.json"))
    with _without_progress_bars():
        try:
            model, info = model_class.from_pretrained(name, output_loading_info=True)
            tokenizer = InteractionTokenizer.from_pretrained(name)
        except SafetensorError as error:
            raise ValueError(f"{name}: expected whole safetensors files, found a damaged one ({error})") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
        raise ValueError(f"{name}: expected every weight of the model, found {len(wrong)} missing, such as {wrong[0]}")
    if tokenizer.item_ids is None:
        raise ValueError(f"{name}: expected catalog.safetensors beside the tokenizer, found none")
    return model.to(device or process_state().device).eval(), tokenizer


def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    message: str | None = None,
    api: HfApi | None = None,
    prepare: Callable[[Path, str], None] | None = None,
) -> str:
    """Upload a checkpoint folder, without its training states, and return the address of the repository.

    Args:
        folder: the checkpoint folder.
        repo_id: `owner/name`.
        private: create the repository as private.
        message: commit message.
        api: what talks to the Hub.
        prepare: called with folder and `repo_id` once the repository is there, before the upload.

    Raises:
        OSError: the Hub can not be reached.
        ValueError: no whole checkpoint, or no model card; run `mbgen evaluate` first, which writes the measured
            scores into it.
    """
    folder = Path(folder)
    for name, remedy in (("config.json", "mbgen train"), (CARD_FILE, "mbgen evaluate")):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: expected a checkpoint folder holding {name}, found none; run `{remedy}`")
    api = api or HfApi()
    with hub_errors(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if prepare is not None:
            prepare(folder, repo_id)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            ignore_patterns=UNPUBLISHED,
            commit_message=message or "Upload checkpoint",
        )
    return str(url)


def write_text_whole(file: str | Path, text: str) -> None:
    """Write a text file under another name and rename it."""
    file = Path(file)
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def checkpoint_file(name: str | Path, file: str) -> Path:
    """A file of a checkpoint folder or of a Hub repository.

    Raises:
        ValueError: neither holds the file, or the repository can not be reached.
    """
    if (Path(name) / file).is_file():
        return Path(name) / file
    looks_local = Path(name).exists() or str(name).startswith((".", "/", "~")) or str(name).count("/") != 1
    if looks_local:
        raise ValueError(f"{name}: expected a checkpoint folder holding {file}, found none; run `mbgen train`")
    try:
        return Path(cached_file(str(name), file))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: expected a checkpoint folder or a Hub repository holding {file}, found no such folder, "
            "and no such file in a repository that can be reached"
        ) from error


def _model_class(config_file: str | Path) -> type[PreTrainedModel]:
    """The class of a checkpoint, from its config."""
    try:
        config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config_file}: expected JSON, found something else ({error})") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in MODEL_CLASSES:
        raise ValueError(f"{config_file}: expected a model of type {list(MODEL_CLASSES)}, found {model_type!r}")
    return MODEL_CLASSES[model_type]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Loading a small model takes a moment; its progress bars would be most of what a command prints."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


__all__ = [
    "EVALUATION_FILE",
    "HISTORY_FILE",
    "MODEL_CLASSES",
    "checkpoint_file",
    "forget_model",
    "load_checkpoint",
    "push_checkpoint",
    "save_checkpoint",
    "write_text_whole",
]
