"""The task `text`: a decoder that predicts the next byte, or the next token of a shard; and what such tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from muonlab.errors import UsageError
from muonlab.roles import Role
from muonlab.tasks.corpus import Corpus, Shard, load_corpus
from muonlab.tasks.decoder import Decoder, DecoderConfig
from muonlab.tasks.stream import counter_hash

__all__ = ["NextToken", "Text"]

NUM_BYTES = 256
GPT2_VOCAB = 50304  # 50257 rounded up to a multiple of 64, as nanoGPT does
EVAL_BATCH_TOKENS = 8192
IN_PLACE = ("swap", "keyboard", "mask")
LABELLED_PLACES, LABELLED_TOKENS, LABELLED_LEAST = 8, 16, 4  # of a window; that are told apart; times that each occurs


@dataclass(frozen=True, kw_only=True)
class NextToken(ABC):
    """Next-token prediction on a corpus, by a decoder: everything but the corpus.

    A sample is `seq_len + 1` consecutive tokens at a random place of the training split; samples may overlap and may
    cross from one text file into the next. The held-out split is cut into windows of `seq_len` targets.

    Raises   UsageError for a shape that cannot be built, or text too short for `seq_len`
    """

    numerics_version: ClassVar[str]  # raise when the same options give other numbers

    seq_len: int = 64
    eval_tokens: int = 0  # at most, evenly spread over the held-out split; 0 = all of it
    vocab_size: int | None = None  # None = 256 for text, 50304 for token shards
    width: int = DecoderConfig.width
    depth: int = DecoderConfig.depth
    num_heads: int | None = DecoderConfig.num_heads
    mlp_width: int | None = DecoderConfig.mlp_width
    mlp: str = DecoderConfig.mlp
    norm: str = DecoderConfig.norm
    qk_norm: bool = DecoderConfig.qk_norm
    tied: bool = DecoderConfig.tied
    zero_init: bool = DecoderConfig.zero_init
    rope_base: float = DecoderConfig.rope_base

    def __post_init__(self) -> None:
        for name, least in (("seq_len", 1), ("eval_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} must be a whole number of at least {least}, got {value!r}")
        config, need = self.config, self.seq_len + 1
        if self.corpus.kind == "bytes" and config.vocab_size < NUM_BYTES:
            raise UsageError(f"vocab_size {config.vocab_size} is too small for text, which has {NUM_BYTES} bytes")
        for label, shards in (("training", self.corpus.train), ("held-out", self.corpus.heldout)):
            longest = max((len(shard.tokens) for shard in shards), default=0)
            if longest < need:
                message = f"seq_len {self.seq_len} needs {need} tokens in a row, the {label} split has {longest}"
                raise UsageError(f"{message}: give more text or lower task.seq_len")

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("corpus", "config")}

    @property
    @abstractmethod
    def corpus(self) -> Corpus:
        """What is trained on, and what is held out; kept once it was read."""

    @cached_property
    def config(self) -> DecoderConfig:
        """The shape of the model."""
        vocab_size = self.vocab_size
        if vocab_size is None:
            vocab_size = NUM_BYTES if self.corpus.kind == "bytes" else GPT2_VOCAB
        names = (name for name in DecoderConfig.__dataclass_fields__ if name != "vocab_size")
        return DecoderConfig(vocab_size=vocab_size, **{name: getattr(self, name) for name in names})

    @property
    def tokens_per_sample(self) -> int:
        return self.seq_len

    def build(self) -> Decoder:
        return Decoder(self.config, self.seq_len)

    def batch(self, seed: int, start: int, count: int) -> Tensor:
        """Samples start ... start + count - 1 of the stream: (count, seq_len + 1) int64."""
        lengths = np.array([max(0, len(shard.tokens) - self.seq_len) for shard in self.corpus.train], dtype=np.uint64)
        ends = np.cumsum(lengths)
        places = counter_hash(seed, start, count) % ends[-1]
        which = np.searchsorted(ends, places, side="right")
        return self._cut(self.corpus.train, which, (places - (ends - lengths)[which]).astype(np.int64))

    def evaluation(self) -> Iterator[tuple[Tensor, int]]:
        """Held-out batches of about 8192 tokens, each with its number of targets; no token is a target twice."""
        counts = [max(0, len(shard.tokens) - 1) // self.seq_len for shard in self.corpus.heldout]
        which = np.repeat(np.arange(len(counts)), counts)
        offsets = np.concatenate([np.arange(count, dtype=np.int64) * self.seq_len for count in counts])
        wanted = -(-self.eval_tokens // self.seq_len)
        if 0 < wanted < len(offsets):
            chosen = np.arange(wanted) * len(offsets) // wanted
            which, offsets = which[chosen], offsets[chosen]
        size = max(1, EVAL_BATCH_TOKENS // self.seq_len)
        for at in range(0, len(offsets), size):
            batch = self._cut(self.corpus.heldout, which[at : at + size], offsets[at : at + size])
            yield batch, len(batch) * self.seq_len

    def labelled(self, count: int) -> tuple[Tensor, Tensor]:
        """Held-out windows, and at eight places of each which of the 16 tokens that are commonest there comes next.

        Shapes   -> (windows, seq_len) int64 each, about `count` labels; -1 where there is no label
        """
        windows = torch.cat([batch for batch, _ in self.evaluation()])
        wanted = min(len(windows), -(-count // LABELLED_PLACES))
        windows = windows[torch.arange(wanted) * len(windows) // wanted]
        places = torch.arange(0, self.seq_len, max(1, self.seq_len // LABELLED_PLACES))
        following = windows[:, 1:][:, places]
        tokens, counts = following.unique(return_counts=True)
        counts = counts.where(counts >= LABELLED_LEAST, 0)
        kept = tokens[counts.argsort(descending=True, stable=True)[: min(LABELLED_TOKENS, int((counts > 0).sum()))]]
        label_of = torch.full((self.config.vocab_size,), -1)
        label_of[kept] = torch.arange(len(kept))
        labels = torch.full((wanted, self.seq_len), -1)
        labels[:, places] = label_of[following]
        return windows[:, :-1], labels

    @property
    def corruptions(self) -> Mapping[str, Any]:
        """Of bytes, those that leave all others in their places, so that what comes next stays the same."""
        from muonlab.tasks.corruptions import CORRUPTIONS  # which takes its random numbers from here

        return {name: CORRUPTIONS[name] for name in IN_PLACE} if self.corpus.kind == "bytes" else {}

    def loss(self, model: torch.nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token; the logits are widened to fp32 first."""
        logits_BTV = model(batch[:, :-1])
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), batch[:, 1:].flatten())

    def curvature_loss(self, model: torch.nn.Module, batch: Tensor) -> Tensor:
        """Mean cross-entropy against tokens drawn from the model's own predictions, by torch's global generator."""
        logits = model(batch[:, :-1]).flatten(0, 1).float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1)
        return F.cross_entropy(logits, drawn)

    def roles(self, model: Decoder) -> dict[str, Role]:
        return model.roles()

    def branches(self, model: Decoder) -> list[str]:
        return model.branches()

    def tensor_parallel_plan(self, model: Decoder, size: int) -> dict[str, Any]:
        return model.tensor_parallel_plan(size)

    def flops_per_token(self, model: Decoder) -> float:
        return model.config.flops_per_token(self.seq_len)

    def fingerprint(self) -> str:
        return self.corpus.fingerprint

    def check(self, batch_samples: int) -> None:
        """Raises UsageError if one batch is larger than the training split."""
        held, wanted = sum(len(shard.tokens) for shard in self.corpus.train), batch_samples * self.seq_len
        if wanted > held:
            raise UsageError(f"a batch of {wanted} tokens exceeds the training split of {held}: lower --batch-tokens")

    def _cut(self, shards: tuple[Shard, ...], which: np.ndarray, offsets: np.ndarray) -> Tensor:
        """The windows of `seq_len + 1` tokens at some places: (len(which), seq_len + 1) int64."""
        batch = np.empty((len(which), self.seq_len + 1), dtype=np.int64)
        for index in np.unique(which):
            shard, rows = shards[index], which == index
            windows = np.lib.stride_tricks.sliding_window_view(shard.tokens, self.seq_len + 1)
            batch[rows] = windows[offsets[rows]]
            largest = int(batch[rows].max())
            if largest >= self.config.vocab_size:
                message = f"{shard.name}: token {largest} is outside the vocabulary of {self.config.vocab_size}"
                raise UsageError(f"{message}: set task.vocab_size")
        return torch.from_numpy(batch)


@dataclass(frozen=True, kw_only=True)
class Text(NextToken):
    """Next-token prediction on this Python's library sources, on text files (bytes) or on `.bin` token shards.

    >>> task = Text(width=32, seq_len=64)
    >>> tuple(task.batch(seed=0, start=0, count=8).shape)
    (8, 65)

    Raises   UsageError as `NextToken` does, and for data that cannot be read
    """

    numerics_version: ClassVar[str] = "1"

    raw_bin: bool = False  # .bin files without a header hold uint16 tokens from their first byte
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.raw_bin, bool):
            raise UsageError(f"raw_bin must be true or false, got {self.raw_bin!r}")
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        super().__post_init__()

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.data, raw_bin=self.raw_bin)
