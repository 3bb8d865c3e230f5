"""Ranking and choosing layers, over networks that are only numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.selection import choose, rank

HARM = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(0, 1000), min_size=1, max_size=12)


def additive(harm):
    """A network in which the noise of the quantized layers adds up."""
    return lambda floats: float(sum(value for name, value in harm.items() if name not in floats))


@given(HARM)
def test_the_most_harmful_layers_come_first(harm):
    ranking = rank(list(harm), additive(harm))
    assert sorted(name for name, _ in ranking) == sorted(harm)
    assert dict(ranking) == harm
    values = [value for _, value in ranking]
    assert values == sorted(values, reverse=True)


@given(HARM, st.integers(0, 4000))
def test_no_smaller_set_of_float_layers_would_do(harm, limit):
    noise = additive(harm)
    if noise(frozenset()) <= limit:
        return  # there is nothing to choose
    ranking = [name for name, _ in rank(list(harm), noise)]
    chosen = choose(ranking, lambda floats, _: noise(floats) <= limit)
    needed = next(k for k in range(len(harm) + 1) if noise(frozenset(ranking[:k])) <= limit)
    assert (None if chosen is None else len(chosen[0])) == (None if needed == len(harm) else needed)


def test_what_two_layers_do_to_each_other_is_seen():
    """a and c are harmless alone, and worse than b together."""
    alone = {"a": 10.0, "b": 30.0, "c": 11.0, "d": 1.0, "e": 1.0, "f": 1.0}

    def noise(floats):
        quantized = set(alone) - floats
        return sum(alone[name] for name in quantized) + (80.0 if {"a", "c"} <= quantized else 0.0)

    ranking = rank(list(alone), noise)
    assert [name for name, _ in ranking[:3]] == ["c", "b", "a"]
    assert dict(ranking) == alone


def test_layers_that_break_the_network_come_first():
    harm = {"a": 1.0, "b": math.inf, "c": 2.0, "d": math.inf, "e": 0.0}
    ranking = [name for name, _ in rank(list(harm), additive(harm))]
    assert set(ranking[:2]) == {"b", "d"}
    assert ranking[2:] == ["c", "a", "e"]


def test_the_number_of_measurements_is_bounded():
    calls = []
    harm = {f"layer{i}": (i * 7919) % 101 for i in range(40)}

    def noise(floats):
        calls.append(floats)
        return additive(harm)(floats) ** 2  # so that every layer does more beside others than alone

    rank(list(harm), noise)
    assert len(calls) <= 40 + 1 + 3 * 20


def test_a_needless_layer_of_the_ranking_is_quantized_again():
    needed = {"b", "d"}
    asked = []

    def is_enough(floats, _):
        asked.append(floats)
        return needed <= floats

    assert choose(list("abcdef"), is_enough) == (needed, frozenset())
    assert len(asked) == len(set(asked)), "nothing is asked twice"


def test_none_of_the_layers_chosen_can_be_taken_back():
    """d is needed beside a and b, but no more once c and a are quantized again."""
    sufficient = [set("abcd"), set("abd"), set("bd"), set("b"), set("abcde")]
    asked = []

    def is_enough(floats, _):
        asked.append(floats)
        return floats in sufficient

    assert choose(list("abcdef"), is_enough) == ({"b"}, frozenset())
    assert len(asked) == len(set(asked)), "nothing is asked twice"


def test_there_is_no_choice_where_all_layers_would_have_to_be_float():
    assert choose(list("abc"), lambda floats, _: len(floats) == 3) is None
    assert choose(["a"], lambda floats, _: len(floats) == 1) is None


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_one_layer_is_found_with_few_questions(count):
    names, asked = [f"layer{i}" for i in range(count)], []
    chosen = choose(names, lambda floats, _: asked.append(floats) or names[0] in floats)
    assert chosen == (None if count == 1 else ({names[0]}, frozenset()))
    assert len(asked) <= math.ceil(math.log2(count)) if count > 1 else not asked


def test_layers_are_widened_before_any_becomes_float():
    """Widening takes half of the noise."""
    harm = {"a": 8.0, "b": 6.0, "c": 4.0, "d": 2.0}

    def enough_for(limit):
        def is_enough(floats, wide):
            assert not floats & wide
            kept = sum(harm[name] * (0.5 if name in wide else 1.0) for name in set(harm) - floats)
            return kept <= limit

        return is_enough

    assert choose("abcd", enough_for(17), "abcd") == (set(), {"a"})
    assert choose("abcd", enough_for(10), "abcd") == (set(), {"a", "b", "c", "d"})
    assert choose("abcd", enough_for(9), "abcd") == ({"a"}, {"b"})
    assert choose("abcd", enough_for(17), "bcd") == (set(), {"b"})
    assert choose("abcd", enough_for(0), "abcd") is None


@given(HARM, st.integers(0, 4000), st.floats(0, 1), st.sets(st.text("abcdefgh", min_size=1, max_size=3)))
def test_what_is_chosen_is_enough_and_nothing_of_it_is_needless(harm, limit, left, widenable):
    def kept(floats, wide):
        return sum(value * (left if name in wide else 1.0) for name, value in harm.items() if name not in floats)

    if kept((), ()) <= limit:
        return
    ranking = sorted(harm, key=lambda name: -harm[name])
    found = choose(ranking, lambda floats, wide: kept(floats, wide) <= limit, widenable)
    if found is None:
        return
    floats, wide = found
    assert kept(floats, wide) <= limit
    assert not floats & wide
    assert wide <= widenable
    plain = choose(ranking, lambda floats, _: kept(floats, ()) <= limit)
    assert plain is None or len(floats) <= len(plain[0])


def test_nothing_is_asked_twice():
    asked = []
    choose("abcdefgh", lambda floats, wide: asked.append((floats, wide)) or "f" in floats, "abcd")
    assert len(asked) == len(set(asked))
