"""What a positional scheme is: options, the slot it fills, and the module that fills it."""

from __future__ import annotations

import dataclasses
import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcope.errors import FlagError
from xcope.ops.biased.inputs import BiasedInputs
from xcope.ops.biased.reference import biased_attention_reference, dense
from xcope.ops.terms import Terms
from xcope.registry import Named


class Slot(enum.Enum):
    """Where positions enter a decoder."""

    INPUT = "input"
    """added to the token embedding"""
    ROTATION = "rotation"
    """applied to q and k (`Rotation`)"""
    BIAS = "bias"
    """a function of query and key index, added to the attention logits (`IndexBias`)"""
    ATTEND = "attend"
    """the attention operation itself (`AttendModule`)"""
    MASK = "mask"
    """which keys a query sees (`KeyLimits`)"""
    SINK = "sink"
    """a share of attention that goes to no key (`Sinks`)"""
    SCALE = "scale"
    """a factor of the queries by their place (`QueryScale`)"""

    @property
    def beside(self) -> bool:
        """Whether it tells of no place itself, and stands beside schemes that do, or alone."""
        return self in (Slot.MASK, Slot.SINK, Slot.SCALE)


class Family(enum.Enum):
    """Where what a scheme does comes from: how tables of schemes are grouped, in this order."""

    FIXED = "fixed"
    LEARNED = "learned, by place or distance"
    CONTENT = "by content"
    ROTATION = "rotations"
    OPTION = "options beside any scheme"

    @classmethod
    def of(cls, slot: Slot) -> Family:
        """What a scheme of a slot mostly is."""
        return {
            Slot.INPUT: cls.LEARNED,
            Slot.ROTATION: cls.ROTATION,
            Slot.BIAS: cls.LEARNED,
            Slot.ATTEND: cls.CONTENT,
        }.get(slot, cls.OPTION)


@dataclass(frozen=True)
class Geometry:
    """The decoder that a scheme is built for.

    ``max_seq_len`` is only known to schemes of the input slot, which the wrapper builds; 0
    elsewhere.
    """

    dim: int
    heads: int
    dim_head: int
    max_seq_len: int = 0


@dataclass(frozen=True, kw_only=True)
class Scheme(Named, ABC):
    """One positional scheme with its options (the dataclass fields).

    A subclass is a frozen dataclass in a file of its own under ``xcope/positions/``, decorated
    with `xcope.positions.register`. Option ``max_pos`` of scheme ``cope`` is the keyword flag
    ``cope_max_pos`` of `xcope.Decoder` and the key ``max_pos`` of
    ``position: {name: cope, max_pos: 64}`` in YAML.
    """

    title: ClassVar[str]
    """its name for people"""
    slot: ClassVar[Slot | None]
    """None: nothing is built (``none``), or the scheme is a pair of others (see `parts`)."""
    family: ClassVar[Family] = Family.FIXED
    """A class that fills a slot and does not say it is what its slot mostly is (`Family.of`)."""
    paper: ClassVar[str]
    formula: ClassVar[str]
    oracle: ClassVar[str]
    """What its tests hold it to, never our own code: "x-transformers" (the equality tests take it,
    by `counterpart`); else another package, or "formula", the paper's formula in plain loops, in
    ``tests/positions/oracles/test_<name>.py``."""
    authors: ClassVar[Mapping[str, Any]] = {}
    """Option → the value with which the scheme's authors, or the code that is usually meant, start
    or run it, also where it is the default here: what ``start: authors`` sets. Empty: not known."""
    excludes: ClassVar[Mapping[Slot | str, str]] = {}
    """Slot or name of what cannot stand beside it at the same heads → why."""
    upstream_switch: ClassVar[str | None] = None
    """x-transformers' flag that turns the scheme on, if it has the scheme; see `switched`."""
    upstream_implies: ClassVar[frozenset[str]] = frozenset()
    """Further switches of x-transformers that mean nothing beside ``upstream_switch``."""
    upstream_varies: ClassVar[str | None] = None
    """A switch of another scheme without which ``upstream_switch`` means nothing there."""
    upstream_options: ClassVar[Mapping[str, str]] = {}
    """x-transformers' spelling of an option → its name here."""
    upstream_kwargs: ClassVar[str | None] = None
    """x-transformers' flag whose value is a mapping of options, if it has one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if own.get("slot") is not None and "family" not in own:
            cls.family = Family.of(own["slot"])

    def __post_init__(self) -> None:
        """See `Named.check_types`."""
        self.check_types()

    @classmethod
    def counterpart(cls) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """x-transformers' flags for the same, of its Decoder and of its TransformerWrapper."""
        if cls.upstream_switch is None:
            return None
        switches = [cls.upstream_switch, *filter(None, [cls.upstream_varies])]
        return dict.fromkeys(switches, True), {"use_abs_pos_emb": False}

    @classmethod
    def switched(cls, value: Any) -> Self | None:
        """What a value of ``upstream_switch`` asks for; None: nothing.

        Raises:
            FlagError: it is not of the kind that the flag has.
        """
        if not isinstance(value, bool):
            flag = str(cls.upstream_switch)
            raise FlagError(flag, f"{flag}={value!r} is not allowed: it is True or False")
        return cls() if value else None

    def parts(self) -> tuple[Scheme, ...]:
        """The schemes that this one stands for: itself, unless it is a combination."""
        return (self,)

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a module of its own, instead of one that all layers share: unless
        ``shared``, where a scheme has that option; else in the attend slot."""
        return not getattr(self, "shared", self.slot is not Slot.ATTEND)

    @abstractmethod
    def build(self, geometry: Geometry) -> nn.Module | None:
        """The module that fills the slot, freshly initialised.

        Raises:
            FlagError: an option that does not fit the geometry.
        """

    @classmethod
    def flag(cls, option: str) -> str:
        """``cope_max_pos``: the keyword flag of an option."""
        return f"{cls.name}_{option}"


FINE = 16
"""How many places lie between two whole numbers for biases that are tables of distances."""


@dataclass(frozen=True)
class Draw:
    """How places are drawn at random, see `IndexedScheme`.

    Args:
        most: ``random_max``.
        steps: places are multiples of 1 / steps; None: any real numbers.
        at_test: ``random_at_test``.
    """

    most: int
    steps: int | None = 1
    at_test: bool = False

    @property
    def places_for(self) -> float:
        """How many tokens there are places for."""
        return math.inf if self.steps is None else self.most * self.steps

    def places(self, n: int, device: torch.device) -> Tensor:
        """Of n tokens, ascending, (n): int64, or float32 where they are no whole numbers.

        Raises:
            FlagError: fewer places than tokens.
        """
        if self.steps is None:
            return (torch.rand(n, device=device, dtype=torch.float32) * self.most).sort().values
        self._check(n)
        drawn = torch.randperm(self.most * self.steps, device=device)[:n].sort().values
        return drawn if self.steps == 1 else drawn.float() / self.steps

    def places_of_documents(self, cu_seqlens: Tensor, n: int) -> Tensor:
        """`places` for the longest of several documents in one row of n tokens.

        Where in a document tokens stand is the index: after the longest document it means nothing.
        Does not wait for the device, so it looks for what is wrong on CPUs only.

        Raises:
            FlagError: as there.
        """
        longest = cu_seqlens.diff(prepend=cu_seqlens[:1]).max()
        device = cu_seqlens.device
        if self.steps is None:
            drawn = torch.rand(n, device=device, dtype=torch.float32) * self.most
            beyond = torch.arange(n, device=device) >= longest
            return drawn.masked_fill(beyond, self.most).sort().values
        if device.type == "cpu" and not torch.compiler.is_compiling():
            self._check(int(longest))
        left_out = torch.randperm(self.most * self.steps, device=device) >= longest
        drawn = left_out.sort(stable=True).indices
        return drawn if self.steps == 1 else drawn.float() / self.steps

    def _check(self, n: int) -> None:
        if n > self.places_for:
            raise FlagError(
                "random_max",
                f"random_max={self.most} is not allowed with inputs of {n} tokens, which need as "
                "many places to be drawn from: raise it, or shorten the input",
            )


@dataclass(frozen=True, kw_only=True)
class IndexedScheme(Scheme):
    """A scheme that reads the places of tokens, so that they can be drawn at random in training.

    Ruoss et al., *Randomized Positional Encodings Boost Length Generalization of Transformers*,
    arXiv 2305.16843; real places: Shimizu, Taniguchi, Matsuo, *Position Encoding with Random Float
    Sampling Enhances Length Generalization of Transformers*, arXiv 2602.14050.

    Args:
        random_max: in training, n tokens stand at n places drawn without repetition from
            0 … random_max − 1, in order, again for each batch; in evaluation at 0 … n − 1. None:
            always at 0 … n − 1.
        random_float: the places are real numbers, drawn uniformly between 0 and random_max, in
            order; for biases that are computed as tables of distances (bam, dynamic, fire, kerple,
            sandwich) multiples of 1/16, without repetition.
        random_at_test: True, as the authors of both: places are drawn in evaluation, too, and each
            layer draws its own; no cache is kept then. False: in training only, once for all
            layers.
    """

    whole_places: ClassVar[str | None] = None
    """Why places can only be whole numbers; None: they may be real."""
    steps: ClassVar[int | None] = None
    """``random_float`` draws multiples of 1 / steps; None: any real numbers."""

    random_max: int | None = None
    random_float: bool = False
    random_at_test: bool = False

    def __post_init__(self) -> None:
        """See `Scheme`; and ``random_max`` is at least 1, and there where others speak of it."""
        super().__post_init__()
        self.require(self.random_max is None or self.random_max >= 1, "random_max", "1 or more")
        for option in ("random_float", "random_at_test"):
            self.require(
                self.random_max is not None or not getattr(self, option),
                option,
                f"it says how places are drawn, which they are only with {self.flag('random_max')}",
            )
        self.require(
            self.whole_places is None or not self.random_float,
            "random_float",
            f"places of {self.name!r} are whole numbers: {self.whole_places}; drop it, or choose "
            "rotary, alibi or another scheme that is a formula",
        )

    @property
    def draw(self) -> Draw | None:
        """How places are drawn; None: they are not."""
        if self.random_max is None:
            return None
        steps = self.steps if self.random_float else 1
        return Draw(self.random_max, steps, self.random_at_test)


class WithConstants(nn.Module):
    """A module with buffers that follow from its options only: frequencies, slopes.

    They are float32, or float64 after ``.double()``, whatever else happens: the default dtype has
    no say; ``.bfloat16()`` and a checkpoint in a narrower dtype leave them as they are, for with a
    frequency in bfloat16 a fast pair would be off by whole turns after some hundred places; a
    module that was built on the meta device has them once it has memory.
    """

    _constants: dict[str, tuple[float, ...]]

    def add_constant(
        self, name: str, values: Tensor | Iterable[float], *, persistent: bool = False
    ) -> None:
        """Register a buffer of these numbers.

        Args:
            name: of the buffer.
            values: (m), not on the meta device.
            persistent: whether state dicts hold it, as those of x-transformers do.
        """
        numbers = values.tolist() if isinstance(values, Tensor) else values
        known = self.__dict__.setdefault("_constants", {})
        known[name] = tuple(float(number) for number in numbers)
        made = torch.tensor(known[name], dtype=torch.float32)
        self.register_buffer(name, made, persistent=persistent)

    def fill_constants(self, device: torch.device) -> None:
        """Give constants that are on the meta device their numbers, on ``device``."""
        for name, numbers in self.__dict__.get("_constants", {}).items():
            buffer = self._buffers[name]
            if buffer is not None and buffer.is_meta:
                made = torch.tensor(numbers, dtype=buffer.dtype, device="cpu")
                self._buffers[name] = made.to(device)

    @property
    def constants(self) -> frozenset[str]:
        """Names of these buffers."""
        return frozenset(self.__dict__.get("_constants", ()))

    def refill_constants(self) -> None:
        """Give constants their numbers again, where others filled the buffers, on their device."""
        for name in self.constants:
            buffer = self._buffers[name]
            if buffer is not None and not buffer.is_meta:
                device, dtype = buffer.device, _wider(buffer.dtype, torch.float32)
                self._buffers[name] = buffer.to("meta", dtype)
                self.fill_constants(device)

    def take_constants(self, given: Mapping[str, Tensor]) -> None:
        """Let constants be the numbers of these tensors, on their device.

        A tensor in a narrow dtype whose numbers are what the options give, rounded, says nothing
        new.

        Args:
            given: name → (m), not on the meta device.
        """
        for name, tensor in given.items():
            if tensor.dtype.itemsize >= 4 or not _rounded(tensor, self._constants[name]):
                self._constants[name] = tuple(map(float, tensor.tolist()))
            numbers = torch.tensor(self._constants[name], dtype=torch.float32, device="cpu")
            dtype = _wider(tensor.dtype, torch.float32)
            self._buffers[name] = numbers.to(tensor.device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self._buffers[name] for name in self.__dict__.get("_constants", {})}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, kept in before.items():
            moved = self._buffers[name]
            if kept is None or moved is None:
                continue
            device, dtype = moved.device, _wider(moved.dtype, kept.dtype)
            # what came of `fn` is not looked at: it may be rounded, or without values
            self._buffers[name] = kept.to("meta" if kept.is_meta else device, dtype)
            if kept.is_meta:
                self.fill_constants(device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        *_, error_msgs = args
        loaded = dict(state_dict)
        for name, numbers in self.__dict__.get("_constants", {}).items():
            given, own = state_dict.get(prefix + name), self._buffers[name]
            if given is None or own is None or given.dtype.itemsize >= 4:
                continue
            if given.shape == own.shape and _rounded(given, numbers):
                self.fill_constants(given.device)
                loaded[prefix + name] = self._buffers[name]
            else:
                error_msgs.append(
                    f"{prefix}{name} of the checkpoint, in {given.dtype}, is not what this "
                    "model's options give: set those that the checkpoint was trained with"
                )
        super()._load_from_state_dict(loaded, prefix, local_metadata, *args)


def _rounded(given: Tensor, numbers: Iterable[float]) -> bool:
    info = torch.finfo(given.dtype)
    exact = torch.tensor(numbers, dtype=torch.float32, device=given.device)
    return torch.allclose(given.float(), exact, rtol=info.eps, atol=info.smallest_normal)


def fill_constants(model: nn.Module, *_: Any) -> None:
    """After loading with ``assign=True``: constants that no checkpoint holds leave meta, too."""
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("meta"))
    for module in model.modules():
        if isinstance(module, WithConstants):
            module.fill_constants(device)


def _wider(dtype: torch.dtype, kept: torch.dtype) -> torch.dtype:
    return dtype if dtype.itemsize >= 4 else kept


class Rotation(WithConstants, ABC):
    """A module of the rotation slot: turns queries and keys by their places."""

    length_dependent: bool = False
    """Whether a token's turn depends on how many tokens follow: then no cache can be kept."""
    scales: bool = False
    """Whether queries grow with their place: then their logits with keys that have no place, as
    learned memories, depend on the length."""
    widens: bool = False
    """Whether queries and keys come out wider than they went in."""
    remembers: bool = False
    """Whether places come from what tokens are (`remember`, `places`), not from where they are."""
    each_head: bool = False
    """Whether such places differ from query head to query head, so that each needs its keys."""
    upstream_name: str = "rotary_pos_emb"
    """Its name in x-transformers' state dicts."""

    def forward(self, pos: Tensor) -> Tensor:
        """The places as they are: x-transformers asks for angles, but turning is `rotate`'s."""
        return pos

    def remember(self, x: Tensor) -> Tensor:
        """What tokens say of their places, cached beside keys and values; 0 means nothing.

        Args:
            x: (b n dim), what the layer's attention reads.

        Returns:
            (b g n c), g = h, or 1 for all heads.
        """
        raise NotImplementedError

    def places(self, remembered: Tensor, documents: Tensor | None) -> Tensor:
        """Where the tokens of all keys stand.

        Args:
            remembered: (b g j c), of all keys; 0 where padded.
            documents: cu_seqlens (m + 1) where several documents are packed in the row.

        Returns:
            (b g j c), floating point.
        """
        raise NotImplementedError

    def trace(self, remembered: Tensor, documents: Tensor | None) -> dict[str, Tensor]:
        """Name → (b g j j), query by key: what people want to see of places that tokens have."""
        return {}

    @abstractmethod
    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        q_pos: Tensor,
        k_pos: Tensor,
        heads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The turned queries and keys.

        Args:
            q: (b h i d).
            k: (b hk j d).
            q_pos: places of the queries, (i) or (b i), int64, or float32 where they are real;
                (b g i c) where `places` made them.
            k_pos: places of the keys, (j) or (b j) or (b g j c), likewise.
            heads: int64 (h), which query heads ``q`` holds; None: all of them.

        Returns:
            q (b h i d') and k (b hk j d') in their dtypes; d' = d, unless the scheme widens them.
        """


class IndexBias(WithConstants, ABC):
    """A module of the bias slot: a number for each head, query and key, from their places."""

    upstream_name: str = "rel_pos"
    """Its name in x-transformers' state dicts."""

    @abstractmethod
    def dense(self, q_pos: Tensor, k_pos: Tensor) -> Tensor:
        """The definition, written out.

        Args:
            q_pos: places of the queries, (i) or (b i); int64, or real, see `IndexedScheme.steps`.
            k_pos: places of the keys, (j) or (b j), likewise.

        Returns:
            (h i j) or (b h i j); also where a key stands after its query.
        """

    @abstractmethod
    def terms(self, q_pos: Tensor, k_pos: Tensor, span: int) -> Terms:
        """The same wherever no key stands after its query, as vectors for tiled attention.

        Args:
            q_pos: as for `dense`.
            k_pos: as for `dense`.
            span: no key that is seen stands this many places before its query.
        """


class KeyLimits(nn.Module, ABC):
    """A module of the mask slot: which keys a query sees, by their ranks among those of its row.

    The first key of a row has rank 0; padding before it has none, and keys that stand before all
    places (learned memories) are seen in any case.
    """

    @abstractmethod
    def forward(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """Of queries of these ranks, whole numbers (…).

        Returns:
            How many first keys are seen in any case, and the rank from which on all are, up to the
            query itself: both (…).
        """

    def count(self, rank: Tensor) -> Tensor:
        """How many keys queries of these ranks see, (…)."""
        first, near = self(rank)
        seen: Tensor = rank + 1 - near + torch.minimum(first, near)
        return seen


class Sinks(nn.Module, ABC):
    """A module of the sink slot: a logit for each head, of what takes a share and gives no value.

    See `xcope.ops.sinks`. What is learned is a parameter ``head_attn_sink`` (h), which layers of
    ours hold themselves, where x-transformers has it.
    """

    learned: bool
    head_attn_sink: nn.Parameter | None

    @abstractmethod
    def forward(self, learned: Tensor | None, device: torch.device) -> Tensor:
        """The logits, (h), of what is learned, (h), if anything is."""


class QueryScale(nn.Module, ABC):
    """A module of the scale slot: a factor of each query, and so of all that it is multiplied with.

    It acts on turned queries: q·k, CoPE's q·e and the gates made of them have it, a bias of the
    logits has not.
    """

    upstream_name: str = "attend.length_scale"
    """Its name in the attention layer's state dict."""

    @abstractmethod
    def forward(self, pos: Tensor, n: Tensor) -> Tensor:
        """The factors.

        Args:
            pos: int64 places of the queries, (i) or (b i).
            n: how many keys they see, as ``pos``.

        Returns:
            (h i), (1 i), (b h i) or (b 1 i), at least float32.
        """


@dataclass(frozen=True, kw_only=True)
class AttendInputs:
    """What attention of a group of heads gets beside q, k and v.

    Args:
        scale: of the logits q·k.
        mask: bool, True where a key may be attended; broadcasts to (b h i j).
        causal: query i sees keys up to its own place; queries are the last of the keys.
        bias: of the logits, from a scheme of the bias slot at the same heads.
        cu_seqlens: int (m + 1), where each of m documents begins that are packed in one row.
        gate_k: (b hk j d), turned as the keys are, see `AttendModule.gate_keys`.
        remembered: (b h j) or (b h j c), what `AttendModule.remember` made of the keys' tokens.
        heads: int64 (h), which head of the group each head of q is; None: they are in order.
        window: see `xcope.ops.windows`; modules that do not say ``takes_window`` get it as a mask.
        sink: (h) logits in the order of q's heads, see `xcope.ops.sinks`, for modules that say
            ``takes_sink``.
    """

    scale: float
    mask: Tensor | None = None
    causal: bool = True
    bias: Terms | None = None
    cu_seqlens: Tensor | None = None
    gate_k: Tensor | None = None
    remembered: Tensor | None = None
    heads: Tensor | None = None
    window: Tensor | None = None
    sink: Tensor | None = None

    def written_out(self, q: Tensor, j: int) -> AttendInputs:
        """As `AttendModule.forward` gets it, beside q in its dtype and (b h i j) logits.

        ``gate_k`` in the dtype of q; there and in ``remembered`` zeros for keys that stand before
        theirs.
        """
        gate_k, remembered = self.gate_k, self.remembered
        if gate_k is not None:
            gate_k = F.pad(gate_k.to(q.dtype), (0, 0, j - gate_k.shape[2], 0))
        if remembered is not None:
            after = (0, 0) * (remembered.ndim - 3)
            remembered = F.pad(remembered, (*after, j - remembered.shape[2], 0))
        return dataclasses.replace(self, gate_k=gate_k, remembered=remembered)


class AttendModule(nn.Module, ABC):
    """A module of the attend slot: the attention operation of a group of a layer's heads.

    Its definition is `forward`, what is added to the logits before the softmax. That is enough:
    `attend` follows from it in (b h i j) memory, and so do cache, padding, packed documents,
    groups of heads and layers, traces and pictures. A scheme overrides `attend` where it knows a
    faster way, or gives `terms` where what it adds follows from `remember` only.
    """

    upstream_name: str = "attend.cope"
    """Its name in the attention layer's state dict; x-transformers has CoPE's and forgetting's."""
    gate_keys: str | None = None
    """Where `AttendInputs.gate_k` comes from: ``"own"``, a projection that the layer gets for it;
    ``"values"``; ``"keys"``, without a bias of the logits; None: there is none."""
    gate_flag: str = "position"
    """The keyword flag that asks for ``gate_keys``, for errors."""
    remembers: bool = False
    """Whether `remember` gives something that is cached beside each token's key and value."""
    softmax: bool = True
    """Whether weights are the softmax of what `forward` makes of the logits; else they are its
    exponentials, and need not sum to 1."""
    gives_terms: bool = False
    """Whether all that is added follows from ``remembered``: set where a class has `terms`."""
    gives_bias: bool = False
    """Whether `dense` gives all that is added; with `terms` it does."""
    takes_window: bool = False
    """Whether `attend` reads ``AttendInputs.window``, and skips what it hides."""
    takes_sink: bool = False
    """Whether `attend` reads ``AttendInputs.sink``: set where it is the one by the definition."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.gives_terms = cls.gives_bias = cls.terms is not AttendModule.terms
        if "takes_sink" not in vars(cls):
            inherited = cls.takes_sink and "attend" not in vars(cls)
            plain = cls.gives_terms or cls.attend is AttendModule.attend
            cls.takes_sink = inherited or plain

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """What a parameter begins with if a warm start finds it in another shape (another
        ``max_pos``, say); None: as in a fresh model.

        Args:
            name: of the parameter within this module.
            old: as the other model has it; may be on the meta device.
        """
        return None

    def remember(self, x: Tensor) -> Tensor:
        """What later queries need of each token beside its key and value; 0 means nothing.

        Args:
            x: (b n dim), what the layer's attention reads.

        Returns:
            (b h n) or (b h n c).
        """
        raise NotImplementedError

    def terms(self, remembered: Tensor, i: int) -> Terms:
        """All that is added, for the last ``i`` of j queries, where it follows from ``remembered``.

        Args:
            remembered: (b h j) or (b h j c), of all keys.
            i: number of queries.
        """
        raise NotImplementedError

    def dense(self, remembered: Tensor, i: int) -> Tensor:
        """All that is added, written out, where it follows from ``remembered`` and reads no logits.

        Args:
            remembered: (b h j) or (b h j c), of all keys.
            i: number of queries, the last of j.

        Returns:
            (b h i j); without meaning where a key stands after its query.
        """
        return dense(self.terms(remembered, i))

    @abstractmethod
    def forward(self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs) -> Tensor:
        """The definition: what is added to the logits, (b h i j).

        Args:
            q: queries as they meet the keys, unscaled, (b h i d), all heads in order.
            logits: (b h i j), with the bias of other schemes; without meaning where not seen.
            seen: bool (b h i j), whether the query sees the key. What is made of other keys must
                be masked, not multiplied by 0: it need not be finite.
            inputs: here ``gate_k`` is (b h j d) in the dtype of q, and ``remembered`` has zeros for
                keys of no token.
        """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, inputs: AttendInputs) -> Tensor:
        """Attention of the group's heads; here by the definition, in (b h i j) memory.

        Args:
            q: (b h i d).
            k: (b hk j d); query head ``a`` uses key head ``a // (h / hk)``.
            v: (b hk j dv).
            inputs: the rest.

        Returns:
            (b h i dv), dtype of ``q``, heads in the order of ``q``.
        """
        h, j = q.shape[1], k.shape[2]
        # parameters of heads are in the group's order
        order = torch.arange(h, device=q.device) if inputs.heads is None else inputs.heads
        place = order.argsort()
        key_heads = torch.arange(h, device=q.device)[place] // (h // k.shape[1])
        mask, bias = inputs.mask, inputs.bias
        if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
            mask = mask[:, place]
        gate_k = inputs.gate_k if inputs.gate_k is None else inputs.gate_k[:, key_heads]
        inputs = dataclasses.replace(inputs, gate_k=gate_k)

        def added(q: Tensor, logits: Tensor, seen: Tensor) -> Tensor:
            out: Tensor = self(q, logits, seen.expand_as(logits), inputs.written_out(q, j))
            return out

        out = biased_attention_reference(
            BiasedInputs(
                q=q[:, place],
                k=k[:, key_heads],
                v=v[:, key_heads],
                bias=None if bias is None else bias.of_heads(place),
                scale=inputs.scale,
                mask=mask,
                causal=inputs.causal,
                cu_seqlens=inputs.cu_seqlens,
                window=inputs.window,
                sink=None if inputs.sink is None else inputs.sink[place],
            ),
            added,
        )
        return out[:, order]

    def trace(
        self, q: Tensor, logits: Tensor, seen: Tensor, inputs: AttendInputs
    ) -> dict[str, Tensor]:
        """Name → (b h i j), what `forward` computes on its way and people want to see.

        CoPE's ``gates`` and ``positions``, say. Arguments as of `forward`.
        """
        return {}


class AddedToInput(WithConstants, ABC):
    """A module of the input slot."""

    draw: Draw | None = None
    """See `IndexedScheme`."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        seq_start_pos: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """What is added to the embeddings of ``x``.

        Args:
            x: token ids, (b n); only the shape and device are read.
            pos: int64 positions, (n) or (b n), instead of ``offset … offset + n − 1``.
            seq_start_pos: (b), where each left-padded row begins.
            offset: position of the first token, where a cache precedes it.

        Returns:
            (n dim) or (b n dim).
        """

    def resized(self, name: str, old: Tensor) -> Tensor | None:
        """What a parameter begins with if a warm start finds it in another shape (another
        ``max_pos``, say); None: as in a fresh model.

        Args:
            name: of the parameter within this module.
            old: as the other model has it; may be on the meta device.
        """
        return None

    def places(
        self, x: Tensor, pos: Tensor | None, seq_start_pos: Tensor | None, offset: int
    ) -> Tensor:
        """Places, (n) or (b n), as `forward` describes them; below 0 only where padded."""
        drawn = None
        if pos is None:
            pos = torch.arange(x.shape[1], device=x.device) + offset
            if self.draw is not None and (self.training or self.draw.at_test):
                drawn = self.draw.places(x.shape[1] + offset, x.device)
        if seq_start_pos is not None:
            pos = pos - seq_start_pos[..., None]
        return pos if drawn is None else drawn[pos.clamp(min=0)]
