"""Which parameters are stepped: shapes of real models, named."""

from dataclasses import dataclass
from math import prod

from muonlab.errors import unknown

__all__ = ["SETS", "ParameterSet", "Shape", "find_set"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterSet:
    """Shapes, the rule that steps them, and the larger variant where there is one.

    >>> SETS["d64"].num_parameters, len(SETS["d128"].shapes), len(SETS["gpt2-small"].whole.shapes)
    (196608, 24, 48)
    """

    name: str
    shapes: tuple[Shape, ...]
    rule: str = "muon"
    full: tuple[Shape, ...] | None = None

    @property
    def num_parameters(self) -> int:
        return sum(map(prod, self.shapes))

    @property
    def is_matrices(self) -> bool:
        """Whether linear layers could be made of it."""
        return all(len(shape) == 2 for shape in self.shapes)

    @property
    def whole(self) -> "ParameterSet":
        """The set at the size of its model, under the same name."""
        return self if self.full is None else ParameterSet(self.name, self.full, self.rule)


def _layer(width: int) -> tuple[Shape, ...]:
    """Hidden matrices of one transformer layer: queries, keys and values in one, output, up, down."""
    return ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))


def _gpt2_rest(vocabulary: int) -> tuple[Shape, ...]:
    """What is no hidden matrix in GPT-2 small: two embeddings, then norms and biases of 12 layers and the last norm."""
    vectors = ((768,), (768,), (2304,), (768,), (768,), (768,), (3072,), (768,))
    return ((vocabulary, 768), (1024, 768), *12 * vectors, (768,), (768,))


SETS = {
    found.name: found
    for found in (
        ParameterSet("gpt2-small", _layer(768), full=12 * _layer(768)),
        ParameterSet("d64", 4 * _layer(64)),
        ParameterSet("d128", 6 * _layer(128)),
        ParameterSet("tall", 4 * ((4096, 256),)),
        ParameterSet("aux", _gpt2_rest(16384), rule="adamw", full=_gpt2_rest(50304)),
        ParameterSet("aux-d64", 4 * _layer(64), rule="adamw"),
        ParameterSet("aux-gpt2-small", _layer(768), rule="adamw", full=12 * _layer(768)),
    )
}


def find_set(name: str) -> ParameterSet:
    """
    Raises   UsageError for another name
    """
    if name not in SETS:
        raise unknown("set", name, SETS)
    return SETS[name]
