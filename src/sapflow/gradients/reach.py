"""Whether gradients have reached a module's parameters since an epoch began, told by what stands on them."""

from weakref import ref

from torch import Tensor, nn


class ParameterReach:
    """What stood on the parameters when the epoch began tells nothing of it: a loop may never zero its gradients.

    Args:
        module: whose parameters; None has none.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._module = module
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the epoch before."""
        self.reached = False
        # By its id, with its version.
        self._standing = {id(gradient): (ref(gradient), gradient._version) for gradient in self._gradients()}

    def look(self) -> None:
        """Note whether a gradient has come, or has changed."""
        if not self.reached:
            self.reached = any(not self._stands(gradient) for gradient in self._gradients())

    def _gradients(self) -> list[Tensor]:
        parameters = () if self._module is None else self._module.parameters()
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _stands(self, gradient: Tensor) -> bool:
        known, version = self._standing.get(id(gradient), (lambda: None, 0))
        return known() is gradient and version == gradient._version
