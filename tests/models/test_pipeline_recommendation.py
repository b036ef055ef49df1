import json
import os
import subprocess
import sys

import pytest
import torch
from model_fixtures import HISTORIES, gamer_tokenizer, tiny_gamer, tiny_model, tokenizer_of
from transformers import pipeline


TASK = "multi-behavior-recommendation"


def folder_of(kind: str, path, **changes):
    model = tiny_model(num_user_tokens=0, **changes) if kind == "mbgen" else tiny_gamer(**changes)
    tokenizer = tokenizer_of(model) if kind == "mbgen" else gamer_tokenizer(model)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model, tokenizer


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_pipeline_answers_as_generate_does(tmp_path, kind):
    model, tokenizer = folder_of(kind, tmp_path)
    recommend = pipeline(TASK, model=str(tmp_path), trust_remote_code=True)
    histories = [*HISTORIES, []]
    output = model.generate(
        **tokenizer.encode_history(histories), behavior="buy", num_beams=20, num_return_sequences=5,
        return_dict_in_generate=True,
    )  # fmt: skip
    for batch_size in (1, 3):
        answers = recommend(histories, top_k=5, batch_size=batch_size)
        assert [[entry["item_id"] for entry in answer] for answer in answers] == [
            tokenizer.item_ids[row].tolist() for row in output.item_indices
        ]
        scores = torch.tensor([[entry["score"] for entry in answer] for answer in answers])
        torch.testing.assert_close(scores, output.sequences_scores.view(4, 5), atol=1e-5, rtol=1e-5)
    assert recommend(HISTORIES[0], top_k=5) == recommend([HISTORIES[0]], top_k=5)[0]
    assert {entry["behavior"] for entry in recommend([], behavior="click")} == {"click"}
    assert len({entry["behavior"] for entry in recommend(HISTORIES[0], behavior="any", top_k=30, num_beams=60)}) > 1


def test_pipeline_knows_sessions(tmp_path):
    model, tokenizer = folder_of("gamer", tmp_path, session_wise_attention=True)
    recommend = pipeline(TASK, model=model, tokenizer=tokenizer)
    rows = [
        {
            "item_ids": ["item-03", "item-07", "item-09"],
            "behaviors": ["click", "cart", "buy"],
            "session_ids": [0, 0, 1],
        },
        {"item_ids": ["item-01"], "behaviors": ["cart"], "session_ids": [0]},
    ]
    rows.append({"item_ids": [], "behaviors": [], "session_ids": []})
    alone = [recommend(row, top_k=4) for row in rows]
    together = recommend(rows, top_k=4, batch_size=3)
    for answer, expected in zip(together, alone, strict=True):
        assert [entry["item_id"] for entry in answer] == [entry["item_id"] for entry in expected]
        assert [e["score"] for e in answer] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_pipeline_refuses_bad_options(tmp_path):
    model, tokenizer = folder_of("gamer", tmp_path)
    recommend = pipeline(TASK, model=model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="`top_k`: expected a whole number of at least 1, found 0"):
        recommend(HISTORIES, top_k=0)
    with pytest.raises(ValueError, match="`beams`: expected an option of this pipeline"):
        recommend(HISTORIES, beams=5)
    with pytest.raises(ValueError, match="`generate_kwargs`: expected none of the pipeline's own"):
        recommend(HISTORIES, generate_kwargs={"num_beams": 5})
    with pytest.raises(ValueError, match="'unknown'"):
        recommend([[("click", "unknown")]])


SCRIPT = """
import json, sys
sys.modules["mbgen_hf"] = None
from transformers import pipeline
recommend = pipeline("multi-behavior-recommendation", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(recommend([("click", "item-03")], behavior="buy", top_k=5)))
"""


def test_pipeline_works_where_the_package_is_missing(tmp_path):
    model, tokenizer = folder_of("mbgen", tmp_path)
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = pipeline(TASK, model=model, tokenizer=tokenizer)([("click", "item-03")], behavior="buy", top_k=5)
    assert [entry["item_id"] for entry in found] == [entry["item_id"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)
