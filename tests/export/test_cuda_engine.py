"""Many requests on a stand-in device: what moves between host and device in a step of all rows."""

import pytest

STEP = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import Traffic
from runtime.decoding.sampling import Sampling
from runtime.engine.cache_plan import CachePlan, plan_cache
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.model import Model
from runtime.prompt import PromptInputs

model, rows, events = Model(Path(sys.argv[1]), "cuda"), int(sys.argv[2]), []
model.end_ids = ()
engine = Engine(model, CachePlan(rows, 300, 0))
for row in range(rows):
    inputs = PromptInputs(np.arange(100, 200), (), (), ())
    engine.submit(Request(inputs, Sampling(), 150), lambda event: events.append(event))
while engine.waiting or len(events) < 5 * rows:
    engine.turn()
before = len(events)
with Traffic() as step:
    engine.turn()
plan = plan_cache(model, 2, 300)
print(json.dumps({"step": step.counts, "delivered": len(events) - before, "plan": [plan.rows, plan.context]}))
"""


@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_of_all_rows_moves_tokens_lengths_and_logits_only(rows, cuda_stub, on_cuda):
    result = cuda_stub.run(STEP, on_cuda("w4"), rows)
    assert result["delivered"] == rows
    embedded_token, length, logits = 256 * 2, 4, 512 * 4
    assert result["step"]["bytes_to_device"] == rows * (embedded_token + length)
    # Attention reads lengths back, in each of four layers; the KV cache never moves.
    assert result["step"]["bytes_to_host"] <= rows * (logits + 4 * length)
    assert result["plan"] == [2, 300]


CLEARED = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import Traffic
from runtime.model import Model

model = Model(Path(sys.argv[1]), "cuda")
cache = model.decoder.new_cache(300, 3)
for buffer in cache.buffers:
    buffer.write(np.ones(buffer.shape, buffer.dtype))
cache.lengths[:] = 200
with Traffic() as clearing:
    model.decoder.clear(cache.row(1))
ones = [[bool(row.any()), bool(row.all())] for buffer in cache.buffers for row in buffer.read().astype(np.float32)]
size = sum(buffer.read()[1].nbytes for buffer in cache.buffers)
print(json.dumps([ones, cache.lengths.tolist(), clearing.counts, size]))
"""


@pytest.mark.parametrize("name", ["w4", "bf16", "kv8"])
def test_clearing_a_row_writes_its_memory_alone(name, cuda_stub, on_cuda):
    """At 33 B, all rows together are tens of GB."""
    ones, lengths, moved, size = cuda_stub.run(CLEARED, on_cuda(name))
    assert ones == [[True, True], [False, False], [True, True]] * (len(ones) // 3)
    assert lengths == [200, 0, 200]
    assert (moved["bytes_to_device"], moved["bytes_to_host"]) == (size, 0)


CAPTURED = """
import json, sys
from pathlib import Path
import numpy as np
from traffic import Traffic
from runtime.decoding.sampling import Sampling
from runtime.engine.answer_all import open_engine
from runtime.engine.request import Request
from runtime.model import Model
from runtime.ort.sessions import Options
from runtime.prompt import PromptInputs

model, steps = Model(Path(sys.argv[1]), "cuda", Options(capture=True)), []
model.end_ids = ()
engine = open_engine(model, 2, 300)
for start in (100, 150):
    events, inputs = [], PromptInputs(np.arange(start, start + 100), (), (), ())
    engine.submit(Request(inputs, Sampling(), 8), events.append)
    while len(events) < 5:
        engine.turn()
    with Traffic() as step:
        engine.turn()
    steps.append([step.counts["launches"], step.counts["bytes_to_device"]])
    while engine.turn():
        pass
print(json.dumps({"rows": engine.plan.rows, "steps": steps}))
"""


def test_captured_steps_are_those_of_one_row(cuda_stub, on_cuda):
    """A replay launches no kernel of its own, whichever request has the row."""
    result = cuda_stub.run(CAPTURED, on_cuda("w4"))
    assert result == {"rows": 1, "steps": [[0, 256 * 2 + 4]] * 2}


WITHOUT_MEMORY = """
import gc, json, sys
from pathlib import Path
import numpy as np
from traffic import leave_memory
from runtime.decoding.draft_policy import DraftPolicy
from runtime.decoding.sampling import Sampling
from runtime.engine.cache_plan import plan_cache
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.model import Model
from runtime.prompt import PromptInputs

PLENTY, CONTEXT = 1 << 40, 2000

def planned(spare):
    model, policy = Model(Path(sys.argv[1]), "cuda"), DraftPolicy()
    model.open_sessions(drafts=True)
    _ = model.vision
    size = model.decoder.cache_bytes(CONTEXT) + model.drafter.session.cache_bytes(CONTEXT)
    gc.collect()
    leave_memory(int(size / 0.6) + spare)
    plan = plan_cache(model, 1, CONTEXT, policy)
    leave_memory(PLENTY)
    return policy.disabled, plan.bytes == size, "drafter" in vars(model)

def answered(draft_tokens):
    model, ends = Model(Path(sys.argv[1]), "cuda"), []
    model.end_ids = ()
    plan = plan_cache(model, 1, 300, draft_tokens)
    for engine, memory in ((Engine(model, plan), PLENTY), (Engine(model, plan, draft_tokens), 1 << 18)):
        leave_memory(memory)  # the first has what the decoder's calls need
        engine.submit(Request(PromptInputs(np.arange(100, 200), (), (), ()), Sampling(), 5), ends.append)
        while engine.turn():
            pass
    leave_memory(PLENTY)
    return type(ends[-1]).__name__, "drafter" in vars(model)

policy = DraftPolicy()
print(json.dumps([planned(1 << 20), planned(-(1 << 12)), answered(policy), policy.disabled, answered(2)]))
"""


def test_without_memory_for_the_layer_that_drafts_it_answers_without(cuda_stub, on_cuda):
    """The layer does not fit next to the KV cache, or its calls do not, where the decoder's do."""
    fits, does_not, auto, disabled, wanted = cuda_stub.run(WITHOUT_MEMORY, on_cuda("w4"))
    assert (fits, does_not) == ([False, True, True], [True, False, False])
    assert (auto, disabled) == (["Finished", False], True)
    assert wanted == ["Failed", True]
