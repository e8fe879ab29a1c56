"""The commands by name, and how their arguments are read."""

import cyclopts

import sapflow
from sapflow.errors import InputError

app = cyclopts.App(
    name="sapflow",
    help="Is this module's gradient flow healthy? Live, per module, on every backward pass.",
    version=sapflow.__version__,
    help_format="plaintext",
    default_parameter=cyclopts.Parameter(negative=""),
)
app.command("sapflow.cli.train:train", name="train")
app.command("sapflow.cli.sanctum:sanctum", name="sanctum")

records = cyclopts.App(name="records", help="The telemetry records: what each field of a seed means, and its wiring.")
records.command("sapflow.cli.records:show", name="show")
records.command("sapflow.cli.records:verify", name="verify")
app.command(records)


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
    except cyclopts.CycloptsError as error:
        raise InputError(" ".join(str(error).split())) from error
    return code if isinstance(code, int) else 0
