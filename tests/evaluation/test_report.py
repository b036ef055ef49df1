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


def test_behaviors_stand_below_the_model_and_the_strongest_baseline():
    clicks, carts = {"n": 3, "hr@10": 0.3, "ndcg@10": 0.2}, {"n": 1, "hr@10": 0.7, "ndcg@10": 0.6}

    def row(ndcg: float) -> dict:
        merged = {"n": 4, "hr@10": 0.4, "ndcg@10": ndcg}
        parts = {"behavior:click": clicks, "behavior:cart": carts, "merged": merged}
        return {"overall": merged, **parts, "repeat": {"n": 4, **merged}, "new": {"n": 0}}

    report = {"model": row(0.3), "recency": row(0.1), "popularity": row(0.2)}
    title, _, *lines = format_report({"behavior": report}).splitlines()
    assert title == (
        "behavior-specific: the next item under the given behavior, merged over behaviors (4 cases, 4 repeats, 0 new)"
    )
    behaviors = [["click", "(3)", "0.3000", "0.2000"], ["cart", "(1)", "0.7000", "0.6000"]]
    assert [line.split() for line in lines] == [
        ["model", "0.4000", "0.3000", "0.4000", "-"],
        *behaviors,
        ["recency", "0.4000", "0.1000", "0.4000", "-"],
        ["popularity", "0.4000", "0.2000", "0.4000", "-"],
        *behaviors,
    ]
    assert lines[1].startswith("  click (3)") and lines[1].rindex("0.2000") == lines[0].index("0.3000")
    # The other tasks have one behavior, or predict it.
    assert "click" not in format_report({"target": report, "behavior_item": report})
    assert format_report({"behavior": {"model": row(0.3)}}).count("click") == 1


def test_recall_is_shown_where_it_says_something_of_its_own():
    assert "R@10" in format_report({"target": {"model": groups(0.5, 0.25)}})
    assert "R@10" not in format_report({"target": {"model": groups(0.5, 0.5)}}).replace("HR@10", "")
