"""What a request must hold before anything is spent on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedmedgen.errors import EgressError, PolicyError, SettingsError
from fedmedgen.federation import egress, local_statistics, plan
from fedmedgen.federation.described import described
from fedmedgen.federation.messages import Request, digest_of
from fedmedgen.federation.model_arrays import public_shapes, shapes_of
from fedmedgen.federation.policy import SitePolicy, check_request, check_statistics

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Expected:
    """Shapes of what must come with a request, of what answers it, and of the public arrays that it rests on."""

    asked: Shapes
    answer: Shapes
    public: Shapes = field(default_factory=dict)


def expected_of(policy: SitePolicy, request: Request) -> Expected:
    """What the request's own settings say that it holds and what answers it.

    **Raises** `PolicyError` where that is nothing, or more than the site allows.
    """
    if request.stage != plan.STATISTICS:
        return _of_network(policy, request)
    settings = request.settings
    dimension = local_statistics.dimension_of(request.arrays, request.round)
    wanted = settings.statistics.dimension if request.round == 1 else 0
    if dimension == 0 or wanted not in (0, dimension):
        raise PolicyError(f"the request asks about {dimension} coefficients; its settings say otherwise")
    size = local_statistics.layout_of(settings, dimension, request.round).size
    check_statistics(policy, dimension=dimension, size=size)
    asked = local_statistics.request_shapes(settings, dimension, request.round)
    return Expected(asked, local_statistics.reply_shapes(settings, dimension, request.round))


def _of_network(policy: SitePolicy, request: Request) -> Expected:
    """Found without taking memory for the network."""
    try:
        model = described(request.settings, request.stage)
    except SettingsError as error:
        raise PolicyError(f"the request describes no network that can be built: {error}") from error
    parameters = sum(value.numel() for value in model.parameters())
    check_request(policy, request.settings, parameters=parameters, stage=request.stage)
    shared = shapes_of(model, "shared")
    return Expected(shared, shared, public_shapes(model))


def check_round(request: Request) -> None:
    """Refuse a round that the stage lacks."""
    rounds = plan.stage_named(request.settings, request.stage).rounds
    if not 1 <= request.round <= rounds:
        raise PolicyError(f"the request is for round {request.round}; the {request.stage} has rounds 1 to {rounds}")


def check_arrays(request: Request, expected: Expected) -> None:
    """Refuse arrays that aren't those of the stage's network or basis, and public ones that aren't what it rests on."""
    asked = (
        "basis or features don't fit its study" if request.stage == plan.STATISTICS else "weights don't fit its network"
    )
    _check(request.arrays, expected.asked, f"the request's {asked}")
    if bool(request.public) != bool(expected.public):
        word = "no" if expected.public else "a"
        raise PolicyError(f"the request names {word} hash of public arrays; its network has {len(expected.public)}")
    if request.public_arrays:
        check_public(request.public_arrays, expected)
        if digest_of(request.public_arrays) != request.public:
            raise PolicyError("the request's public arrays are not those whose hash it names")
    if "basis.scale" in request.arrays and not (request.arrays["basis.scale"] > 0).all():
        raise PolicyError("the request's basis has scales that are not above 0")


def check_public(arrays: egress.Arrays, expected: Expected) -> None:
    """Refuse public arrays, sent along or kept, that aren't the frozen parameters of the request's network."""
    _check(arrays, expected.public, "the request's public arrays don't fit its network")


def _check(arrays: egress.Arrays, shapes: Shapes, fault: str) -> None:
    try:
        egress.check_arrays(arrays, shapes)
    except EgressError as error:
        raise PolicyError(f"{fault}: {error}") from error
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise PolicyError("the request's arrays are not all finite")
