"""A run as a folder of Hugging Face transformers: weights, config, tokenizer and a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging

from xcope import files, markdown
from xcope.config import Config, build_task
from xcope.data.tokenizer import END
from xcope.errors import FlagError
from xcope.integrations.transformers.config import XCopeConfig
from xcope.integrations.transformers.model import XCopeForCausalLM
from xcope.modules import TransformerWrapper
from xcope.modules.flags import option_flags
from xcope.positions.plan import fitted, table_size
from xcope.positions.tables import BLOCK
from xcope.tasks import Task
from xcope.tasks.corpus import CorpusTask
from xcope.training import RunFolder, load_run
from xcope.training.errors import RunError
from xcope.training.metrics import METRICS
from xcope.training.sampling import example_prompt

PAD = "<pad>"
PADDINGS = ("[PAD]", "<|pad|>", "<|padding|>", PAD)
"""What fills rows of unlike lengths: one of these that a tokenizer has, else the last."""
MOST_TRIED = 4096
"""Tokens that a tokenizer is tried with."""


def export(run: Path, folder: Path, *, overwrite: bool = False) -> list[str]:
    """Write a run as a folder that ``from_pretrained`` reads.

    ``config.json``, ``model.safetensors``, ``generation_config.json``, ``README.md``, the tokenizer
    files, and a file of imports for ``trust_remote_code=True``. It is there whole or not at all.

    Args:
        run: folder of a run with a checkpoint.
        folder: to write; its parents are made.
        overwrite: replace an earlier export. Other folders are never replaced.

    Returns:
        Lines that tell how it is used.

    Raises:
        RunError: see `load_run`; a folder that is taken.
        FlagError: flags that `XCopeForCausalLM` does not take.
    """
    given, folder = folder, folder.resolve()
    _check_free(folder, overwrite)
    config, model = load_run(run)
    task = build_task(config)
    lines = [_needs(config)] if config.plugins else []
    exported = exported_model(config, model)
    tokenizer = tokenizer_of(task)
    with _replaced(folder) as new, _without_progress():
        exported.save_pretrained(new)
        if tokenizer is not None:
            if model.max_table_len is not None:
                tokenizer.model_max_length = model.max_table_len
            tokenizer.save_pretrained(new)
        card = model_card(run, config, exported, task, tokenizer is not None, folder.name)
        files.write_text(new / "README.md", card)
    if tokenizer is None:
        lines.append(
            f"Without a tokenizer: what task {task.name!r} encodes is neither bytes nor words "
            "between spaces. Give token ids."
        )
    return [*lines, *_use(task, tokenizer is not None, str(given)).splitlines()]


def exported_model(config: Config, model: TransformerWrapper) -> XCopeForCausalLM:
    """A trained decoder as a model of transformers, with weights of its own.

    Raises:
        FlagError: flags that `XCopeForCausalLM` does not take.
    """
    section: dict[str, Any] = config.model.model_dump(mode="json")
    section["max_seq_len"] = model.max_seq_len
    block = model.attn_layers.block
    if block is not None:  # which is not known there
        section["position"] = fitted(section["position"], block)
        for flag, value in config.model.flags.items():
            if value == BLOCK:
                name, _ = option_flags()[flag][0]
                section[flag] = table_size(name, block)
    settings = XCopeConfig(num_tokens=model.num_tokens, **section)
    with torch.device("meta"):
        exported = XCopeForCausalLM(settings)
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    exported.model.load_state_dict(weights, assign=True)
    exported.eval()
    return exported


def tokenizer_of(task: Task) -> PreTrainedTokenizerFast | None:
    """A tokenizer that encodes and decodes as the task does; None where no kind fits.

    That of the task's own text; words between spaces; or UTF-8 bytes, whose ids are the bytes. What
    ends a document begins and ends texts. Rows are filled with a token of no meaning, which is not
    in the vocabulary of the model unless the tokenizer brought it: `XCopeForCausalLM` never reads
    what is masked.
    """
    for made in (_own, _words, _bytes):
        tokenizer = made(task)
        if tokenizer is not None and _agrees(tokenizer, task):
            return tokenizer
    return None


def _own(task: Task) -> PreTrainedTokenizerFast | None:
    own = task.reads if isinstance(task, CorpusTask) else None
    if own is None or own.json is None:
        return None
    # the model was trained on texts to which nothing is added, and from which nothing is cut
    plain = json.loads(own.json) | {"post_processor": None, "truncation": None, "padding": None}
    made = Tokenizer.from_str(json.dumps(plain))
    if own.end is None:
        made.add_special_tokens([END])
    end = own.end or END
    if made.token_to_id(end) != own.separator:
        return _fast(made)
    return _fast(made, bos_token=end, eos_token=end)


def _words(task: Task) -> PreTrainedTokenizerFast | None:
    words = [task.decode([token]) for token in range(task.num_tokens)]
    if len(set(words)) < len(words) or any(word.split() != [word] for word in words):
        return None
    made = Tokenizer(models.WordLevel(vocab={word: token for token, word in enumerate(words)}))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(made)


def _bytes(task: Task) -> PreTrainedTokenizerFast | None:
    if task.num_tokens != 256:
        return None
    letters = bytes_to_unicode()
    made = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return _fast(made, bos_token=letters[0], eos_token=letters[0])


def _fast(made: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    padding = next(name for name in PADDINGS if made.token_to_id(name) is not None or name == PAD)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=padding,
        padding_side="left",  # what generate() needs
        split_special_tokens=True,  # a text that looks like a special token is a text
        clean_up_tokenization_spaces=False,
        **special,
    )


def _agrees(tokenizer: PreTrainedTokenizerFast, task: Task) -> bool:
    """Whether both encode and decode tokens alike, one by one and in a row."""
    every = list(range(0, task.num_tokens, 1 + task.num_tokens // MOST_TRIED))
    if isinstance(task, CorpusTask) and task.reads.json is not None and task.reads.end is None:
        every = [token for token in every if token != task.reads.separator]  # here it has a name
    for tokens in (every, every[::-1], *([token] for token in every)):
        text = task.decode(tokens)
        try:
            encoded = task.encode(text)
        except FlagError:
            return False
        if tokenizer.decode(tokens) != text or tokenizer.encode(text) != encoded:
            return False
    return True


# -- the model card ----------------------------------------------------------------------------


def model_card(
    run: Path, config: Config, model: XCopeForCausalLM, task: Task, text: bool, name: str
) -> str:
    """``README.md``: what the model is, how it was trained, what it can, how it is used."""
    schemes = [one.name for one in model.model.schemes]
    tags = "".join(f"- {json.dumps(tag)}\n" for tag in ("xcope", "positional-encoding", *schemes))
    about = (
        f"A decoder of {model.num_parameters():,} parameters ({config.model.depth} layers, "
        f"{config.model.heads} heads, dim {config.model.dim}) with positions "
        f"{markdown.code(config.label())}, trained by xcope on task {markdown.code(task.name)}."
    )
    papers = [
        f"- {markdown.code(one.name)}: {markdown.escape(one.title)}, {one.paper}"
        for one in model.model.schemes
    ]
    return markdown.page(
        [
            f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n{tags}---",
            f"# {markdown.escape(config.label())} on {markdown.escape(task.name)}",
            about,
            "\n".join(papers),
            "## Use",
            markdown.code_block(_use(task, text, name), "python"),
            markdown.escape(_needs(config)) if config.plugins else "",
            "`trust_remote_code=True` does the same without `import xcope`; both need "
            '`pip install "xcope[hf]"`.',
            "## Results",
            _results(run, task),
            "## Training",
            "`xcope train config.yaml`, then `xcope export RUN --to hf FOLDER`, with the config",
            markdown.code_block(config.to_yaml().rstrip(), "yaml"),
        ]
    )


def _needs(config: Config) -> str:
    named = [plugin.module or Path(plugin.name).name for plugin in config.plugins]
    return f"Before the model is loaded, its plugins have to be imported: {markdown.listed(named)}."


def _use(task: Task, text: bool, name: str) -> str:
    try:
        tokens = example_prompt(task)
    except FlagError:  # the data of the task are gone
        tokens = [0, 1] if task.num_tokens > 1 else [0]
    lines = ["import xcope", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines.append(f"model = AutoModelForCausalLM.from_pretrained({name!r})")
    if text:
        prompt = task.decode(tokens)
        lines += [
            f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
            f'inputs = tokenizer({prompt!r}, return_tensors="pt")',
            "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))",
        ]
    else:
        lines[0:2] = [
            "import torch",
            "import xcope",
            "from transformers import AutoModelForCausalLM",
        ]
        lines.append(f"print(model.generate(torch.tensor([{tokens}]), max_new_tokens=20))")
    return "\n".join(lines)


def _results(run: Path, task: Task) -> str:
    result = RunFolder(run).read_result()
    if result is None:
        return "The run was not finished: nothing was measured."
    measured = next(iter(result.splits.values()), {})
    metrics = [one for one in METRICS.values() if one.name in measured and one.fits(task)]
    rows = [
        (split, task.seq_len(split), *(one.text(values[one.name]) for one in metrics))
        for split, values in result.splits.items()
    ]
    head = ("split", "tokens", *(one.heading for one in metrics))
    after = f"After {result.steps:,} steps."
    return markdown.table(head, rows, "lr") + "\n\n" + after


# -- the folder --------------------------------------------------------------------------------


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: choose another folder")
    if not any(folder.iterdir()):
        return
    if not _is_export(folder):
        raise RunError(f"{folder} is not empty and is no exported model: choose another folder")
    if not overwrite:
        raise RunError(
            f"{folder} holds an exported model already: --overwrite replaces it, or choose another "
            "folder"
        )


def _is_export(folder: Path) -> bool:
    try:
        settings: Any = files.parse_json(files.read_text(folder / "config.json"))
    except (FileNotFoundError, files.UnreadableError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == XCopeConfig.model_type


@contextmanager
def _without_progress() -> Iterator[None]:
    """Within, transformers shows no bar for a file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` at the end, if all went well."""
    new, old = (folder.with_name(f".{folder.name}.{which}") for which in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for file in new.iterdir():
            shutil.copymode(new / "README.md", file)  # safetensors lets nobody else read its file
            files.fsync(file)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # a full disk needs the space
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    files.fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
