"""What a source file means, as a digest: comments, formatting and docstrings do not count, everything else does."""

from __future__ import annotations

import ast
import hashlib


class _WithoutDocstrings(ast.NodeTransformer):
    """Drop statements that are a lone string: docstrings of modules, classes, functions and attributes."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else self.generic_visit(node)


def tree_digest(tree: ast.Module) -> str:
    """Digest of a parsed file. The tree loses its docstrings."""
    return hashlib.sha256(ast.dump(_WithoutDocstrings().visit(tree)).encode()).hexdigest()[:16]


def meaning_digest(source: bytes) -> str:
    """Digest of the meaning of a Python source file.

    Raises:
        SyntaxError: it cannot be parsed.
    """
    return tree_digest(ast.parse(source))
