"""Which envs the overview shows, and in which order."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from math import inf, isfinite, isnan, log2

from sapflow.sanctum.census import Census, Kind
from sapflow.sanctum.schema import EnvState, SanctumSnapshot
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
    """Where a seed's ratio is farthest from 1, up or down, first."""
    ratios = [seed.grad_ratio for seed in env.seeds.values() if seed.measurement is Measurement.MEASURED]
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

    The search is words, all of which have to be found: `env:3` or `3`, `slot:early`, `blueprint:conv`, or a word that
    occurs anywhere in the env's names, its error, its open alerts or its log.
    """
    envs: Iterable[EnvState] = snapshot.envs.values()
    if kind is not None:
        envs = (env for env in envs if census.has(env.env_id, kind))
    words = search.casefold().split()
    if words:
        envs = (env for env in envs if all(_found(word, env) for word in words))
    return sorted(envs, key=_KEYS[order])  # type: ignore[arg-type]


def _found(word: str, env: EnvState) -> bool:
    field, colon, value = word.partition(":")
    if word.isdecimal():
        field, colon, value = "env", ":", word
    if colon and field == "env":
        return value.lstrip("0") == str(env.env_id).lstrip("0")
    if colon and field == "slot":
        return any(value in slot_id.casefold() for slot_id in env.seeds)
    if colon and field == "blueprint":
        return any(value in seed.blueprint_id.casefold() for seed in env.seeds.values())
    return any(word in text[:_TEXT_LIMIT].casefold() for text in _texts(env))


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
