"""Every preset of every editor writes what it wrote before the library was rebuilt."""

import json

import golden
import pytest
import torch

KEPT = json.loads(golden.KEPT.read_text())


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model", [*golden.MINIS, *golden.STANDINS])
def test_presets_write_the_same_bits(model, tmp_path):
    """To the bit where torch and instruction set are those of the record; elsewhere norms agree."""
    wanted, now = KEPT["updates"][model], golden.record(model, tmp_path)
    assert now.keys() == wanted.keys()
    for editor, batches in wanted.items():
        for batch, layers in zip(now[editor], batches, strict=True):
            assert batch.keys() == layers.keys(), editor
            for layer, (digest, norm) in layers.items():
                assert batch[layer][1] == pytest.approx(norm, rel=2e-3), (editor, layer)
                if KEPT["machine"] == golden.machine():
                    assert batch[layer][0] == digest, (editor, layer)
