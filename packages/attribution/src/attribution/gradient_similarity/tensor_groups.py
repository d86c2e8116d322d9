"""Which parameter tensors belong together: by kind of component, and by layer."""

import re
from collections.abc import Iterable, Mapping

_LAYER = re.compile(r"\.(\d+)\.")


def tensor_groups(names: Iterable[str]) -> tuple[Mapping[str, list[str]], Mapping[str, list[str]]]:
    """Group parameter tensors by component type and by layer.

    ``model.layers.3.mlp.up_proj.weight`` is of type ``mlp.up_proj.weight`` and in layer ``3``.
    What is in no layer is a type by its whole name, and in the layer ``outside layers``.

    Returns:
        (names by component type, names by layer), in the order of first appearance.
    """
    types: dict[str, list[str]] = {}
    layers: dict[str, list[str]] = {}
    for name in names:
        found = _LAYER.search(name)
        kind = name if found is None else name[found.end() :]
        layer = "outside layers" if found is None else found.group(1)
        types.setdefault(kind, []).append(name)
        layers.setdefault(layer, []).append(name)
    return types, layers
