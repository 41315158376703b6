import doctest
import math
import os
import pickle
import time

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.tasks import corpus, text
from muonlab.tasks.base import PublishesRoles, Task
from muonlab.tasks.corpus import load_corpus
from muonlab.tasks.text import Text, counter_hash

SMALL = {"width": 16, "depth": 1, "seq_len": 8}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def shard_bytes(tokens, magic=20240520, version=1, count=None):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes()


def heldout(corpus):
    return np.concatenate([shard.tokens for shard in corpus.heldout])


@pytest.fixture(scope="module")
def embedded():
    return Text(**SMALL)


def test_implements_the_protocol(embedded):
    assert isinstance(embedded, Task) and isinstance(embedded, PublishesRoles)
    assert embedded.tokens_per_sample == 8


def test_the_embedded_corpus_is_real_text_of_useful_size(embedded):
    (train,), (held,) = embedded.corpus.train, embedded.corpus.heldout
    assert 4e6 < len(train.tokens) < 20e6
    assert 0.03 < len(held.tokens) / len(train.tokens) < 0.15
    assert b"def __init__(self" in train.tokens.tobytes() and b"import" in held.tokens.tobytes()


def test_the_embedded_corpus_loads_in_an_instant():
    corpus._load_embedded()  # fills the page cache
    best = math.inf
    for _ in range(5):
        corpus._load_embedded.cache_clear()
        start = time.perf_counter()
        Text(**SMALL)
        best = min(best, time.perf_counter() - start)
    assert best < 0.3  # 0.02 on an idle machine
    assert load_corpus() is load_corpus()


def test_a_batch_is_the_concatenation_of_its_slices(embedded):
    whole = embedded.batch(3, 0, 8)
    assert whole.shape == (8, 9) and whole.dtype == torch.int64
    assert torch.equal(whole, torch.cat([embedded.batch(3, 0, 1), embedded.batch(3, 1, 4), embedded.batch(3, 5, 3)]))
    assert torch.equal(whole, Text(**SMALL).batch(3, 0, 8))


def test_seeds_and_positions_give_other_samples(embedded):
    assert not torch.equal(embedded.batch(0, 0, 8), embedded.batch(1, 0, 8))
    assert not torch.equal(embedded.batch(0, 0, 8), embedded.batch(0, 8, 8))
    assert embedded.batch(-1, 2**40, 2).shape == (2, 9)


def test_the_counter_hash_is_uniform_and_independent_of_the_slice():
    drawn = counter_hash(7, 0, 100_000)
    assert len(np.unique(drawn)) == 100_000
    counts = np.bincount((drawn % np.uint64(10)).astype(int))
    assert abs(counts - 10_000).max() < 500  # five standard deviations
    assert np.array_equal(drawn[100:200], counter_hash(7, 100, 100))
    assert len(np.intersect1d(drawn, counter_hash(8, 0, 100_000))) == 0


def test_samples_are_windows_of_the_training_text(tmp_path):
    path = write(tmp_path / "a.txt", bytes(range(1, 201)))
    batch = Text(**SMALL, data=(path,)).batch(0, 0, 4000)
    assert torch.equal(batch[:, 1:] - batch[:, :-1], torch.ones(4000, 8, dtype=torch.int64))
    assert sorted(set(batch[:, 0].tolist())) == list(range(1, 173))  # every start, none into the held-out tail


def test_evaluation_covers_the_held_out_split_once(tmp_path):
    path = write(tmp_path / "a.txt", bytes(range(1, 251)) * 4)
    task = Text(**SMALL, data=(path,), eval_tokens=0)
    batches = list(task.evaluation())
    targets = torch.cat([batch[:, 1:].flatten() for batch, _ in batches])
    assert sum(weight for _, weight in batches) == len(targets) == (100 - 1) // 8 * 8
    assert targets.tolist() == heldout(task.corpus)[1:97].tolist()
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, task.evaluation(), strict=True))


def test_evaluation_takes_a_fixed_spread_sample():
    task = Text(seq_len=100, width=16, eval_tokens=20_050)
    batches = list(task.evaluation())
    assert sum(weight for _, weight in batches) == 20_100 and len(batches) == 3
    tokens = torch.cat([batch for batch, _ in batches]).numpy().astype(np.uint8)
    held = heldout(task.corpus)
    step = ((len(held) - 1) // 100) / 201
    for row in (0, 100, 200):
        place = int(row * step) * 100
        assert np.array_equal(tokens[row], held[place : place + 101])


def test_loss_is_a_fp32_scalar_near_uniform_also_under_autocast(embedded):
    torch.manual_seed(0)
    model, batch = embedded.build(), embedded.batch(0, 0, 16)
    loss = embedded.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        low = embedded.loss(model, batch)
    assert low.dtype == loss.dtype == torch.float32 and low.shape == ()
    assert loss.item() == pytest.approx(math.log(256), abs=0.1) and low.item() == pytest.approx(loss.item(), abs=0.01)


def test_a_few_steps_learn(embedded):
    torch.manual_seed(0)
    model = embedded.build()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for step in range(60):
        optimizer.zero_grad()
        loss = embedded.loss(model, embedded.batch(0, 32 * step, 32))
        loss.backward()
        optimizer.step()
    assert loss.item() < 3.6


def test_the_task_pickles_without_its_corpus(embedded):
    embedded.fingerprint()
    content = pickle.dumps(embedded)
    assert len(content) < 2000
    assert torch.equal(pickle.loads(content).batch(0, 0, 2), embedded.batch(0, 0, 2))


# Split


def test_names_decide_the_split(tmp_path):
    write(tmp_path / "d" / "train.txt", "abcdefghij" * 20)
    write(tmp_path / "d" / "more_valid.txt", "VALIDATION" * 5)
    split = load_corpus((str(tmp_path / "d"),))
    assert split.train[0].tokens.tobytes() == b"abcdefghij" * 20
    assert split.heldout[0].tokens.tobytes() == b"VALIDATION" * 5


def test_many_files_are_split_by_the_hash_of_their_names(tmp_path):
    for i in range(40):
        write(tmp_path / f"part{i:02}.txt", f"<{i:02}>" * 30)
    split = load_corpus((str(tmp_path),))
    train, held = (set(s[0].tokens.tobytes().split(b"\0")) for s in (split.train, split.heldout))
    assert len(train) == 37 and len(held) == 3 and not train & held
    assert held == set(load_corpus((str(tmp_path),)).heldout[0].tokens.tobytes().split(b"\0"))


def test_a_few_files_each_give_their_tail(tmp_path):
    paths = tuple(write(tmp_path / f"{name}.txt", name * 100) for name in "ab")
    split = load_corpus(paths)
    assert split.train[0].tokens.tobytes() == b"a" * 90 + b"\0" + b"b" * 90
    assert split.heldout[0].tokens.tobytes() == b"a" * 10 + b"\0" + b"b" * 10


def test_a_single_file_named_test_still_has_a_training_split(tmp_path):
    assert len(load_corpus((write(tmp_path / "test.txt", "x" * 100),)).train[0].tokens) == 90


def test_a_file_named_twice_counts_once(tmp_path):
    path = write(tmp_path / "a.txt", "x" * 100)
    assert len(load_corpus((path, path, str(tmp_path))).train[0].tokens) == 90


def test_a_directory_is_its_text_files(tmp_path):
    write(tmp_path / "sub" / "a.txt", "a" * 50)
    write(tmp_path / "b.rst", "b" * 50)
    write(tmp_path / ".hidden", "h" * 50)
    write(tmp_path / "image.png", b"\x89PNG\0\0\0")
    write(tmp_path / "empty.txt", "")
    assert load_corpus((str(tmp_path),)).train[0].tokens.tobytes() == b"b" * 45 + b"\0" + b"a" * 45


# Token shards


def test_headed_shards(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 1000, 300) for _ in range(3)]
    names = ["x_train_000001.bin", "x_train_000002.bin", "x_val_000000.bin"]
    for name, tokens in zip(names, parts, strict=True):
        write(tmp_path / name, shard_bytes(tokens))
    task = Text(**SMALL, data=(str(tmp_path),), vocab_size=1000)
    assert [len(s.tokens) for s in task.corpus.train] == [300, 300]
    assert np.array_equal(task.corpus.heldout[0].tokens, parts[2])
    assert isinstance(task.corpus.train[0].tokens, np.memmap) and not task.corpus.train[0].tokens.flags.writeable
    known = {tuple(part[i : i + 9]) for part in parts[:2] for i in range(292)}
    assert {tuple(row) for row in task.batch(0, 0, 5000).tolist()} == known  # all windows, none across shards
    assert torch.equal(task.batch(0, 0, 8)[3:], task.batch(0, 3, 5))


def test_raw_shards_by_name_or_option(tmp_path):
    tokens = np.arange(500) % 100
    train = write(tmp_path / "train.bin", tokens.astype("<u2").tobytes())
    val = write(tmp_path / "val.bin", (tokens[:50] + 1).astype("<u2").tobytes())
    task = Text(**SMALL, data=(train, val))
    assert np.array_equal(task.corpus.train[0].tokens, tokens) and len(heldout(task.corpus)) == 50
    assert task.config.vocab_size == 50304
    other = write(tmp_path / "other" / "tokens.bin", tokens.astype("<u2").tobytes())
    assert len(Text(**SMALL, data=(other,), raw_bin=True).corpus.train[0].tokens) == 450
    with pytest.raises(UsageError, match=r"tokens\.bin: wrong magic 65536, want 20240520; .*raw_bin"):
        Text(**SMALL, data=(other,))


def test_a_token_outside_the_vocabulary_names_its_shard(tmp_path):
    path = write(tmp_path / "a.bin", shard_bytes([5] * 200))
    task = Text(**SMALL, data=(path,), vocab_size=5)
    message = r"a\.bin: token 5 is outside the vocabulary of 5: set task\.vocab_size"
    with pytest.raises(UsageError, match=message):
        task.batch(0, 0, 1)
    with pytest.raises(UsageError, match=message):
        list(task.evaluation())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the token shard is empty"),
        (shard_bytes([1] * 200) + b"x", "1425 bytes is an odd size"),
        (shard_bytes([1] * 200, count=300), "truncated: the header counts 300 tokens, the file holds 200"),
        (shard_bytes([1] * 200, count=-1), "longer than its header says"),
        (shard_bytes([1] * 200, count=100), "longer than its header says: the header counts 100"),
        (shard_bytes([])[:400], "truncated inside its header"),
        (shard_bytes([1] * 200, version=7), "shard version 7"),
        (shard_bytes([1] * 200, magic=20240801), "wrong magic 20240801, want 20240520"),
        (b"ab", "wrong magic none"),
        (shard_bytes([]), "the token shard is empty"),
    ],
)
def test_a_broken_shard_is_one_line(tmp_path, content, message):
    with pytest.raises(UsageError, match=message) as caught:
        Text(**SMALL, data=(write(tmp_path / "a.bin", content),))
    assert "\n" not in str(caught.value) and "a.bin" in str(caught.value)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "seq_len must be a whole number of at least 1, got 0"),
        ({"eval_tokens": -1}, "eval_tokens must be a whole number of at least 0"),
        ({"raw_bin": 1}, "raw_bin must be true or false"),
        ({"vocab_size": 100}, "vocab_size 100 is too small for text"),
        ({"width": 30, "num_heads": 4}, "num_heads 4 must divide width 30"),
        ({"data": ("missing.txt",)}, r"no such file or directory: missing\.txt"),
    ],
)
def test_an_impossible_option_is_one_line(options, message):
    with pytest.raises(UsageError, match=message):
        Text(**options)


def test_text_that_is_missing_short_or_no_text(tmp_path):
    with pytest.raises(UsageError, match="the text is empty"):
        Text(data=(write(tmp_path / "empty.txt", ""),))
    short = write(tmp_path / "short.txt", "x" * 100)
    with pytest.raises(UsageError, match="seq_len 64 needs 65 tokens in a row, the held-out split has 10: give more"):
        Text(seq_len=64, data=(short,))
    with pytest.raises(UsageError, match="the training split has 90"):
        Text(seq_len=95, data=(short,))
    with pytest.raises(UsageError, match="the held-out split has 0"):
        Text(**SMALL, data=(write(tmp_path / "tiny.txt", "x" * 9),))
    with pytest.raises(UsageError, match="not a text file"):
        Text(data=(write(tmp_path / "a.png", b"\x89PNG\0"),))
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="neither text files nor"):
        Text(data=(str(tmp_path / "none"),))
    with pytest.raises(UsageError, match=r"mixes 1 \.bin shards with 1 text files"):
        Text(data=(short, write(tmp_path / "a.bin", shard_bytes([1] * 100))))


def test_check_refuses_a_batch_larger_than_the_corpus(tmp_path):
    task = Text(**SMALL, data=(write(tmp_path / "a.txt", "x" * 100),))
    task.check(11)
    with pytest.raises(UsageError, match="a batch of 96 tokens exceeds the training split of 90: lower --batch-tokens"):
        task.check(12)


# Fingerprint


def test_the_fingerprint_follows_content_not_place(tmp_path):
    first = write(tmp_path / "a" / "x.txt", "x" * 100)
    same = write(tmp_path / "b" / "y.txt", "x" * 100)
    assert Text(**SMALL, data=(first,)).fingerprint() == Text(**SMALL, data=(same,)).fingerprint()
    before = Text(**SMALL, data=(first,)).fingerprint()
    write(tmp_path / "a" / "x.txt", "x" * 99 + "y")
    os.utime(first, ns=(1, 1))
    assert Text(**SMALL, data=(first,)).fingerprint() != before
    tokens = write(tmp_path / "c.bin", shard_bytes(np.frombuffer(b"x" * 100, np.uint8)))
    assert Text(**SMALL, data=(tokens,)).fingerprint() != before


def test_a_large_shard_is_hashed_by_its_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "HASH_WHOLE_BYTES", 1000)
    monkeypatch.setattr(corpus, "HASH_BLOCK_BYTES", 64)
    monkeypatch.setattr(corpus, "HASH_NUM_BLOCKS", 4)

    def digest(changed):
        tokens = np.zeros(10_000, dtype=np.uint16)
        if changed is not None:
            tokens[changed] = 1
        path = write(tmp_path / f"{changed}.bin", shard_bytes(tokens))
        return load_corpus((path,)).fingerprint

    same = digest(None)
    assert digest(0) != same and digest(8_999) != same  # 9,000 training tokens: the first and the last block
    assert digest(1_000) == same  # between two blocks: documented as unseen


def test_doctests():
    assert doctest.testmod(text).failed == 0
