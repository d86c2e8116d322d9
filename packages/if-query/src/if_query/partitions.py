"""Linear maps in groups whose statistics fit into memory together.

Groups are runs of neighbours in the model's order: maps that read the same input stand side by
side, and share what is computed from it. What is fitted for a map does not depend on its group.
"""

from collections.abc import Mapping


def fill_groups(sizes: Mapping[str, int], capacity: int) -> list[list[str]]:
    """Groups of neighbouring maps of at most ``capacity`` bytes; a larger map is one by itself.

    Args:
        sizes: bytes of every map, in the model's order.
        capacity: bytes of a group.
    """
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = capacity
        groups[-1].append(name)
        room -= size
    return groups


def capacity_of(sizes: Mapping[str, int], num_groups: int) -> int:
    """The smallest capacity under which maps fill at most so many groups.

    Args:
        sizes: bytes of every map, in the model's order; at least one map.
        num_groups: at least 1; more than there are maps means a group for each.
    """
    low, high = max(sizes.values()), sum(sizes.values())
    while low < high:
        middle = (low + high) // 2
        if len(fill_groups(sizes, middle)) <= num_groups:
            high = middle
        else:
            low = middle + 1
    return low
