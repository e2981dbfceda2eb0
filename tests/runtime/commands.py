"""The runtime's command as tests start it, and what they expect of its output."""

import json
import os
import resource
import subprocess
import sys

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def process(*arguments, cwd, memory=resource.RLIM_INFINITY):
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
    )


def assert_one_line(result, *says):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for text in says:
        assert text in err


def generated(command, *arguments):
    code, out, err = command("generate", *arguments, "--json")
    assert (code, err) == (0, "")
    assert out.endswith("}\n")
    assert out.count("\n") == 1
    return json.loads(out)
