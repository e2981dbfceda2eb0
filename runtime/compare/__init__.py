"""Compares exported folders (candidates) with their FP16 baseline.

In the order of a run: `models` opens the folders and checks that they can be compared; `baseline` is what candidates
are compared with; `measure` runs every document through all models (`predictions`) and keeps the results (`progress`);
`summary` computes scores, confidence intervals (`statistics`) and layer errors (`layers`), and whether candidates still
stop (`stopping`); `gate` judges them; `report` shows them. `result` defines the data in compare.json, `provenance` how
it was made.
"""
