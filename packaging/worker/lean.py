"""Data classes written out: what @dataclass makes at each import stands in the frozen module instead.

@dataclass with slots makes each class twice and puts the text of its methods together before it compiles them; that was
a third of a worker's time to hello. Only the form that biruda's data classes have is written out; any other stays as
it is. tests/static/test_lean.py holds the two against each other.
"""

import ast
from dataclasses import dataclass, field

OPTIONS = {"frozen", "slots", "kw_only"}
OWN = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__slots__", "__match_args__"}


@dataclass
class Shape:
    """What a class is to be made of."""

    options: set[str]
    annotations: list[ast.stmt] = field(default_factory=list)
    defaults: dict[str, str | None] = field(default_factory=dict)  # expressions, None where there is none
    factories: dict[str, str] = field(default_factory=dict)
    rest: list[ast.stmt] = field(default_factory=list)
    has_post_init: bool = False


def write_out(text: bytes) -> ast.Module:
    """A module's source as a syntax tree with its data classes written out; every line keeps its number."""
    tree = ast.parse(text)
    written = [write_out_class(node) if isinstance(node, ast.ClassDef) else False for node in tree.body]
    if any(written):
        after_docstring = int(ast.get_docstring(tree) is not None)
        tree.body[after_docstring:after_docstring] = ast.parse("import biruda_ready").body
    return tree


def write_out_class(node: ast.ClassDef) -> bool:
    """Change a class in place; whether it was one that can be."""
    shape = shape_of(node)
    if shape is None:
        return False
    head = node.body[:1] if ast.get_docstring(node) is not None else []
    node.decorator_list = []
    added = ast.parse(members(shape))
    for inner in ast.walk(added):
        ast.copy_location(inner, node)
    node.body = [*head, *added.body, *shape.annotations, *shape.rest]
    return True


def shape_of(node: ast.ClassDef) -> Shape | None:
    """None where a class is none of ours, or has something that is not written out."""
    options = options_of(node)
    if options is None or "slots" not in options or node.bases or node.keywords:
        return None
    shape = Shape(options)
    for statement in node.body[int(ast.get_docstring(node) is not None) :]:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if not take_field(shape, statement.target.id, statement):
                return None
        else:
            shape.rest.append(statement)
            name = getattr(statement, "name", "")
            if name in OWN or isinstance(statement, ast.Assign | ast.AnnAssign):
                return None
            shape.has_post_init |= name == "__post_init__"
    return shape


def options_of(node: ast.ClassDef) -> set[str] | None:
    if len(node.decorator_list) != 1 or not isinstance(call := node.decorator_list[0], ast.Call):
        return None
    if not isinstance(call.func, ast.Name) or call.func.id != "dataclass" or call.args:
        return None
    are_set = all(isinstance(word.value, ast.Constant) and word.value.value is True for word in call.keywords)
    names = {word.arg or "" for word in call.keywords}
    return names if are_set and names <= OPTIONS else None


def take_field(shape: Shape, name: str, statement: ast.AnnAssign) -> bool:
    """Note one field; whether it can be written out."""
    if "ClassVar" in ast.unparse(statement.annotation) or "InitVar" in ast.unparse(statement.annotation):
        return False
    value = statement.value
    shape.annotations.append(statement)
    shape.defaults[name] = ast.unparse(value) if value is not None else None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "field":
        (word,) = value.keywords if len(value.keywords) == 1 and not value.args else (None,)
        if word is None or word.arg != "default_factory" or not isinstance(word.value, ast.Name):
            return False
        shape.defaults[name] = "biruda_ready.MADE"
        shape.factories[name] = word.value.id
    statement.value = None
    return True


def members(shape: Shape) -> str:
    """The source of what @dataclass would add."""
    names = list(shape.defaults)
    are_keywords = "kw_only" in shape.options
    parameters = [name if value is None else f"{name}={value}" for name, value in shape.defaults.items()]
    signature = ", ".join(["self", *(["*"] if are_keywords and parameters else []), *parameters])
    body = [
        f"if {name} is biruda_ready.MADE:\n        {name} = {factory}()" for name, factory in shape.factories.items()
    ]
    is_frozen = "frozen" in shape.options
    if is_frozen and names:
        body.append("biruda_set = object.__setattr__")
    body += [f"biruda_set(self, {name!r}, {name})" if is_frozen else f"self.{name} = {name}" for name in names]
    body += ["self.__post_init__()"] if shape.has_post_init else []
    shared = ["__repr__", "__eq__", "__hash__"] + (["__setattr__", "__delattr__"] if is_frozen else [])
    factories = ", ".join(f"{name!r}: {factory}" for name, factory in shape.factories.items())
    lines = [
        f"__slots__ = {tuple(names)!r}",
        f"__match_args__ = {() if are_keywords else tuple(names)!r}",
        f"__dataclass_fields__ = biruda_ready.Fields({{{factories}}}, {are_keywords})",
        f"{', '.join(shared)} = biruda_ready.{'FROZEN' if is_frozen else 'CHANGEABLE'}",
        f"def __init__({signature}):",
        *(f"    {line}" for line in body or ["pass"]),
    ]
    return "\n".join(lines)
