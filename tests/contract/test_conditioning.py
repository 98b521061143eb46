"""How people name a condition: classes by name or number, alone or in lists."""

import time
import unicodedata

import pytest
from pydantic import TypeAdapter

from scm_core.apps.serving.http import condition_type
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label, parse_condition

ODD = ("a", "b", "a,b", "[x]", "[x],b", "me@home", "*", "two words", "#1", "yes", "'q'")


def classes(names: tuple[str, ...], asked: str | list[str], n: int = 1) -> list[str]:
    """The names of the classes that samples get."""
    schema = {"label": Label(len(names), names)}
    return [names[i] for i in parse_condition(schema, {"label": asked}, n)["label"]]


def test_an_exact_name_goes_before_one_that_differs_in_case():
    names = ("A", "a", "Bob")
    assert [classes(names, name) for name in (*names, "BOB")] == [["A"], ["a"], ["Bob"], ["Bob"]]
    with pytest.raises(UserError, match="'COAT' may be Coat or coat: give one as it is written"):
        classes(("Coat", "coat"), "COAT")


def test_a_number_is_a_name_where_names_are_numbers():
    names = ("001", "002", "010", "2")
    assert [classes(names, word) for word in ("1", "001", "2", "10")] == [
        ["001"], ["001"], ["2"], ["010"]
    ]  # fmt: skip
    for word in ("0", "3"):
        with pytest.raises(UserError, match=f"no class '{word}': "):
            classes(names, word)
    assert classes(("cat", "dog"), "1") == ["dog"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_as_it_stands_is_no_syntax(name):
    assert classes(ODD, name) == [name]
    label = Label(len(ODD), ODD)
    assert label.parse_list(label.show(ODD.index(name))) == [ODD.index(name)]
    assert classes(ODD, f"[two words,{name},*]", 3) == ["two words", name, "*"]
    assert classes(ODD, [name, "b"], 2) == [name, "b"]  # as a server is asked


def test_lists_cycle():
    assert classes(("cat", "dog", "cow"), "[cow, 0]", 3) == ["cow", "cat", "cow"]
    assert classes(("cat", "dog", "cow"), "dog,COW", 2) == ["dog", "cow"]


def test_accents_are_the_same_however_they_are_encoded():
    for form in ("NFC", "NFD"):
        names = (unicodedata.normalize(form, "café"), "tea")
        assert classes(names, "café") == classes(names, "cafe\u0301") == [names[0]]
        assert classes(names, "CAFÉ") == [names[0]]


def test_a_text_that_is_too_long_for_a_name_is_refused_at_once():
    """To put the accents of as many in order as a request may hold would take seconds."""
    started = time.perf_counter()
    with pytest.raises(UserError, match="no class"):
        Label(2, ("cat", "dog")).check("a" + "\u0301\u0316" * 15_000)
    assert time.perf_counter() - started < 1


def test_an_unknown_name_is_answered_by_the_near_ones():
    with pytest.raises(UserError, match="no class 'sneakr': did you mean sneaker[?]"):
        classes(("coat", "sneaker"), "sneakr")
    with pytest.raises(UserError, match="no class 'x': give 0 to 1 or one of: coat, sneaker"):
        classes(("coat", "sneaker"), "x")
    with pytest.raises(UserError, match="give one of: 01, 02$"):
        classes(("01", "02"), "x")


def test_a_server_describes_numbers_only_where_they_are_understood():
    for names, choices in ((("cat", "dog"), ["cat", "dog", 0, 1]), (("1", "2"), ["1", "2"])):
        described = TypeAdapter(condition_type(Label(2, names))).json_schema()
        assert described["anyOf"][0]["enum"] == choices
