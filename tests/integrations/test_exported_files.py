"""A run is written for others, and gives there the logits that it gives here."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import safe_open
from schemes import KINDS, position

import xcope
from xcope.cli import export as command
from xcope.cli import run as run_command
from xcope.config import load_config
from xcope.config.build import make_model
from xcope.errors import FlagError
from xcope.integrations import export
from xcope.training import RunError, load_run, train

LACKED = {
    "contextual_rotary": "nothing like ContextualAngles",
    "bam": "nothing like BamBias",
    "cable": "nothing like Cable",
    "fire": "nothing like FireBias, of position 'fire': it has 'absolute'",
    "kerple": "nothing like KerpleBias",
    "length_scale": "nothing like a scale of queries",
    "path": "nothing like Path, of position 'path'",
    "relative": "nothing like Relative,",
    "rotary_dynamic": "nothing like DynamicRotaryAngles",
    "rotary_longrope": "nothing like LongRotaryAngles",
    "rotary_yarn": "YaRN's amplitude of rotary is not known",
    "sandwich": "nothing like SandwichBias",
    "stick_breaking": "nothing like StickBreaking,",
    "wall": "nothing like Wall,",
}
POSITIONS = {
    name: {"position": position(name)} for name in (*KINDS, "cope_rotary", "rotary_yarn")
} | {
    "a layer": {"position": {"layers": [{"name": "cope", "max_pos": 8}, "none"]}},
    "two sizes": {"position": {"layers": [{"name": "cope", "max_pos": n} for n in (4, 8)]}},
    "flags": {
        "attn_use_cope": True,
        "rotary_pos_emb": True,
        "attn_kv_heads": 1,
        "attn_qk_norm": True,
        "ff_glu": True,
        "tie_embedding": True,
        "num_memory_tokens": 2,
        "attn_num_mem_kv": 1,
        "attn_flash": True,
    },
    "slopes": {"position": {"name": "alibi", "slopes": [0.5, 0.25]}},
    "some heads": {"position": {"name": "alibi", "num_heads": 1}},
    "forgets": {"position": {"name": "forgetting", "post_log_scale": 0.5}},
    "base": {"position": {"name": "rotary", "base": 500.0, "dim": 8, "random_max": 100}},
    "turned": {"position": "xpos", "attn_flash": True, "rotary_interpolation_factor": 2.0},
    "both": {"position": ["absolute", "t5"]},
    "memories": {"position": "rotary", "use_abs_pos_emb": True, "max_seq_len": 80},
    "normed": {"position": "absolute", "l2norm_embed": True},
    "some windows": {"position": ["rotary", {"layers": [{"name": "window", "size": 4}, "sink"]}]},
    "log": {"position": {"name": "dynamic", "log_distance": True, "norm": True, "depth": 3}},
}
REFUSED = {
    "heads": ({"heads": ["cope", "rotary"]}, "heads of one layer with different schemes"),
    "some layers": (["rotary", "none"], "layers of x-transformers share their rotation"),
    "some forget": ({"layers": ["forgetting", "none"]}, "all layers forget or none"),
    "soft": ({"name": "cope", "soft_onehot": True}, "fails in the forward pass of soft"),
    "theta": ({"name": "sinusoidal", "theta": 100.0}, "no flag for sinusoidal_theta"),
    "keys": ({"name": "cope", "sep_keys": True}, "cope_sep_keys=True is not known"),
    "values": ({"name": "cope", "val_gates": True}, "cope_val_gates=True is not known"),
    "per head": ({"name": "cope", "per_head": True}, "cope_per_head=True is not known"),
    "half": ({"name": "rotary", "layout": "half_split"}, "rotary's layout 'half_split'"),
    "unscaled": ({"name": "t5", "start": "authors"}, "t5_scaled=False is not known"),
    "whole": ({"name": "absolute", "start": "authors"}, "absolute_scaled=False is not known"),
    "relu": ({"name": "dynamic", "start": "authors"}, "dynamic_activation='relu' is not known"),
    "one for all": ({"name": "kerple", "shared": True}, "nothing like KerpleBias"),
    "first keys": ({"name": "window", "sinks": 4}, "a window with first keys"),
    "chunks": ({"name": "window", "chunked": True}, "or in chunks"),
    "plus one": ({"name": "sink", "learned": False}, "a sink that is not learned"),
}
DRAWN = {"name": "rotary", "random_max": 100, "random_at_test": True}


def config_of(folder, **model):
    path = folder / "config.yaml"
    sections = {
        "model": {"dim": 32, "depth": 2, "heads": 2} | model,
        "task": {"name": "counting"},
        "train": {"steps": 1, "batch_size": 2, "device": "cpu"},
        "evaluate": {"batches": 1},
    }
    path.write_text(yaml.safe_dump(sections))
    return load_config(path, [])


def shaken(config, num_tokens=20):
    """The model of a config as if it had been trained."""
    torch.manual_seed(0)
    model = make_model(config.model, num_tokens, 64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def written(kind, folder, monkeypatch, name="model", **model):
    """The model, and the lines that tell of its file."""
    config = config_of(folder, **model)
    trained = shaken(config)
    monkeypatch.setattr(export, "load_run", lambda run: (config, trained))
    return trained, kind(folder / "run", folder / name)


ALONE = """
import json, sys
import torch
sys.modules["xcope"] = None  # to import it is an error
from safetensors import safe_open
found = {}
for name in sys.argv[1:]:
    with safe_open(name, "pt") as file:
        exec(json.loads(file.metadata()["x-transformers"])["python"])
    found[name] = [model(tokens) for tokens in torch.load("tokens.pt")]
del sys.modules["xcope"]
exec(open("program.py").read().partition("logits")[0])
found["program"] = [program(tokens) for tokens in torch.load("tokens.pt")]
torch.save(found, "found.pt")
"""


def test_in_a_process_of_their_own_they_give_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    texts = [torch.randint(20, (b, n)) for b, n in ((1, 1), (2, 30), (3, 7))]
    torch.save(texts, tmp_path / "tokens.pt")
    expected, lines = {}, {}
    for index, (label, model) in enumerate(POSITIONS.items()):
        if label in LACKED:
            continue
        name = f"{index}.safetensors"
        ours, lines[label] = written(export.to_x_transformers, tmp_path, monkeypatch, name, **model)
        expected[name] = [ours(text).detach() for text in texts]
    ours, program = written(
        export.to_torch_export, tmp_path, monkeypatch, "p.pt2", **POSITIONS["cope_rotary"]
    )
    assert program[1] == "import xcope.ops  # the program has operators of it"
    (tmp_path / "program.py").write_text("\n".join(program))
    files = list(expected)
    expected["program"] = [ours(text).detach() for text in texts]
    subprocess.run([sys.executable, "-c", ALONE, *files], cwd=tmp_path, check=True, timeout=240)
    found = torch.load(tmp_path / "found.pt")
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        for mine, other in zip(found[name], logits, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)
    assert "        attn_use_cope=(True, False)," in lines["a layer"]
    assert "        attn_cope_max_pos=(4, 8)," in lines["two sizes"]
    assert lines["base"][0].startswith("# in training, x-transformers draws no places at random")
    with safe_open(tmp_path / files[0], "pt") as file:
        flags = json.loads(file.metadata()["x-transformers"])
    assert flags["decoder"]["dim"] == 32
    assert flags["wrapper"]["use_abs_pos_emb"] is True


@pytest.mark.parametrize("label", [*LACKED, *REFUSED])
def test_what_x_transformers_lacks_is_refused_by_name(label, tmp_path, monkeypatch):
    asked, reason = REFUSED.get(label, (None, None))
    model = POSITIONS[label] if asked is None else {"position": asked}
    with pytest.raises(FlagError, match=f"{reason or LACKED[label]}.*--to torch-export"):
        written(export.to_x_transformers, tmp_path, monkeypatch, **model)
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["absolute", "forgetting"])
def test_programs_take_any_batch_and_length(name, tmp_path, monkeypatch):
    model, lines = written(export.to_torch_export, tmp_path, monkeypatch, **POSITIONS[name])
    program = torch.export.load(tmp_path / "model").module()
    longest = model.max_table_len
    for batch, n in ((1, 1), (2, 9), (5, longest or 64), (1, 150)):
        if longest is None or n <= longest:
            tokens = torch.randint(20, (batch, n))
            torch.testing.assert_close(program(tokens), model(tokens), atol=1e-5, rtol=1e-4)
    assert ("import xcope.ops" in "\n".join(lines)) == (name != "absolute")
    assert lines[-1].endswith("of any size" if longest is None else f"n up to {longest}")


def test_the_command_writes_a_run_and_keeps_what_is_there(tmp_path, capsys):
    run = tmp_path / "run"
    train(config_of(tmp_path, position="rotary"), run)
    path = tmp_path / "new folder" / "model.safetensors"
    ask = [str(run), "--to", "x-transformers", str(path)]
    assert run_command(command.command, ask) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {path}\n  from safetensors.torch import load_file\n")
    _, model = load_run(run)
    written = path.read_bytes()
    place = {"model.safetensors": str(path)}
    lines = [line[2:] for line in out.splitlines()[1:]]
    names = {}
    exec("\n".join(lines).replace("model.safetensors", place["model.safetensors"]), names)
    tokens = torch.randint(model.num_tokens, (2, 20))
    torch.testing.assert_close(names["model"](tokens), model(tokens), atol=1e-4, rtol=1e-3)
    path.write_text("mine")
    assert run_command(command.command, ask) == 2
    assert f"{path} is there already: --overwrite replaces it" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert run_command(command.command, [*ask, "--overwrite"]) == 0
    assert path.read_bytes() == written
    assert run_command(command.command, [str(run), "--to", "onnx", str(path)]) == 2
    assert "'onnx' is not one of 'hf', 'x-transformers', 'torch-export'" in capsys.readouterr().err
    assert run_command(command.command, [str(run), "--to", "torch-export", str(tmp_path)]) == 2
    assert "is a folder: name a file" in capsys.readouterr().err
    assert run_command(command.command, [str(tmp_path), "--to", "torch-export", "a.pt2"]) == 2


@pytest.mark.parametrize("kind", [export.to_x_transformers, export.to_torch_export])
def test_nothing_is_written_where_the_logits_differ_or_writing_fails(kind, tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        written(kind, tmp_path, monkeypatch, position="none")
    path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(export, "CLOSE", -1.0)
        with pytest.raises(FlagError, match="nothing was written"):
            written(kind, tmp_path, monkeypatch, position="none")
    with monkeypatch.context() as patched:
        patched.setattr(xcope.files, "fsync", lambda path: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            written(kind, tmp_path, monkeypatch, position="none")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("kind", [export.to_x_transformers, export.to_torch_export])
def test_places_that_are_drawn_in_each_call_are_refused(kind, tmp_path, monkeypatch):
    with pytest.raises(FlagError, match="rotary_random_at_test=True draws places in each call"):
        written(kind, tmp_path, monkeypatch, position=DRAWN)
