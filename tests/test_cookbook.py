"""Every page of the cookbook: from raw data to a picture or a table, in at most 25 lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from fedlightning.__main__ import main

FOLDER = Path(__file__).parents[1] / "docs" / "cookbook"
OF_COMMANDS = [FOLDER / "study.md"]
PAGES = [page for page in sorted(FOLDER.glob("*.md")) if page not in OF_COMMANDS]
NEEDS = {
    "hospitals": ["pandas"], "regression": ["pandas"], "labels": ["pandas"], "timm": ["timm"],
    "algorithm": ["pandas"], "notebook": ["pandas"],
    "text": ["datasets", "transformers"], "next_word": ["datasets", "transformers"],
    "lora": ["datasets", "transformers", "peft"],
}  # fmt: skip
MOST_LINES = 25


def code_of(page: Path, languages: str = "python") -> str:
    return "\n".join(re.findall(rf"^```(?:{languages})\n(.*?)^```", page.read_text(), re.M | re.S))


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
    rows = [
        f"{('ulm', 'bonn')[n % 2]},{n % 7},{n % 5},{n % 7 // 4},{n % 5 // 3}" for n in range(60)
    ]
    (folder / "findings.csv").write_text("clinic,a,b,fever,cough\n" + "\n".join(rows) + "\n")
    pairs = {}
    for judge, liked in (("ann", 0), ("bob", 1)):
        two = rng.random((2, 20, 4)).astype(np.float32)
        first = two[0, :, liked] > two[1, :, liked]
        pairs[f"{judge}_chosen"] = np.where(first[:, None], two[0], two[1])
        pairs[f"{judge}_rejected"] = np.where(first[:, None], two[1], two[0])
    np.savez(folder / "pairs.npz", **pairs)


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


@pytest.mark.usefixtures("forked_runs")
def test_a_study_leads_from_raw_data_to_a_table(tmp_path):
    (page,) = OF_COMMANDS
    write_raw_data(tmp_path)
    (tmp_path / "study.yaml").write_text(code_of(page, "yaml"))
    for command in code_of(page, "bash").splitlines():
        assert main(shlex.split(command)[3:]) == 0
    table = (tmp_path / "study" / "tables" / "results.tex").read_text()
    assert all(name in table for name in ("FedAvg", "FedProx", "FedBABU", r"\bottomrule"))
    assert len(list((tmp_path / "study" / "figures").glob("*.pdf"))) == 4
    trials = (tmp_path / "study_tuning" / "trials.csv").read_text().splitlines()
    assert len(trials) == 1 + 3 * 2


@pytest.mark.parametrize("page", [*PAGES, *OF_COMMANDS], ids=lambda page: page.stem)
def test_a_page_is_short(page):
    code = code_of(page, "yaml|bash" if page in OF_COMMANDS else "python")
    lines = [line for line in code.splitlines() if line.strip()]
    assert 0 < len(lines) <= MOST_LINES
    assert all(len(line) <= 160 for line in lines)
