"""Nodes of autograd's graph: which one made a tensor, and listening to what a backward pass brings to it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import Node

# What a node of the graph calls with the gradients of all of its outputs: hooks on nodes cost less than on tensors.
NodeHook = Callable[[tuple[Tensor | None, ...]], None]


def alias_of(tensor: Tensor) -> Tensor:
    """A view whose backward hands the gradient through as it is."""
    # The fastest way to aten::alias. The backward of `view_as` reshapes the gradient, which a sparse one cannot be.
    return tensor[...]


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
