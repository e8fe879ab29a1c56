"""What ends a pass, seen without a change of the training loop; each function gives what undoes it."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from sapflow.gradients.frames import never_compiled_alone
from sapflow.gradients.nodes import inside_backward


def arranged(
    scaler: torch.amp.GradScaler | None,
    optimizer: torch.optim.Optimizer | None,
    root: nn.Module | None,
    close: Callable[[], None],
    close_at_root: Callable[[], None],
) -> Callable[[], None]:
    """Close by the first of them that is there; `close_at_root` is called by the root."""
    if scaler is not None:
        return at_scaler_update(scaler, close)
    if optimizer is not None:
        return at_optimizer_step(optimizer, close)
    if root is not None:
        return at_next_forward(root, close_at_root)
    return lambda: None


def at_optimizer_step(optimizer: torch.optim.Optimizer, close: Callable[[], None]) -> Callable[[], None]:
    """Close after each step of the optimizer; not of one that steps within the backward that it steps for."""
    steps = _of_one.setdefault(optimizer, _Steps())
    return steps.listen(optimizer.register_step_post_hook, lambda _: close())


def at_any_optimizer_step(model: nn.Module, close: Callable[[], None]) -> Callable[[], None]:
    """Close after each step of any optimizer, anywhere, that trains parameters of the model.

    Where there is one for each parameter, which steps within the backward, the next forward ends the pass.
    """

    ours: WeakSet[torch.optim.Optimizer] = WeakSet()  # to look at all parameters takes as long as some steps do

    def after_step(optimizer: torch.optim.Optimizer) -> None:
        if optimizer not in ours and trains(optimizer):
            ours.add(optimizer)
        if optimizer in ours:
            close()

    def trains(optimizer: torch.optim.Optimizer) -> bool:
        parameters = {id(parameter) for parameter in model.parameters()}
        return any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])

    return _of_any.listen(register_optimizer_step_post_hook, after_step)


class _Steps:
    """Who listens to the steps of an optimizer, or of any, by one hook.

    What is told of a step may close a watcher, or begin another, and torch raises where its hooks come and go while it
    runs them.
    """

    def __init__(self) -> None:
        self._listeners: list[_StepListener] = []
        self._handle: RemovableHandle | None = None
        self._told = 0  # steps that are being told of

    def listen(self, register: Callable[[Any], RemovableHandle], listener: "_StepListener") -> Callable[[], None]:
        self._handle = self._handle or register(self._tell)
        self._listeners.append(listener)

        def undo() -> None:
            self._listeners.remove(listener)
            self._let_go()

        return undo

    def _tell(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if inside_backward():
            return
        self._told += 1
        try:
            for listener in tuple(self._listeners):
                if listener in self._listeners:  # still
                    listener(optimizer)
        finally:
            self._told -= 1

    def _let_go(self) -> None:
        """Take the hook off, if nobody listens; while it runs only from the end, where torch can bear it."""
        handle = self._handle
        if self._listeners or handle is None:
            return
        hooks = handle.hooks_dict_ref() or {}
        if not self._told or next(reversed(hooks), None) == handle.id:
            handle.remove()
            self._handle = None


_StepListener = Callable[[torch.optim.Optimizer], None]
_of_any = _Steps()
_of_one: WeakKeyDictionary[torch.optim.Optimizer, _Steps] = WeakKeyDictionary()


def at_next_forward(root: nn.Module, close: Callable[[], None]) -> Callable[[], None]:
    """Close when the root is about to run forward, outside of any backward pass."""

    return root.register_forward_pre_hook(_AtForward(close).before_forward).remove


class _AtForward:
    """The hook on the root; the copy that comes with a copied or pickled model closes nothing."""

    def __init__(self, close: Callable[[], None] = lambda: None) -> None:
        self.close = close

    @never_compiled_alone
    def before_forward(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and not inside_backward():
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _AtForward, ()


def at_scaler_update(scaler: torch.amp.GradScaler, close: Callable[[], None]) -> Callable[[], None]:
    """Close when the scaler is about to update its scale: it does so, too, when it skips the optimizer's step."""
    # GradScaler has no hooks: the method is shadowed on this one object, once for all that close by it.
    shadow = vars(scaler).get("update")
    if not isinstance(shadow, _Update):
        shadow = scaler.update = _Update(scaler)  # type: ignore[method-assign]
    closers = shadow.closers
    closers.append(close)

    def undo() -> None:
        closers.remove(close)
        if not closers and isinstance(vars(scaler).get("update"), _Update):
            del scaler.update

    return undo


def scale_of(scaler: torch.amp.GradScaler | None) -> Tensor | None:
    """The scale on its device; `get_scale` would wait for it."""
    return scaler._scale if scaler is not None and scaler.is_enabled() else None


class _Update:
    """Stands for `scaler.update`; the copy that comes with a copied or pickled scaler closes nothing."""

    def __init__(self, scaler: torch.amp.GradScaler | None = None) -> None:
        self.scaler = scaler
        self.closers: list[Callable[[], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        for close in tuple(self.closers):
            close()
        assert self.scaler is not None
        type(self.scaler).update(self.scaler, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Update, (), {"scaler": self.scaler}
