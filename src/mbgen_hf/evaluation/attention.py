"""Where a model looks when it predicts the next item: at which interactions, and at the target where it is a repeat.

Of every layer the mean over cases and heads, beside what attention spread evenly over all visible tokens would give.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.evaluation.attention_weights import Observation, observe_attention
from mbgen_hf.evaluation.protocols import EvaluationCases
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


@dataclass(frozen=True)
class TargetAttention:
    """Attention to the interactions that hold the target, in the cases where it is a repeat.

    Args:
        mass: mean attention to them.
        uniform: what evenly spread attention gives them.
        place: what they would get if only their place among the visible interactions counted: the mean attention to
            this place over all cases with as many.
        head_mass: `(num_heads,)` mean attention of each head.
        found: share of the cases in which no other item of the history gets more attention, all of its occurrences
            together.
        latest: share of the cases in which the latest visible interaction holds the target.
    """

    mass: float
    uniform: float
    place: float
    head_mass: np.ndarray
    found: float
    latest: float

    @property
    def lift(self) -> float:
        """Attention against evenly spread attention."""
        return self.mass / self.uniform if self.uniform > 0 else float("nan")

    @property
    def lift_over_place(self) -> float:
        """Attention against attention by place alone."""
        return self.mass / self.place if self.place > 0 else float("nan")


@dataclass(frozen=True)
class LayerAttention:
    """Where one layer looks. Means over the cases in which it sees anything; `uniform_...` if spread evenly.

    Args:
        name: of the layer.
        seeing: share of the cases in which it sees anything.
        special, uniform_special: attention to BOS, EOS and user tokens.
        prompt, uniform_prompt: attention to the behavior token asked for.
        recency, uniform_recency: `(longest_history,)` attention to the interactions 1, 2, ... ago, of the cases that
            have as many; NaN where none has.
        behaviors, uniform_behaviors: `(num_behaviors,)` attention to the interactions of each behavior.
        slots, uniform_slots: `(1 + m,)` attention to the behavior tokens of the history, and to each code level.
        target: attention to the target where it is a repeat; `None` without such cases.
    """

    name: str
    seeing: float
    special: float
    uniform_special: float
    prompt: float
    uniform_prompt: float
    recency: np.ndarray
    uniform_recency: np.ndarray
    behaviors: np.ndarray
    uniform_behaviors: np.ndarray
    slots: np.ndarray
    uniform_slots: np.ndarray
    target: TargetAttention | None


@dataclass(frozen=True)
class AttentionReport:
    """Where a model looks.

    Args:
        num_cases: number of cases.
        num_repeats: number of them with a target in the history shown.
        history: mean number of interactions shown.
        latest_is_target: share of the repeats in which the latest interaction holds the target.
        copy_gate: mean probability of copying, and that of repeats and of the others; `None` without a copying head.
        behaviors: names of the behaviors.
        layers: in the order of the model, the copying head last.
    """

    num_cases: int
    num_repeats: int
    history: float
    latest_is_target: float
    copy_gate: dict[str, float] | None
    behaviors: tuple[str, ...]
    layers: tuple[LayerAttention, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain Python types, lifts included, NaN as `None`; what a JSON file can hold."""
        values = asdict(self)
        for layer, own in zip(values["layers"], self.layers, strict=True):
            if own.target is not None:
                layer["target"] |= {"lift": own.target.lift, "lift_over_place": own.target.lift_over_place}
        return _plain(values)


def attention_report(
    model: PreTrainedModel,
    tokenizer: InteractionTokenizer,
    table: SequenceTable,
    cases: EvaluationCases,
    batch_size: int = 64,
) -> AttentionReport:
    """Measure where a model looks at the position that predicts the first code of the next item.

    Args:
        model: a `GamerForCausalLM` or an `MBGenForConditionalGeneration`.
        tokenizer: its tokenizer.
        table: the table that `cases` point into, with the catalog and the behaviors of the checkpoint.
        cases: evaluation cases with histories of at least one interaction.
        batch_size: histories per pass.

    Raises:
        ValueError: no cases, or one without a history.
    """
    lengths = cases.history_end - cases.history_start
    if len(cases) == 0 or lengths.min() < 1:
        raise ValueError("`cases`: expected one or more, each with a history, found none or one without")
    observations, gates = observe_attention(model, tokenizer, table, cases, batch_size)
    history = HistoryGrid.of(table, cases)
    repeats = history.holds_target.any(1)
    gate = None
    if gates is not None:
        parts = {"all": slice(None), "repeat": repeats, "new": ~repeats}
        gate = {name: float(gates[part].mean()) if gates[part].size else float("nan") for name, part in parts.items()}
    return AttentionReport(
        num_cases=len(cases),
        num_repeats=int(repeats.sum()),
        history=float(lengths.mean()),
        latest_is_target=float(history.holds_target[repeats, 0].mean()) if repeats.any() else float("nan"),
        copy_gate=gate,
        behaviors=table.schema.names,
        layers=tuple(layer_attention(seen, history, len(table.schema)) for seen in observations),
    )


@dataclass(frozen=True)
class HistoryGrid:
    """The histories of cases, each `(num_cases, longest_history)`, counted back from the latest interaction.

    Args:
        items: catalog indices, -1 behind the first interaction.
        behaviors: class labels, -1 behind the first interaction.
        holds_target: whether the interaction is one with a target of its case.
    """

    items: np.ndarray
    behaviors: np.ndarray
    holds_target: np.ndarray

    @classmethod
    def of(cls, table: SequenceTable, cases: EvaluationCases) -> "HistoryGrid":
        positions = cases.history_end[:, None] - 1 - np.arange((cases.history_end - cases.history_start).max())
        there = positions >= cases.history_start[:, None]
        positions = np.where(there, positions, 0)
        items = np.where(there, table.items[positions], -1)
        held = (items[:, :, None] == cases.targets[:, None, :]).any(2) & there
        return cls(items, np.where(there, table.behaviors[positions], -1), held)

    def select(self, mask: np.ndarray) -> "HistoryGrid":
        """The cases picked by a boolean mask."""
        return HistoryGrid(self.items[mask], self.behaviors[mask], self.holds_target[mask])


def layer_attention(seen: Observation, history: HistoryGrid, num_behaviors: int) -> LayerAttention:
    """Summarise what one layer looks at."""
    chosen = seen.sees
    there = history.items[chosen] >= 0
    mass = seen.mass[chosen].mean(1)
    total = (seen.visible.sum(1) + seen.visible_special + seen.visible_prompt)[chosen]
    uniform = seen.visible[chosen] / total[:, None]
    labels = np.arange(num_behaviors)
    of_behavior = history.behaviors[chosen, :, None] == labels
    return LayerAttention(
        name=seen.name,
        seeing=float(chosen.mean()),
        special=_mean(seen.special[chosen]),
        uniform_special=_mean(seen.visible_special[chosen] / total),
        prompt=_mean(seen.prompt[chosen]),
        uniform_prompt=_mean(seen.visible_prompt[chosen] / total),
        recency=_column_means(mass, there),
        uniform_recency=_column_means(uniform, there),
        behaviors=_column_means((mass[:, :, None] * of_behavior).sum(1)),
        uniform_behaviors=_column_means((uniform[:, :, None] * of_behavior).sum(1)),
        slots=_column_means(seen.slots[chosen]),
        uniform_slots=_column_means(seen.visible_slots[chosen] / total[:, None]),
        target=_target_attention(seen.mass[chosen], uniform, seen.visible[chosen] > 0, history.select(chosen)),
    )


def _target_attention(
    mass: np.ndarray, uniform: np.ndarray, visible: np.ndarray, history: HistoryGrid
) -> TargetAttention | None:
    repeats = history.holds_target.any(1)
    if not repeats.any():
        return None
    # Visible interactions first, still from the latest on.
    order = np.argsort(~visible, axis=1, kind="stable")
    every, items = np.take_along_axis(mass.mean(1), order, 1), np.take_along_axis(history.items, order, 1)
    held = np.take_along_axis(history.holds_target, order, 1)
    counts = visible.sum(1)
    by_place = np.empty_like(every)
    for count in np.unique(counts):
        by_place[counts == count] = every[counts == count].mean(0)
    same = (items[repeats, :, None] == items[repeats, None, :]) & (items[repeats] >= 0)[:, None, :]
    of_item = (same * every[repeats, None, :]).sum(2)
    of_target = np.where(held[repeats], of_item, -1.0).max(1)
    return TargetAttention(
        mass=_mean((every * held)[repeats].sum(1)),
        uniform=_mean((uniform * history.holds_target)[repeats].sum(1)),
        place=_mean((by_place * held)[repeats].sum(1)),
        head_mass=(mass * history.holds_target[:, None])[repeats].sum(2).mean(0),
        found=float((of_target >= of_item.max(1)).mean()),
        latest=float(held[repeats, 0].mean()),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _column_means(values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Mean of each column over the rows that count; NaN where none does."""
    counted = np.ones(values.shape, dtype=bool) if counted is None else counted
    rows = counted.sum(0)
    return np.where(counted, values, 0.0).sum(0) / np.where(rows > 0, rows, np.nan)


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


__all__ = [
    "AttentionReport",
    "HistoryGrid",
    "LayerAttention",
    "TargetAttention",
    "attention_report",
    "layer_attention",
]
