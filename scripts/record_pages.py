"""Writes docs/records/ from the telemetry records, each *Tested* box ticked as the verification, run now, finds it."""

from collections.abc import Mapping
from pathlib import Path

from sapflow.telemetry.record_page import render, render_index
from sapflow.telemetry.records import all_records

PAGES = Path(__file__).parents[1] / "docs" / "records"


def write_pages(tested: Mapping[str, bool]) -> None:
    for record in all_records():
        page = render(record, tested.get(record.id))
        (PAGES / f"{record.id}.md").write_text(page, encoding="utf-8")
    (PAGES / "README.md").write_text(render_index(all_records()), encoding="utf-8")


if __name__ == "__main__":
    from sapflow.verification import verify_all

    write_pages(verify_all())
