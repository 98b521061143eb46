"""Conditions on the command line: `condition.NAME`, and the bare name as a short form."""

import re

import pytest
from omegaconf import OmegaConf

from scm_core.apps.sample import SampleConfig, condition_overrides
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label

SCHEMA = {"label": Label(3), "n": Label(5)}


def asked(**words):
    """What is asked of each field, and the words that are left for the command."""
    words = {key.replace("__", "."): text for key, text in words.items()}
    return condition_overrides(words, SCHEMA, OmegaConf.structured(SampleConfig)), words


def test_the_bare_name_is_short_for_the_section():
    assert asked(condition__label="2", seed="1") == ({"label": "2"}, {"seed": "1"})
    assert asked(label="2", seed="1") == ({"label": "2"}, {"seed": "1"})


def test_a_key_of_the_command_stays_its_own():
    assert asked(n="4") == ({}, {"n": "4"})
    assert asked(n="4", condition__n="1") == ({"n": "1"}, {"n": "4"})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"condition__labl": "1"}, "no condition labl: did you mean label?"),
        ({"condition": "1"}, "no condition condition: known are: label, n"),
        ({"condition__label": "1", "label": "1"}, "label and condition.label are the same"),
    ],
)
def test_what_no_field_takes_is_one_sentence(words, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        asked(**words)
