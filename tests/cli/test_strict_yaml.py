import time

import pytest

from fedlightning.cli.config.strict_yaml import check_config, check_text
from fedlightning.errors import ConfigError

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  lr: [0.1\n", "f.yaml:3: expected ',' or ']'"),
        ("- a\n", "f.yaml: top level must be a mapping, .* got a list"),
        ("just text", "top level must be a mapping, .* got a single value"),
        ("", "top level must be a mapping, .* the file is empty"),
        ("a: 1\nb:\n  lr: 1\n  x: 2\n  lr: 3\n", r"f.yaml: duplicate key lr \(lines 3, 5\)"),
        ("a: [{x: 1, x: 2}]", r"duplicate key x \(lines 1, 1\)"),
        (
            "a:\n  b: !!python/object/apply:os.system [ls]",
            "f.yaml:2: the tag !!python/.* not allowed",
        ),
        ("a: !mine 1", "f.yaml:1: the tag !mine is not allowed"),
        ("a: b: c", "f.yaml:1: mapping values .* quote a value with a colon"),
        ("a:\n\tb: 1", "f.yaml:2: .*indent with spaces"),
        ("a: &x [*x]", "f.yaml:1: an alias refers to itself"),
        ("a: *nope", "f.yaml:1: found undefined alias"),
        ("a: 1\n---\nb: 2", "f.yaml:2: expected a single document"),
        ("? [a]\n: 1", "f.yaml:1: a key must be a word"),
        ("a: \x00", "f.yaml: unacceptable character"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        check_config(text, "f.yaml")


def test_an_alias_bomb_is_refused_at_once():
    start = time.monotonic()
    with pytest.raises(ConfigError, match="too many aliases or values: it expands to 4412961516"):
        check_config(BOMB, "bomb.yaml")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (101, "deep.yaml:1: nested deeper than 100 levels"),
        (200_000, "deep.yaml:1: (nested deeper|exceeded maximum nesting)"),  # libyaml's own limit
    ],
)
def test_nesting_that_would_crash_libyaml_is_refused(depth, message):
    with pytest.raises(ConfigError, match=message):
        check_config("a: " + "[" * depth + "]" * depth, "deep.yaml")


def test_ordinary_yaml_passes_aliases_and_merges_included():
    check_config("a: &x {lr: 0.1}\nb: {<<: *x, lr: 1e-3}\nc: [*x, *x]\n", "ok.yaml")
    assert check_text("", "value") is None
