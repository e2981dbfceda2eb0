"""Parts of requests to the reader's server."""

QUESTION = "Read the text."
USER = [{"role": "user", "content": QUESTION}]
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
    "required": ["total", "kind"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Seoul", "Busan"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def picture(image, text=QUESTION):
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]
