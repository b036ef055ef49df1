"""A checkpoint folder on a machine where this package was never installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer


SCRIPT = """
import json, sys
sys.modules["mbgen_hf"] = None
import transformers
from transformers import AutoModel, AutoTokenizer
folder, histories, again = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
other = getattr(transformers, sys.argv[4]).from_pretrained(folder, trust_remote_code=True)
assert type(other).__name__ == type(model).__name__
assert type(model).__module__.startswith("transformers_modules."), type(model)
options = dict(prompt=[model.config.bos_token_id, "buy"], num_beams=20, num_return_sequences=10,
               return_dict_in_generate=True, exclude=[0, 1, 2])
type(model)._stock_generate = None  # The shared-history search must answer.
histories = [[tuple(pair) for pair in history] for history in histories]
users = [1, 2, 3] if tokenizer.token_space.num_user_tokens else None
encoded = tokenizer.encode_history(histories, user_id=users)
found = [model.generate(**encoded, **options), model.generate(**options), model.generate(**options, exact=True)]
model.save_pretrained(again)
tokenizer.save_pretrained(again)
print(json.dumps([[tokenizer.decode_items(o.sequences), o.sequences_scores.tolist()] for o in found]))
"""


def run_without_the_package(folder, again, cache, auto_class) -> list:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(HISTORIES), str(again), auto_class],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("auto_class", ["AutoModelForSeq2SeqLM", "AutoModelForCausalLM"])
def test_a_folder_works_where_the_package_is_missing(tmp_path, model, tokenizer, auto_class):
    users = [1, 2, 3]
    if auto_class == "AutoModelForCausalLM":
        model = tiny_gamer()
        tokenizer, users = gamer_tokenizer(model), None
    first, second, cache = tmp_path / "first", tmp_path / "second", tmp_path / "cache"
    cache.mkdir()
    model.save_pretrained(first)
    tokenizer.save_pretrained(first)
    options = {
        "prompt": [1, "buy"],
        "num_beams": 20,
        "num_return_sequences": 10,
        "return_dict_in_generate": True,
        "exclude": [0, 1, 2],
    }
    expected = [
        model.generate(**tokenizer.encode_history(HISTORIES, user_id=users), **options),
        model.generate(**options),
        model.generate(**options, exact=True),
    ]
    # What is loaded without the package and saved again must work as well.
    for folder, again in ((first, second), (second, tmp_path / "third")):
        found = run_without_the_package(folder, again, cache, auto_class)
        for (items, scores), output in zip(found, expected, strict=True):
            assert items == tokenizer.decode_items(output.sequences)
            torch.testing.assert_close(torch.tensor(scores), output.sequences_scores, atol=1e-5, rtol=1e-6)
    config = json.loads((second / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", auto_class}
    assert {file.suffix for file in first.iterdir()} == {".py", ".json", ".safetensors"}
