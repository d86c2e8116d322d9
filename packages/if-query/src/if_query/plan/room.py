"""What is free for a plan: memory of the host, and the disk of the output folder."""

import shutil
from pathlib import Path

from if_query.device_memory import free_host_memory, held_memory
from if_query.plan.report import Plan, gigabytes


def describe_room(plan: Plan, folder: Path) -> list[str]:
    """A line that says what is free, and a warning for what the plan needs beyond it.

    What this process holds counts as free memory: the peaks of a plan count it too.

    Args:
        plan: of a command.
        folder: where the command would write; need not exist yet.
    """
    memory = free_host_memory() + held_memory().host
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    disk = shutil.disk_usage(place).free
    lines = [f"free now: {gigabytes(memory)} of host memory, {gigabytes(disk)} on disk at {place}"]
    total = plan.total
    if total.host > memory:
        lines.append(
            f"warning: {gigabytes(total.host)} of host memory are needed, {gigabytes(memory)} are "
            "there; lower the batch size, or track fewer --modules"
        )
    if total.disk > disk:
        lines.append(
            f"warning: {gigabytes(total.disk)} on disk are needed, {gigabytes(disk)} are there; "
            "choose another --output-dir, or track fewer --modules"
        )
    return lines
