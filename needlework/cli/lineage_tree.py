"""The tree that `needlework lineage` prints."""

from typing import Any

from rich.markup import escape
from rich.tree import Tree

from needlework.pipeline import provenance


def lineage_trees(node: provenance.Node) -> list[Tree]:
    """The jobs that made a file, each with the files it made, down to the sources."""
    root = Tree("")
    _add_jobs(root, [node], set())
    return root.children


def _add_jobs(tree: Tree, nodes: list[provenance.Node], shown: set[str]) -> None:
    """Add `nodes` to `tree`; files that one job made share a branch."""
    jobs: dict[str, list[provenance.Node]] = {}
    for node in nodes:
        key = "source" if node.record is None else str(sorted(node.record["outputs"].items()))
        jobs.setdefault(key, []).append(node)
    for key, outputs in jobs.items():
        record = outputs[0].record
        if record is None:
            for node in outputs:
                tree.add(f"{escape(node.path)}  [dim]source[/dim]")
            continue
        lines = [
            f"[bold]{escape(node.path)}[/bold]  sha256 {record['outputs'][node.path][:12]}"
            for node in outputs
        ]
        if key in shown:
            tree.add("\n".join(lines) + "  [dim](as above)[/dim]")
            continue
        shown.add(key)
        _add_jobs(tree.add("\n".join([*lines, _describe_job(record)])), outputs[0].parents, shown)


def _describe_job(record: dict[str, Any]) -> str:
    git = record["git"]
    commit = (
        f"commit {git['commit'][:10]}{' with changes' if git['changed'] else ''}, " if git else ""
    )
    weights = "".join(f"{name} at {commit}, " for name, commit in record.get("hub", {}).items())
    answers = record.get("answers")
    stored = f"{answers['generated']:,} answers generated, others stored, " if answers else ""
    return (
        f"[dim]rule {record['rule']}, code {record['code']['version']}, {commit}{weights}"
        f"{stored}{record['started']}, {record['seconds']} s on {record['device']}[/dim]"
    )
