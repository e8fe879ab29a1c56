"""The commands by name, and how their arguments are read."""

import shlex

import cyclopts

import sapflow
from sapflow.cli.console import console
from sapflow.errors import InputError

app = cyclopts.App(
    name="sapflow",
    help="Is this module's gradient flow healthy? Live, per module, on every backward pass.",
    version=sapflow.__version__,
    help_format="plaintext",
    default_parameter=cyclopts.Parameter(negative=""),
    console=console,
    suppress_keyboard_interrupt=False,  # it would end without a word
)
records = cyclopts.App(
    name="records", help="List the telemetry records: what each field of a seed means, and whether its wires hold."
)
rules = cyclopts.App(name="rules", help="Explain alert rules, and try them on a recorded run.")

# The help stands here as well, so that an overview of the commands imports none of them.
app.command("sapflow.cli.train:train", name="train", help="Train hosts in whose slots seeds grow, and record it.")
app.command("sapflow.cli.sanctum:sanctum", name="sanctum", help="Show a run in the terminal, live or finished.")
app.command("sapflow.cli.runs:runs", name="runs", help="List the runs in a directory.")
app.command(
    "sapflow.cli.runs:show",
    name="show",
    help="Show what a run was, and what became of each of its seeds.\n\nA seed with an asterisk was planted.",
)
app.command(
    "sapflow.cli.query:query",
    name="query",
    help='Ask runs in SQL.\n\nAs in `sapflow query RUN… "SELECT …"`. The tables are gradients, epochs, seeds, alerts, '
    "events and runs; over several runs each has a column run. Nothing else can be read, and nothing written.",
)
app.command("sapflow.cli.query:export", name="export", help="Write a whole table of a run into a file.")
app.command("sapflow.cli.schema:schema", name="schema", help="Print the JSON Schema of all events.")
app.command("sapflow.cli.roll:roll", name="roll", help="Write finished runs into Parquet.")
app.command("sapflow.cli.report:report", name="report", help="Write what happened in runs as one HTML page.")
app.command(records)
records.command("sapflow.cli.records:show", name="show", help="Print a record's page.")
records.command("sapflow.cli.records:verify", name="verify", help="Follow values from a backward pass to the card.")
app.command(rules)
rules.command("sapflow.cli.rules:check", name="check", help="Explain a rule file, and try it on a recorded run.")
rules.command("sapflow.cli.rules:default", name="default", help="Print the default rules as a rule file.")
rules.command("sapflow.cli.rules:prometheus", name="prometheus", help="Print rules as alerting rules of Prometheus.")
app.command("sapflow.cli.follow:follow", name="follow", help="Export a run, live or finished, to other tools.")


@records.default
def list_records() -> None:
    """List all records."""
    from sapflow.cli.records import list_records

    list_records()


def call(arguments: list[str]) -> int:
    """Carry out a command and return its exit code.

    Raises:
        InputError: the arguments make no sense, or the command says so.
    """
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.UnusedCliTokensError as error:
        raise InputError(f"unexpected: {shlex.join(error.unused_tokens or ())}{_way_to_help(error)}") from error
    except cyclopts.CycloptsError as error:
        raise InputError(" ".join(str(error).split()).removesuffix(".") + _way_to_help(error)) from error
    return code if isinstance(code, int) else 0


def _way_to_help(error: cyclopts.CycloptsError) -> str:
    return f": see `{' '.join(['sapflow', *(error.command_chain or ())])} --help`"
