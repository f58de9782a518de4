"""The measurement of what left-out patches save works, at a size that says nothing about speed."""

from __future__ import annotations

from .tokens import build, decode, measure, passes


def test_each_arm_is_measured_against_all_patches() -> None:
    backbone = build({"model": "test_vit", "patch_size": 4}, 16)
    arms = passes(backbone, 16, 2, 0.25)
    seen: list[int] = []
    backbone.model.blocks[0].register_forward_hook(  # type: ignore[union-attr, operator]
        lambda _, given, found: seen.append(found.shape[1])
    )
    found = dict(measure(arms, 3))
    assert seen == [17, 5, 17, 5, 5, 17, 17, 5]  # once before the rounds, which turn about
    assert found["some"].n == 3
    assert found["some"].median > 0.0
    decode(16, backbone.token_layout, 2)  # is built
