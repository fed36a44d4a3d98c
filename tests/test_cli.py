"""The command line: help with examples, one clear line for a mistake, exit codes, and each command
wired to the library.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from test_train import RECIPE
from test_tune import SPACES, fake_comparison, fake_run
from typer.testing import CliRunner

from acelib.bench.speed import Timing
from acelib.bench.tiny import make_tiny, tiny_tokenizer
from acelib.book import cli, console
from acelib.editing.search import Objective
from acelib.editors import ACE, MEMIT, PMET
from acelib.editors.presets import preset, presets, save
from acelib.measures.typed_locate import Layers
from acelib.provenance import ROOT
from acelib.study import recheck, registry, rows
from acelib.study.rows import Experiment, Folders, Series
from acelib.study.stats import Mean
from acelib.training.bars import BARS

BENCHMARKS = Path(__file__).parent / "benchmarks"
COMMANDS = (
    "run",
    "book",
    "certify",
    "verify",
    "edit",
    "locate",
    "tune",
    "fetch",
    "pretrain",
    "bench",
)


def call(*words: str):
    return CliRunner().invoke(cli.app, words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command):
    result = call(command, "--help")
    assert (
        result.exit_code == 0
        and "Examples" in result.output
        and f"acelib {command}" in result.output
    )
    assert command in call("--help").output


EDIT = (
    "edit",
    "--subject",
    "Tim Duncan",
    "--prompt",
    "{} plays the sport of",
    "--target",
    "tennis",
)


@pytest.mark.parametrize(
    "words, said",
    [
        (("run", "no_such_chapter"), "unknown notebook 'no_such_chapter'; known:"),
        (("run",), "name the chapters to run, or give --all"),
        (("run", "a", "--all"), "name the chapters to run, or give --all"),
        (("run", "a", "-p", "n"), "parameter 'n' has no value"),
        (
            ("run", "a", "-p", "n", "1", "--update"),
            "--update writes the book, into notebooks/ and at its default parameters; leave it out",
        ),
        (("run", "--all", "--update", "--name", "x"), "--update writes the book, into notebooks/"),
        (("run", "03_ace", "-p", "n_cases", "[" * 5000), "parameter 'n_cases': '[[[[[[[["),
        (
            ("run", "03_ace", "-p", "n_cases", "9" * 5000),
            "'n_cases' of 03_ace must be a whole numb",
        ),
        (("run", "03_ace", "-p", "n_cases", "null"), "'n_cases' of 03_ace must be a whole number"),
        (("run", "03_ace", "-p", "n_cases", "0"), "must be a whole number greater than 0 (default"),
        (("run", "03_ace", "-p", "editors", "[]"), "'editors' of 03_ace must be a list of one or"),
        (("run", "03_ace", "-p", "cases_", "1"), "03_ace has no parameter 'cases_'; known: models"),
        (("run", "03_ace", "-p", "cases", "no.json"), "'cases': there is no file 'no.json'"),
        (("run", "a", "--name", "x" * 300), "is not a folder name; use at most 60 letters, digits"),
        (("run", "x" * 20_000), "unknown notebook 'xxxxx"),
        (("run", "--all", "--profile", "huge"), "unknown profile 'huge'; known: paper, quick"),
        (
            ("run", "--all", "--profile", "paper", "--update"),
            "--update writes the book, into notebooks/ and at its default parameters",
        ),
        (("run", "a", "--name", "../up"), "run name '../up' is not a folder name"),
        (("certify", "no_such"), "unknown experiment 'no_such'; known:"),
        (("verify", "no_such"), "unknown experiment 'no_such'; known:"),
        (("book", "--runs", "no_such_run"), "runs/no_such_run holds no executed chapter"),
        (
            (*EDIT, "--editor", "surgeon"),
            "unknown editor 'surgeon'; known: FT, KN, ROME, MEMIT, PMET, AlphaEdit, IFMET, ACE",
        ),
        (
            (*EDIT, "--model", "no-such-model"),
            "model 'no-such-model' cannot be loaded: it is neither shipped",
        ),
        (
            (*EDIT, "--save", "no/such/folder/update"),
            "the folder of --save no/such/folder/update does not exist",
        ),
        ((*EDIT, "--save", "/dev/null/update"), "the folder of --save /dev/null/update does not"),
        ((*EDIT, "--save-model", "/dev/null/x/y"), "the folder /dev/null/x cannot be written: Not"),
        (("pretrain", "--out", "/dev/null/x"), "--out /dev/null/x cannot be written: Not a direct"),
        (("pretrain", "--out", "x" * 300), "cannot be written: File name too long"),
        ((*EDIT[:3], "--prompt", "plays the sport of", "--target", "tennis"), "exactly one '{}'"),
        ((*EDIT[:5], "--target", " "), "target_new of an edit must be a non-empty text"),
        (("edit", "--subject", " ", *EDIT[3:]), "subject of an edit must be a non-empty text"),
        (
            ("edit", "--subject", "A", "--prompt", "{} and {} play", "--target", "tennis"),
            "exactly one '{}'",
        ),
        (("locate", "--category", "XX"), "category 'XX' is none of NN"),
        (
            ("locate", "--category", "AT"),
            "no held-out chain of two hops ends in a fact of category AT; ask single facts",
        ),
        (
            ("locate", "--model", "no-such-model"),
            "model 'no-such-model' cannot be loaded: it is neither shipped",
        ),
        (
            ("tune", "--editors", "ace,surgeon"),
            "unknown editor 'surgeon'; known: FT, KN, ROME, MEMIT, PMET, AlphaEdit, IFMET, ACE",
        ),
        (("pretrain", "no-such-recipe"), "unknown recipe 'no-such-recipe'; known: gptj-mini"),
        (
            ("pretrain", "--device", "abacus"),
            "device 'abacus' is not on this machine; kinds are: cpu, cuda",
        ),
        (("pretrain", "--evaluate", "no-such-model"), "model 'no-such-model' cannot be loaded"),
        (("bench", "juggling"), "unknown benchmark 'juggling'; known: targets"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said):
    result = call(*words)
    assert (
        result.exit_code == 2
        and said in result.stderr
        and result.stderr.count("\n") == 1
        and len(result.stderr) < 1500
        and "Traceback" not in result.output
    )


def test_parameters_are_pairs_of_a_name_and_a_json_value(monkeypatch):
    given = {}

    def fake(names, chosen, folder, force, sizes, jobs):
        return given.update(chosen, names=names, folder=folder.name, jobs=jobs) or []

    monkeypatch.setattr("acelib.book.chapters.run", fake)
    monkeypatch.setattr("acelib.book.contents.find", Path)
    monkeypatch.setattr("acelib.book.contents.checked_parameters", lambda *_: {})
    words = (
        "-j",
        "1",
        "-p",
        "n",
        "10",
        "-p",
        "models",
        '["x=y"]',
        "--parameter",
        "text=plain words",
        "--name",
        "quick",
    )
    assert call("run", "a", "b", *words).exit_code == 0
    assert given == {
        "n": 10,
        "models": ["x=y"],
        "text": "plain words",
        "names": ["a", "b"],
        "folder": "quick",
        "jobs": 1,
    }


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("no [layer] 99"), 2, "no [layer] 99"),
        (KeyboardInterrupt(), 130, "rerun the same command to resume"),
        (ModuleNotFoundError("no", name="papermill"), 1, "pip install 'acelib[book]'"),
        (OSError(28, "No space left on device", "/runs/x"), 1, "No space left on device: /runs/x"),
        (OSError("cannot reach the hub"), 1, "cannot reach the hub"),
        (SafetensorError("IoError: No space left"), 1, "IoError: No space left"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(monkeypatch, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("acelib.book.chapters.run", fail)
    result = call("run", "03_ace")
    assert result.exit_code == code and said in result.stderr and "Traceback" not in result.output


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("acelib.book.chapters.run", lambda *_, **__: 1 / 0)
    assert isinstance(call("run", "03_ace").exception, ZeroDivisionError)


def test_strays_are_named_when_all_chapters_run(monkeypatch, tmp_path):
    monkeypatch.setattr("acelib.book.chapters.run", lambda names, *_, **__: [])
    monkeypatch.setattr("acelib.book.contents.strays", lambda: [tmp_path / "03_ace-Copy1.ipynb"])
    said = "03_ace-Copy1.ipynb is in no part of _toc.yml: skipped"
    assert said in call("run", "--all").output and said not in call("run", "03_ace").output


def test_a_parameter_that_names_a_file_gets_its_whole_path(monkeypatch, tmp_path):
    """Chapters run in another folder than the one the name was typed in."""
    given = []
    monkeypatch.setattr(
        "acelib.book.chapters.run", lambda names, changes, *_, **__: given.append(changes) or []
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text("[]")
    assert call("run", "03_ace", "-p", "cases", "own.json", "--name", "x").exit_code == 0
    assert given == [{"cases": str(tmp_path / "own.json")}]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(monkeypatch):
    def full(dir, buffering):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("acelib.files.tempfile.TemporaryFile", full)
    monkeypatch.setattr("acelib.book.chapters.run", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("acelib.training.train.train", lambda *_, **__: 1 / 0)
    for words in (("run", "03_ace"), ("run", "03_ace", "--update"), ("pretrain",), ("ablate",)):
        result = call(*words)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, words
        assert "cannot be written: No space left on device" in result.stderr


PRINTS = """
import sys
from acelib.book import cli, console
@cli.app.command()
def prints():
    for i in range(3000):
        console.say(f"Łódź {i}", console.Table("ł", title="a table"))
    console.fail("Łódź", 2) if sys.argv[2:] else open(sys.argv[0], "w").write("done")
cli.app()
"""


def prints(tmp_path, *words, **options):
    program = PRINTS.replace("sys.argv[0]", repr(str(tmp_path / "done")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-c", program, "prints", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, **options)


def test_letters_that_a_terminal_does_not_have_are_replaced(tmp_path):
    process = prints(tmp_path, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and not err and (tmp_path / "done").exists()
    assert out.decode("cp1252").startswith("?ód? 0")


def test_a_closed_pipe_is_no_error_and_the_work_goes_on(tmp_path):
    process = prints(tmp_path, stderr=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_tables_show_plain_data(capsys):
    rows = [
        ("fact", "A plays", "chess", "golf", "chess.", True),
        ("unrelated", "B [x] plays", "go", "go", "ludo", False),
    ]
    console.say(
        console.probe_table(
            pd.DataFrame(rows, columns=["kind", "prompt", "ideal", "before", "after", "ok"])
        )
    )
    scores = {"query": [0.1, 0.9], "value": [0.5, 0.2]}
    means = {role: [Mean(x, x - 1, x + 1, 8) for x in row] for role, row in scores.items()}
    console.say(console.layer_table("all", Layers(means, {"query": (1,), "value": (0,)}, 8, 8)))
    console.say(console.bars_table("mini", {"cot_2": 0.961, "direct_2": 0.5}, {"cot_2": 0.97}))
    shown = capsys.readouterr().out
    assert all(
        word in shown
        for word in (
            "golf",
            "chess.",
            "ludo",
            "B [x] plays",
            "0.900 [-0.100, 1.900]",
            "top",
            "96.1",
            "97",
            "50.0",
        )
    )


def test_a_training_row_in_short():
    row = dict(
        step=50,
        steps=200,
        tokens=50_000,
        loss=1.23456,
        schedule=1.0,
        tokens_per_s=1000,
        cloze=0.987,
        cot_2=0.5,
    )
    assert (
        console.training_line(row)
        == "step 50/200, loss 1.235, 1,000 tokens/s, cloze 99 cot_2 50, 2 min left"
    )  # 150,000 tokens to go


# ---------------------------------------------------------------------- commands, on tiny models


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A tiny model under any name, few texts, a cache and a repository of their own."""
    lm = make_tiny("gptj", torch.float32)
    monkeypatch.setattr("acelib.editing.moments.user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr("acelib.model.loading.load", lambda *_: lm)
    monkeypatch.setattr("acelib.book.early.model", lambda name: None)
    monkeypatch.setattr(
        "acelib.study.experiments.documents",
        lambda world, n, seed=0: [f"Text number {i} of {n}." for i in range(40)],
    )
    monkeypatch.setattr("acelib.provenance.ROOT", tmp_path)
    return lm


@pytest.fixture
def quick(host, tmp_path):
    editor = MEMIT(layers=(1, 2), weight=2.0, objective=Objective(steps=3), n_prefixes=0)
    save({"MEMIT": editor}, tmp_path / "data" / "presets" / "mini.toml", host.fingerprint)


@pytest.mark.parametrize(
    "subject, prompt, kinds",
    [
        ("Tim Duncan", "{} plays the sport of", {"fact", "paraphrase", "multi-hop"}),
        ("Zork Blip", "{} likes the taste of", {"fact"}),
    ],
)
def test_edit_shows_answers_and_keeps_the_update(host, quick, tmp_path, subject, prompt, kinds):
    before = {name: value.clone() for name, value in host.model.state_dict().items()}
    result = call(
        "edit",
        "-e",
        "memit",
        "-s",
        subject,
        "--prompt",
        prompt,
        "-t",
        "cricket",
        "-m",
        "mini",
        "--unrelated",
        "2",
        "--save",
        str(tmp_path / "update"),
    )
    assert result.exit_code == 3, result.output  # three steps do not edit a random model
    summary = next(
        line for line in result.stdout.splitlines() if line.startswith("ideal after the edit: ")
    )
    assert {kind for kind in ("fact", "paraphrase", "multi-hop") if f" {kind} " in summary} == kinds
    assert "other relations: the model knew none of 8 that were tried" in summary
    assert "MEMIT on layers 1,2; settings of mini.toml" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("not edited: tiny-gptj ") and "the probability of 'cricket'" in last
    assert "norm of the change by layer: 1: " in result.stdout and (tmp_path / "update").is_file()
    assert all(torch.equal(value, before[name]) for name, value in host.model.state_dict().items())
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2  # one moment a layer


def test_an_update_is_kept_before_anything_is_printed(host, quick, monkeypatch, tmp_path):
    monkeypatch.setattr("acelib.book.cli_edit.probe_table", lambda answers: 1 / 0)
    places = ("--save", str(tmp_path / "update"), "--save-model", str(tmp_path / "model"))
    result = call(*EDIT, "-e", "memit", "-m", "mini", "--unrelated", "1", *places)
    assert isinstance(result.exception, ZeroDivisionError)
    assert (tmp_path / "update").is_file() and (tmp_path / "model" / "config.json").is_file()
    said = (tmp_path / "model" / "README.md").read_text()
    assert "| Tim Duncan plays the sport of | basketball | tennis |" in said
    assert "not edited: tiny-gptj" in said and "[MEMIT]" in said


def test_an_own_model_is_edited_with_derived_settings_layers_of_ones_own_or_a_file(host, tmp_path):
    few = (*EDIT, "-e", "memit", "-m", "mini", "--unrelated", "1")
    result = call(*few)
    said = " ".join(result.output.split())
    assert result.exit_code == 3, result.output
    assert "MEMIT has no settings for 'tiny-gptj': derived from its 4 layers" in said
    assert "rules from models of 28 to 48 layers" in said
    result = call(*few, "--layers", "2-3")
    assert "norm of the change by layer: 2: " in result.output and ", 3: " in result.output
    (tmp_path / "own.toml").write_text("[MEMIT]\nlayers = [3]\nweight = 7.0\n")
    (tmp_path / "own.txt").write_text("One text.\n\nAnother one\nof two lines.\n")
    own = ("--settings", str(tmp_path / "own.toml"), "--texts", str(tmp_path / "own.txt"))
    result = call(*few, *own)
    assert result.exit_code == 3 and "by layer: 3: " in result.output, result.output
    assert "derived" not in result.output


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("counterfact.json", ("fact", "paraphrase", "neighbour")),
        ("mquake.jsonl", ("fact", "2 prompts are longer than tiny-gptj reads: not asked")),
        ("rippleedits.json", ("alias", "composition I", "0 of 1")),
    ],
)
def test_edit_takes_the_cases_of_a_file(host, quick, tmp_path, name, kinds):
    rows = tmp_path / "rows.csv"
    words = ("--cases", str(BENCHMARKS / name), "-e", "memit", "-m", "mini", "--rows", str(rows))
    result = call("edit", *words)
    assert result.exit_code == 3, result.output
    assert all(kind in result.stdout for kind in kinds)
    assert "edited 0 of 2 cases" in result.stdout and f"kept in {rows}" in result.stdout
    assert {"case", "kind", "before", "after"} <= set(pd.read_csv(rows))
    result = call("edit", *words, "--first", "1")
    assert "edited 0 of 1 cases" in result.stdout


def test_ace_says_which_it_is_and_takes_multi_hop_prompts(host, tmp_path):
    stage = MEMIT(layers=(1,), weight=2.0, objective=Objective(steps=2), n_prefixes=0)
    ace = ACE(query=stage, value=replace(stage, layers=(2,), position="last"))
    save({"ACE": ace}, tmp_path / "data" / "presets" / "mini.toml", host.fingerprint)
    words = ("edit", "-s", "Zork", "--prompt", "{} likes the taste of", "-t", "cricket")
    result = call(*words, "-m", "mini", "--unrelated", "0")
    said = " ".join(result.stdout.split())
    assert (
        "ACE writes value layers 2 at the prompt's last token by 1 single-hop and 0 multi" in said
    )
    assert (
        "then query layers 1 at the subject's last token by 1 single-hop prompt; settings" in said
    )
    assert "layers found by search, not by attribution" in said
    assert "without multi-hop prompts it is not the published method: give some with --hop" in said
    hop = ("--hop", "The taste that the friend of Ann likes is", "--query-layers", "0")
    result = call(*words, "-m", "mini", "--unrelated", "0", *hop)
    said = " ".join(result.stdout.split())
    assert "by 1 single-hop and 1 multi-hop prompts, then query layers 0" in said
    assert "layers as you say" in said and "multi-hop, told 0 of 1" in said
    known = (*EDIT, "-m", "mini", "--unrelated", "0")
    assert re.search(r"1 single-hop and [1-4] multi-hop prompts", call(*known).stdout) is None
    spouse = ("edit", "-s", "France", "--prompt", "The capital of {} is", "-t", "Rome")
    said = " ".join(call(*spouse, "-m", "mini", "--unrelated", "0").stdout.split())
    assert "by 1 single-hop and 4 multi-hop prompts" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (("--layers", "7-4"), "--layers '7-4' names no layer"),
        (("--layers", "a"), "--layers 'a' must be layers such as 4-7 or 4,6"),
        (("--layers", "9"), "layer 9 does not exist"),
        (("--hop", "The sport of Ann is"), "MEMIT takes no multi-hop prompts; ACE and IFMET do"),
        (("-e", "ace", "--hop", " "), "a multi-hop prompt is empty"),
        (("--cases", "x.json"), "--cases and --subject, --prompt, --target: give one fact, or a"),
        (("--rows", "x.csv"), "--rows is of --cases"),
        (("--query-layers", "1"), "MEMIT has no query and value layers"),
        (("-e", "ace", "--layers", "1"), "ACE has query and value layers"),
        (("-e", "kn", "--layers", "1"), "KN has no layers: it finds neurons"),
        (("-e", "rome", "--layers", "1-2"), "ROME writes one layer, got [1, 2]"),
        (("--settings", "nowhere.toml"), "nowhere.toml cannot be read: No such file"),
        (("--texts", "nowhere.txt"), "nowhere.txt cannot be read: No such file"),
        (("--dtype", "int8"), "dtype 'int8' is unknown; allowed: float32, bfloat16"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(host, words, said):
    result = call(*EDIT, "-m", "mini", "-e", "memit", "--unrelated", "0", *words)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output


@pytest.mark.parametrize(
    "words, said",
    [
        (("-n", "3"), "mini: all categories, nats a question, mean of 3 two-hop questions"),
        (("-c", "ST", "--single", "-n", "2"), "mini: ST, nats a question, mean of 2 facts"),
        (("--facts", str(BENCHMARKS / "counterfact.json")), "mean of 2 facts, 96 were asked for"),
        (("--facts", str(BENCHMARKS / "TREx" / "P36.jsonl"), "-n", "1"), "P36.jsonl, nats"),
    ],
)
def test_locate_ranks_the_layers(host, words, said):
    result = call("locate", "-m", "mini", "--top", "2", *words)
    shown = " ".join(result.stdout.split())
    assert result.exit_code == 0 and said in shown and "top" in shown, result.output
    assert "tiny-gptj answers 0 of" in shown and "where it holds them cannot be told" in shown
    assert re.search(r"acelib edit -m mini -e ace --query-layers \d,\d --value-layers \d,\d", shown)


def test_tune_keeps_the_trials_and_the_presets(host, monkeypatch, tmp_path):
    monkeypatch.setattr("acelib.study.tune.run", fake_run)
    monkeypatch.setattr("acelib.study.tune.comparison", fake_comparison)
    monkeypatch.setattr("acelib.study.tune.spaces", lambda *_: SPACES)
    monkeypatch.setattr("acelib.study.tune.identification", lambda lm, world, n, seed: [None] * n)
    result = call(
        "tune", "-m", "models/Mini", "--editors", "memit, pmet", "--trials", "2", "--cases", "5"
    )
    assert result.exit_code == 0, result.output
    assert "MEMIT: 0.300 on 5 cases: layers=(1,), weight=3.0" in result.stdout.splitlines()
    kept = {"MEMIT": MEMIT(layers=(1,), weight=3.0), "PMET": PMET(layers=(1,), weight=1.0)}
    assert presets(tmp_path / "data" / "presets" / "mini.toml") == kept
    assert preset("PMET", host) == kept["PMET"]  # what was found is what is taken from now on
    assert list(pd.read_csv(tmp_path / "data" / "presets" / "mini.csv").editor) == [
        "MEMIT",
        "MEMIT",
        "PMET",
    ]


def test_pretrain_interrupted_is_resumed_by_the_same_command(monkeypatch, tmp_path):
    measured = []

    def measure(lm, world, **sizes):
        measured.append(lm.n_layers)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"cloze": 0.25}

    monkeypatch.setattr("acelib.training.train.make_tokenizer", lambda *_: tiny_tokenizer())
    monkeypatch.setattr("acelib.training.train.RECIPES", {"gptj-mini": RECIPE})
    monkeypatch.setattr("acelib.training.bars.measure", measure)
    words = (
        "pretrain",
        "gptj-mini",
        "--out",
        str(tmp_path),
        "--steps",
        "4",
        "--every",
        "2",
        "--device",
        "cpu",
    )
    cut = call(*words)
    assert (
        cut.exit_code == 130
        and "rerun the same command to resume" in cut.stderr
        and "step 2/4, loss" in cut.stdout
    )
    assert not (tmp_path / "config.json").exists()
    again = call(*words)
    assert (
        again.exit_code == 0
        and "step 2/4" not in again.stdout
        and "step 4/4, loss" in again.stdout
        and "cloze 25" in again.stdout
    )
    assert [
        json.loads(line)["step"] for line in (tmp_path / "train_log.jsonl").read_text().splitlines()
    ] == [2, 4]
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "share, said", [(0.5, "missed: cloze, qa, cloze_unseen"), (1.0, "all bars are reached")]
)
def test_pretrain_evaluate_names_the_bars_that_are_missed(host, monkeypatch, share, said):
    monkeypatch.setattr(
        "acelib.training.bars.measure", lambda lm, world: dict.fromkeys([*BARS, "direct_2"], share)
    )
    result = call("pretrain", "--evaluate", "mini")
    assert result.exit_code == 0 and said in result.stdout and "must reach" in result.stdout


def test_bench_shows_its_rows(monkeypatch):
    rows = [Timing("targets", 9.0, 0.5, note="4 facts [x]")]
    monkeypatch.setattr("acelib.bench.speed.bench", lambda what, progress: rows * len(what))
    shown = call("bench", "targets").stdout
    assert all(word in shown for word in ("targets", "18.0", "0.5", "[x]"))


# ---------------------------------------------------------------------- rows that ship


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Rows of an experiment of older code that ship; gives a function that breaks the code."""
    state = {"off": 0}

    def build(name):
        def compute(items):
            return [[{"square": i * i + state["off"]}] for i in items]

        names, items = {"model": "m", "editor": "e"}, {str(i): i for i in range(30)}
        return Experiment("03_ace", (Series(names, {}, state.get("code", ()), items, compute),))

    folders = Folders(tmp_path / "results", tmp_path / "runs")
    for module in (rows, recheck):
        monkeypatch.setattr(module, "FOLDERS", folders)
    monkeypatch.setattr(registry, "EXPERIMENTS", {"03_ace": "json:dumps"})
    monkeypatch.setattr(registry, "experiment", build)
    monkeypatch.setenv(rows.UPDATE, "1")
    rows.table(build("03_ace"))
    return state


def test_certify_and_verify(shipped):
    result = call("certify", "--jobs", "1")
    assert result.exit_code == 0 and "its code is today's; nothing to certify" in result.output
    shipped["code"] = ("acelib.records",)
    result = call("certify", "--share", "0.5", "--seed", "3", "--jobs", "1")
    assert result.exit_code == 0 and "at least 5 items of every file, seed 3" in result.output
    assert "03_ace, model m, editor e: certified, 15 recomputed rows agree" in result.output
    assert "03_ace: 30 items recomputed, 0 values differ" in call("verify", "--jobs", "1").output


def test_a_number_that_moved_is_named_and_nothing_is_certified(shipped):
    shipped |= {"code": ("acelib.records",), "off": 1}
    result = call("certify", "03_ace", "--jobs", "1")
    assert result.exit_code == 1 and "not certified, 6 values differ" in result.output
    assert "6 values differ; what they belong to was not certified" in result.stderr
    result = call("verify", "03_ace", "--jobs", "1")
    assert result.exit_code == 1 and "30 values differ" in result.stderr
    said = "03_ace, model m, editor e, item 5: square is kept as 25, computed now it is 26"
    assert said in result.output.replace("\n", " ")
