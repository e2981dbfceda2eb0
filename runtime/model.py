"""The Python API: load an exported folder, ask it about images and videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from runtime.answer import AnswerStream, answer_settings
from runtime.decoding.draft_policy import DraftPolicy
from runtime.decoding.drafts import open_drafting_sessions
from runtime.exported import ExportedModel
from runtime.ort.sessions import session_options
from runtime.prompt import open_prompt_inputs

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from runtime.answer import Answer, AnswerOptions
    from runtime.ort.sessions import Options
    from runtime.prompt import Images, Videos


class Model(ExportedModel):
    """An exported folder that answers questions.

    Example: `Model.load("exaone-w4", device="cuda").ask("What is the total?", images=["invoice.png"]).text`
    """

    def __init__(self, folder: str | Path, device: str = "cpu", options: Options | None = None) -> None:
        super().__init__(folder, device, options)
        self.draft_policy = DraftPolicy()
        """Chooses the number of draft tokens for "auto"; it learns from one answer to the next."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "cpu",
        *,
        memory_limit: float | None = None,
        cuda_graph: bool = False,
    ) -> Self:
        """Open an exported folder and its decoder on "cpu", "cuda" or "cuda:1".

        memory_limit: GiB of a GPU for the weights and activations of a graph, without the KV cache. cuda_graph: replay
        decode steps as CUDA graphs; not yet tested on a GPU. Raises InputError for a folder that was not exported for
        this device, or does not fit in its memory.
        """
        model = cls(folder, device, session_options(device, memory_limit=memory_limit, cuda_graph=cuda_graph))
        model.open_sessions()
        return model

    def ask(
        self,
        question: str,
        images: Images = (),
        videos: Videos = (),
        *,
        fps: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """Answer a question about images and videos.

        images: one or several paths, where a PDF gives all its pages, or PIL images. videos: paths of video files or
        folders of frames. fps: frames to take of a second of a video file; None for what the model recommends. options:
        sampling, length and draft tokens, with the defaults of the command line. Raises InputError for input that
        cannot be used.
        """
        return self.stream(question, images, videos, fps=fps, **options).finish()

    def stream(
        self,
        question: str,
        images: Images = (),
        videos: Videos = (),
        *,
        fps: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream:
        """Answer as `ask` does, piece by piece: iterate over the text, then `finish` gives the whole answer."""
        settings = answer_settings(self, self.draft_policy, options)
        inputs = open_prompt_inputs(self, question, images, videos, fps=fps, thinking=settings.thinking)
        open_drafting_sessions(self, settings.draft_tokens)
        return AnswerStream(self, inputs, settings)
