"""KL of next-token distributions between a model and the same model with other decoder weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

from console.files import read_object
from quantize.model.families import find_family
from runtime.compare.statistics import Interval, bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from quantize.calibration.samples import Sample


class Divergence:
    """A model in float32 on the CPU, and its distributions for each token of the documents' true answers."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        """Load the model and run the documents through it once.

        Image tokens do not depend on decoder weights: embeddings are kept, and the vision tower runs only here.
        """
        self._family = find_family(read_object(folder / "config.json"))
        auto_class = getattr(transformers, self._family.auto_class)
        self.model: Any = auto_class.from_pretrained(folder, dtype=torch.float32).eval()
        self.samples = samples
        self._embeddings = [self._embed(sample) for sample in samples]
        self._original = {name: parameter.data for name, parameter in self.model.named_parameters()}
        self._reference = [self._logits(i) for i in range(len(samples))]

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, torch.Tensor]) -> list[NDArray[np.float64]]:
        """KL(original ‖ with these weights) in nats, of every answer token [answer] of each document."""
        for name, weight in weights.items():
            self.model.get_parameter(name).data = weight.float()
        try:
            return [divergence(reference, self._logits(i)) for i, reference in enumerate(self._reference)]
        finally:
            for name in weights:
                self.model.get_parameter(name).data = self._original[name]

    @torch.no_grad()
    def _embed(self, sample: Sample) -> torch.Tensor:
        """Input of the decoder [1, T, H]: embeddings of tokens, image tokens from the vision tower."""
        if sample.patches is None:
            embedded: torch.Tensor = self.model.get_input_embeddings()(sample.ids)[None]
            return embedded
        kept: list[torch.Tensor] = []
        hook = self.model.model.language_model.register_forward_pre_hook(
            lambda _, __, kwargs: kept.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        self.model(input_ids=sample.ids[None], pixel_values=sample.patches, image_grid_thw=sample.grid)
        hook.remove()
        return kept[0]

    @torch.no_grad()
    def _logits(self, document: int) -> torch.Tensor:
        """Logits [answer, V] (float32) of the true answer's tokens."""
        decoder = self.model.get_submodule(self._family.text)
        hidden = decoder(inputs_embeds=self._embeddings[document]).last_hidden_state[0]
        logits: torch.Tensor = self.model.lm_head(hidden[-self.samples[document].answer - 1 : -1])
        return logits


def interval(documents: Sequence[NDArray[np.float64]]) -> Interval:
    """Mean over the tokens of all documents, each [T], and its 95 % interval over documents."""
    return bootstrap([tokens.sum() for tokens in documents], [len(tokens) for tokens in documents])


def divergence(reference: torch.Tensor, changed: torch.Tensor) -> NDArray[np.float64]:
    """KL(reference ‖ changed) in nats of each row [T], from logits [T, V]."""
    p, q = reference.double().log_softmax(-1), changed.double().log_softmax(-1)
    values: NDArray[np.float64] = (p.exp() * (p - q)).sum(-1).numpy()
    return values
