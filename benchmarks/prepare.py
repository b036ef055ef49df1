"""Raw text to splits: speed, memory and growth of the data path, against pandas groupby-apply.

    python benchmarks/prepare.py   # 1.2 GB of disk, 3 GB of memory
    python benchmarks/prepare.py --sizes 100000,1000000 --rival 100000
    python benchmarks/prepare.py --sizes 30000000 --sample 0.1   # besides, a tenth of the users

Each size runs in a process of its own on a generated log of MBGen's form (user, item, behavior, time; as many rows for
each user and item as IJCAI has). The rows are in order of time over all users, so that grouping has to sort them;
`--order user` writes them grouped as some releases are. Timed is reading and checking the text, grouping, filtering as
MBGen does and cutting the leave-one-out splits; `saved` adds writing the prepared folder. Memory is the peak of the
process above what it holds after its imports, as a multiple of the columns (two ids and a time of 8 bytes, a label of
1). The rival does the same steps as a pandas user would write them and must come to the same numbers. With `--sample`
the same log is also read for a share of its users and must come to the rows of reading it whole and sampling after.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl


BEHAVIORS = ["pv", "fav", "cart", "buy"]
ROWS_PER_USER, ROWS_PER_ITEM = 77, 93  # IJCAI in MBGen's table 2
COLUMN_BYTES = 8 + 8 + 1 + 8
START, SECONDS = 1_431_273_600, 184 * 86_400
TARGET_RATE, TARGET_MEMORY = 2e6, 3.0
COLUMNS = {"user_id": 0, "item_id": 1, "behavior": 2, "timestamp": 3}
CHUNK = 1_000_000


def write_log(path: Path, rows: int, order: str, seed: int = 0) -> None:
    """A log of `rows` rows in chunks, so that writing needs little memory."""
    rng = np.random.default_rng(seed)
    num_users, num_items = max(rows // ROWS_PER_USER, 10), max(rows // ROWS_PER_ITEM, 10)
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            size = min(CHUNK, rows - start)
            share = np.sort((start + rng.random(size) * size) / rows)  # from 0 to 1 over the whole log
            users = rng.integers(0, num_users, size) if order == "time" else (share * num_users).astype(np.int64)
            times = share * SECONDS if order == "time" else share * num_users % 1 * SECONDS
            items = (rng.random(size) ** 2 * num_items).astype(np.int64)
            # One row in twenty goes to a rare item and, in order of time, one in a hundred to a rare user: the filters
            # take these away again.
            rare = rng.random(size)
            items = np.where(rare < 0.05, num_items + rng.integers(0, 4 * num_items, size), items)
            if order == "time":
                users = np.where(rare > 0.99, num_users + rng.integers(0, num_users // 2, size), users)
            frame = pl.DataFrame(
                {
                    "user": users * 3 + 1,
                    "item": items * 2 + 7,
                    "behavior": pl.Series(BEHAVIORS).gather(rng.choice(4, size, p=[0.85, 0.05, 0.04, 0.06])),
                    "time": START + times.astype(np.int64),
                }
            )
            frame.write_csv(file, include_header=False, separator="\t")


def ours(path: Path, share: float | None = None, while_reading: bool = True) -> dict:
    """Raw text to splits with this package, maybe of a share of the users."""
    from mbgen_hf.data.filters import filter_table
    from mbgen_hf.data.read_log import read_interaction_log
    from mbgen_hf.data.selection import Selection, UserSample, sample_users
    from mbgen_hf.data.sequence_table import SequenceTable
    from mbgen_hf.evaluation.protocols import leave_one_out_cases, training_end

    memory = PeakMemory()
    started = time.perf_counter()
    selection = Selection(sample=UserSample(share)) if share and while_reading else None
    log = read_interaction_log(path, COLUMNS, BEHAVIORS, has_header=False, selection=selection)
    table, schema = SequenceTable.from_log(log.frame, log.schema), log.schema
    del log
    if share and not while_reading:
        table, _ = sample_users(table, share)
    table, _ = filter_table(table)
    ends = training_end(table)
    cases = [leave_one_out_cases(table, split) for split in ("validation", "test")]
    seconds = time.perf_counter() - started
    peak = memory.bytes()
    del ends, cases
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        table.save(folder)
        saving = time.perf_counter() - started
    return result(table, schema.names) | {"seconds": seconds, "peak": peak, "saving": saving, "all": memory.bytes()}


def result(table, names) -> dict:
    """What both sides must agree on."""
    weights = int((table.item_ids[table.items] * (1 + table.behaviors.astype(np.int64))).sum())
    return {"rows": table.num_interactions, "users": table.num_users, "items": table.num_items, "checksum": weights}


def rival(path: Path) -> dict:
    """The same with pandas groupby-apply."""
    import pandas as pd

    memory = PeakMemory()
    started = time.perf_counter()
    log = pd.read_csv(path, sep="\t", names=["user", "item", "behavior", "time"])
    log["behavior"] = log["behavior"].map({name: label for label, name in enumerate(BEHAVIORS)})
    log = log.sort_values(["user", "time"], kind="stable")
    training = log.groupby("user", group_keys=False)["item"].apply(lambda items: items.iloc[:-2])
    counts = training.value_counts()
    log = log[log["item"].isin(counts.index[counts >= 5])]
    log = log.groupby("user").filter(lambda rows: len(rows) >= 4)
    sequences = log.groupby("user")[["item", "behavior", "time"]].apply(lambda rows: rows.to_numpy())
    splits = sequences.apply(lambda rows: (rows[:-2], rows[-2], rows[-1]))
    seconds = time.perf_counter() - started
    checksum = int((log["item"] * (1 + log["behavior"])).sum())
    return {
        "rows": len(log),
        "users": len(splits),
        "items": int(log["item"].nunique()),
        "checksum": checksum,
        "seconds": seconds,
        "peak": memory.bytes(),
    }


class PeakMemory:
    """Peak resident memory of this process above what it holds now (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        self.before = self._read("VmRSS")

    def bytes(self) -> int:
        return self._read("VmHWM") - self.before

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def in_new_process(side: str, path: Path, threads: int, share: float | None = None) -> dict:
    environment = os.environ | {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--side", side, "--file", str(path), "--sample", str(share or 0)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def line(rows: int, name: str, found: dict) -> str:
    text = f"{rows:>11,}  {name:<14}{found['seconds']:>8.2f} s{rows / found['seconds'] / 1e6:>8.2f} M/s"
    text += f"{found['peak'] / rows / COLUMN_BYTES:>8.2f} x columns ({found['peak'] / 2**20:,.0f} MB)"
    if "saving" in found:
        text += f"; saved {rows / (found['seconds'] + found['saving']) / 1e6:.2f} M/s"
    return text


def check_same(name: str, ours: dict, other: dict) -> None:
    for count in ("rows", "users", "items", "checksum"):
        if ours[count] != other[count]:
            raise RuntimeError(f"{count}: ours {ours[count]}, {name} {other[count]}")


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description="Benchmark the data path.")
    parser.add_argument("--sizes", default="100000,1000000,10000000,33000000")
    parser.add_argument("--rival", type=int, default=1_000_000, help="rows of the comparison with pandas")
    parser.add_argument("--order", choices=("time", "user"), default="time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=float, default=0.0, help="read each log for this share of its users too")
    parser.add_argument("--side", choices=("ours", "rival", "after"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        if args.side == "rival":
            found = rival(args.file)
        else:
            found = ours(args.file, args.sample or None, while_reading=args.side == "ours")
        print(json.dumps(found))
        return found
    measured: dict = {}
    with tempfile.TemporaryDirectory(prefix="mbgen-benchmark-") as folder:
        for rows in map(int, args.sizes.split(",")):
            path = Path(folder) / "log.txt"
            write_log(path, rows, args.order)
            measured[rows] = in_new_process("ours", path, args.threads)
            print(line(rows, "ours", measured[rows]), flush=True)
            if args.sample:
                after = in_new_process("after", path, args.threads, args.sample)
                print(line(rows, "sampled after", after), flush=True)
                measured[f"sample of {rows}"] = sampled = in_new_process("ours", path, args.threads, args.sample)
                print(line(rows, "sampled", sampled), flush=True)
                check_same("sampled after", sampled, after)
                print(
                    f"{'':13}the same rows, users and items; {after['peak'] / sampled['peak']:.1f} times less memory"
                )
            if rows == args.rival:
                other = in_new_process("rival", path, args.threads)
                print(line(rows, "pandas", other), flush=True)
                check_same("pandas", measured[rows], other)
                ratio = other["seconds"] / measured[rows]["seconds"]
                print(f"{'':13}the same rows, users and items; {ratio:.1f} times as fast as pandas groupby-apply")
            path.unlink()
    largest = max(rows for rows in measured if isinstance(rows, int))
    rate = largest / measured[largest]["seconds"]
    memory = measured[largest]["peak"] / largest / COLUMN_BYTES
    print(f"at {largest:,} rows: {rate / 1e6:.2f} M interactions/s (goal {TARGET_RATE / 1e6:.0f}), ", end="")
    print(f"memory {memory:.2f} x columns (goal {TARGET_MEMORY:.0f})")
    return measured


if __name__ == "__main__":
    main()
