"""Time `generate` against stock `generate` with `prefix_allowed_tokens_fn` over a dict trie, in the same run.

    OMP_NUM_THREADS=2 python benchmarks/generation.py --model mbgen
    OMP_NUM_THREADS=2 python benchmarks/generation.py --model gamer

    python benchmarks/generation.py --model gamer --device cuda --users 256 --mode reduce-overhead

Random weights at the papers' sizes and a simulated catalog: MBGen answers 50-interaction histories with 50 beams,
GAMER 100-interaction histories with 20 beams, eight users at a time. Ours is timed as it is and compiled
(`compile_config`). Prints a table and, as the last line, JSON. All must return the same items, or the run fails.

Two floors stand beside the times: the operations of one call (products and attention, counted as it runs) at the rate
of a large matrix product, and the bytes it has to read at least (weights once for each pass of a network, keys and
values of the histories once for each step) at the rate of a large copy, both rates measured in the same run.
"""

import argparse
import json
import platform
import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CompileConfig, GenerationMixin

from mbgen_hf import GamerConfig, GamerForCausalLM, MBGenConfig, MBGenForConditionalGeneration


BEHAVIORS = ["click", "favorite", "cart", "purchase"]
SIZES = {"mbgen": {"history": 50, "beams": 50}, "gamer": {"history": 100, "beams": 20}}
GOAL = 20.0


def build(kind: str, num_items: int, code_size: int, levels: int, seed: int, device: str = "cpu"):
    """A model of the paper's size with random weights and a catalog of random codes."""
    torch.manual_seed(seed)
    sizes = [code_size] * levels
    if kind == "mbgen":
        model = MBGenForConditionalGeneration(MBGenConfig(behaviors=BEHAVIORS, code_sizes=sizes))
    else:
        config = GamerConfig(behaviors=BEHAVIORS, code_sizes=sizes, initializer_range=0.06)
        model = GamerForCausalLM(config)
    number = torch.randperm(code_size**levels)[:num_items]
    codes = torch.stack([number // code_size**level % code_size for level in reversed(range(levels))], dim=1)
    model.set_catalog(codes)
    return model.eval().to(device)


def histories(model, kind: str, users: int, length: int, seed: int) -> torch.LongTensor:
    """Token ids of random histories of one length, mostly clicks."""
    generator = torch.Generator().manual_seed(seed)
    space = model.config.token_space
    items = torch.randint(len(model.item_codes), (users, length), generator=generator)
    weights = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(users, -1)
    behaviors = torch.multinomial(weights, length, replacement=True, generator=generator) + space.behavior_offset
    codes = model.item_codes.cpu()[items].long() + torch.tensor(space.code_offsets)
    ids = torch.cat([behaviors[..., None], codes], dim=-1).flatten(1)
    edge = torch.full((users, 1), model.config.bos_token_id if kind == "gamer" else model.config.eos_token_id)
    return torch.cat([edge, ids] if kind == "gamer" else [ids, edge], dim=1).to(model.device)


class DictTrie:
    """What one would write without this package: nested dicts, and a function that stock `generate` asks per beam."""

    def __init__(self, model, start: int):
        self.start, self.root = start, {}
        for codes in (model.item_codes.cpu().long() + torch.tensor(model.config.token_space.code_offsets)).tolist():
            node = self.root
            for code in codes:
                node = node.setdefault(code, {})

    def __call__(self, batch_id: int, ids: torch.LongTensor) -> list[int]:
        node = self.root
        for code in ids[self.start + 1 :].tolist():
            node = node.get(code, {})
        # A beam that stock `generate` keeps only because nothing better was left has no way on.
        return list(node) or [0]


def stock_answer(model, kind: str, ids, behavior: int, trie: DictTrie, beams: int, results: int):
    """Stock beam search under the callback; scores are plain sums as in ours."""
    prompt = ids.new_full((len(ids), 1), behavior)
    if kind == "gamer":
        inputs = {"input_ids": torch.cat([ids, prompt], dim=1)}
    else:
        start = torch.full_like(prompt, model.config.decoder_start_token_id)
        inputs = {"input_ids": ids, "decoder_input_ids": torch.cat([start, prompt], dim=1)}
    return GenerationMixin.generate(
        model,
        **inputs,
        attention_mask=torch.ones_like(ids if kind == "mbgen" else inputs["input_ids"]),
        num_beams=beams,
        num_return_sequences=results,
        max_new_tokens=model.config.token_space.num_code_levels,
        prefix_allowed_tokens_fn=trie,
        length_penalty=0.0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )


def timed(function, repeats: int) -> tuple[list[float], object]:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds, result


def attention_operations(queries, keys, values, *args, **kwargs) -> int:
    """Of the CPU's attention kernel, which torch does not count; from shapes `(batch_size, heads, len, head_dim)`."""
    return 2 * queries[0] * queries[1] * queries[2] * keys[2] * (queries[3] + values[3])


def grouped_operations(states, weight, *args, **kwargs) -> int:
    """Of a grouped product: every row meets one of the matrices `(num_groups, d_in, d_out)`."""
    return 2 * states[0] * weight[1] * weight[2]


def floors(model, kind: str, ids: torch.LongTensor, call) -> dict:
    """Operations and bytes of one call, and the seconds they need at the rates of this machine."""
    aten = torch.ops.aten
    counted = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
        aten._grouped_mm: grouped_operations,
    }
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        call()
    operations = counter.get_total_flops()
    steps = model.config.token_space.num_code_levels - 1  # The first is part of reading the histories.
    network = model.decoder if kind == "mbgen" else model.model
    width = model.config.num_heads * model.config.d_kv if kind == "mbgen" else (
        model.config.num_key_value_heads * model.config.head_dim
    )  # fmt: skip
    layers = model.config.num_decoder_layers if kind == "mbgen" else model.config.num_hidden_layers
    history = ids.numel() * 2 * width * layers * 4
    read = weight_bytes(model) + steps * (weight_bytes(network) + model.lm_head.weight.nbytes + history)
    one = torch.randn(2048, 2048, device=model.device)
    large = torch.empty(1 << 26, device=model.device)
    product = min(timed(lambda: one @ one, 5)[0])
    copy = min(timed(lambda: large.clone(), 4)[0][1:])
    return {
        "operations": operations,
        "operations_floor_seconds": operations * product / (2 * 2048**3),
        "bytes": read,
        "bytes_floor_seconds": read * copy / (2 * large.nbytes),
    }


def weight_bytes(network: torch.nn.Module) -> int:
    """Weights of all maps; an embedding is looked up, not read."""
    looked_up = {id(part.weight) for part in network.modules() if isinstance(part, torch.nn.Embedding)}
    return sum(weight.nbytes for weight in network.parameters() if id(weight) not in looked_up)


@torch.no_grad()
def measure(kind: str, args: argparse.Namespace) -> dict:
    """Times of one model and its rival, and whether they agree."""
    size = SIZES[kind]
    model = build(kind, args.items, args.code_size, args.levels, args.seed, args.device)
    ids = histories(model, kind, args.users, size["history"], args.seed)
    mask = torch.ones_like(ids)
    behavior = model.config.token_space.behavior_id("purchase")
    options = {
        "behavior": "purchase",
        "num_beams": size["beams"],
        "num_return_sequences": args.results,
        "return_dict_in_generate": True,
    }

    def ours(**more):
        return model.generate(ids, mask, **options, **more)

    def read_once():
        if kind == "mbgen":
            return model.encoder(input_ids=ids, attention_mask=mask)
        return model.model(input_ids=ids, attention_mask=mask, use_cache=True)

    trie = DictTrie(model, start=ids.shape[1] if kind == "gamer" else 1)
    timed(ours, 2)
    seconds, answer = timed(ours, args.repeats)
    reading, _ = timed(read_once, args.repeats)
    rival, stock = timed(
        lambda: stock_answer(model, kind, ids, behavior, trie, size["beams"], args.results), args.rival_repeats
    )
    generated = slice(-model.config.token_space.num_code_levels, None)

    def compare(other) -> float:
        """Largest difference of scores, once the items are the same."""
        same = torch.equal(answer.sequences[:, generated], other.sequences[:, generated])
        difference = (answer.sequences_scores - other.sequences_scores).abs().max().item()
        if not same or difference > 1e-4:
            raise RuntimeError(
                f"expected the items and scores of plain search, found a difference of {difference:.1e}"
            )
        return difference

    difference, compiled, first = compare(stock), None, None
    if args.compile:
        config = CompileConfig(fullgraph=True, dynamic=False, mode=args.mode)
        first, other = timed(lambda: ours(compile_config=config), 1)
        timed(lambda: ours(compile_config=config), 2)
        compiled, other = timed(lambda: ours(compile_config=config), args.repeats)
        compare(other)
    plain = statistics.median(seconds)
    fastest = min(plain, statistics.median(compiled)) if compiled else plain
    exact_seconds, exact = timed(lambda: model.generate(ids, mask, **options, exact=True, node_budget=20_000), 1)
    if bool((exact.exact_gap > 0).any()):
        raise RuntimeError(f"expected a proof within the budget, found gaps {exact.exact_gap.tolist()}")
    found = (answer.item_indices[:, :, None] == exact.item_indices[:, None]).any(2).float().mean().item()
    return {
        "model": kind,
        "users": args.users,
        **size,
        "items": args.items,
        "code_sizes": list(model.config.code_sizes),
        "seconds": plain,
        "compiled_seconds": statistics.median(compiled) if compiled else None,
        "compiling_seconds": first[0] if first else None,
        "reading_the_history_seconds": statistics.median(reading),
        "rival_seconds": statistics.median(rival),
        "ratio": statistics.median(rival) / plain,
        "compiled_ratio": statistics.median(rival) / statistics.median(compiled) if compiled else None,
        "goal": GOAL,
        "users_per_second": args.users / fastest,
        **floors(model, kind, ids, ours),
        "largest_score_difference": difference,
        "exact_seconds": exact_seconds[0],
        "exact_expanded_prefixes": exact.expanded_prefixes.float().mean().item(),
        "beam_recall_of_exact": found,
    }


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=[*SIZES, "both"], default="both")
    parser.add_argument("--users", type=int, default=8, help="histories per call")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalog")
    parser.add_argument("--code-size", type=int, default=64, help="ids of each code level")
    parser.add_argument("--levels", type=int, default=3, help="code levels")
    parser.add_argument("--results", type=int, default=10, help="results per user")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="time it compiled too")
    parser.add_argument("--mode", help="of torch.compile, such as reduce-overhead for a CUDA graph")
    parser.add_argument("--repeats", type=int, default=7, help="calls to ours")
    parser.add_argument("--rival-repeats", type=int, default=3, help="calls to the rival")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments=None) -> list[dict]:
    args = parse(arguments)
    rows = [measure(kind, args) for kind in (SIZES if args.model == "both" else [args.model])]
    names = ("model", "users", "history", "beams", "ours", "compiled", "history once", "stock", "ratio", "compiled",
             "operations", "bytes")  # fmt: skip
    print("".join(f"{name:>13}" for name in names))
    for row in rows:
        cells = [row["model"], row["users"], row["history"], row["beams"]]
        seconds = ("seconds", "compiled_seconds", "reading_the_history_seconds", "rival_seconds")
        cells += ["-" if row[name] is None else f"{row[name]:.3f} s" for name in seconds]
        cells += ["-" if row[name] is None else f"{row[name]:.1f}x" for name in ("ratio", "compiled_ratio")]
        cells += [f"{row[name]:.3f} s" for name in ("operations_floor_seconds", "bytes_floor_seconds")]
        print("".join(f"{cell:>13}" for cell in cells))
        print(
            f"    exact: {row['exact_seconds']:.2f} s, {row['exact_expanded_prefixes']:.0f} prefixes a user; "
            f"the beams find {row['beam_recall_of_exact']:.2f} of the true best"
        )
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    print(json.dumps({"rows": rows, **versions}))
    return rows


if __name__ == "__main__":
    main()
