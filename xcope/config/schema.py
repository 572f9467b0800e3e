"""What a config holds: its sections, the type and the meaning of every key, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from xcope import catalogue, files
from xcope.config.errors import ConfigError, Mark, Worded, dotted
from xcope.config.yaml_tree import Node, write_text
from xcope.errors import did_you_mean, listing
from xcope.plugins import Plugin


def _at_most(most: int) -> Callable[[int], int]:
    """Refuse numbers that can only be a slip: what they ask for would fill the machine."""

    def check(value: int) -> int:
        if value > most:
            raise ValueError(f"{value} is not allowed: at most {most:,}")
        return value

    return check


Count = Annotated[int, Field(ge=1)]
WholeNumber = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Width = Annotated[Count, AfterValidator(_at_most(2**20))]
HeadWidth = Annotated[Count, AfterValidator(_at_most(2**16))]
Length = Annotated[Count, AfterValidator(_at_most(2**31))]
Layers = Annotated[Count, AfterValidator(_at_most(1024))]
Heads = Annotated[Count, AfterValidator(_at_most(4096))]
Folder = Annotated[str, AfterValidator(lambda path: str(files.expanded(path)))]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Options = dict[str, Any]
Position = Annotated[
    str | Options | list[Any] | None,
    Worded("a scheme's name, a mapping of name and options, or a list of these"),
]


def _tracker_names(given: Any) -> Any:
    """A list of the names, and their nearest ones where there is no such tracker."""
    names = [given] if isinstance(given, str) else given
    known = get_args(Tracker)
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name not in known:
            raise ValueError(
                f"there is no tracker {name!r}: choose among {listing(known)}"
                f"{did_you_mean(name, known)}"
            )
    return names


class Section(BaseModel):
    """A mapping of the config; immutable, without unknown keys."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        defer_build=True,  # a file that is missing needs no schema
    )


class OpenSection(Section):
    """A section with further keys, which others check: flags of a decoder, options of a task."""

    model_config = ConfigDict(extra="allow")

    @property
    def rest(self) -> Options:
        """The further keys."""
        return dict(self.model_extra or {})


class ModelConfig(OpenSection):
    """The decoder. Every flag of `xcope.Decoder` and `xcope.TransformerWrapper` is a key too."""

    dim: Width
    """Width of the residual stream."""
    depth: Layers
    """Blocks of attention and feed-forward."""
    heads: Heads = 8
    """Query heads."""
    dim_head: HeadWidth | None = None
    """Width of a head; null: dim / heads."""
    max_seq_len: Length | None = None
    """Rows of a learned absolute table; null: the longest sequence of the task."""
    position: Position = None
    """The scheme: a name, a mapping of name and options, a list of these for several, a split by
    layers or heads, or the preset of a released model (`xcope.positions.plan`); null: what the
    flags say."""

    @property
    def flags(self) -> Options:
        """Flags of the decoder and the wrapper beside the declared keys, as keyword arguments.

        Null is as if not written; a list, which YAML has where a keyword takes one value for each
        layer, is a tuple.
        """
        return {
            flag: tuple(value) if isinstance(value, list) else value
            for flag, value in self.rest.items()
            if value is not None
        }


class TaskConfig(OpenSection):
    """The task; its options are keys beside the name."""

    name: str
    """One of `xcope.tasks.tasks`."""

    @property
    def options(self) -> Options:
        """Options of the task."""
        return self.rest

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Longer(Section):
    """A run that was made longer: how its learning rate goes on (`xcope.training.schedule`)."""

    how: Literal["rewarm", "stretch"]
    """rewarm: the planned steps, then another warm-up and cosine over the added ones; stretch: from
    now on the rate of a run that was planned so long from the beginning."""
    after: WholeNumber
    """Steps that were done by then."""
    steps: Count
    """Steps that were planned before."""


class TrainConfig(Section):
    """How a run trains: AdamW, a linear warm-up, then a cosine down to 0."""

    steps: Count = 1000
    """Optimiser steps."""
    batch_size: Count = 32
    """Sequences per step."""
    lr: Positive = 1e-3
    """Learning rate after the warm-up."""
    position_lr_scale: Positive = 1.0
    """Factor of the learning rate of what the positional scheme learns (tables, slopes, gates)."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's averages of the gradient and of its square."""
    weight_decay: NonNegative = 0.01
    """AdamW's weight decay."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    clip: Positive | None = 1.0
    """Largest norm of the gradient; null: not clipped."""
    seed: WholeNumber = 0
    """Of the initial weights and of the training data."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision."""
    log_every: Count = 20
    """Steps between two lines of metrics."""
    checkpoint_every: WholeNumber = 200
    """Steps between two checkpoints; 0: only at the end."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one."""
    track: Annotated[
        list[Tracker] | None,
        BeforeValidator(_tracker_names),
        Worded("a list of tensorboard, wandb and trackio, or one of them"),
    ] = None
    """Where a run is watched, besides its ``metrics.jsonl``; null: in TensorBoard, where it is
    installed."""
    track_project: Annotated[str, Field(min_length=1)] = "xcope"
    """The project under which wandb and trackio show the run."""
    init_from: Annotated[str, files.IsPath()] | None = None
    """A run whose weights this one begins with, as far as they fit (`xcope.training.warm`); null:
    fresh weights."""
    longer: Annotated[
        list[Longer],
        Worded("what --resume RUN train.steps=N train.longer=rewarm (or stretch) writes here"),
    ] = []
    """How often, and how, the run was made longer than it was planned."""


class EvaluateConfig(Section):
    """The test data; the same for all schemes and training seeds."""

    batches: Count = 8
    """Batches of each test split."""
    batch_size: Count = 64
    """Sequences per batch."""
    seed: WholeNumber = 1
    """Of the test data."""
    splits: Annotated[list[str], Field(min_length=1)] | None = None
    """Which splits; null: all test splits of the task."""


class TuneConfig(OpenSection):
    """Keys of ``train`` whose value is picked for each scheme before the runs of a sweep.

    The further keys are dotted, each with the values to try (``train.lr: [5e-4, 1e-3]``); all
    combinations are tried. What has the best headline metric in distribution is picked.
    """

    seeds: Annotated[list[WholeNumber], Field(min_length=1)] = [100]
    """Training seeds of the tuning runs; none of them may be one of the sweep."""
    steps: Count | None = None
    """Steps of a tuning run; null: those of the runs."""
    evaluate_seed: WholeNumber = 2
    """Of the validation data; not that of the test data."""

    @property
    def grid(self) -> Options:
        """Key → values to try."""
        return self.rest


class Config(Section):
    """A whole config; `xcope.config.load_config` makes and checks it."""

    model_config = ConfigDict(populate_by_name=True)

    model: ModelConfig
    task: TaskConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    out: Folder | None = None
    """Folder of the run; ``~`` and ``$NAME`` are replaced."""
    sweep: dict[str, list[Any]] = {}
    """Key → values to try; a run for each combination (``xcope compare``)."""
    tune: TuneConfig | None = None
    """What is picked for each scheme of a sweep before its runs."""
    plugins: Annotated[
        list[Plugin],
        Field(alias="import"),
        Worded("a Python file, the dotted name of a module, or a list of these"),
    ] = []
    """Python files, or modules by their dotted names, that register schemes, tasks, metrics or
    columns; they are run before anything else is read (`xcope.plugins`)."""
    baseline: str | None = None
    """The scheme that the others of a sweep are compared with, as reports name it; null: the first
    one."""
    _origin: Origin = PrivateAttr(default_factory=lambda: Origin(Node(None, Mark("config"))))

    @field_validator("sweep", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        return {} if value is None else value  # sweep=null on the command line drops the sweep

    def to_yaml(self) -> str:
        """YAML that loads back to an equal config; it holds the defaults too."""
        data = self.plain()
        left_out = [key for key in ("out", "sweep", "tune", "baseline", "import") if not data[key]]
        return write_text({key: value for key, value in data.items() if key not in left_out})

    def plain(self, mode: Literal["json", "python"] = "python") -> dict[str, Any]:
        """The keys and their values as a config file has them."""
        data = self.model_dump(mode=mode, by_alias=True)
        # a run of an earlier version has no such keys, and is the same run
        for key in ("track", "track_project", "init_from", "longer"):
            if data["train"][key] == TrainConfig.model_fields[key].default:
                del data["train"][key]
        return data | {"import": [plugin.written for plugin in self.plugins]}

    def flat(self, whole: Collection[str] = ()) -> dict[str, Any]:
        """Dotted key → value, as JSON holds it: ``{"model.dim": 64, "model.depth": 2, …}``.

        Args:
            whole: keys whose mappings are one value.
        """
        found: dict[str, Any] = {}

        def add(key: str, value: Any) -> None:
            if isinstance(value, dict) and value and key not in whole:
                for name, inner in value.items():
                    add(f"{key}.{name}" if key else name, inner)
            else:
                found[key] = value

        add("", self.plain("json"))
        return found

    def label(self) -> str:
        """``cope(max_pos=32)``, ``cope+rotary``, ``layers(rotary, none)``: the schemes of the
        model with the options that are not defaults."""
        from xcope.modules import plan_of
        from xcope.modules.seam import UPSTREAM_ONLY

        flags = self.model.flags
        plan = plan_of(self.model.position, flags)
        # schemes that only x-transformers has go by the flag that turns them on
        names = [flag for flag in UPSTREAM_ONLY if flags.get(flag)]
        if plan.schemes or not names:
            names.insert(0, plan.label())
        return "+".join(names)

    @property
    def source(self) -> Node | None:
        """The tree that the config was read from; None if it was made in Python."""
        return None if self._origin.tree.value is None else self._origin.tree

    @property
    def origin(self) -> Origin:
        """The tree that the config was read from, and what is known of it."""
        return self._origin

    def read_from(self, tree: Node) -> Config:
        """This config, which remembers from now on the tree that it was read from."""
        self._origin = Origin(tree)
        return self


class Origin:
    """The tree that a config was read from, and what was found out about it.

    It says nothing about what the config is: any two are equal.

    Args:
        tree: null for a config that was made in Python.
    """

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.passed: set[str] = set()
        """Descriptions of tasks and models that were tried, and work."""
        self.runs: dict[str, list[Config]] = {}
        """"sweep" or "tune" → the runs that the tree stands for."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    def __hash__(self) -> int:
        return 0


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "task": TaskConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}


def path_keys(task: str | None) -> dict[tuple[str, ...], files.IsPath]:
    """The keys whose values are paths: section and key → what they say of them.

    Args:
        task: whose options are keys of the section ``task``.
    """
    return _paths_of_sections() | {
        ("task", option): kind for option, kind in _paths_of_task(task).items()
    }


@cache
def _paths_of_sections() -> dict[tuple[str, ...], files.IsPath]:
    """The keys of the sections themselves that are paths."""
    sections: dict[str, type[Section]] = {"": Config, **SECTIONS}
    found: dict[tuple[str, ...], Any] = {
        ((section, key) if section else (key,)): (field.annotation, *field.metadata)
        for section, kind in sections.items()
        for key, field in kind.model_fields.items()
    }
    kinds = {path: files.IsPath.of(*said) for path, said in found.items()}
    return {path: kind for path, kind in kinds.items() if kind is not None}


def _paths_of_task(task: str | None) -> dict[str, files.IsPath]:
    """The options of a task that are paths."""
    known = catalogue.read()
    if known is not None:
        said = known["tasks"].get(task, {"paths": {}})["paths"]
        return {option: files.IsPath.from_plain(plain) for option, plain in said.items()}
    from xcope.tasks import tasks

    return tasks()[task].paths() if task is not None and task in tasks() else {}


GIVEN_BY_TASK = frozenset({"num_tokens", "attn_layers"})
"""Flags of the wrapper that are no keys: they follow from the task and the decoder."""


def check_keys(tree: Node) -> None:
    """Raise `ConfigError` for the first unknown key at the root or in a section.

    Options of a task or a scheme are checked by those who know them, when they are built.
    """
    for section in ("", *SECTIONS):
        node = tree.get(section) if section else tree
        known = known_keys(section)
        for key, child in (node.children if node else {}).items():
            if key not in known and section != "task":
                path = (section, key) if section else (key,)
                raise ConfigError(unknown_key(key, section), dotted(path), child.mark)


def unknown_key(key: str, section: str = "") -> str:
    """What to say about a key that a section (the root if empty) does not have."""
    allowed = listing(known_keys(section))
    if section == "model":
        allowed = f"{listing(ModelConfig.model_fields)} and the flags of Decoder and "
        allowed += "TransformerWrapper"
    return f"unknown key {key!r}; allowed: {allowed}{_hint(key, section)}"


def known_keys(section: str = "") -> Collection[str]:
    """Keys of a section, those of the root if empty; of a task only the declared ones."""
    if section == "model":
        return ModelConfig.model_fields.keys() | (model_flags() - GIVEN_BY_TASK)
    fields = (SECTIONS[section] if section else Config).model_fields
    return {field.alias or name: field for name, field in fields.items()}.keys()


def model_flags() -> frozenset[str]:
    """Every keyword of `xcope.Decoder` and `xcope.TransformerWrapper`."""
    known = catalogue.read()
    if known is not None:
        return frozenset(known["flags"])
    from xcope.modules import decoder_flags, wrapper_flags

    return decoder_flags() | wrapper_flags()


def _hint(key: str, section: str) -> str:
    """The section that has this very key, else the nearest key of this one."""
    owners = [name for name in SECTIONS if key in known_keys(name)]
    return (
        f"; did you mean '{owners[0]}.{key}'?" if owners else did_you_mean(key, known_keys(section))
    )
