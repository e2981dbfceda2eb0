"""The page at `/docs`: routes and parameters, written from the OpenAPI document. It loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
    "padding:0 1rem}table{border-collapse:collapse;width:100%}"
    "td{border-top:1px solid #8886;padding:.3rem .6rem .3rem 0;vertical-align:top}code{white-space:nowrap}"
)


def docs_page(document: dict[str, Any]) -> str:
    """Write the page. document: OpenAPI."""
    schemas = document.get("components", {}).get("schemas", {})
    parts = [
        _route(path, method, route) for path, methods in document["paths"].items() for method, route in methods.items()
    ]
    tables = [_table(name, schemas[name]) for name in sorted(schemas) if schemas[name].get("properties")]
    title = escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<p>{escape(document['info'].get('description', ''))} The same as a document for programs: "
        f'<a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Routes</h2><table>{''.join(parts)}</table>{''.join(tables)}</html>"
    )


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    text = escape(route.get("description", route.get("summary", "")))
    takes = f" Takes {_kind(body)}." if body else ""
    return f"<tr><td><code>{method.upper()} {escape(path)}</code><td>{text}{takes}"


def _table(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(field)}</code>{' (required)' if field in required else ''}"
        f"<td>{_kind(content)}<td>{escape(content.get('description', ''))}"
        for field, content in schema["properties"].items()
    ]
    text = escape(schema.get("description", ""))
    return f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{text}</p><table>{"".join(rows)}</table>'


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, with links to other tables."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_kind(each) for each in schema[key] if each.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))
