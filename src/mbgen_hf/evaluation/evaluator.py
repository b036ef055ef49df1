"""Asks a model the questions of a protocol and scores its lists, beside the baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from mbgen_hf.baselines.baseline import Baseline
from mbgen_hf.baselines.popularity import PopularityBaseline
from mbgen_hf.baselines.recency import RecencyBaseline, RecencyByBehaviorBaseline
from mbgen_hf.data.batches import user_tokens
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.metrics import joint_ids, split_report
from mbgen_hf.evaluation.protocols import (
    PAPER_HISTORY,
    TASKS,
    EvaluationCases,
    Protocol,
    Split,
    Task,
    protocol_cases,
    protocol_tasks,
    protocol_training_end,
    task_cases,
)
from mbgen_hf.models.token_space import BOS
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.processes import process_state, sum_over_processes


ReduceHistories = Callable[[SequenceTable, EvaluationCases], tuple[SequenceTable, EvaluationCases]]
"""Makes a table of shorter histories, and cases on it that line up with those given."""


@dataclass(frozen=True)
class Recommendations:
    """Ranked lists, best first, for a number of cases.

    Args:
        items: `(num_cases, k)` `int32` catalog indices, padded with -1.
        behaviors: `(num_cases, k)` `int8` class labels, padded with -1.
        scores: `(num_cases, k)` `float64` log-probabilities, padded with `-inf`.
    """

    items: np.ndarray
    behaviors: np.ndarray
    scores: np.ndarray


class Recommender:
    """A model and its tokenizer, answering for the cases of a sequence table.

    Args:
        model: anything whose `generate` is constrained to the catalog, such as `MBGenForConditionalGeneration`.
        tokenizer: its tokenizer, with the catalog.
        table: the sequences; their catalog indices must be the tokenizer's.
        num_beams: width of the beam search.
        batch_size: histories per `generate` call.
        exclude_seen: leave out whatever a user has touched before, also before the part of the history that the model
            reads.

    Raises:
        ValueError: the table has another catalog than the tokenizer.
    """

    def __init__(
        self,
        model,
        tokenizer: InteractionTokenizer,
        table: SequenceTable,
        num_beams: int = 50,
        batch_size: int = 64,
        exclude_seen: bool = False,
    ):
        if not np.array_equal(tokenizer.item_ids, table.item_ids):
            raise ValueError(
                f"`table`: expected the catalog of the checkpoint ({len(tokenizer.item_ids)} items), found "
                f"{table.num_items} items that are not the same; prepare the data the model was trained on"
            )
        if tuple(tokenizer.token_space.behaviors) != table.schema.names:
            raise ValueError(
                f"`table`: expected the behaviors {list(tokenizer.token_space.behaviors)} of the checkpoint, "
                f"found {list(table.schema.names)}"
            )
        self.model, self.tokenizer, self.table = model, tokenizer, table
        self.num_beams, self.batch_size, self.exclude_seen = num_beams, batch_size, exclude_seen
        self.user_tokens = user_tokens(table, tokenizer)
        self.session_wise = getattr(model.config, "session_wise_attention", False)
        if self.session_wise and table.session_ids is None:
            raise ValueError(
                "`table`: expected sessions for session-wise attention, found none; prepare with sessions"
            )

    def on(self, table: SequenceTable) -> "Recommender":
        """The same model, asked about another table with the same catalog."""
        return Recommender(self.model, self.tokenizer, table, self.num_beams, self.batch_size, self.exclude_seen)

    def recommend(
        self, cases: EvaluationCases, k: int, behavior: np.ndarray | None, progress: bool = False
    ) -> Recommendations:
        """Rank items, or pairs of behavior and item, for every case.

        Under `accelerate launch` each process answers for its share of the cases and gets all answers back; a case
        is answered once, however many processes there are.

        Args:
            cases: the questions; targets are not read.
            k: length of the lists.
            behavior: `(num_cases,)` class labels to ask for, or `None` to let the model predict the behavior too.
            progress: whether to show a progress bar.
        """
        state = process_state()
        # Rows of similar length share a batch; every process takes every n-th batch and fills only its own rows.
        order = np.argsort(cases.history_end - cases.history_start, kind="stable")
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        items = torch.zeros(len(cases), k, dtype=torch.int64)
        behaviors, scores = torch.zeros_like(items), torch.zeros(len(cases), k, dtype=torch.float64)
        was_training = self.model.training
        self.model.eval()
        for rows in tqdm(batches[state.process_index :: state.num_processes], disable=not progress, desc="recommend"):
            asked = None if behavior is None else behavior[rows]
            output = self._generate(cases.select(rows), k, asked)
            rows = torch.from_numpy(rows)
            items[rows], behaviors[rows] = output["item_indices"].cpu(), output["behavior_indices"].cpu()
            scores[rows] = output["sequences_scores"].view(len(rows), k).double().cpu()
        self.model.train(was_training)
        # Each process filled its own rows and left zeros elsewhere: the sum has every row once.
        items, behaviors, scores = map(sum_over_processes, (items, behaviors, scores))
        return Recommendations(
            items.numpy().astype(np.int32), behaviors.numpy().astype(np.int8), scores.numpy().astype(np.float64)
        )

    def _generate(self, cases: EvaluationCases, k: int, behavior: np.ndarray | None):
        users = None if self.user_tokens is None else self.user_tokens[cases.users]
        encoded = self.tokenizer.encode_interactions(
            self.table.items,
            self.table.behaviors,
            cases.history_start,
            cases.history_end,
            users,
            sessions=self.table.session_ids if self.session_wise else None,
        )
        inputs = {name: torch.from_numpy(values).to(self.model.device) for name, values in encoded.items()}
        space = self.tokenizer.token_space
        if behavior is None:
            prompt = torch.full((len(cases), 1), BOS)
        else:
            prompt = torch.from_numpy(behavior.astype(np.int64))[:, None] + space.behavior_offset
        seen = {}
        if self.exclude_seen:
            parts = zip(self.table.offsets[cases.users], cases.history_end, strict=True)
            seen["exclude"] = [self.table.items[start:end] for start, end in parts]
        beams = max(self.num_beams, k, 2)  # Greedy search reports no scores.
        return self.model.generate(
            **inputs, prompt=prompt, num_beams=beams, num_return_sequences=k, return_dict_in_generate=True, **seen
        )


def evaluate_tasks(
    recommender: Recommender,
    split: Split = "test",
    tasks: Sequence[Task] = TASKS,
    ks: Sequence[int] = (1, 5, 10),
    max_users: int | None = None,
    seed: int = 0,
    baselines: bool = True,
    progress: bool = False,
    protocol: Protocol = "leave_one_out",
    reduce_histories: ReduceHistories | None = None,
) -> dict:
    """Scores of a model, and of baselines beside it, on the tasks of MBGen section 3.1.

    Args:
        recommender: the model on its data; where it leaves out what was seen, the baselines do as well.
        split: `"validation"` or `"test"`.
        tasks: `"target"`, `"behavior"` and `"behavior_item"`.
        ks: cut-offs, ranked over the whole catalog.
        max_users: evaluate a random sample of so many cases per task; all by default.
        seed: of the sample.
        baselines: whether to score recency, recency by behavior and popularity on the same cases.
        progress: whether to show progress bars.
        protocol: `"leave_one_out"` or `"session_wise"`; the latter has no behavior-item task, since nothing orders the
            interactions of a held-out session.
        reduce_histories: leaves interactions out of the histories shown, to the model and the baselines alike, such as
            `robustness.without_targets`.

    Returns:
        `{task: {model name: {group: {"n": count, metric: mean}}}}` with the groups of `metrics_report`.
    """
    table = recommender.table
    if missing := set(tasks) - set(protocol_tasks(protocol)):
        raise ValueError(
            f"`tasks`: expected some of {list(protocol_tasks(protocol))} with {protocol!r}, found {sorted(missing)}"
        )
    every = protocol_cases(table, protocol, split, recommender.tokenizer.max_history)
    shown = protocol_cases(table, protocol, split, PAPER_HISTORY[protocol])
    ends = protocol_training_end(table, protocol)
    rivals = (RecencyBaseline(), RecencyByBehaviorBaseline(), PopularityBaseline()) if baselines else ()
    fitted = [rival.fit(table, ends) for rival in rivals]
    report: dict = {}
    for task in tasks:
        chosen = sample(_of_task(every, task, table.schema), max_users, seed)
        cases = every.select(chosen)
        if len(cases) == 0:
            raise ValueError(
                f"`task`: expected {split} cases for the {task!r} task, found no user whose held-out behavior is "
                f"{table.schema.target!r}"
            )
        asked = None if task == "behavior_item" else cases.behavior
        asker, shown_table, shown_cases = recommender, table, shown.select(chosen)
        own_cases = cases
        if reduce_histories is not None:
            reduced, own_cases = reduce_histories(table, cases)
            asker = recommender.on(reduced)
            shown_table, shown_cases = reduce_histories(table, shown_cases)
        answers = asker.recommend(own_cases, max(ks), asked, progress)
        report[task] = {"model": score(table, cases, answers, task, ks)}
        for baseline in fitted:
            answers = baseline_answers(baseline, shown_table, shown_cases, max(ks), asked, recommender.exclude_seen)
            report[task][baseline.name] = score(table, cases, answers, task, ks)
    return report


def score(
    table: SequenceTable, cases: EvaluationCases, answers: Recommendations, task: Task, ks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Metrics of ranked lists; in the behavior-item task both behavior and item must match (section 4.2.3)."""
    predicted, targets = answers.items, cases.targets
    if task == "behavior_item":
        count = len(table.schema)
        predicted = joint_ids(predicted, answers.behaviors, count)
        targets = joint_ids(targets, cases.behavior[:, None], count)
    seen = cases.seen_before(table)
    return split_report(predicted, targets, seen, cases.behavior, answers.scores, ks, table.schema.names)


def _of_task(cases: EvaluationCases, task: Task, schema: BehaviorSchema) -> np.ndarray:
    """Numbers of the cases that count for a task."""
    numbered = EvaluationCases(**vars(cases) | {"users": np.arange(len(cases))})
    return task_cases(numbered, task, schema).users


def sample(numbers: np.ndarray, count: int | None, seed: int = 0) -> np.ndarray:
    """A random sample of so many of the numbers, in their order; all of them for `None`."""
    if count is None or count >= len(numbers):
        return numbers
    return np.sort(np.random.default_rng(seed).choice(numbers, count, replace=False))


def baseline_answers(
    baseline: Baseline, table: SequenceTable, cases: EvaluationCases, k: int, asked, exclude_seen: bool = False
) -> Recommendations:
    """What a baseline answers, in the form of a model's answers.

    Args:
        baseline: fitted.
        table: the table that `cases` point into.
        cases: the questions.
        k: length of the lists.
        asked: `(num_cases,)` class labels asked for; `None` for pairs of behavior and item.
        exclude_seen: whether to leave out whatever a user has touched before.
    """
    wanted = k
    if exclude_seen:
        past = int((cases.history_end - table.offsets[cases.users]).max(initial=0))
        wanted += past if asked is not None else past * len(table.schema)
    if asked is None:
        items, behaviors, scores = baseline.recommend_pairs(table, cases, wanted)
    else:
        items, scores = baseline.recommend(table, cases, wanted, behavior=asked)
        behaviors = np.where(items >= 0, asked[:, None], -1)
    if exclude_seen:
        seen = cases.touched_before(table, items)
        items, behaviors, scores = (
            np.where(seen, blank, part) for part, blank in ((items, -1), (behaviors, -1), (scores, -np.inf))
        )
        order = np.argsort(seen, axis=1, kind="stable")[:, :k]
        items, behaviors, scores = (np.take_along_axis(part, order, 1) for part in (items, behaviors, scores))
    return Recommendations(items.astype(np.int32), behaviors.astype(np.int8), scores)


__all__ = ["Recommendations", "Recommender", "baseline_answers", "evaluate_tasks", "sample", "score"]
