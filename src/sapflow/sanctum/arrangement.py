"""Which envs the overview shows, and in which order."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from math import inf, isfinite, isnan, log2

from sapflow.sanctum.census import Census, Kind
from sapflow.sanctum.query import Query
from sapflow.sanctum.schema import Condition, EnvState, SanctumSnapshot
from sapflow.telemetry.vocabulary import Measurement

_TEXT_LIMIT = 10_000  # of what is searched in an env, in characters


class Order(StrEnum):
    """What the envs are sorted by; equals stand in the order of their ids."""

    WORST = "worst first"
    ENV = "by env"
    ACCURACY = "by accuracy"
    LOSS = "by loss"
    RATIO = "by ratio"

    @property
    def next(self) -> "Order":
        """The order after this one, round and round."""
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


def _accuracy(env: EnvState) -> float:
    """The lowest first: it is the one that needs a look."""
    return inf if env.accuracy is None else -inf if isnan(env.accuracy) else env.accuracy


def _loss(env: EnvState) -> float:
    """The highest first; one that is no number before all others."""
    return inf if env.validation_loss is None else -inf if isnan(env.validation_loss) else -env.validation_loss


def _ratio(env: EnvState) -> float:
    """Where the ratio of a seed that lives is farthest from 1, up or down, first."""
    living = (seed for seed in env.seeds.values() if seed.condition is not Condition.RESTING)
    ratios = [seed.grad_ratio for seed in living if seed.measurement is Measurement.MEASURED]
    return -max((abs(log2(ratio)) if ratio > 0 and isfinite(ratio) else inf for ratio in ratios), default=-1.0)


_KEYS: dict[Order, Callable[[EnvState], object]] = {
    Order.WORST: lambda env: (*env.urgency, env.env_id),
    Order.ENV: lambda env: env.env_id,
    Order.ACCURACY: lambda env: (_accuracy(env), env.env_id),
    Order.LOSS: lambda env: (_loss(env), env.env_id),
    Order.RATIO: lambda env: (_ratio(env), env.env_id),
}


def arranged(
    snapshot: SanctumSnapshot, census: Census, order: Order, kind: Kind | None = None, search: str = ""
) -> list[EnvState]:
    """The envs of `snapshot` that have what `kind` counts and what `search` asks for, in `order`.

    The search is that of `query.py`: slot and blueprint are those of one seed of the env, and a word may occur anywhere
    in the env's names, its error, its open alerts or its log.
    """
    envs: Iterable[EnvState] = snapshot.envs.values()
    if kind is not None:
        envs = (env for env in envs if census.has(env.env_id, kind))
    query = Query.parse(search)
    if query != Query():
        envs = (env for env in envs if _found(query, env))
    return sorted(envs, key=_KEYS[order])  # type: ignore[arg-type]


def _found(query: Query, env: EnvState) -> bool:
    named = any(query.names(env.env_id, seed.slot_id, seed.blueprint_id) for seed in env.seeds.values())
    if not named and not query.names(env.env_id, "", ""):  # an env without seeds
        return False
    return query.reads(text[:_TEXT_LIMIT] for text in _texts(env))


def _texts(env: EnvState) -> Iterable[str]:
    """Everything about the env that a person might look for."""
    yield f"env {env.env_id:02}"
    yield from (env.host, env.error)
    for seed in env.seeds.values():
        yield from (seed.slot_id, seed.blueprint_id, seed.seed_id, seed.stage, seed.fault or "", seed.evidence)
    for alert in env.open_alerts:
        yield from (alert.rule, alert.evidence)
    for entry in env.log:
        yield from entry.parts
