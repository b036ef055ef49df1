"""Continuous integration does not skip what it should run."""

import os
import shutil
import subprocess
import sys

import pytest
from script_loading import ROOT
from shared_files import REQUIRED, shared_path


def test_what_is_not_there_is_skipped_or_where_it_must_be_a_failure(tmp_path, monkeypatch):
    monkeypatch.delenv(REQUIRED, raising=False)
    assert shared_path(tmp_path, "folder") == tmp_path
    with pytest.raises(pytest.skip.Exception, match="golden files not found at .*none"):
        shared_path(tmp_path / "none", "golden files")
    monkeypatch.setenv(REQUIRED, "1")
    assert shared_path(tmp_path, "folder") == tmp_path
    with pytest.raises(pytest.fail.Exception, match=f"golden files not found at .*none, and {REQUIRED} is set"):
        shared_path(tmp_path / "none", "golden files")


def test_continuous_integration_fails_without_golden_files_and_logs(tmp_path):
    assert f"export {REQUIRED}=1" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    tests = tmp_path / "checkout" / "tests"
    tests.mkdir(parents=True)
    for name in ("conftest.py", "shared_files.py"):
        shutil.copy(ROOT / "tests" / name, tests)
    (tests / "test_it.py").write_text("def test_a(golden_dir): pass\ndef test_b(data_dir): pass\n")
    others = {name: value for name, value in os.environ.items() if not name.startswith("MBGEN_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        cwd=tests.parent,
        env={**others, REQUIRED: "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "2 errors" in done.stdout, done.stdout
