import hashlib
import math
import pickle
import re
import time
from collections import Counter

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.tasks import synthetic
from muonlab.tasks.base import PublishesRoles, Task
from muonlab.tasks.catalog import fingerprint, flops_per_token, locate, resolve
from muonlab.tasks.rehearsal import rehearse
from muonlab.tasks.synthetic import Synthetic, generate
from muonlab.tasks.text import Text

PINNED = "d67a0c9413cc043fbe6a99e95de592773a9cb703e4903b718cdb1829b6b3aa8e"  # a second time, lest it be changed along
SMALL = {"width": 16, "depth": 1, "seq_len": 32}
DETERMINERS = [word.strip() for word in synthetic.FIXED[synthetic.DETERMINER :]]


@pytest.fixture(scope="module")
def texts():
    (train,), (held,) = generate().train, generate().heldout
    return train.tokens.tobytes().decode("ascii"), held.tokens.tobytes().decode("ascii")


def sentences(text):
    """Each without the heading of its document."""
    return [part.strip() for part in re.sub(r"\n# \w+:", "", text).split(".") if part.strip()]


@pytest.fixture(scope="module")
def forms():
    """Word -> (kind, rank, form)."""
    words, first = synthetic._lexicon()
    found = {}
    for kind, (count, endings) in synthetic.KINDS.items():
        for i in range(count * len(endings)):
            found[words[first[kind] + i].decode().strip()] = (kind, *divmod(i, len(endings)))
    return found


def test_the_bytes_are_the_ones_of_every_machine(texts):
    assert hashlib.sha256("".join(texts).encode()).hexdigest() == PINNED == synthetic.SHA256
    assert [len(text) for text in texts] == [8_762_353, 435_007]
    assert texts[0].startswith("\n# pallihu: an sten stalfaek an rozuro. shei heris nuekum ul dolinsta.")


def test_another_text_is_refused(monkeypatch):
    monkeypatch.setattr(synthetic, "ONSETS", ("c", *synthetic.ONSETS[1:]))
    with pytest.raises(RuntimeError, match="the synthetic text came out with the hash"):
        generate.__wrapped__()


def test_a_document_does_not_depend_on_how_many_are_made_at_once():
    grammar = synthetic._Grammar()
    whole = grammar.sentences(5, 7)
    assert np.array_equal(whole, np.concatenate([grammar.sentences(5, 3), grammar.sentences(8, 4)]))


def test_it_is_made_in_an_instant_and_once():
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        generate.__wrapped__()
        best = min(best, time.perf_counter() - start)
    assert best < 3  # 0.4 on a busy machine
    assert generate() is generate() is Synthetic(**SMALL).corpus


def test_no_sentence_is_in_both_splits(texts):
    train, held = map(sentences, texts)
    assert not set(train) & set(held)
    assert len(train) == 11_200 * 16 and 0.99 < len(held) / (560 * 16) < 1
    assert len(set(train)) > 0.99 * len(train)


def test_brackets_are_closed_in_order(texts):
    pairs = dict(zip(")]}", "([{", strict=True))
    nested = set()
    for sentence in sentences(texts[1]):
        opened = []
        for letter in sentence:
            if letter in pairs.values():
                assert letter not in opened  # the inner one is of another kind
                opened.append(letter)
                nested.add("".join(opened))
            elif letter in pairs:
                assert opened.pop() == pairs[letter], sentence
        assert not opened
    assert len(nested) == 3 + 3 * 2


def test_words_agree_across_the_insertion(texts, forms):
    """Determiner, adjective and noun in gender and number, and both verbs with the subject, past any other noun."""
    genders, apart = {}, 0
    for sentence in sentences(texts[0])[:4000]:
        if ":" in sentence:
            continue
        words, subject, form = sentence.split(), None, None
        for word in words:
            kind, rank, mark = forms.get(word, ("", 0, 0))
            if word in DETERMINERS:
                form = DETERMINERS.index(word) % 4
            elif kind == "adjective":
                assert mark == form, sentence
            elif kind == "noun":
                assert mark == form % 2 and genders.setdefault(rank, form // 2) == form // 2, sentence
                subject = form if subject is None else subject
            elif kind == "name" and subject is None:
                subject = 2 * (rank % 2)
            elif kind == "verb":
                assert mark == subject, sentence
                apart += form != subject
    assert len(genders) > 500 and set(genders.values()) == {0, 1}
    assert apart > 300  # another noun stood in between, with another form


def test_recitals_repeat_or_reverse(texts):
    kinds = Counter()
    for sentence in sentences(texts[0]):
        if ":" in sentence:
            head, *first = sentence.partition(":")[0].split()
            again = sentence.partition(":")[2].split()
            assert again == (first if head == "recite" else first[::-1]) and 3 <= len(first) <= 6
            kinds[head] += 1
    assert min(kinds.values()) > 0.04 * 11_200 * 16 and len(kinds) == 2


def test_a_document_keeps_to_its_topic_and_cast(texts, forms):
    documents = texts[0].split("\n# ")[1:]
    names = [set(re.findall(r"[A-Z]\w*", text)) for text in documents]
    assert max(map(len, names)) <= synthetic.CAST and len(set().union(*names)) > 1000

    def nouns(heading):
        found = Counter()
        for text in documents:
            if text.startswith(heading):
                found.update(
                    w for s in sentences(text) if ":" not in s for w in s.split() if forms.get(w, "-")[0] == "noun"
                )
        counts = np.array(list(found.values())) / found.total()
        return float(-(counts * np.log(counts)).sum())

    assert nouns("ferre:") < nouns("") - 0.6 and nouns("di:") < nouns("") - 0.6  # nats: worth inferring


def test_frequencies_are_zipfian(texts, forms):
    nouns = Counter(forms[word][1] for word in texts[0].split() if forms.get(word, "-")[0] == "noun")
    counts = np.sort(list(nouns.values()))[::-1]
    ranks = np.arange(10, 1000)
    slope = np.polyfit(np.log(ranks), np.log(counts[ranks]), 1)[0]
    assert len(counts) == synthetic.KINDS["noun"][0] and -1.4 < slope < -0.7


def test_there_is_something_to_learn_at_every_length(texts):
    """Entropies of a byte given those before it, nats; what the documentation says."""
    tokens = np.frombuffer(texts[0].encode(), np.uint8).astype(np.int64)

    def entropy(codes):
        share = np.bincount(codes)[np.unique(codes)] / len(codes)
        return float(-(share * np.log(share)).sum())

    pairs = tokens[:-1] * 256 + tokens[1:]
    assert entropy(tokens) == pytest.approx(2.951, abs=1e-3)
    assert entropy(pairs) - entropy(tokens) == pytest.approx(2.258, abs=1e-3)
    assert len(np.unique(tokens)) == 47


def test_everything_but_the_corpus_is_that_of_text():
    task, text = Synthetic(**SMALL), Text(**SMALL)
    assert isinstance(task, Task) and isinstance(task, PublishesRoles)
    assert task.config == text.config and task.tokens_per_sample == 32
    torch.manual_seed(0)
    model = task.build()
    torch.manual_seed(0)
    for a, b in zip(model.parameters(), text.build().parameters(), strict=True):
        assert torch.equal(a, b)
    assert task.roles(model) == text.roles(model)
    assert flops_per_token(task, model) == flops_per_token(text, model)
    assert torch.equal(task.batch(1, 0, 8)[3:], task.batch(1, 3, 5))
    options, own = locate("text").options, locate("text-synthetic").options
    assert {name: value for name, value in options.items() if name != "raw_bin"} == own
    rehearse(task)


def test_the_catalogue_knows_it():
    assert locate("text-synthetic").numerics == {"task": "1"}
    task = resolve("text-synthetic", {"width": 16, "eval_tokens": 4096})
    assert task == Synthetic(width=16, eval_tokens=4096) and pickle.loads(pickle.dumps(task)) == task
    assert "corpus" not in task.__getstate__() and fingerprint(task) == task.corpus.fingerprint != ""
    assert sum(weight for _, weight in task.evaluation()) == 4096


@pytest.mark.parametrize(
    ("name", "options", "data", "message"),
    [
        ("text-syntetic", {}, (), "did you mean 'text-synthetic'\\? \\(valid: cifar10, .*text-synthetic\\)"),
        ("text-synthetic", {}, ("a.txt",), "task text-synthetic reads no data"),
        ("text-synthetic", {"raw_bin": True}, (), "unknown task option 'raw_bin'"),
        ("text-synthetic", {"seq_len": 10**6}, (), "needs 1000001 tokens in a row, the held-out split has 435007"),
        ("text-synthetic", {"vocab_size": 100}, (), "vocab_size 100 is too small for text"),
    ],
)
def test_each_mistake_is_one_line(name, options, data, message):
    with pytest.raises(UsageError, match=message) as caught:
        resolve(name, options, data)
    assert "\n" not in str(caught.value)
