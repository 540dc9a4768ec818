import doctest
import importlib
import pkgutil
import re

import pytest

from cera.evaluation import answers
from cera.evaluation.answers.notation import GROUPS, normalize

RULES = [rule for group in GROUPS for rule in group.rules]


@pytest.mark.parametrize("rule", RULES, ids=[rule.purpose for rule in RULES])
def test_the_example_of_a_rule_is_what_it_does(rule):
    before, after = rule.example
    assert before != after
    assert rule.apply(before) == after
    assert re.sub(rule.pattern, rule.replacement, before) == after


def test_rules_and_groups_state_their_purpose_in_a_sentence():
    for purpose in [group.purpose for group in GROUPS] + [rule.purpose for rule in RULES]:
        assert re.fullmatch(r"[A-Z].*\.", purpose)
    assert len({rule.purpose for rule in RULES}) == len(RULES)


def test_groups_are_applied_in_order():
    # the dollar sign is a unit before it could be dropped as the start of a formula; then the fraction is a value
    assert normalize(r"\$1,250") == r"1250\text{ dollars}"
    assert normalize(r"\left(1½, \; \dfrac34\right)") == r"(\frac{3}{2}, \frac{3}{4})"


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(answers.__path__)])
def test_the_examples_of_the_modules_are_right(name):
    assert doctest.testmod(importlib.import_module(f"{answers.__name__}.{name}")).failed == 0
