"""A Hugging Face model as a task: features of its layers, and every study, on a model that is built from a config.

    python examples/huggingface.py                                # trains by Muon and by AdamW: muon.pt, adamw.pt
    muonlab features examples/huggingface.py:Task --checkpoint muon.pt --checkpoint adamw.pt
    muonlab compare examples/huggingface.py:Task --tokens 200000 --batch-tokens 1024

Put in your config, or your architecture, and your tokens. Needs `pip install transformers`; nothing is downloaded.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

NUM_BYTES, SEQ_LEN = 256, 64
HELDOUT_WINDOWS, COMMONEST = 64, 16
STEPS, BATCH = 100, 16


class Logits(nn.Module):
    """What a task's model is: inputs in, one tensor out. Layers are net.transformer.h.0 and so on."""

    def __init__(self, config):
        super().__init__()
        self.net = GPT2LMHeadModel(config)

    def forward(self, tokens):  # (B, T) -> (B, T, vocabulary)
        return self.net(tokens).logits


def read_text():
    """Bytes to train on, and bytes that are held out: modules of Python's own library."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    texts = [torch.tensor(list(b"".join(path.read_bytes() for path in part))) for part in (files[:-20], files[-20:])]
    return texts[0], texts[1][: HELDOUT_WINDOWS * SEQ_LEN + 1]


def replaced(tokens, severity, seed):
    """Tokens of which 5 % for each step of severity are drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    is_replaced = torch.rand(tokens.shape, generator=generator) < 0.05 * severity
    return torch.where(is_replaced, torch.randint(NUM_BYTES, tokens.shape, generator=generator), tokens)


class Task:
    tokens_per_sample = SEQ_LEN

    def __init__(self, width=32, depth=2, num_heads=2):
        self.corruptions = {"replaced": replaced}  # by which robustness is measured; leave it out where there is none
        shape = {"n_embd": width, "n_layer": depth, "n_head": num_heads, "n_positions": SEQ_LEN}
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        special = dict.fromkeys(("bos_token_id", "eos_token_id"))
        self.config = GPT2Config(vocab_size=NUM_BYTES, use_cache=False, **shape, **dropout, **special)
        self.train, self.heldout = read_text()

    def build(self):
        return Logits(self.config)

    def batch(self, seed, start, count):
        """Windows at places that are drawn one by one, so that sample i is the same in every batch."""
        drawn = (torch.Generator().manual_seed(1_000_003 * seed + i) for i in range(start, start + count))
        places = [int(torch.randint(len(self.train) - SEQ_LEN, (), generator=one)) for one in drawn]
        windows = torch.stack([self.train[at : at + SEQ_LEN + 1] for at in places])
        return windows[:, :-1], windows[:, 1:]

    def loss(self, model, batch):
        tokens, following = batch
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

    def evaluation(self):
        tokens, following = self.heldout[:-1].view(-1, SEQ_LEN), self.heldout[1:].view(-1, SEQ_LEN)
        yield (tokens, following), following.numel()

    def labelled(self, count):
        """For probes of layers: which of the commonest bytes comes next; -1, left out, for all others.

        Without this method there are ranks and no margins: which of the labels of positions to tell apart is a choice.
        """
        (tokens, following), _ = next(iter(self.evaluation()))
        rows = max(1, count // SEQ_LEN)
        tokens, following = tokens[:rows], following[:rows]
        is_one = following[..., None] == following.flatten().bincount().topk(COMMONEST).indices
        return tokens, torch.where(is_one.any(-1), is_one.int().argmax(-1), -1)


def train(task, optimizer_of, path):
    torch.manual_seed(0)
    model = task.build()
    optimizer = optimizer_of(model)
    for step in range(STEPS):
        loss = task.loss(model, task.batch(0, step * BATCH, BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{path}: loss {loss.item():.3f} after {STEPS} steps")
    torch.save(model.state_dict(), path)


if __name__ == "__main__":
    import muonlab

    train(Task(), lambda model: muonlab.Muon(model, lr=0.02), "muon.pt")
    train(Task(), lambda model: torch.optim.AdamW(model.parameters(), lr=3e-3), "adamw.pt")
