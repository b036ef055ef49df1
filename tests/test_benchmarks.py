"""The benchmark scripts run from start to end."""

import ast
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from script_loading import ROOT, load_script

from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.simulation import simulate_shop


load = partial(load_script, "benchmarks")


def test_compare_models_writes_tables_and_its_curves_can_be_drawn(tmp_path, capsys):
    data, results = tmp_path / "data", tmp_path / "results"
    data.mkdir()
    shop = simulate_shop(num_users=120, num_items=24, seed=3).table()
    with_sessions(shop, SessionRule("gap", gap_seconds=20_000)).save(data)
    options = [str(data), "--output", str(results), "--protocol", "session_wise", "--users", "40", "--num-beams", "10"]
    options += ["--models", "sasrec,gamer + copying", "--steps", "2", "--validations", "1", "--sasrec-epochs", "1"]
    options += ["--validation-users", "10", "--seeds", "0"]
    compare = load("compare_models").main
    found = compare(options)
    assert set(found) == {"sasrec", "gamer + copying"}
    assert json.loads((results / "results.json").read_text()) == json.loads(json.dumps(found))
    table = (results / "results.md").read_text()
    assert table.count("| recency |") == 2 and table.count("| gamer + copying |") == 2
    assert compare(options) == json.loads(json.dumps(found))  # read back, not run again
    assert "| recency by behavior |" in table
    of_new = compare([*options, "--exclude-seen"])["sasrec"]["0"]["report"]["target"]["model"]
    assert of_new["repeat"]["hr@10"] == 0 and of_new != found["sasrec"]["0"]["report"]["target"]["model"]
    curves = load("learning_curves").main
    curves([str(results), str(tmp_path / "curves.png"), "--models", "gamer + copying"])
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    with pytest.raises(
        ValueError, match=r"`--models`: expected models with a finished run in .*found none of \['mbgen'\]"
    ):
        curves([str(results), str(tmp_path / "none.png"), "--models", "mbgen"])
    checkpoint = str(results / "gamer+copying-seed0")
    reports = load("calibration").main(
        [str(data), checkpoint, "--protocol", "session_wise", "--users", "40", "--num-beams", "20"]
        + ["--output", str(tmp_path / "calibration.png")]
    )
    assert reports["gamer+copying-seed0"].history_mass > 0
    assert (tmp_path / "calibration.png").stat().st_size > 5_000
    looked = load("attention").main(
        [str(data), checkpoint, "--protocol", "session_wise", "--users", "40", "--names", "GAMER + copying"]
        + ["--output", str(tmp_path / "shop"), "--json", str(tmp_path / "attention.json")]
    )
    assert set(looked) == set(json.loads((tmp_path / "attention.json").read_text())) == {"GAMER + copying"}
    assert (tmp_path / "shop_gamer_copying.png").stat().st_size > 5_000
    assert "| GAMER + copying | copying | 0.000 | 0.000 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected 1 different names, found"):
        load("attention").main([str(data), checkpoint, "--names", "one,two"])
    with pytest.raises(ValueError, match="expected runs of `compare_models.py`, found none"):
        curves([str(data), str(tmp_path / "none.png")])


def test_robustness_of_finished_runs_over_seeds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    data, results = tmp_path / "data", tmp_path / "results"
    data.mkdir()
    shop = simulate_shop(num_users=120, num_items=24, seed=3).table()
    with_sessions(shop, SessionRule("gap", gap_seconds=20_000)).save(data)
    model = "gamer session-wise + informed copying"
    options = [str(data), "--output", str(results), "--users", "40", "--num-beams", "10", "--steps", "2", "--seeds"]
    options += ["0,1", "--validations", "1", "--validation-users", "5", "--models", model]
    compare = load("compare_models").main
    with pytest.raises(ValueError, match="'gamer session-wise . informed copying' with --protocol session_wise only"):
        compare(options)
    compare([*options, "--protocol", "session_wise"])
    config = json.loads((results / "gamersession-wise+informedcopying-seed1" / "config.json").read_text())
    assert config["session_wise_attention"] and config["copy_item_behaviors"]

    script = load("robustness")
    options = [str(data), str(results), "--users", "40", "--num-beams", "10", "--seeds", "0,1", "--shares", "0.5,1"]
    found = script.main(options)
    assert set(found) == {model} and len(found[model]) == 2
    title, _, header, _, *rows = (results / "robustness.md").read_text().splitlines()
    assert title.startswith("**ndcg@10** on the target task (data, session_wise, ")
    assert header == "| | whole | 50% fewer click | no click | without the targets |"
    names = ["recency", "recency by behavior", "popularity", model]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == names
    # Baselines have no seed and so no spread; recency lists the history, in which the targets are no more.
    assert "±" not in rows[0] and rows[0].endswith("| 0.0000 |") and rows[-1].count(" ± ") == 4
    conditions = ["whole", "without 0.5 of the lowest level", "without 1 of the lowest level", "without targets"]
    scores = [found[model][seed]["without 1 of the lowest level"]["model"]["overall"] for seed in (0, 1)]
    assert f"{np.mean([one['ndcg@10'] for one in scores]):.4f} ± " in rows[3].split(" | ")[3]
    for of_seed in found[model]:
        assert list(of_seed) == conditions
        assert len({json.dumps(of_seed[condition]["model"]) for condition in conditions}) == 4
    monkeypatch.setattr(script, "evaluate_tasks", lambda *_, **__: pytest.fail("what is kept is not scored again"))
    assert script.main([*options, "--metric", "hr@10"]) == found
    assert (results / "robustness.md").read_text().startswith("**hr@10**")
    with pytest.raises(ValueError, match="found none of ..gamer-seed0., .gamer-seed1.."):
        script.main([*options, "--models", "gamer"])
    with pytest.raises(ValueError, match="`--metric`: expected one of"):
        script.main([*options, "--metric", "mrr"])


def test_compare_models_names_its_models():
    script = load("compare_models")
    names = script.model_names
    augmented = script.load_settings(*script.MODELS["qwen3 + 4x"])
    assert augmented["data"]["augmentation"] == 4 and augmented["model"]["cross_level_layers"] == []
    everything, plain = names(None, "session_wise"), names(None, "leave_one_out")
    assert set(everything) - set(plain) == {
        "qwen3 session-wise",
        "gamer session-wise",
        "gamer session-wise + informed copying",
    }
    assert names("gamer,gamer + copying @ single", "leave_one_out") == ["gamer", "gamer + copying @ single"]
    with pytest.raises(ValueError, match="found 'bert'"):
        names("gamer,bert", "leave_one_out")


@pytest.fixture(scope="module")
def training():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield load("training")


def small_case(training, kind, grouped=True, count=3):
    """A small model of a kind, and batches for it."""
    space = training.configuration(kind, "small").token_space
    users = training.Users(space, count=60, longest=12, seed=4)
    model = training.build(kind, "small", dropout=0.0)
    return model, training.batches(users, kind, 12, grouped, count)


@pytest.mark.parametrize("kind", ["gamer", "mbgen"])
@pytest.mark.parametrize("grouped", [True, False])
def test_fast_training_has_the_loss_and_gradients_of_the_plain_reference(training, kind, grouped):
    model, batches = small_case(training, kind, grouped)
    plain = training.make_plain(small_case(training, kind)[0])
    plain.load_state_dict(model.state_dict())
    for batch in batches:
        model.zero_grad()
        plain.zero_grad()
        mine, theirs = training.our_loss(model.train(), batch), training.plain_loss(plain.train(), batch)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        mine.backward()
        theirs.backward()
        for (name, parameter), reference in zip(model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(
                parameter.grad, reference.grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_packed_rows_have_the_loss_and_gradients_of_the_plain_reference_alone(training):
    from mbgen_hf.data.batches import pack_rows

    model, batches = small_case(training, "gamer", grouped=False)
    plain = training.make_plain(small_case(training, "gamer")[0])
    plain.load_state_dict(model.state_dict())
    packed = pack_rows({name: values.numpy() for name, values in batches[0].items()})
    assert len(packed["input_ids"]) < len(batches[0]["input_ids"])
    mine = training.our_loss(model, {name: torch.from_numpy(values) for name, values in packed.items()})
    theirs = training.plain_loss(plain, batches[0])
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    mine.backward()
    theirs.backward()
    for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gamer", "mbgen"])
def test_learning_curves_of_fast_and_plain_training_coincide(training, kind):
    curves = []
    for plain in (False, True):
        model, batches = small_case(training, kind, count=5)
        *batches, held_out = batches
        loss = training.plain_loss if plain else training.our_loss
        model = training.make_plain(model) if plain else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        curve = []
        for step in range(12):
            optimizer.zero_grad()
            loss(model.train(), batches[step % len(batches)]).backward()
            optimizer.step()
            with torch.no_grad():
                curve.append(float(loss(model.eval(), held_out)))
        curves.append(curve)
    np.testing.assert_allclose(*curves, atol=2e-4)
    assert curves[0][-1] < curves[0][0] - 0.1


def test_under_autocast_the_loss_stays_close_and_float32(training):
    for kind in ("gamer", "mbgen", "causal"):
        model, batches = small_case(training, kind)
        exact = training.our_loss(model, batches[0])
        with torch.autocast("cpu", torch.bfloat16):
            rough = training.our_loss(model, batches[0])
        assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, atol=0.0, rtol=1e-2)


def test_training_benchmark_writes_what_it_measures(training, tmp_path):
    options = ["--models", "mbgen", "--seconds", "0.01", "--batches", "2", "--users", "40", "--longest", "6"]
    options += ["--batch", "8", "--input", "200", "--head", "60", "--code-sizes", "20,30", "--feed-forward-rows", "16"]
    found = training.main([*options, "--output", str(tmp_path / "training.json")])
    assert json.loads((tmp_path / "training.json").read_text()) == found
    assert len(found["mbgen"]) == 7 and found["mbgen"]["ours causal"]["tokens_to_plain"] > 0
    assert set(found["head"]) == {"float32", "autocast"} and found["head"]["float32"]["seconds"]["slot_to_whole"] > 0
    assert set(found["input"]) == {"gamer grouped", "gamer packed", "mbgen", "causal"}
    for name, pipeline in found["input"].items():
        assert 0 <= pipeline["padding"] < 1 and pipeline["padding_reached"] == (pipeline["padding"] <= 0.05)
        assert ("to_training" in pipeline) == (not name.startswith("gamer"))
    trained = max(found["mbgen"][name]["tokens_per_second"] for name in ("ours", "ours bf16"))
    assert found["input"]["mbgen"]["to_training"] == found["input"]["mbgen"]["tokens_per_second"] / trained


def test_training_benchmark_extrapolates_to_the_epochs_of_the_paper(training):
    options = ["--size", "paper", "--models", "gamer", "--only", "ours", "--code-sizes", "9x2", "--seconds", "0.01"]
    options += ["--lengths", "fixed", "--longest", "3", "--batch", "4", "--batches", "1", "--users", "8"]
    found = training.main([*options, "--feed-forward-rows"])
    run, ours = found["paper_run"], found["gamer"]["ours"]
    assert ours["padding"] == 0 and "feed_forward" not in found
    assert ours["paper_run_hours"] == pytest.approx(run["tokens"] / ours["tokens_per_second"] / 3600)
    assert run["users"] * 4 < run["rows"] <= run["users"] * 5
    # Two codes: a row of 101 interactions has 304 tokens.
    assert run["tokens"] < run["tokens_at_most"] == 94 * 5 * 48_779 * 304


def test_training_benchmark_counts_augmented_rows_as_training_makes_them(training):
    from mbgen_hf.data.augmentation import Augmentation
    from mbgen_hf.data.behavior_schema import BehaviorSchema
    from mbgen_hf.data.sequence_table import SequenceTable
    from mbgen_hf.data.user_rows import TrainingRows

    row_lengths = training.short_video_ad_lengths.__globals__["row_lengths"]
    counts = np.random.default_rng(0).integers(0, [160, 30, 4], (50, 3)) + [1, 0, 0]
    offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
    behaviors = np.repeat(np.tile([0, 1, 2], 50), counts.ravel()).astype(np.int8)
    items, schema = np.zeros(offsets[-1], dtype=np.int32), BehaviorSchema.from_names(["p3s", "click", "conversion"])
    table = SequenceTable(schema, np.arange(50), np.arange(1), offsets, items, behaviors, np.arange(offsets[-1]))
    real = TrainingRows(table, offsets[1:], 101, Augmentation(4)).lengths
    np.testing.assert_array_equal(row_lengths(counts, 4), real)
    assert real.max() == 101 and len(np.unique(real)) > 50


def test_training_benchmark_builds_the_presets(training):
    gamer, mbgen = (training.configuration(kind, "paper") for kind in ("gamer", "mbgen"))
    assert gamer.cross_level_layers == gamer.injection_layers == list(range(8))
    assert list(gamer.code_sizes) == list(mbgen.code_sizes) == [64] * 3 and mbgen.num_user_tokens == 2000
    assert training.configuration("gamer", "paper-semantic").code_sizes == [8192] * 4
    assert training.configuration("causal", "small").causal_encoder
    assert training.configuration("mbgen", "small").dropout_rate == 0.1
    assert training.configuration("mbgen", "small", 0.0, [7, 7]).dropout_rate == 0.0
    assert training.parse_code_sizes("8192x4") == [8192] * 4 and training.parse_code_sizes("3,4") == [3, 4]


def test_user_tokens_lead_the_histories_of_the_benchmark(training):
    space = training.configuration("mbgen", "paper").token_space
    users = training.Users(space, count=9, longest=5, seed=0)
    own = set(space.user_token_ids(range(9)).tolist())
    single, whole = (training.batches(users, kind, 4, True, 1)[0] for kind in ("mbgen", "causal"))
    assert set(single["input_ids"][:, 0].tolist()) <= own and set(whole["input_ids"][:, 1].tolist()) <= own
    assert whole["history_lengths"].min() == 2 and (whole["input_ids"][:, 0] == 1).all()
    longest = whole["history_lengths"].amax(dim=1)
    assert torch.equal(longest, whole["attention_mask"].sum(dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "our"], "--only: expected contenders among"),
        (["--models", "tiger"], "--models: expected gamer, mbgen or both, found 'tiger'"),
        (["--lengths", "shortvideoad"], "--lengths: expected --models gamer"),
        (["--code-sizes", "8192*4"], "expected SIZExLEVELS or sizes with commas between"),
    ],
)
def test_training_benchmark_refuses_what_it_does_not_know(training, capsys, options, message):
    with pytest.raises(SystemExit):
        training.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_contenders_of_a_gpu_and_of_the_compiler(training):
    def names(*arguments):
        return [each.name for each in training.contenders(*arguments)]

    assert "ours bf16 compiled" in names("mbgen", "cpu", True) and "ours bf16 flex" not in names("gamer", "cpu", True)
    assert {"ours bf16 flex", "ours bf16 flex compiled"} < set(names("gamer", "cuda", True))
    assert "ours bf16 flex" not in names("mbgen", "cuda", False)


def test_training_benchmark_imports_no_library_for_logs():
    for path in (ROOT / "benchmarks").glob("training*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                allowed = ("mbgen_hf.models.", "mbgen_hf.training.", "training_", "torch", "numpy", "transformers")
                assert module.startswith(allowed) or module in sys.stdlib_module_names | {"collections.abc"}, module
                if module.startswith("mbgen_hf.training."):
                    assert module.rpartition(".")[2] in ("settings", "memory", "liger")


def test_item_ids_measures_itself_and_its_rival(capsys):
    assert load("item_ids").main(["--items", "3000", "--dim", "8", "--codes", "6", "--rival-items", "1500"]) == 0
    printed = capsys.readouterr().out
    assert "3000 items x 8, 6 groups" in printed and "times as fast, inertia" in printed


@pytest.mark.parametrize("order", ["time", "user"])
def test_both_sides_of_the_data_benchmark_do_the_same(tmp_path, order):
    prepare = load("prepare")
    prepare.write_log(tmp_path / "log.txt", 20_000, order)
    ours, rival = prepare.ours(tmp_path / "log.txt"), prepare.rival(tmp_path / "log.txt")
    for name in ("rows", "users", "items", "checksum"):
        assert ours[name] == rival[name] > 0
    assert 0 < ours["rows"] < 20_000 and ours["peak"] > 0 and ours["seconds"] > 0
    sampled, after = (prepare.ours(tmp_path / "log.txt", 0.3, while_reading) for while_reading in (True, False))
    prepare.check_same("after", sampled, after)
    assert 0 < sampled["rows"] < ours["rows"] / 2


@pytest.mark.parametrize(("switch", "variants"), [("encoder", 3), pytest.param("loss", 4, marks=pytest.mark.slow)])
def test_ablations_compare_variants_over_seeds_and_keep_finished_runs(tmp_path, monkeypatch, capsys, switch, variants):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = load("ablations")
    options = [switch, "--users", "60", "--epochs", "1", "--seeds", "0,1", "--num-beams", "5"]
    options += ["--output", str(tmp_path), "--set", "validation.max_users=5"]
    found = script.main(options)
    assert len(found) == variants and {len(runs) for runs in found.values()} == {2}
    first, *others = (runs[0] for runs in found.values())
    assert {run["report"]["model"]["overall"]["n"] for run in others} == {first["report"]["model"]["overall"]["n"]}
    if switch == "encoder":
        # The third variant trains for as many epochs as the first one's seconds pay for.
        as_many, as_long = others
        assert as_long["epochs"] == max(1, round(first["epochs"] * first["seconds"] / as_many["seconds"]))
    assert capsys.readouterr().out.count(" ± ") == 3 * variants
    monkeypatch.setattr(script, "train_model", lambda *_, **__: pytest.fail("a finished run is not run again"))
    assert script.main(options) == json.loads((tmp_path / "results.json").read_text())
