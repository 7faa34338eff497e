"""Counts what a Jinja template does, so that none runs for ever.

A template repeats work only where a loop goes on, and where a macro, a block or the body of a
`call` begins again. Each of these gets a step as its first statement when the template is compiled,
and what one rendering may do is a number of steps. Only what a single expression does is not
counted: it ends by itself, as its inputs are finite.
"""

from __future__ import annotations

from typing import TypeVar

from jinja2 import Environment, nodes, pass_context
from jinja2.runtime import Context

STEP = "count a step"
"""The name of the filter that counts. No template can write it: it is not an identifier."""
STEPS = "steps of this rendering"
"""The variable with the `StepBudget` of a rendering, which no template can write either."""
REPEATED = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)
"""What may run more than once where it stands once."""

Value = TypeVar("Value")


class TooManySteps(Exception):
    """A template has used up its steps; the message says how many it had."""


class StepBudget:
    """The steps that one rendering may take."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._num_left = most

    def take(self) -> None:
        """Counts one step. Raises TooManySteps if none is left."""
        if not self._num_left:
            raise TooManySteps(f"its loops and macros take more than {self._most} steps")
        self._num_left -= 1


def count_steps(environment: Environment, template: nodes.Template) -> nodes.Template:
    """Changes a parsed template so that it counts its steps, and returns it. Whoever renders it
    gives a `StepBudget` as the variable STEPS."""
    environment.filters[STEP] = _step
    for node in list(template.find_all(REPEATED)):
        assert isinstance(node, REPEATED)
        node.body.insert(0, nodes.ExprStmt(_new_step(), lineno=node.lineno))
        # A loop with a condition may look at many items before its body sees one.
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(_new_step(), node.test, lineno=node.lineno)
    return template.set_environment(environment)  # type: ignore[return-value]


def _new_step() -> nodes.Filter:
    return nodes.Filter(nodes.Const(True), STEP, [], [], None, None)


@pass_context  # without it, Jinja would compute the value once, when it compiles
def _step(context: Context, value: Value) -> Value:
    context.parent[STEPS].take()
    return value
