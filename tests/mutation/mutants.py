"""Small faults for `sampler`, one at a time: which there are, and the source with one of them in it.

The operators are cosmic-ray's, in a selection, and one of our own, which leaves out a statement. Cosmic-ray puts eleven
other operators in the place of every ``+``, and five others in that of every ``<``; most of these die of the first
test, and a score over all of them would flatter. Here an operator has one stand-in or two, those nearest to it.

What stands in an annotation is not mutated, since nothing runs it, nor what an error says: the arguments in a
``raise``. Nor are the stars of parameters and arguments, which cosmic-ray takes for products.
"""

from __future__ import annotations

import ast
import math
import random
from dataclasses import dataclass
from pathlib import Path

import parso.python.tree as syntax
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

BINARY = (
    "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul LShift_RShift RShift_LShift "
    "BitAnd_BitOr BitOr_BitAnd BitXor_BitAnd"
)
COMPARISONS = "Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
UNARY = "Delete_USub Delete_Not Delete_Invert"
OTHERS = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd ReplaceBreakWithContinue "
    "ReplaceContinueWithBreak ExceptionReplacer NumberReplacer RemoveDecorator ZeroIterationForLoop"
)


class RemoveStatement(Operator):
    """A call for its effect, or an assignment to an attribute or an item, becomes ``pass``."""

    def mutation_positions(self, node):
        if _has_effect(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node, index):
        return syntax.Keyword("pass", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls):
        return ()


def _has_effect(node) -> bool:
    if node.parent is None or node.parent.type != "simple_stmt":
        return False
    if node.type == "expr_stmt":
        target, sign = node.children[0], node.children[1]
        return target.type == "atom_expr" or (sign.type == "operator" and sign.value != "=")
    return node.type == "atom_expr"


def _operators() -> dict[str, Operator]:
    names = [f"ReplaceBinaryOperator_{name}" for name in BINARY.split()]
    names += [f"ReplaceComparisonOperator_{name}" for name in COMPARISONS.split()]
    names += [f"ReplaceUnaryOperator_{name}" for name in UNARY.split()]
    names += OTHERS.split()
    return {name: get_operator(f"core/{name}")() for name in names} | {"RemoveStatement": RemoveStatement()}


OPERATORS = _operators()


@dataclass(frozen=True)
class Mutant:
    """One fault: the file, the operator and its how-manieth place there, and the line, counted from 1."""

    file: str
    operator: str
    occurrence: int
    line: int

    def source(self, original: str) -> str | None:
        """The file with the fault in it; None where it cannot be made."""
        return mutate_code(original, OPERATORS[self.operator], self.occurrence)


def mutants(root: Path, file: str) -> list[Mutant]:
    """All that count, in the order of the operators."""
    source = (root / file).read_text()
    nodes, silent = list(ast_nodes(get_ast(source))), _silent(source)
    found = []
    for name, operator in OPERATORS.items():
        starts = [(start, node) for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (start, node) in enumerate(starts):
            star = node.type == "operator" and node.value in ("*", "**") and node.parent.type not in ("term", "power")
            if not star and not any(first <= start < last for first, last in silent):
                found.append(Mutant(file, name, occurrence, start[0]))
    return found


def drawn(root: Path, file: str, share: float, seed: int) -> list[Mutant]:
    """A share of a file's mutants, rounded up, drawn at random; of one seed, a larger share has the smaller in it."""
    found = mutants(root, file)
    random.Random(f"{seed} {file}").shuffle(found)
    return found[: math.ceil(share * len(found))]


def _silent(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations stand, and the arguments of what is raised."""
    parts: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        parts += filter(None, [getattr(node, "annotation", None), getattr(node, "returns", None)])
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            parts += [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]
    return [((part.lineno, part.col_offset), (part.end_lineno or 0, part.end_col_offset or 0)) for part in parts]
