"""Train GAMER on a prepared folder from Python, under the session-wise protocol or leave-one-out (the default).

mbgen prepare LOG --columns user_id=...,item_id=...,behavior=...,timestamp=... --sessions gap:1800 --output data/shop
python examples/train_gamer.py --data data/shop --output runs/gamer --changes data.protocol=session_wise
python examples/train_gamer.py --data data/shop --output runs/gamer4x --changes data.protocol=session_wise \
    data.augmentation=4
accelerate launch --num_processes 2 examples/train_gamer.py --data data/shop --output runs/gamer
"""

from transformers import HfArgumentParser

from mbgen_hf.training.script import ScriptArguments, train_and_evaluate


def main(argv: list[str] | None = None) -> dict:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    return train_and_evaluate(args, "gamer")


if __name__ == "__main__":
    main()
