"""What a terminal shows: messages, progress bars, tables; a user's mistake as one red line and an
exit code.

A ValueError becomes exit code 2; a failed chapter or build, a full disk or a folder that is
read-only exit code 1; Ctrl-C exit code 130. Bugs keep their traceback. What the other end of a pipe
does not want to read is not printed, and the work goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand, TyperGroup


class Output(Console):
    """stdout or stderr; letters that they do not have are replaced, a closed pipe is no error."""

    def __init__(self, stderr: bool = False, **options: Any):
        stream = sys.stderr if stderr else sys.stdout
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
        super().__init__(stderr=stderr, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())


def say(*what: Any):
    """Print to stdout, with markup; text is not wrapped, tables are."""
    Output(soft_wrap=all(isinstance(part, str) for part in what)).print(*what)


def fail(message: str, code: int):
    """End with one red line on stderr and an exit code."""
    Output(stderr=True, soft_wrap=True).print(
        f"[bold red]{escape(' '.join(message.split()))}[/bold red]"
    )
    raise typer.Exit(code)


@contextmanager
def bar(what: str) -> Iterator[Callable]:
    """A progress bar with the time remaining, where stderr is a terminal; gives the function (done,
    total, what) that moves it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console, both = Output(stderr=True), sys.stdout.isatty()
    with Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=both,
        speed_estimate_period=3600,
        disable=not console.is_terminal,
    ) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total, now=what: shown.update(
            task, completed=done, total=total, description=escape(str(now))
        )


def waiting(what: str):
    """A context manager that shows a spinner on stderr."""
    return Output(stderr=True).status(what)


def quiet() -> None:
    """Without the bar that transformers shows for everything; only downloads need one."""
    from transformers.utils import logging

    logging.disable_progress_bar()


#: what typer says of a command line: click's, or that of the click that typer carries
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
LONGEST = 400  #: letters of what it says, of which a value may be all


class Polite(TyperGroup):
    """Turns errors that a user caused, or can understand, into one line and an exit code."""

    def make_context(self, *args, **kwargs):
        try:
            return super().make_context(*args, **kwargs)
        except UsageError as err:
            _refuse(err)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except UsageError as err:
            _refuse(err)
        except ValueError as err:
            fail(str(err), 2)
        except KeyboardInterrupt:
            fail("interrupted; rerun the same command to resume", 130)
        except ModuleNotFoundError as err:
            fail(f"the package {err.name!r} is missing: pip install 'acelib[book]'", 1)
        except OSError as err:
            fail(f"{err.strerror}: {err.filename}" if err.filename else str(err), 1)
        except Exception as err:
            if type(err).__name__ not in ("ChapterError", "BuildError", "SafetensorError"):
                raise
            fail(str(err), 1)


def _refuse(error: Any) -> None:
    """Says in one line what is wrong with a command line, and where its help is."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        raise error
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]}...{message[-LONGEST // 2 :]}"
    where = error.ctx.command_path if error.ctx else "acelib"
    fail(f"{message}; see {where} --help", 2)


class Pairs(TyperCommand):
    """Lets ``-p`` take two words, a name and a value, any number of times."""

    def parse_args(self, ctx, args):
        words, joined = iter(args), []
        for word in words:
            joined.append(word)
            if word in ("-p", "--parameter") and (name := next(words, None)) is not None:
                value = None if "=" in name else next(words, None)
                joined.append(name if value is None else f"{name}={value}")
        return super().parse_args(ctx, joined)


def examples(text: str, *lines: str) -> str:
    """A help text with examples."""
    return (
        text
        + "\n\n[bold]Examples[/bold]\n\n"
        + "\n\n".join(f"[cyan]acelib {escape(line)}[/cyan]" for line in lines)
    )


def probe_table(answers) -> Table:
    """The answers of ``probe.before_and_after`` as a table; green where they are ideal after the
    edit, red where not.
    """
    table = Table("", "prompt", "ideal", "before", "after", title="answers before and after")
    rows = list(answers.itertuples())
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        color = "green" if row.ok else "red"
        table.add_row(
            row.kind,
            escape(row.prompt),
            escape(row.ideal),
            escape(row.before),
            f"[{color}]{escape(row.after)}[/{color}]",
            end_section=following is not None and following.kind != row.kind,
        )
    return table


def ideal_line(answers) -> str:
    """How many of a ``typed_edit.Answers`` are ideal after the edit, by kind; of facts that must
    stay, those count that the model knew.
    """
    kinds = {kind: answers.share(kind) for kind in answers.table.kind.unique()}
    unknown = [
        f"{kind}: the model knew none of {tried} that were tried"
        for kind, (known, tried) in answers.known.items()
        if tried and not known
    ]
    counts = (f"{kind} {share}" for kind, share in kinds.items())
    return "ideal after the edit: " + "; ".join([", ".join(counts), *unknown])


def cases_table(summary, title: str) -> Table:
    """``benchmark.summary``: shares in percent with their intervals over cases."""
    table = Table("", "asked", "cases", "before, %", "after, %", "more probable, %", title=title)
    for kind, row in summary.iterrows():
        asked = str(row.asked) if row.asked == row["of"] else f"{row.asked} of {row['of']}"
        shares = (f"{row[name]:.0f}" for name in ("before", "after", "score"))
        table.add_row(escape(str(kind)), asked, str(row.cases), *shares)
    return table


def norms_line(sizes: Mapping[int, tuple[float, float]]) -> str:
    """The size of a change by layer, and how many times the weight's that is."""
    texts = [f"{layer}: {norm:.3g} ({times:.2g})" for layer, (norm, times) in sizes.items()]
    return "norm of the change by layer: " + ", ".join(texts).replace(
        ")", " times the weight's)", 1
    )


def layer_table(title: str, found) -> Table:
    """A ``typed_locate.Layers``: scores by layer and kind with their intervals; the best of each
    kind in bold, and named below, best first.
    """
    table = Table("layer", *found.by_layer, title=title)
    for layer in range(max(map(len, found.by_layer.values()))):
        cells = (
            f"[{'bold' if layer in found.best[kind] else 'default'}]{escape(f'{row[layer]:z.3f}')}"
            for kind, row in found.by_layer.items()
        )
        table.add_row(str(layer), *cells)
    table.add_section()
    table.add_row("top", *(", ".join(map(str, found.best[kind])) for kind in found.by_layer))
    return table


def bars_table(title: str, found: Mapping[str, float], bars: Mapping[str, float]) -> Table:
    """Shares that were measured and what they must reach; green where they do, red where not."""
    table = Table("measured", "%", "must reach, %", title=title)
    for key, share in found.items():
        color = "default" if key not in bars else "green" if share >= bars[key] else "red"
        table.add_row(
            key, f"[{color}]{100 * share:.1f}", f"{100 * bars[key]:.0f}" if key in bars else ""
        )
    return table


def timings_table(rows) -> Table:
    """Timings of ``speed.bench``, the library beside what it replaces."""
    table = Table("benchmark", "plain, s", "acelib, s", "ratio", "of what")
    for row in rows:
        seconds = (f"{row.baseline_s:.3g}", f"{row.ours_s:.3g}")
        table.add_row(row.name, *seconds, f"{row.ratio:.1f}", escape(row.note))
    return table


def training_line(row: Mapping[str, float]) -> str:
    """A row of ``train_log.jsonl`` in short: step, loss, speed, shares (%), time left."""
    left = (
        (row["steps"] - row["step"])
        * row["tokens"]
        / row["step"]
        / max(row["tokens_per_s"], 1)
        / 60
    )
    known = ("step", "steps", "tokens", "loss", "schedule", "tokens_per_s")
    shares = " ".join(f"{key} {100 * value:.0f}" for key, value in row.items() if key not in known)
    return (
        f"step {row['step']}/{row['steps']}, loss {row['loss']:.3f}, "
        f"{row['tokens_per_s']:,} tokens/s, {shares}, {left:.0f} min left"
    )
