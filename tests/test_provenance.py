"""What a number depends on: results are named by the code that made them, and by no other."""

import pytest
import torch

from acelib.provenance import (
    APART,
    ROOT,
    code,
    code_hash,
    data_hash,
    default_device,
    imports,
    module_file,
    reached,
)


@pytest.fixture
def root(tmp_path):
    files = {
        "a.py": "from .b import x\nfrom acelib import c",
        "b.py": "import acelib.pack.d\nimport json",
        "c.py": "def f():\n    from .pack import late\n",
        "e.py": "from .a import x",
        "provenance.py": "from .e import x",
        "pack/__init__.py": "from .d import y",
        "pack/d.py": "y = 1",
        "pack/late.py": "from ..provenance import x",
    }
    for name, text in files.items():
        path = tmp_path / "acelib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield tmp_path
    code_hash.cache_clear()


def names(root, *modules):
    return sorted(path.relative_to(root / "acelib").as_posix() for path in reached(modules, root))


def test_imports_are_followed_wherever_they_stand(root):
    assert names(root, "acelib.b") == ["b.py", "pack/d.py"]
    all_but_two = ["a.py", "b.py", "c.py", "pack/__init__.py", "pack/d.py", "pack/late.py"]
    assert names(root, "acelib.a") == all_but_two
    foreign = ("builtins", "__main__", "acelib", "acelib.nothing", "test_x", "acelib.provenance")
    assert names(root, "acelib.pack.d", *foreign) == ["pack/d.py"]
    assert module_file("acelib.pack", root).name == "__init__.py"
    assert module_file("acelib.nothing", root) is None and module_file("json", root) is None


def test_imports_of_a_text():
    text = "import a.b, c\nfrom .d import e as f\ndef g():\n    from ..h import i\n"
    assert imports(text, "p.q") == ["a.b", "c", "p.q.d", "p.q.d.e", "p.h", "p.h.i"]


def test_a_hash_changes_with_what_is_reached_and_with_nothing_else(root):
    def now(*modules):
        code_hash.cache_clear()
        return code_hash(modules, root)

    a, b = now("acelib.a"), now("acelib.b")
    assert a != b
    (root / "acelib" / "e.py").write_text("from .a import x, y")
    (root / "acelib" / "provenance.py").write_text("x = 1")
    assert now("acelib.a") == a
    (root / "acelib" / "pack" / "late.py").write_text("z = 2")
    assert now("acelib.a") != a and now("acelib.b") == b
    (root / "acelib" / "pack" / "d.py").write_text("# why\ny = (\n    1  # one\n)\n")
    assert now("acelib.b") == b


@pytest.mark.parametrize(
    "one, other",
    [
        ('"""Doc."""\nx = 1', "x=1 # c"),
        ('def f(a, b):\n    """Doc."""\n    return a', "def f(\n    a,\n    b,\n): return (a)"),
        ('class A:\n    """Doc."""\n\n    x: int = 1', "class A:\n    x: int = 1"),
        ("async def f():\n    'Doc'\n    pass", "async def f(): pass"),
        ("x = 'a' \"b\"", 'x = "ab"'),
        ("import b\nimport a\nx = 1", "import a\nimport b\nx = 1"),
        ("x = 1_000", "x = 1000"),
    ],
)
def test_layout_is_no_code(one, other):
    assert code(one) == code(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = '1'", "x = 1"),
        ("x = None", "x = ()"),
        ("f(a=1)", "f(b=1)"),
        ("f(**a)", "f(*a)"),
        ("a + b", "b + a"),
        ("a - b", "a + b"),
        ("a < b", "a <= b"),
        ("x[1:]", "x[:1]"),
        ("x = [a]", "x = (a,)"),
        ("def f(a, /): pass", "def f(a): pass"),
        ("def f(*, a=None): pass", "def f(*, a): pass"),
        ("from a import b", "from a import b as c"),
        ("from . import b", "from .. import b"),
        ("f'{x}'", "f'{x!r}'"),
        ("def f():\n    return 'a'", "def f():\n    'a'"),
        ("import a\nx = 1\nimport b", "import b\nx = 1\nimport a"),
    ],
)
def test_what_can_change_a_number_is_code(one, other):
    assert code(one) != code(other)


def test_code_reads_the_same_in_every_python():
    """``ast.dump`` does not: this text would be another in another version."""
    text = code("def f(a, *, b=None):\n    return f'{a:>3}' if a else {**b}")
    assert text == (
        "Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a')], "
        "kwonlyargs=[arg(arg='b')], kw_defaults=[Constant(value=None)]), "
        "body=[Return(value=IfExp(test=Name(id='a'), body=JoinedStr(values=["
        "FormattedValue(value=Name(id='a'), conversion=-1, format_spec=JoinedStr("
        "values=[Constant(value='>3')]))]), orelse=Dict(keys=[None], values=[Name(id='b')])))])])"
    )
    with pytest.raises(SyntaxError):
        code("x =")


def test_rows_depend_on_the_judge_and_on_the_editor():
    def modules(editor):
        paths = reached(("acelib.study.judge", editor))
        return {path.relative_to(ROOT).with_suffix("").as_posix() for path in paths}

    judged, memit, ace = map(modules, ("builtins", "acelib.editors.memit", "acelib.editors.ace"))
    assert (
        {"acelib/model/answers", "acelib/world/wording", "acelib/model/update"} <= judged <= memit
    )
    editing = ("keys", "moments", "search", "solve", "tail", "write")
    assert {f"acelib/editing/{name}" for name in editing} <= ace
    apart = ("figures", "tables", "check", "claims", "tune", "store", "rows")
    assert not ace & {f"acelib/study/{name}" for name in apart}
    assert not ace & {name.replace(".", "/") for name in APART}
    wings = ("book", "measures", "paper", "training", "bench")
    assert not [name for name in ace if name.split("/")[1] in wings]


def test_data_is_all_but_prose_and_the_state_of_a_training(tmp_path):
    folder = tmp_path / "data" / "models" / "mini"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    before = data_hash(tmp_path)
    for name in ("state.pt", "state.part", "README.md", ".hidden"):
        (folder / name).write_text("x")
    data_hash.cache_clear()
    assert data_hash(tmp_path) == before
    (folder / "train_log.jsonl").write_text("{}")
    data_hash.cache_clear()
    assert data_hash(tmp_path) != before
    data_hash.cache_clear()


@pytest.mark.parametrize("kind, expected", [("cuda", "cuda"), ("mps", "cpu"), (None, "cpu")])
def test_models_go_to_an_accelerator_that_has_float64(monkeypatch, kind, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    assert default_device().type == expected
