"""How far a model with other decoder weights is from the model that it was: KL of next-token distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText

from runtime.compare.statistics import Interval, bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from quantize.calibration.samples import Sample


class Divergence:
    """A model in float32 on the CPU, and what it expects of each token of the documents' true answers."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Load the model and run the documents through it: all of it once, for whatever weights follow.

        Image tokens do not depend on decoder weights, so embeddings are kept and the vision tower runs only here.
        """
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.samples = samples
        self._embeddings = [self._embed(sample) for sample in samples]
        self._original = {name: parameter.data for name, parameter in self.model.named_parameters()}
        self._reference = [self._answer(i) for i in range(len(samples))]

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, torch.Tensor]) -> list[NDArray[np.float64]]:
        """KL(original ‖ with these weights in place) in nats, of every answer token [answer] of every document."""
        for name, weight in weights.items():
            self.model.get_parameter(name).data = weight.float()
        try:
            return [divergence(reference, self._answer(i)) for i, reference in enumerate(self._reference)]
        finally:
            for name in weights:
                self.model.get_parameter(name).data = self._original[name]

    @torch.no_grad()
    def _embed(self, sample: Sample) -> torch.Tensor:
        """What the decoder reads [1, T, width]: embeddings of tokens, image tokens from the vision tower."""
        kept: list[torch.Tensor] = []
        hook = self.model.model.language_model.register_forward_pre_hook(
            lambda _, __, kwargs: kept.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        self.model(input_ids=sample.ids[None], pixel_values=sample.patches, image_grid_thw=sample.grid)
        hook.remove()
        return kept[0]

    @torch.no_grad()
    def _answer(self, document: int) -> torch.Tensor:
        """Log-probabilities [answer, vocabulary] (float64) at the positions that precede the true answer's tokens."""
        hidden = self.model.model.language_model(inputs_embeds=self._embeddings[document]).last_hidden_state[0]
        logits: torch.Tensor = self.model.lm_head(hidden[-self.samples[document].answer - 1 : -1])
        return logits.double().log_softmax(-1)


def interval(documents: Sequence[NDArray[np.float64]]) -> Interval:
    """Mean over the tokens of all documents, each [T], and its 95 % interval over documents."""
    return bootstrap([tokens.sum() for tokens in documents], [len(tokens) for tokens in documents])


def divergence(reference: torch.Tensor, found: torch.Tensor) -> NDArray[np.float64]:
    """KL(reference ‖ found) in nats of each row [T] of two sets of log-probabilities [T, vocabulary]."""
    values: NDArray[np.float64] = (reference.exp() * (reference - found)).sum(-1).numpy()
    return values
