"""Where in a YAML file a key stands, and which key stands twice."""

from collections.abc import Iterator
from pathlib import Path

import yaml


class SourceMap:
    """Lines of the keys of one YAML file.

    Raises:
        ValueError: the file cannot be read, is not YAML, or a key stands twice in one mapping; one
            line each.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lines: dict[tuple[str, ...], int] = {}
        try:
            text = self.path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.content = yaml.safe_load(text)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8 text; save it as UTF-8") from None
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ValueError(f"{path}:{line}: not YAML: {error.problem}; mend the line") from None
        except yaml.YAMLError:
            raise ValueError(
                f"{path}: not YAML: it holds control characters; take them out"
            ) from None
        if root is not None:
            self._walk(root, ())

    def line(self, where: tuple[str | int, ...]) -> int:
        """The 1-based line of a key, or of the nearest key above it."""
        keys = _keys(where)
        while keys and keys not in self._lines:
            keys = keys[:-1]
        return self._lines.get(keys, 1)

    def __contains__(self, where: tuple[str | int, ...]) -> bool:
        return _keys(where) in self._lines

    def _walk(self, node: yaml.Node, where: tuple[str, ...]) -> None:
        for key, mark, child in self._children(node):
            here = (*where, key)
            if here in self._lines:
                raise ValueError(
                    f"{self.path}:{mark.line + 1}: {'.'.join(here)}: stands twice, first "
                    f"in line {self._lines[here]}; give each its own name"
                )
            self._lines[here] = mark.line + 1
            self._walk(child, here)

    @staticmethod
    def _children(node: yaml.Node) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                yield key.value, key.start_mark, child
        elif isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                yield str(i), child.start_mark, child


def _keys(where: tuple[str | int, ...]) -> tuple[str, ...]:
    # A name like 1 is text in the file's words, a number when it is read.
    return tuple(map(str, where))
