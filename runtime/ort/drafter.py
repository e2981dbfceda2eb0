"""The MTP layer as a drafter: it predicts the tokens after the known ones, greedily, one call a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from runtime.ort.buffer import Buffer
    from runtime.ort.cache import KVCache
    from runtime.ort.cache_rollback import CacheRollback
    from runtime.ort.decoder import DecoderSession


@dataclass(frozen=True)
class Drafter:
    """The MTP layer and the rollback of both KV caches."""

    session: DecoderSession
    """The MTP layer."""
    decoder_rollback: CacheRollback
    """Rolls back the decoder's KV cache."""
    mtp_rollback: CacheRollback
    """Rolls back the MTP layer's KV cache."""

    def draft(
        self,
        cache: KVCache,
        embeds: NDArray[np.float32],
        hidden: Buffer,
        tokens: int,
        embed: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    ) -> list[int]:
        """Draft the next `tokens` and leave only the known ones in the MTP layer's cache.

        embeds: [T, H] of known tokens that this cache has not seen. hidden: [1, T, H], the decoder's hidden states one
        token earlier. embed: embeddings [T, H] of token ids [T].
        """
        count, width = embeds.shape
        decoded = self.session.run(cache, embeds[None], np.array([[count - 1]]), hidden)
        saved = self.mtp_rollback.save(cache, tokens - 1)
        drafts = [int(decoded.logits[0, 0].argmax())]
        while len(drafts) < tokens:
            assert decoded.hidden is not None
            last = decoded.hidden.view((count - 1) * width, (1, 1, width))
            decoded, count = self.session.run(cache, embed(np.array(drafts[-1:]))[None], np.array([[0]]), last), 1
            drafts.append(int(decoded.logits[0, 0].argmax()))
        self.mtp_rollback.roll_back(cache, saved, tokens - 1)
        return drafts
