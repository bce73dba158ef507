"""What a request must hold before anything is spent on it."""

from collections.abc import Mapping

import numpy as np

from fedmedgen.errors import EgressError, PolicyError
from fedmedgen.federation import egress, plan
from fedmedgen.federation.messages import Request

Shapes = Mapping[str, tuple[int, ...]]


def check_round(request: Request) -> None:
    """Refuse a round that the stage lacks."""
    rounds = plan.stage_named(request.settings, request.stage).rounds
    if not 1 <= request.round <= rounds:
        raise PolicyError(f"the request is for round {request.round}; the {request.stage} has rounds 1 to {rounds}")


def check_arrays(request: Request, asked: Shapes) -> None:
    """Refuse arrays that aren't those of the stage's network or basis."""
    try:
        egress.check_arrays(request.arrays, asked)
    except EgressError as error:
        what = (
            "basis or features don't fit its study"
            if request.stage == plan.STATISTICS
            else "weights don't fit its network"
        )
        raise PolicyError(f"the request's {what}: {error}") from error
    if not all(np.isfinite(array).all() for array in request.arrays.values()):
        raise PolicyError("the request's arrays are not all finite")
    if "basis.scale" in request.arrays and not (request.arrays["basis.scale"] > 0).all():
        raise PolicyError("the request's basis has scales that are not above 0")
