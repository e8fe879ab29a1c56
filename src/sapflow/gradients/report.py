"""How watched modules stand: as a table for terminals and notebooks, as one chain, and epoch by epoch as arrays."""

import html
from array import array
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sapflow.health.calibrated import chain_verdict
from sapflow.health.policy import Verdict
from sapflow.telemetry.events import SeedTelemetry
from sapflow.telemetry.vocabulary import Measurement

HEADINGS = ("module", "kind", "params", "", "ratio", "entering", "leaving", "passes", "what is known")
NUMBERS = frozenset({"params", "ratio", "entering", "leaving", "passes"})

HISTORY = ("epoch", "passes", "grad_ratio", "entering_norm", "leaving_norm", "min_ratio", "max_ratio", "last_ratio")


class Report:
    """One row a module: the printed form is text, the notebook's is HTML."""

    def __init__(self, telemetry: Mapping[str, SeedTelemetry]) -> None:
        self.rows = [_row(name, seed) for name, seed in telemetry.items()]

    def __str__(self) -> str:
        table = [HEADINGS, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
                for cell, width, heading in zip(row, widths, HEADINGS, strict=True)
            ).rstrip()
            for row in table
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(name: str, seed: SeedTelemetry) -> tuple[str, ...]:
    measured = seed.measurement is Measurement.MEASURED
    return (
        name or "(the model)",
        seed.blueprint_id,
        str(seed.seed_params),
        _glyph(seed),
        f"{seed.grad_ratio:.3g}" if measured else "--",
        f"{seed.entering_norm:.2e}" if measured else "--",
        f"{seed.leaving_norm:.2e}" if measured else "--",
        str(seed.passes),
        "; ".join(filter(None, (seed.evidence, "" if measured else str(seed.measurement), seed.measurement_reason))),
    )


def _glyph(seed: SeedTelemetry) -> str:
    if seed.has_exploding:
        return "▲"
    if seed.has_vanishing:
        return "▼"
    return "✓" if seed.measurement is Measurement.MEASURED else "?"


def chain_of(telemetry: Mapping[str, SeedTelemetry]) -> Verdict:
    """Blocks that feed one another, as one; those of them that are measured, and the names of the others."""
    measured = {name: seed for name, seed in telemetry.items() if seed.measurement is Measurement.MEASURED}
    verdict = chain_verdict({name: seed.grad_ratio for name, seed in measured.items()})
    missing = ", ".join(name or "the model" for name in telemetry if name not in measured)
    said = (verdict.evidence, missing and f"not measured, and left out: {missing}")
    return replace(verdict, evidence="; ".join(filter(None, said)))


class History:
    """HISTORY of each module, an element for each epoch that was closed."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, array[float]]] = {}

    def add(self, epoch: int, telemetry: Mapping[str, SeedTelemetry]) -> None:
        """An epoch was closed."""
        for name, seed in telemetry.items():
            fields = self._modules.setdefault(name, {field: array("d") for field in HISTORY})
            for field, values in fields.items():
                values.append(epoch if field == "epoch" else getattr(seed, field))

    def arrays(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """By module, an array a field."""
        return {
            name: {field: np.array(values) for field, values in fields.items()}
            for name, fields in self._modules.items()
        }
