"""Write ``hospitals.csv``, from which all tasks start: 300 visits in three hospitals."""

from __future__ import annotations

import random
from pathlib import Path

HEADER = "hospital,patient,date,age,sex,pressure,outcome"


def main() -> None:
    """Write the file into the working folder."""
    draw = random.Random(0)
    rows = [HEADER]
    for visit in range(300):
        hospital = ("charite", "mayo", "ucla")[visit % 3]
        age, pressure = draw.randrange(20, 90), draw.randrange(90, 180)
        ill = age + pressure + draw.gauss(0, 15) > (180, 190, 200)[visit % 3]
        date = f"2026-{visit % 12 + 1:02d}-01"
        outcome = "ill" if ill else "well"
        rows.append(f"{hospital},{visit // 6},{date},{age},{'fm'[visit % 2]},{pressure},{outcome}")
    Path("hospitals.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
