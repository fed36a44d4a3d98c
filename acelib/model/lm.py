"""A language model and its tokenizer, and the one table that knows how architectures differ.

Everything else in acelib asks an ``LM`` for "the second FFN matrix of layer 3" or "the stack above
layer 3" and never branches on a model's name. Layers count from 0. Families: GPT-2, GPT-J, and
Llama, whose shape Mistral, Qwen2 and Qwen3 have too.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from ..interrupts import unbroken

Linear = nn.Linear | Conv1D  #: GPT-2's Conv1D stores its weight as (in, out)
Part = Literal["mlp", "attn"]  #: of a block; each adds the output of one matrix to the stream

#: Of a configuration: what no answer depends on.
UNUSED = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where one architecture keeps its parts (attribute paths), and how its blocks are wired."""

    stack: str  #: the transformer without its head
    layers: str  #: list of blocks, below the stack
    attn: str  #: attention module, below a block
    attn_out: str  #: output projection, below the attention module
    mlp: str  #: FFN module, below a block
    fc1: tuple[str, ...]  #: first matrices of the FFN, the neuron's main key first (gate before up)
    fc2: str  #: second matrix of the FFN
    ffn_norm: str  #: the norm the FFN reads through, below a block
    norm: str  #: final norm, below the stack
    embed: str  #: token embedding, below the stack
    positions: str | None = None  #: learned position embedding, below the stack
    parallel: bool = False  #: attention and FFN read the same input (GPT-J)
    attend: str = "interface"  #: what computes attention: transformers' interface, or a method


LLAMA = Family(
    stack="model",
    layers="layers",
    attn="self_attn",
    attn_out="o_proj",
    mlp="mlp",
    fc1=("gate_proj", "up_proj"),
    fc2="down_proj",
    ffn_norm="post_attention_layernorm",
    norm="norm",
    embed="embed_tokens",
)

FAMILIES = {
    "gpt2": Family(
        stack="transformer",
        layers="h",
        attn="attn",
        attn_out="c_proj",
        mlp="mlp",
        fc1=("c_fc",),
        fc2="c_proj",
        ffn_norm="ln_2",
        norm="ln_f",
        embed="wte",
        positions="wpe",
    ),
    "gptj": Family(
        stack="transformer",
        layers="h",
        attn="attn",
        attn_out="out_proj",
        mlp="mlp",
        fc1=("fc_in",),
        fc2="fc_out",
        ffn_norm="ln_1",
        norm="ln_f",
        embed="wte",
        parallel=True,
        attend="_attn",
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}


@dataclass(frozen=True, eq=False)
class LM:
    """A causal language model in evaluation mode, its tokenizer, and its parts by name.

    Raises ValueError if the model's family is not one of ``FAMILIES`` or its parts are not where
    the table says.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str = "model"
    #: (name, fingerprint) of the models that this one was before it was edited and saved
    ancestors: tuple[tuple[str, str], ...] = ()
    #: whether it learned from natural text, not from the world of this project
    natural: bool = False
    family: Family = field(init=False)

    def __post_init__(self):
        kind = self.model.config.model_type
        if kind not in FAMILIES:
            raise ValueError(
                f"architecture {kind!r} is not supported; supported: {', '.join(FAMILIES)}"
            )
        object.__setattr__(self, "family", FAMILIES[kind])
        self.model.eval().requires_grad_(False)
        if self.tokenizer.pad_token_id is None:
            object.__setattr__(self, "tokenizer", copy.deepcopy(self.tokenizer))
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"model {self.name!r}: its tokenizer has neither a token to pad with nor one that "
                "ends a text; tokenizer_config.json must name one"
            )
        self._check()

    def _check(self):
        """Raises ValueError if the FFN's output is not ``fc2(key) (+ bias)`` with ``weight``."""
        try:
            key = torch.ones(1, self.d_mlp, device=self.device, dtype=self.dtype)
            with torch.no_grad():
                mine, theirs = key @ self.weight(0).T, self.fc2(0)(key)
            if self.fc2(0).bias is not None:
                mine = mine + self.fc2(0).bias
            tol = 1e-4 if self.dtype in (torch.float32, torch.float64) else 5e-2
            atol = tol * float(theirs.abs().max() + 1e-9)
            good = torch.allclose(mine.double(), theirs.double(), rtol=tol, atol=atol)
        except (AttributeError, RuntimeError) as err:
            kind = self.model.config.model_type
            raise ValueError(
                f"model {self.name!r}: its parts are not where {kind!r} models keep them ({err})"
            ) from err
        if not good:
            raise ValueError(
                f"model {self.name!r}: the second FFN matrix is not oriented as family "
                f"{self.model.config.model_type!r} says"
            )

    # ------------------------------------------------------------------ sizes

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def n_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        return self.model.config.num_attention_heads

    @property
    def d_model(self) -> int:
        return self.model.config.hidden_size

    @cached_property
    def d_mlp(self) -> int:
        return self.weight(0).shape[1]

    def layers(self, numbers: Sequence[int] | int) -> tuple[int, ...]:
        """Layer numbers as a sorted tuple.

        Raises ValueError naming a layer that the model does not have, for none, or a bare number.
        """
        if isinstance(numbers, int):
            raise ValueError(f"layers are a list, such as ({numbers},); got {numbers}")
        if not len(numbers):
            raise ValueError("no layer given; name at least one")
        for layer in numbers:
            if not 0 <= layer < self.n_layers:
                raise ValueError(
                    f"layer {layer} does not exist: model {self.name!r} has layers 0 to "
                    f"{self.n_layers - 1}"
                )
        return tuple(sorted(set(numbers)))

    # ------------------------------------------------------------------ parts

    @property
    def stack(self) -> nn.Module:
        return getattr(self.model, self.family.stack)

    @property
    def blocks(self) -> nn.ModuleList:
        return getattr(self.stack, self.family.layers)

    def attn(self, layer: int) -> nn.Module:
        return getattr(self.blocks[layer], self.family.attn)

    def attn_out(self, layer: int) -> Linear:
        return getattr(self.attn(layer), self.family.attn_out)

    def mlp(self, layer: int) -> nn.Module:
        return getattr(self.blocks[layer], self.family.mlp)

    def fc2(self, layer: int) -> Linear:
        """The FFN's second matrix."""
        return getattr(self.mlp(layer), self.family.fc2)

    def output(self, layer: int, part: Part = "mlp") -> Linear:
        """The last matrix of a part, which an editor may change: fc2 or attention's projection."""
        return self.fc2(layer) if part == "mlp" else self.attn_out(layer)

    def ffn_norm(self, layer: int) -> nn.Module:
        return getattr(self.blocks[layer], self.family.ffn_norm)

    @property
    def norm(self) -> nn.Module:
        return getattr(self.stack, self.family.norm)

    @property
    def embed(self) -> nn.Embedding:
        return getattr(self.stack, self.family.embed)

    @property
    def head(self) -> nn.Linear:
        return self.model.get_output_embeddings()

    # ------------------------------------------------------------------ weights, oriented (out, in)

    def weight(self, layer: int, part: Part = "mlp") -> Float[Tensor, "d_model d_in"]:
        """The weight of ``output``, W_fc2 unless told, as a view that shares the model's memory.

        Column k of W_fc2 is the value vector fc2_k.
        """
        return oriented(self.output(layer, part))

    def width(self, part: Part) -> int:
        """How many numbers ``output`` of a part reads: d_mlp, or n_heads d_head."""
        return self.weight(0, part).shape[1]

    def subkeys(self, layer: int, row: str = "gate") -> Float[Tensor, "d_mlp d_model"]:
        """Keys fc1_k of all FFN neurons of ``layer`` in coordinates of the residual stream.

        The norm's gain is folded in. The centring of a LayerNorm is not: products with a key treat
        the residual stream's mean as zero.
        row: of a gated neuron's two keys, "gate" or "up"; without a gate there is one key.
        Raises ValueError for another ``row``. Source: ACE, Eq. 6.
        """
        if row not in ("gate", "up"):
            raise ValueError(f"row {row!r} is not a key of a gated neuron; allowed: 'gate', 'up'")
        names = self.family.fc1
        matrix = oriented(
            getattr(self.mlp(layer), names[min(("gate", "up").index(row), len(names) - 1)])
        )
        return matrix * self.ffn_norm(layer).get_parameter("weight")

    def above(self, layer: int) -> nn.Module:
        """The blocks above ``layer``, then the final norm.

        Call it with ``inputs_embeds`` = output of ``layer``.
        """
        return self.between(layer + 1, self.n_layers - 1)

    def between(self, first: int, last: int) -> nn.Module:
        """The stack with blocks ``first`` to ``last`` only, then the final norm.

        It takes ids if ``first`` is 0, else ``inputs_embeds``. It shares every parameter with the
        model and changes nothing in it. Masks, positions and key-value caches are the library's
        own: pass ``position_ids``, ``attention_mask`` and ``past_key_values`` as to the full stack
        (the cache keeps its layer numbers).
        """
        part = copied(
            self.stack, **{self.family.layers: nn.ModuleList(list(self.blocks)[first : last + 1])}
        )
        if first and self.family.positions:
            part._modules[self.family.positions] = _NoPositions()
        return part

    def norm_moments(
        self, norm: nn.Module, h: Float[Tensor, "*batch d_model"]
    ) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
        """Mean and scale that ``norm``, one of the model's, takes from h.

        A LayerNorm gives gain (h - mean) / scale + bias; an RMSNorm has no mean: it is 0.
        """
        if isinstance(norm, nn.LayerNorm):
            mean, eps = h.mean(-1, keepdim=True), norm.eps
        else:
            mean, eps = torch.zeros_like(h[..., :1]), cast(float, norm.variance_epsilon)
        return mean, ((h - mean).square().mean(-1, keepdim=True) + eps).sqrt()

    @cached_property
    def traced(self):
        """The stack under nnsight, for ``trace``; wrapped once, because that takes tens of ms."""
        from nnsight import NNsight  # slow to import, and only traces need it

        return NNsight(self.stack)

    def __getstate__(self) -> dict:
        """What copies and pickles carry: all but the nnsight wrapper of this very model."""
        return {key: value for key, value in self.__dict__.items() if key != "traced"}

    # ------------------------------------------------------------------ text

    def encode(
        self, texts: Sequence[str], side: str = "right"
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Token ids and attention mask of ``texts``; special tokens are the tokenizer's own.

        side: where to pad, "right" or "left", else ValueError.
        """
        if side not in ("left", "right"):
            raise ValueError(f"padding side {side!r} is unknown; allowed: 'left', 'right'")
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        return self.pad(rows, side)

    def pad(
        self, rows: Sequence[Sequence[int]], side: str = "right"
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Ids and attention mask from lists of token ids."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            ids[i, where], mask[i, where] = torch.tensor(row, dtype=torch.long), 1
        return ids.to(self.device), mask.to(self.device)

    def token_at(self, text: str, end: int) -> int:
        """Index of the token that holds the character before ``end``; len(text) is the last one's.

        Leading spaces, special tokens at the start and subjects of several tokens do no harm: the
        offsets are the tokenizer's own. Raises ValueError if ``end`` is not inside the text.
        """
        if not 0 < end <= len(text):
            raise ValueError(f"position {end} is not inside {text!r}")
        offsets = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return max(i for i, (start, stop) in enumerate(offsets) if start < end and stop > start)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of ``answer`` as a continuation: after one space, without special tokens.

        Raises ValueError if it is empty.
        """
        if not answer.strip():
            raise ValueError(f"answer {answer!r} is empty; give the text the model should say")
        # Not of " " + answer, which some tokenizers begin with a space of their own.
        before, both = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in ("x", f"x {answer.strip()}")
        )
        return both[len(before) :]

    @cached_property
    def sink(self) -> float:
        """How much longer the state of a prompt's first token is than the longest of the others, at
        the layer where it is most so: far above 1 where attention rests on the first token.
        """
        ids, mask = self.encode(["The capital of France is"])
        states: list[Tensor] = []
        # Our own hooks: those that transformers collects hidden states with stay on the model.
        with torch.no_grad(), ExitStack() as hooks:
            for block in self.blocks:
                hooks.enter_context(
                    block.register_forward_pre_hook(lambda _, args: states.append(args[0][0]))
                )
            states.append(self.stack(input_ids=ids, attention_mask=mask).last_hidden_state[0])
        norms = torch.stack([state.float().norm(dim=-1) for state in states])
        return float((norms[:, 0] / norms[:, 1:].max(1).values).max())

    # ------------------------------------------------------------------ identity

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any weight, the tokenizer or the configuration.

        The model's part in every cache name.
        """
        config = {
            key: value for key, value in self.model.config.to_dict().items() if key not in UNUSED
        }
        digest = hashlib.sha256(
            self.tokenizer.backend_tokenizer.to_str().encode()
            + json.dumps(config, sort_keys=True, default=str).encode()
        )
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @unbroken
    def changing(
        self, layers: Iterable[int], attn: Iterable[int] = ()
    ) -> Iterator[Callable[[], None]]:
        """Change weights inside; on the way out they are as before.

        layers: of second FFN matrices.   attn: of attention's output projections.
        It gives a function: once that is called, the change stays. The fingerprint follows.
        """
        of_part: dict[Part, Iterable[int]] = {"mlp": layers, "attn": attn}
        weights = [self.weight(layer, part) for part, some in of_part.items() for layer in some]
        saved = [weight.detach().clone() for weight in weights]
        fingerprint, stays = self.__dict__.pop("fingerprint", None), []

        def keep() -> None:
            stays.append(True)

        try:
            yield keep
        finally:
            self.__dict__.pop("fingerprint", None)
            if not stays:
                with torch.no_grad():
                    for weight, before in zip(weights, saved, strict=True):
                        weight.copy_(before)
                if fingerprint:
                    self.__dict__["fingerprint"] = fingerprint


def copied(module: nn.Module, **parts: nn.Module) -> nn.Module:
    """A shallow copy that shares parameters, hooks and parts with ``module``, but for ``parts``."""
    copy_ = copy.copy(module)
    for name in ("forward", "__nnsight__"):  # a traced module's are bound to the module itself
        copy_.__dict__.pop(name, None)
    copy_._modules = {**module._modules, **parts}
    return copy_


class _NoPositions(nn.Module):
    """A learned position embedding's place, where hidden states hold the positions already."""

    def forward(self, position_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
        return torch.zeros((), device=position_ids.device)


def oriented(linear: Linear) -> Float[Tensor, "out in"]:
    """A linear module's weight, as a view."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.T


def common_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their start."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))
