"""Compares exported folders (candidates) with their FP16 baseline.

In the order of a run: `measuring` opens the folders (`models`), checks that they can be compared with the `baseline`,
runs every document through all models (`predictions`, `measure`) and keeps the results (`progress`); `summary` computes
scores, confidence intervals (`statistics`) and layer errors (`layers`), and whether candidates still stop (`stopping`);
`gate` judges them; `report` shows them. `result` defines the data in compare.json, `provenance` how it was made.
"""
