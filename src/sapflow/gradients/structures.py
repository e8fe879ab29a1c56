"""Finding and replacing the tensors in whatever a module takes or returns."""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch

Change = Callable[[torch.Tensor], torch.Tensor]


def map_tensors(change: Change, value: Any, *, into_mutable: bool = True) -> Any:
    """`value` with every tensor replaced by `change(tensor)`, one that occurs twice (q = k = v) replaced once.

    Looks into tuples, named tuples and, unless told otherwise, into lists, dicts and dataclass instances, nested; what
    holds no changed tensor is handed back as the very object it was. TorchDynamo can trace it.
    """
    return _Map(change, into_mutable).visit(value)


class _Map:
    """One walk through a structure."""

    def __init__(self, change: Change, into_mutable: bool) -> None:
        self.change = change
        self.into_mutable = into_mutable
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
        if isinstance(node, tuple):
            items = [self.visit(item) for item in node]
            return node if self.replacements == before else _tuple_like(node, items)
        if not self.into_mutable:
            return node
        if isinstance(node, list):
            items = [self.visit(item) for item in node]
            return node if self.replacements == before else type(node)(items)
        if isinstance(node, dict):
            entries = {key: self.visit(item) for key, item in node.items()}
            return node if self.replacements == before else _refilled(node, entries)
        if _is_dataclass(node):
            fields = {name: self.visit(item) for name, item in _entries(node)}
            return node if self.replacements == before else _with_fields(node, fields)
        return node


class StandIns:
    """Tensors that stand in for those of a structure while a module runs, until they are put back.

    Lists, dicts and dataclass instances stay the very objects that they are, and are changed where they stand: what a
    module appends to the list that it is given, its caller has to find there.

    Args:
        change: gives what stands in for a tensor; the tensor itself, if nothing is to.
    """

    def __init__(self, change: Change) -> None:
        self._change = change
        self._stand_ins: dict[int, Any] = {}  # by the id of the original, which `_originals` keeps alive
        self._originals: dict[int, Any] = {}  # by the id of the stand-in
        self._containers: dict[int, Any] = {}  # by their ids

    def put_in(self, node: Any) -> Any:
        """The structure with the stand-ins in it; a tuple that holds one is another tuple."""
        if isinstance(node, torch.Tensor):
            return self._stand_ins[id(node)] if id(node) in self._stand_ins else self._note(node, self._change(node))
        if isinstance(node, tuple):
            items = [self.put_in(item) for item in node]
            changed = any(item is not before for item, before in zip(items, node, strict=True))
            return self._note(node, _tuple_like(node, items)) if changed else node
        entries = _entries(node)
        if not entries or id(node) in self._containers:  # once, wherever else it stands
            return node
        self._containers[id(node)] = node
        for key, item in entries:
            stand_in = self.put_in(item)
            if stand_in is not item:
                _set(node, key, stand_in)
        return node

    def put_back(self) -> None:
        """Leave none of them in any list, dict or dataclass instance, wherever the module has moved them inside."""
        for container in self._containers.values():
            for key, item in _entries(container):
                original = self._originals.get(id(item), item)
                if original is not item:
                    _set(container, key, original)

    def stood_in_for(self, tensor: torch.Tensor) -> bool:
        """Whether something stood in for it."""
        return self._stand_ins.get(id(tensor), tensor) is not tensor

    def _note(self, original: Any, stand_in: Any) -> Any:
        self._stand_ins[id(original)], self._originals[id(stand_in)] = stand_in, original
        return stand_in


def _is_dataclass(node: object) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _entries(node: Any) -> list[tuple[Any, Any]]:
    """Keys and items of a mutable container; nothing of anything else."""
    if isinstance(node, list):
        return list(enumerate(node))
    if isinstance(node, dict):
        return list(node.items())
    if _is_dataclass(node):
        return [(f.name, getattr(node, f.name)) for f in dataclasses.fields(node) if hasattr(node, f.name)]
    return []


def _set(container: Any, key: Any, item: Any) -> None:
    if isinstance(container, (list, dict)):
        container[key] = item
    else:
        object.__setattr__(container, key, item)  # a frozen one, too


def _tuple_like(original: Any, items: Iterable[Any]) -> Any:
    return type(original)(*items) if hasattr(original, "_fields") else type(original)(items)


def _refilled(original: dict[Any, Any], entries: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the original's type with new values; entry by entry, since some types forbid to update them."""
    if type(original) is dict:
        return entries
    twin = copy.copy(original)
    for key, item in entries.items():
        twin[key] = item
    return twin


def _with_fields(original: Any, fields: dict[str, Any]) -> Any:
    """A dataclass instance like the original with other field values, made without running its initialiser again."""
    twin = object.__new__(type(original))
    if hasattr(original, "__dict__"):
        twin.__dict__.update(original.__dict__)
    for name, item in fields.items():
        object.__setattr__(twin, name, item)
    return twin
