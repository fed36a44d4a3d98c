"""The command line: help with examples, one clear line for a mistake, exit codes."""

import pytest
from typer.testing import CliRunner

from acelib import cli

COMMANDS = ("run", "book", "edit", "locate", "pretrain", "bench")


def call(*words: str):
    return CliRunner().invoke(cli.app, words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command):
    result = call(command, "--help")
    assert result.exit_code == 0 and "Examples" in result.output and f"acelib {command}" in result.output
    assert command in call("--help").output


EDIT = ("edit", "--subject", "Tim Duncan", "--prompt", "{} plays the sport of", "--target", "tennis")


@pytest.mark.parametrize("words, said", [
    (("run", "no_such_chapter"), "unknown notebook 'no_such_chapter'; known:"),
    (("run",), "name the chapters to run, or give --all"),
    (("run", "a", "--all"), "name the chapters to run, or give --all"),
    (("run", "a", "-p", "n"), "parameter 'n' has no value"),
    (("run", "a", "-p", "n", "1", "--update"), "--update writes the book at its default parameters"),
    (("run", "a", "--name", "../up"), "run name '../up' is not a folder name"),
    (("book", "--runs", "no_such_run"), "runs/no_such_run holds no executed chapter"),
    ((*EDIT, "--editor", "surgeon"), "unknown editor 'surgeon'; known: memit, pmet, ace"),
    ((*EDIT, "--model", "no-such-model"), "'no-such-model'"),
    ((*EDIT[:3], "--prompt", "plays the sport of", "--target", "tennis"), "exactly one '{}'"),
    ((*EDIT[:5], "--target", " "), "target_new of an edit must be a non-empty text"),
    (("locate", "--category", "XX"), "category 'XX' is none of NN"),
    (("pretrain", "no-such-recipe"), "unknown recipe 'no-such-recipe'; known: gptj-mini"),
])
def test_a_mistake_is_one_line_and_exit_code_2(words, said):
    result = call(*words)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1 and "Traceback" not in result.output


def test_parameters_are_pairs_of_a_name_and_a_json_value(monkeypatch):
    given = {}
    fake = lambda names, chosen, folder, force: given.update(chosen, names=names, folder=folder.name) or []
    monkeypatch.setattr("acelib.notebooks.run", fake)
    words = ("-p", "n", "10", "-p", "models", '["x=y"]', "--parameter", "text=plain words", "--name", "quick")
    assert call("run", "a", "b", *words).exit_code == 0
    assert given == {"n": 10, "models": ["x=y"], "text": "plain words", "names": ["a", "b"], "folder": "quick"}


@pytest.mark.parametrize("error, code, said", [
    (ValueError("no [layer] 99"), 2, "no [layer] 99"), (KeyboardInterrupt(), 130, "rerun the same command to resume"),
    (ModuleNotFoundError("no", name="papermill"), 1, "pip install 'acelib[book]'")])
def test_errors_become_one_line_and_an_exit_code(monkeypatch, error, code, said):
    def fail(*_):
        raise error
    monkeypatch.setattr("acelib.notebooks.run", fail)
    result = call("run", "a")
    assert result.exit_code == code and said in result.stderr and "Traceback" not in result.output


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("acelib.notebooks.run", lambda *_: 1 / 0)
    assert isinstance(call("run", "a").exception, ZeroDivisionError)


def test_tables_show_plain_data(capsys):
    rows = [cli.Probe("fact", "A plays", "chess"), cli.Probe("unrelated", "B [x] plays", "go")]
    cli._say(cli.probe_table(rows, ["golf", "go"], ["chess.", "ludo"], lambda text, answer: text.startswith(answer)))
    cli._say(cli.layer_table("all", {"query": [0.1, 0.9], "value": [0.5, 0.2]}, 1))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("golf", "chess.", "ludo", "B [x] plays", "0.900", "top"))
