"""What the source says of each field of a struct: the text that stands below it, which msgspec does not know of."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from itertools import pairwise

import msgspec

__all__ = ["notes_of"]


def notes_of(kind: type[msgspec.Struct]) -> Mapping[str, str]:
    """Return field → what is said of it, its bases' too; none where there is no source to read."""
    notes: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if issubclass(one, msgspec.Struct) and one is not msgspec.Struct:
            notes |= _notes(one)
    return notes


def _notes(kind: type[msgspec.Struct]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    notes: dict[str, str] = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                notes[field.target.id] = inspect.cleandoc(value.value)
    return notes
