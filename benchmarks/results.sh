#!/bin/sh
# The session-wise tables and pictures of docs/results.md, in one command (a day on two cores; finished runs are kept):
#
#     sh benchmarks/results.sh LOGS OUTPUT [SEEDS]
#
# LOGS holds retailrocket_kcore/ and taobao_kcore_fav_cart_buy/ with interactions.csv.gz in each. Tables are written to
# OUTPUT/RUNS/results.md, results_of_new.md and robustness.md. PYTHON="echo python" prints the commands instead.
set -eu
logs=$1 out=$2 seeds=${3:-0,1,2}
python=${PYTHON:-python}
here=$(dirname "$0")
columns=user_id=user,item_id=item,behavior=behavior,timestamp=timestamp
plain="sasrec,qwen3,qwen3 + 4x,gamer,gamer + 4x,mbgen causal"
heads="qwen3 + copying,gamer + copying,gamer + copying + 4x,mbgen causal + copying"
heads="$heads,qwen3 + informed copying,gamer + informed copying,mbgen causal + informed copying"
ids="gamer + copying @ balanced,gamer + copying @ rq-vae,gamer + copying @ single"
ids="$ids,gamer + informed copying @ rq-vae,gamer + informed copying @ single"
new="gamer + informed copying,mbgen causal + informed copying,gamer + copying @ rq-vae,gamer + copying @ single"
new="$new,gamer + informed copying @ rq-vae,gamer + informed copying @ single"

prepare() { # log, behaviors, sessions
    [ -d "$out/data/$1" ] || $python -m mbgen_hf.cli prepare "$logs/$1/interactions.csv.gz" --columns "$columns" \
        --behaviors "$2" --target buy --item-count-over all --min-user-interactions 0 --sessions "$3" --output "$out/data/$1"
}

fit_ids() { # log
    [ -d "$out/ids/$1-balanced" ] || $python -m mbgen_hf.cli fit-ids "$out/data/$1" --protocol session_wise \
        --output "$out/ids/$1-balanced"
    [ -d "$out/ids/$1-rq-vae" ] || $python -m mbgen_hf.cli fit-ids "$out/data/$1" --protocol session_wise \
        --method rq-vae --features "$out/ids/$1-balanced/features.safetensors" --output "$out/ids/$1-rq-vae"
}

compare() { # log, runs, models, seeds, further options
    log=$1 runs=$2 models=$3 of=$4
    shift 4
    $python "$here/compare_models.py" "$out/data/$log" --protocol session_wise --validation-users 1000 --seeds "$of" \
        --item-ids "balanced=$out/ids/$log-balanced" --item-ids "rq-vae=$out/ids/$log-rq-vae" \
        --output "$out/$runs" --models "$models" "$@"
}

sampled() { # log, steps with a head, models without one
    fit_ids "$1"
    compare "$1" "$1" "$3" "$seeds" --steps 5000
    compare "$1" "$1" "$heads,$ids" "$seeds" --steps "$2" --validations 6
    compare "$1" "$1" "$new" "$seeds" --steps "$2" --exclude-seen
    compare "$1" "$1" "$3,$heads,$ids" "$seeds" # All of them are there: the whole table.
    $python "$here/robustness.py" "$out/data/$1" "$out/$1" --models "qwen3,gamer,gamer + 4x,gamer + informed copying" \
        --seeds "$seeds"
    $python "$here/learning_curves.py" "$out/$1" "$out/$1/curves.png"
}

prepare retailrocket_kcore view,cart,buy gap:1800
prepare taobao_kcore_fav_cart_buy fav,cart,buy day:Asia/Shanghai
[ -d "$out/data/taobao_5000" ] || $python -c "from mbgen_hf import SequenceTable as T; from pathlib import Path
into = Path('$out/data/taobao_5000'); into.mkdir()
T.load('$out/data/taobao_kcore_fav_cart_buy').sample_users(5000).save(into)"

sampled retailrocket_kcore 600 "$plain"
sampled taobao_5000 1500 "$plain,mbgen"
compare taobao_kcore_fav_cart_buy taobao "qwen3,gamer,gamer + 4x" 0 --steps 12000 --validations 6
compare taobao_kcore_fav_cart_buy taobao "sasrec,gamer + informed copying,mbgen causal + informed copying" 0 --steps 6000 \
    --validations 6
compare taobao_kcore_fav_cart_buy taobao \
    "sasrec,qwen3,gamer,gamer + 4x,gamer + informed copying,mbgen causal + informed copying" 0
$python -m mbgen_hf.cli statistics "$out/data/retailrocket_kcore" "$out/data/taobao_kcore_fav_cart_buy" --recency \
    --picture "$out/recency.png"
