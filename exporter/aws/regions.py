"""The Regions that botocore knows."""

from __future__ import annotations

from botocore.loaders import create_loader


def known_regions() -> frozenset[str]:
    """The Regions of all partitions in botocore's `partitions.json`.

    `get_available_regions("ecr")` is not used: it lacks sa-west-1 and me-west-1 (botocore 1.44.5).
    """
    partitions = create_loader().load_data("partitions")["partitions"]
    return frozenset(region for partition in partitions for region in partition["regions"])
