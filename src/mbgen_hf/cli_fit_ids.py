"""The `mbgen fit-ids` command: a prepared folder to item IDs."""

import argparse
import sys

from mbgen_hf.cli_data import DATA_HELP, add_config, shown_config


def add_fit_ids(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to those of `mbgen`."""
    parser = subparsers.add_parser("fit-ids", help="prepared folder to item IDs", allow_abbrev=False,
        description="Give every item its codes, from features that are given or learned from the log.")  # fmt: skip
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("data", metavar="PREPARED", help=DATA_HELP)
    add_config(parser)
    add("--output", required=True, metavar="IDS", help="folder to write, for `mbgen train --item-ids IDS`")
    add("--overwrite", action="store_true", help="replace the result of an earlier run")
    add("--method", choices=("balanced", "rq-vae", "chunked", "single", "released"), default="balanced",
        help="kind of IDs (default: balanced semantic IDs)")  # fmt: skip
    add("--features", metavar="FILE",
        help=".npy in catalog order, .safetensors or .parquet by item id (default: learned from the log)")  # fmt: skip
    add("--protocol", choices=("leave_one_out", "session_wise"), default="leave_one_out",
        help="which interactions learning must not see (default: leave_one_out)")  # fmt: skip
    add("--code-sizes", type=_sizes, metavar="N,...",
        help="codes of each semantic level (default: 4/3 of the cube root of the catalog, in steps of 8)")  # fmt: skip
    add("--hidden", type=_sizes, metavar="N,...", help="hidden widths of the encoder (default: by catalog size)")
    add("--index-file", metavar="FILE", help="index.json of released IDs (item -> code tokens)")
    for flag, kind, text in _NUMBERS:
        add(flag, type=kind, metavar="X" if kind is float else "N", help=text)
    add("--picture", action="store_true", help="draw the balance report as balance.png; needs matplotlib")
    add("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")
    add("--seed", type=int, default=0)


_NUMBERS = (
    ("--spare-fraction", float, "room for items to come in the last level (default: 0.1)"),
    ("--latent-dim", int, "width of the latent vectors (default: 32)"),
    ("--beta", float, "weight of the quantisation loss (default: 0.25)"),
    ("--max-epochs", int, "cap on the passes of the auto-encoder (default: 300)"),
    ("--learning-rate", float, "of the auto-encoder (default: 0.003)"),
    ("--sasrec-epochs", int, "passes of the SASRec that learns features (default: 30)"),
    ("--base", int, "codes of a level of chunked IDs (default: 64)"),
    ("--num-levels", int, "levels of chunked IDs (default: as many as needed)"),
)


def _run(args: argparse.Namespace) -> int:
    from mbgen_hf.learned_features import fit_ids
    from mbgen_hf.public_datasets.published import load_table

    names = ["code_sizes", "hidden", "index_file", *(flag[2:].replace("-", "_") for flag, _, _ in _NUMBERS)]
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    sasrec = {"num_epochs": options.pop("sasrec_epochs")} if "sasrec_epochs" in options else None
    ids = fit_ids(
        load_table(args.data, args.config),
        args.output,
        args.method,
        args.features,
        args.protocol,
        args.seed,
        "cpu" if args.cpu else None,
        progress=sys.stderr.isatty(),
        overwrite=args.overwrite,
        picture=args.picture,
        sasrec=sasrec,
        **options,
    )
    print(ids.describe())
    data = f"{args.data}{shown_config(args)}"
    print(f"item IDs: {args.output}\nnext: mbgen train {data} --item-ids {args.output} --output FOLDER")
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected positive integers separated by commas, found {text!r}")
    return tuple(map(int, sizes))


__all__ = ["add_fit_ids"]
