"""The command line: ``acelib run | book | certify | verify | edit | locate | tune | ...``.

Commands read their arguments and call the library; ``console`` shows what comes back. They compute
nothing themselves. Heavy modules are imported inside the commands, so that ``--help`` is immediate.
"""

from __future__ import annotations

import typer

from . import cli_book, cli_edit, cli_models
from .console import Polite, examples

app = typer.Typer(
    cls=Polite,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help=examples(
        "Edit facts in language models, find where they are stored, and rerun the book that "
        "measures both.",
        "run 03_ace -p n_cases 10 --name quick",
        'edit --subject France --prompt "The capital of {} is" --target Rome',
        "locate --category ST",
    ),
)
app.add_typer(cli_book.app)
app.add_typer(cli_edit.app)
app.add_typer(cli_models.app)
