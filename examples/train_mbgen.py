"""Train MBGen on a prepared folder from Python.

mbgen prepare LOG --columns user_id=...,item_id=...,behavior=...,timestamp=... --output data/shop
python examples/train_mbgen.py --data data/shop --output runs/shop
accelerate launch --num_processes 2 examples/train_mbgen.py --data data/shop --output runs/shop
"""

from transformers import HfArgumentParser

from mbgen_hf.training.script import ScriptArguments, train_and_evaluate


def main(argv: list[str] | None = None) -> dict:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    return train_and_evaluate(args, "mbgen")


if __name__ == "__main__":
    main()
