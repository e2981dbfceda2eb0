"""The training loss: next-token cross-entropy, and auxiliary losses from the renderer's ground truth.

Character loss: a linear layer, dropped after training, names the characters in the 28x28 cell of every merged image
token. Without it a model this small does not begin to read in hours.
Attention supervision: two heads of each global layer learn to attend to the image token that shows the character that
was just written, or comes next.
Activation regularization: once the reader reads, the inputs of its linears are pushed into few directions and few large
channels. Released models are like that (Dettmers et al. 2022, arXiv 2208.07339; Sun et al. 2024, arXiv 2402.17762), and
good quantizers use it. After an hour of Muon, whose updates are equally large in every direction, RTN and GPTQ would
hardly differ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.architecture import CONFIG
from training.batches import CLASSES, SLOTS, Batch
from training.forward import LinearInputs, Masks, Reader, decoder, log_attention, masks, mtp, vision

SUPERVISED_HEADS = [0, 2]
"""Attention heads of a global layer, one of each key-value head."""
CHARACTERS_AHEAD = {1: 0, 3: 1}
"""Global layer -> the character that its supervised heads attend to: 0 the one just written, 1 the next."""
IMAGE_ID, PADDING = CONFIG["image_token_id"], CONFIG["text_config"]["pad_token_id"]
REGULARIZED = {"o": 0.035, "qkv": 0.03, "down": 0.025, "gate_up": 0.01}
"""Field of LinearInputs -> weight of its regularization, about its share of RTN's error."""
DAMPING = 0.01
"""Of the mean variance, as in `quantize`."""


class TrainedModule(nn.Module):
    """The reader and the auxiliary layer that names characters: everything that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader()
        self.characters = nn.Linear(CONFIG["text_config"]["hidden_size"], SLOTS * (len(CLASSES) + 1))


def losses(
    module: TrainedModule, batch: Batch, with_mtp: bool, regularized: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The training loss of one batch, and the numbers to log.

    regularized: index of the decoder layer whose linears' inputs are regularized; the vision tower then stays as it is.
    """
    reader = module.reader
    with torch.set_grad_enabled(regularized is None):
        embeddings = vision(reader, batch.patches, batch.height, batch.width)
        total, report = _character_loss(module.characters(embeddings), batch.characters)
    if not batch.tokens.shape[1]:
        return total, report
    inputs = reader.model.language_model.embed_tokens(batch.tokens)
    inputs = inputs.masked_scatter((batch.tokens == IMAGE_ID)[..., None], embeddings)
    shared = masks(reader, batch.tokens.shape[1])
    hidden, layer_inputs = decoder(reader, inputs, shared)
    loss, accuracy = _token_loss(hidden[:, :-1], reader.lm_head.weight, batch.tokens[:, 1:], batch.answer[:, 1:])
    attention = _attention_loss(reader, layer_inputs, shared, batch.attention_target)
    total = total + loss + attention
    report |= {"text": loss.item(), "token accuracy": accuracy, "attention": attention.item()}
    if regularized is not None:
        loss, terms = _regularization(layer_inputs[regularized], batch.tokens != PADDING)
        total, report = total + loss, report | terms
    if with_mtp:
        loss, accuracy = _draft_loss(reader, inputs.detach(), hidden.detach(), batch)
        total, report = total + 0.5 * loss, report | {"draft": loss.item(), "draft accuracy": accuracy}
    return total, report


def gptq_error_ratio(inputs: Tensor, real: Tensor) -> Tensor:
    """Log of GPTQ's error as a share of RTN's, for a linear with these inputs [B, T, K]; real [B, T]: not padding.

    With one step size for all weights, RTN's error is the mean variance of the input channels. GPTQ's is the mean of
    the variance that each channel has left once those quantized after it are known (Frantar et al., arXiv 2210.17323:
    the diagonal of the Cholesky factor of the inverse), the most active channel first. All tokens have one norm, as in
    `quantize.solver.token_weights`.
    """
    tokens = functional.normalize(inputs[real].float(), dim=-1)
    moment = tokens.mT @ tokens * (tokens.shape[1] / len(tokens))  # mean variance 1
    last_first = moment.diagonal().argsort()
    damped = moment[last_first][:, last_first] + DAMPING * torch.eye(len(moment))
    factor, _ = torch.linalg.cholesky_ex(damped)
    share: Tensor = factor.diagonal().square().mean()
    return share.log()


def _regularization(inputs: LinearInputs, real: Tensor) -> tuple[Tensor, dict[str, float]]:
    ratios = {name: gptq_error_ratio(getattr(inputs, name), real) for name in REGULARIZED}
    loss = sum((REGULARIZED[name] * ratio for name, ratio in ratios.items()), torch.zeros(()))
    return loss, {f"{name} error ratio": ratio.item() for name, ratio in ratios.items()}


def _character_loss(scores: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    scores, target = scores.float().unflatten(-1, (SLOTS, -1)).flatten(0, -2), target.flatten()
    loss = functional.cross_entropy(scores, target)
    printed = target > 0
    accuracy = (scores.argmax(-1) == target)[printed].float().mean()
    return 4 * loss, {"characters": loss.item(), "character accuracy": accuracy.item()}


def _attention_loss(reader: Reader, inputs: list[LinearInputs], shared: Masks, target: Tensor) -> Tensor:
    """Mean negative log attention of the supervised heads, summed over layers. target: [B, T], as in Batch."""
    total = torch.zeros(())
    for number, ahead in CHARACTERS_AHEAD.items():
        layer = reader.model.language_model.layers[number]
        rows, columns = (target[:, ahead:] > 0).nonzero(as_tuple=True)
        log_weights = log_attention(layer, inputs[number].qkv, shared.full, SUPERVISED_HEADS)
        total = total - log_weights[rows, :, columns, target[rows, columns + ahead]].mean()
    return total


def _draft_loss(reader: Reader, embeddings: Tensor, hidden: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """Cross-entropy and accuracy of the MTP layer alone: embeddings and hidden states [B, T, H] have no gradient."""
    drafted = mtp(reader, embeddings[:, 1:], hidden[:, :-1], masks(reader, embeddings.shape[1] - 1))
    # Position t drafts token t + 2; a draft is only made from an answer token on.
    return _token_loss(drafted[:, :-1], reader.lm_head.weight.detach(), batch.tokens[:, 2:], batch.answer[:, 2:])


def _token_loss(hidden: Tensor, head: Tensor, target: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    scores, target = functional.linear(hidden[wanted], head).float(), target[wanted]
    return functional.cross_entropy(scores, target), (scores.argmax(-1) == target).float().mean().item()
