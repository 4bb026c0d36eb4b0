"""Admission: the checks of a request before its image is decoded, from the client's rate to the image's age."""

import time
from collections import OrderedDict

from models.imaging.geometry import Box, check_box
from server.access.bucket import Bucket
from server.catalog import ServedModel
from server.errors import InvalidError, NoExitError, TooManyRequestsError
from server.protocols.options import RequestOptions
from server.protocols.values import shown
from server.requests.budget import Budget

DAY_S = 86_400
"""The clocks of a client and this server differ by less. A time that differs by more is probably in another unit."""


class ClientLimit:
    """A bucket of tokens for each client address: `rate` requests a second, `burst` at once. Rate 0: no limit."""

    CLIENTS = 10_000
    """The number of addresses that are remembered; the least recently seen ones are forgotten first."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def check(self, client: str, now_s: float | None = None) -> None:
        """Take a token. Raises TooManyRequestsError when there is none."""
        if not self._rate:
            return
        now_s = time.monotonic() if now_s is None else now_s
        if client not in self._buckets:
            self._buckets[client] = Bucket(self._rate, self._burst, now_s)
            if len(self._buckets) > self.CLIENTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(client)
        self.check_token(client, now_s)
        self._buckets[client].take(1, now_s)

    def check_token(self, client: str, now_s: float | None = None) -> None:
        """Raises TooManyRequestsError if `check` would now."""
        bucket = self._buckets.get(client)
        if bucket is None:
            return
        wait_s = bucket.wait_s(1, time.monotonic() if now_s is None else now_s)
        if wait_s:
            raise TooManyRequestsError(
                f"{client} may send {self._rate:g} requests a second and {self._burst} at once; wait before the next",
                "client_limit",
                wait_s,
            )


def check_options(options: RequestOptions, model: ServedModel, *, calibrated: bool) -> None:
    """Raises InvalidError if `model` cannot do what is asked. `calibrated`: it can stop by quality."""
    exits = model.config.exits
    for name, value in (("min_exit", options.min_exit), ("max_exit", options.max_exit)):
        if value is not None and value > exits:
            raise InvalidError(f"{name} is {shown(value)}; {model.name} has exits 1 to {exits}", "bad_parameter")
    if options.quality is not None and not calibrated:
        raise InvalidError(
            f"quality is {options.quality:g}, but {model.name} is not calibrated for it; leave it out or use max_exit "
            "(whoever runs the server can calibrate the model: python -m models calibrate)",
            "not_calibrated",
        )
    if options.classes is not None:
        model.class_numbers(options.classes)
    if options.roi is not None and model.config.task == "pose":
        raise InvalidError(f"roi is for segmentation; {model.name} does pose: give the person's box", "bad_roi")
    if options.box is not None and model.config.task != "pose":
        raise InvalidError(f"box is for pose; {model.name} does segmentation: leave it out", "bad_box")


def image_age_s(options: RequestOptions, arrived_s: float) -> float:
    """The age of a request's image when the request arrived at `arrived_s`, by the clock of whoever captured it; 0 if
    that is not told, or lies in the future. Raises InvalidError if it lies more than a day in the future."""
    if options.captured_at is None:
        return 0.0
    age_s = time.time() - (time.monotonic() - arrived_s) - options.captured_at
    if age_s < -DAY_S:
        raise InvalidError(
            f"captured_at is {options.captured_at:.15g}, which is more than a day after now; give the time in seconds "
            "since 1970, not in milliseconds",
            "bad_parameter",
        )
    return max(0.0, age_s)


def check_fresh(age_s: float, budget_s: float) -> None:
    """Raises NoExitError if an image was `age_s` seconds old on arrival, and its deadline, `budget_s` after it was
    captured or sent, was over by then."""
    if age_s and age_s >= budget_s:
        remedy = "send a newer one, or give a later deadline_ms"
        if age_s > DAY_S:
            remedy = "captured_at and X-Request-Start must be in seconds since 1970"
        raise NoExitError(
            f"the image was {1000 * age_s:.0f} ms old on arrival, and it was due {1000 * budget_s:.0f} ms after it was "
            f"captured or sent; {remedy}",
            "stale",
        )


def lasting_exit(budget: Budget, options: RequestOptions) -> int:
    """The last exit of a request, whatever the traffic. Raises InvalidError if the request requires a deeper one."""
    limit = budget.lasting
    assert limit is not None and limit.max_exit is not None  # every model has a last exit
    if options.required > limit.max_exit:
        raise InvalidError(
            f"min_exit is {options.required}, but {limit.why}; ask for less, or give best_effort=true",
            "bad_parameter",
        )
    return limit.max_exit


def check_person(box: Box, height: int, width: int) -> None:
    """Raises InvalidError if `geometry.check_box` refuses a person's box in a `width` x `height` image."""
    try:
        check_box(box, height, width)
    except ValueError as error:
        raise InvalidError(str(error), "bad_box") from error
