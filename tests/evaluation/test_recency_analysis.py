"""Figure 2 as a command; that the curve itself is right is shown in test_robustness.py."""

import sys

import numpy as np
import pytest

from mbgen_hf.cli import main
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import SessionRule, record_session_rule, with_sessions
from mbgen_hf.evaluation.protocols import leave_one_out_cases, session_wise_cases, task_cases
from mbgen_hf.evaluation.recency_analysis import folder_recency, format_recency, recency_analysis
from mbgen_hf.simulation import simulate_shop


@pytest.fixture(scope="module")
def table() -> SequenceTable:
    shop = simulate_shop(num_users=80, num_items=24, seed=3).table()
    return with_sessions(shop, SessionRule("gap", gap_seconds=20_000))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, table):
    """The same shop prepared with sessions and without."""
    root = tmp_path_factory.mktemp("shops")
    for name in ("with", "without"):
        (root / name).mkdir()
        table.save(root / name)
        (root / name / "report.json").write_text("{}")
    record_session_rule(root / "with", SessionRule("gap", gap_seconds=20_000))
    return root / "with", root / "without"


def shares_by_loop(table, cases, k: int) -> tuple[list[float], int]:
    """The share as the histories are and without their latest hint, and the number of hints."""
    levels = table.schema.levels
    found, hints, total = [0, 0], 0, 0
    for case in range(len(cases)):
        targets = {item for item in cases.targets[case].tolist() if item >= 0}
        span = slice(cases.history_start[case], cases.history_end[case])
        items, behaviors = table.items[span].tolist(), table.behaviors[span].tolist()
        hint = bool(items) and items[-1] in targets and levels[behaviors[-1]] < levels[table.schema.target_index]
        hints += hint
        total += len(targets)
        for half, history in enumerate((items, items[: len(items) - hint])):
            latest = list(dict.fromkeys(reversed(history)))[:k]
            found[half] += len(targets & set(latest))
    return [count / total for count in found], hints


@pytest.mark.parametrize("protocol", ["leave_one_out", "session_wise"])
def test_both_halves_match_a_loop_over_the_cases_of_the_target_task(table, protocol):
    made = (
        leave_one_out_cases(table, "test", 50)
        if protocol == "leave_one_out"
        else session_wise_cases(table, "test", 100)
    )
    cases = task_cases(made, "target", table.schema)
    analysis = recency_analysis(table, protocol)
    for k in (1, 3, 10):
        (whole, without), hints = shares_by_loop(table, cases, k)
        assert (analysis.whole[k - 1], analysis.without_hint[k - 1]) == pytest.approx((whole, without))
        assert whole > without and analysis.num_hints == hints > 0
    assert (analysis.num_cases, analysis.num_targets) == (len(cases), (cases.targets >= 0).sum())
    assert analysis.whole.shape == analysis.without_hint.shape == (50,)
    text = format_recency([analysis])
    assert f"{analysis.without_hint[2]:.4f}" in text and f"{len(cases):,} cases under purchase" in text


def test_the_command_prints_both_protocols_and_draws(folders, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "recency.png"
    assert main(["statistics", *map(str, folders), "--recency", "--picture", str(picture)]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith(" ") and "users" in first.splitlines()[0]
    analyses = folder_recency(folders[0])
    for analysis in analyses:
        rows = [line.split() for line in first.splitlines() if line.startswith(f"{analysis.protocol} ")]
        assert rows == [[analysis.protocol, *(f"{analysis.whole[k - 1]:.4f}" for k in (1, 3, 5, 10, 20, 50))]]
    # Without a session rule there is one protocol to ask about.
    assert [analysis.protocol for analysis in analyses] == ["leave_one_out", "session_wise"]
    assert "session_wise" not in second and "leave_one_out" in second
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 5_000
    assert main(["statistics", str(folders[0]), "--recency", "--protocol", "session_wise"]) == 0
    assert "leave_one_out" not in capsys.readouterr().out
    assert main(["statistics", str(folders[0])]) == 0
    assert "k=1" not in capsys.readouterr().out


def test_the_picture_has_a_panel_for_each_log_and_both_halves_of_each_protocol(folders, tmp_path, monkeypatch):
    figures = []
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure_class, "savefig", lambda figure, file, **_: figures.append(figure))
    assert main(["statistics", *map(str, folders), "--recency", "--picture", str(tmp_path / "x.png")]) == 0
    one, two = figures[0].axes
    assert (one.get_title(), two.get_title()) == ("with, purchase", "without, purchase")
    drawn = [line.get_ydata() for line in one.lines]
    expected = [curve for analysis in folder_recency(folders[0]) for curve in (analysis.whole, analysis.without_hint)]
    np.testing.assert_array_equal(drawn, expected)
    assert len(two.lines) == 2


def test_bad_calls_end_in_one_line(folders, table, tmp_path, capsys, monkeypatch):
    for arguments, message in (
        (["--picture", "x.png"], "`--picture`: expected it with --recency, found it alone"),
        (["--protocol", "session_wise"], "`--protocol`: expected it with --recency"),
        (["--recency", "--picture", str(tmp_path / "none" / "x.png")], "`--picture`: expected a file in an existing"),
        (["--recency", "--picture", str(tmp_path / "x.doc")], "doc"),
        (["--recency", "--protocol", "next"], "invalid choice"),
    ):
        assert main(["statistics", str(folders[0]), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["statistics", str(folders[0]), "--recency", "--picture", str(tmp_path / "x.png")]) == 2
    assert "pip install mbgen-hf[plots]" in capsys.readouterr().err
    nobody = SequenceTable(**vars(table) | {"behaviors": np.zeros_like(table.behaviors)})
    with pytest.raises(ValueError, match="no user whose held-out behavior is 'purchase'"):
        recency_analysis(nobody)
