"""YAML that means harm, or that libraries stumble over."""

HOSTILE_YAML = [
    "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n"
                              for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\n"
    + "".join(f"{c}: &{c} {{<<: [*{b}, *{b}]}}\n" for b, c in zip("bcdefg", "cdefgh", strict=True)),
    "data: &d {kind: facts, more: *d}\n",
    "data: " + "[" * 200 + "]" * 200,
    "data: " + "[" * 5000,
    "data: {kind: !!python/object/apply:os.system ['true']}",
    "data: !!bool perhaps",
    "data: !!timestamp now",
    "data: !!int ''",
    "data: 0001-01-01T00:00:00+23:59",
    "data: !!binary /w==",
    "? {a: b}\n: c",
    "training: {seed: 0x" + "f" * 5000 + "}",
    "training: {seed: " + "9" * 5000 + "}",
    "extends: ~nobody/recipe.yaml",
    "extends: " + "x" * 5000,
    'extends: "a\\0b"',
]  # fmt: skip
