"""How many seeds are in which state: the counts of the overview's strip, and the envs behind each of them."""

from collections import Counter
from collections.abc import Mapping
from enum import Enum

from sapflow.sanctum.glyphs import CONDITION_GLYPHS, CONDITION_STYLES, STAGE_GLYPHS, STAGE_STYLES
from sapflow.sanctum.schema import Condition, EnvState, SlotMark
from sapflow.telemetry.vocabulary import SeedStage


class Kind(Enum):
    """What is counted, and by which an overview is filtered: the order is that of the keys 1 to 9.

    The first four count seeds by how their gradient flows, ALERTS counts open alerts, the last four seeds by stage.
    """

    EXPLODING = ("exploding", CONDITION_GLYPHS[Condition.EXPLODING], CONDITION_STYLES[Condition.EXPLODING])
    VANISHING = ("vanishing", CONDITION_GLYPHS[Condition.VANISHING], CONDITION_STYLES[Condition.VANISHING])
    NON_FINITE = ("non-finite", CONDITION_GLYPHS[Condition.NON_FINITE], CONDITION_STYLES[Condition.NON_FINITE])
    UNMEASURED = ("unmeasured", CONDITION_GLYPHS[Condition.UNMEASURED], CONDITION_STYLES[Condition.UNMEASURED])
    ALERTS = ("alerts", CONDITION_GLYPHS[Condition.ALERTED], CONDITION_STYLES[Condition.ALERTED])
    LEARNING = ("learning", STAGE_GLYPHS[SeedStage.TRAINING], STAGE_STYLES[SeedStage.TRAINING])
    BLENDING = ("blending", STAGE_GLYPHS[SeedStage.BLENDING], STAGE_STYLES[SeedStage.BLENDING])
    FOSSILIZED = ("fossilized", STAGE_GLYPHS[SeedStage.FOSSILIZED], STAGE_STYLES[SeedStage.FOSSILIZED])
    PRUNED = ("pruned", STAGE_GLYPHS[SeedStage.PRUNED], STAGE_STYLES[SeedStage.PRUNED])

    def __init__(self, word: str, glyph: str, style: str) -> None:
        self.word = word
        self.glyph = glyph
        self.style = style


_OF_CONDITION = {
    Condition.EXPLODING: Kind.EXPLODING,
    Condition.VANISHING: Kind.VANISHING,
    Condition.NON_FINITE: Kind.NON_FINITE,
    Condition.UNMEASURED: Kind.UNMEASURED,
}
OF_STAGE = {
    SeedStage.GERMINATED: Kind.LEARNING,
    SeedStage.TRAINING: Kind.LEARNING,
    SeedStage.WATCHED: Kind.LEARNING,
    SeedStage.BLENDING: Kind.BLENDING,
    SeedStage.HOLDING: Kind.BLENDING,
    SeedStage.FOSSILIZED: Kind.FOSSILIZED,
    SeedStage.PRUNED: Kind.PRUNED,
    SeedStage.EMBARGOED: Kind.PRUNED,
}


def counts_of(env: EnvState) -> Counter[Kind]:
    """The counts of one env."""
    counts: Counter[Kind] = Counter()
    for mark in env.seeds.marks:
        kind = _OF_CONDITION.get(mark.condition)
        if kind is not None:
            counts[kind] += 1
        stage = OF_STAGE.get(mark.stage)
        if stage is not None:
            counts[stage] += 1
    if env.open_alerts:
        counts[Kind.ALERTS] = len(env.open_alerts)
    return counts


class Census:
    """The counts of all envs; only envs that changed are counted again."""

    def __init__(self) -> None:
        self.total: Counter[Kind] = Counter()
        self._counted: dict[int, tuple[tuple[tuple[SlotMark, ...], int], Counter[Kind]]] = {}

    def take(self, envs: Mapping[int, EnvState]) -> None:
        """Counts `envs`, which replace those that were counted before."""
        for env_id in self._counted.keys() - envs.keys():
            self.total.subtract(self._counted.pop(env_id)[1])
        for env_id, env in envs.items():
            counted_for = (env.seeds.marks, len(env.open_alerts))
            before = self._counted.get(env_id)
            if before is not None and before[0] == counted_for:
                continue
            counts = counts_of(env)
            if before is not None:
                self.total.subtract(before[1])
            self.total.update(counts)
            self._counted[env_id] = (counted_for, counts)

    def has(self, env_id: int, kind: Kind) -> bool:
        """Whether the env has any of that kind."""
        return self._counted[env_id][1][kind] > 0
