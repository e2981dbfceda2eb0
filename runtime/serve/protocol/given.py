"""The base of everything that a client sends: what has no effect is refused by name, not dropped.

The first of many unknown fields or wrong items (`fail_fast`) is one error: a million would take gigabytes.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Given(BaseModel):
    """An object in a request. Null means absent. Unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )
    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Fields of OpenAI's and vLLM's API that would change nothing here, and the values that ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, values: object) -> object:
        """Leave out what asks for nothing, and unknown fields after the first: one is enough to refuse the request.

        Raises an error for a field without effect that asks for something.
        """
        if not isinstance(values, dict):
            return values
        known = {field.alias or name for name, field in cls.model_fields.items()}
        kept, unknown = dict[object, object](), False
        for name, value in values.items():
            if name in cls.without_effect:
                if value is not None and not any(_same(value, neutral) for neutral in cls.without_effect[name]):
                    raise PydanticCustomError("without_effect", "has no effect here; leave it out", {"field": name})
            elif name not in known:
                kept |= {} if unknown else {name: value}
                unknown = True
            elif value is not None:
                kept[name] = value
        return kept


def _same(value: object, neutral: object) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _require_utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid UTF-8: it has half a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_require_utf8)]
"""Text that can be written as UTF-8."""
