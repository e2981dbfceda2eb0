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
