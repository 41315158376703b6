"""A task of your own: copy this file, put in your model and your data, and run it as `own_model.py:Task`.

Nothing here imports muonlab: a task is any class with the four methods below. The model is an ordinary module, the
data an ordinary pair of tensors: points in 16 dimensions, labelled by a random network that the model has to imitate.
"""

import torch
import torch.nn.functional as F
from torch import nn

NUM_TRAIN, NUM_HELDOUT = 16384, 2048
NUM_FEATURES, NUM_CLASSES = 16, 10


class Model(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.first = nn.Linear(NUM_FEATURES, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.head(x)


def make_dataset():
    """Inputs and labels, the same on every call: never draw data from torch's global generator."""
    generator = torch.Generator().manual_seed(2718)
    inputs = torch.randn(NUM_TRAIN + NUM_HELDOUT, NUM_FEATURES, generator=generator)
    first = torch.randn(NUM_FEATURES, 32, generator=generator) / NUM_FEATURES**0.5
    second = torch.randn(32, NUM_CLASSES, generator=generator)
    return inputs, (torch.sin(inputs @ first) @ second).argmax(dim=1)


class Task:
    """The constructor's arguments are the options: `--set task.width=128` on the command line."""

    tokens_per_sample = 1  # a sample is one point; in a language model this is the length of a sequence

    def __init__(self, width=64, depth=2):
        self.width, self.depth = width, depth
        self.inputs, self.labels = make_dataset()

    def build(self):
        """A fresh model. Use torch's global generator: the trainer has seeded it."""
        return Model(self.width, self.depth)

    def batch(self, seed, start, count):
        """Samples start ... start + count - 1 of an endless stream: one shuffled epoch after the other.

        It must depend on its arguments only; muonlab may ask for any slice, in any order, from any process.
        """
        picked = []
        while count > 0:
            epoch, place = divmod(start, NUM_TRAIN)
            order = torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
            picked.append(order[place : place + count])
            start, count = start + len(picked[-1]), count - len(picked[-1])
        index = torch.cat(picked)
        return self.inputs[index], self.labels[index]

    def loss(self, model, batch):
        """Mean loss over the batch; muonlab has moved it to the model's device."""
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)

    def evaluation(self):
        """Held-out batches, each with its weight: the number of samples in it."""
        yield (self.inputs[NUM_TRAIN:], self.labels[NUM_TRAIN:]), NUM_HELDOUT
