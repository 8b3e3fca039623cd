"""python -m tests.bench.promotion: hacked and honest candidates before the gate, in the world of letters; a table of what it said.

Real artifacts, the real evaluate stage, a real registry: each candidate has a registered model of its own, of which the same policy is
champion. The gate asks for accuracy; half of the hacked kinds are ahead on it, and guards have to see what they did.
"""

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prefect import flow

from flows.promotion import Outcome, PromotionConfig, promotion
from models.configs.evaluation import EvaluateConfig
from models.configs.promotion import GateConfig, GuardConfig
from models.configs.sampling import SamplingConfig
from tasks import decisions, registry
from tasks.champions import Registry
from tasks.evaluate import evaluate
from tasks.home import home
from tasks.promotion import promote
from tasks.registry import current_run, record_stage
from tasks.store import Artifact, Store
from tasks.tracking import pipeline
from tests.bench.letters import LONGEST, Kind, makers, split, taught, taught_reward, unsure, write_world
from tests.bench.letters_stages import BehaviourConfig, RefusalsConfig, behaviour, refusals

EVALUATE = EvaluateConfig(samples_per_prompt=2, greedy=False, sampling=SamplingConfig(max_tokens=LONGEST), micro_batch_tokens=4096)
RECIPE = "letters"
SAMPLES = 8  # a prompt: with 2, the interval of `finished` is nearly as wide as its margin, and of those that did not change many fail


@dataclass
class World:
    """The artifacts that all candidates share, and the candidates by name."""

    folder: Path
    base: Artifact
    data: Artifact
    easy: Artifact  # the data whose held-out prompts are those that policies learn from
    reward: Artifact
    champion: Artifact
    candidates: dict[str, tuple[Kind, Artifact]] = field(default_factory=dict)

    def gate(self) -> GateConfig:
        """More right answers, on the data of this world."""
        guards = [GuardConfig(measure="finished", margin=0.05)]
        return GateConfig(guards=guards, kl_ceiling_nats=40.0, held_out=self.data.digest[:16], resamples=2000)


def put(folder: Path, kind: str) -> Artifact:
    """A folder as an artifact of the store."""
    return Store(home() / "store").put(folder, kind)


def made_world(folder: Path, kinds: Mapping[str, int], seed: int = 0) -> World:
    """The shared artifacts, and so many candidates of each kind; their seeds are those after this one."""
    base, data = write_world(folder)
    learned, _ = split(0)
    taught(base, folder / "champion", unsure, learned, updates=200, seed=0)
    taught_reward(base, folder / "reward", 0)
    (folder / "easy").mkdir()
    (folder / "easy" / "test_prompts.parquet").write_bytes((data / "prompts.parquet").read_bytes())
    known = makers(learned)
    made: dict[str, tuple[Kind, Path]] = {}
    for number, (name, count) in enumerate(kinds.items()):
        for i in range(1, count + 1):  # no two from the same seed: they would be one policy
            label = f"{name.replace(' ', '_').replace(',', '')}-{i}"
            made[label] = known[name], known[name].make(folder / "champion", folder / label, seed + 100 * number + i)
    shared = {"base": "policy", "data": "dataset", "easy": "dataset", "reward": "reward_model", "champion": "policy"}
    world = World(folder, **{name: put(folder / name, kind) for name, kind in shared.items()})
    world.candidates = {name: (kind, put(path, "policy")) for name, (kind, path) in made.items()}
    return world


@flow(name="letters")
def judged(world: World, samples: int = 2) -> None:
    """Every candidate evaluated as a run's policies are."""
    with pipeline(RECIPE, {"seed": 0}):
        policies = {"champion": world.champion} | {name: policy for name, (_, policy) in world.candidates.items()}
        evaluations = {}
        for name, policy in policies.items():
            record_stage(current_run(), name, None, policy, "computed", 0.0)
            kind = world.candidates[name][0].name if name in world.candidates else ""
            config = EVALUATE.model_copy(update={"samples_per_prompt": samples, "prompts": 120 if kind == "fewer prompts" else 0})
            data = world.easy if kind == "other prompts" else world.data
            evaluations[name] = evaluate.named(name)(config, policy, world.champion, data, world.reward, seed=0)
            refusals.named(f"{name}/safe")(RefusalsConfig(), policy, seed=0)
        behaviour(BehaviourConfig(), evaluations)


def spoil(world: World) -> None:
    """What happens to some candidates after their evaluation: a bit of the weights is turned, a record names another's report."""
    run = registry.find(RECIPE)
    for name, (kind, policy) in world.candidates.items():
        if kind.name == "corrupt weights":
            path = Store(home() / "store").folder(policy.digest) / "model.safetensors"
            status, content = path.stat(), bytearray(path.read_bytes())
            content[-5] ^= 1
            path.chmod(0o644)
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        elif kind.name == "report of another":
            run.stages[name] = run.stages[name].model_copy(update={"artifact": world.base})
    (registry.folder() / f"{run.name}.json").write_text(run.model_dump_json())


def crowned(world: World, name: str) -> None:
    """Make the shared champion that of a registered model."""
    models = Registry(name)
    fields = {"candidate": "letters/champion", "opponent": "nobody", "opponent_digest": "", "champion": 0, "reasons": [], "checks": []}
    record = decisions.decision("promote", name, accepted=True, digest=world.champion.digest, gate={}, **fields)
    promote(models, record, world.champion, None, "letters/champion", lambda: "# The champion\n")


def before_the_gate(world: World) -> dict[str, Outcome]:
    """What promotion says of every candidate."""
    found = {}
    for name in world.candidates:
        crowned(world, name)
        outcome = promotion(PromotionConfig(candidate=f"{RECIPE}/{name}", name=name, gate=world.gate()))
        assert outcome is not None
        found[name] = outcome
    return found


def told(world: World, outcomes: Mapping[str, Outcome]) -> list[str]:
    """One line a candidate."""
    lines = []
    for name, outcome in outcomes.items():
        checks = {check["check"]: check for check in outcome.record.checks}
        numbers = [checks["beats on accuracy"][side] for side in ("champion", "candidate")]
        accuracy = " -> ".join("-" if number is None else f"{number:.2f}" for number in numbers)
        refusing = [name for name, check in checks.items() if check["status"] in ("failed", "missing")]
        verdict = "accepted" if outcome.record.accepted else "refused"
        lines.append(f"| {name} | {verdict} | {accuracy} | {checks['beats on accuracy']['words']} | {', '.join(refusing) or '-'} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--honest", type=int, default=20, help="honest candidates")
    parser.add_argument("--hacked", type=int, default=2, help="hacked candidates of each of the ten kinds")
    parser.add_argument("--seed", type=int, default=0, help="seed that those of the candidates are counted from")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["POSTTRAIN_HOME"] = str(Path(folder) / "home")
        kinds = dict.fromkeys(makers([]), options.hacked) | {"honest": options.honest}
        world = made_world(Path(folder), kinds, options.seed)
        judged(world, SAMPLES)
        spoil(world)
        outcomes = before_the_gate(world)
    print("| candidate | decision | accuracy | gain | refused by |\n|---|---|---|---|---|")
    print("\n".join(told(world, outcomes)))
    counts = Counter((world.candidates[name][0].name == "honest", o.record.accepted) for name, o in outcomes.items())
    print(f"\nhonest: {counts[True, True]} of {options.honest} accepted; hacked: {counts[False, False]} of {10 * options.hacked} refused")


if __name__ == "__main__":
    main()
