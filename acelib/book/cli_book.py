"""Commands of the book: run chapters, build pages, certify and verify the rows that ship."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..files import check_writable
from ..provenance import ROOT
from ..records import quoted
from . import contents, early
from .console import Pairs, bar, examples, fail, quiet, say

app = typer.Typer()
FILES = ("cases", "edits")  #: parameters of chapters that name a file, unless they are empty


# ---------------------------------------------------------------------- chapters


@app.command(
    cls=Pairs,
    help=examples(
        "Execute chapters under papermill and keep them, with their provenance, in runs/NAME, or "
        "in place with --update. Chapters that nothing has changed for are skipped; after Ctrl-C "
        "the same command continues.",
        "run 03_ace -p n_cases 10 --name small",
        "run --all --profile quick --name quick",
        "run --all --update",
    ),
)
def run(  # noqa: PLR0913 - options
    chapters: Annotated[
        list[str] | None, typer.Argument(help="Names of chapters, e.g. 03_ace.")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME VALUE",
            help="A parameter to change, its value in JSON. Repeatable.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The run's folder below runs/; default: latest."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All chapters.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Write into notebooks/, at the default parameters.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also chapters that are up to date.")
    ] = False,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            help="Sizes of all samples: paper (days), quick (minutes); book/profiles.toml.",
        ),
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run nothing; say what would be computed, time and memory."),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            min=0,
            help="Chapters at once; 0: a core each, at most 4, one with an accelerator.",
        ),
    ] = 0,
):
    if every == bool(chapters):
        raise ValueError(
            "name the chapters to run, or give --all; known: " + ", ".join(contents.known())
        )
    if update and (parameter or profile or name is not None):
        raise ValueError(
            "--update writes the book, into notebooks/ and at its default parameters; "
            "leave it out, or -p, --profile and --name"
        )
    chosen = dict(map(_absolute, map(_pair, parameter or ())))
    names = chapters or list(contents.known())
    sizes = contents.profile(profile) if profile else {}
    name = "latest" if name is None else name
    folder = None if update else contents.run_folder(name)
    for source in map(contents.find, names):
        contents.checked_parameters(source, {**sizes.get(source.stem, {}), **chosen})
    if dry_run:
        return _told(names, chosen, sizes)
    check_writable(folder or ROOT / "notebooks", "the folder")
    from ..study.rows import processes
    from . import chapters as notebooks

    for stray in contents.strays() if every else ():
        say(f"[yellow]{escape(stray.name)} is in no part of _toc.yml: skipped")
    jobs = min(processes(jobs, most=4), len(names))
    executed = notebooks.run(names, chosen, folder, force, sizes=sizes, jobs=jobs)
    with bar("chapters") if jobs > 1 else nullcontext() as tell:
        for done, (chapter, record) in enumerate(executed, 1):
            what = f"executed in {record['wall_time_s']:.0f} s" if record else "up to date"
            say(f"[green]{chapter}: {what}")
            if tell:
                tell(done, len(names))
    if folder:
        say(f"in {folder}; as a book: acelib book --runs {name}")
    else:
        from . import front

        front.keep()
        say("to run chapters that are up to date again, add --force")


def _told(
    chapters: Sequence[str], chosen: dict[str, Any], sizes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Says what chapters would compute."""
    early.estimates([contents.find(chapter).stem for chapter in chapters])
    from ..study import registry
    from ..study.parameters import defaults

    for chapter in chapters:
        source = contents.find(chapter)
        changes = {**sizes.get(source.stem, {}), **chosen}
        changes = contents.checked_parameters(source, changes)
        for told in registry.estimate(source.stem, {**defaults(source.stem), **changes}):
            say(escape(told))


def _pair(text: str) -> tuple[str, Any]:
    """A parameter and its value: JSON, or else text."""
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"parameter {quoted(text)} has no value; write -p NAME VALUE")
    try:
        return key, json.loads(value)
    except ValueError:  # no JSON, or too long a number
        return key, value
    except RecursionError:
        raise ValueError(f"parameter {key!r}: {quoted(value)} is nested too deep") from None


def _absolute(pair: tuple[str, Any]) -> tuple[str, Any]:
    """A parameter that names a file, with the whole path: chapters run in another folder.

    Raises ValueError for a file that is not there.
    """
    key, value = pair
    if key not in FILES or not value or not isinstance(value, str):
        return pair
    path = Path(value).absolute()
    if not path.is_file():
        raise ValueError(f"parameter {key!r}: there is no file {quoted(value)}")
    return key, str(path)


@app.command(
    help=examples(
        "Build the book from the committed chapters, or with the chapters of a run in their place.",
        "book",
        "book --runs quick",
    )
)
def book(
    runs: Annotated[
        str | None,
        typer.Option("--runs", metavar="NAME", help="Take the executed chapters of runs/NAME."),
    ] = None,
):
    from .build import build, build_run

    page = build() if runs is None else build_run(runs)
    say(f"[bold green]the book is at {page}")


# ---------------------------------------------------------------------- rows that ship

Experiments = Annotated[
    list[str] | None,
    typer.Argument(help="Names of experiments, as the folders in results/; default: all."),
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", min=0, help="Processes; 0: one per core, one on an accelerator."),
]


@app.command(
    help=examples(
        "Vouch for rows in results/ after a change of code that should move no number.\n\n"
        "Rows count only under the code that computed them. For every file whose settings are "
        "today's and whose code is not, a sample of rows is recomputed. If all agree, the file "
        "says that it was certified, when, and on how many rows; it is read again. If one differs, "
        "it is printed and the file stays as it is: compute it anew with acelib run --update.",
        "certify",
        "certify 03_ace --share 0.5",
    )
)
def certify(
    experiments: Experiments = None,
    share: Annotated[
        float,
        typer.Option("--share", min=0, max=1, help="Share of the rows that are recomputed."),
    ] = 0.2,
    seed: Annotated[
        str | None, typer.Option("--seed", help="Seed of the sample; default: the date.")
    ] = None,
    jobs: Jobs = 0,
):
    early.experiments(experiments)
    from ..study import recheck
    from ..study.rows import processes

    seed = seed or recheck.todays_seed()
    say(f"samples of {share:.0%}, at least 5 items of every file, seed {seed}")
    differences = 0
    for experiment in _experiments(experiments):
        with bar(experiment.name) as tell:
            result = recheck.certify(experiment, share, seed, tell, jobs=processes(jobs))
        for certificate in result:
            say(escape(str(certificate)))
            differences += _shown(certificate.differences)
    if differences:
        fail(f"{differences} values differ; what they belong to was not certified", 1)


@app.command(
    help=examples(
        "Recompute every row in results/ and compare it with the one that ships.\n\n"
        "Takes as long as computing them did; what is kept is only compared, never read instead. "
        "Each value that differs beyond its tolerance is one line: experiment, model, editor, "
        "item.",
        "verify",
        "verify 03_ace",
    )
)
def verify(experiments: Experiments = None, jobs: Jobs = 0):
    early.experiments(experiments)
    from ..study import recheck
    from ..study.rows import processes

    differences = 0
    for experiment in _experiments(experiments):
        drawn = recheck.sample(experiment, 1.0, 0)
        with bar(experiment.name) as tell:
            found = recheck.recompute(experiment, drawn, tell, jobs=processes(jobs))
        say(f"{experiment.name}: {len(drawn)} items recomputed, {len(found)} values differ")
        differences += _shown(found)
    if differences:
        fail(f"{differences} values differ", 1)


def _shown(differences: Sequence[object]) -> int:
    """Prints differences; returns how many there are."""
    for difference in differences:
        say(f"[red]{escape(str(difference))}")
    return len(differences)


def _experiments(names: Sequence[str] | None) -> Iterator[Any]:
    """Experiments one after another."""
    from ..study import registry

    quiet()
    for name in names or registry.names():
        yield registry.experiment(name)
