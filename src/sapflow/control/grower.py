"""The growth of one host: its seeds step by step, and epoch by epoch what is judged, decided, done and said."""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from msgspec.structs import asdict, replace
from torch import Tensor, nn

from sapflow.control.actions import SlotActions
from sapflow.control.controller import Controller, EpochOutcome
from sapflow.control.evaluation import Evaluation, worth_of_seeds
from sapflow.control.functions import check_functions
from sapflow.control.requests import Requests
from sapflow.control.responses import Notifying, Responses
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.sampling import Sampler
from sapflow.growth.guard import device_of
from sapflow.growth.ranks import mean_over_ranks, summed_over_ranks
from sapflow.growth.seed_trainer import SeedTrainer, SeedTraining
from sapflow.growth.shadow import Closure
from sapflow.growth.slot import SeedSlot
from sapflow.health.policy import Policy
from sapflow.health.rules import DEFAULT_RULES, Rule, RuleBook, decision_pace
from sapflow.telemetry.events import Alert, EnvStarted, EpochCompleted
from sapflow.telemetry.inbox import Inbox
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Grower:
    """Everything that a training loop owes to the seeds of its host.

    A step is: `loss` of a closure (or several, of micro-batches), the loop's own backward and optimizer step, and the
    closing of the monitor's pass, with which the seeds take their step. `close_epoch` judges, acts and says.

    Args:
        model: what the loop calls: the host, or a wrapper around it (DDP, torch.compile).
        host: the network that holds the slots.
        slots: of the host, by slot_id.
        controller: decides on the seeds at epoch ends.
        stream: of the env's events.
        random_name: determines what seeds are born with.
        how: the training of seeds.
        rules: raise alerts and ask for actions.
        decide_every: steps from one decision to the next within an epoch, if there are rules for passes; by default as
            suits them.
        functions: that rules may call, by name.
        notifier: tells people, where rules ask for it.
        inbox: where people ask by hand; None where they cannot, and on ranks that do not lead.
        policy: judges the gradient flow of seeds; the record's band by default.
        epochs: that there will be, 0 where nobody knows.
        optimizer: of the host: its step closes a pass; without one, `monitor.step()` does.
        grad_scaler: of the host's loss: its update closes a pass.
        process_group: the ranks that train the host together.

    Raises:
        InputError: a rule calls a function that is not there, or two rules have one name.
    """

    def __init__(
        self,
        model: nn.Module,
        host: nn.Module,
        slots: Mapping[str, SeedSlot],
        controller: Controller,
        stream: EventStream,
        *,
        random_name: str,
        how: SeedTraining,
        rules: Iterable[Rule] = DEFAULT_RULES,
        decide_every: int | None = None,
        functions: Mapping[str, Callable[[Alert], object]] | None = None,
        notifier: Notifying | None = None,
        inbox: Inbox | None = None,
        policy: Policy | None = None,
        epochs: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        process_group: "ProcessGroup | None" = None,
    ) -> None:
        self.host = host
        self.slots = slots
        self.controller = controller
        self.stream = stream
        self.epochs = epochs
        self.epoch = 0
        self.rules = RuleBook(rules)
        check_functions(self.rules.rules, functions or {})
        self._decide_every = decision_pace(self.rules.rules, decide_every)
        self.monitor = GradientMonitor(
            policy=policy,
            optimizer=optimizer,
            grad_scaler=grad_scaler,
            on_closing=self._after_pass,
            process_group=process_group,
            windows=self._decide_every > 0,
        )
        self.trainer = SeedTrainer(
            model, host, slots, self.monitor, how, grad_scaler=grad_scaler, process_group=process_group
        )
        self.actions = SlotActions(
            host,
            slots,
            self.monitor,
            self.rules,
            stream,
            make_optimizer=how.optimizer_of,
            random_name=random_name,
            process_group=process_group,
        )
        self.responses = Responses(self.actions, stream, functions, notifier)
        self.requests = Requests(inbox, self.actions, self.responses, stream, process_group)
        self._process_group = process_group
        self._sampler = Sampler(self.monitor, stream, self._seed_in)
        self._graphs_before = compiled_graphs()
        self._epoch_steps = 0
        self._total_passes = 0

    def start(self, closure: Closure) -> None:
        """Say that the env begins, and let the controller plant what is due before the first epoch, if that is next."""
        self.stream.emit(
            EnvStarted(
                host=type(self.host).__name__,
                host_params=sum(parameter.numel() for parameter in self.host.parameters()),
                slot_ids=tuple(self.slots),
                epochs=self.epochs,
            )
        )
        self.actions.closure = closure
        if not self.epoch:
            self.controller.decide(EpochOutcome(epoch=0, epochs=self.epochs), self.actions)

    def loss(self, closure: Closure) -> Tensor:
        """The host's loss of a (micro-)batch, for the loop's backward pass."""
        return self.trainer.loss(closure)

    def close_epoch(
        self, evaluate: Callable[[], Evaluation] = Evaluation, *, train_loss: float | None = None
    ) -> EpochCompleted:
        """Judge the epoch, apply the rules, say what came of it, and let the controller decide; waits for the device.

        Args:
            evaluate: how the host does now; called again for each slot whose seed the host sees, without it.
            train_loss: of the epoch; of several ranks, the mean is said and decided by.
        """
        self.monitor.end_open_pass()
        if self._decide_every and (rest := self._epoch_steps % self._decide_every):
            self._decide_within_epoch(rest)
        self._epoch_steps = 0
        self.epoch += 1
        self._observe()
        (train_loss,) = self._mean(train_loss)
        evaluation = self._evaluate(evaluate)
        growing = [slot.state.telemetry() for slot in self.slots.values() if slot.alive]
        validated = evaluation.accuracy is not None
        raised = self.responses.say(self.epoch, self.rules.evaluate(self.epoch, growing, validated=validated))
        said = EpochCompleted(
            epoch=self.epoch,
            epochs=self.epochs,
            accuracy=evaluation.accuracy,
            train_loss=train_loss,
            validation_loss=evaluation.loss,
            seeds=tuple(slot.state.telemetry() for slot in self.slots.values()),
            open_alerts=tuple(self.rules.open_alerts),
            total_passes=self._total_passes,
            total_germinated=len(self.actions.lives),
            total_pruned=sum(life.pruned_epoch is not None for life in self.actions.lives),
            total_fossilized=sum(life.stage is SeedStage.FOSSILIZED for life in self.actions.lives),
            total_alerts=self.responses.total_alerts,
            total_shadows=self.trainer.shadows,
            total_recompiles=compiled_graphs() - self._graphs_before,
        )
        self.stream.emit(said)
        self.responses.carry_out(self.epoch, raised)
        self.requests.carry_out(self.epoch)
        outcome = EpochOutcome(
            epoch=self.epoch,
            epochs=self.epochs,
            accuracy=evaluation.accuracy,
            train_loss=train_loss,
            validation_loss=evaluation.loss,
            stopping=bool(self.responses.stop_reason),
        )
        self.controller.decide(outcome, self.actions)
        return said

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how growth goes on, at the end of an epoch: plain data and tensors."""
        return {
            "epoch": self.epoch,
            "passes": self._total_passes,
            "alerts": self.responses.total_alerts,
            "steps": self.trainer.steps,
            "shadows": self.trainer.shadows,
            "stop_reason": self.responses.stop_reason,
            "sequence": self.stream.next_sequence,
            "actions": self.actions.state_dict(),
            "rules": self.rules.state_dict(),
            "controller": self.controller.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where that state was taken; the policy's memory of the seeds begins anew.

        Raises:
            BlueprintError: a seed's blueprint is not known here.
        """
        self.epoch = state["epoch"]
        self._total_passes = self.monitor.passes_before_epoch = state["passes"]
        self.responses.total_alerts = state["alerts"]
        self.trainer.steps, self.trainer.shadows = state["steps"], state["shadows"]
        self.responses.stop_reason = state["stop_reason"]
        self.stream.next_sequence = state["sequence"]
        self.actions.load_state_dict(state["actions"])
        self.rules.load_state_dict(state["rules"])
        self.controller.load_state_dict(state["controller"])

    def _after_pass(self) -> None:
        if broken := self.trainer.step():
            self._sampler.finish(self.epoch + 1)  # of a seed that is pruned nothing could be said any more
        for slot_id, how in broken.items():
            self.actions.prune(self.epoch + 1, self.slots[slot_id], rule="broken", evidence=how)
        self._sampler.poll(self.epoch + 1)
        self._epoch_steps += 1
        if self._decide_every and self._epoch_steps % self._decide_every == 0:
            self._decide_within_epoch(self._decide_every)

    def _decide_within_epoch(self, passes: int) -> None:
        """Judge the passes since the last decision, and act; waits for the device, and ranks meet."""
        epoch, states = self.epoch + 1, {slot_id: slot.state for slot_id, slot in self.slots.items()}
        window = [
            replace(states[slot_id].telemetry(), masked_values=0, **asdict(health))
            for slot_id, health in self.monitor.close_window().items()
        ]
        raised = self.responses.say(epoch, self.rules.evaluate_window(epoch, passes, window))
        if raised:
            self._sampler.finish(epoch)  # of a seed that is pruned nothing could be said any more
        self.responses.carry_out(epoch, raised)

    def _seed_in(self, slot_id: str) -> tuple[str, str]:
        state = self.slots[slot_id].state
        return state.seed_id, state.blueprint_id

    def _observe(self) -> None:
        """Close the monitor's epoch and bring what it saw into the slots' states."""
        self._sampler.finish(self.epoch)
        self._total_passes += self.monitor.passes
        for slot_id, health in self.monitor.close_epoch().items():
            self.actions.observe(slot_id, health)
        for slot in self.slots.values():
            slot.close_epoch()
        masked = self._summed([slot.state.masked_values for slot in self.slots.values()])
        for slot, count in zip(self.slots.values(), masked, strict=True):
            slot.state.masked_values = int(count)

    def _summed(self, values: list[float]) -> list[float]:
        """Over all ranks that train together: what is decided by must be the same on each."""
        return summed_over_ranks(values, self._process_group, device_of(self.host))

    def _mean(self, *values: float | None) -> list[float | None]:
        return mean_over_ranks(values, self._process_group, device_of(self.host))

    def _evaluate(self, evaluate: Callable[[], Evaluation]) -> Evaluation:
        """How the host does over all ranks, each of which may validate on its own share; seeds are weighed, too."""

        def of_all_ranks() -> Evaluation:
            own = evaluate()
            accuracy, loss = self._mean(own.accuracy, own.loss)
            return Evaluation(accuracy=accuracy, loss=loss)

        evaluation = of_all_ranks()
        for slot_id, worth in worth_of_seeds(of_all_ranks, evaluation.accuracy, self.slots.values()).items():
            self.actions.weigh(slot_id, worth)
        return evaluation


def compiled_graphs() -> int:
    """Graphs that TorchDynamo has compiled in this process; 0 where nobody has imported it."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
