"""The command line: ``acelib run | book | certify | verify | edit | locate | tune | ...``.

Commands read their arguments and call the library; ``console`` shows what comes back. They compute nothing themselves. Heavy modules
are imported inside the commands, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table

from .console import (
    Pairs,
    Polite,
    bar,
    bars_table,
    examples,
    fail,
    layer_table,
    probe_table,
    say,
    training_line,
    waiting,
)

app = typer.Typer(
    cls=Polite,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help=examples(
        "Edit facts in language models, find where they are stored, and rerun the book that measures both.",
        "run 03_ace -p n_cases 10 --name quick",
        'edit --subject "Tim Duncan" --prompt "{} plays the sport of" --target cricket',
        "locate --category ST",
    ),
)
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A shipped model, a local folder, or a Hugging Face id."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


def _load(name: str, device: str | None = None):
    from ..model import lm

    if name in lm.shipped() or Path(name).is_dir():
        _no_foreign_bars()
    return lm.load(name, device)


def _no_foreign_bars():
    """transformers shows a bar of its own for everything; only downloads need one."""
    from transformers.utils import logging

    logging.disable_progress_bar()


# ---------------------------------------------------------------------- chapters


@app.command(
    cls=Pairs,
    help=examples(
        "Execute chapters under papermill and keep them, with their provenance, in runs/NAME, or in place with --update. "
        "Chapters that nothing has changed for are skipped; after Ctrl-C the same command continues.",
        "run 03_ace -p n_cases 10 --name small",
        "run --all --profile quick --name quick",
        "run --all --update",
    ),
)
def run(
    chapters: Annotated[
        Optional[list[str]], typer.Argument(help="Names of chapters, e.g. 03_ace.")
    ] = None,
    parameter: Annotated[
        Optional[list[str]],
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME VALUE",
            help="A parameter to change, its value in JSON. Repeatable.",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The run's folder below runs/.")] = "latest",
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
    import torch
    from joblib import cpu_count

    from . import chapters as notebooks

    if every == bool(chapters):
        raise ValueError(
            "name the chapters to run, or give --all; known: " + ", ".join(notebooks.known())
        )
    if update and (parameter or profile):
        raise ValueError(
            "--update writes the book at its default parameters; leave out -p and --profile, or give --name instead"
        )
    chosen = dict(map(_pair, parameter or ()))
    folder = None if update else notebooks.run_folder(name)
    names, sizes = (
        chapters or list(notebooks.known()),
        notebooks.profile(profile) if profile else None,
    )
    jobs = min(jobs or (1 if torch.accelerator.is_available() else min(4, cpu_count())), len(names))
    with bar("chapters") if jobs > 1 else nullcontext() as tell:
        for done, (chapter, record) in enumerate(
            notebooks.run(names, chosen, folder, force, sizes=sizes, jobs=jobs), 1
        ):
            say(
                f"[green]{chapter}: "
                + (f"executed in {record['wall_time_s']:.0f} s" if record else "up to date")
            )
            tell and tell(done, len(names))
    say(
        f"in {folder}; as a book: acelib book --runs {name}"
        if folder
        else "to run chapters that are up to date again, add --force"
    )


def _pair(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"parameter {text!r} has no value; write -p NAME VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@app.command(
    help=examples(
        "Build the book from the committed chapters, or with the chapters of a run in their place.",
        "book",
        "book --runs quick",
    )
)
def book(
    runs: Annotated[
        Optional[str],
        typer.Option("--runs", metavar="NAME", help="Take the executed chapters of runs/NAME."),
    ] = None,
):
    from . import chapters as notebooks

    root = notebooks.ROOT
    if runs is None:
        return _build(root, root)
    chapters = sorted(notebooks.run_folder(runs).glob("*.ipynb"))
    if not chapters:
        known = sorted({path.parent.name for path in root.glob("runs/[!.]*/*.ipynb")})
        raise ValueError(
            f"runs/{runs} holds no executed chapter; known runs: {', '.join(known) or 'none'}"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for part in ("book", "notebooks"):
            shutil.copytree(root / part, source / part)
        for chapter in chapters:
            shutil.copy(chapter, source / "notebooks")
        shutil.copy(root / "_toc.yml", source)
        config = (
            (root / "_config.yml")
            .read_text("utf-8")
            .replace("\ntitle: ", f"\ntitle: Run {runs} of ", 1)
        )
        (source / "_config.yml").write_text(config, "utf-8")
        _build(source, root / "_build" / "runs" / runs)


def _build(source: Path, output: Path):
    """Jupyter Book of ``source`` in ``output/_build/html``; every warning is an error."""
    main = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            main,
            "build",
            str(source),
            "--path-output",
            str(output),
            "-W",
            "-n",
            "--keep-going",
        ]
    )
    if done.returncode:
        fail("the book was not built; its warnings are above", 1)
    say(f"[bold green]the book is at {output / '_build' / 'html' / 'index.html'}")


# ---------------------------------------------------------------------- rows that ship

Experiments = Annotated[
    Optional[list[str]],
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
        Optional[str], typer.Option("--seed", help="Seed of the sample; default: the date.")
    ] = None,
    jobs: Jobs = 0,
):
    from ..study import recheck

    seed = seed or recheck.todays_seed()
    say(f"samples of {share:.0%}, at least 5 items of every file, seed {seed}")
    differences = 0
    for experiment in _experiments(experiments):
        with bar(experiment.name) as tell:
            result = recheck.certify(experiment, share, seed, tell, jobs=_processes(jobs))
        for certificate in result:
            say(escape(str(certificate)))
            differences += _differences(certificate.differences)
    if differences:
        fail(f"{differences} values differ; what they belong to was not certified", 1)


@app.command(
    help=examples(
        "Recompute every row in results/ and compare it with the one that ships.\n\n"
        "Takes as long as computing them did; what is kept is only compared, never read instead. "
        "Each value that differs beyond its tolerance is one line: experiment, model, editor, item.",
        "verify",
        "verify 03_ace",
    )
)
def verify(experiments: Experiments = None, jobs: Jobs = 0):
    from ..study import recheck

    differences = 0
    for experiment in _experiments(experiments):
        drawn = recheck.sample(experiment, 1.0, 0)
        with bar(experiment.name) as tell:
            found = recheck.recompute(experiment, drawn, tell, jobs=_processes(jobs))
        say(f"{experiment.name}: {len(drawn)} items recomputed, {len(found)} values differ")
        differences += _differences(found)
    if differences:
        fail(f"{differences} values differ", 1)


def _differences(differences) -> int:
    """Print differences; returns how many there are."""
    for difference in differences:
        say(f"[red]{escape(str(difference))}")
    return len(differences)


def _experiments(names: list[str] | None):
    """Experiments one after another; all names are checked before the first is built."""
    from ..study import registry

    for name in names or ():
        registry.builder(name)
    _no_foreign_bars()
    for name in names or registry.names():
        yield registry.experiment(name)


def _processes(jobs: int) -> int:
    import torch
    from joblib import cpu_count

    return jobs or (1 if torch.accelerator.is_available() else cpu_count())


# ---------------------------------------------------------------------- one edit


@app.command(
    help=examples(
        "Change one fact of a model and compare its answers before and after: the fact, paraphrases, multi-hop consequences, unrelated facts.",
        'edit --editor ace --subject "Tim Duncan" --prompt "{} plays the sport of" --target cricket',
        'edit --editor memit --subject France --prompt "The capital of {} is" --target Rome --save update.safetensors',
    )
)
def edit(
    subject: Annotated[
        str, typer.Option("--subject", "-s", help="Whom or what the fact is about.")
    ],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt", help="A cloze sentence with {} for the subject, up to the answer."
        ),
    ],
    target: Annotated[str, typer.Option("--target", "-t", help="The new answer.")],
    editor: Annotated[
        str,
        typer.Option("--editor", "-e", help="ft, kn, rome, memit, pmet, alphaedit, ifmet or ace."),
    ] = "ace",
    model: Model = "gptj-mini",
    unrelated: Annotated[
        int, typer.Option("--unrelated", help="How many unrelated facts to ask.", min=0)
    ] = 8,
    save: Annotated[
        Optional[Path], typer.Option("--save", help="Keep the update in this file.")
    ] = None,
    save_model: Annotated[
        Optional[Path],
        typer.Option("--save-model", help="Keep the edited model in this new folder."),
    ] = None,
    seed: Seed = 0,
):
    from .. import editors, records
    from ..editing.moments import second_moments
    from ..measures import probe
    from ..model import answers as evaluate
    from ..model.update import save_pretrained
    from ..world.text import documents
    from ..world.world import load_world

    if save and (save.is_dir() or not save.absolute().parent.is_dir()):
        raise ValueError(
            f"--save {save} is a folder; name a file"
            if save.is_dir()
            else f"the folder of --save {save} does not exist"
        )
    if save_model and save_model.exists():
        raise ValueError(f"--save-model {save_model} exists; name a new folder")
    chosen, world = editors.preset(editor, model), load_world()
    relation = world.relation_of(prompt)
    request = records.Edit(
        subject,
        prompt,
        target,
        relation and world.lookup(subject, relation) or "",
        relation=relation,
    )
    host = _load(model)
    if evaluate.recall(host, [request.text], [target]).correct[0]:
        raise ValueError(
            f"{model} answers {target!r} to {request.text!r} already; choose another target"
        )
    with bar("second moments, kept for the next time") as tell:
        layers = getattr(chosen, "layers", ())  # KN finds its own, and needs no moment
        moments = (
            second_moments(host, documents(world, 2000), layers, progress=tell) if layers else None
        )
    with waiting(f"{editor} edits {model}"):
        update = chosen(host, [request], moments)
        answers = probe.before_and_after(
            host, probe.probes(world, request, unrelated, seed), update
        )
    say(probe_table(answers))
    kinds = answers.groupby("kind", sort=False).ok
    say(
        "ideal after the edit: "
        + ", ".join(f"{kind} {ok.sum()} of {len(ok)}" for kind, ok in kinds)
    )
    say(
        "norm of the change by layer: "
        + ", ".join(f"{layer}: {norm:.3g}" for layer, norm in update.norms().items())
    )
    if save:
        update.save(save)
    if save_model:
        save_pretrained(host, update, save_model)
    for kept in filter(None, (save, save_model)):
        say(f"kept in {kept}")


# ---------------------------------------------------------------------- where knowledge is


@app.command(
    help=examples(
        "Find the query and the value layers of a model by held-out two-hop questions, or by single facts.",
        "locate",
        "locate --category CP",
        "locate --category ST --single --model gptj-mini --top 3",
    )
)
def locate(
    category: Annotated[
        Optional[str],
        typer.Option(
            "--category", "-c", help="NN CT LG CP LS AT ST or CF, of the last hop; default: all."
        ),
    ] = None,
    single: Annotated[
        bool, typer.Option("--single", help="Ask single facts instead of two-hop questions.")
    ] = False,
    model: Model = "gptj-mini",
    n: Annotated[
        int, typer.Option("--questions", "-n", help="Questions asked, at most.", min=1)
    ] = 96,
    top: Annotated[int, typer.Option("--top", help="Layers named of each kind.", min=1)] = 3,
    seed: Seed = 0,
):
    from ..attribution.layers import locate as find
    from ..attribution.layers import questions
    from ..world.world import load_world

    asked = questions(load_world(), n, seed, category, single)
    host = _load(model)
    with bar("questions") as tell:
        found = find(host, *zip(*asked), top, top, progress=tell)
    by_layer = dict(query=found.query_by_layer, value=found.value_by_layer)
    title = f"{model}, sum over {len(asked)} {'single facts' if single else 'two-hop questions'}, {category or 'all categories'}"
    say(layer_table(title, by_layer, top))


@app.command(
    help=examples(
        "Search the settings of editors for a model on identification cases, as many trials for each. Resumable.",
        "tune",
        "tune --model gptj-mini --editors ace,memit --trials 12 --cases 24",
    )
)
def tune(
    model: Model = "gptj-mini",
    editors: Annotated[
        str, typer.Option("--editors", "-e", help="Which, with commas between; default: all.")
    ] = "",
    trials: Annotated[
        int, typer.Option("--trials", help="Settings tried of each editor.", min=1)
    ] = 12,
    cases: Annotated[
        int, typer.Option("--cases", help="Cases that each setting edits.", min=1)
    ] = 24,
    seed: Seed = 0,
):
    from .. import provenance
    from ..attribution.layers import locate as find
    from ..attribution.layers import questions
    from ..editing.moments import second_moments
    from ..editors import EDITORS, presets
    from ..study import tune as search
    from ..world.text import documents
    from ..world.world import load_world

    known, asked = (
        {name.lower(): name for name in EDITORS},
        [name.strip().lower() for name in (editors or ",".join(EDITORS)).split(",")],
    )
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"unknown editor {unknown[0]!r}; known: {', '.join(EDITORS)}")
    world, names = load_world(), [known[name] for name in asked]
    host = _load(model)
    with bar("locating layers") as tell:
        found = find(host, *zip(*questions(world, 96, seed)), 2, 2, progress=tell)
    with bar("second moments") as tell:
        moments = second_moments(host, documents(world, 2000), range(host.n_layers), progress=tell)
    spaces = search.spaces(host.n_layers, found.query_layers, found.value_layers)
    chosen, root = search.identification(host, world, cases, seed), provenance.ROOT
    with bar("trials") as tell:
        rows = search.tune(
            host,
            world,
            chosen,
            moments,
            search.draw({name: spaces[name] for name in names}, trials, seed),
            root / "runs" / "tune",
            progress=tell,
        )
    path = presets.path_of(model)
    search.keep(rows, path.with_suffix(".csv"))
    search.keep_presets(rows, path)
    for row in rows.drop_duplicates("editor").itertuples():
        settings = search.words(search.parse(row.editor, row.settings))
        say(escape(f"{row.editor}: {row.score:.3f} on {row.n_cases} cases: {settings}"))
    say(f"the best settings are in {path}, all trials in {path.with_suffix('.csv')}")


# ---------------------------------------------------------------------- training, timing


@app.command(
    help=examples(
        "Train a reference model from scratch on the world, or resume its training; with --evaluate, measure one.",
        "pretrain gptj-mini --out runs/gptj-mini",
        "pretrain gptj-mini --out runs/short --steps 200 --every 50",
        "pretrain --evaluate gptj-mini",
        "pretrain --evaluate runs/short",
    )
)
def pretrain(
    name: Annotated[
        str, typer.Argument(help="A recipe; with --evaluate a model or its folder.")
    ] = "gptj-mini",
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", help="Folder of checkpoints, log and model. Default: runs/pretrain/NAME."
        ),
    ] = None,
    steps: Annotated[
        Optional[int], typer.Option("--steps", help="Steps other than the recipe's.", min=1)
    ] = None,
    seed: Annotated[
        Optional[int], typer.Option("--seed", help="Seed other than the recipe's.")
    ] = None,
    device: Annotated[
        Optional[str], typer.Option("--device", help="Default: the accelerator if there is one.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Compile the model: faster, needs a C++ compiler."
        ),
    ] = False,
    every: Annotated[
        int,
        typer.Option(
            "--every", help="Steps between checkpoints, each with a small measurement.", min=1
        ),
    ] = 250,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Train nothing; measure a model against the bars.")
    ] = False,
):
    from dataclasses import replace

    import torch

    from .. import provenance
    from ..training import bars
    from ..training import train as training
    from ..world.world import load_world

    world, devices = load_world(), ["cpu"]
    if torch.accelerator.is_available():
        devices.append(torch.accelerator.current_accelerator().type)
    if device and device.split(":")[0] not in devices:
        raise ValueError(
            f"device {device!r} is not on this machine; there are: {', '.join(devices)}"
        )
    if evaluate:
        host = _load(name, device)
        with waiting(f"measuring {name}"):
            found = bars.measure(host, world)
        say(bars_table(name, found, bars.BARS))
        missed = [key for key, least in bars.BARS.items() if not found[key] >= least]
        return say("[red]missed: " + ", ".join(missed) if missed else "[green]all bars are reached")
    if name not in training.RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(training.RECIPES)}")
    recipe = replace(
        training.RECIPES[name],
        **{key: value for key, value in dict(steps=steps, seed=seed).items() if value is not None},
    )
    _no_foreign_bars()
    folder = out or provenance.ROOT / "runs" / "pretrain" / name
    with bar(f"{name}, steps") as tell:

        def report(row):
            tell(row["step"], row["steps"], f"{row['tokens_per_s']:,} tokens/s")
            say(training_line(row))

        training.train(
            recipe,
            world,
            folder,
            device=device or devices[-1],
            compile=compiled,
            every=every,
            report=report,
            judge=lambda host: bars.measure(host, world, n_facts=120, n_chains=40, n_edits=0),
        )
    say(f"[bold green]the model is in {folder}; measure it: acelib pretrain --evaluate {folder}")


@app.command(
    help=examples(
        "Train a small reference model without each kind of text in turn, and measure every bar: what each kind buys. "
        "The rows are kept in data/models/ablation.csv. Resumable.",
        "ablate",
        "ablate --steps 200 --no-keep",
    )
)
def ablate(
    steps: Annotated[
        Optional[int],
        typer.Option(
            "--steps", help="Training steps of each variant, other than the recipe's.", min=1
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of the whole mixture.", min=1)] = 2,
    only: Annotated[
        Optional[list[str]],
        typer.Option("--only", help="Variants to train, e.g. 'without dense'. Repeatable."),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Compile the models: faster, needs a C++ compiler."
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Write the rows to data/models/ablation.csv.")
    ] = True,
):
    from dataclasses import replace

    from .. import provenance
    from ..training import ablation, bars
    from ..world.world import load_world

    base = replace(ablation.SMALL, steps=steps or ablation.SMALL.steps)
    chosen = ablation.variants(base, seeds)
    if unknown := [name for name in only or () if name not in chosen]:
        raise ValueError(f"unknown variant {unknown[0]!r}; known: {', '.join(chosen)}")
    _no_foreign_bars()
    with bar("steps") as tell:
        rows = ablation.ablate(
            load_world(),
            provenance.ROOT / "runs" / "ablation",
            {name: chosen[name] for name in only or chosen},
            compile=compiled,
            progress=tell,
            n_facts=200,
            n_chains=50,
            n_edits=24,
        )
    for row in rows.to_dict("records"):
        say(
            bars_table(
                row["variant"], {key: row[key] for key in bars.BARS if key in row}, bars.BARS
            )
        )
    if keep:
        ablation.keep(rows)
        say(f"[bold green]kept in {ablation.KEPT}")


@app.command(
    help=examples(
        "Time the library against the plain procedures that it replaces; ratios are of one run on this machine.",
        "bench",
        "bench targets update",
    )
)
def bench(
    what: Annotated[
        Optional[list[str]], typer.Argument(help="Names of benchmarks; all if not given.")
    ] = None,
):
    from ..bench import speed as benchmarks

    with bar("benchmarks") as tell:
        rows = benchmarks.bench(what or (), tell)
    table = Table("benchmark", "plain, s", "acelib, s", "ratio", "of what")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.baseline_s:.3g}",
            f"{row.ours_s:.3g}",
            f"{row.ratio:.1f}",
            escape(row.note),
        )
    say(table)
