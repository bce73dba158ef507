"""A GAN's decoder between the rounds, at the server."""

import numpy as np

from fedmedgen.composition import compose
from fedmedgen.federation import local_round
from fedmedgen.settings import Settings
from server.decoder import at_the_end, server_part
from server.public_arrays import ServerPart

TINY = ["study=demo", "data.size=[8,8]", "generator.width=16", "generator.norm_groups=4", "generator.code=4",
        "generator.decoder_steps=2", "rounds=3", "segmenter.rounds=0", "runtime.server_threads=1"]  # fmt: skip


def settings(family: str = "gan") -> Settings:
    return compose([*TINY, f"generator={family}"])


def after(rounds: int, part: ServerPart, *, first: int = 1) -> ServerPart:
    weights = local_round.trainable_arrays(local_round.build_generator(settings()))
    assert part.step is not None
    for number in range(first, rounds + 1):
        part.step(number, weights, part)
    return part


def fresh() -> ServerPart:
    return server_part(settings(), local_round.build_generator(settings()))


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_each_round_trains_the_decoder_and_nothing_else_is_public() -> None:
    start, later = fresh(), after(1, fresh())
    assert {name.partition(".")[0] for name in start.public} == {"decoder", "class_shares"}
    assert later.public.keys() == start.public.keys()
    assert not any(np.array_equal(value, start.public[name]) for name, value in later.public.items() if value.ndim > 1
                   and "class_embedding" not in name)  # fmt: skip


def test_a_part_restored_from_a_checkpoint_goes_on_bit_by_bit() -> None:
    unbroken, before, resumed = after(3, fresh()), after(2, fresh()), fresh()
    resumed.restore(before.groups())
    after(3, resumed, first=3)
    assert alike(unbroken.public, resumed.public)
    assert alike(unbroken.state, resumed.state)


def test_the_generator_ends_as_the_average_of_the_decoder() -> None:
    assert alike(at_the_end(fresh()), fresh().public)
    part = after(2, fresh())
    ending = at_the_end(part)
    assert ending.keys() == part.public.keys()
    assert not alike(ending, part.public)
    trained = [name for name in ending if name.startswith("decoder.")]
    assert len(trained) == len(ending) - 1
    assert alike({name: ending[name] for name in trained}, {name: part.state[name] for name in trained})


def test_a_family_that_trains_whole_at_the_sites_leaves_the_server_nothing_to_do() -> None:
    for family in ("unet", "vae"):
        part = server_part(settings(family), local_round.build_generator(settings(family)))
        assert (part.public, part.step) == ({}, None)
