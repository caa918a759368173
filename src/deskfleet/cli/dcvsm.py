"""The command `dcvsm`: the command line of Amazon DCV Session Manager, for any of its brokers.

Laws: options, their names and the return codes are those of the original
(`docs/reference/dcvsm.md` says where its documentation leaves something open). Every error ends
in a sentence on stderr and a code of `dcvsm_call.ReturnCode`; a traceback is for --debug.

Must not: offer what the original doesn't; that is what `deskfleet` is for.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from deskfleet import __version__
from deskfleet.cli import dcvsm_config as config
from deskfleet.cli import stdout
from deskfleet.cli.dcvsm_call import ReturnCode, Run
from deskfleet.cli.dcvsm_commands import COMMANDS, create_session
from deskfleet.cli.dcvsm_report import Report
from deskfleet.cli.dcvsm_values import spelled_out
from deskfleet.cli.output import exit_code
from deskfleet.client.problems import Refused
from deskfleet.errors import DeskfleetError

PROGRAM = "dcvsm"


def main() -> NoReturn:
    """Run the command line and end with the code that the shell is told."""
    stdout.prepare()
    sys.exit(_run(sys.argv[1:], Report(sys.stderr)))


def _run(arguments: Sequence[str], report: Report) -> int:
    try:
        application()(args=list(arguments), prog_name=PROGRAM, obj=report)
    except DeskfleetError as error:
        report.tell(_sentence(error))
        return return_code(error)
    except KeyboardInterrupt:
        return ReturnCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the last supervisor: it tells the whole story)
        report.tell(f"unexpected: {type(error).__name__}: {error}")
        report.detail(traceback.format_exc())
        return ReturnCode.OTHER
    return ReturnCode.OK


def return_code(error: DeskfleetError) -> ReturnCode:
    if isinstance(error, config.FileUnusable):
        return ReturnCode.FILE
    return ReturnCode(exit_code(error))


def _sentence(error: DeskfleetError) -> str:
    if isinstance(error, Refused) and 300 <= error.status < 400:
        return f"the broker sends us elsewhere (HTTP {error.status}), which is not followed"
    return error.message


def application() -> typer.Typer:
    app = typer.Typer(
        help="Manage sessions and servers of a DCV Session Manager broker.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for command in COMMANDS:
        kind = _WithEnqueue if command is create_session else None
        app.command(command.__name__.replace("_", "-"), cls=kind)(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"{PROGRAM}, version {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    *,
    conf: Annotated[
        str | None, typer.Option(metavar="PATH", help="The configuration file to read.")
    ] = None,
    broker_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Client port of a broker: https://HOST:PORT.")
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Tell on standard error what is asked and answered.")
    ] = False,
    no_verify_ssl: Annotated[
        bool, typer.Option("--no-verify-ssl", help="Don't check the broker's certificate.")
    ] = False,
    output_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="json, which is the only one.")
    ] = None,
    ca_bundle: Annotated[
        str | None, typer.Option(metavar="PATH", help="PEM file of the authorities to trust.")
    ] = None,
    auth_server: Annotated[
        str | None,
        typer.Option(
            *config.AUTH_SERVER.options,
            metavar="URL",
            help="Where access tokens come from. Default: the broker.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 (its callback has ended the program)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    report: Report = context.obj
    report.debug = debug
    options = config.Options(
        conf=conf,
        broker_url=broker_url,
        debug=debug,
        no_verify_ssl=no_verify_ssl,
        output_format=output_format,
        ca_bundle=ca_bundle,
        auth_server=auth_server,
    )
    context.obj = Run(report, options)


class _WithEnqueue(TyperCommand):
    """Takes `--enqueue-request` alone, and with a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        valued = {name for each in self.params if not _is_flag(each) for name in each.opts}
        return super().parse_args(ctx, spelled_out(args, valued))


def _is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


if __name__ == "__main__":
    main()
