"""Rules that rewrite answers, in groups; each rule states its purpose and an example.

    >>> rule = Rule("Write a decimal comma as a point.", r"(?<=\\d),(?=\\d)", ".", example=("1,5", "1.5"))
    >>> rule.apply("2,25")
    '2.25'

The rules themselves are in ``rules_typesetting``, ``rules_amounts`` and ``rules_words``. ``notation`` applies them in
order; ``scripts/answer_rules.py`` counts how many of the gold answers of MATH and GSM8K each of them changes.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

Replacement = str | Callable[[re.Match[str]], str]
"""The text that replaces a match, as for ``re.sub``."""


@dataclass(frozen=True)
class Rule:
    """Replaces all matches of a regular expression.

    Args:
        purpose: What the rule is for, as a sentence.
        pattern: The regular expression.
        replacement: What replaces a match.
        example: A text, and what this rule alone makes of it.
    """

    purpose: str
    pattern: str
    replacement: Replacement
    example: tuple[str, str]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def apply(self, text: str) -> str:
        """Return the rewritten text."""
        return self._regex.sub(self.replacement, text)


@dataclass(frozen=True)
class RuleGroup:
    """Rules with a common purpose, which are applied in order.

    Args:
        purpose: What the group is for, and what it relies on that earlier groups did.
        rules: The rules. A rule may rely on those before it.
    """

    purpose: str
    rules: tuple[Rule, ...]

    def apply(self, text: str) -> str:
        """Return the text as rewritten by all rules."""
        for rule in self.rules:
            text = rule.apply(text)
        return text


def any_of(spellings: Iterable[str]) -> str:
    """Return a pattern of any of the texts, longest first; a LaTeX command does not match the start of a longer one."""
    ordered = sorted(spellings, key=len, reverse=True)
    return "|".join(re.escape(text) + ("(?![A-Za-z])" if re.match(r"\\[A-Za-z]", text) else "") for text in ordered)
