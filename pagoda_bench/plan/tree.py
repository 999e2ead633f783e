"""A plan as a tree on the terminal."""

from __future__ import annotations

from rich.text import Text
from rich.tree import Tree

from pagoda_bench.plan.dag import Node, Plan
from pagoda_bench.plan.estimate import Estimate
from pagoda_bench.plan.progress import duration
from pagoda_bench.recipes.base import Recipe

STYLES = {"cached": "green", "released": "cyan", "to make": "yellow"}


def render_tree(plan: Plan) -> Tree:
    """Each target with what it needs below it: title, key, state, estimated time and training work; sums at the bottom.
    What stands further up already is not unfolded again."""
    tree = Tree(Text(f"plan for {_count(len(plan.targets), 'artifact')}"), guide_style="dim")
    shown: set[str] = set()

    def add(recipe: Recipe, branch: Tree) -> None:
        node = plan.nodes[recipe.key]
        again = recipe.key in shown and node.state == "to make"
        shown.add(recipe.key)
        leaf = branch.add(_line(node, plan.estimates.get(recipe.key), again))
        if node.state == "to make" and not again:
            for parent in recipe.inputs():
                add(parent, leaf)

    for target in plan.targets:
        add(target, tree)
    tree.add(Text(summary(plan), style="bold"))
    return tree


def summary(plan: Plan) -> str:
    """E.g. "3 to make (about 12 min 05 s, 1.2e+15 FLOP of training; 1 unknown), 10 released, 2 cached"."""
    states = [node.state for node in plan.nodes.values()]
    words = f"{states.count('to make')} to make"
    if plan.to_make:
        known = list(plan.estimates.values())
        unknown = len(plan.to_make) - len(known)
        parts = [f"about {duration(sum(e.seconds for e in known))}"] if known else []
        if flops := sum(e.flops or 0 for e in known):
            parts.append(f"{flops:.1e} FLOP of training")
        said = ", ".join(parts)
        missing = f"{'time unknown' if not known else f'{unknown} unknown'}" if unknown else ""
        words += f" ({'; '.join(filter(None, (said, missing)))})"
    return f"{words}, {states.count('released')} released, {states.count('cached')} cached"


def _line(node: Node, estimate: Estimate | None, again: bool) -> Text:
    text = Text(f"{node.recipe.title}  ")
    text.append(f"{node.recipe.key[:8]}  ", style="dim")
    text.append(node.state, style=STYLES[node.state])
    if again:
        return text.append("  (above)", style="dim")
    if node.half_made:
        text.append(", goes on from a checkpoint", style=STYLES[node.state])
    if node.state == "to make":
        text.append(f"  {_cost(estimate)}", style="dim")
    return text


def _cost(estimate: Estimate | None) -> str:
    if estimate is None:
        return "time unknown"
    time = f"{'' if estimate.exact else 'about '}{duration(estimate.seconds)}"
    return f"{time}, {estimate.flops:.1e} FLOP of training" if estimate.flops else time


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
