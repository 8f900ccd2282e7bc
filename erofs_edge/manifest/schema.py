# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of boards, manifests and locks, for editors and validators.

They are draft-07, which editors support; msgspec writes 2020-12, but of what that added only siblings of ``$ref`` are
used here. A file with ``extends`` is incomplete: it may leave out any key, append to lists (``packages+``) and remove
keys (null). Each struct therefore has a second definition for that case.
The loader checks more than a schema can express; whatever a schema refuses, the loader refuses too.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from erofs_edge.manifest import model
from erofs_edge.manifest.vocabulary import descriptions, key_descriptions, struct_named

KINDS: dict[str, type] = {"board": model.Board, "manifest": model.System, "lock": model.Lock}
"""the kinds that `schema` knows, and the struct of each"""

DRAFT = "http://json-schema.org/draft-07/schema#"
PART = "Part"
"""suffix of the definitions for files that extend another one"""

RULES: dict[str, dict[str, Any]] = {
    "Source": {"oneOf": [{"required": ["directory"]}, {"required": ["tar"]}, {"required": ["oci"]}]},
    "Oci": {"oneOf": [{"required": ["image"]}, {"required": ["layout"]}]},
}
"""further requirements of a struct, in JSON Schema's keywords"""


def schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema (draft-07) of one of `KINDS`."""
    struct = KINDS[kind]
    _, components = msgspec.json.schema_components([struct], ref_template="#/definitions/{name}")
    whole = {name: _definition(name, part, partial=False) for name, part in components.items()}
    root: dict[str, Any] = {
        "$schema": DRAFT,
        "$id": f"urn:erofs-edge:schema:{kind}",
        "title": f"erofs-edge {kind}",
        "description": descriptions()[struct.__name__][""],
    }
    if kind == "lock":
        return root | {"allOf": [{"$ref": f"#/definitions/{struct.__name__}"}], "definitions": whole}
    parts = {name + PART: _definition(name, part, partial=True) for name, part in components.items()}
    root["if"] = {"required": ["extends"]}
    root["then"] = {"$ref": f"#/definitions/{struct.__name__}{PART}"}
    root["else"] = {"$ref": f"#/definitions/{struct.__name__}"}
    root["definitions"] = dict(sorted((whole | parts).items()))
    return root


def schema_text(kind: str) -> str:
    """Return the schema as the text of a file."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def _definition(name: str, component: dict[str, Any], *, partial: bool) -> dict[str, Any]:
    texts = key_descriptions(struct_named(name))
    properties: dict[str, Any] = {}
    for key, value in component["properties"].items():
        properties[key] = _property(value, texts[key], partial=partial)
        if partial and value.get("type") == "array":
            appended = {k: v for k, v in _renamed(value, partial=True).items() if k != "default"}
            properties[f"{key}+"] = appended | {"description": f"appended to what the base says: {texts[key]}"}
    made = {
        "type": "object",
        "description": descriptions()[name][""],
        "properties": properties,
        "additionalProperties": False,
    }
    if not partial:
        made |= {"required": component["required"]} if component["required"] else {}
        made |= RULES.get(name, {})
    return made


def _property(value: dict[str, Any], text: str, *, partial: bool) -> dict[str, Any]:
    """Return the schema of one key: its type with a description and, under `extends`, null as an alternative."""
    typed: dict[str, Any] = _renamed(value, partial=partial)
    default = {"default": typed.pop("default")} if "default" in typed else {}
    said = typed.pop("description", None)
    if said and said not in text and text not in said:
        text = f"{text} ({said})"
    if partial:
        if "additionalProperties" in typed:  # a map: its members can be removed one by one
            typed["additionalProperties"] = {"anyOf": [typed["additionalProperties"], {"type": "null"}]}
        typed = {"anyOf": [typed, {"type": "null"}]}
    elif "$ref" in typed:
        typed = {"allOf": [typed]}
    return {"description": text, **typed, **default}


def _renamed(value: Any, *, partial: bool) -> Any:
    """Return a copy whose references point to the definitions for this case."""
    if isinstance(value, dict):
        return {
            key: item + PART if partial and key == "$ref" else _renamed(item, partial=partial)
            for key, item in value.items()
        }
    return [_renamed(item, partial=partial) for item in value] if isinstance(value, list) else value
