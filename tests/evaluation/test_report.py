from mbgen_hf.evaluation.report import format_report


def groups(hr: float, recall: float) -> dict:
    overall = {"n": 4, "hr@10": hr, "recall@10": recall, "ndcg@10": 0.125}
    return {"overall": overall, "repeat": {"n": 4, **overall}, "new": {"n": 0}}


def test_rows_line_up_and_empty_groups_show_a_dash():
    text = format_report({"target": {"model": groups(0.5, 0.5), "popularity": groups(0.25, 0.25)}})
    title, header, *rows = text.splitlines()
    assert title == "target behavior: the next item under the target behavior (4 cases, 4 repeats, 0 new)"
    assert header.split() == ["HR@10", "NDCG@10", "repeat", "HR@10", "new", "HR@10"]
    assert [row.split() for row in rows] == [
        ["model", "0.5000", "0.1250", "0.5000", "-"],
        ["popularity", "0.2500", "0.1250", "0.2500", "-"],
    ]
    assert len({len(row) for row in rows}) == 1


def test_recall_is_shown_where_it_says_something_of_its_own():
    assert "R@10" in format_report({"target": {"model": groups(0.5, 0.25)}})
    assert "R@10" not in format_report({"target": {"model": groups(0.5, 0.5)}}).replace("HR@10", "")
