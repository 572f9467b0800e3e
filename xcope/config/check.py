"""Whether the task and the model of a config can be built.

A model is built and run once, without weights. What task, scheme or decoder refuse is reported
with the file, line and key where it was written.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator

import torch

from xcope.config.build import head_width, make_model_for, make_task
from xcope.config.errors import ConfigError, Mark, Path
from xcope.config.schema import Config, ModelConfig
from xcope.config.typed import located, located_in_task, paths_of, typed
from xcope.config.yaml_tree import Node
from xcope.errors import FlagError, did_you_mean, listing, words_of
from xcope.modules import SeamError
from xcope.modules.flags import with_starts
from xcope.plugins import blamed
from xcope.tasks import Task


def checked(tree: Node, passed: set[str] | None = None, *, data: bool = True) -> Config:
    """The config of one run, ``dim_head``, ``max_seq_len`` and authors' starts filled in.

    Args:
        tree: what was written.
        passed: descriptions of tasks and models that were tried before and are not tried again;
            those of this config are added.
        data: read the data of the task, to see that they suffice.

    Raises:
        ConfigError: an unknown key, a wrong type, a task or a model that cannot be built.
    """
    config = typed(tree)
    passed = set() if passed is None else passed
    described = f"data: {data}, {config.task!r}"
    if described not in passed:
        check_task(tree, config, data=data)
        passed.add(described)
    described = f"{config.model!r}, {config.task!r}"
    if described not in passed:
        check_model(tree, config)
        passed.add(described)
    task = make_task(config.task)
    _check_splits(tree, config, task)
    sizes = {"max_seq_len": config.model.max_seq_len or task.max_seq_len}
    if "attn_dim_head" not in config.model.rest:
        sizes["dim_head"] = head_width(config.model)
    # a run that is read again later begins as it did, whatever is known of authors by then
    spelled = {"position": with_starts(config.model.position, config.model.flags)}
    return config.model_copy(update={"model": config.model.model_copy(update=sizes | spelled)})


def check_data(config: Config) -> None:
    """Raise `ConfigError` if the data of a config's task cannot be read, or do not suffice."""
    check_task(config.source or Node({}, Mark("config")), config)


def check_trackers(config: Config) -> None:
    """Raise `ConfigError` if a tracker of ``train.track`` is not installed."""
    for name in config.train.track or ():
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'{name} is not installed: pip install "xcope[track]", or leave it out',
                "train.track",
                config.source.mark_of(("train", "track")) if config.source else None,
            )


def check_task(tree: Node, config: Config, *, data: bool = True) -> None:
    """Raise `ConfigError` if the task cannot be made or, with ``data``, not be drawn from."""
    try:
        task = make_task(config.task)
        if data:
            task.check_data()
        _ = task.num_tokens  # of a tokenizer, which a task needs without its data, too
    except FlagError as error:
        raise located_in_task(tree, error) from error
    except Exception as error:
        message = f"the task fails with these options: {type(error).__name__}: {words_of(error)}"
        message += f" ({where})" if (where := blamed(error)) else ""
        raise located(tree, [("task",)], message) from error


def _check_splits(tree: Node, config: Config, task: Task) -> None:
    """Raise `ConfigError` if a split is to be measured that the task does not have."""
    for split in config.evaluate.splits or ():
        if split not in task.measurable:
            raise ConfigError(
                f"task {config.task.name!r} has no test split {split!r}: choose among "
                f"{listing(task.measurable)}{did_you_mean(split, task.measurable)}",
                "evaluate.splits",
                tree.mark_of(("evaluate", "splits")),
            )


def check_model(tree: Node, config: Config) -> None:
    """Raise `ConfigError` if the decoder cannot be built, or fails on a short input."""
    task = make_task(config.task)
    try:
        _try(config.model, task)
    except SeamError:
        raise  # nothing that the config's author could change
    except Exception as error:
        flag = ""
        whose = blamed(error) or "x-transformers"
        message = f"{whose} fails with this: {type(error).__name__}: {words_of(error)}"
        if isinstance(error, FlagError):
            flag, message = error.flag, str(error)
        paths = itertools.chain(paths_of(tree, flag), _culprits(config.model, task), [("model",)])
        raise located(tree, paths, message) from error


def _try(config: ModelConfig, task: Task) -> None:
    model = make_model_for(config, task, device="meta").eval()
    n = min(2, task.max_seq_len)
    try:
        logits = model(torch.zeros(1, n, dtype=torch.long, device="meta"))
    except (FlagError, AssertionError, TypeError):
        raise
    except Exception:
        return  # an operation that only works on numbers: nothing is known
    shape = getattr(logits, "shape", None)
    if shape != (1, n, task.num_tokens):
        raise FlagError("model", f"the model does not give logits (b n {task.num_tokens})")


def _culprits(config: ModelConfig, task: Task) -> Iterator[Path]:
    """The flags without which the model works; x-transformers does not say which it dislikes."""
    for flag in config.flags:
        others = {key: value for key, value in config.model_dump().items() if key != flag}
        try:
            _try(ModelConfig(**others), task)
        except Exception:
            continue
        yield ("model", flag)
