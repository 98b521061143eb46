"""What two-step sampling costs beside two bare forward passes: `python benchmarks/sampling.py`.

Both decode their samples; rounds alternate, medians are printed. Bar: a ratio of at most 1.1.
"""

from __future__ import annotations

import statistics

import torch
from timing import seconds

from scm_core.apps.opening import open_checkpoint
from scm_core.engine import sampling

ROUNDS = 15


@torch.no_grad()
def main() -> None:
    model = open_checkpoint(None, "image")
    draw = sampling.make_sampler(model, steps=2)
    for n in (1, 16, 128):
        condition = sampling.cycled_condition(model.condition, n)
        condition = {key: value.to(model.device) for key, value in condition.items()}
        x = sampling.seeded_noise(model.shape, n, 0, model.sigma_data).to(model.device)
        t = torch.full((n,), 1.1, device=model.device)

        def sample(x=x, condition=condition):
            return model.codec.decode(draw(model.model, x, condition))

        def bare(x=x, t=t, condition=condition):
            model.model(x, t, condition)
            return model.codec.decode(model.model(x, t, condition))

        for work in (sample, bare):
            work()
        rounds = [(seconds(sample), seconds(bare)) for _ in range(ROUNDS)]
        two, forwards = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b in rounds)
        print(
            f"batch {n:4d}: two steps {two:8.2f} ms, two forward passes {forwards:8.2f} ms, "
            f"ratio {ratio:.3f}"
        )


if __name__ == "__main__":
    main()
