"""The whole path on a simulated shop: raw log, prepared data, trained MBGen, scores beside baselines, recommendations.

    python examples/quickstart.py

It runs the same commands a user types for a log of their own, and prints each before running it.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from mbgen_hf.cli import main as mbgen
from mbgen_hf.simulation import simulate_shop


def run(command: str) -> None:
    """Print an `mbgen` command line and run it; stop the script if it fails."""
    print(f"\n$ mbgen {command}", flush=True)
    status = mbgen(shlex.split(command))
    if status:
        sys.exit(status)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The whole path on a simulated shop.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder for everything")
    parser.add_argument("--max-steps", type=int, default=2400, help="training steps")
    parser.add_argument("--num-users", type=int, default=2000, help="shoppers to simulate")
    args = parser.parse_args(argv)
    started = time.time()
    args.output.mkdir(parents=True, exist_ok=True)
    log, data, model = (shlex.quote(str(args.output / name)) for name in ("shop.csv", "data", "model"))
    simulate_shop(num_users=args.num_users).write_csv(args.output / "shop.csv")
    print(f"simulated a shop: {args.output / 'shop.csv'}")
    run(
        f"prepare {log} --columns user_id=user_id,item_id=item_id,behavior=behavior,timestamp=timestamp "
        f"--behaviors click,cart,purchase --target purchase --output {data} --overwrite"
    )
    run(f"train {data} --output {model} --preset mbgen-quickstart --max-steps {args.max_steps} --overwrite")
    run(f"evaluate {model} --data {data} --num-beams 20")
    run(f"recommend {model} --data {data} --users 0,1,2 -k 3")
    print(f"\ndone in {time.time() - started:.0f} s; the checkpoint and its model card are in {args.output / 'model'}")


if __name__ == "__main__":
    main()
