"""How TorchDynamo treats hooks: traced where they are part of a larger frame, left alone where they are one."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

Hook = TypeVar("Hook", bound=Callable[..., Any])

_LEFT_ALONE = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)


def never_compiled_alone(hook: Hook) -> Hook:
    """A hook that is not compiled by itself, one graph a module, when only the module around it is compiled.

    TorchDynamo runs the hooks of a block that is compiled (`block.compile()`) outside of the block's graph. There is no
    public way to say so: `torch.compiler.disable` would break the graph where the hook is inside.
    """
    set_code_exec_strategy(hook.__code__, _LEFT_ALONE)
    return hook


def run_at_compile_time(method: Hook) -> Hook:
    """A method that TorchDynamo does not trace: it runs it, once, when it compiles the code that calls it.

    What `torch.compiler.assume_constant_result` does, without its import of TorchDynamo.
    """
    method._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return method
