"""Brings Python source to narrow lines where formatters leave it: docstrings, comments, and string literals between brackets.

Code itself is yapf's business, so both take turns (tools/upstream/lay_out.py). Meaning stays: a literal becomes adjacent literals.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Dict, Iterator, List, NamedTuple, Tuple

WIDTH = 79
_NEVER_REFLOWED = re.compile(r'\s*(#!|# (noqa|type:|yapf:|isort:|fmt:|pragma:))')
_STARTS_ANEW = re.compile(r'\s*(?:[-*+] |\d+\. |[\w, .`*=\[\]()]+:(?: |$)|>>> |\| )')
_ENTRY = re.compile(r'\s*[\w, `*]+: ')
_FORMATTER_PRAGMA = re.compile(r'  # fmt: skip$')


class Literal(NamedTuple):
    """A string literal on one line: where it starts and ends, and its text."""

    line: int
    start: int
    end: int
    text: str


def narrow(source: str) -> str:
    """The source with lines of at most 79 characters, as far as prose and literals go.

    Raises:
        SyntaxError: no Python.
    """
    lines = [_FORMATTER_PRAGMA.sub('', line) for line in source.split('\n')]
    lines = _narrow_docstrings(lines)
    lines = _narrow_comments(lines)
    for _ in range(100):  # a pass splits each long literal once
        narrowed = _split_literals(lines)
        if narrowed == lines:
            break
        lines = narrowed
    result = '\n'.join(lines)
    if _meaning(result) != _meaning(source):
        raise AssertionError('narrowing has changed what the source says')
    return result


def _meaning(source: str) -> str:
    """The syntax tree, with the white space in docstrings evened out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = ' '.join(node.value.value.split())
    return ast.dump(_Joined().visit(tree))


class _Joined(ast.NodeTransformer):
    """Neighbouring constants of f-strings as one: 'a' f'b' and f'ab' are the same."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        merged: List[ast.expr] = []
        for value in node.values:
            if merged and isinstance(value, ast.Constant) and isinstance(merged[-1], ast.Constant):
                merged[-1] = ast.Constant(str(merged[-1].value) + str(value.value))
            else:
                merged.append(value)
        return ast.JoinedStr(merged)


def _docstring_lines(source: str) -> List[Tuple[int, int]]:
    """First and last line (from 0) of every docstring."""
    found = []
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, 'body', None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
            first = body[0]
            text = first.value if isinstance(first, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.end_lineno is not None:
                found.append((text.lineno - 1, text.end_lineno - 1))
    return found


def _narrow_docstrings(lines: List[str]) -> List[str]:
    for first, last in sorted(_docstring_lines('\n'.join(lines)), reverse=True):
        lines = lines[:first] + _spill(lines[first : last + 1], '') + lines[last + 1 :]
    return lines


def _narrow_comments(lines: List[str]) -> List[str]:
    """Comments behind long code go above it; blocks of comments are spilled."""
    comments = _comments(lines)
    moved: List[str] = []
    for number, line in enumerate(lines):
        column = comments.get(number, -1)
        behind_code = column > 0 and line[:column].strip()
        if len(line) > WIDTH and behind_code and not _NEVER_REFLOWED.match(line[column:]):
            indent = line[: len(line) - len(line.lstrip())]
            moved += [indent + line[column:], line[:column].rstrip()]
        else:
            moved.append(line)
    comments = _comments(moved)
    result: List[str] = []
    number = 0
    while number < len(moved):
        end = number
        while end < len(moved) and _is_prose(moved[end], comments.get(end, -1)):
            end += 1
        result += _spill(moved[number:end], '# ') if end > number else [moved[number]]
        number = max(end, number + 1)
    return result


def _comments(lines: List[str]) -> Dict[int, int]:
    """Line (from 0) -> column of its comment."""
    return {token.start[0] - 1: token.start[1] for token in _tokens(lines) if token.type == tokenize.COMMENT}


def _is_prose(line: str, column: int) -> bool:
    """Whether a line is a comment alone, and text."""
    return column >= 0 and not line[:column].strip() and not _NEVER_REFLOWED.match(line)


def _tokens(lines: List[str]) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO('\n'.join(lines)).readline)


def _spill(lines: List[str], mark: str) -> List[str]:
    """Lines with what is too long moved to the front of the following line of the same paragraph, or to a line of its own."""
    pending, result = list(lines), []
    spilled = False  # whether the line at hand goes on with the one before
    while pending:
        line = pending.pop(0)
        cut = line.rfind(' ', 0, WIDTH + 1)
        start = len(line) - len(line.lstrip()) + len(mark)
        if len(line) <= WIDTH or cut <= start or not line[:cut].strip():
            result.append(line)
            spilled = False
            continue
        kept, rest = line[:cut].rstrip(), line[cut:].strip()
        result.append(kept)
        indent = line[: len(line) - len(line.lstrip())] if spilled else _continuation(line, mark)
        spilled = True
        if pending and _goes_on(pending[0], indent, mark):
            pending[0] = f'{indent}{mark}{rest} {pending[0].strip()[len(mark) :]}'
        else:
            pending.insert(0, f'{indent}{mark}{rest}')
    return result


def _continuation(line: str, mark: str) -> str:
    """The indent of what follows a line in its paragraph."""
    indent = line[: len(line) - len(line.lstrip())]
    text = line.strip()[len(mark) :]
    if mark or text.startswith(('"""', 'r"""')):
        return indent
    if text.startswith(('- ', '* ')):
        return indent + '  '
    return indent + '    ' if _ENTRY.match(text) and indent else indent


def _goes_on(line: str, indent: str, mark: str) -> bool:
    """Whether a line is the next one of a paragraph that is indented so."""
    if not line.strip() or line[: len(line) - len(line.lstrip())] != indent:
        return False
    text = line.strip()[len(mark) :]
    if not text or text.startswith((' ', '"""')):
        return False
    return not _STARTS_ANEW.match(text)


def _split_literals(lines: List[str]) -> List[str]:
    """Every literal that crosses the margin inside brackets split once, the last ones first."""
    lines = list(lines)
    for literal in reversed(list(_long_literals(lines))):
        place = _split_place(literal)
        if place:
            line = lines[literal.line]
            prefix = re.match(r'[a-zA-Z]*', literal.text).group()  # type: ignore[union-attr]
            quote = literal.text[len(prefix)]
            first = _requoted(prefix, quote, literal.text[len(prefix) + 1 : place])
            second = _requoted(prefix, quote, literal.text[place:-1])
            head, tail = line[: literal.start] + first, ' ' * literal.start + second + line[literal.end :]
            lines[literal.line : literal.line + 1] = [head, tail]
    return lines


def _requoted(prefix: str, quote: str, text: str) -> str:
    """A literal, in single quotes where nothing speaks against it."""
    quote = "'" if not set(text) & {'"', "'"} else quote
    return f'{prefix}{quote}{text}{quote}'


def _long_literals(lines: List[str]) -> Iterator[Literal]:
    """Literals between brackets, one a line at most, that end behind the margin."""
    depth, seen = 0, set()
    opened: List[Tuple[int, int]] = []
    for token in _tokens(lines):
        name = tokenize.tok_name[token.type]
        if token.type == tokenize.OP:
            depth += token.string in '([{'
            depth -= token.string in ')]}'
        if name == 'FSTRING_START':
            opened.append(token.start)
        found = None
        if token.type == tokenize.STRING and not opened:
            found = token.start, token.end
        elif name == 'FSTRING_END':
            start = opened.pop()
            found = None if opened else (start, token.end)
        if found is None or depth < 1 or found[0][0] != found[1][0]:
            continue
        (row, start), (_, end) = found
        if end > WIDTH and row not in seen:
            seen.add(row)
            yield Literal(row - 1, start, end, lines[row - 1][start:end])


def _split_place(literal: Literal) -> int:
    """Where in a literal's text to cut, behind a space: the last place before the margin; 0 if there is none."""
    prefix = re.match(r'[a-zA-Z]*', literal.text).group()  # type: ignore[union-attr]
    quote = literal.text[len(prefix)]
    if literal.text[len(prefix) :].startswith(quote * 3):
        return 0
    formatted, braces, best = 'f' in prefix.lower(), 0, 0
    index, limit = len(prefix) + 1, min(len(literal.text) - 1, WIDTH - literal.start - 1)
    while index < limit:
        character = literal.text[index]
        if character == '\\' and 'r' not in prefix.lower():
            index += 2
            continue
        if formatted and literal.text[index : index + 2] in ('{{', '}}') and not braces:
            index += 2
            continue
        if formatted:
            braces += (character == '{') - (character == '}')
        index += 1
        if character == ' ' and not braces and index < len(literal.text) - 1:
            best = index
    return best
