"""Commands on facts: edit one, or those of a benchmark's file; locate the layers that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..files import check_writable
from ..records import Edit
from . import cli_options, early
from .cli_options import Dtype, Model, Seed, Start, Texts
from .console import (
    bar,
    cases_table,
    examples,
    ideal_line,
    layer_table,
    norms_line,
    probe_table,
    say,
    waiting,
)

app = typer.Typer()
STATUS = {"edited": 0, "failed": 3, "outside": 4}  #: exit status by outcome; 1 and 2 are errors
FIRST = 20  #: cases of a file, if nothing is said
LAYERS_FOUND = {  #: how the layers of a preset were found, where somebody may think otherwise
    "ACE": ", layers found by search, not by attribution (acelib locate)",
    "LocatedACE": ", layers located by attribution, as published",
}


@dataclass(frozen=True)
class Method:
    """The model, the editor and its settings, as they were asked for."""

    editor: str
    model: str
    settings: Path | None
    groups: tuple[tuple[int, ...] | None, ...]  #: --layers, --query-layers, --value-layers
    texts: list[str] | None
    dtype: str
    start: str

    def load(self) -> tuple[Any, Any, str]:
        """The model, the editor, and where its settings come from."""
        from ..editors import presets

        host = cli_options.load_model(self.model, dtype=self.dtype, start=self.start)
        editor, derived = presets.preset_of(self.editor, host, self.settings)
        if derived:
            say(f"[yellow]{escape(derived)}; a search for your own: acelib tune -m {self.model}")
        if self.settings:
            source = f"settings of {self.settings.name}"
        elif derived:
            source = "settings derived, not searched"
        else:
            found = presets.file_of(host)
            how = LAYERS_FOUND.get(self.editor, "")
            source = f"settings of {found.name if found else 'the model'}{how}"
        if any(group is not None for group in self.groups):
            source = f"{source.partition(', layers')[0]}, layers as you say"
        return host, presets.moved(editor, *self.groups), source

    def moments(self, host: Any, world: Any, editor: Any):
        """Second moments of all layers that are written."""
        from ..study.experiments import corpus

        with bar("second moments, kept for the next time") as tell:
            return corpus(host, world, [editor], texts=self.texts).gather(tell)


@dataclass(frozen=True)
class Places:
    """Files and folders that an edit is kept in."""

    save: Path | None
    save_model: Path | None
    rows: Path | None

    def check(self) -> None:
        """Raises ValueError for a file that cannot be written, or a folder that is there."""
        for option, file in (("--save", self.save), ("--rows", self.rows)):
            if file and file.is_dir():
                raise ValueError(f"{option} {file} is a folder; name a file")
            if file and not file.absolute().parent.is_dir():
                raise ValueError(f"the folder of {option} {file} does not exist")
        if self.save_model and self.save_model.exists():
            raise ValueError(f"--save-model {self.save_model} exists; name a new folder")
        for place in filter(None, (self.save, self.save_model, self.rows)):
            check_writable(place.absolute().parent, "the folder")


@app.command(
    help=examples(
        "Change one fact of a model and compare its answers before and after: the fact, "
        "paraphrases, multi-hop consequences, and facts that must stay: of the same relation, "
        "about names that end in the same token, of other relations. Or, with --cases, the edits "
        "of a file, case by case.\n\n"
        "Exit status: 0 edited; 3 not edited; 4 edited, but the world that the model learned has "
        "no such name or relation; 2 wrong use; 1 other errors.",
        'edit --editor ace --subject France --prompt "The capital of {} is" --target Rome',
        'edit --editor memit --subject "Tim Duncan" --prompt "{} plays the sport of" '
        "--target cricket --save update.safetensors",
        'edit -m smollm2-135m -e rome --subject France --prompt "The capital of {} is" '
        "--target Rome --layers 5",
        "edit -e rome --cases counterfact.json --first 50 --rows rows.csv",
    )
)
def edit(  # noqa: PLR0913 - options
    subject: Annotated[
        str | None, typer.Option("--subject", "-s", help="Whom or what the fact is about.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", help="A cloze sentence with {} for the subject, up to the answer."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="The new answer.")] = None,
    hop: Annotated[
        list[str] | None,
        typer.Option(
            "--hop",
            help="A multi-hop prompt that ends in the fact, for ACE and IFMET: 'The sport of the "
            "spouse of X is'. Repeatable. Default: what the world knows.",
        ),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            "--cases",
            help="Instead of one fact: a file of MQuAKE, CounterFact, zsRE, RippleEdits or "
            "EasyEdit, JSON or a record a line.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--form",
            help="Of --cases, if it is not what it looks like: mquake, counterfact, zsre, "
            "zsre-alt (the new object is alt), easyedit, rippleedits.",
        ),
    ] = "",
    first: Annotated[
        int, typer.Option("--first", help="Cases of the file, from its start; 0: all.", min=0)
    ] = FIRST,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", help="Of --cases: keep every answer in this CSV file."),
    ] = None,
    editor: Annotated[
        str,
        typer.Option(
            "--editor",
            "-e",
            help="ft, kn, rome, memit, pmet, alphaedit, ifmet, ace, locatedace or releasedace.",
        ),
    ] = "ace",
    model: Model = "gptj-mini",
    unrelated: Annotated[
        int,
        typer.Option(
            "--unrelated", help="Facts that must stay, of each of the three kinds.", min=0
        ),
    ] = 8,
    save: Annotated[
        Path | None, typer.Option("--save", help="Keep the update in this file.")
    ] = None,
    save_model: Annotated[
        Path | None,
        typer.Option("--save-model", help="Keep the edited model in this new folder, with a card."),
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
    # What can be wrong is refused before anything heavy is imported, or anything large is read.
    fact = {"--subject": subject, "--prompt": prompt, "--target": target}
    alone = {"--hop": hop, "--save": save, "--save-model": save_model}
    _check_what(cases, fact, alone, rows, form)
    places = Places(save, save_model, rows)
    places.check()
    method = _method(
        editor, model, settings, (layers, query_layers, value_layers), texts, dtype, start
    )
    if cases:
        return _edit_cases(method, _cases(cases, form, first), rows, seed)
    asked = Edit(subject or "", prompt or "", target or "", hops=tuple(hop or ()))
    if hop and method.editor not in early.HOPS:
        raise ValueError(f"{method.editor} takes no multi-hop prompts; ACE and IFMET do")
    early.model(model)
    return _edit_one(method, asked, places, unrelated, seed)


def _check_what(cases: Path | None, fact: dict, alone: dict, rows: Path | None, form: str) -> None:
    """Raises ValueError unless either one fact is given, whole, or a file of cases."""
    given = [name for name, value in fact.items() if value is not None]
    if cases and (also := [*given, *(name for name, value in alone.items() if value)]):
        raise ValueError(f"--cases and {', '.join(also)}: give one fact, or a file of cases")
    if not cases and (also := [n for n, v in (("--rows", rows), ("--form", form)) if v]):
        raise ValueError(f"{', '.join(also)} is of --cases; give a file of cases")
    if not cases and (missing := [name for name in fact if name not in given]):
        raise ValueError(f"missing {', '.join(missing)}: give one fact, or a file with --cases")


def _method(
    editor: str,
    model: str,
    settings: Path | None,
    layers: tuple[str, str, str],
    texts: Path | None,
    dtype: str,
    start: str,
) -> Method:
    """What was asked for, checked as far as can be without the model."""
    from ..world.prose import paragraphs

    name = early.editor_named(editor)
    options = ("--layers", "--query-layers", "--value-layers")
    groups = tuple(early.layers(*pair) for pair in zip(options, layers, strict=True))
    early.groups(name, *groups)
    early.dtype(dtype)
    if settings:
        try:
            settings.read_bytes()
        except OSError as error:
            raise ValueError(f"{settings} cannot be read: {error.strerror}") from None
    own = paragraphs(texts) if texts else None
    return Method(name, model, settings, groups, own, dtype, start)


def _cases(path: Path, form: str, first: int) -> list[Any]:
    from ..world.benchmarks import read_edit_cases
    from ..world.world import load_world

    found = read_edit_cases(path, load_world(), form)
    if not found:
        raise ValueError(f"{path.name} holds no case that can be edited")
    return found[:first] if first else found


def _edit_one(method: Method, asked: Edit, places: Places, unrelated: int, seed: int) -> None:
    """One edit: made, kept, asked, shown; ends with the exit status of its outcome."""
    from ..measures import typed_edit
    from ..study.card import card, save_edited
    from ..world.world import load_world

    # 1. The model and its settings; what it has never heard of is said before minutes of work.
    world = load_world()
    asked = typed_edit.edit_of_prompt(
        world, asked.subject, asked.prompt, asked.target_new, asked.hops
    )
    host, editor, source = method.load()
    typed_edit.check_new(host, asked)
    if unknown := typed_edit.unknown_names(host, world, asked):
        say(f"[yellow]{escape(host.name)} learned a world with {escape(' and '.join(unknown))}")
    if typed_edit.takes_hops(editor):
        asked = typed_edit.with_hops(world, asked)
    line = typed_edit.method_line(method.editor, editor, [asked], source)
    say(escape(line))
    # 2. The edit, kept at once.
    moments = method.moments(host, world, editor)
    with waiting(f"{method.editor} edits {method.model}"):
        update = editor(host, [asked], moments)
        if places.save:
            update.save(places.save)
        # 3. What it did; the model's folder says it, before anything is shown.
        answers = typed_edit.ask(host, world, asked, update, unrelated, seed)
        what = typed_edit.outcome(host, world, asked, update, answers)
        if places.save_model:
            counts = {kind: answers.share(kind) for kind in answers.table.kind.unique()}
            text = card(host, update, editor, what.line, counts, [line])
            save_edited(host, update, places.save_model, text)
    say(probe_table(answers.table))
    say(ideal_line(answers))
    say(norms_line(typed_edit.sizes(host, update)))
    if update.attn:
        say("attention: " + norms_line(typed_edit.sizes(host, update, "attn")))
    for place in filter(None, (places.save, places.save_model)):
        say(f"kept in {escape(str(place))}")
    color = {"edited": "green", "failed": "red", "outside": "yellow"}[what.status]
    say(f"[bold {color}]{escape(what.line)}")
    raise typer.Exit(STATUS[what.status])


def _edit_cases(method: Method, cases: Sequence[Any], rows: Path | None, seed: int) -> None:
    """The cases of a file, each on the model as it is; exit status 0 if any was edited."""
    early.model(method.model)
    from ..measures import typed_edit
    from ..study import benchmark
    from ..world.world import load_world

    world = load_world()
    host, editor, source = method.load()
    if typed_edit.takes_hops(editor):
        cases = [_with_hops(world, case) for case in cases]
    edits = [edit for case in cases for edit in case.edits]
    say(escape(typed_edit.method_line(method.editor, editor, edits, source)))
    cases, n_long = benchmark.readable(host, cases)
    if n_long:
        say(f"[yellow]{n_long} prompts are longer than {escape(host.name)} reads: not asked")
    moments = method.moments(host, world, editor)
    with bar("cases") as tell:
        found = benchmark.judge_cases(host, editor, cases, moments, progress=tell)
    if rows:
        found.to_csv(rows, index=False)
    say(cases_table(benchmark.summary(found, seed), f"{method.editor} on {method.model}"))
    if rows:
        say(f"kept in {escape(str(rows))}")
    n, of = benchmark.edited(found)
    color = "green" if n == of else "yellow" if n else "red"
    say(f"[bold {color}]edited {n} of {of} cases: {escape(host.name)} says all their new objects")
    raise typer.Exit(STATUS["edited" if n else "failed"])


def _with_hops(world: Any, case: Any) -> Any:
    """A case whose edits have multi-hop prompts, where the world has some that are not asked."""
    from ..measures import typed_edit

    asked = [question.prompt for probe in case.probes for question in probe.questions]
    return replace(
        case, edits=tuple(typed_edit.with_hops(world, edit, asked) for edit in case.edits)
    )


# ---------------------------------------------------------------------- where knowledge is


@app.command(
    help=examples(
        "Find the query and the value layers of a model by held-out two-hop questions, by single "
        "facts, or by the facts of a file.\n\n"
        "Scores are means per question, in nats: what a layer's neurons add to the answer's "
        "log-probability (value), and how far they point along the keys of such neurons (query)."
        "\n\n"
        "Categories: NN nationality, CT continent, LG language, CP capital, LS leadership, AT "
        "author, ST sport and team, CF company founder.",
        "locate",
        "locate --category CP",
        "locate --category ST --single --model gptj-mini --top 3",
        "locate --facts counterfact.json -m smollm2-135m",
    )
)
def locate(  # noqa: PLR0913 - options
    category: Annotated[
        str | None,
        typer.Option(
            "--category", "-c", help="NN CT LG CP LS AT ST or CF, of the last hop; default: all."
        ),
    ] = None,
    single: Annotated[
        bool, typer.Option("--single", help="Ask single facts instead of two-hop questions.")
    ] = False,
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts",
            help="Ask the facts of a file instead: LAMA's T-REx, ParaRel's folder, or any file "
            "that edit --cases takes.",
        ),
    ] = None,
    model: Model = "gptj-mini",
    n: Annotated[
        int, typer.Option("--questions", "-n", help="Questions asked, at most.", min=1)
    ] = 96,
    top: Annotated[int, typer.Option("--top", help="Layers named of each kind.", min=1)] = 3,
    dtype: Dtype = "float32",
    start: Start = "",
    seed: Seed = 0,
):
    early.category(category, single)
    if facts and (category or single):
        raise ValueError("--facts, and --category or --single: give one of the two")
    own = _facts(facts, n, seed) if facts else []
    cli_options.check_model(model, dtype)
    from ..attribution import layers
    from ..measures.typed_locate import located
    from ..world.world import load_world

    asked = own or layers.questions(load_world(), n, seed, category, single)
    host = cli_options.load_model(model, dtype=dtype, start=start)
    with bar("questions") as tell:
        found = located(host, asked, top, tell)
    what = facts.name if facts else category or "all categories"
    kind = "facts" if facts or single else "two-hop questions"
    few = f", {n} were asked for" if len(asked) < n else ""
    say(layer_table(f"{model}: {what}, nats a question, mean of {len(asked)} {kind}{few}", found))
    for role in ("query", "value"):
        if close := found.close(role):
            others = ", ".join(map(str, close))
            say(f"[yellow]{role}: not told apart from the last of the top: layers {others}")
    color = "default" if found.n_answered else "red"
    says = f"{host.name} answers {found.n_answered} of {found.n_questions} of them"
    doubt = "" if found.n_answered else ": where it holds them cannot be told"
    say(f"[{color}]{escape(says)}{doubt}")
    say(escape(f"to edit there: acelib edit -m {model} -e ace {found.options} ..."))


def _facts(path: Path, n: int, seed: int) -> list[tuple[str, str]]:
    """Prompts and answers of a file, ``n`` of them at random."""
    from random import Random

    from ..world.fact_files import read_facts
    from ..world.world import load_world

    found = [(prompt, fact.object) for fact, prompt in read_facts(path, load_world())]
    return Random(seed).sample(found, min(n, len(found)))
