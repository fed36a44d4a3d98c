"""Pre-training a reference model from scratch on text rendered from the world.

Where a model stores a fact depends on the text it learned from. The mixture holds what web text
holds: isolated sentences, biographies (all facts of an entity in random order and wording),
attribute-dense text (the attributes follow the name directly, as in lists and infoboxes),
questions, few-shot packs of chain-of-thought answers, and multi-hop statements answered at once.
Only chains of the training split are ever shown; identification and evaluation chains stay unseen
as compositions. (Text and storage: Allen-Zhu & Li, Physics of Language Models 3.1; implicit
composition: Wang et al. 2024, Grokked Transformers.)
"""

from __future__ import annotations

import json
import pickle
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from ..files import replacing
from ..model.lm import LM
from ..records import quoted
from ..world.text import MIXTURE, TEXTS
from ..world.world import World
from . import late

END = "<|endoftext|>"
BF16 = ("amx_bf16", "avx512_bf16", "bf16")  #: what a CPU that computes in bf16 calls it


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a reference model's training depends on, beside the world: two runs of one recipe
    on one device give the same bits.
    """

    architecture: str  #: "gptj" or "qwen3"
    n_layers: int = 8
    d_model: int = 256
    n_heads: int = 4
    vocab_size: int = 4096
    n_positions: int = 512
    steps: int = 1300
    batch: int = 16  #: rows of one step
    length: int = 256  #: tokens of a row
    lr: float = 2e-3  #: of AdamW: embeddings, head, norms, biases
    matrix_lr: float = 8e-3  #: of Muon: the matrices inside the layers
    warmup: int = 100
    #: last share of the steps, over which the learning rate falls linearly to zero
    cooldown: float = 0.3
    weight_decay: float = 0.05
    embedding_std: float = 0.02  #: of the input embeddings before the first step
    #: share of texts of ``late_in`` in which names are read late (module ``late``)
    late_names: float = 0.0
    late_layers: int = 2  #: the last layers of all, in which they are read
    #: not those that answer several hops at once, for which few layers are left then
    late_in: tuple[str, ...] = ("sentences", "questions", "biography", "dense", "thoughts")
    seed: int = 0
    mixture: dict[str, float] = field(default_factory=lambda: dict(MIXTURE))


#: Of both reference models: names of several tokens, embeddings on the scale of what layers add,
#: short matrices, and names that are read late, so that facts sit where editors write.
REFERENCE: dict[str, Any] = dict(
    d_model=128,
    vocab_size=1024,
    n_positions=1024,
    steps=6000,
    batch=4,
    length=512,
    cooldown=0.9,
    weight_decay=0.5,
    embedding_std=1.0,
    late_names=0.8,
    late_layers=3,
)
RECIPES = {
    "gptj-mini": Recipe(architecture="gptj", **REFERENCE),
    "qwen3-mini": Recipe(architecture="qwen3", **REFERENCE),
}


def recipe_named(name: str, steps: int | None = None, seed: int | None = None) -> Recipe:
    """A recipe of ``RECIPES``, perhaps with another number of steps or another seed.

    Raises ValueError for an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {quoted(name)}; known: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    return replace(
        recipe,
        steps=recipe.steps if steps is None else steps,
        seed=recipe.seed if seed is None else seed,
    )


def device_named(name: str | None = None) -> str:
    """A device by name; None: the accelerator if there is one, else the CPU.

    Raises ValueError for one that this machine does not have.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = ["cpu", *([found.type] if found else [])]
    if name and name.split(":")[0] not in devices:
        raise ValueError(
            f"device {quoted(name)} is not on this machine; there are: {', '.join(devices)}"
        )
    return name or devices[-1]


@dataclass(frozen=True)
class Corpus(Dataset):
    """The training text as a map from step number to a block of rows, so that any step can be made
    anew: token ids (batch, length + 1), and ``late.marks`` of the first ``length`` of them.
    """

    world: World
    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast

    @cached_property
    def names(self) -> tuple[late.Tree, frozenset[int]]:
        """The names of the world, and what ends a sentence, as tokens."""
        names = {*self.world.entities, *(fact.object for fact in self.world.facts)}
        return late.name_tree(self.tokenizer, names), late.breaking_tokens(self.tokenizer)

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng, need = random.Random(f"{self.recipe.seed}/{step}"), self.recipe.length + 1
        reading = random.Random(f"{self.recipe.seed}/{step}/late")
        kinds, weights = zip(*self.recipe.mixture.items(), strict=True)
        end = self.tokenizer.eos_token_id
        rows, ends, bounds = [], [], []
        for _ in range(self.recipe.batch):
            row: list[int] = []
            until: list[int] = []
            bound: list[bool] = []
            while len(row) < need:
                kind = rng.choices(kinds, weights)[0]
                ids = self.tokenizer(TEXTS[kind](self.world, rng))["input_ids"] + [end]
                share = self.recipe.late_names if kind in self.recipe.late_in else 0.0
                if reading.random() < share:
                    last, behind = late.marks(ids, *self.names)
                else:
                    last, behind = [late.FOREVER] * len(ids), [False] * len(ids)
                until += [len(row) + place for place in last]
                bound += behind
                row += ids
            rows.append(row[:need])
            ends.append(until[: need - 1])
            bounds.append(bound[: need - 1])
        return torch.tensor(rows), torch.tensor(ends), torch.tensor(bounds)


def make_tokenizer(world: World, recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a sample of every kind of text and all names: one for
    all recipes of a seed.
    """
    rng = random.Random(f"{recipe.seed}/tokenizer")
    sample = [text(world, rng) for text in TEXTS.values() for _ in range(1500)]
    sample += [f" {name}" for name in world.entities for _ in range(5)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=recipe.vocab_size,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=recipe.n_positions,
    )


def new_model(recipe: Recipe, vocab_size: int) -> PreTrainedModel:
    """A randomly initialised model of the recipe's shape.

    Raises ValueError for an unknown architecture.
    """
    ids: dict[str, Any] = dict(
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
    )
    if recipe.architecture == "gptj":
        config: PreTrainedConfig = GPTJConfig(
            n_embd=recipe.d_model,
            n_layer=recipe.n_layers,
            n_head=recipe.n_heads,
            n_positions=recipe.n_positions,
            rotary_dim=recipe.d_model // recipe.n_heads // 2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **ids,
        )
    elif recipe.architecture == "qwen3":
        config = Qwen3Config(
            hidden_size=recipe.d_model,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=max(1, recipe.n_heads // 2),
            head_dim=recipe.d_model // recipe.n_heads,
            intermediate_size=3 * recipe.d_model,
            max_position_embeddings=recipe.n_positions,
            **ids,
        )
    else:
        raise ValueError(f"architecture {recipe.architecture!r} is unknown; allowed: gptj, qwen3")
    torch.manual_seed(recipe.seed)
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=recipe.embedding_std)
    return model


# ---------------------------------------------------------------------------- training


def schedule(recipe: Recipe, step: int) -> float:
    """The share of the peak learning rates at a step: warm-up, plateau, linear cool-down."""
    return min(
        1.0,
        (step + 1) / recipe.warmup,
        (recipe.steps - step) / max(1, round(recipe.steps * recipe.cooldown)),
    )


def train(  # noqa: PLR0913 - how to run, by keyword only
    recipe: Recipe,
    world: World,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    compile: bool = False,
    workers: int = 0,
    every: int = 250,
    judge: Callable[[LM], dict] | None = None,
    report: Callable[[dict], None] | None = None,
) -> LM:
    """Trains a model to the end of its recipe, or resumes it from the last checkpoint in
    ``folder``; returns it.

    Every ``every`` steps the state is written (atomically) and a row with step, tokens, loss (nats
    per token), schedule, tokens per second and what ``judge(lm)`` measures is appended to
    ``folder/train_log.jsonl`` and given to ``report``. bf16 autocast is used where the device has
    bf16 arithmetic. The finished model is stored in bfloat16 with its tokenizer.
    Raises ValueError if ``folder`` holds the state of another recipe (other than its number of
    steps).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state_file, log_file = folder / "state.pt", folder / "train_log.jsonl"
    device = torch.device(device)
    tokenizer = make_tokenizer(world, recipe)
    model = new_model(recipe, len(tokenizer))
    torch.nn.Module.to(model, device)
    optimisers = new_optimisers(model, recipe)
    first = _resume(state_file, recipe, model, optimisers, device)
    forward = torch.compile(model.get_decoder()) if compile else model.get_decoder()
    half = torch.autocast(device.type, torch.bfloat16) if _has_bf16(device) else nullcontext()
    blocks = DataLoader(
        Corpus(world, recipe, tokenizer),
        batch_size=None,
        sampler=range(first, recipe.steps),
        num_workers=workers,
    )
    since, losses = time.monotonic(), []
    for step, block in enumerate(blocks, start=first):
        model.train()
        for optimiser, peak in zip(optimisers, (recipe.matrix_lr, recipe.lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * schedule(recipe, step)
        block = [part.to(device) for part in block]
        losses.append(_update(model, forward, optimisers, block, recipe.late_layers, half))
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            size, seconds = recipe.batch * recipe.length, time.monotonic() - since
            row = dict(
                step=step + 1,
                tokens=(step + 1) * size,
                loss=float(torch.stack(losses).mean()),
                schedule=schedule(recipe, step),
                tokens_per_s=round(len(losses) * size / seconds),
            )
            if judge:
                lm = LM(model, tokenizer)
                row |= judge(lm)
                model.requires_grad_(True)
            _save_state(state_file, recipe, model, optimisers, step + 1)
            with log_file.open("a") as log:
                log.write(json.dumps(row) + "\n")
            if report:
                report(row | dict(steps=recipe.steps))
            since, losses = time.monotonic(), []
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    return LM(model.float(), tokenizer)


def _update(
    model: PreTrainedModel,
    forward: Callable,
    optimisers: Sequence[torch.optim.Optimizer],
    block: Sequence[torch.Tensor],
    n_late: int,
    half: AbstractContextManager,
) -> torch.Tensor:
    """One step of the optimisers on a block of ``Corpus``; returns the loss, nats per token."""
    ids, until, bound = block
    first, early, later = late.masks(until, bound)
    n_early = model.config.num_hidden_layers - n_late
    readers = bound & (until >= late.FOREVER)
    with (
        half,
        late.layers_masked(model, first, slice(0, late.ASSEMBLY)),
        late.layers_masked(model, early, slice(late.ASSEMBLY, n_early)),
        late.late_ffns_silent(model, readers, n_early),
    ):
        states = forward(input_ids=ids[:, :-1], attention_mask=later, use_cache=False)
        logits = model.lm_head(states.last_hidden_state)
    loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    model.zero_grad()
    return loss.detach()


def new_optimisers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head, norms and biases.

    Muon orthogonalises a matrix's momentum, so that rare directions, which rare facts are, learn as
    fast as frequent ones (Jordan et al. 2024), its updates scaled to a root mean square of 0.2
    ``matrix_lr`` (Liu et al. 2025).
    """
    inner = {
        id(p)
        for layer in model.get_decoder().modules()
        for p in layer.parameters(recurse=False)
        if p.ndim == 2 and isinstance(layer, torch.nn.Linear)
    }  # get_decoder leaves out the head
    rest = [p for p in model.parameters() if id(p) not in inner]
    matrices, others = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim < 2]
    groups = [
        dict(params=matrices, weight_decay=recipe.weight_decay),
        dict(params=others, weight_decay=0.0),
    ]
    muon = torch.optim.Muon(
        [p for p in model.parameters() if id(p) in inner],
        lr=recipe.matrix_lr,
        weight_decay=recipe.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)]


def _has_bf16(device: torch.device) -> bool:
    """Whether ``device`` computes in bf16 itself. A CPU that emulates it is slower than in float32:
    1.7 times, measured on one with AVX-512 alone.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able: dict = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.13
    return device.type == "cpu" and any(able.get(name) for name in BF16)


def _save_state(path: Path, recipe: Recipe, model, optimisers, step: int) -> None:
    """Raises OSError, and leaves the state that was there, if the disk is full."""
    state = dict(
        recipe=asdict(recipe),
        step=step,
        model=model.state_dict(),
        optimisers=[o.state_dict() for o in optimisers],
    )
    with replacing(path) as part:
        try:
            torch.save(state, part)
        except RuntimeError as err:  # torch's word for it
            raise OSError(f"{path} cannot be written: {str(err).partition(chr(10))[0]}") from err


def _resume(path: Path, recipe: Recipe, model, optimisers, device) -> int:
    """Loads the checkpoint, if there is one, and returns the number of steps done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ValueError(
            f"{path} is not a checkpoint that can be read; remove it to start anew"
        ) from err
    if {**state["recipe"], "steps": 0} != {**asdict(recipe), "steps": 0}:
        raise ValueError(
            f"{path} was written by another recipe; train in an empty folder, "
            f"or with the recipe {state['recipe']}"
        )
    if state["step"] > recipe.steps:
        raise ValueError(
            f"{path} is at step {state['step']}, past the {recipe.steps} steps asked for"
        )
    model.load_state_dict(state["model"])
    for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(kept)
    return state["step"]
