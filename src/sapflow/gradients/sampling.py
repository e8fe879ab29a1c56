"""Samples: every pass of every measured module, said a few times a second, without waiting for the device."""

import time
from collections.abc import Callable

from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.telemetry.events import GradientSampled
from sapflow.telemetry.stream import EventStream

SAMPLE_SECONDS = 0.4  # a sample takes a millisecond or two, which training should not see
SAMPLE_SHARE = 0.01  # of the time, at most: very many modules are sampled less often


class Sampler:
    """Hands what the monitor has seen since the last time to a stream.

    `poll` it after every pass, and `finish` it before the epoch is closed, or a module detached: then no pass is
    missing.

    Args:
        monitor: is asked for the passes that have reached the host.
        stream: where they are said.
        identify: gives seed_id and blueprint_id of a measured name.
        seconds: the least time between two samples; more where they take long (SAMPLE_SHARE).
    """

    def __init__(
        self,
        monitor: GradientMonitor,
        stream: EventStream,
        identify: Callable[[str], tuple[str, str]],
        seconds: float = SAMPLE_SECONDS,
    ) -> None:
        self.monitor = monitor
        self.stream = stream
        self.identify = identify
        self.seconds = seconds
        self._last = time.monotonic()
        self._took = 0.0  # the last sample, of the processor's time

    def poll(self, epoch: int) -> None:
        """Say a sample of each module, if it is time for one."""
        now, before = time.monotonic(), time.thread_time()
        if now - self._last < max(self.seconds, self._took / SAMPLE_SHARE):
            return
        self._last = now
        self._say(epoch, wait=False)
        self._took = time.thread_time() - before

    def finish(self, epoch: int) -> None:
        """Say the passes that are left; waits for the device."""
        self._say(epoch, wait=True)

    def _say(self, epoch: int, *, wait: bool) -> None:
        samples = self.monitor.samples(wait=wait)
        health = self.monitor.latest_health()
        for name, sample in samples.items():
            seed_id, blueprint_id = self.identify(name)
            self.stream.emit(
                GradientSampled(
                    epoch=epoch,
                    slot_id=name,
                    seed_id=seed_id,
                    blueprint_id=blueprint_id,
                    pass_index=sample.pass_index,
                    entering=sample.entering,
                    leaving=sample.leaving,
                    health=health[name],
                )
            )
