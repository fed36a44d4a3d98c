"""Ten random wrong uses of every command: one clear sentence each, exit status 2, and no work.

With another ``ACELIB_FUZZ_SEED`` others are tried.
"""

import inspect
from collections.abc import Iterator
from random import Random
from typing import get_args, get_type_hints

import pytest
import typer
from mutations import random
from typer.testing import CliRunner

from acelib.book import cli, cli_options

N = 10
COMMANDS = typer.main.get_command(cli.app).commands
#: what else a command needs, so that one thing alone is wrong
USES = {
    "run": ["03_ace"],
    "edit": ["-s", "A", "--prompt", "{} is", "-t", "B"],
    "fetch": ["smollm2-135m"],
}
#: values that an option, or an argument (""), cannot have, by command
WRONG = {
    "run": {
        "": ["04", "", "03_ace.py", "../03_ace"],
        "-p": ["n_cases=none", "n_cases=-1", "nothing=1", "n_cases", "models=[]", "models=3"],
        "--name": ["../up", "", "a b", "x" * 99],
        "--profile": ["huge", "Paper"],
    },
    "book": {"--runs": ["nothing", "../..", ""]},
    "certify": {"": ["03", "", "x" * 999], "--share": ["2", "-0.1", "half"]},
    "verify": {"": ["03", "all", "[bold]"]},
    "edit": {
        "--subject": ["", " "],
        "--prompt": ["", "A is", "{} and {}"],
        "--target": ["", " \t"],
        "--editor": ["", "mend", "ace,rome"],
        "--model": ["/nowhere/at/all", "a b", "no/such/model/here"],
        "--layers": ["x", "4-", "9-8", "1"],  # of ACE, which has two groups
        "--query-layers": ["-1", "a,b", "1.5"],
        "--settings": ["nowhere.toml"],
        "--texts": ["nowhere.txt"],
        "--dtype": ["int8", ""],
        "--save": ["/nowhere/at/all", "/"],
        "--save-model": ["/dev/null/x", "/"],
        "--cases": ["nowhere.json"],
        "--rows": ["rows.csv"],  # without cases
        "--form": ["mquake"],
    },
    "locate": {
        "--category": ["XX", "", "st", "AT"],
        "--facts": ["nowhere.jsonl"],
        "--model": ["/nowhere/at/all", ""],
        "--dtype": ["int8"],
    },
    "tune": {
        "--editors": ["mend", "ace,mend"],
        "--model": ["/nowhere"],
        "--texts": ["nowhere.txt"],
        "--dtype": ["x"],
    },
    "fetch": {"": ["gpt5", "nowhere.gguf", ""]},
    "pretrain": {"": ["gpt5", ""], "--device": ["abacus", "gpu"], "--out": ["/dev/null/x"]},
    "ablate": {"--only": ["without anything", "", "All"]},
    "bench": {"": ["juggling", "", "0"], "--shape": ["gpt5"], "--dtype": ["int8"]},
}


class Reached(Exception):
    """A command would begin to work."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    def stop(*_, **__):
        raise Reached

    monkeypatch.setattr(cli_options, "load_model", stop)
    for name in (
        "acelib.book.chapters.run",
        "acelib.book.build.build",
        "acelib.bench.speed.bench",
        "acelib.training.ablation.ablate",
        "acelib.training.train.train",
        "acelib.model.fetch.fetch",
        "acelib.study.registry.experiment",
    ):
        monkeypatch.setattr(name, stop)


def wrong_uses(name: str, rng: Random) -> Iterator[tuple[list[str], str]]:
    """Command lines with one fault, and what their refusal must name."""
    use, params = USES.get(name, []), COMMANDS[name].params
    options = [p for p in params if p.opts[0].startswith("-")]
    flags = [p for p in options if getattr(p, "is_flag", False)]
    kinds = get_type_hints(inspect.unwrap(COMMANDS[name].callback))
    numbers = [p for p in options if not {int, float}.isdisjoint(_parts(kinds[p.name]))]
    valued = [p for p in options if p not in flags]
    while True:
        kind = rng.choice(("unknown", "lacks", "flag", "number", "wrong", "wrong", "wrong"))
        if kind == "unknown":
            option = "--" + "".join(rng.choices("qxzjv", k=rng.randint(3, 30)))
            yield [*use, option], option[:9]
        elif kind == "lacks" and valued:
            option = rng.choice(rng.choice(valued).opts)
            yield [*use, option], ""
        elif kind == "flag" and flags:
            option = max(rng.choice(flags).opts, key=len)
            yield [*use, f"{option}=3"], option
        elif kind == "number" and numbers:
            option = max(rng.choice(numbers).opts, key=len)
            value = rng.choice(("many", "", "1e", "--", "0x9", "9" * 999 + "x"))
            yield [*use, f"{option}={value}"], option
        elif kind == "wrong" and name in WRONG:
            option = rng.choice(list(WRONG[name]))
            value = rng.choice(WRONG[name][option])
            rest = [] if not option else _without(use, option)
            yield [*rest, *([option] if option else []), value], ""


def _parts(kind: object) -> tuple:
    """The types of a union, or the type itself."""
    return get_args(kind) or (kind,)


def _without(use: list[str], option: str) -> list[str]:
    """A use without an option and its value, which are given again."""
    short = {"--subject": "-s", "--target": "-t"}.get(option, option)
    at = use.index(short) if short in use else len(use)
    return use[:at] + use[at + 2 :]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_use_is_one_clear_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uses = wrong_uses(name, random(f"wrong uses of {name}"))
    for _ in range(N):
        words, named = next(uses)
        result = CliRunner().invoke(cli.app, [name, *words])
        said = result.stderr
        assert result.exit_code == 2, (words, result.exception, result.output)
        assert said.endswith("\n") and said.count("\n") == 1, (words, said)
        assert 20 < len(said) < 3000 and named in said, (words, said)
        assert "Traceback" not in said and "│" not in result.output, (words, said)
        assert not result.stdout, words
    assert not list(tmp_path.iterdir())
