"""`sapflow.grow`: seeds in a model of one's own, in a training loop of one's own."""

import atexit
import logging
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import sapflow
from sapflow.control.actions import SlotActions
from sapflow.control.controller import Controller
from sapflow.control.controllers import ScheduledController
from sapflow.control.evaluation import Evaluation
from sapflow.control.functions import check_functions, registered_functions
from sapflow.control.grower import Grower
from sapflow.control.life_cycle import GrowthPlan
from sapflow.control.notify import NOTIFYING_SECONDS, Notifier
from sapflow.control.responses import Notifying
from sapflow.errors import InputError
from sapflow.gradients.selection import kind_of, unwrapped
from sapflow.growth.export import export
from sapflow.growth.host import slots_of
from sapflow.growth.placing import Place, PlacedSlot, place_slots
from sapflow.growth.seed_trainer import SeedTraining
from sapflow.growth.shadow import Closure, learn_shapes
from sapflow.health.policy import Policy
from sapflow.health.rule_file import RuleFile, load_rules
from sapflow.health.rules import DEFAULT_RULES, Rule, check_names
from sapflow.telemetry.events import Alert, EnvCompleted, EnvFailed, EpochCompleted, RunCompleted, RunStarted
from sapflow.telemetry.inbox import Inbox
from sapflow.telemetry.keeping import Keeping

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

log = logging.getLogger("sapflow.control")


def grow(
    model: nn.Module,
    slots: Mapping[str, Place] | None = None,
    *,
    optimizer: torch.optim.Optimizer,
    run_dir: str | Path | None = None,
    controller: Controller | None = None,
    training: SeedTraining | None = None,
    rules: Iterable[Rule] | str | Path = DEFAULT_RULES,
    decide_every: int | None = None,
    functions: Mapping[str, Callable[[Alert], object]] | None = None,
    policy: Policy | None = None,
    epochs: int = 0,
    random_seed: int = 0,
    grad_scaler: torch.amp.GradScaler | None = None,
    process_group: "ProcessGroup | None" = None,
) -> "Growth":
    """Let seeds grow in `model` while it trains.

    In the loop, the loss comes from `growth.loss(lambda net: …)`; the optimizer's step is the seeds' step, too; and
    `growth.epoch(…)` ends an epoch. What incubates changes no bit of the model's losses and gradients.

    Args:
        model: any module, or DDP or torch.compile around one; move it to its device first.
        slots: where seeds may grow, {"layers.3": "after"}: before or after a module, by its name. None: the slots that
            the model has (`SeedSlot`).
        optimizer: of the model; seeds have their own.
        run_dir: where to keep the telemetry, for `sapflow sanctum`, and where people ask by hand to prune, hold, resume
            or stop; if it exists, a new one beside it. None keeps none.
        controller: decides at the end of each epoch; a `ScheduledController` by default.
        training: how seeds are trained.
        rules: raise alerts and ask for actions; or the rule file that they stand in, with its own `decide_every`.
        decide_every: steps from one decision to the next within an epoch, if there are rules for passes; by default 50,
            or as many as the shortest of them lasts.
        functions: that rules may call, by name ("call:NAME"), with the alert; of several ranks, on each. Those that
            installed packages register are there, too.
        policy: judges the seeds; the record's band by default.
        epochs: how many there will be; 0 where nobody knows.
        random_seed: determines what is chosen and what seeds are born with.
        grad_scaler: of the model's loss.
        process_group: the ranks that train the model; by default those of a DDP model, compiled or not. Every rank
            calls the same.

    Raises:
        InputError: there is no such module, no slot at all, two of one slot_id, or the directory cannot be made; the
            model is as it was.
    """
    rule_file = load_rules(Path(rules)) if isinstance(rules, str | Path) else RuleFile(rules=tuple(rules))
    check_names(rule_file.rules)
    functions = dict(functions or {})
    functions |= registered_functions(rule_file.rules, besides=functions)
    check_functions(rule_file.rules, functions)
    host = unwrapped(model)
    if process_group is None:
        parallel = (part for part in model.modules() if isinstance(part, nn.parallel.DistributedDataParallel))
        process_group = next((part.process_group for part in parallel), None)
    if process_group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        log.warning("this rank's model grows alone, other than those of other ranks: to train one, give the DDP model")
    leads = process_group is None or dist.get_rank(process_group) == 0
    with ExitStack() as undo:
        placed = place_slots(host, slots) if slots is not None else {}
        for of_host in placed.values():
            undo.callback(of_host.remove)
        in_host = {} if placed else slots_of(host)
        if not placed and not in_host:
            raise InputError("slots: the model has none; name modules to grow at, as in {'layers.3': 'after'}")
        notifier = Notifier(rule_file.notify) if rule_file.notify and leads else None
        if notifier is not None:
            undo.callback(notifier.close, 0.0)
        keeping = Keeping(Path(run_dir).resolve() if run_dir is not None and leads else None, "grow")
        undo.callback(keeping.close)
        inbox = Inbox(keeping.run_dir, keeping.flush) if keeping.run_dir is not None else None
        telling: Notifying | None = notifier.of_env(keeping.env) if notifier is not None else None
        grower = Grower(
            model,
            host,
            {name: of_host.slot for name, of_host in placed.items()} or in_host,
            controller if controller is not None else ScheduledController(GrowthPlan(), random_seed),
            keeping.env,
            random_name=str(random_seed),
            how=training if training is not None else SeedTraining(),
            rules=rule_file.rules,
            decide_every=rule_file.decide_every or decide_every,
            functions=functions,
            notifier=telling if leads else _ByTheFirst(),
            inbox=inbox,
            policy=policy,
            epochs=epochs,
            optimizer=optimizer,
            grad_scaler=grad_scaler,
            process_group=process_group,
        )
        undo.pop_all()
    versions = {"sapflow": sapflow.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    keeping.run.emit(
        RunStarted(
            task=kind_of(model), envs=1, epochs=epochs, rng_seed=random_seed, versions=versions, token=keeping.token
        )
    )
    return Growth(grower, placed, keeping, notifier, inbox)


class _ByTheFirst:
    """Tells people on ranks that do not lead: the first one does."""

    def notify(self, epoch: int, sequence: int, alert: Alert) -> None:
        """Let it go."""


class Growth:
    """Seeds that grow in a model; made by `grow`, a context manager."""

    def __init__(
        self,
        grower: Grower,
        placed: Mapping[str, PlacedSlot],
        keeping: Keeping,
        notifier: Notifier | None,
        inbox: Inbox | None,
    ) -> None:
        self._grower = grower
        self._placed = placed
        self._keeping = keeping
        self._notifier = notifier
        self._inbox = inbox
        self._begun = self._closed = False
        atexit.register(self._close_at_exit)

    @property
    def run_dir(self) -> Path | None:
        """Where the telemetry is kept; None if nowhere."""
        return self._keeping.run_dir

    @property
    def stop_reason(self) -> str:
        """Why a rule or a person asks for the training to stop; empty while none does."""
        return self._grower.responses.stop_reason

    @property
    def actions(self) -> SlotActions:
        """The slots, what can be done to them by hand, and what became of their seeds."""
        return self._grower.actions

    def loss(self, closure: Closure) -> Tensor:
        """The loss of a batch, for the loop's backward pass: `growth.loss(lambda net: criterion(net(x), y))`.

        The closure may be called again, with the bare model, for each seed that incubates: let it run `net` and nothing
        else that has a memory. Of micro-batches it holds the divisor, too.

        Raises:
            InputError: at the first call: the model's forward does not pass a slot, or the closure gives no scalar.
        """
        if not self._begun:
            learn_shapes(self._grower.host, closure, self._grower.slots.values())
            self._begun = True
            self._grower.start(closure)
        self._grower.actions.closure = closure
        return self._grower.loss(closure)

    def skip(self) -> None:
        """Leave out the batches since the optimizer's last step, as a loop does whose loss or gradients are not finite.

        Seeds forget them, too, and no rule judges them by these. Of several ranks, on each.
        """
        self._grower.trainer.skip()

    def epoch(
        self,
        validate: Callable[[nn.Module], float | Tensor] | None = None,
        *,
        train_loss: float | Tensor | None = None,
    ) -> EpochCompleted:
        """End an epoch: judge, act, decide; returns what is said of it. Waits for the device.

        Args:
            validate: gives the model's accuracy in percent; called again without each seed that the model sees, to know
                what it gives. Without it, that stays 0, and seeds become fossils by their gradient flow alone.
            train_loss: of the epoch, if it is to be said.

        Raises:
            InputError: no loss was asked for before.
        """
        if not self._begun:
            raise InputError("growth.epoch() before the first growth.loss(…): nothing was trained that it could end")

        def evaluate() -> Evaluation:
            return Evaluation(accuracy=_number(validate(self._grower.host)) if validate is not None else None)

        said = self._grower.close_epoch(evaluate, train_loss=_number(train_loss))
        self._refuse_others({0})
        return said

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how growth goes on, at the end of an epoch: plain data and tensors, fossils included.

        The model's and its optimizer's own states know nothing of it, nor of fossils in modules that `slots` names.
        """
        return self._grower.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where that state was taken, in a model as it was before anything grew; before the first loss.

        Load the model's own state after it: where the model has `SeedSlot`s of its own, fossils are parts of it.

        Raises:
            InputError: a loss was asked for already, or the state is of other slots.
            BlueprintError: a seed's blueprint is not known here.
        """
        if self._begun:
            raise InputError("growth.load_state_dict() after the first growth.loss(…): load before anything is trained")
        here, there = set(self._grower.slots), set(state["actions"]["slots"])
        if here != there:
            raise InputError(f"the state is of other slots: {sorted(there)} there, {sorted(here)} here")
        numbers_before = self._keeping.env.next_sequence
        self._grower.load_state_dict(state)
        self._keeping.env.next_sequence = numbers_before  # what is said from now on goes into a journal of its own

    def export(self) -> nn.Module:
        """A copy of the model with its fossils and without Sapflow; living seeds stay behind."""
        return export(self._grower.host, self._placed)

    def close(self) -> None:
        """Say that it is over: what has grown stays, and is trained and measured no more. Again: nothing.

        Slots whose seeds the model does not see leave its modules.
        """
        self._end(None)

    def _close_at_exit(self) -> None:
        """The program ends, perhaps by an error that nobody caught; in a console, that was an earlier line's."""
        self._end(None if hasattr(sys, "ps1") else getattr(sys, "last_value", None))

    def _end(self, error: BaseException | None) -> None:
        """Say how it ended: complete, failed, or, where the program was stopped, nothing: it was cut off."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._close_at_exit)
        if error is None:
            self._keeping.env.emit(EnvCompleted(epoch=self._grower.epoch))
        elif isinstance(error, Exception):
            said = f"{type(error).__name__}: {error}"
            self._keeping.env.emit(EnvFailed(epoch=self._grower.epoch + 1, error=said))
        self._refuse_others(())
        if error is None:
            self._keeping.run.emit(RunCompleted(completed_envs=1))
        self._grower.monitor.close()
        for of_host in self._placed.values():
            if not of_host.slot.host_sees:
                of_host.remove()
        if self._notifier is not None:
            self._notifier.close(NOTIFYING_SECONDS)  # before the journal, which is told what came of it
        self._keeping.close()

    def _refuse_others(self, living: Collection[int]) -> None:
        if self._inbox is not None:
            self._inbox.refuse_others(self._grower.epoch, living, self._keeping.run, {0: self._keeping.env})

    def __enter__(self) -> "Growth":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)


def _number(told: float | Tensor | None) -> float | None:
    """As events and states can hold it: loops tell tensors, too."""
    return None if told is None else float(told)
