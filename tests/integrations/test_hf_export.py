"""``xcope export RUN --to hf``: a folder that transformers, its pipeline and lm-eval read."""

import json
import math
import shutil
import subprocess
import sys
import textwrap

import lm_eval
import pytest
import torch
import yaml
from hf_models import TOKENS, model_of
from lm_eval.tasks import TaskManager
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from xcope import cli, integrations
from xcope.config import load_config
from xcope.data.tokenizer import train_tokenizer
from xcope.integrations.transformers import XCopeConfig, XCopeForCausalLM
from xcope.integrations.transformers.export import export, tokenizer_of
from xcope.positions import registry as positions
from xcope.tasks import task, tasks
from xcope.training import example_prompt, load_run, sample, train
from xcope.training.errors import RunError

TEXT = "def count(words):\n    return len(words)  # wörter\n" * 20
MODEL = {"dim": 32, "depth": 1, "heads": 2}
TRAIN = {"steps": 30, "batch_size": 8, "lr": 0.02, "device": "cpu"}
MEASURED = {"batches": 1, "batch_size": 4}


def run_of(folder, name, model, task):
    config = {"model": MODEL | model, "task": task, "train": TRAIN, "evaluate": MEASURED}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    train(load_config(folder / f"{name}.yaml"), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of text, one of words, and both exported."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(6):
        (corpus / f"{number}.py").write_text(TEXT)
    text = {"name": "text", "corpus": str(corpus), "length": 24, "stretch": 2, "held_out": 0.5}
    run_of(folder, "text", {"position": "cope", "tie_embedding": True}, text)
    words = {"position": ["absolute", "cope"]}
    run_of(folder, "copy", words, {"name": "copy", "length": 4, "stretch": 2})
    for name in ("text", "copy"):
        export(folder / name, folder / f"hf-{name}")
    return folder


@pytest.mark.parametrize("name", ["text", "copy"])
def test_the_folder_gives_the_text_that_sample_gives(name, runs):
    _, ours = load_run(runs / name)
    model = AutoModelForCausalLM.from_pretrained(runs / f"hf-{name}")
    tokenizer = AutoTokenizer.from_pretrained(runs / f"hf-{name}")
    prompts = {"text": ["def ", "return wö"], "copy": ["3 4 |", "1 2 3 |"]}[name]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    assert batch["attention_mask"].min() == 0
    text = model.generate(**batch, max_new_tokens=12)[:, -12:].tolist()
    assert text == [sample(ours, prompt, 12, temperature=0) for prompt in ids]
    pipe = pipeline("text-generation", model=str(runs / f"hf-{name}"))
    told = pipe(prompts, batch_size=2, max_new_tokens=12, return_full_text=False, do_sample=False)
    special = tokenizer.all_special_ids
    for out, new in zip(told, text, strict=True):
        kept = [token for token in new if token not in special]
        assert out[0]["generated_text"] == tokenizer.decode(kept)


@pytest.mark.parametrize("name", ["text", "copy"])
def test_the_commands_of_a_shell_give_the_same_text(name, runs, tmp_path, capsys, monkeypatch):
    folder, prompt = str(tmp_path / "hf"), {"text": "def wö", "copy": "4 2 |"}[name]
    written = [str(runs / name), folder, "--to", "hf"]
    assert cli.run(cli.xcope, ["export", *written]) == 0
    told = capsys.readouterr()
    assert not told.err
    how = textwrap.dedent(told.out.partition("\n")[2])
    exec(how, {})
    printed = capsys.readouterr().out
    asked = ["sample", str(runs / name), "--temperature", "0", "--tokens"]
    assert cli.run(cli.xcope, [*asked, "20"]) == 0  # both begin as a test sequence does
    assert capsys.readouterr().out == printed
    assert cli.run(cli.xcope, [*asked, "12", "--prompt", prompt]) == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    text = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=12)
    assert capsys.readouterr().out == tokenizer.decode(text[0]) + "\n"
    assert cli.run(cli.xcope, ["export", *written]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "xcope.integrations.transformers.export", None)
    assert cli.run(cli.xcope, ["export", *written, "--overwrite"]) == 2
    assert 'pip install "xcope[hf]"' in capsys.readouterr().err


def test_the_card_says_what_the_model_is_and_its_code_runs(runs, monkeypatch, capsys):
    card = (runs / "hf-copy" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert {"absolute", "cope"} <= set(front["tags"])
    config, model = load_run(runs / "copy")
    shown = card.split("```yaml\n")[1].split("```")[0]
    assert shown == config.to_yaml()
    measured = json.loads((runs / "copy" / "results.json").read_text())["splits"]
    assert f"| longer_2x | 18 | {measured['longer_2x']['loss']:.3f} |" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    monkeypatch.chdir(runs)
    exec(card.split("```python\n")[1].split("```")[0], {})
    prompt = example_prompt(task("copy", {"length": 4, "stretch": 2}))
    new = sample(model, prompt, 20, temperature=0)
    words = task("copy", {"length": 4}).decode(prompt + new)
    assert capsys.readouterr().out == words + "\n"


def test_nothing_is_overwritten_unless_asked_and_never_half(runs, tmp_path, monkeypatch):
    run, folder = runs / "copy", tmp_path / "deep" / "model"
    export(run, folder)
    written = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json", "README.md"} <= written
    assert {"tokenizer.json", "tokenizer_config.json", "modeling_xcope.py"} <= written
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    with pytest.raises(RunError, match="--overwrite replaces it"):
        export(run, folder)
    before = (folder / "model.safetensors").stat().st_mtime_ns

    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("xcope.integrations.transformers.export.model_card", full)
        with pytest.raises(OSError, match="No space"):
            export(run, folder, overwrite=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    export(run, folder, overwrite=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns > before
    assert [file.name for file in folder.parent.iterdir()] == ["model"]
    for taken in (run, tmp_path / "deep"):
        with pytest.raises(RunError, match="is no exported model"):
            export(run, taken, overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        export(run, folder / "config.json", overwrite=True)


def test_a_run_whose_data_and_results_are_gone_is_exported(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "text", run)
    (run / "results.json").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(runs / "corpus"), str(tmp_path / "gone")))
    export(run, tmp_path / "hf")
    assert "nothing was measured" in (tmp_path / "hf" / "README.md").read_text()


OWN = """
from dataclasses import dataclass
from typing import ClassVar

from xcope.positions import register
from xcope.positions.alibi import Alibi


@register
@dataclass(frozen=True, kw_only=True)
class Recency(Alibi):
    name: ClassVar[str] = "recency"
    upstream_switch: ClassVar[str | None] = None
    upstream_options: ClassVar[dict[str, str]] = {}
"""


def test_a_scheme_of_ones_own_is_exported_and_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(positions, "_SCHEMES", dict(positions._SCHEMES))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "recency.py").write_text(OWN)
    config = {
        "import": ["recency.py"],
        "model": MODEL | {"position": "recency"},
        "task": {"name": "copy", "length": 4, "stretch": 2},
        "train": TRAIN | {"steps": 2},
        "evaluate": MEASURED,
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    train(load_config(tmp_path / "own.yaml"), tmp_path / "run")
    note, *code = export(tmp_path / "run", tmp_path / "hf")
    assert f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'hf')!r})" in code
    assert note == "Before the model is loaded, its plugins have to be imported: recency.py."
    assert "have to be imported: recency.py" in (tmp_path / "hf" / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert [one.name for one in loaded.model.schemes] == ["recency"]


OPTIONS = {"text": {"corpus": __file__}, "indexing": {"corpus": __file__}}


@pytest.mark.parametrize("name", list(tasks()))
def test_the_tokenizer_of_every_task_encodes_and_decodes_as_the_task(name, tmp_path):
    made = task(name, OPTIONS.get(name, {}), data=False)
    tokenizer_of(made).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    drawn = torch.randint(made.num_tokens, (20, 9)).tolist()
    for row in [*drawn, [], [0, 0]]:
        text = made.decode(row)
        assert tokenizer.decode(row) == text
        assert tokenizer(text)["input_ids"] == made.encode(text)
    if made.num_tokens == 256:
        for text in ("Ā\0é", " two  spaces\r\n\ttab ", "日本語 🙂", "<pad> </s>"):
            assert tokenizer(text)["input_ids"] == list(text.encode())
            assert tokenizer.decode(tokenizer.encode(text)) == text
    else:
        with pytest.raises(Exception, match="Missing"):
            tokenizer.encode("no-such-word")


def _bpe(end):
    """A tokenizer of its own, with or without a token that ends documents."""
    made = Tokenizer.from_str(train_tokenizer([TEXT], 290).json)
    if not end:
        made = Tokenizer(models.BPE(json.loads(made.to_str())["model"]["vocab"], []))
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        made.add_tokens([AddedToken("[PAD]", special=True)])
    return made


@pytest.mark.parametrize("end", [True, False], ids=["with an end", "without"])
def test_the_tokenizer_of_a_text_is_the_one_it_was_trained_with(end, tmp_path):
    made = _bpe(end)
    made.post_processor = TemplateProcessing(  # adds what the model has never seen
        single="( $A )", special_tokens=[(mark, made.token_to_id(mark)) for mark in "()"]
    )
    made.enable_truncation(8)
    made.save(str(tmp_path / "own.json"))
    text = task("text", {"corpus": __file__, "tokenizer": str(tmp_path / "own.json")}, data=False)
    tokenizer_of(text).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for words in (TEXT, "<|endoftext|> [PAD]\0", "日本語", ""):
        assert tokenizer(words)["input_ids"] == text.encode(words)
        assert tokenizer.decode(text.encode(words)) == text.decode(text.encode(words))
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == text.reads.separator
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == ("<pad>" if end else "[PAD]")
    # rows that have ended are filled with it, and go on beside the others
    config = XCopeConfig(num_tokens=text.num_tokens, dim=32, heads=2, position="alibi")
    model, batch = XCopeForCausalLM(config).eval(), tokenizer(["def", "return"], padding=True)
    ids, mask = (torch.tensor(batch[name]) for name in ("input_ids", "attention_mask"))
    first = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=1)[0, -1].item()
    assert model.generate(ids[1:], attention_mask=mask[1:], max_new_tokens=1)[0, -1] != first
    ended = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=4,
        eos_token_id=first,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = ended[0, ids.shape[1] :].tolist()
    assert new[0] == first
    assert set(new[1:]) == {tokenizer.pad_token_id}


def test_either_library_may_be_imported_first_and_ours_not_at_all(tmp_path, monkeypatch):
    model_of("cope").save_pretrained(tmp_path)
    # xcope first: transformers is not imported by it, and learns of it when its classes are
    code = f"""
import sys, xcope
assert not any(name.split(".")[0] == "transformers" for name in sys.modules)
from transformers import AutoConfig
assert AutoConfig.from_pretrained({str(tmp_path)!r}).dim == 32
assert "xcope.integrations.transformers.model" not in sys.modules
from transformers import AutoModelForCausalLM
print(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}).model.num_tokens)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{TOKENS}\n", done.stderr
    # transformers first
    CONFIG_MAPPING._extra_content.pop("xcope")
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(XCopeConfig)
    with pytest.raises(ValueError, match="xcope"):
        AutoConfig.for_model("xcope")
    # the folder says where its classes are
    for module in ("dynamic_module_utils", "utils.hub", "utils"):
        cache = str(tmp_path / "modules")
        monkeypatch.setattr(f"transformers.{module}.HF_MODULES_CACHE", cache, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    told = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(told) is XCopeForCausalLM
    assert "xcope" not in CONFIG_MAPPING._extra_content
    told.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert type(again) is XCopeConfig
    integrations.announce()
    assert type(AutoConfig.for_model("xcope")) is XCopeConfig
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is XCopeForCausalLM


# -- lm-eval ---------------------------------------------------------------------------------------

QUESTIONS = [
    {"query": "def count", "choices": ["(words)", " zzz", ":"], "gold": 0},
    {"query": "    return", "choices": [" lens", " len(words)"], "gold": 1},
    {"query": "# w", "choices": ["örter", "orte"], "gold": 0},
]
TEXTS = [{"text": "def count(words):\n"}, {"text": "return len(wörter)"}]
CHOICE = {
    "task": "choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "task": "rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}


def log_likelihood(model, context, continuation):
    ids = torch.tensor([[*context, *continuation]])
    chances = model(ids)[0, :-1].log_softmax(-1)
    return chances.gather(1, ids[0, 1:, None])[-len(continuation) :].sum().item()


def test_lm_eval_gives_our_own_numbers(runs, tmp_path):
    for settings, docs in ((CHOICE, QUESTIONS), (ROLLING, TEXTS)):
        data = tmp_path / f"{settings['task']}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        where = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path)},
            "test_split": "test",
        }
        (tmp_path / f"{settings['task']}.yaml").write_text(yaml.safe_dump(settings | where))
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(runs / "hf-text")},
        tasks=["choice", "rolling"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=2,
        device="cpu",
        bootstrap_iters=0,
    )["results"]

    _, model = load_run(runs / "text")
    right, right_by_length = 0, 0
    for doc in QUESTIONS:
        context = list(doc["query"].encode())
        choices = [choice.encode() for choice in doc["choices"]]
        scores = [log_likelihood(model, context, [*choice]) for choice in choices]
        lengths = [len(choice) for choice in doc["choices"]]
        by_length = [score / n for score, n in zip(scores, lengths, strict=True)]
        right += scores.index(max(scores)) == doc["gold"]
        right_by_length += by_length.index(max(by_length)) == doc["gold"]
    assert theirs["choice"]["acc,none"] == pytest.approx(right / 3)
    assert theirs["choice"]["acc_norm,none"] == pytest.approx(right_by_length / 3)
    texts = [doc["text"].encode() for doc in TEXTS]  # the zero byte stands before a text
    total = sum(log_likelihood(model, [0], [*text]) for text in texts)
    bits = -total / sum(map(len, texts)) / math.log(2)
    assert theirs["rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
