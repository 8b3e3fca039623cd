"""The price of KL to the reference, moved so that the policy stays at a wanted distance."""

from dataclasses import dataclass


@dataclass
class KLControl:
    """beta <- beta (1 + rate e), e = clip((KL - target) / target, -0.2, 0.2), once a round; target 0 leaves beta as it is.

    By hand, beta 0.05, target 6 nats, rate 0.1: KL 6.6 gives e = 0.1 and beta 0.0505; KL 60 gives e = 0.2 and beta 0.051.

    Source: Ziegler et al. 2019, section 2.2.
    """

    coefficient: float
    target_nats: float
    rate: float

    def follow(self, kl_nats: float) -> None:
        """Take in the KL of a round, in nats per completion."""
        if self.target_nats:
            error = min(max(kl_nats / self.target_nats - 1, -0.2), 0.2)
            self.coefficient *= 1 + self.rate * error
