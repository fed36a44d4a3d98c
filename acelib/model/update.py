"""What an editor returns, changes of weights, and the three ways to use them.

    dW_l = left_l @ right_l.T

of FFN second matrices, and, for an editor that writes them, of attention's output projections.

``overlaid`` shows a model as edited without touching a weight (and shows every row of a batch a
different edit), ``applied`` writes for the length of a ``with`` and puts the very bits back,
``commit`` writes for good.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import hypot
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from ..interrupts import unbroken
from ..records import Edit, is_text, quoted
from .lm import LM, Part
from .origin import write_record
from .states import Keys, Outputs, added


class Factors(NamedTuple):
    """dW = left @ right.T."""

    left: Float[Tensor, "d_model rank"]
    right: Float[Tensor, "d_in rank"]


Changes = Mapping[int, Factors]  #: by layer
PARTS: tuple[Part, ...] = get_args(Part)
#: of a part, how its tensors are called in a file, and how it is called in a sentence
NAMES: dict[Part, str] = {"mlp": "", "attn": "attn."}
OF: dict[Part, str] = {"mlp": "", "attn": " of attention"}


@dataclass(frozen=True, eq=False)
class Update:
    """A change of a model: factors by layer, and where it comes from."""

    #: of FFN second matrices
    factors: Changes = field(default_factory=dict)
    #: who made it
    editor: str = ""
    #: for which edits
    edits: tuple[Edit, ...] = ()
    #: of which model: ``LM.fingerprint``, "" if unknown
    model: str = ""
    #: by layer: the ``history`` of later edits (AlphaEdit); else empty
    keys: Mapping[int, Float[Tensor, "d_mlp keys"]] = field(default_factory=dict)
    #: of attention's output projections
    attn: Changes = field(default_factory=dict)

    def __add__(self, other: Update) -> Update:
        """Both changes at once; it belongs to the model of the first.

        Ranks add up to d_model, from where on a layer is (identity, dW^T).
        """
        keys = {
            layer: torch.cat([u.keys[layer] for u in (self, other) if layer in u.keys], 1)
            for layer in sorted({*self.keys, *other.keys})
        }
        return Update(
            _both(self.factors, other.factors),
            "+".join(dict.fromkeys(n for n in (self.editor, other.editor) if n)),
            self.edits + tuple(e for e in other.edits if e not in self.edits),
            self.model or other.model,
            keys,
            _both(self.attn, other.attn),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Those in which something is changed."""
        return tuple(dict.fromkeys((*self.factors, *self.attn)))

    def changes(self, part: Part) -> Changes:
        """Of the FFN's second matrices ("mlp") or attention's output projections ("attn")."""
        return self.factors if part == "mlp" else self.attn

    def delta(self, layer: int, part: Part = "mlp") -> Float[Tensor, "d_model d_in"]:
        """dW of ``layer`` as a full matrix. Raises ValueError for a layer that is not changed."""
        changes = self.changes(part)
        if layer not in changes:
            raise ValueError(f"layer {layer} is not changed; changed: {list(changes)}")
        left, right = changes[layer]
        return left @ right.T

    def norms(self, part: Part = "mlp") -> dict[int, float]:
        """Frobenius norm of dW by layer: ||dW||^2 = tr(left^T left right^T right)."""
        squares = {
            layer: ((left.T @ left) * (right.T @ right)).sum()
            for layer, (left, right) in self.changes(part).items()
        }
        return {layer: square.clamp(min=0).sqrt().item() for layer, square in squares.items()}

    def norm(self) -> float:
        """Frobenius norm of all that is changed."""
        return hypot(*(norm for part in PARTS for norm in self.norms(part).values()))

    def save(self, path: str | Path):
        """Write the update to ``path`` (safetensors with JSON metadata), all or nothing.

        Raises ValueError if that is a folder.
        """
        if Path(path).is_dir():
            raise ValueError(f"{str(path)!r} is a folder; name a file for the update")
        edits = [asdict(e) for e in self.edits]
        factors = {
            f"{NAMES[part]}{side}.{layer}": getattr(pair, side)
            for part in PARTS
            for layer, pair in self.changes(part).items()
            for side in Factors._fields
        }
        save_tensors(
            path,
            factors | {f"keys.{layer}": K for layer, K in self.keys.items()},
            dict(model=self.model, editor=self.editor, edits=edits),
        )

    @classmethod
    def load(cls, path: str | Path, lm: LM) -> Update:
        """The update saved at ``path``.

        Raises ValueError if it is unreadable or damaged, does not fit ``lm``, or was made for
        another model.
        """
        try:
            tensors, meta = load_tensors(path)
            sides = [f"{NAMES[part]}{side}" for part in PARTS for side in Factors._fields]
            parts: dict[str, dict[int, Tensor]] = {side: {} for side in (*sides, "keys")}
            for name, tensor in tensors.items():
                side, _, layer = name.rpartition(".")
                parts[side][int(layer)] = tensor.to(lm.device)
            factors, attn = (_paired(parts, NAMES[part]) for part in PARTS)
            keys = _histories(parts, lm.d_mlp)
            if not isinstance(meta["edits"], list) or not is_text(meta["editor"]):
                raise ValueError(f"its edits or its editor are {quoted(meta)}")
            edits = tuple(Edit(**edit) for edit in meta["edits"])
            model = meta["model"]
        except (LookupError, TypeError, ValueError) as err:
            why = f"{type(err).__name__}: {err}"
            raise ValueError(f"{str(path)!r} is not a saved update ({why[:300]})") from err
        if model != lm.fingerprint:
            raise ValueError(
                f"{str(path)!r} was made for the model {quoted(model) if model else 'unknown'}, "
                f"not for {lm.name!r} ({lm.fingerprint})"
            )
        update = cls(factors, meta["editor"], edits, model, keys, attn)
        _fits(lm, update)
        return update


def commit(lm: LM, update: Update):
    """Write ``update`` into the weights for good, W_l <- W_l + dW_l, all layers or none.

    Raises ValueError if the shapes do not fit.
    """
    _fits(lm, update)
    with lm.changing(update.factors, update.attn) as keep:
        _add(lm, update)
        keep()


def save_pretrained(lm: LM, update: Update, folder: str | Path):
    """The edited model and its tokenizer as a folder that plain transformers loads, with a record
    of the model that it was.

    ``lm`` itself is as it was; the folder is there as a whole or not at all.
    Raises ValueError if the shapes do not fit, or if ``folder`` exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists; give the edited model a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = lm.fingerprint
    with (
        TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as part,
        applied(lm, update),
    ):
        lm.model.save_pretrained(part)
        lm.tokenizer.save_pretrained(part)
        came_from = [(lm.name, before), *lm.ancestors]
        write_record(Path(part), {"edited_from": came_from, "natural": lm.natural})
        Path(part).chmod(0o755)
        os.replace(part, folder)
        Path(part).mkdir()  # for the clean-up to find


@unbroken
def applied(lm: LM, update: Update) -> Iterator[LM]:
    """The model with ``update`` written, for the length of a ``with``.

    On the way out, whatever happened, the very bits come back.
    Raises ValueError if the shapes do not fit (nothing is written).
    """
    _fits(lm, update)
    with lm.changing(update.factors, update.attn):
        _add(lm, update)
        yield lm


@unbroken
def overlaid(lm: LM, updates: Sequence[Update | None]) -> Iterator[LM]:
    """The model as if edited, weights untouched: W x_b + (x_b right_b) left_b^T for each row b.

    updates: one for each row of every batch run inside (rows may share one; None leaves a row
    alone), or a single one for all rows.
    Raises ValueError if the shapes do not fit, or a batch has another number of rows than updates
    that differ.
    """
    different = list({id(u): u for u in updates if u is not None}.values())
    for update in different:
        _fits(lm, update)
    number = {id(u): i for i, u in enumerate(different, 1)}  # 0: no update
    index = torch.tensor([number.get(id(u), 0) for u in updates], dtype=torch.long)
    places = [
        (part, layer)
        for part in PARTS
        for layer in sorted({layer for u in different for layer in u.changes(part)})
    ]
    with added(
        lm,
        {(part, layer): _correction(lm, part, layer, different, index) for part, layer in places},
    ):
        yield lm


def _correction(
    lm: LM, part: Part, layer: int, updates: list[Update], index: Int[Tensor, " batch"]
) -> Callable[[Keys], Outputs]:
    """x -> every row's correction of W x.

    Those of low rank are added in one product, one of full rank (FT's) as it is, uncopied.
    index: number of each row's update, from 1; 0 for none.
    """
    pairs = {
        i: u.changes(part)[layer] for i, u in enumerate(updates, 1) if layer in u.changes(part)
    }
    dtype = torch.promote_types(lm.dtype, torch.float32)
    shared = len(updates) == 1 and bool((index == 1).all())  # one update for all rows
    index = index.to(lm.device)
    terms: list[tuple[slice | Tensor, Tensor, Tensor]] = []  # rows, left, right

    # 1. Updates that are multiplied as they are: all rows' only one, and those of full rank.
    alone = [i for i, pair in pairs.items() if shared or pair.left.shape[1] >= lm.d_model]
    for i in alone:
        left, right = (factor.to(lm.device, dtype) for factor in pairs[i])
        terms.append((slice(None) if shared else (index == i).nonzero()[:, 0], left, right))

    # 2. The others, padded with zeros to one rank (number 0 is all zeros), then one copy per row.
    low = {i: pair for i, pair in pairs.items() if i not in alone}
    if low:
        rank = max(pair.left.shape[1] for pair in low.values())
        left, right = (
            torch.zeros(len(updates) + 1, size, rank, dtype=dtype, device=lm.device)
            for size in (lm.d_model, lm.width(part))
        )
        for i, pair in low.items():
            left[i, :, : pair.left.shape[1]], right[i, :, : pair.right.shape[1]] = pair
        terms.append((slice(None), left[index], right[index]))

    def correction(x: Keys) -> Outputs:
        if not shared and len(x) != len(index):
            raise ValueError(
                f"the batch has {len(x)} rows, the overlay {len(index)}; "
                "give one update for each row, or one for all"
            )
        dtype_out, x = x.dtype, x.to(dtype)
        change = x.new_zeros(*x.shape[:-1], lm.d_model)
        for rows, left, right in terms:
            change[rows] += (x[rows] @ right) @ left.mT
        return change.to(dtype_out)

    return correction


def _sum(one: Factors, other: Factors) -> Factors:
    """Side by side, or, where that is a rank above d_model, (identity, the sum^T)."""
    if one.left.shape[1] + other.left.shape[1] <= len(one.left):
        return Factors(*(torch.cat(pair, 1) for pair in zip(one, other, strict=True)))
    eye = torch.eye(len(one.left), dtype=one.left.dtype, device=one.left.device)
    return Factors(eye, torch.addmm(one.right @ one.left.T, other.right, other.left.T))


def _both(one: Changes, other: Changes) -> Changes:
    """The sums, in the order of layers."""
    both = dict(one)
    for layer, new in other.items():
        both[layer] = _sum(both[layer], new) if layer in both else new
    return dict(sorted(both.items()))


def _paired(parts: Mapping[str, Mapping[int, Tensor]], name: str) -> dict[int, Factors]:
    """The factors of a file by layer. Raises ValueError if a layer has one of the two only."""
    left, right = (parts[f"{name}{side}"] for side in Factors._fields)
    if left.keys() != right.keys():
        raise ValueError(
            f"{name}left is of layers {sorted(left)}, {name}right of layers {sorted(right)}"
        )
    return {layer: Factors(left[layer], right[layer]) for layer in sorted(left)}


def _histories(parts: Mapping[str, Mapping[int, Tensor]], size: int) -> dict[int, Tensor]:
    """The keys of a file by layer. Raises ValueError for what is no matrix of keys."""
    for layer, K in parts["keys"].items():
        if K.ndim != 2 or len(K) != size or not K.is_floating_point():
            raise ValueError(f"keys of layer {layer} are {tuple(K.shape)} of {K.dtype}")
    return dict(parts["keys"])


def _add(lm: LM, update: Update):
    with torch.no_grad():
        for part in PARTS:
            for layer, (left, right) in update.changes(part).items():
                weight = lm.weight(layer, part)
                weight.copy_(weight + (left @ right.T).to(weight))


def _fits(lm: LM, update: Update):
    """Raises ValueError unless every factor is a finite matrix of the model's shape."""
    if layers := {*update.layers, *update.keys}:
        lm.layers(tuple(layers))
    places = [(p, layer, pair) for p in PARTS for layer, pair in update.changes(p).items()]
    for part, layer, pair in places:
        where, width = f"layer {layer} of the update{OF[part]}", lm.width(part)
        for side, factor in zip(Factors._fields, pair, strict=True):
            if not isinstance(factor, Tensor) or not factor.is_floating_point():
                kind = getattr(factor, "dtype", type(factor).__name__)
                raise ValueError(f"{where}: {side} is {kind}, no tensor of floating-point numbers")
            if not factor.isfinite().all():
                raise ValueError(f"{where}: {side} holds a number that is not finite")
        left, right = (tuple(factor.shape) for factor in pair)
        if left[:1] != (lm.d_model,) or right[:1] != (width,) or left[1:] != right[1:]:
            raise ValueError(
                f"{where}: factors {left}, {right} do not fit "
                f"({lm.d_model}, r), ({width}, r) of model {lm.name!r}"
            )
        if len(left) != 2:
            raise ValueError(f"{where}: factors {left}, {right} are no matrices")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping):
    """A safetensors file with JSON metadata and a checksum; readers see all of it or nothing."""
    kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with replacing(path) as part:
        save_file(kept, part, {"acelib": json.dumps(meta), "checksum": _checksum(kept, meta)})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors (on the CPU) and metadata of a file written by ``save_tensors``.

    Raises ValueError if the file is no such one, is damaged, or holds numbers that are not finite.
    """
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kept = file.metadata() or {}
        meta, checksum = json.loads(kept["acelib"]), kept["checksum"]
    except (OSError, SafetensorError, LookupError, ValueError, RecursionError) as err:
        raise ValueError(f"it cannot be read ({type(err).__name__}: {err})") from err
    if not isinstance(meta, dict) or checksum != _checksum(tensors, meta):
        raise ValueError("it is damaged: its checksum is another")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds a number that is not finite")
    return tensors, meta


def _checksum(tensors: Mapping[str, Tensor], meta: Mapping) -> str:
    """Sixteen hex digits that change with any bit of the tensors and of what is said of them."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
