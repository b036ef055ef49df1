"""Training throughput of both models, against the stock backbones and against a plain reference.

    python benchmarks/training.py --size small --output training.json
    OMP_NUM_THREADS=1 python benchmarks/training.py --size small --models gamer --seconds 10

All contenders of a model train on the same users, drawn once (log-normal numbers of interactions, uniform items):

* `ours`: rows of similar length together, fused operations, grouped experts, loss without all logits; `ours bf16` the
  same under autocast, `ours compiled` under `torch.compile` (with `--compile`); for MBGen also `ours causal`, one pass
  of a causal encoder per user;
* `stock`: the stock backbone on the batches of ours: Qwen3, and SwitchTransformers with as many experts, top-1;
* `plain`: the same model with boolean-mask expert dispatch, eager attention, stock norms and dropout, the whole matrix
  of logits, and padded batches in random order, float32.

A token counts when it is not padding. Prints, and writes as JSON: tokens and predicted interactions per second, their
ratio to `plain` and `stock`, the share of the matrix product rate measured in the same run, peak memory, and the time
of a routed feed-forward against a dense one. Needs torch and transformers only.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, SwitchTransformersConfig
from transformers import SwitchTransformersForConditionalGeneration as StockSwitch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersLayerNorm

from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.configuration_mbgen import MBGenConfig
from mbgen_hf.models.fused_operations import Dropout, FusedQwen3RMSNorm, FusedSwitchLayerNorm
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration
from mbgen_hf.models.routed_feed_forward import RoutedFeedForward, RoutedGatedFeedForward, Routing
from mbgen_hf.models.token_space import BOS, EOS, PAD, TokenSpace
from mbgen_hf.training.memory import keep_freed_memory


BEHAVIORS = ["fav", "cart", "buy"]
SIZES = {
    "small": {
        "code_sizes": [143, 143],
        "gamer": dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            behavior_embedding_dim=16,
        ),
        "mbgen": dict(
            d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2, num_decoder_layers=2, behavior_embedding_dim=16
        ),
        "batch": {"gamer": 64, "mbgen": 256},
    },
    "paper": {"code_sizes": [64] * 4, "gamer": {}, "mbgen": {}, "batch": {"gamer": 16, "mbgen": 64}},
}
Batch = dict[str, torch.Tensor]


class Users:
    """Users with random interactions as token ids.

    Args:
        space: the layout of ids.
        count: number of users.
        longest: most interactions of one user; the mean is about a third of it.
        seed: of everything.
    """

    def __init__(self, space: TokenSpace, count: int, longest: int, seed: int):
        generator = np.random.default_rng(seed)
        self.lengths = np.clip(generator.lognormal(np.log(longest / 4), 0.8, count).astype(int), 2, longest)
        shape = (self.lengths.sum(), space.num_code_levels + 1)
        self.tokens = np.empty(shape, dtype=np.int64)
        self.tokens[:, 0] = space.behavior_offset + generator.integers(0, len(space.behaviors), shape[0])
        for level, (offset, size) in enumerate(zip(space.code_offsets, space.code_sizes, strict=True)):
            self.tokens[:, level + 1] = offset + generator.integers(0, size, shape[0])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.generator = generator

    def interactions(self, user: int, end: int) -> np.ndarray:
        return self.tokens[self.starts[user] : self.starts[user] + end]


def padded(rows: list[np.ndarray], filler: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.from_numpy(
        np.stack([np.pad(row, (0, width - len(row)), constant_values=filler) for row in rows]).astype(np.int64)
    )


def gamer_batch(users: Users, numbers: np.ndarray) -> Batch:
    """Rows `[BOS, interactions]`, each token predicted from those before it."""
    rows = [np.append(BOS, users.interactions(user, users.lengths[user])) for user in numbers]
    ids = padded(rows, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids.masked_fill(ids <= BOS, -100)}


def mbgen_batch(users: Users, examples: np.ndarray) -> Batch:
    """Histories `[interactions, EOS]` and the interaction that follows each."""
    rows = [np.append(users.interactions(user, end), EOS) for user, end in examples]
    labels = [np.append(users.tokens[users.starts[user] + end], EOS) for user, end in examples]
    ids = padded(rows, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": torch.from_numpy(np.stack(labels))}


def causal_batch(users: Users, numbers: np.ndarray) -> Batch:
    """Rows `[BOS, interactions]`, every interaction predicted from those before it by one pass."""
    width, most = users.tokens.shape[1], users.lengths[numbers].max()
    rows = [np.append(BOS, users.interactions(user, users.lengths[user] - 1)) for user in numbers]
    labels = torch.full((len(numbers), most, width + 1), -100)
    for row, user in enumerate(numbers):
        labels[row, : users.lengths[user], :width] = torch.from_numpy(
            users.interactions(user, users.lengths[user]).copy()
        )
        labels[row, : users.lengths[user], width] = EOS
    lengths = torch.where(labels[..., 0] >= 0, 1 + torch.arange(most) * width, 1)
    ids = padded(rows, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels, "history_lengths": lengths}


def batches(users: Users, kind: str, size: int, grouped: bool, count: int) -> list[Batch]:
    """Batches of similar length, spread over all lengths, or of random users."""
    if kind == "mbgen":
        pairs = [(user, end) for user, length in enumerate(users.lengths) for end in range(length)]
        examples, lengths = np.array(pairs), np.array([end for _, end in pairs])
    else:
        examples, lengths = np.arange(len(users.lengths)), users.lengths
    order = users.generator.permutation(len(examples))[: len(examples) // size * size]
    if grouped:
        order = order[np.argsort(lengths[order], kind="stable")]
    parts = order.reshape(-1, size)
    chosen = parts[users.generator.permutation(len(parts))[:count]]
    make = {"gamer": gamer_batch, "mbgen": mbgen_batch, "causal": causal_batch}[kind]
    return [make(users, examples[part]) for part in chosen]


def real_tokens(batch: Batch) -> int:
    """Tokens that are not padding; the decoder's included."""
    decoder = 0 if batch["labels"].shape == batch["input_ids"].shape else int((batch["labels"] != -100).sum())
    return int(batch["attention_mask"].sum()) + decoder


def predictions(batch: Batch) -> int:
    """Predicted interactions."""
    if batch["labels"].shape == batch["input_ids"].shape:
        return int((batch["labels"] != -100).sum())
    return int((batch["labels"] != -100).any(-1).sum())


class PlainFeedForward(RoutedFeedForward):
    """Experts by boolean masks, one after the other."""

    def forward(self, hidden_states: torch.Tensor, routing: Routing) -> torch.Tensor:
        if self.behavior_embedding is not None:
            hidden_states = torch.cat([hidden_states, self.behavior_embedding(routing.behaviors)], dim=-1)
        if not self.routed:
            return self.expert(hidden_states, None)
        slots = routing.slots()
        output = hidden_states.new_zeros(*hidden_states.shape[:-1], self.weights[-1].shape[-2])
        for number in range(self.num_experts):
            mask = slots == number
            output[mask] = self.expert(hidden_states[mask], number)
        return output

    @property
    def weights(self) -> list[torch.Tensor]:
        return [self.wi.weight, self.wo.weight]

    def expert(self, states: torch.Tensor, number: int | None) -> torch.Tensor:
        first, last = (weight if number is None else weight[number] for weight in self.weights)
        return F.linear(self.dropout(self.activation(F.linear(states, first))), last)


class PlainGatedFeedForward(PlainFeedForward):
    """The same for the gated one."""

    @property
    def weights(self) -> list[torch.Tensor]:
        if self.routed:
            return [*self.gate_up_proj.weight.chunk(2, dim=1), self.down_proj.weight]
        return [self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight]

    def expert(self, states: torch.Tensor, number: int | None) -> torch.Tensor:
        gate, up, down = (weight if number is None else weight[number] for weight in self.weights)
        return F.linear(self.dropout(self.activation(F.linear(states, gate)) * F.linear(states, up)), down)


PLAIN_CLASSES: dict[type, type] = {
    RoutedFeedForward: PlainFeedForward,
    RoutedGatedFeedForward: PlainGatedFeedForward,
    FusedQwen3RMSNorm: Qwen3RMSNorm,
    FusedSwitchLayerNorm: SwitchTransformersLayerNorm,
    Dropout: nn.Dropout,
}


def make_plain(model: nn.Module) -> nn.Module:
    """Turn one of our models, weights and all, into the plain reference."""
    model.set_attn_implementation("eager")
    for module in model.modules():
        module.__class__ = PLAIN_CLASSES.get(type(module), type(module))
    return model


def plain_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of the whole matrix of logits."""
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    labels = batch["labels"]
    if isinstance(model, GamerForCausalLM):
        logits, labels = model(**inputs, use_cache=False).logits[:, :-1], labels[:, 1:]
    else:
        logits = model(**inputs, decoder_input_ids=model._shift_right(labels), use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


def our_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(**batch).loss


def build(kind: str, size: str, dropout: float) -> nn.Module:
    """One of our models, or with `stock-` in front the backbone it stands on."""
    sizes, torch_seed = SIZES[size], torch.manual_seed(0)
    shared = {"behaviors": BEHAVIORS, "code_sizes": sizes["code_sizes"]}
    gamer = GamerConfig(
        **shared, **sizes["gamer"], hidden_dropout=dropout, attention_dropout=dropout, expert_dropout=dropout
    )
    mbgen = MBGenConfig(
        **shared, **sizes["mbgen"], num_user_tokens=0, dropout_rate=dropout, causal_encoder=kind == "causal"
    )
    del torch_seed
    if kind == "gamer":
        return GamerForCausalLM(gamer)
    if kind == "stock-gamer":
        names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        names += " head_dim rope_parameters tie_word_embeddings attention_dropout pad_token_id"
        return Qwen3ForCausalLM(Qwen3Config(**{name: getattr(gamer, name) for name in names.split()}))
    if kind == "stock-mbgen":
        names = "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads dropout_rate num_experts"
        fields = {name: getattr(mbgen, name) for name in names.split()}
        sparse = {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": mbgen.num_decoder_layers}
        return StockSwitch(SwitchTransformersConfig(**fields, **sparse, decoder_start_token_id=BOS))
    return MBGenForConditionalGeneration(mbgen)


def train(
    model: nn.Module, loss: Callable, work: list[Batch], seconds: float, device: str, autocast: bool
) -> dict[str, float]:
    """Steps over the batches, again and again, for so many seconds; the first round is not counted."""
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

    for batch in work[: max(2, len(work) // 4)]:
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


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here.


def peak_memory(device: str) -> float:
    """Of the device, or of the whole process on the CPU, since the reset, in MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10


def best_times(runs: list[Callable[[], object]], device: str, repeats: int = 15) -> list[float]:
    """The fastest of several runs of each, taken in turns, in seconds."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 3):
        for run, own in zip(runs, times, strict=True):
            synchronize(device)
            started = time.perf_counter()
            run()
            synchronize(device)
            own.append(time.perf_counter() - started)
    return [min(own[3:]) for own in times]


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product."""
    side = 2048 if device == "cpu" else 8192
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_times([lambda: one @ two], device, repeats=5)[0]


def arithmetic(model: nn.Module, batch: Batch) -> float:
    """FLOP of the weights of a step: six per weight and token that meets it, of one expert where routed.

    Attention's products of tokens with tokens are left out.
    """
    histories, targets, total = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum()), 0.0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        routed = weight is not None and weight.dim() == 3
        other_expert = "expert_" in name and "expert_0" not in name
        if other_expert or not (routed or isinstance(module, nn.Linear)):
            continue
        of_target = name.startswith("decoder.") and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        tokens = targets if of_target or name == "lm_head" else histories
        total += 6.0 * (weight[0] if routed else weight).numel() * tokens
    return total


def feed_forward(size: str, dtype: torch.dtype, autocast: bool, device: str, rows: int) -> dict[str, float]:
    """A routed feed-forward against a dense one of the same arithmetic, forward and backward.

    Tokens are those of GAMER: rows of BOS and whole interactions, about 256 tokens each. The goal is 1.15.
    """
    config, torch_seed = GamerConfig(behaviors=BEHAVIORS, **SIZES[size]["gamer"]), torch.manual_seed(0)
    del torch_seed
    period = config.token_space.num_slots - 1
    row = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1, period + 1).repeat(256 // period)])
    slots = row.to(device).repeat(rows, 1)
    routing = Routing.from_slots(slots, torch.zeros_like(slots), config.token_space.num_slots)
    ratios = {}
    for kind, shape, activation in (
        ("gated", RoutedGatedFeedForward, nn.SiLU()),
        ("plain", RoutedFeedForward, nn.ReLU()),
    ):
        runs = []
        for experts in (config.token_space.num_slots, 1):
            layer = shape(config.hidden_size, config.intermediate_size, experts, 3, 0, activation, 0.0)
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.05)
            layer.to(device, dtype)
            states = torch.randn(*slots.shape, config.hidden_size, device=device).to(dtype).requires_grad_()
            gradient = torch.randn_like(states)

            def run(layer=layer, states=states, gradient=gradient):
                states.grad = None
                layer.zero_grad()
                with torch.autocast(device, torch.bfloat16, enabled=autocast):
                    output = layer(states, routing)
                output.backward(gradient.to(output.dtype))

            runs.append(run)
        routed, dense = best_times(runs, device, repeats=max(960 // rows, 10))
        ratios |= {f"{kind}_to_dense": routed / dense, f"{kind}_dense_seconds": dense}
    return ratios


def contenders(kind: str, compile_too: bool) -> list[tuple[str, str, bool, bool, bool]]:
    """Name, model, plain, autocast, compiled."""
    listed = [
        ("plain", kind, True, False, False),
        ("stock", f"stock-{kind}", False, False, False),
        ("ours", kind, False, False, False),
        ("ours bf16", kind, False, True, False),
    ]
    if kind == "mbgen":
        listed += [("ours causal", "causal", False, False, False), ("ours causal bf16", "causal", False, True, False)]
    if compile_too:
        listed.append(("ours compiled", kind, False, False, True))
    return listed


def measure(kind: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All contenders of a model, one after the other."""
    space = TokenSpace(tuple(BEHAVIORS), tuple(SIZES[args.size]["code_sizes"]))
    size, results = args.batch or SIZES[args.size]["batch"][kind], {}
    rates = {name: matmul_rate(dtype, args.device) for name, dtype in DTYPES.items()}
    for name, which, plain, autocast, compiled in contenders(kind, args.compile):
        users = Users(space, args.users, args.longest, args.seed)
        # As many predictions in a step of whole users as in one of single ones.
        rows = max(1, round(size / users.lengths.mean())) if which == "causal" else size
        work = batches(users, which.removeprefix("stock-"), rows, not plain, args.batches)
        model = build(which, args.size, args.dropout)
        if plain:
            model = make_plain(model)
        if compiled:
            model.compile(dynamic=True)
        result = train(model, plain_loss if plain else our_loss, work, args.seconds, args.device, autocast)
        result["share_of_matmul_rate"] = result["flop_per_second"] / rates["bfloat16" if autocast else "float32"]
        results[name] = result
        for rival in ("plain", "stock"):
            if rival in results:
                for what in ("tokens", "predictions"):
                    key = f"{what}_per_second"
                    result[f"{what}_to_{rival}"] = result[key] / results[rival][key]
        print(json.dumps({kind: {name: {key: round(value, 4) for key, value in result.items()}}}), flush=True)
    return {"matmul_rate": rates, **results}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Of weights and states, and whether under autocast.
FEED_FORWARD_TYPES = {
    "float32": (torch.float32, False),
    "autocast": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
}


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description="Training throughput against stock backbones and a plain reference.")
    parser.add_argument("--models", default="gamer,mbgen")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--seconds", type=float, default=10, help="least time of each measurement")
    parser.add_argument("--batch", type=int, help="rows of a batch; by default that of the size")
    parser.add_argument("--batches", type=int, default=16, help="different batches")
    parser.add_argument("--feed-forward-rows", type=int, nargs="*", default=[16, 64], metavar="ROWS",
        help="of about 256 tokens, for the feed-forward alone")  # fmt: skip
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--longest", type=int, default=50, help="most interactions of a user")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure ours under torch.compile as well")
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory, as `train_model` does")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    if args.keep_memory:
        keep_freed_memory()
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    results: dict = {"arguments": {key: str(value) for key, value in vars(args).items()}, "machine": machine}
    results["feed_forward"] = {
        f"{name}, {rows} rows": feed_forward(args.size, dtype, autocast, args.device, rows)
        for name, (dtype, autocast) in FEED_FORWARD_TYPES.items()
        for rows in args.feed_forward_rows
    }
    print(json.dumps({"feed_forward": results["feed_forward"]}), flush=True)
    for kind in args.models.split(","):
        results[kind] = measure(kind, args)
    if args.output is not None:
        args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
