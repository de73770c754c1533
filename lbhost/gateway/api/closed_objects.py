"""JSON schemas whose objects have no other keys than those that they name. Pure.

A schema that names properties and says nothing of others lets an answer have any: small models go
on with keys of their own until their tokens are used up. OpenAI's strict mode wants
`additionalProperties: false` everywhere, and XGrammar's takes what is silent for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords with schemas by names of the client's."""
_SCHEMAS = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")
"""Keywords with a schema, or a list of them."""
_MORE = ("anyOf", "oneOf", "allOf", "$ref")
"""Keywords by which other schemas may hold for the same object."""
_WHOLE = frozenset(("enum", "const"))
"""Keywords that list whole objects, other keys and all."""
_KEYS = frozenset(("properties", "patternProperties", "required"))
"""Keywords that say which keys an object has."""
_UNUSUAL = frozenset(("if", "not", "dependentSchemas", "$dynamicRef", "unevaluatedProperties"))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties: false` wherever properties are named and nothing is
    said of others. An object that must have more than is named stays open, and a schema that puts
    an object together of several stays as it is: what one part allows, another would forbid."""
    return schema if _puts_together(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict) or not _WHOLE.isdisjoint(schema):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMES and isinstance(value, dict):
            made[key] = {name: _closed(one) for name, one in value.items()}
        elif key in _SCHEMAS:
            made[key] = (
                [_closed(one) for one in value] if isinstance(value, list) else _closed(value)
            )
        else:
            made[key] = value
    if "additionalProperties" not in made and _names_all(made):
        made["additionalProperties"] = False
    return made


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether it names the properties that it wants."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return False
    least = schema.get("minProperties", 0)
    if not isinstance(least, int) or least > len(properties):
        return False
    return all(isinstance(key, str) and key in properties for key in required)


def _puts_together(schema: Any) -> bool:
    """Whether several schemas with properties may hold for one object, somewhere in it."""
    if isinstance(schema, list):
        return any(map(_puts_together, schema))
    if not isinstance(schema, dict):
        return False
    if not _UNUSUAL.isdisjoint(schema):
        return True
    parts = schema.get("allOf")
    several = (isinstance(parts, list) and len(parts) > 1) or not _WHOLE.isdisjoint(schema)
    more = [schema[key] for key in _MORE if key in schema]
    named = schema.get("properties")
    if (several or len(more) > 1 or not _KEYS.isdisjoint(schema)) and _shapes(more, named):
        return True
    below: list[Any] = [schema[key] for key in _SCHEMAS if key in schema]
    for key in _NAMES:
        names = schema.get(key)
        below += names.values() if isinstance(names, dict) else ()
    return any(map(_puts_together, below))


def _shapes(part: Any, named: Any) -> bool:
    """Whether it says which keys an object has, but for wanting some that are `named` already:
    itself, or (a text) where it is to be found."""
    if isinstance(part, list):
        return any(_shapes(one, named) for one in part)
    if isinstance(part, dict):
        if "properties" in part or "patternProperties" in part:
            return True
        if "required" in part and not _names_all({"properties": named, **part}):
            return True
        return any(_shapes(part[key], named) for key in _MORE if key in part)
    return isinstance(part, str)
