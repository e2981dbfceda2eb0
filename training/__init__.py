"""How the bundled reader was trained: `python -m training`. Not installed, and never imported by what is.

architecture.py  config, tokenizer and processor of the reader
chat.py          questions and answers as token ids
batches.py       rendered pages with their ground truth, by step
forward.py       the forward pass, batched, with the MTP layer
losses.py        next-token loss and auxiliary losses
train.py         the loop, the optimizers' steps and the gradients on two cores
state.py         weights, optimizers and checkpoint of a run, and the export of a reader folder
curve.py         the picture of a run
evaluation.py    reads held-out documents in PyTorch
"""
