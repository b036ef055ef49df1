"""The input pipeline for `training.py`: what collators and order of batches deliver, and the share of padding."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from training_batches import lognormal_lengths, real_tokens
from training_models import BEHAVIORS, preset


GOALS = {"to_training": 10.0, "padding": 0.05}
# Name, model, and the settings of the data that differ from the preset's.
PIPELINES: list[tuple[str, str, dict[str, Any]]] = [
    ("gamer grouped", "gamer", {"packing": False}),
    ("gamer packed", "gamer", {"packing": True}),
    ("mbgen", "mbgen", {}),
    ("causal", "causal", {}),
]


def generated_table(users: int, longest: int, code_sizes: list[int], seed: int):
    """A table whose users have a log-normal number of training interactions, and two held-out ones; and item codes."""
    # Not at the top: the models train without the libraries that read logs.
    from mbgen_hf.data.behavior_schema import BehaviorSchema
    from mbgen_hf.data.sequence_table import SequenceTable

    generator = np.random.default_rng(seed)
    lengths = lognormal_lengths(generator, users, longest) + 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    possible = int(np.prod(code_sizes))
    num_items = min(possible, 100_000)
    # All different, and over the whole range of every level.
    numbers = np.arange(num_items) * (possible // num_items)
    codes = np.stack(np.unravel_index(numbers, code_sizes), axis=1).astype(np.int32)
    table = SequenceTable(
        schema=BehaviorSchema.from_names(BEHAVIORS),
        user_ids=np.arange(users),
        item_ids=np.arange(num_items),
        offsets=offsets,
        items=generator.integers(0, num_items, offsets[-1]).astype(np.int32),
        behaviors=generator.integers(0, len(BEHAVIORS), offsets[-1]).astype(np.int8),
        timestamps=np.arange(offsets[-1]),
    )
    return table, codes


def training_data(table, codes: np.ndarray, kind: str, size: str, code_sizes: list[int], changes: dict[str, Any]):
    """What `train_model` makes of a table with the preset, held out by leave-one-out."""
    from mbgen_hf.evaluation.protocols import protocol_cases, protocol_training_end
    from mbgen_hf.training.architectures import ARCHITECTURES

    settings, causal = preset(kind, size), {"causal_encoder": True} if kind == "causal" else {}
    options = {**settings["data"], **changes, **causal}
    protocol = "leave_one_out"
    del options["protocol"]
    architecture = ARCHITECTURES[settings["architecture"]]
    fields = {**settings["model"], **causal}
    _, tokenizer = architecture.build(table, codes, code_sizes, fields, options["max_history"])
    cases = protocol_cases(table, protocol, "validation", options["max_history"])
    return architecture.data(table, protocol_training_end(table, protocol), cases, tokenizer, **options)


def pipeline(data, rows: int, seconds: float, seed: int) -> dict[str, float]:
    """Batches of an epoch, one after the other, for so many seconds at most; they come in random order of length."""
    from mbgen_hf.data.batches import LengthGroupedBatchOrder, RowCollator

    packed = isinstance(data.collator, RowCollator) and data.collator.packing
    order = LengthGroupedBatchOrder(data.lengths, rows, seed, packed)
    rows = order.total_batch_size

    def numbers() -> Iterator[list[int]]:
        drawn = list(order)
        yield from (drawn[start : start + rows] for start in range(0, len(drawn), rows))

    started = time.perf_counter()
    batches = numbers()
    first = next(batches)
    # An epoch is drawn at once; the batches looked at pay their share of it.
    draw = (time.perf_counter() - started) * rows / len(order)
    tokens = filled = places = count = 0
    spent = 0.0
    data.collator(first)
    while first is not None and (count == 0 or spent < seconds):
        started = time.perf_counter()
        batch = data.collator(first)
        spent += time.perf_counter() - started + draw
        tokens, count = tokens + real_tokens(batch), count + 1
        filled, places = filled + int(batch["attention_mask"].sum()), places + batch["input_ids"].numel()
        first = next(batches, None)
    return {"tokens_per_second": tokens / spent, "padding": 1 - filled / places, "batches": count, "rows": rows}


def measure_input(
    size: str, code_sizes: list[int], users: int, longest: int, rows: dict[str, int], seconds: float, seed: int
) -> dict[str, dict[str, float]]:
    """The pipelines of all models on one thread.

    Args:
        size: one of `SIZES`.
        code_sizes: ids of each code level.
        users: in the generated table.
        longest: most training interactions of a user.
        rows: of a batch, for `gamer` and `mbgen`.
        seconds: most time of each.
        seed: of the table and the order.

    Returns:
        By name of the pipeline: tokens per second, share of padding, number of batches looked at and their rows.
    """
    table, codes = generated_table(users, longest, code_sizes, seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = {}
        for name, kind, changes in PIPELINES:
            data = training_data(table, codes, kind, size, code_sizes, changes)
            # As many predictions in a batch of whole users as in one of single ones.
            count = max(1, round(rows["mbgen"] / (table.lengths.mean() - 2))) if kind == "causal" else rows[kind]
            results[name] = pipeline(data, count, seconds, seed)
    finally:
        torch.set_num_threads(threads)
    return results


def against_goals(found: dict[str, dict[str, float]], trained: dict[str, dict]) -> None:
    """Add to each pipeline its ratio to what the fastest of our contenders trained at in the same run, and the goals.

    Args:
        found: of `measure_input`.
        trained: by model, what its contenders measured.
    """
    for name, kind, _ in PIPELINES:
        contenders = trained.get("mbgen" if kind == "causal" else kind, {})
        ours = [
            values["tokens_per_second"]
            for contender, values in contenders.items()
            if contender.startswith("ours") and ("causal" in contender) == (kind == "causal")
        ]
        result = found[name]
        result["padding_goal"], result["padding_reached"] = GOALS["padding"], result["padding"] <= GOALS["padding"]
        if ours:
            ratio = result["tokens_per_second"] / max(ours)
            reached = ratio >= GOALS["to_training"]
            result |= {"to_training": ratio, "to_training_goal": GOALS["to_training"], "to_training_reached": reached}
