"""The evaluation report as a text table."""

from collections.abc import Sequence


TASK_TITLES = {
    "target": "target behavior: the next item under the target behavior",
    "behavior": "behavior-specific: the next item under the given behavior, merged over behaviors",
    "behavior_item": "behavior-item: the next behavior and item, both right",
}


def format_report(report: dict, metrics: Sequence[str] | None = None) -> str:
    """Lay out what `evaluate_tasks` returns, a block per task, a row per model.

    In the behavior-specific task a row is the score merged over behaviors, which is the mean over cases. Below the
    model and below the strongest of the baselines, by the last column, come the scores of each behavior.

    Args:
        report: `{task: {model name: {group: {"n": count, metric: mean}}}}`.
        metrics: the columns; all by default, without recall where it equals the hit rate (one target per case).
    """
    blocks = []
    for task, rows in report.items():
        names = list(metrics or _columns([groups["overall"] for groups in rows.values()]))
        first = next(iter(rows.values()))["overall"]
        repeat, new = ("hr@10", "hr@10") if "hr@10" in first else (names[0], names[0])
        header = ["", *(_title(name) for name in names), f"repeat {_title(repeat)}", f"new {_title(new)}"]
        lines = [header]
        detailed = _detailed(rows, names[-1]) if task == "behavior" else ()
        for model, groups in rows.items():
            split = [_cell(groups.get(group, {}), name) for group, name in (("repeat", repeat), ("new", new))]
            lines.append([model, *(_cell(groups["overall"], name) for name in names), *split])
            if model in detailed:
                lines += _behavior_lines(groups, names)
        counts = next(iter(rows.values()))
        shares = f"{counts['overall']['n']} cases"
        if "repeat" in counts:
            shares += f", {counts['repeat']['n']} repeats, {counts['new']['n']} new"
        blocks.append(f"{TASK_TITLES.get(task, task)} ({shares})\n{_align(lines)}")
    return "\n\n".join(blocks)


def _detailed(rows: dict, metric: str) -> set[str]:
    """The model, which comes first, and the strongest of the others."""
    model, *others = rows
    return {model, *([max(others, key=lambda name: rows[name]["overall"][metric])] if others else [])}


def _behavior_lines(groups: dict, names: Sequence[str]) -> list[list[str]]:
    """A line per behavior; repeats and new items are not told apart within one."""
    prefix = "behavior:"
    return [
        [f"  {group.removeprefix(prefix)} ({scores['n']})", *(_cell(scores, name) for name in names), "", ""]
        for group, scores in groups.items()
        if group.startswith(prefix)
    ]


def _columns(rows: list[dict]) -> list[str]:
    names = [name for name in rows[0] if name != "n"]
    same = all(row[name] == row[name.replace("recall", "hr")] for row in rows for name in names)
    return [name for name in names if not (same and name.startswith("recall"))]


def _title(metric: str) -> str:
    return metric.replace("recall", "R").replace("ndcg", "NDCG").replace("hr", "HR")


def _cell(group: dict, name: str) -> str:
    return f"{group[name]:.4f}" if name in group else "-"


def _align(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


__all__ = ["format_report"]
