"""What some policies need beside the gains: the scale of a module's output, and whether its parameters are alive.

Measured on one pass of VITALS_EVERY, so that the others pay next to nothing; nothing synchronises before it is read.
"""

import torch
from torch import Tensor, nn

from sapflow.gradients.structures import map_tensors

VITALS_EVERY = 16
# A parameter tensor is alive when the norm of its gradient exceeds this share of the largest among all watched ones.
ALIVE_SHARE = 1e-4


def mean_square(value: object) -> Tensor | None:
    """The mean of the squares of all floating-point tensors in a structure, fp32; None if it has none."""
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.numel():
            tensors.append(tensor.detach())
        return tensor

    map_tensors(collect, value)
    if not tensors:
        return None
    squares = [tensor.float().square().sum() for tensor in tensors]
    return torch.stack(squares).sum() / sum(tensor.numel() for tensor in tensors)


def liveness(modules: list[nn.Module]) -> list[Tensor | None]:
    """The share of live parameter tensors of each module, on the device; None where no gradient is to be seen.

    Gradients must still stand on the parameters, as they do right after an optimizer's step.
    """
    trained = [[parameter for parameter in module.parameters() if parameter.requires_grad] for module in modules]
    gradients = [parameter.grad for parameters in trained for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return [None] * len(modules)
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    alive = (norms > ALIVE_SHARE * norms.max()).float()
    shares: list[Tensor | None] = []
    start = 0
    for parameters in trained:
        seen = sum(parameter.grad is not None for parameter in parameters)
        shares.append(alive[start : start + seen].sum() / len(parameters) if parameters else None)
        start += seen
    return shares
