"""Random JSON schemas of what people ask of documents, small enough that random answers end."""

import random

WORDS = ["total", "date", "vendor", "합계", 'a "quoted" \\ key', "line items", "x", ""]
SCALARS = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": "integer"},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 99, "maximum": 1000},
    {"type": "integer", "minimum": 0, "multipleOf": 5},
    {"type": "number"},
    {"type": "number", "minimum": 0.5, "exclusiveMaximum": 2},
    {"type": "string"},
    {"type": "string", "maxLength": 6},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["EUR", "KRW", "₩", 7, None, [1, {"a": 2}]]},
    {"const": {"kind": "receipt", "합계": [1.5, True]}},
    {"type": ["integer", "null"]},
]


def random_schema(seed):
    """An object, mostly: with references to definitions, some of them recursive."""
    choose = random.Random(seed)
    names = [f"d{index}" for index in range(choose.randrange(3))]
    schema = _object(choose, 2, names) if choose.random() < 0.7 else _schema(choose, 2, names)
    if names:
        tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/d0"}, {"type": "null"}]}}}
        tree |= {"required": ["next"], "additionalProperties": False}
        schema = schema | {"$defs": {name: tree if name == "d0" else _schema(choose, 1, []) for name in names}}
    return schema


def _schema(choose, depth, names):
    kinds = ["scalar", *(["ref"] if names else []), *(["object", "array", "tuple", "any"] if depth else [])]
    match choose.choice(kinds):
        case "scalar":
            return dict(choose.choice(SCALARS))
        case "ref":
            return {"$ref": f"#/$defs/{choose.choice(names)}"}
        case "object":
            return _object(choose, depth, names)
        case "array":
            least = choose.randrange(3)
            limits = {"minItems": least, "maxItems": least + choose.randrange(3)}
            return {"type": "array", "items": _schema(choose, depth - 1, names), **limits}
        case "tuple":
            items = [_schema(choose, depth - 1, names) for _ in range(choose.randrange(1, 3))]
            return {"type": "array", "prefixItems": items, "items": False, "minItems": choose.randrange(len(items) + 1)}
        case _:
            return {"anyOf": [_schema(choose, depth - 1, names) for _ in range(choose.randrange(1, 4))]}


def _object(choose, depth, names):
    keys = choose.sample(WORDS, choose.randrange(1, 4))
    schema = {"type": "object", "properties": {key: _schema(choose, depth - 1, names) for key in keys}}
    schema["required"] = [key for key in keys if choose.random() < 0.6]
    schema["additionalProperties"] = choose.choice([False, False, {"type": "integer"}])
    return schema
