"""Finding and replacing the tensors in whatever a module takes or returns."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with every tensor replaced by `change(tensor)`, one that occurs twice (q = k = v) replaced once.

    Looks into tuples, named tuples, lists, dicts and dataclass instances, nested; what holds no changed tensor is
    handed back as the very object it was. TorchDynamo can trace it.
    """
    return _Map(change).visit(value)


class _Map:
    """One walk through a structure."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.change = change
        self.changed: dict[int, torch.Tensor] = {}
        self.replacements = 0  # counted, since TorchDynamo cannot compare containers by identity

    def visit(self, node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            if id(node) not in self.changed:
                self.changed[id(node)] = self.change(node)
            changed = self.changed[id(node)]
            self.replacements += changed is not node
            return changed
        before = self.replacements
        if isinstance(node, (tuple, list)):
            items = [self.visit(item) for item in node]
            if self.replacements == before:
                return node
            return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
        if isinstance(node, dict):
            entries = {key: self.visit(item) for key, item in node.items()}
            return node if self.replacements == before else _refilled(node, entries)
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            fields = {
                f.name: self.visit(getattr(node, f.name)) for f in dataclasses.fields(node) if hasattr(node, f.name)
            }
            return node if self.replacements == before else _with_fields(node, fields)
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
