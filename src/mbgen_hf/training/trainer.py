"""The `Trainer` of this package: task metrics at validation, batches of similar length, whole checkpoints only."""

import os
import shutil
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from mbgen_hf.data.batches import LengthGroupedBatchOrder, PrefixCollator, RowCollator
from mbgen_hf.evaluation.evaluator import Recommender, evaluate_tasks
from mbgen_hf.evaluation.protocols import Protocol, Task
from mbgen_hf.training.liger import apply_liger_kernel
from mbgen_hf.training.training_state import (
    load_optimizer,
    load_random_states,
    load_scheduler,
    save_optimizer,
    save_random_states,
    save_scheduler,
)


# A checkpoint is written under a name that `get_last_checkpoint` does not recognise, then renamed.
UNFINISHED_PREFIX = "unfinished-"


class TaskValidation:
    """What `Trainer` measures at each validation besides the loss.

    Args:
        recommender: the model on its data.
        task: the task whose metrics are reported.
        max_users: size of the fixed random sample of validation cases.
        protocol: the evaluation protocol.
    """

    def __init__(
        self,
        recommender: Recommender,
        task: Task = "target",
        max_users: int | None = 1000,
        protocol: Protocol = "leave_one_out",
    ):
        self.recommender, self.task, self.max_users, self.protocol = recommender, task, max_users, protocol

    def __call__(self) -> dict[str, float]:
        """`{"ndcg@10": ..., "hr@10": ..., "hr@10_repeat": ..., "hr@10_new": ...}`"""
        report = evaluate_tasks(
            self.recommender,
            "validation",
            [self.task],
            (10,),
            max_users=self.max_users,
            baselines=False,
            protocol=self.protocol,
        )
        groups = report[self.task]["model"]
        metrics = {name: groups["overall"][name] for name in ("ndcg@10", "hr@10")}
        for group in ("repeat", "new"):
            if "hr@10" in groups[group]:
                metrics[f"hr@10_{group}"] = groups[group]["hr@10"]
        return metrics


class _EpochToOrder(TrainerCallback):
    """Tells the sampler and the collator their epoch, also when a run resumes in the middle of one."""

    def __init__(self, order: LengthGroupedBatchOrder, collator: PrefixCollator | RowCollator):
        self.order, self.collator = order, collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        steps_per_epoch = max(1, len(self.order) // self.order.total_batch_size)
        epoch = state.global_step // steps_per_epoch
        self.order.set_epoch(epoch)
        self.collator.set_epoch(epoch)


class RecommendationTrainer(Trainer):
    """`Trainer` for sequences of interactions.

    Differs from the base class in three ways. Examples come in the order of `LengthGroupedBatchOrder`, which depends
    on the seed, the epoch and the total batch alone. Validation adds the metrics of a task to the loss, under names
    that `metric_for_best_model` can take. Checkpoints appear under their name only once they are whole, and hold
    safetensors and JSON instead of pickles.

    Args:
        train_lengths: `(num_examples,)` history lengths of the training examples.
        validation: called at each evaluation; returns the metrics to add.
        kwargs: as for `Trainer`.

    Raises:
        ValueError: FSDP or DeepSpeed, whose checkpoints have formats of their own; `use_liger_kernel` where
            `check_liger_kernel` refuses it.
    """

    def __init__(self, *args, train_lengths, validation: TaskValidation | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("`args`: expected plain or data-parallel training, found FSDP or DeepSpeed")
        if self.args.use_liger_kernel:
            apply_liger_kernel(self.model, self.args)
        self.validation = validation
        total = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        packed = isinstance(self.data_collator, RowCollator) and self.data_collator.packing
        self.train_order = LengthGroupedBatchOrder(train_lengths, total, seed=self.args.seed, packed=packed)
        self.add_callback(_EpochToOrder(self.train_order, self.data_collator))

    def _get_train_sampler(self, train_dataset=None) -> torch.utils.data.Sampler:
        return self.train_order

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.validation is not None:
            measured = self.validation()
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        return output

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = Path(self._get_output_dir(trial=trial))
        name = f"checkpoint-{self.state.global_step}"
        staging, final = run_dir / f"{UNFINISHED_PREFIX}{name}", run_dir / name
        self.store_flos()
        if self.state.best_global_step:
            best = run_dir / f"checkpoint-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(staging), _internal_call=True)
        if not self.args.save_only_model:
            if self.args.should_save:
                save_optimizer(self.optimizer, staging)
                save_scheduler(self.lr_scheduler, staging)
            save_random_states(staging, self.args.process_index)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._finish_checkpoint(staging, final)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _finish_checkpoint(self, staging: Path, final: Path) -> None:
        """Write the trainer's state and give the folder its name."""
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(staging / "trainer_state.json"))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(staging, final)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save)
        self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n", encoding="utf-8")

    def _issue_warnings_after_load(self, load_result) -> None:
        # Tied weights are saved once; the copies that a plain `load_state_dict` misses are no loss.
        tied = self.model.get_expanded_tied_weights_keys(all_submodels=True)
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        self.model.tie_weights()
        super()._issue_warnings_after_load(load_result)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self.optimizer, Path(checkpoint))
            load_scheduler(self.lr_scheduler, Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_states(Path(checkpoint), self.args.process_index)


__all__ = ["RecommendationTrainer", "TaskValidation"]
