"""Finding and replacing the tensors in whatever a module takes or returns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with every tensor replaced by `change(tensor)`, one that occurs twice (q = k = v) replaced once.

    Looks into tuples, named tuples, lists, dicts and dataclass instances, nested; what holds no changed tensor is
    handed back as the very object it was.
    """
    return _visit(value, change, {})


def _visit(node: Any, change: Callable[[torch.Tensor], torch.Tensor], changed: dict[int, torch.Tensor]) -> Any:
    # No closure: one that calls itself is a reference cycle, and would keep the tensors until the next collection.
    if isinstance(node, torch.Tensor):
        if id(node) not in changed:
            changed[id(node)] = change(node)
        return changed[id(node)]
    if isinstance(node, (tuple, list)):
        items = [_visit(item, change, changed) for item in node]
        if all(new is old for new, old in zip(items, node, strict=True)):
            return node
        return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
    if isinstance(node, dict):
        entries = {key: _visit(item, change, changed) for key, item in node.items()}
        if all(entries[key] is item for key, item in node.items()):
            return node
        return _refilled(node, entries)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        old_fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if hasattr(node, f.name)}
        fields = {name: _visit(item, change, changed) for name, item in old_fields.items()}
        if all(fields[name] is item for name, item in old_fields.items()):
            return node
        return _with_fields(node, fields)
    return node


def _refilled(original: dict[Any, Any], entries: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the original's type with new values, made without its constructor, whose arguments are unknown."""
    if type(original) is dict:
        return entries
    copy = original.copy()
    copy.update(entries)
    return copy


def _with_fields(original: Any, fields: dict[str, Any]) -> Any:
    """A dataclass instance like the original with other field values, made without running its initialiser again."""
    copy = object.__new__(type(original))
    if hasattr(original, "__dict__"):
        copy.__dict__.update(original.__dict__)
    for name, item in fields.items():
        object.__setattr__(copy, name, item)
    return copy
