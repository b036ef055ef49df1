"""Training throughput of both models, against the stock backbones and against a plain reference.

    python benchmarks/training.py --size small --output training.json
    python benchmarks/training.py --size paper --models gamer --lengths shortvideoad --seconds 2 --batches 3
    python benchmarks/training.py --size paper --input --head --only "ours,ours bf16,ours causal"
    python benchmarks/training.py --size paper-semantic --models gamer --lengths fixed --longest 100 --batch 64 \
        --device cuda --compile

All contenders of a model train on the same users, drawn once (by default log-normal numbers of interactions, uniform
items); models are those of the presets:

* `ours`: rows of similar length together, fused operations, grouped experts, loss without all logits; `ours bf16` the
  same under autocast; with `--compile` both under `torch.compile`; for MBGen also `ours causal`, one pass of a causal
  encoder per user; for GAMER on a GPU also FlexAttention and, where it is installed, Liger's loss;
* `stock`: the stock backbone on the batches of ours: Qwen3, and SwitchTransformers with as many experts, top-1;
* `plain`: the same model with boolean-mask expert dispatch, eager attention, stock norms and dropout, the whole matrix
  of logits, and padded batches in random order, float32.

A token counts when it is not padding. Prints, and writes as JSON: tokens and predicted interactions per second, their
ratio to `plain` and `stock`, the share of the matrix product rate measured in the same run, peak memory, for GAMER at
the paper's size the time that the paper's 94 epochs would take, and the time of a routed feed-forward against a dense
one. `--head` and `--input` measure the head with its loss, and the input pipeline. Needs torch and transformers only,
except for `--input`.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from training_batches import (
    LENGTHS,
    LONGEST_ROW,
    SHORT_VIDEO_AD,
    Users,
    batches,
    predictions,
    real_tokens,
    short_video_ad_lengths,
)
from training_input import against_goals, measure_input
from training_models import (
    SIZES,
    Batch,
    arithmetic,
    build,
    configuration,
    family,
    make_plain,
    our_loss,
    plain_loss,
    stock_loss,
)
from training_parts import (
    FEED_FORWARD_TYPES,
    feed_forward,
    head_alone,
    matmul_rate,
    peak_memory,
    reset_peak_memory,
    synchronize,
)
from transformers.utils import is_liger_kernel_available

from mbgen_hf.training.liger import summed_cross_entropy
from mbgen_hf.training.memory import keep_freed_memory


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Args:
        name: in the results.
        model: kind of `build`.
        plain: whether it is the plain reference, on batches in random order.
        autocast: whether under bfloat16 autocast.
        compiled: whether under `torch.compile`.
        attention: its attention implementation; the model's own by default.
        liger: whether the loss is Liger's.
    """

    name: str
    model: str
    plain: bool = False
    autocast: bool = False
    compiled: bool = False
    attention: str | None = None
    liger: bool = False

    def build(self, args: argparse.Namespace, one_shape: bool) -> nn.Module:
        """The model, ready to train; compiled for the shape of the batches if they have but one."""
        model = build(self.model, args.size, args.dropout, args.code_sizes)
        if self.plain:
            model = make_plain(model)
        if self.attention is not None:
            model.set_attn_implementation(self.attention)
        if self.liger:
            model.loss_kernel = summed_cross_entropy
        if self.compiled:
            model.compile(dynamic=not one_shape)
        return model


def contenders(kind: str, device: str, compile_too: bool) -> list[Contender]:
    """Those of a model on a device."""
    listed = [
        Contender("plain", kind, plain=True),
        Contender("stock", f"stock-{kind}"),
        Contender("ours", kind),
        Contender("ours bf16", kind, autocast=True),
    ]
    if kind == "mbgen":
        listed += [Contender("ours causal", "causal"), Contender("ours causal bf16", "causal", autocast=True)]
    if compile_too:
        listed.append(Contender("ours compiled", kind, compiled=True))
        listed.append(Contender("ours bf16 compiled", kind, autocast=True, compiled=True))
    if kind == "gamer" and device == "cuda":
        flex = {"autocast": True, "attention": "flex_attention"}
        listed.append(Contender("ours bf16 flex", kind, **flex))
        if compile_too:
            listed.append(Contender("ours bf16 flex compiled", kind, compiled=True, **flex))
        if is_liger_kernel_available():
            listed.append(Contender("ours bf16 liger", kind, autocast=True, liger=True))
    return listed


def train(
    model: nn.Module, loss: Callable, work: list[Batch], seconds: float, device: str, autocast: bool, warm_up: int
) -> dict[str, float]:
    """Steps over the batches, again and again, for so many seconds, after `warm_up` steps that are not counted."""
    model.to(device).train()
    work = [{name: values.to(device) for name, values in batch.items()} for batch in work]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    counts = [(real_tokens(batch), predictions(batch), arithmetic(model, batch)) for batch in work]

    def step(batch: Batch) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            value = loss(model, batch)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for batch in work[:warm_up]:
        step(batch)
    synchronize(device)
    reset_peak_memory(device)
    tokens = targets = steps = flop = 0
    started = time.perf_counter()
    # Whole rounds only: batches differ in length, and contenders must see the same mixture.
    while steps == 0 or time.perf_counter() - started < seconds:
        for batch, (real, predicted, needed) in zip(work, counts, strict=True):
            step(batch)
            tokens, targets, flop, steps = tokens + real, targets + predicted, flop + needed, steps + 1
        synchronize(device)
    elapsed = time.perf_counter() - started
    padding = 1 - sum(int(b["attention_mask"].sum()) for b in work) / sum(b["input_ids"].numel() for b in work)
    return {
        "tokens_per_second": tokens / elapsed,
        "predictions_per_second": targets / elapsed,
        "flop_per_second": flop / elapsed,
        "seconds_per_step": elapsed / steps,
        "padding": padding,
        "peak_memory_mb": peak_memory(device),
    }


def chosen_contenders(kind: str, args: argparse.Namespace) -> list[Contender]:
    """The contenders of a model that were asked for."""
    listed = contenders(kind, args.device, args.compile)
    return [each for each in listed if args.only is None or each.name in args.only]


def measure(kind: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The contenders of a model, one after the other."""
    results: dict[str, dict[str, float]] = {}
    rates = {name: matmul_rate(dtype, args.device) for name, dtype in DTYPES.items()}
    for each in chosen_contenders(kind, args):
        space = configuration(each.model, args.size, args.dropout, args.code_sizes).token_space
        users = Users(space, args.users, args.longest, args.seed, args.lengths)
        # As many predictions in a step of whole users as in one of single ones.
        size = batch_rows(kind, args)
        rows = max(1, round(size / users.lengths.mean())) if each.model == "causal" else size
        work = batches(users, each.model.removeprefix("stock-"), rows, not each.plain, args.batches)
        model = each.build(args, one_shape=len({batch["input_ids"].shape for batch in work}) == 1)
        loss = plain_loss if each.plain else stock_loss if each.name == "stock" else our_loss
        # The compiler sees every shape before the clock starts.
        warm_up = len(work) if each.compiled else max(2, len(work) // 4)
        result = train(model, loss, work, args.seconds, args.device, each.autocast, warm_up)
        result["share_of_matmul_rate"] = result["flop_per_second"] / rates["bfloat16" if each.autocast else "float32"]
        results[each.name] = result
        for rival in ("plain", "stock"):
            if rival in results:
                for what in ("tokens", "predictions"):
                    key = f"{what}_per_second"
                    result[f"{what}_to_{rival}"] = result[key] / results[rival][key]
        if kind == "gamer" and args.size != "small":
            tokens = paper_run(space.num_code_levels, args.seed)["tokens"]
            result["paper_run_hours"] = tokens / result["tokens_per_second"] / 3600
        show({kind: {each.name: result}})
    return {"matmul_rate": rates, **results}


def batch_rows(kind: str, args: argparse.Namespace) -> int:
    return args.batch or SIZES[args.size]["batch"][family(kind)]


def paper_run(num_code_levels: int, seed: int) -> dict[str, float]:
    """Tokens of GAMER's 94 epochs with four augmented copies on a generated log of ShortVideoAD's size.

    `tokens_at_most` is what they would be if every row and every copy had the 101 interactions that are the most.
    """
    lengths, width = short_video_ad_lengths(seed), num_code_levels + 1
    most = SHORT_VIDEO_AD["users"] * (SHORT_VIDEO_AD["copies"] + 1)
    epochs = SHORT_VIDEO_AD["epochs"]
    return {
        **SHORT_VIDEO_AD,
        "rows": len(lengths),
        "tokens": epochs * int((lengths * width + 1).sum()),
        "tokens_at_most": epochs * most * (LONGEST_ROW * width + 1),
    }


def show(results: dict) -> None:
    """Print a line of JSON with few digits."""

    def short(value):
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    print(json.dumps(short(results)), flush=True)


def parse_code_sizes(text: str) -> list[int]:
    """`"8192x4"` or `"143,143"` to sizes of code levels."""
    size, times, levels = text.partition("x")
    try:
        sizes = [int(size)] * int(levels) if times else [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected SIZExLEVELS or sizes with commas between, found {text!r}")
    return sizes


def parse_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training throughput against stock backbones and a plain reference.")
    add = parser.add_argument
    add("--models", type=parse_names, default=["gamer", "mbgen"], help="gamer, mbgen or both; '' for none")
    add("--size", choices=list(SIZES), default="small",
        help="small: presets *-small, 143x2 codes; paper: presets *-paper with the papers' chunked IDs, 64x3 codes; "
        "paper-semantic: the same with the semantic IDs of GAMER's tables, 8192x4, whose head is half of the "
        "arithmetic")  # fmt: skip
    add("--code-sizes", type=parse_code_sizes, metavar="SIZExLEVELS",
        help="other codes than the size's, such as 8192x4 or 64,64,128")  # fmt: skip
    add("--only", type=parse_names, metavar="NAMES", help="contenders to measure, such as 'plain,ours bf16'")
    add("--seconds", type=float, default=10, help="least time of each measurement")
    add("--batch", type=int, help="rows of a batch; by default that of the size")
    add("--batches", type=int, default=16, help="different batches")
    add("--feed-forward-rows", type=int, nargs="*", default=[16, 64], metavar="ROWS",
        help="of about 256 tokens, for the feed-forward alone; without a number it is not measured")  # fmt: skip
    add("--head", type=int, nargs="?", const=2048, metavar="TOKENS",
        help="measure the head with its loss alone, 256 wide: 8192x4 codes, or those of --code-sizes")  # fmt: skip
    add("--input", type=int, nargs="?", const=20_000, metavar="USERS",
        help="measure the input pipeline on one thread, over a generated table of so many users")  # fmt: skip
    add("--users", type=int, default=2000)
    add("--longest", type=int, default=50, help="most interactions of a user")
    add("--lengths", choices=LENGTHS, default="lognormal",
        help="interactions of a user: log-normal; fixed: --longest; shortvideoad: those of the rows of GAMER's "
        "training on a generated log of that size, up to 101")  # fmt: skip
    add("--dropout", type=float, help="by default that of the preset")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--compile", action="store_true", help="measure ours under torch.compile as well, float32 and bf16")
    add("--keep-memory", action="store_true", help="keep freed memory, as `train_model` does")
    add("--seed", type=int, default=0)
    add("--output", type=Path)
    args = parser.parse_args(argv)
    args.models = [name for name in args.models if name]
    if unknown := sorted(set(args.models) - {"gamer", "mbgen"}):
        parser.error(f"--models: expected gamer, mbgen or both, found {unknown[0]!r}")
    known = {each.name for kind in args.models for each in contenders(kind, args.device, args.compile)}
    if args.only is not None and (unknown := sorted(set(args.only) - known)):
        parser.error(f"--only: expected contenders among {sorted(known)}, found {unknown[0]!r}")
    if args.lengths == "shortvideoad" and args.models != ["gamer"]:
        parser.error("--lengths: expected --models gamer with shortvideoad, whose rows are GAMER's")
    return args


def main(argv: list[str] | None = None) -> dict:
    args = parse_arguments(argv)
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    if args.device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    results: dict = {"arguments": {key: str(value) for key, value in vars(args).items()}, "machine": machine}
    if args.head is not None:
        # Before freed memory is kept, which would hide what each of them needs.
        results["head"] = head_alone(args.code_sizes or [8192] * 4, args.head, device=args.device)
        show({"head": results["head"]})
    if args.keep_memory:
        keep_freed_memory()
    if args.feed_forward_rows:
        results["feed_forward"] = {
            f"{name}, {rows} rows": feed_forward(args.size, dtype, autocast, args.device, rows)
            for name, (dtype, autocast) in FEED_FORWARD_TYPES.items()
            for rows in args.feed_forward_rows
        }
        show({"feed_forward": results["feed_forward"]})
    code_sizes = args.code_sizes or SIZES[args.size]["code_sizes"]
    if "gamer" in args.models and args.size != "small":
        results["paper_run"] = paper_run(len(code_sizes), args.seed)
        show({"paper_run": results["paper_run"]})
    for kind in args.models:
        results[kind] = measure(kind, args)
    if args.input is not None:
        rows = {kind: batch_rows(kind, args) for kind in ("gamer", "mbgen")}
        found = measure_input(args.size, code_sizes, args.input, args.longest, rows, args.seconds, args.seed)
        against_goals(found, {kind: results.get(kind, {}) for kind in ("gamer", "mbgen")})
        results["input"] = found
        show({"input": found})
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
