"""The body of `POST /tokenize`, as vLLM has it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from runtime.serve.protocol.given import Given, Text
from runtime.serve.protocol.messages import Conversation, Messages, TemplateOptions, Tools

_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    **dict.fromkeys(("add_special_tokens", "return_token_strs", "continue_final_message"), (False,)),
}


class TokenizeRequest(Given):
    """Text, or a conversation."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = _WITHOUT_EFFECT

    model: str | None = None
    """Name of the model; may be absent."""
    prompt: Text | None = None
    """Text, which is tokenized without chat template."""
    messages: Messages | None = None
    """A conversation, in place of the text."""
    tools: Tools = Field(default=[])
    """Functions that the model may call."""
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    @property
    def conversation(self) -> Conversation | None:
        """The conversation; None for a text."""
        if self.messages is None:
            return None
        return Conversation(messages=self.messages, tools=self.tools, chat_template_kwargs=self.chat_template_kwargs)


def tokens(ids: list[int], context: int) -> dict[str, Any]:
    """What `POST /tokenize` answers with."""
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": None}
