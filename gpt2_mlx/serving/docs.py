"""The OpenAPI document as a page to read."""

import json
from html import escape
from typing import Any

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>The API of gpt2_mlx</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
</head>
<body class="docs">
<header>
<h1><a href=".">gpt2_mlx</a></h1>
<nav><a href=".">Playground</a> <a href="openapi.json">OpenAPI</a></nav>
</header>
<main>
<p class="lead">{about}</p>
<nav class="contents" aria-label="Routes"><ul>{contents}</ul></nav>
{routes}
</main>
</body>
</html>
"""


def page(document: dict[str, Any]) -> str:
    """HTML that tells what an OpenAPI document of ours does."""
    routes = [
        (f"{method.upper()} {path}", path, facts)
        for path, methods in document["paths"].items()
        for method, facts in methods.items()
    ]
    contents = "".join(f'<li><a href="#{_anchor(title)}"><code>{title}</code></a></li>' for title, _, _ in routes)
    told = "\n".join(_route(title, path, facts, document) for title, path, facts in routes)
    return _FRAME.format(about=escape(document["info"]["description"]), contents=contents, routes=told)


def _route(title: str, path: str, facts: dict[str, Any], document: dict[str, Any]) -> str:
    parts = [f'<section id="{_anchor(title)}"><h2><code>{title}</code></h2><p>{escape(facts["summary"])}.</p>']
    if description := facts.get("description"):
        parts.append(f"<p>{_prose(description)}</p>")
    if body := facts.get("requestBody"):
        content = body["content"]["application/json"]
        for example in _schema(content["schema"], document).get("examples", ()):
            command = f"curl localhost:5001{path} -d '{json.dumps(example)}'"
            parts.append(f"<pre><code>{escape(command)}</code></pre>")
        parts.append("<h3>Request</h3>" + _table(content, document))
    for parameter in facts.get("parameters", ()):
        parts.append(f"<p><code>?{parameter['name']}=</code> {_kind(parameter['schema'])}</p>")
    for status, response in facts["responses"].items():
        content = response["content"]
        if status == "200" and "application/json" in content:
            parts.append("<h3>Answer</h3>" + _table(content["application/json"], document))
        elif status == "200":
            parts.append(f"<h3>Answer</h3><p>{', '.join(f'<code>{kind}</code>' for kind in content)}</p>")
    errors = [(status, r["description"]) for status, r in facts["responses"].items() if status != "200"]
    if errors:
        rows = "".join(f"<dt>{status}</dt><dd>{_prose(description)}</dd>" for status, description in errors)
        parts.append(f"<h3>Errors</h3><dl>{rows}</dl>")
    return "\n".join([*parts, "</section>"])


def _table(content: dict[str, Any], document: dict[str, Any]) -> str:
    """The fields of a body; those of objects inside it follow, by their path."""
    rows = _rows(content["schema"], document)
    return f"<div class='wide'><table><tbody>{rows}</tbody></table></div>"


def _rows(reference: dict[str, str], document: dict[str, Any], prefix: str = "") -> str:
    schema, rows = _schema(reference, document), ""
    for name, field in schema["properties"].items():
        required = "required, " if name in schema.get("required", ()) and reference["$ref"].endswith("Request") else ""
        about = f"<td>{required}{_kind(field)}</td><td>{_prose(field.get('description', ''))}</td>"
        rows += f"<tr><th scope='row'><code>{prefix}{name}</code></th>{about}</tr>"
        for inner, mark in _inside(field):
            rows += _rows(inner, document, f"{prefix}{name}{mark}.")
    return rows


def _schema(reference: dict[str, str], document: dict[str, Any]) -> dict[str, Any]:
    return document["components"]["schemas"][reference["$ref"].rpartition("/")[2]]


def _inside(field: dict[str, Any]) -> list[tuple[dict[str, str], str]]:
    """The objects that a field holds, with the mark that tells them from a list of them."""
    kinds = field.get("anyOf", [field])
    found = [(kind, "") for kind in kinds if "$ref" in kind]
    return found + [(kind["items"], "[]") for kind in kinds if "$ref" in kind.get("items", {})]


def _kind(field: dict[str, Any]) -> str:
    """What a field may be, in a few words."""
    kinds = [_one_kind(kind) for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    told = " or ".join(kinds) or "null"
    default = field.get("default")
    if isinstance(default, (bool, str)):
        told += f"; {str(default).lower()} if left out"
    elif isinstance(default, (int, float)):
        told += f"; {default:g} if left out"
    return told


def _one_kind(kind: dict[str, Any]) -> str:
    if "$ref" in kind:
        return "object"
    if "enum" in kind or "const" in kind:
        return " or ".join(f"<code>{value}</code>" for value in kind.get("enum", [kind.get("const")]))
    if kind["type"] == "array":
        return f"list of {_kind(kind['items'])}"
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None:
        return (
            f"{kind['type']}, {low:g} to {high:,}" if isinstance(high, int) else f"{kind['type']}, {low:g} to {high:g}"
        )
    return kind["type"]


def _prose(text: str) -> str:
    """Plain text, with `code` in backquotes."""
    parts = escape(" ".join(text.split())).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _anchor(title: str) -> str:
    return "-".join(title.lower().replace("/", " ").split())
