"""Hooks around steps, saving and loading: order, replacement, removal."""

from stepping import each, state_bits, steps, weights
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@each
def test_step_hooks_run_in_order_and_can_be_removed(cls, arguments) -> None:
    params, seen = weights(1), []
    optimizer = cls(params, **arguments)

    def note(word):
        def hook(opt, args, kwargs):
            assert opt is optimizer and isinstance(kwargs, dict)
            seen.append(word)

        return hook

    handles = [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_pre_hook(note("pre 2")),
        optimizer.register_step_post_hook(note("post")),
    ]
    try:
        optimizer.step()
        assert seen == ["global pre", "pre", "pre 2", "post", "global post"]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(seen) == 5


@each
def test_a_step_pre_hook_may_replace_the_arguments(cls, arguments) -> None:
    params, calls = weights(1), []
    optimizer = cls(params, **arguments)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: calls.append(1)), {}))
    optimizer.step()
    assert calls == [1]


@each
def test_state_dict_hooks_run_in_order_and_can_be_removed(cls, arguments) -> None:
    params, seen = weights(1), []
    optimizer = cls(params, **arguments)
    steps(optimizer, params, [0])
    handles = [
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("save pre")),
        optimizer.register_state_dict_post_hook(lambda o, s: {**s, "note": seen.append("save post") or "kept"}),
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("save first"), prepend=True),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("load pre")),
        optimizer.register_load_state_dict_pre_hook(lambda o, s: seen.append("load first"), prepend=True),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load post")),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load post first"), prepend=True),
    ]
    saved = optimizer.state_dict()
    assert saved["note"] == "kept"
    optimizer.load_state_dict(saved)
    expected = ["save first", "save pre", "save post", "load first", "load pre", "load post first", "load post"]
    assert seen == expected
    for handle in handles:
        handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == expected


@each
def test_a_load_pre_hook_may_replace_the_state_dict(cls, arguments) -> None:
    params, twins = weights(1), weights(1)
    optimizer, other = cls(params, **arguments), cls(twins, **{**arguments, "lr": 0.7})
    steps(optimizer, params, [0])
    other.register_load_state_dict_pre_hook(lambda o, s: {key: s["wrapped"][key] for key in ("state", "param_groups")})
    other.load_state_dict({"wrapped": optimizer.state_dict(), "state": {}, "param_groups": []})
    assert other.param_groups[0]["lr"] == arguments["lr"] and state_bits(other) == state_bits(optimizer)
