"""Enough of GraphQL to answer the queries of a real client: parse a document, resolve it over plain dicts.

An object is a dict: field -> value, or field -> function of the field's arguments. `__typename` decides which inline
fragments apply. Grammar: https://spec.graphql.org/October2021/, section 2, without subscriptions and type definitions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TOKEN = re.compile(
    r"""[\s,\ufeff]+ | \#[^\n]*                       # ignored
    | (?P<token> \.\.\. | [!$&():=@\[\]{}|]           # punctuation
    | [_A-Za-z][_0-9A-Za-z]*                          # a name
    | -?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?       # a number
    | \"\"\".*?\"\"\" | "(?:[^"\\\n]|\\.)*" )         # a string""",
    re.VERBOSE | re.DOTALL,
)
CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Variable:
    """A `$name` in the place of a value."""

    name: str


@dataclass(frozen=True)
class Selection:
    """A field; or, where `name` is empty, a fragment: spread by name, or inline on a type."""

    name: str = ""
    key: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    directives: dict[str, dict] = field(default_factory=dict)
    spread: str = ""
    on: str = ""
    selections: tuple[Selection, ...] | None = None


@dataclass(frozen=True)
class Operation:
    """A query or mutation with the defaults of its variables."""

    kind: str
    name: str
    defaults: dict[str, Any]
    selections: tuple[Selection, ...]


class Parser:
    """Recursive descent over the tokens of one document."""

    def __init__(self, text: str):
        self.tokens = [m["token"] for m in TOKEN.finditer(text) if m["token"]] + [""]
        self.at = 0
        self.fragments: dict[str, tuple[Selection, ...]] = {}

    def document(self) -> Operation:
        """The document's one operation; its fragments are left in `self.fragments`."""
        operation = None
        while self.tokens[self.at]:
            if self.eat("fragment"):
                name = self.next()
                self.eat("on") and self.next()
                self.directives()
                self.fragments[name] = self.selections()
            else:
                operation = self.operation()
        assert operation is not None
        return operation

    def operation(self) -> Operation:
        kind = "query" if self.tokens[self.at] == "{" else self.next()
        name = self.next() if self.tokens[self.at] not in ("(", "{", "@") else ""
        defaults = {}
        if self.eat("("):
            while not self.eat(")"):
                self.expect("$")
                variable = self.next()
                self.expect(":")
                while self.tokens[self.at] not in ("=", "$", ")"):
                    self.next()
                if self.eat("="):
                    defaults[variable] = self.value()
        self.directives()
        return Operation(kind, name, defaults, self.selections())

    def selections(self) -> tuple[Selection, ...]:
        self.expect("{")
        found = []
        while not self.eat("}"):
            found.append(self.fragment() if self.eat("...") else self.one_field())
        return tuple(found)

    def fragment(self) -> Selection:
        if self.tokens[self.at] not in ("on", "{", "@"):
            return Selection(spread=self.next(), directives=self.directives())
        on = self.next() if self.eat("on") else ""
        return Selection(on=on, directives=self.directives(), selections=self.selections())

    def one_field(self) -> Selection:
        name = key = self.next()
        if self.eat(":"):
            name = self.next()
        arguments = self.arguments()
        directives = self.directives()
        inside = self.selections() if self.tokens[self.at] == "{" else None
        return Selection(name, key, arguments, directives, selections=inside)

    def arguments(self) -> dict[str, Any]:
        found = {}
        if self.eat("("):
            while not self.eat(")"):
                name = self.next()
                self.expect(":")
                found[name] = self.value()
        return found

    def directives(self) -> dict[str, dict]:
        found = {}
        while self.eat("@"):
            name = self.next()
            found[name] = self.arguments()
        return found

    def value(self) -> Any:
        token = self.next()
        if token == "$":
            return Variable(self.next())
        if token == "[":
            return list(self.until("]", self.value))
        if token == "{":
            return dict(self.until("}", self.pair))
        if token in CONSTANTS:
            return CONSTANTS[token]
        if token.startswith('"""'):
            return token[3:-3]
        return json.loads(token) if token[0] in '"-0123456789' else token  # a bare name is an enum

    def pair(self) -> tuple[str, Any]:
        name = self.next()
        self.expect(":")
        return name, self.value()

    def until(self, end: str, one) -> Iterator:
        while not self.eat(end):
            yield one()

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def eat(self, token: str) -> bool:
        self.at += (found := self.tokens[self.at] == token)
        return found

    def expect(self, token: str) -> None:
        if not self.eat(token):
            raise ValueError(f"expected {token!r}, got {self.tokens[self.at]!r} (token {self.at})")


def execute(query: str, variables: Mapping[str, Any], roots: Mapping[str, dict], unknown: set[str]) -> dict:
    """Answer a document. `roots`: the fields of "query" and "mutation". Fields that no object has are null.

    Those are added to `unknown` as Operation.Type.field: a client asks for something the objects do not model.
    """
    parser = Parser(query)
    operation = parser.document()
    variables = {**operation.defaults, **variables}

    def filled(value: Any) -> Any:
        if isinstance(value, Variable):
            return variables.get(value.name)
        if isinstance(value, list):
            return [filled(v) for v in value]
        if isinstance(value, dict):
            return {k: filled(v) for k, v in value.items() if not isinstance(v, Variable) or v.name in variables}
        return value

    def wanted(selection: Selection) -> bool:
        include = filled(selection.directives.get("include", {}).get("if", True))
        return include and not filled(selection.directives.get("skip", {}).get("if", False))

    def resolve(thing: Any, selections: tuple[Selection, ...] | None) -> Any:
        if thing is None or selections is None:
            return thing
        if isinstance(thing, list):
            return [resolve(one, selections) for one in thing]
        answer: dict[str, Any] = {}
        for selection in filter(wanted, selections):
            if selection.spread:
                answer |= resolve(thing, parser.fragments[selection.spread])
            elif not selection.name:
                if selection.on in ("", thing.get("__typename"), *thing.get("__implements", ())):
                    answer |= resolve(thing, selection.selections)
            elif selection.name not in thing:
                unknown.add(f"{operation.name}.{thing.get('__typename', '?')}.{selection.name}")
                answer[selection.key] = None
            else:
                value = thing[selection.name]
                value = value(filled(selection.arguments)) if callable(value) else value
                value = resolve(value, selection.selections)
                both = isinstance(value, dict) and isinstance(answer.get(selection.key), dict)
                answer[selection.key] = {**answer[selection.key], **value} if both else value
        return answer

    return resolve(roots[operation.kind], operation.selections)
