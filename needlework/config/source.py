"""Where in a YAML file a key stands, and which key stands twice."""

from collections.abc import Iterator
from pathlib import Path

import yaml


class SourceMap:
    """Lines of the keys of one YAML file.

    Raises:
        ValueError: the file is not YAML, or a key stands twice in one mapping; one line each.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lines: dict[tuple[str | int, ...], int] = {}
        try:
            root = yaml.compose(self.path.read_text(), Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ValueError(f"{path}:{line}: not YAML: {error.problem}; mend the line") from None
        if root is not None:
            self._walk(root, ())

    def line(self, where: tuple[str | int, ...]) -> int:
        """The 1-based line of a key, or of the nearest key above it."""
        while where and where not in self._lines:
            where = where[:-1]
        return self._lines.get(where, 1)

    def __contains__(self, where: tuple[str | int, ...]) -> bool:
        return where in self._lines

    def _walk(self, node: yaml.Node, where: tuple[str | int, ...]) -> None:
        for key, mark, child in self._children(node):
            here = (*where, key)
            if here in self._lines:
                raise ValueError(
                    f"{self.path}:{mark.line + 1}: {'.'.join(map(str, here))}: stands twice, first "
                    f"in line {self._lines[here]}; give each its own name"
                )
            self._lines[here] = mark.line + 1
            self._walk(child, here)

    @staticmethod
    def _children(node: yaml.Node) -> Iterator[tuple[str | int, yaml.Mark, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                yield key.value, key.start_mark, child
        elif isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                yield i, child.start_mark, child
