"""Memory that training frees stays with the process, and goes back to the system afterwards."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import pytest

from fedlightning import FedAvg
from fedlightning.engine.freed_memory import FreedMemory
from tests.toys import fit, net, same, state

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

FAULTS = """
import resource, sys
import torch
from fedlightning.engine.freed_memory import FreedMemory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(10_000_000) for _ in range(2)]  # 40 MB each: always mapped anew
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

torch.set_num_threads(1)
memory = FreedMemory(sys.argv[1] == "yes")
kept = memory.keep()
for _ in range(4):
    faults()  # the first pages are new in any case, and the heap has to settle
again, before = faults(), resident()
memory.give_back()
print(kept, again, before - resident())
"""


def measure(wanted: str, **env: str) -> tuple[bool, int, int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, wanted], env={**os.environ, **env},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, faults, given_back = done.stdout.split()
    return kept == "True", int(faults), int(given_back)


@glibc_only
def test_freed_pages_are_used_again_and_given_back_at_the_end():
    kept, faults, given_back = measure("yes")
    pages = 5 * 2 * 40_000_000 // 4096
    assert kept
    assert faults < pages / 20
    assert given_back * 4096 > 2 * 35_000_000
    kept, faults, _ = measure("no")
    assert not kept
    assert faults > pages / 2


@glibc_only
@pytest.mark.parametrize(
    "env",
    [{"MALLOC_TOP_PAD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}],
    ids=str,
)
def test_settings_of_the_user_are_left_alone(env):
    assert not measure("yes", **env)[0]


@glibc_only
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_another_allocator_is_left_alone(tmp_path):
    source, library = tmp_path / "own.c", tmp_path / "own.so"
    source.write_text(
        "#include <stddef.h>\n"
        "extern void *__libc_malloc(size_t);\n"
        "void *malloc(size_t size) { return __libc_malloc(size); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert not measure("yes", LD_PRELOAD=str(library))[0]


def test_a_run_keeps_it_until_it_ends_and_no_bit_changes(monkeypatch):
    calls = []
    for name in ("keep", "give_back"):
        own = getattr(FreedMemory, name)
        monkeypatch.setattr(
            FreedMemory, name, lambda self, own=own, name=name: (calls.append(name), own(self))[1]
        )
    results = []
    for wanted in (True, False):
        module = net(dropout=0.3)
        fit(module, FedAvg(), federation={"keep_freed_memory": wanted})
        results.append(state(module))
    assert calls == ["keep", "give_back"] * 2
    assert same(*results)
