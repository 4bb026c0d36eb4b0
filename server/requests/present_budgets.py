"""Present budgets: what the policies allow under the traffic of this moment."""

from collections.abc import Callable
from dataclasses import replace

from server.requests.budget import Asked, Budget, Traffic
from server.requests.policies import Policies


class PresentBudgets:
    """The budgets that requests get now. `traffic` tells the traffic, which is asked only if a policy depends on it."""

    def __init__(self, policies: Policies, traffic: Callable[[], Traffic]) -> None:
        self._policies = policies
        self._traffic = traffic

    def budget(self, asked: Asked, *, more: bool) -> Budget:
        """What a request may spend. `more`: the traffic does not count it as open yet."""
        if not self._policies.of_moment:
            return self._policies.budget(asked)
        traffic = self._traffic()
        return self._policies.budget(asked, replace(traffic, open_requests=traffic.open_requests + more))

    def deepest(self) -> int | None:
        """The deepest exit that the traffic allows; None: any."""
        return self._policies.deepest(self._traffic()) if self._policies.of_moment else None
