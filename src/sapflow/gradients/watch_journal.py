"""What a watcher says, as the events of a run of one env: to a journal in a run directory, or to nobody."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import sapflow
from sapflow.gradients.origin import Origin
from sapflow.gradients.selection import kind_of, size_of
from sapflow.health.rules import RuleBook
from sapflow.telemetry.events import (
    AlertCleared,
    AlertRaised,
    EnvCompleted,
    EnvStarted,
    EpochCompleted,
    NonFiniteOrigin,
    RunCompleted,
    RunStarted,
    SeedStageChanged,
    SeedTelemetry,
)
from sapflow.telemetry.keeping import Keeping
from sapflow.telemetry.vocabulary import Measurement, SeedStage

log = logging.getLogger("sapflow.watch")


class WatchJournal:
    """Says that a model is watched, what was seen of it in each epoch, and that it is over.

    Args:
        run_dir: where to keep it, or beside it if it exists; None keeps nothing.
        model: what is watched.

    Raises:
        InputError: the directory cannot be made.
    """

    def __init__(self, run_dir: Path | None, model: nn.Module) -> None:
        self._model = model
        self._begun = False
        self._total_alerts = 0
        self._warned: set[tuple[str, Measurement]] = set()
        self._keeping = Keeping(run_dir, "watch")
        self.run_dir = self._keeping.run_dir
        self._run, self.stream = self._keeping.run, self._keeping.env
        versions = {"sapflow": sapflow.__version__, "torch": str(torch.__version__)}
        self._run.emit(RunStarted(task=kind_of(model), envs=1, epochs=0, versions=versions, token=self._keeping.token))

    def watched(self, modules: Mapping[str, nn.Module], epoch: int) -> None:
        """These modules are watched from now on, `epoch` epochs after the beginning."""
        if not self._begun:
            self._begun = True
            self.stream.emit(
                EnvStarted(
                    host=kind_of(self._model),
                    host_params=size_of(self._model),
                    slot_ids=tuple(modules),
                    epochs=0,
                )
            )
        for name, module in modules.items():
            self.stream.emit(
                SeedStageChanged(
                    epoch=epoch,
                    slot_id=name,
                    seed_id=name,
                    blueprint_id=kind_of(module),
                    from_stage=SeedStage.DORMANT,
                    to_stage=SeedStage.WATCHED,
                    reason="watched from now on",
                )
            )

    def epoch(self, epoch: int, seeds: tuple[SeedTelemetry, ...], rules: RuleBook, total_passes: int) -> None:
        """An epoch is over: apply the rules, say what they say, and how every module stands."""
        self._warn_once(seeds)
        outcome = rules.evaluate(epoch, seeds)
        self._total_alerts += len(outcome.raised)
        for alert in outcome.raised:
            self.stream.emit(AlertRaised(epoch=epoch, alert=alert))
        for alert in outcome.cleared:
            self.stream.emit(AlertCleared(epoch=epoch, alert=alert, reason="back to normal"))
        self.stream.emit(
            EpochCompleted(
                epoch=epoch,
                epochs=0,
                seeds=seeds,
                open_alerts=tuple(rules.open_alerts),
                total_passes=total_passes,
                total_alerts=self._total_alerts,
            )
        )

    def origin(self, epoch: int, origin: Origin, blueprint_id: str) -> NonFiniteOrigin:
        """NaN or infinity was born; gives what was said of it."""
        said = NonFiniteOrigin(
            epoch=epoch,
            slot_id=origin.module,
            seed_id=origin.module,
            blueprint_id=blueprint_id,
            pass_index=origin.pass_index,
            passes=origin.passes,
            parameter=origin.parameter,
            in_forward=origin.in_forward,
            text=origin.text,
        )
        self.stream.emit(said)
        return said

    def close(self, epoch: int) -> None:
        """The run is complete after so many epochs."""
        self.stream.emit(EnvCompleted(epoch=epoch))
        self._run.emit(RunCompleted(completed_envs=1))
        self._keeping.close()

    def _warn_once(self, seeds: tuple[SeedTelemetry, ...]) -> None:
        """Log which modules are not measured, and why: a line for all that share a reason, and none a second time."""
        fresh: dict[tuple[Measurement, str], list[str]] = {}
        for seed in seeds:
            name = seed.slot_id
            if seed.measurement is not Measurement.MEASURED and (name, seed.measurement) not in self._warned:
                self._warned.add((name, seed.measurement))
                fresh.setdefault((seed.measurement, seed.measurement_reason), []).append(name or "the model")
        for (measurement, reason), names in fresh.items():
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            log.warning("not measured: %s (%s): %s", shown, measurement, reason)
