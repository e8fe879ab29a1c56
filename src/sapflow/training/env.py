"""One env: a host that trains epoch by epoch while seeds grow in its slots, and says what it sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sapflow.control.actions import SlotActions
from sapflow.control.controller import Controller, EpochOutcome
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.gradients.sampling import Sampler
from sapflow.growth.blending import Schedule, blend_weight
from sapflow.growth.host import slots_of
from sapflow.growth.randomness import RandomState, stream_seed
from sapflow.growth.shadow import shadow_backward
from sapflow.growth.slot import SeedSlot
from sapflow.health.policy import Policy
from sapflow.health.rules import RuleBook
from sapflow.telemetry.events import (
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvStarted,
    EpochCompleted,
)
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import SeedStage
from sapflow.training.tasks.task import Task

SEED_LEARNING_RATE = 1e-3
GRADIENT_CLIP = 1.0
CALIBRATION_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class EnvPlan:
    """What one env is to do; together with the task it determines the env's telemetry but for its times."""

    env_id: int
    epochs: int
    rng_seed: int
    blending_epochs: int
    blending: Schedule = "sigmoid"


class Env:
    """A host in training. Everything random comes from streams that only `rng_seed` and `env_id` determine.

    Args:
        task: the data and the host.
        plan: what to do.
        controller: decides on the seeds at epoch ends.
        stream: of this env's events.
        policy: judges the seeds; the record's band by default.
    """

    def __init__(
        self, task: Task, plan: EnvPlan, controller: Controller, stream: EventStream, policy: Policy | None = None
    ) -> None:
        self.plan = plan
        self.controller = controller
        self.stream = stream
        self.epoch = 0
        self.accuracy = 0.0
        self._batch_size = task.batch_size
        self._data = task.load()
        name = f"{plan.rng_seed}/env {plan.env_id}"
        self._random = RandomState.seeded(stream_seed(name, "host"))
        self._shuffle = torch.Generator().manual_seed(stream_seed(name, "shuffle"))
        with self._own_random_stream():
            self.host = task.make_host()
        self.slots = slots_of(self.host)
        self._parameters = list(self.host.parameters())
        self._optimizer = torch.optim.SGD(self._parameters, lr=task.learning_rate, momentum=0.9)
        self._learning_rate = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, plan.epochs)
        self.monitor = GradientMonitor(policy=policy)
        self.rules = RuleBook()
        self.actions = SlotActions(
            self.host,
            self.slots,
            self.monitor,
            self.rules,
            stream,
            sample=self._data.train_inputs[:CALIBRATION_SAMPLES],
            loss_of_sample=lambda output: F.cross_entropy(output, self._data.train_labels[:CALIBRATION_SAMPLES]),
            make_optimizer=lambda seed: torch.optim.Adam(seed.parameters(), lr=SEED_LEARNING_RATE),
            random_name=name,
        )
        self._total_passes = 0
        self._total_alerts = 0
        self._sampler = Sampler(self.monitor, stream, self._seed_in)

    def start(self) -> None:
        """Say that the env begins, and let the controller plant what is due before the first epoch."""
        self.stream.emit(
            EnvStarted(
                host=type(self.host).__name__,
                host_params=sum(parameter.numel() for parameter in self._parameters),
                slot_ids=tuple(self.slots),
                epochs=self.plan.epochs,
            )
        )
        self.controller.decide(EpochOutcome(epoch=0, epochs=self.plan.epochs), self.actions)

    def run_epoch(self) -> None:
        """Train one epoch, measure, say so, and act."""
        self.epoch += 1
        with self._own_random_stream():
            train_loss = self._train()
        self._learning_rate.step()
        self._observe()
        self.accuracy, validation_loss = self._validate()
        self._weigh_seeds()
        self._apply_rules()
        self.stream.emit(
            EpochCompleted(
                epoch=self.epoch,
                epochs=self.plan.epochs,
                accuracy=self.accuracy,
                train_loss=train_loss,
                validation_loss=validation_loss,
                seeds=tuple(slot.state.telemetry() for slot in self.slots.values()),
                open_alerts=tuple(self.rules.open_alerts),
                total_passes=self._total_passes,
                total_germinated=len(self.actions.lives),
                total_pruned=sum(life.pruned_epoch is not None for life in self.actions.lives),
                total_fossilized=sum(life.stage is SeedStage.FOSSILIZED for life in self.actions.lives),
                total_alerts=self._total_alerts,
            )
        )
        outcome = EpochOutcome(
            epoch=self.epoch,
            epochs=self.plan.epochs,
            accuracy=self.accuracy,
            train_loss=train_loss,
            validation_loss=validation_loss,
        )
        self.controller.decide(outcome, self.actions)

    def complete(self) -> None:
        """Say that the env is at its end."""
        self.stream.emit(EnvCompleted(epoch=self.epoch, accuracy=self.accuracy))

    @contextmanager
    def _own_random_stream(self) -> Iterator[None]:
        """Envs that train in turn in one process draw from streams of their own."""
        with self._random.replayed():
            yield
            self._random = RandomState.capture()

    def _train(self) -> float:
        self.host.train()
        order = torch.randperm(len(self._data.train_labels), generator=self._shuffle)
        batches = order.split(self._batch_size)
        total = torch.zeros(())
        for step, batch in enumerate(batches):
            self._blend(step, len(batches))
            total += self._train_step(self._data.train_inputs[batch], self._data.train_labels[batch])
            self._sampler.poll(self.epoch)
        return float(total / len(batches))

    def _train_step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of the host and of every seed; one pass of the monitor."""
        before_forward = RandomState.capture()
        self._optimizer.zero_grad()
        for slot in self._growing():
            assert slot.optimizer is not None
            slot.optimizer.zero_grad()
        loss = F.cross_entropy(self.host(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, GRADIENT_CLIP)
        for slot in self._growing(SeedStage.TRAINING):
            shadow_backward(
                self.host,
                slot,
                inputs,
                lambda output: F.cross_entropy(output, labels),
                random_state=before_forward,
                slots=self.slots.values(),
                monitor=self.monitor,
            )
        self._optimizer.step()
        for slot in self._growing():
            assert slot.seed is not None
            assert slot.optimizer is not None
            nn.utils.clip_grad_norm_(slot.seed.parameters(), GRADIENT_CLIP)
            slot.optimizer.step()
        self.monitor.step()
        return loss.detach()

    def _seed_in(self, slot_id: str) -> tuple[str, str]:
        state = self.slots[slot_id].state
        return state.seed_id, state.blueprint_id

    def _growing(self, stage: SeedStage | None = None) -> list[SeedSlot]:
        return [slot for slot in self.slots.values() if slot.alive and stage in (None, slot.state.stage)]

    def _blend(self, step: int, steps: int) -> None:
        for slot in self._growing(SeedStage.BLENDING):
            blended = slot.state.epochs_in_stage * steps + step
            slot.state.alpha = blend_weight(self.plan.blending, blended, self.plan.blending_epochs * steps)

    def _observe(self) -> None:
        """Close the monitor's epoch and bring what it saw into the slots' states."""
        self._sampler.finish(self.epoch)
        self._total_passes += self.monitor.passes
        for slot_id, health in self.monitor.close_epoch().items():
            self.actions.observe(slot_id, health)
        for slot in self.slots.values():
            slot.state.epochs_in_stage += 1
            slot.read_masked_values()

    def _validate(self) -> tuple[float, float]:
        """Accuracy in percent and mean loss on the validation split."""
        self.host.eval()
        with torch.no_grad():
            logits = self.host(self._data.validation_inputs)
        labels = self._data.validation_labels
        accuracy = 100 * float((logits.argmax(-1) == labels).double().mean())
        return accuracy, float(F.cross_entropy(logits, labels))

    def _weigh_seeds(self) -> None:
        """accuracy_delta: what the host's accuracy loses when a slot is bypassed."""
        for slot in self.slots.values():
            if slot.host_sees:
                slot.bypassed = True
                self.actions.weigh(slot.state.slot_id, self.accuracy - self._validate()[0])
                slot.bypassed = False

    def _apply_rules(self) -> None:
        growing = [slot.state.telemetry() for slot in self._growing()]
        outcome = self.rules.evaluate(self.epoch, growing)
        self._total_alerts += len(outcome.raised)
        for alert in outcome.raised:
            self.stream.emit(AlertRaised(epoch=self.epoch, alert=alert))
        for alert in outcome.cleared:
            self.stream.emit(AlertCleared(epoch=self.epoch, alert=alert, reason="back to normal"))
