"""Rules of the house that a reader could break without noticing."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mbgen_hf


ROOT = Path(__file__).resolve().parents[1]
HUB_ROOM = sorted((ROOT / "src/mbgen_hf/models").glob("*.py"))
HUB_IMPORTS = {"torch", "numpy", "transformers", "tokenizers", "huggingface_hub", "safetensors"}


@pytest.mark.parametrize("path", HUB_ROOM, ids=lambda path: path.name)
def test_the_hub_room_imports_siblings_and_what_every_user_has(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {node.module.partition(".")[0]}
            assert node.module != "__future__"
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` is not seen when code is copied into a checkpoint, `from ..x` fails.
            assert node.level == 1 and node.module and "." not in node.module
            continue
        else:
            continue
        assert names <= HUB_IMPORTS | set(sys.stdlib_module_names)


def test_every_public_name_is_there():
    for name in mbgen_hf.__all__:
        assert getattr(mbgen_hf, name) is not None
    assert dir(mbgen_hf) == sorted(mbgen_hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Recommendar'"):
        _ = mbgen_hf.Recommendar


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_public_modules_name_what_they_export(path):
    if path.name in ("__init__.py", "version.py"):
        return
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in module.__all__)


def test_models_import_without_datasets_and_polars():
    code = (
        "import sys\n"
        "for name in ('datasets', 'polars', 'pyarrow'): sys.modules[name] = None\n"
        "import mbgen_hf\n"
        "from mbgen_hf.models.modeling_mbgen import MBGenForConditionalGeneration\n"
        "MBGenForConditionalGeneration(mbgen_hf.MBGenConfig(d_model=8, d_ff=8, d_kv=4, num_heads=2))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
