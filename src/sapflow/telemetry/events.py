"""What is said: the typed payload of every event, and the envelope around it.

Constructors do not validate (msgspec); what comes from outside is validated where it is decoded (`codec.py`).
Fields are only ever added, with a default; anything else is a new `SCHEMA_VERSION`.

What they hold is plain data, which cannot refer back: with gc=False the garbage collector passes over the many that a
reader may hold, and reading takes half the time.
"""

from typing import ClassVar

from msgspec import Struct

from sapflow.telemetry.vocabulary import EventType, Fault, Measurement, SeedStage, Severity

SCHEMA_VERSION = 1

# The histogram of per-pass ratios has a bin an octave, [2**k, 2**(k+1)) for k from LOWEST to HIGHEST, with one bin
# for everything below before them and one for everything above behind them.
HISTOGRAM_LOWEST_OCTAVE = -16
HISTOGRAM_HIGHEST_OCTAVE = 15
HISTOGRAM_BINS = HISTOGRAM_HIGHEST_OCTAVE - HISTOGRAM_LOWEST_OCTAVE + 3


class GradientHealth(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The gradient flow of one module over one epoch (or the epoch so far), and the verdict on it.

    entering = ‖∂L/∂y‖₂ at the module's output, leaving = ‖∂L/∂x‖₂ at its input; both norms are the square roots of the
    squares summed over the finite passes. `grad_ratio` = leaving / entering (TELE-557). Ratios of single passes are
    `min_ratio`, `max_ratio`, `last_ratio` and `ratio_histogram` (HISTOGRAM_BINS counts, empty without a pass). `fault`
    says what is wrong where a flag is set, `evidence` what the verdict rests on.
    """

    grad_ratio: float = 0.0
    has_vanishing: bool = False
    has_exploding: bool = False
    measurement: Measurement = Measurement.UNMEASURED
    measurement_reason: str = ""
    passes: int = 0
    non_finite_passes: int = 0
    entering_norm: float = 0.0
    leaving_norm: float = 0.0
    min_ratio: float = 0.0
    max_ratio: float = 0.0
    last_ratio: float = 0.0
    ratio_histogram: tuple[int, ...] = ()
    evidence: str = ""
    output_input_rms: float | None = None
    parameter_liveness: float | None = None
    fault: Fault | None = None


class SeedTelemetry(GradientHealth, frozen=True, kw_only=True, omit_defaults=True):
    """One slot at the end of an epoch: who grows there, how far it is, and how its gradient flows.

    `alpha` is the blend weight in [0, 1], `seed_params` a count of parameters, `accuracy_delta` the validation accuracy
    with the seed minus that with its slot bypassed, in percentage points (0.0 while the host does not see the seed),
    `masked_values` the non-finite values of the seed's output and leaving gradient that were kept from the host in this
    epoch, `paused` whether the seed is held where it is: α stands, and no gate opens but that to PRUNED.
    """

    slot_id: str
    seed_id: str = ""
    blueprint_id: str = ""
    stage: SeedStage = SeedStage.DORMANT
    epochs_in_stage: int = 0
    alpha: float = 0.0
    seed_params: int = 0
    accuracy_delta: float = 0.0
    masked_values: int = 0
    paused: bool = False


class Payload(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The base of all payloads; `type` names it in the envelope."""

    type: ClassVar[EventType]


class EpochPayload(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """A payload that belongs to an epoch (counted from 1) of an env."""

    epoch: int


class SeedPayload(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A payload about one seed in one slot."""

    slot_id: str
    seed_id: str = ""
    blueprint_id: str = ""


class RunStarted(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """A run begins: what was asked for (0 epochs where nobody knows how many), and with which versions.

    `token` is random and tells the run from all others, those of its name included; it is empty in older journals.
    """

    type = EventType.RUN_STARTED
    task: str
    envs: int
    epochs: int
    rng_seed: int | None = None
    versions: dict[str, str] = {}
    token: str = ""


class RunResumed(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """A run goes on after it had ended without completion."""

    type = EventType.RUN_RESUMED
    from_epoch: int


class EnvStarted(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """One host begins to train; the slots are in the order of the host's forward."""

    type = EventType.ENV_STARTED
    host: str
    host_params: int
    slot_ids: tuple[str, ...]
    epochs: int


class SeedGerminated(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A seed was born; `birth_gain` is the gain of its branch measured at germination."""

    type = EventType.SEED_GERMINATED
    seed_params: int
    birth_gain: float
    planted: bool = False


class SeedStageChanged(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A seed moved on (or was pruned), and why."""

    type = EventType.SEED_STAGE_CHANGED
    from_stage: SeedStage
    to_stage: SeedStage
    reason: str = ""


class SeedPruned(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A seed was cut out: by which rule, at which ratio, on which evidence."""

    type = EventType.SEED_PRUNED
    stage: SeedStage
    rule: str
    grad_ratio: float
    evidence: str = ""


class SeedFossilized(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A seed became a part of its host for good."""

    type = EventType.SEED_FOSSILIZED
    seed_params: int
    accuracy_delta: float


class GradientSampled(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """Every pass of one seed since the sample before, and its health over the epoch so far.

    `pass_index`, `entering` and `leaving` have one element a pass; norms may be NaN or infinite. Paced by the clock,
    so a sample has no sequence; its key is (env, slot, epoch, first pass).
    """

    type = EventType.GRADIENT_SAMPLED
    pass_index: tuple[int, ...]
    entering: tuple[float, ...]
    leaving: tuple[float, ...]
    health: GradientHealth


class NonFiniteOrigin(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """Where NaN or infinity was born: the module (`slot_id`, "" outside of all that are watched), the pass, the step.

    `pass_index` counts from 0 within the epoch, `passes` from 1 since watching began; `parameter` is the first of the
    module's that got a non-finite gradient, "" where none did or none could be told; `text` says all that in words.
    """

    type = EventType.NON_FINITE_FOUND
    pass_index: int
    passes: int
    parameter: str = ""
    in_forward: bool = False
    text: str = ""


class Alert(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A rule that holds for a seed: which, since when, at which value, on which evidence, and what it asks for."""

    rule: str
    severity: Severity
    slot_id: str
    seed_id: str
    blueprint_id: str
    since_epoch: int
    value: float
    evidence: str = ""
    actions: tuple[str, ...] = ()


class AlertRaised(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A rule began to hold."""

    type = EventType.ALERT_RAISED
    alert: Alert


class AlertCleared(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """A rule no longer holds, and why it was closed."""

    type = EventType.ALERT_CLEARED
    alert: Alert
    reason: str = ""


class ActionTaken(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """What an alert asked for, and what came of it: done or not, and in words why not, or how."""

    type = EventType.ACTION_TAKEN
    alert: Alert
    action: str
    done: bool
    outcome: str = ""


class RequestAnswered(SeedPayload, frozen=True, kw_only=True, omit_defaults=True):
    """What a person asked for (`mailbox.py`), and what came of it: done or refused, and in words how or why not.

    The slot and the seed are those that were asked about, both "" for a whole env; `by` says who asked, `asked_at` when
    (Unix seconds).
    """

    type = EventType.REQUEST_ANSWERED
    request_id: str
    action: str
    done: bool
    outcome: str = ""
    by: str = ""
    asked_at: float = 0.0


class EpochCompleted(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """An env at the end of an epoch, whole: nothing that came before is needed to show it.

    `epochs` is how many there will be, 0 where nobody knows. Accuracies in percent on the validation split, losses in
    the task's own unit, None where modules are watched in a loop that is not ours. The counts run from the env's start:
    `total_shadows` are shadow forwards, `total_recompiles` graphs that TorchDynamo compiled in this process.
    """

    type = EventType.EPOCH_COMPLETED
    epochs: int
    seeds: tuple[SeedTelemetry, ...]
    accuracy: float | None = None
    train_loss: float | None = None
    validation_loss: float | None = None
    open_alerts: tuple[Alert, ...] = ()
    total_passes: int = 0
    total_germinated: int = 0
    total_pruned: int = 0
    total_fossilized: int = 0
    total_alerts: int = 0
    total_shadows: int = 0
    total_recompiles: int = 0


class EnvCompleted(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """An env trained to its end."""

    type = EventType.ENV_COMPLETED
    accuracy: float | None = None


class EnvFailed(EpochPayload, frozen=True, kw_only=True, omit_defaults=True):
    """An env stopped by an error; the others go on."""

    type = EventType.ENV_FAILED
    error: str


class RunCompleted(Payload, frozen=True, kw_only=True, omit_defaults=True):
    """Every env came to its end; without this event a run that no trainer holds was cut off."""

    type = EventType.RUN_COMPLETED
    completed_envs: int
    failed_envs: int = 0


class TelemetryEvent(Struct, frozen=True, kw_only=True, gc=False):
    """A payload with its place: run, env (None for the run itself), sequence within that, time in Unix seconds.

    The sequence counts an env's deterministic events from 0; it is None for samples, which the clock paces.
    """

    run_id: str
    env_id: int | None
    sequence: int | None
    time: float
    payload: Payload

    @property
    def type(self) -> EventType:
        """The payload's type."""
        return self.payload.type

    @property
    def epoch(self) -> int | None:
        """The payload's epoch; None for events of a whole run or env."""
        return self.payload.epoch if isinstance(self.payload, EpochPayload) else None


PAYLOADS: dict[str, type[Payload]] = {
    payload.type.value: payload
    for payload in (
        RunStarted, RunResumed, EnvStarted, SeedGerminated, SeedStageChanged, SeedPruned, SeedFossilized,
        GradientSampled, NonFiniteOrigin, EpochCompleted, AlertRaised, AlertCleared, ActionTaken, RequestAnswered,
        EnvCompleted, EnvFailed, RunCompleted,
    )
}  # fmt: skip
