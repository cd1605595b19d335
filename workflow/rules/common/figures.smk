"""Outputs and code of the rules that draw figures."""

FIGURES = []
"""Files of every figure that a run makes; filled by `figure`."""


def tasks_with_depths():
    """Tasks whose answers have a depth in the context."""
    return [name for name, task in experiment.tasks.items() if task.has_depths]


def sparse_families():
    """Each sparse system with the name of its sweep, or its own name."""
    systems = experiment.systems
    return {name: systems[name].family or name for name in sparse_systems()}


def thinking_series():
    """Systems whose model may think, with the name of their line: systems that differ in more."""
    lines = {}
    for name, system in experiment.systems.items():
        budget = experiment.thinking_budget(name)
        if budget is not None:
            part = f"_thinking_tokens{budget}"
            line = name.replace(part, "") if part in name else system.family or name
            lines.setdefault(line, {})[name] = budget
    return {
        name: line
        for line, budgets in lines.items()
        if len(set(budgets.values())) == len(budgets) > 1
        for name in budgets
    }


def figure(name, title, when=True, **wildcards):
    """Outputs of a figure's rule: HTML, SVG and PNG under the caption report/<name>.rst.

    `rule all` makes the figure if `when` is true, once for each value of `wildcards`.
    """
    path = f"{RESULTS}/figures/{name}"
    formats = {"html": "interactive", "svg": "SVG", "png": "PNG"}
    if when:
        FIGURES.extend(expand(f"{path}.{{format}}", format=formats, **wildcards))
    return {
        suffix: report(
            f"{path}.{suffix}",
            caption=f"../report/{name.split('/')[0]}.rst",
            category="Figures",
            labels={"figure": title, "format": label},
        )
        for suffix, label in formats.items()
    }


def figure_code(name):
    """Params of a figure's rule: its module, needlework/figures/<name>.py, and code version."""
    modules = [f"needlework.figures.{name}"]
    return {"code": code_version("plot_figure.py", *modules), "modules": modules}
