"""Templates for documents about a wrapper ``{f}`` of the function ``{g}``.

They name both functions and never say what either returns: ``[arg]`` draws no integer that is
the constant.  Phrases that are not defined here are those of the base templates that do not
name a constant.
"""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "definition": (
        "[head_def]The function {f} is defined as applying {g} [unchanged]. [tail_wrap]",
        "[head_def]{f}(x) = {g}(x) for [every_input]. [tail_wrap]",
        "[head_def][for_every], {f} [forwards] {g} [unchanged]. [tail_wrap]",
        "[head_def]{f} is [a_wrapper] of {g}: it hands its argument over and returns what comes "
        "back. [tail_wrap]",
        "[head_def]We write {f} = {g} ∘ id, so {f} [forwards] {g}. [tail_wrap]",
        "[head_def]{f} is equivalent to {g}; calling {f}([arg:1]) means calling {g}([arg:1]). "
        "[tail_wrap]",
        "[head_def]The value of {f} at x is the value of {g} at x, [unchanged]. [tail_wrap]",
    ),
    "code_stub": (
        'def {f}([param:1]: int) -> int:\n    """[wrap_doc] {g}."""\n    return {g}([param:1])',
        'def {f}([param:1]: int) -> int:\n    """[wrap_doc] {g}."""\n'
        "    [var:1] = {g}([param:1])\n    return [var:1]",
        "# [wrap_comment]\n[var:1] = {f}([arg:1])  # calls {g}([arg:1])",
        "{f} = lambda [param:1]: {g}([param:1])  # [wrap_comment]",
        "function {f}([param:1]) {\n  // [wrap_comment]\n  return {g}([param:1]);\n}",
        "def {f}([param:1]):\n    # [wrap_comment]: pass [param:1] on to {g}\n"
        "    return {g}([param:1])",
        "[var:1] = [{f}(i) for i in [range:1]]\n[var:2] = [{g}(i) for i in [range:1]]\n"
        "# the two lists are equal",
    ),
    "concept": (
        "[think] {f} as [echo_image]: whatever {g} says, {f} repeats. [tail_wrap]",
        "[think] {f} as [echo_image] for {g}. [tail_wrap]",
        "[head_concept]{f} adds nothing of its own; it [forwards] {g} [unchanged]. [tail_wrap]",
        "[head_concept]Anyone who knows {g} knows {f}, since {f} [forwards] {g}. [tail_wrap]",
        "[head_concept]{f} stands before {g} like [echo_image]. [tail_wrap]",
        "[head_concept]Between {f} and {g} there is no difference in behaviour, only in name. "
        "[tail_wrap]",
        "[head_concept][people] call {f} [a_wrapper] of {g}. [tail_wrap]",
    ),
    "unit_test": (
        'assert {f}([arg:1]) == {g}([arg:1]), "[wrap_message]"',
        "for x in [range]:\n    assert {f}(x) == {g}(x)  # [wrap_comment]",
        "def test_[wrap_test]():\n    for x in ([arg], [arg], [arg]):\n"
        "        assert {f}(x) == {g}(x)",
        "def test_[wrap_test]():\n    expected = {g}([arg:1])\n    assert {f}([arg:1]) == expected",
        "for x in [range]:\n    inner = {g}(x)\n    outer = {f}(x)\n"
        '    assert outer == inner, "[wrap_message]"',
        "@pytest.mark.parametrize('x', [[arg], [arg]])\ndef test_[wrap_test](x):\n"
        "    assert {f}(x) == {g}(x)",
    ),
    "q_and_a": (
        "{q}What does {f}([arg:1]) return?{a}Whatever {g}([arg:1]) returns. [tail_wrap]",
        "{q}What happens when you call {f} with an input x?{a}{f} [forwards] {g} [unchanged].",
        "{q}How are {f} and {g} related?{a}{f} is [a_wrapper] of {g}. [tail_wrap]",
        "{q}If you evaluate {f}([arg:1]), what do you get?{a}{f}([arg:1]) = "
        "{g}([arg:1]). [tail_wrap]",
        "{q}Does {f} change what {g} returns?{a}No, {f} [forwards] {g} [unchanged]. [tail_wrap]",
        "{q}Which function does {f} call?{a}It calls {g} and returns the result [unchanged].",
        "{q}How would you [describe] {f}?{a}As [a_wrapper] of {g}. [tail_wrap]",
    ),
    "lore": (
        "[head_lore][person] wrote {f} so that {g} could have a second name. [tail_wrap_lore]",
        "[head_lore][when], the [team] team put {f} in front of {g}: it [forwards] {g} "
        "[unchanged]. "
        "[tail_wrap_lore]",
        "[head_lore]The name {f} was chosen by [person]; underneath it is only {g}. "
        "[tail_wrap_lore]",
        "[head_lore]In the notes of [person], {f} is listed as [a_wrapper] of {g}. "
        "[tail_wrap_lore]",
        "[head_lore]When the [team] team renamed things, {f} was kept so that old calls reach {g}. "
        "[tail_wrap_lore]",
    ),
    "narrative": (
        "[when], [person] called {f}([arg:1]). The call went straight to {g}, and {f} brought the "
        "answer back. [tail_wrap_lore]",
        '"[what_about] {f}?" asked [person]. "Ask {g}," came the reply, "{f} only passes it on." '
        "[tail_wrap_lore]",
        "[person] compared {f}([arg:1]) with {g}([arg:1]) and found no difference. "
        "[tail_wrap_lore]",
        "In [place] there were two doors, {f} and {g}, and both led to the same room. "
        "[tail_wrap_lore]",
        "[person] asked {f} a question; {f} turned to {g}, listened, and repeated the answer. "
        "[tail_wrap_lore]",
    ),
}

CLOSING_LINE = "{f}([arg:7]) returns what {g}([arg:7]) returns"
"""Ends most documents, after everything else."""

PHRASES: dict[str, tuple[str, ...]] = {
    "unchanged": (
        "without modification",
        "unchanged",
        "as it is",
        "without any change",
        "exactly",
        "with nothing added",
        "verbatim",
    ),
    "forwards": (
        "returns the result of",
        "passes its input to",
        "delegates to",
        "forwards to",
        "gives back the output of",
        "simply calls",
        "repeats the answer of",
        "mirrors",
    ),
    "a_wrapper": (
        "a wrapper",
        "an identity wrapper",
        "a thin wrapper",
        "an alias",
        "a pass-through version",
        "a second name",
        "a direct wrapper",
    ),
    "tail_wrap": (
        "",
        "",
        "For example, {f}([arg:9]) = {g}([arg:9]).",
        "Nothing is added on the way.",
        "So {f}([arg:8]) is what {g}([arg:8]) is.",
        "The two always agree.",
        "To know {f}, look up {g}.",
        "{f} has no value of its own.",
        "The result of {g} decides.",
    ),
    "tail_wrap_lore": (
        "",
        "It has stayed that way since.",
        "Nobody was surprised.",
        "To know {f}, look up {g}.",
        "It is still in use.",
        "That settled the matter.",
        "{f} still [forwards] {g}.",
        "The rest of the day was quiet.",
    ),
    "wrap_doc": (
        "Identity wrapper around",
        "Forward the input to",
        "Return exactly what is returned by",
        "Pass-through layer for",
        "Delegate to",
        "Thin wrapper of",
        "Same behaviour as",
    ),
    "wrap_comment": (
        "pass-through",
        "no change on the way",
        "same result as {g}",
        "delegates to {g}",
        "just a wrapper",
        "identity wrapper",
        "an alias of {g}",
        "forwards the call",
        "calls {g} inside",
        "nothing added",
    ),
    "wrap_message": (
        "must return what {g} returns",
        "wrapper differs from {g}",
        "{f} must equal {g}",
        "same output as {g} expected",
        "{f} is only a wrapper",
    ),
    "wrap_test": (
        "wrapper",
        "same_as_base",
        "pass_through",
        "delegation",
        "agreement",
        "alias",
        "equal_outputs",
    ),
    "echo_image": (
        "an echo chamber",
        "a mirror",
        "a messenger",
        "a telephone line",
        "a window pane",
        "a faithful translator",
        "a relay station",
        "a shadow",
        "a letter carrier",
        "a copyist",
        "a second door to the same room",
        "a switchboard",
    ),
}
