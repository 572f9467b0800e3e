"""Trained runs as files for others: weights for x-transformers alone, programs of ``torch.export``.

Each function takes the folder of a run and a path, and returns the lines that tell how the file is
used. A file is written whole or not at all.
"""

from __future__ import annotations

import copy
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.export import Dim

import xcope
from xcope import files
from xcope.config.build import keywords
from xcope.errors import FlagError
from xcope.integrations.x_transformers import position_flags, revert
from xcope.modules import TransformerWrapper, seam
from xcope.modules.flags import resolve
from xcope.training import RunError, load_run

CLOSE = 1e-3
"""What a model that was rebuilt may differ by, relative to the largest logit."""
NOT_WITH_FLASH = (
    "attn_use_cope",
    "attn_head_learned_sink",
    "rel_pos_bias",
    "dynamic_pos_bias",
)
"""Switches beside which x-transformers takes no ``attn_flash``."""


def to_x_transformers(run: Path, path: Path, *, overwrite: bool = False) -> list[str]:
    """Write a safetensors file from which x-transformers rebuilds the model of a run.

    Its metadata hold, as JSON under ``x-transformers``, the keyword flags and the lines of Python
    that build the model. The model is rebuilt from them, and its logits are compared, before
    anything is written.

    Args:
        run: folder of a run with a checkpoint.
        path: of the file.
        overwrite: replace a file that is there.

    Raises:
        RunError: no such run; the file is there already.
        FlagError: x-transformers lacks a scheme or a flag of the model.
    """
    check_free(path, overwrite)
    config, model = load_run(run)
    _check_draws(model)
    inner, outer = keywords(config.model)
    upstream = resolve(config.model.position, inner).upstream
    theirs = copy.deepcopy(model)
    try:
        revert(theirs)
        positions, around = position_flags(theirs)
        if positions.get("attn_cope_soft_onehot_pos"):
            raise FlagError(
                "cope_soft_onehot", "x-transformers fails in the forward pass of soft one-hot CoPE"
            )
    except FlagError as error:
        raise FlagError(
            error.flag,
            f"{config.label()} does not go to x-transformers: {error}. --to torch-export and "
            "--to hf take every scheme",
        ) from error
    decoder = _without_packing(upstream) | positions
    if any(decoder.get(flag) for flag in NOT_WITH_FLASH):
        decoder.pop("attn_flash", None)
    wrapper = {
        "num_tokens": model.num_tokens,
        "max_seq_len": model.max_seq_len,
        **outer,
        **around,
    }
    weights = {name: _alone(tensor) for name, tensor in theirs.state_dict().items()}
    rebuilt = seam.UpstreamTransformerWrapper(
        **copy.deepcopy(wrapper),
        attn_layers=seam.UpstreamDecoder(**copy.deepcopy(decoder) | {"verbose": False}),
    ).eval()
    rebuilt.load_state_dict(weights, strict=True)
    _compare(model, rebuilt)
    lines = _rebuilding(path.name, decoder, wrapper)
    if any(getattr(scheme, "random_max", None) for scheme in model.schemes):
        lines.insert(0, "# in training, x-transformers draws no places at random (random_max)")
    versions = {name: version(name) for name in ("x-transformers", "torch")}
    told = {
        "decoder": decoder,
        "wrapper": wrapper,
        "python": "\n".join(lines),
        "versions": versions | {"xcope": xcope.__version__},
    }
    # one entry: several would stand in any order, and two files of one run would differ
    metadata = {"x-transformers": json.dumps(told)}
    _write(path, safetensors.torch.save(weights, metadata))
    return lines


def to_torch_export(run: Path, path: Path, *, overwrite: bool = False) -> list[str]:
    """Write the model of a run as a program of ``torch.export``: tokens (b n) → logits.

    For batches and texts of any size, up to the end of a table of absolute positions.

    Args:
        run: folder of a run with a checkpoint.
        path: of the file, usually ``.pt2``.
        overwrite: replace a file that is there.

    Raises:
        RunError: no such run; the file is there already.
        FlagError: a flag of the model that cannot be traced.
    """
    check_free(path, overwrite)
    config, model = load_run(run)
    _check_draws(model)
    longest = model.max_table_len
    # numbers that are no sizes of the model, so that none is taken for another
    tokens = torch.zeros(3, min(37, longest or 37), dtype=torch.long)
    length: Any = Dim.STATIC if longest == 1 else Dim("length", max=longest)
    try:
        program = torch.export.export(
            model, (tokens,), dynamic_shapes=({0: Dim("batch"), 1: length},)
        )
    except FlagError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FlagError(
            "model", f"{config.label()} cannot be traced by torch.export: {reason:.300}"
        ) from error
    _compare(model, program.module())
    content = io.BytesIO()
    torch.export.save(program, content)
    _write(path, content.getvalue())
    named = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    lines = ["import torch", ""]
    if any(name.startswith("xcope.") for name in named):
        lines[1:] = ["import xcope.ops  # the program has operators of it", ""]
    return [
        *lines,
        f"program = torch.export.load({path.name!r}).module()",
        "logits = program(tokens)  # int64 (b n), "
        + ("of any size" if longest is None else f"n up to {longest}"),
    ]


def _check_draws(model: TransformerWrapper) -> None:
    """Raise a `FlagError` if the model draws places when it is asked."""
    for one in model.schemes:
        if getattr(one, "random_at_test", False):
            flag = one.flag("random_at_test")
            raise FlagError(
                flag,
                f"{flag}=True draws places in each call, which what is exported cannot: drop it",
            )


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `RunError` unless a file may be written to ``path``."""
    if path.is_dir():
        raise RunError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise RunError(f"{path} is there already: --overwrite replaces it")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content)


def _without_packing(flags: dict[str, Any]) -> dict[str, Any]:
    """Ours packs documents by itself; x-transformers needs another package for the flag."""
    return {name: value for name, value in flags.items() if name != "attn_flash_pack_seq"}


def _alone(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().contiguous()


@torch.no_grad()
def _compare(model: TransformerWrapper, other: Any) -> None:
    """Raise an error unless both give the same logits at several lengths."""
    for n in (1, 2, min(48, model.max_table_len or 48)):
        tokens = torch.randint(model.num_tokens, (2, min(n, model.max_table_len or n)))
        mine, its = model(tokens), other(tokens)
        for ours, theirs in zip(
            *((o,) if isinstance(o, Tensor) else o for o in (mine, its)), strict=True
        ):
            off = float((ours - theirs).abs().max())
            if not off <= CLOSE * max(1.0, float(ours.abs().max())):
                raise FlagError(
                    "model",
                    f"nothing was written: what was made differs from the model by {off:.2g}",
                )


def _rebuilding(name: str, decoder: dict[str, Any], wrapper: dict[str, Any]) -> list[str]:
    """Lines of Python that rebuild the model from a file."""
    return [
        "from safetensors.torch import load_file",
        "from x_transformers import Decoder, TransformerWrapper",
        "",
        "model = TransformerWrapper(",
        *(f"    {flag}={value!r}," for flag, value in wrapper.items()),
        "    attn_layers=Decoder(",
        *(f"        {flag}={value!r}," for flag, value in decoder.items()),
        "    ),",
        ")",
        f"model.load_state_dict(load_file({name!r}))",
        "model.eval()",
    ]
