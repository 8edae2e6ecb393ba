"""Every page of the cookbook: from raw data to a picture, in at most 25 lines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "cookbook").glob("*.md"))
NEEDS = {
    "hospitals": ["pandas"], "notebook": ["pandas"], "regression": ["pandas"], "timm": ["timm"],
    "text": ["datasets", "transformers"], "next_word": ["datasets", "transformers"],
    "lora": ["datasets", "transformers", "peft"],
}  # fmt: skip
MOST_LINES = 25


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))


def write_raw_data(folder: Path) -> None:
    """Write the files that the pages start from."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = [
        f"{('charite', 'mayo', 'ucla')[n % 3]},{n // 6},2026-{n % 12 + 1:02d}-01,"
        f"{rng.integers(20, 90)},"
        f"{'fm'[n % 2]},{rng.integers(90, 180)},{('ill', 'well')[n // 3 % 2]}"
        for n in range(90)
    ]
    header = "hospital,patient,date,age,sex,pressure,outcome\n"
    (folder / "hospitals.csv").write_text(header + "\n".join(rows) + "\n")
    rows = [f"{('ulm', 'bonn')[n % 2]},{40 + n},{n % 4 + 1},{100 + 2.5 * n}" for n in range(60)]
    (folder / "houses.csv").write_text("town,area,rooms,price\n" + "\n".join(rows) + "\n")
    rows = [
        f"{('ann', 'bob')[n % 2]},{('a fine day', 'rain all night')[n // 2 % 2]},{n // 2 % 2}"
        for n in range(40)
    ]
    (folder / "notes.csv").write_text("author,text,label\n" + "\n".join(rows) + "\n")
    for site, names in (("north", ("cat", "dog")), ("south", ("dog", "eel"))):
        for label, name in enumerate(names):
            place = folder / "sites" / site / name
            place.mkdir(parents=True)
            for at in range(10):
                Image.new("RGB", (20, 20), (25 * at, 200 * label, 0)).save(place / f"{at}.png")
    scans = {}
    for clinic in ("east", "west"):
        x = rng.random((10, 1, 16, 16)).astype(np.float32)
        scans |= {f"{clinic}_x": x, f"{clinic}_y": (x[:, 0] > 0.5).astype(np.int64)}
    np.savez(folder / "scans.npz", **scans)


@pytest.mark.pictures
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_leads_from_raw_data_to_a_picture(page, tmp_path, monkeypatch):
    for package in NEEDS.get(page.stem, ()):
        pytest.importorskip(package)
    write_raw_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = code_of(page)
    exec(compile(code, str(page), "exec"), {"__name__": "__cookbook__"})
    (picture,) = tmp_path.rglob("clients.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "client_name" in (picture.parent / "clients.csv").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short(page):
    lines = [line for line in code_of(page).splitlines() if line.strip()]
    assert 0 < len(lines) <= MOST_LINES
    assert all(len(line) <= 160 for line in lines)
