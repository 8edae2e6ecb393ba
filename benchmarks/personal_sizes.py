"""What a client's own part takes on the disk, beside the full model: a table.

python benchmarks/personal_sizes.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedlightning import FederatedModule
from fedlightning.core.state import live_state
from fedlightning.models import Conv4, MobileNet
from fedlightning.personalization.models import export_model
from fedlightning.personalization.models.writer import About, PersonalWriter, state_digest


def file_size(module: FederatedModule, part: str, folder: Path) -> int:
    """Return the bytes of a client's file that holds a part."""
    writer = PersonalWriter(folder, About(319, part, state_digest(live_state(module))))
    writer.open()
    writer.keep(42, module.part_state_dict(part))
    writer.publish()
    return (folder / "personalized" / "client_00042.safetensors").stat().st_size


def main() -> None:
    """Print the table."""
    print("| model | head, bytes | full, bytes | head / full | 100 heads | 100 full models |")
    print("|---|---|---|---|---|---|")
    for module in (Conv4(num_classes=10), MobileNet(num_classes=100)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            head = file_size(module, "head", folder)
            full = export_model(module, folder / "full.safetensors").stat().st_size
        print(
            f"| {type(module).__name__} | {head:,} | {full:,} | 1 / {full / head:.0f} | "
            f"{head / 1e4:,.1f} MB | {full / 1e4:,.1f} MB |"
        )


if __name__ == "__main__":
    main()
