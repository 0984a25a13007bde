"""Decides whether two values are equal, by the rules of `docs/explanation/answers.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pdr_graph.answers.expression import (
    Tree,
    has_decimal,
    integer,
    is_in_radians,
    names_of,
    put,
    rational_tree,
    renamed,
)
from pdr_graph.answers.points import FormulaComparison, UndecidedError, rational_value
from pdr_graph.answers.quantity import DEGREE, PERCENT, Quantity, Unit
from pdr_graph.answers.values import (
    Assignments,
    ClockTime,
    MatrixAnswer,
    NamedAnswer,
    Numeral,
    OptionAnswer,
    RatioAnswer,
    RealSet,
    RelationAnswer,
    ResidueAnswer,
    Series,
    Value,
    WordAnswer,
    ends_of,
    members,
    points_of,
    same_time,
    solved,
)

_RADIAN = Unit(frozenset([("radian", 1)]))


class AnswerComparison(FormulaComparison):
    """Compares two values, whatever they are."""

    def equal(self, gold: Value, answer: Value) -> bool:
        """Compare an answer with the gold answer.

        Raises:
            UndecidedError: Values at points do not decide it.
        """
        for kinds, compare in _RULES:
            if isinstance(gold, kinds[0]) and isinstance(answer, kinds[1]):
                return compare(self, gold, answer)
        return False

    # Kinds of answers.

    def quantities(self, gold: Quantity, answer: Quantity) -> bool:
        """Compare formulas with units."""
        mine, other = gold.unit, answer.unit
        if mine == other:
            return self.same(gold.tree, answer.tree)
        if mine is not None and other is not None:
            return self._converted(gold, answer)
        if PERCENT in (mine, other):
            return self._percent(gold, answer)
        if DEGREE in (mine, other):
            return self._degrees(gold, answer)
        return self.same(gold.tree, answer.tree)

    def _converted(self, gold: Quantity, answer: Quantity) -> bool:
        mine, other = gold.unit, answer.unit
        assert mine is not None
        assert other is not None
        if {mine, other} == {DEGREE, _RADIAN}:
            return self.same(
                *(
                    ("deg", each.tree) if each.unit == DEGREE else each.tree
                    for each in (gold, answer)
                )
            )
        if mine.dimensions != other.dimensions:
            return False
        return self.same(("mul", gold.tree, rational_tree(mine.size / other.size)), answer.tree)

    def _percent(self, gold: Quantity, answer: Quantity) -> bool:
        """Compare 28% with 28 and with 0.28; a share below 1 is not 0.5%."""
        marked, bare = (gold, answer) if gold.unit == PERCENT else (answer, gold)
        if self.same(("percent", marked.tree), bare.tree):
            return True
        value = rational_value(bare.tree)
        return self.same(marked.tree, bare.tree) and (
            value is None or abs(value) >= 1 or value == 0
        )

    def _degrees(self, gold: Quantity, answer: Quantity) -> bool:
        marked, bare = (gold, answer) if gold.unit == DEGREE else (answer, gold)
        if is_in_radians(bare.tree):
            return self.same(("deg", marked.tree), bare.tree)
        return self.same(marked.tree, bare.tree)

    def numerals(self, gold: Numeral, answer: Numeral) -> bool:
        """Compare numerals of one base digit by digit."""
        return gold.base == answer.base and gold.digits == answer.digits

    def digits(self, gold: Numeral, answer: Quantity) -> bool:
        """Compare a numeral with digits whose base was left off."""
        if gold.base == 10:
            return self.quantities(Quantity(gold.tree), answer)
        value = rational_value(answer.tree)
        return answer.unit is None and value is not None and gold.digits == str(value)

    def with_base_ten(self, gold: Quantity, answer: Numeral) -> bool:
        """Compare a number, whose base is ten, with a numeral."""
        return answer.base == 10 and self.quantities(gold, Quantity(answer.tree))

    def ratios(self, gold: RatioAnswer, answer: RatioAnswer) -> bool:
        """Compare the quotients of the terms."""
        if len(gold.terms) != len(answer.terms):
            return False
        first, other = gold.terms[0], answer.terms[0]
        return all(
            self.same(("mul", mine, other), ("mul", each, first))
            for mine, each in zip(gold.terms[1:], answer.terms[1:], strict=True)
        )

    def ratio_value(self, gold: RatioAnswer, answer: Quantity) -> bool:
        """Compare 3:4 with 3/4."""
        return (
            len(gold.terms) == 2
            and answer.unit is None
            and self.same(("div", *gold.terms), answer.tree)
        )

    def times(self, gold: ClockTime, answer: ClockTime) -> bool:
        """Compare times of day."""
        return same_time(gold, answer)

    def time_as_ratio(self, gold: ClockTime, answer: Value) -> bool:
        """Compare 7:32 with a ratio."""
        return not gold.half and self.equal(RatioAnswer(tuple(map(integer, gold.terms))), answer)

    def residues(self, gold: ResidueAnswer, answer: ResidueAnswer) -> bool:
        """Compare 5 mod 7 with 12 mod 7."""
        if not self.same(gold.modulus, answer.modulus):
            return False
        if self.same(gold.tree, answer.tree):
            return True
        gap = rational_value(("div", ("add", gold.tree, ("neg", answer.tree)), gold.modulus))
        return gap is not None and gap.denominator == 1

    def residue_added(self, gold: Quantity, answer: ResidueAnswer) -> bool:
        """Compare 5 with 5 mod 7; 12 mod 7 is no 12."""
        value, modulus = rational_value(answer.tree), rational_value(answer.modulus)
        if value is None or modulus is None or not 0 <= value < modulus:
            return False
        return self.quantities(gold, Quantity(answer.tree))

    def words(self, gold: WordAnswer, answer: WordAnswer) -> bool:
        """Compare words as text."""
        return gold.text == answer.text

    def word_as_product(self, gold: WordAnswer, answer: Value) -> bool:
        """Compare abc with a product of letters that is written as one."""
        return gold.tree is not None and self.equal(Quantity(gold.tree), answer)

    def options(self, gold: OptionAnswer, answer: OptionAnswer) -> bool:
        """Compare the letters, and the texts."""
        return gold.letter == answer.letter and self.equal(gold.value, answer.value)

    def option_text(self, gold: OptionAnswer, answer: Value) -> bool:
        """Compare an option with its letter or its text alone."""
        if (
            isinstance(answer, Quantity)
            and answer.tree[0] == "name"
            and answer.tree[1] in "ABCDEFGHIJ"
        ):
            return bool(answer.tree[1] == gold.letter)
        return not isinstance(answer, OptionAnswer) and self.equal(gold.value, answer)

    def sets(self, gold: RealSet, answer: RealSet) -> bool:
        """Compare sets of numbers, and their variables where both have one."""
        gold, answer = solved(gold), solved(answer)
        if gold.variable and answer.variable and gold.variable != answer.variable:
            if gold.variable[0] == answer.variable[0] == "name":
                return False
            raise UndecidedError("the inequalities are not solved")
        if (not answer.variable or not gold.variable) and any(
            each.variable and each.variable[0] in ("pow", "mul", "div", "add", "root")
            for each in (gold, answer)
        ):
            raise UndecidedError("the inequality is not solved")
        ends = self._sorted([*ends_of(gold.form), *ends_of(answer.form)])
        return members(gold.form, ends, self.same) == members(answer.form, ends, self.same)

    def as_sets(self, gold: Value, answer: Value) -> bool:
        """Compare a set of numbers with an interval or points."""
        for each in (gold, answer):
            if isinstance(each, Series) and each.brackets != "{}" and len(each.items) == 2:
                low, high = each.items
                if not isinstance(low, Quantity) or not isinstance(high, Quantity):
                    return False
                if not self.less(low.tree, high.tree):
                    return False  # (2,1) is a point, and no interval
        first, second = points_of(gold), points_of(answer)
        return first is not None and second is not None and self.sets(first, second)

    def _sorted(self, ends: list[Tree]) -> list[Tree]:
        found: list[Tree] = []
        for end in ends:
            if not any(self.same(end, each) for each in found):
                place = next(
                    (n for n, each in enumerate(found) if self.less(end, each)), len(found)
                )
                found.insert(place, end)
        return found

    def series(self, gold: Series, answer: Series) -> bool:
        """Compare lists, points and sets."""
        kinds = {gold.brackets, answer.brackets}
        if "{}" in kinds:
            return kinds <= {"{}", ""} and self._as_set(gold.items, answer.items)
        if kinds != {""}:
            if kinds != {gold.brackets} and kinds != {"", "()"} and len(gold.items) < 3:
                return False  # [1,2] may be an interval
            return self._in_order(gold.items, answer.items)
        if all(isinstance(each, Series | Assignments) for each in (*gold.items, *answer.items)):
            return self._as_set(gold.items, answer.items)
        return self._in_any_order(gold.items, answer.items)

    def _in_order(self, golds: Sequence[Value], answers: Sequence[Value]) -> bool:
        return len(golds) == len(answers) and all(map(self._items, golds, answers))

    def _in_any_order(self, golds: Sequence[Value], answers: Sequence[Value]) -> bool:
        if len(golds) != len(answers):
            return False
        left = list(answers)
        for gold in golds:
            place = next((n for n, each in enumerate(left) if self._items(gold, each)), None)
            if place is None:
                return False
            del left[place]
        return True

    def _as_set(self, golds: Sequence[Value], answers: Sequence[Value]) -> bool:
        return all(any(self._items(gold, each) for each in answers) for gold in golds) and all(
            any(self._items(gold, each) for gold in golds) for each in answers
        )

    def _items(self, gold: Value, answer: Value) -> bool:
        """Compare items of lists, where {2} is not 2."""
        kinds = [isinstance(each, Series | RealSet | Assignments) for each in (gold, answer)]
        return kinds[0] == kinds[1] and self.equal(gold, answer)

    def comma(self, gold: Quantity, answer: Series) -> bool:
        """Compare 1.5 with 1,5: the gold answer shows that there is a point."""
        return self.one_of_series(answer, gold, by_gold_point=True)

    def one_of_series(self, gold: Series, answer: Value, *, by_gold_point: bool = False) -> bool:
        """Compare {5} with 5, and 1,25 with 1.25."""
        if len(gold.items) == 1:
            return self.equal(gold.items[0], answer)
        return (
            gold.decimal is not None
            and (by_gold_point or gold.num_places > 1 or abs(gold.decimal[1]) < gold.decimal[2])
            and isinstance(answer, Quantity)
            and has_decimal(answer.tree)
            and self.same(gold.decimal, answer.tree)
        )

    def assignments(self, gold: Assignments, answer: Assignments) -> bool:
        """Compare values by name."""
        values = {each.name: each.value for each in answer.items}
        return len(gold.items) == len(answer.items) and all(
            each.name in values and self.equal(each.value, values[each.name]) for each in gold.items
        )

    def assigned_series(self, gold: Assignments, answer: Series) -> bool:
        """Compare a=3, b=4 with values in the same order."""
        if answer.brackets not in ("", "()"):
            return False
        if any(isinstance(each, RelationAnswer | NamedAnswer) for each in answer.items):
            return False
        return self._in_order([each.value for each in gold.items], answer.items)

    def named(self, gold: NamedAnswer, answer: NamedAnswer) -> bool:
        """Compare values with names, functions and equations."""
        if gold.name == answer.name and len(gold.parameters) == len(answer.parameters):
            if gold.parameters == answer.parameters:
                return self.equal(gold.value, answer.value)
            # Names that no answer contains, so that no other variable is bound by mistake.
            bound = tuple(f"#{place}" for place in range(len(gold.parameters)))
            return self.equal(_renamed(gold, bound).value, _renamed(answer, bound).value)
        kinds = [each.parameters == () and each.name == ("name", "y") for each in (gold, answer)]
        if any(kinds) and (gold.parameters or answer.parameters):
            return self.equal(gold.value, answer.value)
        if gold.parameters or answer.parameters:
            return False
        first, second = _equation(gold), _equation(answer)
        if first is None or second is None:
            return False
        if not names_of(first.terms[1]) or not names_of(second.terms[1]):
            return False
        return self.relations(first, second)

    def named_value(self, gold: NamedAnswer, answer: Value) -> bool:
        """Compare x=5 with 5, and with an equation."""
        if isinstance(answer, RelationAnswer):
            equation = _equation(gold)
            if equation is None or gold.parameters:
                return False
            return self.relations(equation, answer)
        return self.equal(gold.value, answer)

    def value_named(self, gold: Value, answer: NamedAnswer) -> bool:
        """Compare 5 with x=5."""
        return (
            self.named_value(answer, gold)
            if isinstance(gold, RelationAnswer)
            else self.equal(gold, answer.value)
        )

    def relations(self, gold: RelationAnswer, answer: RelationAnswer) -> bool:
        """Compare equations, and inequalities of several variables."""
        if gold.signs != answer.signs or len(gold.terms) > 2:
            if len(gold.terms) != len(answer.terms) or gold.signs != answer.signs:
                return False
            return all(map(self.same, gold.terms, answer.terms))
        first, second = (("add", each.terms[0], ("neg", each.terms[1])) for each in (gold, answer))
        if self.proportional(first, second, positive=gold.signs[0] in ("<", "<=")):
            return True
        if gold.signs[0] != "=":
            return False
        shared = names_of(first) | names_of(second)
        if names_of(first) != names_of(second):
            return False
        for name in sorted(shared):
            if (same := self._same_roots(first, second, name)) is not None:
                return same
        if len(shared) == 1 and any(
            each.terms[0][0] == "name" and not names_of(each.terms[1]) for each in (gold, answer)
        ):
            return False  # x=2 and x^2=4
        raise UndecidedError("the equations are no multiples of one another")

    def _same_roots(self, first: Tree, second: Tree, name: str) -> bool | None:
        """Compare where equations hold that are linear in a name; None if one is not."""
        roots = []
        for tree in (first, second):
            slope, start, again = (
                ("add", put(tree, name, above), ("neg", put(tree, name, below)))
                for above, below in ((1, 0), (0, None), (3, 1))
            )
            if not self.same(("mul", slope, integer(2)), again):
                return None
            roots.append(("div", ("neg", start), slope))
        return self.same(roots[0], roots[1])

    def shown_sum(self, gold: Quantity, answer: RelationAnswer) -> bool:
        """Compare 25 with m+n=25: the sum that was asked for."""
        if not any(map(names_of, answer.terms)):
            # 1/2 = 0.5 is one number, 5 = 6 is none.
            return all(
                self.same(answer.terms[0], each) for each in answer.terms
            ) and self.quantities(gold, Quantity(answer.terms[-1]))
        return (
            set(answer.signs) == {"="}
            and not names_of(gold.tree)
            and not names_of(answer.terms[-1])
            and _is_sum_of_names(answer.terms[0])
            and self.quantities(gold, Quantity(answer.terms[-1]))
        )

    def shown_value(self, gold: RelationAnswer, answer: Quantity) -> bool:
        """Compare 1/2=0.5 with 0.5."""
        return not any(map(names_of, gold.terms)) and self.shown_sum(answer, gold)

    def matrices(self, gold: MatrixAnswer, answer: MatrixAnswer) -> bool:
        """Compare entry by entry."""
        return [len(row) for row in gold.rows] == [len(row) for row in answer.rows] and all(
            self.same(mine, other)
            for row, others in zip(gold.rows, answer.rows, strict=True)
            for mine, other in zip(row, others, strict=True)
        )

    def matrix_series(self, gold: MatrixAnswer, answer: Series) -> bool:
        """Compare a column or a row with a point."""
        entries = [each for row in gold.rows for each in row]
        if answer.brackets == "{}" or 1 not in (len(gold.rows), len(gold.rows[0])):
            return False
        return self._in_order([Quantity(each) for each in entries], answer.items)


# A method of `Comparison` for two kinds of values.
_Rule = Callable[..., bool]


def _never(*_: object) -> bool:
    return False


def _flipped(compare: _Rule) -> _Rule:
    return lambda self, gold, answer: compare(self, answer, gold)


# The first rule whose kinds fit decides; other kinds are never equal.
_RULES: list[tuple[tuple[type, type], _Rule]] = [
    ((OptionAnswer, OptionAnswer), AnswerComparison.options),
    ((OptionAnswer, object), AnswerComparison.option_text),
    ((object, OptionAnswer), _flipped(AnswerComparison.option_text)),
    ((NamedAnswer, NamedAnswer), AnswerComparison.named),
    ((Assignments, Assignments), AnswerComparison.assignments),
    ((Assignments, NamedAnswer), _never),
    ((NamedAnswer, Assignments), _never),
    ((Assignments, Series), AnswerComparison.assigned_series),
    ((Series, Assignments), _flipped(AnswerComparison.assigned_series)),
    ((NamedAnswer, object), AnswerComparison.named_value),
    ((object, NamedAnswer), AnswerComparison.value_named),
    ((WordAnswer, WordAnswer), AnswerComparison.words),
    ((WordAnswer, object), AnswerComparison.word_as_product),
    ((object, WordAnswer), _flipped(AnswerComparison.word_as_product)),
    ((ClockTime, ClockTime), AnswerComparison.times),
    ((ClockTime, object), AnswerComparison.time_as_ratio),
    ((object, ClockTime), _flipped(AnswerComparison.time_as_ratio)),
    ((Quantity, Quantity), AnswerComparison.quantities),
    ((Numeral, Numeral), AnswerComparison.numerals),
    ((Numeral, Quantity), AnswerComparison.digits),
    ((Quantity, Numeral), AnswerComparison.with_base_ten),
    ((RatioAnswer, RatioAnswer), AnswerComparison.ratios),
    ((RatioAnswer, Quantity), AnswerComparison.ratio_value),
    ((Quantity, RatioAnswer), _flipped(AnswerComparison.ratio_value)),
    ((Series, Series), AnswerComparison.series),
    ((RealSet, RealSet), AnswerComparison.as_sets),
    ((RealSet, Series), AnswerComparison.as_sets),
    ((Series, RealSet), AnswerComparison.as_sets),
    ((MatrixAnswer, MatrixAnswer), AnswerComparison.matrices),
    ((MatrixAnswer, Series), AnswerComparison.matrix_series),
    ((Series, MatrixAnswer), _flipped(AnswerComparison.matrix_series)),
    ((RelationAnswer, RelationAnswer), AnswerComparison.relations),
    ((Quantity, RelationAnswer), AnswerComparison.shown_sum),
    ((RelationAnswer, Quantity), AnswerComparison.shown_value),
    ((Series, Quantity), AnswerComparison.one_of_series),
    ((Quantity, Series), AnswerComparison.comma),
    ((ResidueAnswer, ResidueAnswer), AnswerComparison.residues),
    ((Quantity, ResidueAnswer), AnswerComparison.residue_added),
]


def _renamed(answer: NamedAnswer, parameters: tuple[str, ...]) -> NamedAnswer:
    """Give the bound variables of a function other names."""
    if not isinstance(answer.value, Quantity):
        return answer
    tree = answer.value.tree
    new = dict(zip(answer.parameters, parameters, strict=True))
    return replace(answer, value=replace(answer.value, tree=renamed(tree, new)))


def _equation(named: NamedAnswer) -> RelationAnswer | None:
    if not isinstance(named.value, Quantity) or named.name[0] not in (
        "name",
        "apply",
        "mul",
        "call",
        "div",
    ):
        return None
    return RelationAnswer((named.name, named.value.tree), ("=",))


def _is_sum_of_names(tree: Tree) -> bool:
    return tree[0] == "name" or (tree[0] in ("add", "neg") and all(map(_is_sum_of_names, tree[1:])))
