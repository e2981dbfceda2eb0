"""`python -m runtime` where only the packages of the edge install are there."""

import subprocess
import sys

from .commands import ENVIRONMENT

# Runs the command where all but the packages of the edge install look as if they were not installed.
EDGE = """
import json, runpy, sys
MISSING = {"torch", "transformers", "safetensors", "onnx", "onnxscript", "onnx_ir", "accelerate", "datasets",
           "compressed_tensors", "bitsandbytes", "pypdfium2", "quantize", "export", "cvttf_NotoSansCJK_Regular",
           "cvttf_NotoSansCJK_Bold", "font_source_serif_pro", "font_lato", "fastapi", "starlette", "uvicorn",
           "prometheus_client", "llguidance"}

class Installed:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Installed(finder) for finder in sys.meta_path]
try:
    runpy.run_module("runtime", run_name="__main__", alter_sys=True)
finally:
    sys.stderr.write("loaded: " + json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & MISSING)))
"""


def edge(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", EDGE, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True
    )


def test_the_edge_install_is_enough(command, exported, picture):
    """In a fresh process, without torch and its friends, an answer is the same."""
    arguments = "generate", "--model", exported("w4"), "--image", picture, "--temperature", 0
    result = edge(*arguments, cwd=picture.parent)
    assert result.stderr == "loaded: []"
    assert result.returncode == 0
    assert (0, result.stdout, "") == command(*arguments)


def test_drawing_documents_says_what_to_install(exported, tmp_path):
    result = edge("evaluate", "--model", exported("fp16"), "--count", 1, cwd=tmp_path)
    error, loaded = result.stderr.splitlines()
    assert "install the extra 'render'" in error
    assert loaded == "loaded: []"
    assert (result.returncode, result.stdout) == (2, "")


def test_a_server_says_what_to_install(exported, tmp_path):
    result = edge("serve", "--model", exported("fp16"), cwd=tmp_path)
    error, loaded = result.stderr.splitlines()
    assert error == "error: python -m runtime serve needs fastapi, install the extra 'serve'"
    assert loaded == "loaded: []"
    assert (result.returncode, result.stdout) == (2, "")
