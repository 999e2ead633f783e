"""The `pagoda-bench` command. Each verb's module is imported only when that verb runs, so that help is instant."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence

import click

from pagoda_bench import __version__
from pagoda_bench.cli.common import Group
from pagoda_bench.errors import UserError

# verb: (module:command, one line of help)
VERBS = {
    "reproduce": ("pagoda_bench.cli.reproduce:reproduce", "Make a table of the paper: train or reuse, sample, score, compare."),
    "sweep": ("pagoda_bench.cli.sweep:sweep", "Make a table at every point of a grid, here or on a cluster."),
    "status": ("pagoda_bench.cli.status:status", "Show how a sweep stands."),
    "logs": ("pagoda_bench.cli.status:logs", "Show what the stages of a sweep printed."),
    "collect": ("pagoda_bench.cli.status:collect", "Write the table that a sweep was submitted for, as far as it is made."),
    "cancel": ("pagoda_bench.cli.jobs:cancel", "Cancel a sweep, or a stage with what depends on it."),
    "resume": ("pagoda_bench.cli.jobs:resume", "Submit again what a sweep lacks."),
    "cluster": ("pagoda_bench.cli.cluster:cluster", "Look at a cluster before a day is spent on it."),
    "artifacts": ("pagoda_bench.cli.artifacts:artifacts", "List, show, verify, copy and clear what is in the store."),
    "methods": ("pagoda_bench.cli.methods:methods", "List the systems that a row of a table can name."),
    "import": ("pagoda_bench.cli.import_weights:import_weights", "Take over released weights from a checkpoint file."),
    "sample": ("pagoda_bench.cli.sample:sample", "Write images of a generator to a folder or a file."),
    "edit": ("pagoda_bench.cli.edit:edit", "Edit images: reconstruct, change class, interpolate, enlarge, fill in."),
    "roundtrip": ("pagoda_bench.cli.roundtrip:roundtrip", "Say how well a diffusion model's encoder undoes itself."),
    "evaluate": ("pagoda_bench.cli.evaluate:evaluate", "Measure a set of images: every metric in one pass, with its protocol."),
    "stats": ("pagoda_bench.cli.stats:stats", "Make reference statistics of real images."),
    "compare": ("pagoda_bench.cli.compare:compare", "Compare two sets of scores, or say why they cannot be."),
    "gate": ("pagoda_bench.cli.gate:gate", "Hold a measured table against its budget: for CI."),
    "data": ("pagoda_bench.cli.data:data", "Make data sets ready for training: ImageNet."),
    "cost": ("pagoda_bench.cli.cost:cost", "Say what a scale takes: GPU hours, storage, dollars."),
    "run-stage": ("pagoda_bench.cli.run_stage:run_stage", "Make one artifact from its JSON recipe."),
}

INTERRUPTED = 130


class Verbs(Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in VERBS.items()])


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"pagoda-bench {__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  pagoda-bench reproduce table1                 Table 1 on the embedded data, with the released models
  pagoda-bench reproduce table1 --dry-run       what that would make, and how long it would take
  pagoda-bench artifacts ls                     what is in the store
  pagoda-bench COMMAND --help                   all of a command's options, with examples
""",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
def cli() -> None:
    """Reproduce PaGoDA: a one-step generator distilled from a low-resolution diffusion teacher and grown to full size.

    A table is a grid of recipes; a recipe determines one artifact; what is there already is never made again.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 2 for a user's error, 130 when interrupted (also by SIGTERM)."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="pagoda-bench", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UserError as error:
        return _fail(str(error))
    except click.ClickException as error:
        return _fail(error.format_message())
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):  # click takes the end of any file for the user's
            raise error.__cause__ from None
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str) -> int:
    print(f"pagoda-bench: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _interrupted() -> int:
    print("pagoda-bench: interrupted; the work so far is kept, and the same command goes on from there", file=sys.stderr)
    return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
