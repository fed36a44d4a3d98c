"""Loading: code in a folder is never run; a model that cannot be edited is refused."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from acelib.bench.tiny import make_tiny, tiny_tokenizer
from acelib.editors import FT
from acelib.model.answers import recall
from acelib.model.lm import LLAMA
from acelib.model.loading import load
from acelib.records import Edit

FFN = "transformer.h.1.mlp.fc_out.weight"
HOSTILE = "from pathlib import Path\nPath({ran!r}).touch()\nclass Any: pass\n"


@pytest.fixture
def folder(tmp_path):
    """A saved tiny model."""
    lm = make_tiny("gptj", torch.float32)
    lm.model.save_pretrained(tmp_path / "tiny")
    lm.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def set_in(path: Path, **fields):
    """Change fields of a JSON file; None takes one out."""
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def refused(folder: Path) -> str:
    """The one sentence that ``load`` refuses a folder with."""
    with pytest.raises(ValueError) as error:
        load(str(folder), "cpu")
    said = str(error.value)
    assert said.startswith("model ") and "\n" not in said and len(said) < 500
    return said


def test_what_was_saved_is_loaded(folder):
    assert load(str(folder), "cpu").fingerprint == make_tiny("gptj", torch.float32).fingerprint


@pytest.mark.parametrize("model_type", ["gptj", "another"])
@pytest.mark.parametrize(
    "where", ["config.json", "tokenizer_config.json", "generation_config.json"]
)
def test_no_code_of_a_folder_is_run_whatever_stands_on_standard_input(
    folder, tmp_path, where, model_type
):
    ran = tmp_path / "ran"
    (folder / "hostile.py").write_text(HOSTILE.format(ran=str(ran)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(HOSTILE.format(ran=str(ran)))
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    auto = {
        name: ["hostile.Any"] * 2 if name == "AutoTokenizer" else "hostile.Any" for name in names
    }
    set_in(folder / where, auto_map=auto, tokenizer_class="Any", custom_generate="hostile.Any")
    set_in(folder / "config.json", model_type=model_type)
    program = (
        "import sys; from acelib.model.loading import load\n"
        "try: load(sys.argv[1], 'cpu')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        input="y\n" * 50,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert not ran.exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert ("cannot be loaded" in done.stdout) == (model_type == "another")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("n_layer", 0, "num_hidden_layers in config.json is 0; it must be a positive whole number"),
        ("n_head", 0, "num_attention_heads in config.json is 0"),
        ("n_embd", -4, "hidden_size in config.json is -4"),
        ("n_positions", 0, "max_position_embeddings in config.json is 0"),
        ("n_layer", 3, "its files hold a layer 3, config.json says that it has 3"),
        ("n_layer", 5, "10 weights are missing from its files"),
        ("model_type", "opt", "architecture 'opt' is not supported; supported: gpt2, gptj"),
        ("n_inner", "x", "cannot be loaded"),
        ("dtype", "float99", "cannot be loaded"),
        ("attn_pdrop", "a", "cannot be loaded"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(folder, field, value, said):
    set_in(folder / "config.json", **{field: value})
    assert said in refused(folder)


@pytest.mark.parametrize("content", ["null", "[]", "", "{", "[" * 5000, "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_is_no_object_is_refused(folder, name, content):
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "cannot be loaded" in refused(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda w: w.fill_(torch.nan), f"{FFN} holds a number that is not finite"),
        (
            lambda w: w.index_fill(0, torch.tensor(0), torch.inf),
            f"{FFN} holds a number that is not",
        ),
        (lambda w: w.to(torch.int8), f"{FFN} in model.safetensors is of type I8; allowed: BF16"),
        (lambda w: torch.cat([w, w]), "cannot be loaded"),
    ],
    ids=["nan", "inf", "int8", "wide"],
)
def test_weights_that_cannot_be_computed_with_are_refused(folder, change, said):
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {FFN: change(weights[FFN]).clone()}, path, {"format": "pt"})
    assert said in refused(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer" in refused(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_embeds_is_refused(folder):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    assert "its tokenizer has 361 tokens, the model embeds 360" in refused(folder)


def test_a_tokenizer_without_an_end_is_refused(folder):
    set_in(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    assert "neither a token to pad with nor one that ends a text" in refused(folder)


@pytest.mark.parametrize(
    "name", ["", "\ud800", "a" * 5000, "../../etc", "/dev/null", "a b", "x/y/z"]
)
def test_a_name_of_nothing_is_refused(name):
    assert "cannot be loaded" in refused(name)


@pytest.mark.parametrize("kind", ["Qwen2", "Mistral"])
def test_models_of_llamas_shape_are_loaded_and_edited(kind, tmp_path):
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=3,
        intermediate_size=48,
        vocab_size=len(tiny_tokenizer()),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    lm = load(str(tmp_path / "model"), "cpu")
    edit = Edit("Paris", "{} is located in the country of", "Italy")
    update = FT(layers=(1,), steps=2, lr=0.1)(lm, [edit])
    before, after = recall(lm, [edit.text] * 2, ["Italy"] * 2, [None, update]).logprob
    assert lm.family is LLAMA and lm.natural and after > before
