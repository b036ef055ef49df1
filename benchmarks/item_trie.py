"""Time the catalog constraint alone: building it, its memory, and one step at 640 beams, from 10^4 to 10^7 items.

    OMP_NUM_THREADS=2 python benchmarks/item_trie.py

A step is what decoding does per code level: which codes may follow every beam, masking the scores of the level, and
following one code. The rival is the function that one writes for `prefix_allowed_tokens_fn` over nested dicts, asked
by stock `PrefixConstrainedLogitsProcessor` for as many beams. Prints a table and, as the last line, JSON.
"""

import argparse
import json
import platform
import statistics
import time

import torch
from transformers import PrefixConstrainedLogitsProcessor

from mbgen_hf.models.item_trie import ItemTrie


GOALS = {"step_ms": 1.0, "flat": 1.2, "build_seconds": 1.0, "bytes_per_item": 24.0}


def random_catalog(num_items: int, code_size: int, levels: int, seed: int) -> torch.Tensor:
    """`(num_items, levels)` different random codes."""
    number = torch.randperm(code_size**levels, generator=torch.Generator().manual_seed(seed))[:num_items]
    return torch.stack([number // code_size**level % code_size for level in reversed(range(levels))], dim=1).int()


def step_times(trie: ItemTrie, codes: torch.Tensor, beams: int, repeats: int) -> list[float]:
    """Seconds of a step at every level, on the prefixes of other items in every repeat.

    The lower quartile: what else the machine does only adds to a step of a quarter of a millisecond.
    """
    quartiles = []
    size = trie.code_sizes[0]
    for level in range(trie.num_levels):
        seconds = []
        for repeat in range(repeats):
            chosen = codes[torch.randint(len(codes), (beams,), generator=torch.Generator().manual_seed(repeat))].long()
            node, scores = trie.walk(chosen[:, :level]), torch.randn(beams, size)
            started = time.perf_counter()
            scores += trie.bias(node, level)
            child = trie.advance(node, chosen[:, level], level)
            seconds.append(time.perf_counter() - started)
            assert bool((child >= 0).all())
        quartiles.append(statistics.quantiles(seconds, n=4)[0])
    return quartiles


def rival_step_time(codes: torch.Tensor, sizes: list[int], beams: int, repeats: int) -> float:
    """Median seconds of the stock processor over nested dicts, at the last level."""
    offsets = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))])
    root: dict = {}
    for row in (codes.long() + offsets).tolist():
        node = root
        for code in row:
            node = node.setdefault(code, {})

    def allowed(batch_id: int, ids: torch.LongTensor) -> list[int]:
        node = root
        for code in ids.tolist():
            node = node[code]
        return list(node)

    processor = PrefixConstrainedLogitsProcessor(allowed, num_beams=1)
    prefixes = (codes[:beams].long() + offsets)[:, :-1]
    seconds = []
    for _ in range(repeats):
        scores = torch.randn(beams, sum(sizes))
        started = time.perf_counter()
        processor(prefixes, scores)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(num_items: int, args: argparse.Namespace) -> dict:
    codes = random_catalog(num_items, args.code_size, args.levels, args.seed)
    sizes = [args.code_size] * args.levels
    builds = []
    for _ in range(3 if num_items <= 10**6 else 1):
        started = time.perf_counter()
        trie = ItemTrie(codes, sizes)
        builds.append(time.perf_counter() - started)
    row = {
        "items": num_items,
        "build_seconds": min(builds),
        "bytes_per_item": trie.num_bytes / num_items,
        "step_ms": [1e3 * seconds for seconds in step_times(trie, codes, args.beams, args.repeats)],
    }
    if num_items <= args.rival_items:
        row["rival_step_ms"] = 1e3 * rival_step_time(codes, sizes, args.beams, 5)
    return row


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], help="catalog sizes")
    parser.add_argument("--beams", type=int, default=640, help="rows of a step")
    parser.add_argument("--code-size", type=int, default=256, help="ids of each code level")
    parser.add_argument("--levels", type=int, default=3, help="code levels")
    parser.add_argument("--repeats", type=int, default=200, help="steps per level")
    parser.add_argument("--rival-items", type=int, default=10**5, help="largest catalog the rival is given")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments=None) -> dict:
    args = parse(arguments)
    rows = [measure(num_items, args) for num_items in args.items]
    slowest = [max(row["step_ms"]) for row in rows]
    print(f"{'items':>10}{'build':>10}{'bytes/item':>12}{'step by level':>28}{'dict trie':>12}{'ratio':>8}")
    for row in rows:
        steps = " ".join(f"{value:.3f}" for value in row["step_ms"]) + " ms"
        rival = row.get("rival_step_ms")
        beside = f"{rival:9.2f} ms{rival / max(row['step_ms']):7.0f}x" if rival else ""
        print(f"{row['items']:10}{row['build_seconds']:9.2f}s{row['bytes_per_item']:12.1f}{steps:>28}{beside}")
    flat = max(slowest) / min(slowest)
    print(f"slowest step over the fastest catalog's: {flat:.2f} (goal {GOALS['flat']})")
    report = {"rows": rows, "flat": flat, "goals": GOALS, "beams": args.beams, "threads": torch.get_num_threads()}
    print(json.dumps({**report, "torch": torch.__version__, "machine": platform.machine()}))
    return report


if __name__ == "__main__":
    main()
