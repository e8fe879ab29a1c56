"""One env: a host that trains epoch by epoch while seeds grow in its slots, and says what it sees."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sapflow.control.actions import SlotActions
from sapflow.control.controller import Controller
from sapflow.control.evaluation import Evaluation
from sapflow.control.functions import Function
from sapflow.control.grower import Grower
from sapflow.control.responses import Notifying
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.blending import Schedule
from sapflow.growth.host import slots_of
from sapflow.growth.randomness import RandomState, stream_seed
from sapflow.growth.seed_trainer import SeedTraining
from sapflow.growth.shadow import Closure
from sapflow.growth.slot import SeedSlot
from sapflow.health.policy import Policy
from sapflow.health.rules import DEFAULT_RULES, Rule
from sapflow.telemetry.events import EnvCompleted
from sapflow.telemetry.inbox import Inbox
from sapflow.telemetry.stream import EventStream
from sapflow.training.tasks.task import Task

GRADIENT_CLIP = 1.0
CALIBRATION_SAMPLES = 64
VALIDATION_BATCH = 500  # samples; all at once they would take gigabytes of activations


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
        rules: raise alerts and ask for actions.
        decide_every: steps from one decision to the next within an epoch, if there are rules for passes; by default as
            suits them.
        functions: that rules may call, by name.
        notifier: tells people, where rules ask for it.
        inbox: where people ask by hand.
    """

    def __init__(
        self,
        task: Task,
        plan: EnvPlan,
        controller: Controller,
        stream: EventStream,
        policy: Policy | None = None,
        rules: Iterable[Rule] = DEFAULT_RULES,
        decide_every: int | None = None,
        functions: Mapping[str, Function] | None = None,
        notifier: Notifying | None = None,
        inbox: Inbox | None = None,
    ) -> None:
        self.plan = plan
        self.stream = stream
        self.accuracy = 0.0
        self._task = task
        self._data = task.load()
        name = f"{plan.rng_seed}/env {plan.env_id}"
        self._random = RandomState.seeded(stream_seed(name, "host"))
        self._shuffle = torch.Generator().manual_seed(stream_seed(name, "shuffle"))
        with self._own_random_stream():
            self.host = task.make_host()
        self._parameters = list(self.host.parameters())
        self._optimizer = task.make_optimizer(self._parameters, task.learning_rate)
        self._learning_rate = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, plan.epochs)
        full, rest = divmod(len(self._data.train_labels), task.batch_size)
        self._steps = full + (rest > 1)  # from a last batch of one sample BatchNorm cannot learn
        self.grower = Grower(
            self.host,
            self.host,
            slots_of(self.host),
            controller,
            stream,
            random_name=name,
            how=SeedTraining(
                blending_steps=plan.blending_epochs * self._steps,
                blending=plan.blending,
                clip=GRADIENT_CLIP,
            ),
            policy=policy,
            rules=rules,
            decide_every=decide_every,
            functions=functions,
            notifier=notifier,
            inbox=inbox,
            epochs=plan.epochs,
        )

    @property
    def epoch(self) -> int:
        """Epochs that are complete."""
        return self.grower.epoch

    @property
    def stopped(self) -> bool:
        """A rule or a person has ended it, after the last epoch that it completed."""
        return bool(self.grower.responses.stop_reason)

    @property
    def slots(self) -> dict[str, SeedSlot]:
        """The host's, by slot_id."""
        return dict(self.grower.slots)

    @property
    def actions(self) -> SlotActions:
        """What can be done to the slots, and what became of their seeds."""
        return self.grower.actions

    @property
    def monitor(self) -> GradientMonitor:
        """Measures the seeds."""
        return self.grower.monitor

    def start(self) -> None:
        """Say that the env begins, and let the controller plant what is due before the first epoch."""
        self.grower.start(self._sample_closure())

    def run_epoch(self) -> None:
        """Train one epoch, measure, say so, and act."""
        with self._own_random_stream():
            train_loss = self._train()
        self._learning_rate.step()
        said = self.grower.close_epoch(self._validate, train_loss=train_loss)
        assert said.accuracy is not None
        self.accuracy = said.accuracy
        if self.stopped:
            self.complete()

    def complete(self) -> None:
        """Say that the env is at its end."""
        self.stream.emit(EnvCompleted(epoch=self.epoch, accuracy=self.accuracy))

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the env goes on, at the end of an epoch: plain data and tensors."""
        return {
            "accuracy": self.accuracy,
            "host": self.host.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "learning_rate": self._learning_rate.state_dict(),
            "random": [self._random.cpu, *self._random.cuda],
            "shuffle": self._shuffle.get_state(),
            "growth": self.grower.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, to the bit, where that state was taken; instead of `start`.

        Raises:
            BlueprintError: a seed's blueprint is not known here.
        """
        self.accuracy = state["accuracy"]
        self.grower.load_state_dict(state["growth"])  # with the fossils, which are parts of the host
        self.host.load_state_dict(state["host"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._learning_rate.load_state_dict(state["learning_rate"])
        cpu, *cuda = state["random"]
        self._random = RandomState(cpu, tuple(cuda))
        self._shuffle.set_state(state["shuffle"])
        self.grower.actions.closure = self._sample_closure()

    def _sample_closure(self) -> Closure:
        sample = slice(CALIBRATION_SAMPLES)
        return self._closure(self._data.train_inputs[sample], self._data.train_labels[sample])

    @contextmanager
    def _own_random_stream(self) -> Iterator[None]:
        """Envs that train in turn in one process draw from streams of their own."""
        with self._random.replayed():
            yield
            self._random = RandomState.capture()

    def _train(self) -> float:
        self.host.train()
        order = torch.randperm(len(self._data.train_labels), generator=self._shuffle)
        batches = order.split(self._task.batch_size)[: self._steps]
        total = torch.zeros(())
        for batch in batches:
            total += self._train_step(self._data.train_inputs[batch], self._data.train_labels[batch])
        return float(total / len(batches))

    def _train_step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of the host and of every seed; one pass of the monitor."""
        self._optimizer.zero_grad()
        loss = self.grower.loss(self._closure(inputs, labels))
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, GRADIENT_CLIP)
        self._optimizer.step()
        self.monitor.step()
        return loss.detach()

    def _validate(self) -> Evaluation:
        """On the validation split."""
        self.host.eval()
        data, accuracy, loss = self._data, 0.0, 0.0
        splits = (data.validation_inputs.split(VALIDATION_BATCH), data.validation_labels.split(VALIDATION_BATCH))
        for inputs, labels in zip(*splits, strict=True):
            with torch.no_grad():
                logits = self.host(inputs)
            accuracy += len(labels) * self._task.accuracy(logits, labels)
            loss += len(labels) * float(self._task.loss(logits, labels))
        samples = len(data.validation_labels)
        return Evaluation(accuracy=accuracy / samples, loss=loss / samples)

    def _closure(self, inputs: Tensor, labels: Tensor) -> Closure:
        return lambda host: self._task.loss(host(inputs), labels)
