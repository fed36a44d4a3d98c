"""The command line: ``acelib run | book | edit | locate | pretrain | bench``.

Commands read their arguments, call the library and draw tables; they compute nothing themselves. A user's mistake (ValueError)
becomes one red line and exit code 2, a failed chapter or build exit code 1, Ctrl-C exit code 130. Heavy modules are imported
inside the commands, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Mapping, NamedTuple, Optional, Sequence

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand, TyperGroup


def _say(*what: Any):
    Console(highlight=False, soft_wrap=all(isinstance(part, str) for part in what)).print(*what)


def _fail(message: str, code: int):
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]{escape(' '.join(message.split()))}[/bold red]")
    raise typer.Exit(code)


class _Polite(TyperGroup):
    """Turns errors that a user caused, or can understand, into one line and an exit code."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except ValueError as err:
            _fail(str(err), 2)
        except KeyboardInterrupt:
            _fail("interrupted; rerun the same command to resume", 130)
        except ModuleNotFoundError as err:
            _fail(f"the package {err.name!r} is missing: pip install 'acelib[book]'", 1)
        except RuntimeError as err:
            if type(err).__name__ != "ChapterError":
                raise
            _fail(str(err), 1)


class _Pairs(TyperCommand):
    """Lets ``-p`` take two words, a name and a value, any number of times."""

    def parse_args(self, ctx, args):
        words, joined = iter(args), []
        for word in words:
            joined.append(word)
            if word in ("-p", "--parameter") and (name := next(words, None)) is not None:
                value = None if "=" in name else next(words, None)
                joined.append(name if value is None else f"{name}={value}")
        return super().parse_args(ctx, joined)


def _examples(text: str, *lines: str) -> str:
    return text + "\n\n[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]acelib {escape(line)}[/cyan]" for line in lines)


app = typer.Typer(cls=_Polite, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False,
                  help=_examples(
    "Edit facts in language models, find where they are stored, and rerun the book that measures both.",
    "run 03_ace -p n_cases 10 --name quick",
    'edit --subject "Tim Duncan" --prompt "{} plays the sport of" --target tennis', "locate --category ST"))
Model = Annotated[str, typer.Option("--model", "-m", help="A shipped model, a local folder, or a Hugging Face id.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]


# ---------------------------------------------------------------------- chapters

@app.command(cls=_Pairs, help=_examples(
    "Execute chapters under papermill and keep them, with their provenance, in runs/NAME, or in place with --update. "
    "Chapters that nothing has changed for are skipped; after Ctrl-C the same command continues.",
    "run 03_ace -p n_cases 10 --name quick", "run 03_ace -p models '[\"EleutherAI/gpt-j-6b\"]' --name gptj", "run --all --update"))
def run(
    chapters: Annotated[Optional[list[str]], typer.Argument(help="Names of chapters, e.g. 03_ace.")] = None,
    parameter: Annotated[Optional[list[str]], typer.Option("-p", "--parameter", metavar="NAME VALUE",
                                                           help="A parameter to change, its value in JSON. Repeatable.")] = None,
    name: Annotated[str, typer.Option("--name", help="The run's folder below runs/.")] = "latest",
    every: Annotated[bool, typer.Option("--all", help="All chapters.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Write into notebooks/, at the default parameters.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also chapters that are up to date.")] = False,
):
    from acelib import notebooks

    if every == bool(chapters):
        raise ValueError("name the chapters to run, or give --all; known: " + ", ".join(notebooks.known()))
    if update and parameter:
        raise ValueError("--update writes the book at its default parameters; leave out -p, or give --name instead of --update")
    chosen = dict(map(_pair, parameter or ()))
    folder = None if update else notebooks.run_folder(name)
    for chapter, record in notebooks.run(chapters or list(notebooks.known()), chosen, folder, force):
        _say(f"[green]{chapter}: " + (f"executed in {record['wall_time_s']:.0f} s" if record else "up to date"))
    _say(f"in {folder}; as a book: acelib book --runs {name}" if folder else "to run chapters that are up to date again, add --force")


def _pair(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"parameter {text!r} has no value; write -p NAME VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


@app.command(help=_examples("Build the book from the committed chapters, or with the chapters of a run in their place.",
                            "book", "book --runs quick"))
def book(
    runs: Annotated[Optional[str], typer.Option("--runs", metavar="NAME", help="Take the executed chapters of runs/NAME.")] = None,
):
    from acelib import notebooks

    root = notebooks.ROOT
    if runs is None:
        return _build(root, root)
    chapters = sorted(notebooks.run_folder(runs).glob("*.ipynb"))
    if not chapters:
        known = sorted({path.parent.name for path in root.glob("runs/[!.]*/*.ipynb")})
        raise ValueError(f"runs/{runs} holds no executed chapter; known runs: {', '.join(known) or 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for part in ("book", "notebooks"):
            shutil.copytree(root / part, source / part)
        for chapter in chapters:
            shutil.copy(chapter, source / "notebooks")
        shutil.copy(root / "_toc.yml", source)
        config = (root / "_config.yml").read_text("utf-8").replace("\ntitle: ", f"\ntitle: Run {runs} of ", 1)
        (source / "_config.yml").write_text(config, "utf-8")
        _build(source, root / "_build" / "runs" / runs)


def _build(source: Path, output: Path):
    """Jupyter Book of ``source`` in ``output/_build/html``; every warning is an error."""
    main = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", main, "build", str(source), "--path-output", str(output), "-W", "-n", "--keep-going"])
    if done.returncode:
        _fail("the book was not built; its warnings are above", 1)
    _say(f"[bold green]the book is at {output / '_build' / 'html' / 'index.html'}")


# ---------------------------------------------------------------------- one edit

class Probe(NamedTuple):
    """A prompt, what it asks about the edit, and the answer that an ideal editor gives."""

    kind: str
    prompt: str
    expected: str


def probes(world, edit, n_unrelated: int, seed: int) -> list[Probe]:
    """The fact, its paraphrases, multi-hop consequences and a sample of unrelated facts; what the world does not know is left out."""
    rows = [Probe("fact", edit.text, edit.target_new)]
    for relation in [relation for relation in world.relations.values() if edit.prompt in relation.cloze][:1]:
        rows += [Probe("paraphrase", cloze.format(edit.subject), edit.target_new) for cloze in relation.cloze if cloze != edit.prompt]
        for after in world.about(edit.target_new):
            phrase = world.relations[after.relation].nouns[0].format(relation.nouns[0].format(edit.subject))
            rows.append(Probe("multi-hop", f"{phrase[0].upper()}{phrase[1:]} is", after.object))
    others = [fact for fact in world.facts if edit.subject not in (fact.subject, fact.object)]
    rows += [Probe("unrelated", world.relations[fact.relation].cloze[0].format(fact.subject), fact.object)
             for fact in random.Random(seed).sample(others, min(n_unrelated, len(others)))]
    return rows


def probe_table(rows: Sequence[Probe], before: Sequence[str], after: Sequence[str], agrees) -> Table:
    """Answers before and after an edit; green where ``agrees(answer, expected)``, red where not."""
    table = Table("", "prompt", "ideal", "before", "after", title="answers before and after")
    for i, (row, old, new) in enumerate(zip(rows, before, after)):
        color = "green" if agrees(new, row.expected) else "red"
        table.add_row(row.kind, escape(row.prompt), escape(row.expected), escape(old), f"[{color}]{escape(new)}[/{color}]",
                      end_section=i + 1 < len(rows) and rows[i + 1].kind != row.kind)
    return table


@app.command(help=_examples(
    "Change one fact of a model and compare its answers before and after: the fact, paraphrases, multi-hop consequences, unrelated facts.",
    'edit --editor ace --subject "Tim Duncan" --prompt "{} plays the sport of" --target tennis',
    'edit --editor memit --subject France --prompt "The capital of {} is" --target Rome --save update.safetensors'))
def edit(
    subject: Annotated[str, typer.Option("--subject", "-s", help="Whom or what the fact is about.")],
    prompt: Annotated[str, typer.Option("--prompt", help="A cloze sentence with {} for the subject, up to the answer.")],
    target: Annotated[str, typer.Option("--target", "-t", help="The new answer.")],
    editor: Annotated[str, typer.Option("--editor", "-e", help="memit, pmet or ace.")] = "ace",
    model: Model = "gptj-mini",
    unrelated: Annotated[int, typer.Option("--unrelated", help="How many unrelated facts to ask.", min=0)] = 8,
    save: Annotated[Optional[Path], typer.Option("--save", help="Keep the update in this file.")] = None,
    seed: Seed = 0,
):
    from acelib import covariance, evaluate, facts, lm, prompts

    request, world, chosen = facts.Edit(subject, prompt, target), facts.load_world(), preset(editor, model)
    host = lm.load(model)
    if evaluate.recall(host, [request.text], [target]).correct[0]:
        raise ValueError(f"{model} answers {target!r} to {request.text!r} already; choose another target")
    rows = probes(world, request, unrelated, seed)

    def answers(updates):
        ended = lambda text: "\n" in text or "." in text
        return [text.strip() for text in evaluate.generate(host, [row.prompt for row in rows], updates, max_new_tokens=12, until=ended)]

    before = answers(None)
    with Console(stderr=True).status(f"{editor} edits {model}"):
        layers = getattr(chosen, "layers", None) or (*chosen.query_layers, *chosen.value_layers)
        moments = covariance.second_moments(host, [prompts.statement(world, fact) for fact in world.facts], layers)
        update = chosen(host, [request], moments)
    agrees = lambda text, answer: prompts.normalise(text).startswith(prompts.normalise(answer))
    _say(probe_table(rows, before, answers([update] * len(rows)), agrees))
    _say("norm of the change by layer: " + ", ".join(f"{layer}: {norm:.3g}" for layer, norm in update.norms().items()))
    if save:
        update.save(save)
        _say(f"kept in {save}")


def preset(editor: str, model: str):
    """The named editor with its settings for a model. Raises ValueError listing the known editors, or the models it has settings for."""
    from acelib.editors import ace, memit, pmet

    known = {"memit": memit.PRESETS, "pmet": pmet.PRESETS, "ace": ace.PRESETS}
    if editor.lower() not in known:
        raise ValueError(f"unknown editor {editor!r}; known: {', '.join(known)}")
    settings, name = known[editor.lower()], Path(model).name.lower()
    if name not in settings:
        raise ValueError(f"{editor} has no settings for model {model!r}; it has for: {', '.join(settings)}")
    return settings[name]


# ---------------------------------------------------------------------- where knowledge is

def layer_table(title: str, scores: Mapping[str, Sequence[float]], top: int) -> Table:
    """Scores by layer and kind; the ``top`` layers of each kind in bold, and named below, best first."""
    best = {kind: sorted(range(len(row)), key=lambda layer: -row[layer])[:top] for kind, row in scores.items()}
    table = Table("layer", *scores, title=title)
    for layer in range(max(map(len, scores.values()))):
        table.add_row(str(layer), *(f"[{'bold' if layer in best[kind] else 'default'}]{row[layer]:.3f}" for kind, row in scores.items()))
    table.add_section()
    table.add_row("top", *(", ".join(map(str, best[kind])) for kind in scores))
    return table


@app.command(help=_examples("Find the query and the value layers of a model, for a category of facts or for all.",
                            "locate", "locate --category CP", "locate --category ST --model gptj-mini --top 3"))
def locate(
    category: Annotated[Optional[str], typer.Option("--category", "-c", help="NN CT LG CP LS AT ST or CF; all if not given.")] = None,
    model: Model = "gptj-mini",
    n: Annotated[int, typer.Option("--facts", "-n", help="Facts asked, at most.", min=1)] = 64,
    top: Annotated[int, typer.Option("--top", help="Layers named of each kind.", min=1)] = 3,
    seed: Seed = 0,
):
    from acelib import facts, lm, prompts
    from acelib.locate import locate as scores

    world = facts.load_world()
    pool = world.facts if category is None else world.facts_of(category)
    asked = random.Random(seed).sample(pool, min(n, len(pool)))
    found = scores(lm.load(model), [prompts.single_hop_cloze(world, fact) for fact in asked], [fact.object for fact in asked], top, top)
    by_layer = {"query": found.query_by_layer, "value": found.value_by_layer}
    _say(layer_table(f"{category or 'all facts'}, {model}, {len(asked)} prompts", by_layer, top))


# ---------------------------------------------------------------------- training, timing

@app.command(help=_examples("Train a reference model from scratch on the world, or resume its training. CPU or accelerator.",
                            "pretrain gptj-mini --out runs/gptj-mini", "pretrain gptj-mini --out runs/short --steps 200"))
def pretrain(
    name: Annotated[str, typer.Argument(help="A recipe.")] = "gptj-mini",
    out: Annotated[Path, typer.Option("--out", help="Folder of the checkpoints, the log and the finished model.")] = Path("runs/pretrain"),
    steps: Annotated[Optional[int], typer.Option("--steps", help="Steps other than the recipe's.", min=1)] = None,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Seed other than the recipe's.")] = None,
    device: Annotated[Optional[str], typer.Option("--device", help="Default: the accelerator if there is one.")] = None,
):
    from dataclasses import replace

    import torch
    from acelib import facts, pretrain as training

    if name not in training.RECIPES:
        raise ValueError(f"unknown recipe {name!r}; known: {', '.join(training.RECIPES)}")
    changed = {key: value for key, value in dict(steps=steps, seed=seed).items() if value is not None}
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    report = lambda row: _say(", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    training.train(replace(training.RECIPES[name], **changed), facts.load_world(), out, device=device, report=report)
    _say(f"[bold green]the model is in {out}; use it as --model {out}")


@app.command(help=_examples("Time the library against the plain procedures that it replaces; ratios are of one run on this machine.",
                            "bench", "bench targets"))
def bench(what: Annotated[Optional[list[str]], typer.Argument(help="Names of benchmarks; all if not given.")] = None):
    from acelib import bench as benchmarks

    for name in what or benchmarks.BENCHMARKS:
        if name not in benchmarks.BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(benchmarks.BENCHMARKS)}")
    table = Table("benchmark", "plain, s", "acelib, s", "ratio")
    for name in what or benchmarks.BENCHMARKS:
        with Console(stderr=True).status(name):
            plain, ours = benchmarks.BENCHMARKS[name]()
        table.add_row(name, f"{plain:.3f}", f"{ours:.3f}", f"{plain / ours:.1f}")
    _say(table)
