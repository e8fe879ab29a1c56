"""Nodes of autograd's graph: which one made a tensor, and listening to what a backward pass brings to it."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import Node

# What a node of the graph calls with the gradients of all of its outputs: hooks on nodes cost less than on tensors.
NodeHook = Callable[[tuple[Tensor | None, ...]], None]


def alias_of(tensor: Tensor) -> Tensor:
    """A view whose backward hands the gradient through as it is, with the attributes that people set on the tensor."""
    # The fastest way to aten::alias. The backward of `view_as` reshapes the gradient, which a sparse one cannot be.
    alias = tensor[...]
    if tensor.__dict__ and type(alias) is Tensor:  # what subclasses keep there is each tensor's own
        alias.__dict__ = tensor.__dict__
    return alias


def inside_backward() -> bool:
    """Whether autograd is running in this thread (a checkpoint recomputing its forward, say).

    torch.utils.checkpoint asks in the same way; there is no public name for it.
    """
    return torch._C._current_graph_task_id() != -1


def listen(node: Node | None, position: int, hook: NodeHook) -> None:
    """Have `hook` called with the gradient of one of a node's outputs; not at a leaf, which outlives the pass."""
    if node is not None and node.name() != "torch::autograd::AccumulateGrad":
        node.register_prehook(hook if position == 0 else lambda gradients: hook(gradients[position : position + 1]))


def node_of(tensor: Tensor) -> Node:
    """What made a tensor that requires grad and is no leaf."""
    node = tensor.grad_fn
    assert node is not None
    return node


def listen_at_changed(alias: Tensor, made_by: Node, leaves: NodeHook, shared: Callable[[], None]) -> None:
    """Listen to what leaves through an input that was changed in place, whose alias is out of the graph since.

    What others do with the changed input comes to the node of the change, too, and is not to be told apart.

    Args:
        alias: what was handed on.
        made_by: the node that had made it.
        leaves: called with the gradient that leaves.
        shared: called in a backward in which anything came to the changed input but what came through an alias.
    """
    now, before = node_of(alias), made_by.next_functions[0][0]
    changes = _changes(now, before)
    if not changes:  # only its version was changed, behind autograd's back
        now.register_prehook(leaves)
        return
    # Among several aliases, of modules inside of one another, it is the innermost that something comes through.
    through = cast(dict[Any, Any], changes[0].metadata).setdefault(_THROUGH_ALIAS, [])

    def note(sent: tuple[Tensor | None, ...], _: tuple[Tensor | None, ...]) -> None:
        through[:] = [_identity(sent[0])]

    def compare(arrived: tuple[Tensor | None, ...]) -> None:
        if [_identity(arrived[0])] != through:
            shared()

    now.register_hook(note)
    changes[0].register_prehook(compare)
    changes[-1].register_hook(lambda sent, _: leaves(sent[:1]))


_THROUGH_ALIAS = "sapflow: the gradient that came through an alias"


def _changes(now: Node, before: Node | None) -> list[Node]:
    """The in-place changes that were made of what `before` had made, the last one first."""
    older = {before, *(node for node, _ in before.next_functions)} if before is not None else {None}
    changes: list[Node] = []
    node = now.next_functions[0][0]
    while node is not None and node not in older and node.name().endswith("CopySlices"):
        changes.append(node)
        node = node.next_functions[0][0]
    return changes


def _identity(gradient: Tensor | None) -> tuple[int, int] | None:
    """The same of one gradient that is handed through, another of one that something was added to."""
    if gradient is None or gradient.layout != torch.strided:
        return None
    return gradient.data_ptr(), gradient._version
