"""Which claims name a pool or a pod, so that a change of either looks at no others. Pure."""

from collections import defaultdict
from collections.abc import Hashable

from sandboxpool.api.v1alpha1 import SandboxClaim

Key = tuple[str, str]


class ClaimIndex:
    """The keys of claims, by uid and by what the claims name."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Key] = {}
        # By uid again, in the order in which they came.
        self._by_name: defaultdict[Hashable, dict[str, Key]] = defaultdict(dict)

    def put(self, old: SandboxClaim | None, new: SandboxClaim | None) -> None:
        """Take in a change of one claim."""
        if old is not None and (new is None or new.uid != old.uid):
            self._by_uid.pop(old.uid, None)
        if new is not None:
            self._by_uid[new.uid] = new.key
        if old is not None:
            gone = _named_by(old) - (_named_by(new) if new and new.uid == old.uid else set())
            for name in gone:
                self._by_name[name].pop(old.uid, None)
                if not self._by_name[name]:
                    del self._by_name[name]
        if new is not None:
            for name in _named_by(new):
                self._by_name[name][new.uid] = new.key

    def get(self, uid: str) -> Key | None:
        """The claim with this uid."""
        return self._by_uid.get(uid)

    def of_pool(self, pool: Key) -> list[Key]:
        """The claims that name a pool and have not ended."""
        return list(self._by_name.get(pool, {}).values())

    def of_pod(self, uid: str) -> list[Key]:
        """The claims that say that they have a pod."""
        return list(self._by_name.get(uid, {}).values())


def _named_by(claim: SandboxClaim | None) -> set[Hashable]:
    """The claim's pool, as namespace and name, unless it has ended; and its pod's uid."""
    if claim is None:
        return set()
    named: set[Hashable] = set()
    if not claim.finished:
        named.add((claim.metadata.namespace, claim.spec.poolName))
    if claim.status.podUID:
        named.add(claim.status.podUID)
    return named
