"""An exported folder as a model that answers: embed the prompt, fill the cache, then token after token."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from console.errors import InputError, NoMemoryError
from console.files import read_object
from console.progress import say
from runtime.chat import Chat
from runtime.inputs.images import ImageSettings, image_grid, preprocess
from runtime.inputs.video import VideoSettings, video_grid, video_patches
from runtime.inputs.vision_inputs import vision_feeds
from runtime.ort.decoder import DecoderSession, load_head
from runtime.ort.manifest import load_manifest
from runtime.ort.prompt_chunks import prompt_calls
from runtime.ort.sessions import Device, Options, VisionSession, map_stored, open_session, require_device
from runtime.sizes import CHUNKINGS, buffer_limits
from runtime.speculative import Drafter, Rewinder, speculate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    import onnxruntime as ort
    from numpy.typing import NDArray
    from PIL import Image

    from runtime.inputs.video import Video
    from runtime.ort.cache import KVCache
    from runtime.ort.decoder import Decoded
    from runtime.ort.sessions import Buffer
    from runtime.sampling import Sampler
    from runtime.speculative import Drafts

EMBEDDED = 1024  # tokens whose embeddings are read at once
ANSWER_CHUNK = 256  # tokens of a known answer a call: bounds their logits, 150 MiB for a vocabulary of 153600


@dataclass(frozen=True)
class Question:
    """A user turn that fits the model's context: token ids [T] int64, and what its places for pictures stand for.

    names: what an error calls the images.
    """

    ids: NDArray[np.int64]
    images: Sequence[Image.Image]
    names: Sequence[str]
    videos: Sequence[Video]


@dataclass(frozen=True)
class Prompt:
    """A rendered user turn: token ids [T] int64 and what the decoder reads in their place, [T, H] float32."""

    ids: NDArray[np.int64]
    embeds: NDArray[np.float32]


def answer_parts(length: int) -> list[slice]:
    """How `Model.teacher_forced` cuts an answer of so many tokens: the one that the prompt predicts, then the rest."""
    starts = range(1, length, ANSWER_CHUNK)
    return [slice(0, 1), *(slice(start, min(start + ANSWER_CHUNK, length)) for start in starts)]


class Model:
    """The graphs, tokenizer and settings of one exported folder on one device.

    A graph is loaded when it is first used: what tokenizer and settings rule out is said before gigabytes are read.
    chunking: how prompts are cut into calls. generation: what generation_config.json holds. end_ids: the tokens that
    end an answer, a turn's own end first.
    """

    def __init__(self, folder: Path, device: str, options: Options | None = None) -> None:
        self.folder, self.device = folder, Device.parse(device)
        self.manifest = load_manifest(folder)
        self.target = self.manifest.target(folder, self.device.kind)
        self.chunking = CHUNKINGS[self.device.kind]
        self.options = replace(options or Options(), cutlass=self.target.block_size is not None)
        self.chat = Chat(folder)
        self.generation = _read_settings(folder / "generation_config.json")
        self.end_ids = _end_ids(folder, self.generation)
        require_device(self.device)
        self._embeddings = map_stored(folder, self.manifest.embeddings)

    def load(self, *, drafts: bool = False) -> None:
        """Load the decoder, and what drafts, ahead of their use: where they cannot be, that is said before any work."""
        if drafts:
            _ = self.drafter  # first: a model without one says so at once
        _ = self.decoder

    @cached_property
    def decoder(self) -> DecoderSession:
        """The decoder and its head."""
        head = self._head  # first: a GPU too small for it needs to read no more
        session = open_session(self.folder / self.target.decoder, self.device, self.options)
        text, capture = self.manifest.text, self.options.capture
        return DecoderSession.of(session, text, self.target, self.device, head, capture=capture)

    @cached_property
    def _head(self) -> dict[str, Buffer]:
        """Weights that the decoder and the MTP layer share."""
        return load_head(self.folder, self.target, self.device)

    @cached_property
    def vision(self) -> VisionSession:
        """The vision graph, loaded at the first image; a text-only question does without."""
        assert self.target.vision is not None
        return VisionSession(self._open(self.target.vision, give_back=True))

    @cached_property
    def drafter(self) -> Drafter:
        """The MTP layer, loaded when drafts are first asked for. Raises InputError for a model without one."""
        target, text = self.target, self.manifest.text
        if target.mtp is None:
            raise InputError(f"{self.folder}: this model has no MTP layer to draft with; leave out --draft-tokens")
        session = self._open(target.mtp)
        limits, own = (buffer_limits(windows, target.kv_layout) for windows in (text.windows, text.mtp_windows))
        return Drafter(
            DecoderSession.of(session, text, target, self.device, self._head, mtp=True),
            Rewinder(target.rewind and self._open(target.rewind), limits),
            Rewinder(target.mtp_rewind and self._open(target.mtp_rewind), own),
        )

    def _open(self, graph: str, *, give_back: bool = False) -> ort.InferenceSession:
        options = replace(self.options, capture=False)
        return open_session(self.folder / graph, self.device, options, give_back=give_back)

    @cached_property
    def image_settings(self) -> ImageSettings:
        """How pictures are prepared, from the folder; read when it is first asked for."""
        return ImageSettings.from_folder(self.folder)

    @cached_property
    def video_settings(self) -> VideoSettings:
        """How videos are, likewise."""
        return VideoSettings.from_folder(self.folder)

    def prompt(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        videos: Sequence[Video] = (),
        *,
        names: Sequence[str] = (),
        thinking: bool = False,
    ) -> Prompt:
        """Render a question and look up its embeddings: `question`, then `embed`."""
        return self.embed(self.question(text, images, videos, names=names, thinking=thinking))

    def question(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        videos: Sequence[Video] = (),
        *,
        names: Sequence[str] = (),
        thinking: bool = False,
    ) -> Question:
        """Render a question about images, then videos; no graph is needed.

        names: what an error calls the images. Raises InputError for a prompt as long as the
        model's context, and for an image or video that cannot be used.
        """
        names = names or [f"image {number}" for number in range(1, len(images) + 1)]
        shape = self.manifest.vision
        if (images or videos) and shape is None:
            raise InputError(f"{self.folder}: this model reads no images; ask without --image and --video")
        merge = 1 if shape is None else shape.merge_size**2
        pictures = [
            image_grid(x.height, x.width, self.image_settings, name) for x, name in zip(images, names, strict=True)
        ]
        films = [video_grid(video, self.video_settings) for video in videos]
        image_tokens, video_tokens = ([math.prod(grid) // merge for grid in grids] for grids in (pictures, films))
        ids = self.chat.encode(text, image_tokens, video_tokens, thinking=thinking)
        if len(ids) >= self.manifest.text.context:
            raise InputError(
                f"prompt: {len(ids)} tokens, but the model's context is {self.manifest.text.context}; shorten it"
            )
        return Question(ids, images, names, videos)

    def embed(self, question: Question) -> Prompt:
        """Look up the embeddings of a question, those of its pictures in place of placeholders."""
        ids = question.ids
        embeds = self.embed_tokens(ids)
        shown = (self.embed_image(image, name) for image, name in zip(question.images, question.names, strict=True))
        films = chain.from_iterable(map(self.embed_video, question.videos))
        _write_rows(embeds, ids == self.chat.image_token_id, shown)
        _write_rows(embeds, ids == self.chat.video_token_id, films)
        return Prompt(ids, embeds)

    def embed_image(self, image: Image.Image, name: str) -> NDArray[np.float32]:
        """Embeddings [tokens, H] of one image; name: what an error calls it."""
        patches, grid = preprocess(image, self.image_settings, name)
        return self._embed(patches, grid)

    def embed_video(self, video: Video) -> Iterator[NDArray[np.float32]]:
        """Embeddings [tokens, H] of one video, some frames a call: no frame looks at another."""
        return (self._embed(patches, grid) for patches, grid in video_patches(video, self.video_settings))

    def _embed(self, patches: NDArray[np.float32], grid: tuple[int, int, int]) -> NDArray[np.float32]:
        """One call a picture: of several in one, each would be padded to the largest, and all held at once."""
        vision, shape = self.vision, self.manifest.vision
        assert shape is not None
        return vision.run(vision_feeds(patches, [grid], shape))

    def embed_tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings [T, H] of tokens."""
        return look_up(self._embeddings, ids)

    def prefill(self, cache: KVCache, prompt: Prompt) -> NDArray[np.float32]:
        """Fill an empty cache with a prompt; returns the logits [V] after its last token."""
        for decoded in self.read_prompt(cache, prompt):
            logits: NDArray[np.float32] = decoded.logits[0, 0]
        return logits

    def read_prompt(self, cache: KVCache, prompt: Prompt) -> Iterator[Decoded]:
        """Fill an empty cache with a prompt, chunk by chunk; each comes with the logits [1, 1, V] after its last token.

        Hidden states of padding may follow those of a chunk. Raises InputError for a prompt that makes anything but
        numbers.
        """
        rows = min(cache.capacity, *(buffer.shape[2] for buffer in cache.buffers))
        for start, stop, padding in prompt_calls(len(prompt.ids), self.chunking, rows):
            chunk = prompt.embeds[start:stop]
            if padding:
                chunk = np.pad(chunk, ((0, padding), (0, 0)))
            decoded = self.decode(cache, chunk, np.array([stop - start - 1]))
            cache.lengths[:] = stop
            if self.target.kv_dtype == "int8":
                # Rounded to int8, a NaN or infinite key is a number again, and what follows would look sound.
                assert decoded.hidden is not None
                self._require_finite(decoded.hidden.read()[:, : stop - start])
            yield decoded

    def capacity(self, prompt: Prompt) -> int:
        """Tokens that the context has left for an answer."""
        return self.manifest.text.context - len(prompt.ids)

    def budget(self, prompt: Prompt, max_new_tokens: int) -> int:
        """Tokens that an answer may have: an answer of so many was cut, or ended just there."""
        return min(max_new_tokens, self.capacity(prompt))

    def generate(
        self, prompt: Prompt, sampler: Sampler, max_new_tokens: int, drafts: Drafts | None = None
    ) -> Iterator[int]:
        """Tokens of the answer as they come, without the one that ends it; fewer where the context is full.

        drafts: let the MTP layer draft ahead. The tokens are those that the sampler chooses without, but for near ties:
        see `runtime.speculative`.
        """
        budget = self.budget(prompt, max_new_tokens)
        generated: list[int] = []
        steps = self._step_by_step(prompt, sampler, budget, generated)
        if drafts is None:
            tokens = steps
        else:
            tokens = self._or_without(speculate(self, prompt, sampler, budget, drafts, generated), steps, drafts)
        for token in tokens:
            if token in self.end_ids:
                return
            generated.append(token)
            yield token
            if len(generated) == budget:
                return

    def _or_without(self, tokens: Iterator[int], steps: Iterator[int], drafts: Drafts) -> Iterator[int]:
        """Tokens of `speculate`; of plain steps where MTP layer, cache and prompt together do not fit in memory."""
        try:
            return chain([next(tokens)], tokens)
        except NoMemoryError as error:
            if drafts.policy is None:
                raise
            problem = str(error)
        drafts.policy.given_up = True
        self.__dict__.pop("drafter", None)  # the error that held on to it is gone, too
        first = next(steps)  # where this fails as well, it alone says why
        say(f"answering without drafts: {problem}")
        return chain([first], steps)

    def _step_by_step(self, prompt: Prompt, sampler: Sampler, budget: int, generated: Sequence[int]) -> Iterator[int]:
        """Tokens without end. generated: those that were taken, kept by the caller; at most `budget`."""
        with self.decoder.borrow_cache(len(prompt.ids) + budget) as cache:
            logits = self.prefill(cache, prompt)
            while True:
                token = sampler(logits, generated)
                yield token
                logits = self.decode(cache, self.embed_tokens(np.array([token])), np.array([0])).logits[0, 0]

    def teacher_forced(self, prompt: Prompt, answer: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Predictions of a known answer: logits [n, V] for each of `answer_parts`, given the prompt and what precedes.

        Raises InputError, at once, where prompt and answer are longer than the model's context.
        """
        total, context = len(prompt.ids) + len(answer), self.manifest.text.context
        if total > context:
            raise InputError(f"prompt and known answer: {total} tokens, the model's context is {context}; shorten them")
        return self._teacher_forced(prompt, np.array(answer))

    def _teacher_forced(self, prompt: Prompt, answer: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        with self.decoder.borrow_cache(len(prompt.ids) + len(answer) - 1) as cache:
            yield self.prefill(cache, prompt)[None]
            for part in answer_parts(len(answer))[1:]:
                before = answer[part.start - 1 : part.stop - 1]
                yield self.decode(cache, self.embed_tokens(before), np.arange(len(before))).logits[0]

    def decode(self, cache: KVCache, embeds: NDArray[np.float32], wanted: NDArray[np.int64]) -> Decoded:
        """Run the decoder on embeds [T, H] and refuse logits without a finite maximum, as any NaN makes it."""
        decoded = self.decoder.run(cache, embeds[None], wanted[None])
        self._require_finite(decoded.logits.max(-1))
        return decoded

    def _require_finite(self, values: NDArray[np.generic]) -> None:
        if not np.isfinite(values).all():
            raise InputError(
                f"{self.folder}: gives NaN or infinite numbers, its weights are damaged or overflow in float16; "
                "quantize the checkpoint again with --dtype bfloat16"
            )


def look_up(embeddings: NDArray[np.generic], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embeddings [T, H] of tokens, read from the weights file where they lie [V, H], a chunk at a time."""
    embeds = np.empty((len(ids), embeddings.shape[1]), np.float32)
    for start in range(0, len(ids), EMBEDDED):
        part = slice(start, start + EMBEDDED)
        embeds[part] = embeddings[ids[part]]
    return embeds


def _write_rows(embeds: NDArray[np.float32], places: NDArray[np.bool_], pieces: Iterable[NDArray[np.float32]]) -> None:
    """Write pieces [n, H] one after the other, as they come, into the rows of embeds [T, H] that `places` [T] marks."""
    rows, done = np.flatnonzero(places), 0
    for piece in pieces:
        embeds[rows[done : done + len(piece)]] = piece
        done += len(piece)
    assert done == len(rows), f"{done} embeddings for {len(rows)} places"


def _read_settings(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file, as generation_config.json may be left out of a checkpoint."""
    return read_object(path) if path.exists() else {}


def _end_ids(folder: Path, generation: dict[str, Any]) -> list[int]:
    """Tokens that end an answer, from where transformers looks for them too."""
    config = _read_settings(folder / "config.json")
    for settings in (generation, config, config.get("text_config") or {}):
        found = settings.get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(token, int) for token in ids):
            raise InputError(f"{folder}: its eos_token_id is {found!r}; write a token id, or a list of them")
        if ids:
            return ids
    raise InputError(f"{folder / 'generation_config.json'}: has no eos_token_id, so no answer would end; add it")
