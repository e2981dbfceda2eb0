"""What the reader is trained on: the next token, and what the renderer's ground truth adds to it.

Every merged image token also names the characters in its 28x28 cell, through a linear layer that is thrown away
afterwards, and two heads of each global layer are told which image token shows the character that was just written, or
comes next. Without the first, a model this small does not begin to read in hours.

A reader that reads is then narrowed: what its linears read is pushed into few directions and few large channels.
Released models are like that (Dettmers et al. 2022, arXiv 2208.07339; Sun et al. 2024, arXiv 2402.17762), and it is
what a good quantizer makes use of; an hour of Muon, whose updates are as large in every direction, leaves a model on
which quantizers can hardly be told apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.architecture import CONFIG
from training.examples import CLASSES, SLOTS, Batch
from training.forward import Masks, Reader, decoder, gaze, masks, mtp, vision

if TYPE_CHECKING:
    from transformers.models.exaone4.modeling_exaone4 import Exaone4DecoderLayer

GAZE_HEADS = [0, 2]  # one of each key-value head
GAZE_AHEAD = {1: 0, 3: 1}  # global layer -> how many characters ahead it looks: the one just written, the next one
IMAGE_ID, PADDING = CONFIG["image_token_id"], CONFIG["text_config"]["pad_token_id"]
NARROW = {"mixed": 0.035, "attention": 0.03, "inner": 0.025, "mlp": 0.01}  # about as they share nearest's error
DAMPING = 0.01  # of the mean variance: quantize's own


class Learner(nn.Module):
    """The reader and the layer that names characters: all that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader()
        self.characters = nn.Linear(CONFIG["text_config"]["hidden_size"], SLOTS * (len(CLASSES) + 1))


def losses(
    learner: Learner, batch: Batch, with_mtp: bool, narrowed: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The training loss of one batch, and the numbers to report.

    narrowed: the decoder layer that is to read few directions; the vision tower then learns nothing.
    """
    reader = learner.reader
    with torch.set_grad_enabled(narrowed is None):
        embeddings = vision(reader, batch.patches, batch.height, batch.width)
        total, report = _character_loss(learner.characters(embeddings), batch.characters)
    if not batch.tokens.shape[1]:
        return total, report
    inputs = reader.model.language_model.embed_tokens(batch.tokens)
    inputs = inputs.masked_scatter((batch.tokens == IMAGE_ID)[..., None], embeddings)
    shared = masks(reader, batch.tokens.shape[1])
    hidden, read = decoder(reader, inputs, shared)
    loss, accuracy = _token_loss(hidden[:, :-1], reader.lm_head.weight, batch.tokens[:, 1:], batch.answer[:, 1:])
    layers = reader.model.language_model.layers
    looking = sum(
        (_gaze_loss(layers[n], read[n].attention, shared, batch.gaze, ahead) for n, ahead in GAZE_AHEAD.items()),
        torch.zeros(()),
    )
    total = total + loss + looking
    report |= {"text": loss.item(), "token accuracy": accuracy, "gaze": looking.item()}
    if narrowed is not None:
        left = {name: left_by_gptq(getattr(read[narrowed], name), batch.tokens != PADDING) for name in NARROW}
        total = total + sum((NARROW[name] * value for name, value in left.items()), torch.zeros(()))
        report |= {name: value.item() for name, value in left.items()}
    if with_mtp:
        drafted = mtp(reader, inputs[:, 1:].detach(), hidden[:, :-1].detach(), masks(reader, inputs.shape[1] - 1))
        weight = reader.lm_head.weight.detach()
        # Position t drafts token t + 2; a draft is only made from an answer token on.
        loss, accuracy = _token_loss(drafted[:, :-1], weight, batch.tokens[:, 2:], batch.answer[:, 2:])
        total, report = total + 0.5 * loss, report | {"draft": loss.item(), "draft accuracy": accuracy}
    return total, report


def left_by_gptq(states: Tensor, real: Tensor) -> Tensor:
    """Log of the share of nearest's error that GPTQ leaves where a linear reads states [B, T, K], of those real [B, T].

    With steps of one size nearest's error is the mean variance of the inputs; in GPTQ's it is the variance that is left
    of each when those which come after it are known (Frantar et al., arXiv 2210.17323: the diagonal of the Cholesky
    factor of the inverse), the most active coming first. Tokens count as `quantize.solver.token_weights`
    has them: at one size.
    """
    tokens = functional.normalize(states[real].float(), dim=-1)
    moment = tokens.mT @ tokens * (tokens.shape[1] / len(tokens))  # mean variance 1
    last_first = moment.diagonal().argsort()
    damped = moment[last_first][:, last_first] + DAMPING * torch.eye(len(moment))
    factor, _ = torch.linalg.cholesky_ex(damped)
    share: Tensor = factor.diagonal().square().mean()
    return share.log()


def _character_loss(scores: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
    scores, target = scores.float().unflatten(-1, (SLOTS, -1)).flatten(0, -2), target.flatten()
    loss = functional.cross_entropy(scores, target)
    printed = target > 0
    accuracy = (scores.argmax(-1) == target)[printed].float().mean()
    return 4 * loss, {"characters": loss.item(), "character accuracy": accuracy.item()}


def _gaze_loss(layer: Exaone4DecoderLayer, given: Tensor, shared: Masks, target: Tensor, ahead: int) -> Tensor:
    """Teach two heads of a layer to look at the image token that shows the character `ahead` tokens on.

    given: the layer's input [B, T, H]. target: [B, T], as in Batch.
    """
    rows, columns = (target[:, ahead:] > 0).nonzero(as_tuple=True)
    weights = gaze(layer, given, shared.full, GAZE_HEADS)
    return -weights[rows, :, columns, target[rows, columns + ahead]].mean()


def _token_loss(hidden: Tensor, head: Tensor, target: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    scores, target = functional.linear(hidden[wanted], head).float(), target[wanted]
    return functional.cross_entropy(scores, target), (scores.argmax(-1) == target).float().mean().item()
