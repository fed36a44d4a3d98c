"""What a number depends on: results are named by the code that made them, and by no other."""

import pytest
import torch

from acelib.provenance import MACHINERY, ROOT, _reached, data_hash, default_device, library_hash


@pytest.fixture
def root(tmp_path):
    files = {
        "a.py": "from .b import x\nfrom acelib import c",
        "b.py": "import acelib.pack.d\nimport json",
        "c.py": "def f():\n    from .pack import late\n",
        "e.py": "from .a import x",
        "cli.py": "from .e import x",
        "pack/__init__.py": "from .d import y",
        "pack/d.py": "y = 1",
        "pack/late.py": "from ..cli import x",
    }
    for name, text in files.items():
        path = tmp_path / "acelib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def reached(root, *names):
    return sorted(path.relative_to(root / "acelib").as_posix() for path in _reached(root, names))


def test_imports_are_followed_wherever_they_stand(root):
    assert reached(root, "acelib.b") == ["b.py", "pack/d.py"]
    assert reached(root, "acelib.a") == [
        "a.py",
        "b.py",
        "c.py",
        "pack/__init__.py",
        "pack/d.py",
        "pack/late.py",
    ]
    assert reached(root, "acelib.pack.d", "builtins", "__main__", "acelib.nothing", "test_x") == [
        "pack/d.py"
    ]


def test_a_hash_changes_with_what_is_reached_and_with_nothing_else(root):
    def now(*of):
        library_hash.cache_clear()
        return library_hash(root, of)

    before = {of: now(*of) for of in ((), ("acelib.a",), ("acelib.b",))}
    assert len(set(before.values())) == 3
    (root / "acelib" / "e.py").write_text("from .a import x, y")
    assert now("acelib.a") == before["acelib.a",] and now() != before[()]
    (root / "acelib" / "pack" / "late.py").write_text("z = 2")
    assert now("acelib.a") != before["acelib.a",] and now("acelib.b") == before["acelib.b",]
    library_hash.cache_clear()


def test_rows_depend_on_the_judge_and_on_the_editor():
    def names(module):
        return {path.stem for path in _reached(ROOT, ("acelib.study.experiments", module))}

    assert (
        {"experiments", "evaluate", "prompts", "facts", "update", "lm"}
        <= names("builtins")
        <= names("acelib.editors.memit")
    )
    assert {"memit", "pmet", "targets", "spread", "solve", "keys", "covariance"} <= names(
        "acelib.editors.ace"
    )
    apart = {
        "figures",
        "tables",
        "testing",
        "storage",
        "probe",
        "tune",
        "bars",
        "pretrain",
        "locate",
        "attribution",
        "bench",
    }
    assert not names("acelib.editors.ace") & (
        apart | {name.removesuffix(".py") for name in MACHINERY}
    )


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
