"""Varied JSON schemas, and whether an answer follows one."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema

Schema = dict[str, Any]

_WORDS = ["name", "age", "city", "tags", "price", "unit", "kind", "note", "day", "ok"]
_SCALARS: list[Schema] = [
    {"type": "string", "maxLength": 12},
    {"type": "string", "minLength": 2, "maxLength": 8},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "minimum": 0, "maximum": 150},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -10, "exclusiveMaximum": 10},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", "blue"]},
    {"enum": [1, "one", None, True]},
    {"const": "fixed"},
    {"const": {"a": [1, 2]}},
    {"type": ["string", "null"], "maxLength": 5},
]


def varied(count: int, seed: int = 0) -> list[Schema]:
    """So many different ones whose answers are short."""
    chance = random.Random(seed)
    found: dict[str, Schema] = {}
    while len(found) < count:
        schema = _object(chance, 2)
        if chance.random() < 0.2:
            schema["$defs"] = {"part": _any(chance, 0)}
            schema["properties"]["part"] = {"$ref": "#/$defs/part"}
        found.setdefault(json.dumps(schema), schema)
    return list(found.values())


def follows(text: str, schema: Schema) -> bool:
    """Whether it is JSON that the schema allows, by the jsonschema package."""
    validator = jsonschema.validators.validator_for(schema)
    return bool(validator(schema).is_valid(json.loads(text)))


def _any(chance: random.Random, depth: int) -> Schema:
    kind = chance.random()
    if depth == 0 or kind < 0.55:
        return chance.choice(_SCALARS)
    if kind < 0.7:
        most = chance.randint(1, 3)
        least = chance.randint(0, most)
        return {
            "type": "array", "items": _any(chance, depth - 1), "minItems": least, "maxItems": most,
        }  # fmt: skip
    if kind < 0.78:
        return {"anyOf": [_any(chance, depth - 1), _any(chance, depth - 1)]}
    if kind < 0.84:
        items = [_any(chance, depth - 1) for _ in range(chance.randint(1, 3))]
        return {
            "type": "array", "prefixItems": items, "items": False, "minItems": len(items),
        }  # fmt: skip
    return _object(chance, depth - 1)


def _object(chance: random.Random, depth: int) -> Schema:
    names = chance.sample(_WORDS, chance.randint(1, 3))
    properties = {name: _any(chance, depth) for name in names}
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = names if chance.random() < 0.7 else names[:1]
    return schema
