"""A model as its config describes it: shapes of every tensor, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantize.model.families import find_family, model_config
from quantize.model.text_config import head_dim, mtp_windows, windows
from runtime.sizes import KvLayers, buffer_limits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from quantize.model.families import Family
    from runtime.sizes import KvLayout

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """A model without its weights."""

    family: Family
    """Names of its modules."""
    config: PreTrainedConfig
    """Its config.json, as transformers reads it."""
    shapes: Shapes
    """Shape of every tensor of the original checkpoint by name, MTP layer included."""

    @property
    def text(self) -> PreTrainedConfig:
        """The decoder's part of the config."""
        return self.config.get_text_config()

    @property
    def mtp_layers(self) -> int:
        """Number of layers that predict further tokens; 0 without any."""
        return self.family.mtp_layers(self.config)

    @property
    def limit(self) -> int:
        """The longest context, in tokens."""
        return int(self.text.max_position_embeddings)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return head_dim(self.text)

    def kv_layers(self, layout: KvLayout) -> KvLayers:
        """KV buffers of the decoder, as `export --kv-layout` lays them out."""
        limits = buffer_limits(windows(self.config), layout)
        return KvLayers(limits, self.text.num_key_value_heads, self.head_dim)

    def mtp_kv_layers(self, layout: KvLayout) -> KvLayers:
        """KV buffers of the layers that predict further tokens."""
        limits = buffer_limits(mtp_windows(self.config) * self.mtp_layers, layout)
        return KvLayers(limits, self.text.num_key_value_heads, self.head_dim)


def read_architecture(raw: dict[str, Any]) -> Architecture:
    """Lay out the model of a raw config.json without memory. Raises InputError for a config that cannot be used."""
    family, config = find_family(raw), model_config(raw)
    model = family.skeleton(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
    return Architecture(family, config, shapes)
