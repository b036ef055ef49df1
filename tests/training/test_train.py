import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from launching import ENVIRONMENT, launch

from mbgen_hf.cli import main
from mbgen_hf.data.batches import RowCollator
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.user_rows import TrainingRows
from mbgen_hf.evaluation.evaluator import Recommender, evaluate_tasks
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.checkpoint import load_checkpoint
from mbgen_hf.training.settings import load_settings
from mbgen_hf.training.train import train_model
from mbgen_hf.training.trainer import RecommendationTrainer


SHORT = (
    "--preset mbgen-small --cpu --batch-size 16 --max-steps 24 --set training.eval_strategy=steps "
    "--set training.eval_steps=6 --set training.logging_steps=1 --set training.disable_tqdm=true "
    "--set validation.max_users=10 --set validation.num_beams=10 --set training.save_total_limit=9"
).split()
MBGEN = "--set model.d_model=16 --set model.d_ff=32 --set model.num_layers=1 --set model.num_decoder_layers=1"
GAMER = (
    "--preset gamer-small --set model.hidden_size=16 --set model.intermediate_size=32 --set model.num_hidden_layers=2 "
    "--set model.hidden_dropout=0.0 --set model.attention_dropout=0.0 --set model.expert_dropout=0.0"
)


def losses(history) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def read_losses(folder) -> dict[int, float]:
    return losses(json.loads((folder / "training_history.json").read_text()))


def test_a_run_leaves_a_loadable_folder_without_pickles(tmp_path, shop_table, tiny_settings):
    trained = train_model(shop_table, tiny_settings(), tmp_path / "run")
    model, tokenizer = load_checkpoint(tmp_path / "run", device="cpu")
    for (name, one), two in zip(model.state_dict().items(), trained.model.state_dict().values(), strict=True):
        assert torch.equal(one, two.cpu()), name
    assert np.array_equal(tokenizer.item_ids, shop_table.item_ids)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".py"}
    assert not [file for file in files if "unfinished" in str(file) or file.suffix == ".tmp"]
    metrics = [entry for entry in trained.history if "eval_ndcg@10" in entry]
    assert [entry["step"] for entry in metrics] == [6, 12]
    assert {"eval_loss", "eval_hr@10", "eval_hr@10_repeat", "eval_hr@10_new"} <= set(metrics[0])


def test_the_best_checkpoint_is_the_one_that_is_kept(tmp_path, shop_table, tiny_settings):
    settings = tiny_settings(training__learning_rate=0.05, training__max_steps=18)
    trained = train_model(shop_table, settings, tmp_path / "run")
    scores = {e["step"]: e["eval_ndcg@10"] for e in trained.history if "eval_ndcg@10" in e}
    best = max(scores, key=lambda step: (scores[step], -step))
    kept = MBGenForConditionalGeneration.from_pretrained(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}")
    final, _ = load_checkpoint(tmp_path / "run", device="cpu")
    assert torch.equal(final.shared.weight, kept.shared.weight)


@pytest.mark.parametrize("causal", [False, True])
def test_accumulation_changes_neither_loss_nor_gradient(tmp_path, shop_table, tiny_settings, causal):
    # The rows of a causal encoder hold different numbers of labels: a mean of means would differ.
    histories = []
    for batch, steps in ((16, 1), (4, 4)):
        settings = tiny_settings(
            training__per_device_train_batch_size=batch,
            training__gradient_accumulation_steps=steps,
            model__dropout_rate=0.0,
            model__causal_encoder=causal,
        )
        histories.append(train_model(shop_table, settings, tmp_path / f"run{batch}").history)
    whole, parts = ([e for e in history if "loss" in e] for history in histories)
    for one, two in zip(whole, parts, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("packing", [False, True])
def test_rows_to_pack_are_not_grouped_by_length_in_a_few_batches(tmp_path, shop_table, monkeypatch, packing):
    class Stopped(Exception):
        pass

    def stop(trainer, **kwargs):
        raise Stopped(trainer.train_order.grouped)

    monkeypatch.setattr(RecommendationTrainer, "train", stop)
    settings = load_settings("gamer-small", {"data.packing": packing, "training.use_cpu": True})
    with pytest.raises(Stopped) as stopped:
        train_model(shop_table, settings, tmp_path / "run")
    assert stopped.value.args == (not packing,)


def test_a_tiny_model_learns_twenty_users_by_heart(tmp_path, tiny_settings):
    full = simulate_shop(num_users=20, num_items=15, seed=5, min_length=6, max_length=9).table()
    settings = tiny_settings(
        model__num_user_tokens=500,
        model__d_model=64,
        model__d_ff=128,
        model__num_heads=4,
        model__d_kv=16,
        model__dropout_rate=0.0,
        data__window="sliding",
        model__num_layers=2,
        model__num_decoder_layers=2,
        training__max_steps=300,
        training__eval_steps=300,
        training__per_device_train_batch_size=32,
        training__learning_rate=3e-3,
        training__weight_decay=0.0,
        validation__task="behavior",
    )
    train_model(full, settings, tmp_path / "run")
    # Asked for what it was trained on, it must know it: the last training interaction takes the validation place.
    ends = full.offsets[1:] - 1
    kept = np.ones(full.num_interactions, dtype=bool)
    kept[ends] = False
    shorter = SequenceTable(
        full.schema,
        full.user_ids,
        full.item_ids,
        np.concatenate([[0], np.cumsum(full.lengths - 1)]),
        full.items[kept],
        full.behaviors[kept],
        full.timestamps[kept],
    )
    last = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    model, tokenizer = load_checkpoint(last, device="cpu")
    shortened_again = Recommender(model, tokenizer, shorter, num_beams=15)
    report = evaluate_tasks(shortened_again, "validation", ["behavior"], (1,), baselines=False)
    assert report["behavior"]["model"]["overall"]["hr@1"] == 1.0


def test_training_never_reads_held_out_interactions(tmp_path, shop_table, tiny_settings):
    """Another item in every held-out place, and the same losses."""
    changed = SequenceTable(**vars(shop_table) | {"items": shop_table.items.copy()})
    held_out = np.concatenate([shop_table.offsets[1:] - 1, shop_table.offsets[1:] - 2])
    changed.items[held_out] = (changed.items[held_out] + 1) % shop_table.num_items
    settings = tiny_settings(training__max_steps=6)
    one = train_model(shop_table, settings, tmp_path / "one").history
    two = train_model(changed, settings, tmp_path / "two").history
    assert losses(one) == losses(two)
    assert [e["eval_loss"] for e in one if "eval_loss" in e] != [e["eval_loss"] for e in two if "eval_loss" in e]


def test_a_run_killed_in_the_middle_resumes_with_the_same_losses(tmp_path, prepared):
    command = [sys.executable, "-m", "mbgen_hf.cli", "train", str(prepared), *SHORT, *MBGEN.split()]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "--output", str(whole)], env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(
        [*command, "--output", str(killed)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 100
    while not (killed / "checkpoints" / "checkpoint-6").is_dir() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "config.json").exists(), "a killed run must not look like a finished one"
    # What a run killed while writing leaves behind must not be taken for a checkpoint.
    (killed / "checkpoints" / "unfinished-checkpoint-999").mkdir()
    done = subprocess.run(
        [*command, "--output", str(killed), "--resume"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    resumed, expected = read_losses(killed), read_losses(whole)
    assert len(expected) == 24 and resumed == expected


# Both models in one launch: starting processes takes longer than training them.
RUNS = {
    "mbgen": f"{MBGEN} --set model.dropout_rate=0.0",
    "gamer": GAMER,
    "gamer-packed": f"{GAMER} --set data.packing=true",
}
TRAIN_ALL = """
import json, sys
from pathlib import Path
from mbgen_hf.cli import main

for command in json.loads(Path(sys.argv[1]).read_text()):
    assert main(command) == 0, command
"""


def test_two_processes_with_accumulation_train_like_one_with_four_times_the_batch(tmp_path, prepared):
    common = ["train", str(prepared), *SHORT, "--max-steps", "12"]
    commands = {name: [*common, *words.split(), "--output"] for name, words in RUNS.items()}
    for name, command in commands.items():
        assert main([*command, str(tmp_path / "one" / name)]) == 0
    accumulated = ["--batch-size", "4", "--set", "training.gradient_accumulation_steps=2"]
    parts = [[*command, str(tmp_path / "two" / name), *accumulated] for name, command in commands.items()]
    # Not asked for the CPU, processes without an accelerator find each other all the same.
    parts = [[word for word in command if word != "--cpu"] for command in parts]
    (tmp_path / "commands.json").write_text(json.dumps(parts))
    (tmp_path / "script.py").write_text(TRAIN_ALL)
    done = launch(tmp_path / "script.py", tmp_path / "commands.json")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in RUNS:
        one, two = (
            json.loads((tmp_path / count / name / "training_history.json").read_text()) for count in ("one", "two")
        )
        expected, found = losses(one), losses(two)
        assert len(expected) == 12 and expected.keys() == found.keys()
        for step, loss in expected.items():
            assert found[step] == pytest.approx(loss, abs=1e-4), (name, step)
        # Every validation case is answered once, whichever process answers it.
        for first, second in zip(one, two, strict=True):
            for metric in ("eval_ndcg@10", "eval_hr@10"):
                assert second.get(metric) == pytest.approx(first.get(metric), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__d_modle": 3}, r"`model`: expected fields of MBGenConfig, found \['d_modle'\]"),
        ({"training__lr": 3}, r"`training`: expected fields of TrainingArguments, found \['lr'\]"),
        ({"training__fp16": True}, "`fp16`: expected bf16 or float32"),
        ({"model": "gamer", "data__augmentation_draw": "daily"}, "`augmentation_draw`: expected one of"),
        ({"data__window": "all"}, "`window`: expected one of"),
        ({"data__causal_encoder": True}, "`data`: expected settings .*, found 'causal_encoder'"),
        ({"item_ids__base": 1}, "`base`: expected at least 2"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, shop_table, tiny_settings, changes, message):
    with pytest.raises(ValueError, match=message):
        train_model(shop_table, tiny_settings(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_is_remembered_across_an_interruption(tmp_path, shop_table, tiny_settings):
    settings = tiny_settings(
        training__learning_rate=0.0,
        training__eval_steps=2,
        training__max_steps=12,
        training__save_total_limit=9,
        validation__patience=2,
    )
    folder = tmp_path / "run"

    def last_step() -> int:
        return max(entry["step"] for entry in train_model(shop_table, settings, folder, resume=True).history)

    # Nothing improves after the first validation: two more and it stops.
    assert last_step() == 6
    # A finished run is only read back.
    assert last_step() == 6 and not (folder / "checkpoints" / "checkpoint-8").exists()
    # Interrupted before its last validation, it waits for that one alone.
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    assert last_step() == 6


@pytest.mark.parametrize("draw", ["each_epoch", "once"])
def test_augmented_copies_of_every_epoch_and_after_an_interruption(tmp_path, tiny_settings, monkeypatch, draw):
    table = simulate_shop(num_users=60, num_items=24, seed=3).table()
    settings = tiny_settings(
        "gamer",
        data__augmentation=2,
        data__augmentation_draw=draw,
        training__per_device_train_batch_size=30,
        training__max_steps=14,
        training__eval_steps=7,
        training__save_total_limit=9,
        validation__max_users=2,
    )
    seen: dict[int, set] = {}
    read = TrainingRows.draw

    def recorded(rows, numbers, epoch=0):
        found = read(rows, numbers, epoch)
        for number, start, end in zip(numbers, found.starts, found.ends, strict=True):
            if table.num_users <= number < rows.num_training:
                content = tuple(found.items[start:end]), tuple(found.behaviors[start:end])
                seen.setdefault(int(number), set()).add((epoch, content))
        return found

    monkeypatch.setattr(TrainingRows, "draw", recorded)
    folder = tmp_path / "run"
    whole = train_model(table, settings, folder, seed=3).history
    before = {number: set(copies) for number, copies in seen.items()}
    assert {epoch for copies in seen.values() for epoch, _ in copies} == {0, 1, 2}
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-14")
    seen.clear()
    resumed = train_model(table, settings, folder, seed=3, resume=True).history
    # What the rest of the run draws again is what the whole run drew there.
    assert seen and all(copies <= before[number] for number, copies in seen.items())
    assert losses(resumed) == losses(whole)
    contents = [len({content for _, content in copies}) for copies in before.values()]
    if draw == "once":
        assert set(contents) == {1}
    else:
        assert np.mean(np.array(contents) > 1) > 0.4


def test_packed_rows_train_like_single_ones(tmp_path, tiny_settings, monkeypatch):
    # A step over all users, since batches of similar length leave nothing to pack.
    table = simulate_shop(num_users=60, num_items=24, seed=3, min_length=4, max_length=30).table()
    shapes: dict[bool, list] = {True: [], False: []}
    call = RowCollator.__call__

    def recorded(collator, numbers):
        batch = call(collator, numbers)
        shapes[collator.packing].append((len(numbers), len(batch["input_ids"]), "sequence_ids" in batch))
        return batch

    monkeypatch.setattr(RowCollator, "__call__", recorded)
    off = {f"model__{name}_dropout": 0.0 for name in ("hidden", "attention", "expert")}
    histories = []
    for packing in (False, True):
        settings = tiny_settings(
            "gamer",
            data__packing=packing,
            training__per_device_train_batch_size=60,
            training__max_steps=6,
            training__eval_steps=3,
            validation__max_users=20,
            **off,
        )
        histories.append(train_model(table, settings, tmp_path / f"packing-{packing}").history)
    assert all(examples == rows and not packed for examples, rows, packed in shapes[False])
    assert all(packed for *_, packed in shapes[True])
    assert sum(rows for _, rows, _ in shapes[True]) < 0.9 * sum(examples for examples, *_ in shapes[True])
    single, packed = ([entry for entry in history if "loss" in entry] for history in histories)
    assert len(single) == len(packed) == 6
    for one, two in zip(single, packed, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
    validated = [[entry["eval_loss"] for entry in history if "eval_loss" in entry] for history in histories]
    assert validated[1] == pytest.approx(validated[0], abs=1e-3)


def test_a_new_run_forgets_the_scores_of_the_old_one(tmp_path, shop_table, tiny_settings):
    folder = tmp_path / "run"
    train_model(shop_table, tiny_settings(), folder)
    for name in ("evaluation.json", "README.md"):
        (folder / name).write_text("scores of another model")
    train_model(shop_table, tiny_settings(), folder, seed=7, overwrite=True)
    assert not (folder / "evaluation.json").exists() and not (folder / "README.md").exists()


def test_a_run_is_not_resumed_on_other_data(tmp_path, shop_table, tiny_settings):
    train_model(shop_table, tiny_settings(), tmp_path / "run")
    other = simulate_shop(num_users=150, num_items=24, seed=4).table()
    with pytest.raises(ValueError, match="`data_fingerprint` was"):
        train_model(other, tiny_settings(), tmp_path / "run", resume=True)


def test_an_earlier_run_is_not_overwritten_or_mixed_up(tmp_path, shop_table, tiny_settings):
    folder = tmp_path / "run"
    folder.mkdir()
    train_model(shop_table, tiny_settings(), folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder, found an earlier run"):
        train_model(shop_table, tiny_settings(), folder)
    train_model(shop_table, tiny_settings(), folder, overwrite=True)
    with pytest.raises(ValueError, match=r"`training.learning_rate` was 0.002 and is 0.5"):
        train_model(shop_table, tiny_settings(training__learning_rate=0.5), folder, resume=True)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"training.per_device_train_batch_size": 0}, "`training.per_device_train_batch_size`: expected at least 1"),
        ({"training.learning_rate": float("nan")}, "`training.learning_rate`: expected a number of at least 0"),
        ({"training.num_train_epochs": 0}, "`training.num_train_epochs`: expected more than 0, found 0"),
        ({"training.eval_strategy": "no"}, "`training.eval_strategy`: expected steps or epoch, .* found 'no'"),
        ({"training.dataloader_persistent_workers": True}, "`training.dataloader_persistent_workers`: expected false"),
    ],
)
def test_settings_that_can_not_train_leave_no_folder(tmp_path, changes, message):
    table = simulate_shop(num_users=40, num_items=12, seed=1).table()
    with pytest.raises(ValueError, match=message):
        train_model(table, load_settings("gamer-small", changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overwriting_spares_what_no_run_wrote(tmp_path):
    table = simulate_shop(num_users=40, num_items=12, seed=1).table()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="found files that no run of this package wrote"):
        train_model(table, load_settings("gamer-small"), tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_task_without_validation_cases_is_refused_before_training(tmp_path):
    table = simulate_shop(num_users=40, num_items=12, seed=1).table()
    table = SequenceTable(**vars(table) | {"behaviors": np.zeros_like(table.behaviors)})
    with pytest.raises(ValueError, match="`validation.task`: expected validation cases of the 'target' task"):
        train_model(table, load_settings("gamer-small"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
