"""YAML files with the line of each key; duplicate keys are errors."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from needlework.config.errors import Location


class SourceMap:
    """Content of a YAML file and the line of each of its keys.

    Raises:
        ValueError: the file cannot be read, is not valid YAML, or has a duplicate key.
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
            raise ValueError(
                f"{path}:{line}: invalid YAML: {error.problem}; fix this line"
            ) from None
        except yaml.YAMLError:
            raise ValueError(
                f"{path}: invalid YAML: contains control characters; remove them"
            ) from None
        if root is not None:
            self._walk(root, ())

    def line(self, where: Location) -> int:
        """The 1-based line of a key, or of its closest ancestor."""
        keys = _keys(where)
        while keys and keys not in self._lines:
            keys = keys[:-1]
        return self._lines.get(keys, 1)

    def __contains__(self, where: Location) -> bool:
        return _keys(where) in self._lines

    def _walk(self, node: yaml.Node, where: tuple[str, ...]) -> None:
        for key, mark, child in self._children(node):
            location = (*where, key)
            if location in self._lines:
                raise ValueError(
                    f"{self.path}:{mark.line + 1}: {'.'.join(location)}: duplicate key, first "
                    f"on line {self._lines[location]}; rename or remove one of them"
                )
            self._lines[location] = mark.line + 1
            self._walk(child, location)

    @staticmethod
    def _children(node: yaml.Node) -> Iterator[tuple[str, yaml.Mark, yaml.Node]]:
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                yield key.value, key.start_mark, child
        elif isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                yield str(i), child.start_mark, child


def _keys(where: Location) -> tuple[str, ...]:
    # A key such as 1 is text in the YAML source, but a number once it is parsed.
    return tuple(map(str, where))
