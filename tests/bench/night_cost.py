"""What a night of 100 experiments costs: tokens and dollars, from the usage that the loopback server counts.

    python tests/bench/night_cost.py [--experiments 100] [--thinking 4000]

Real prompts of the repository's own program.md and train.py, the real SDK over HTTP, real prefix matching of the cache
marks against a clock that advances 320 s an experiment. Assumed: every proposal is the model's, 18 % are kept (each
moves the incumbent), 4 % of the answers need a repair, 4 000 tokens of thinking a call. The token counter is the
server's own, an approximation; the last prompt is also counted at 2.5 and at 3.5 characters a token.
"""

import argparse
import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_server import ModelServer, answer  # noqa: E402

from lab.edits import AREAS, KINDS  # noqa: E402
from lab.ledger import Row, Status  # noqa: E402
from lab.model import PRICES, Researcher, cost_usd  # noqa: E402
from lab.prompt import Prompt, Situation, build_prompt, mend_prompt  # noqa: E402

SECONDS, KEPT, REPAIRED = 320, 0.18, 0.04
IDEAS = ("raise the matrix learning rate from 0.04 to 0.05", "window of the short layers from T/8 to T/6",
         "hashed bigram table with 2^17 rows", "remove the gate of the value embeddings",
         "warm down over the last 60 % in place of 75 %", "squared ReLU with a learnt slope in the last three layers")


def edit(line: str, new: str) -> str:
    reasoning = "The last results suggest that this part is limited by the number of steps. " * 6
    return (f"<description>{line.strip()[:80]} changed</description>\n<reasoning>\n{reasoning}\n</reasoning>\n"
            f"<<<<<<< SEARCH\n{line}\n=======\n{new}\n>>>>>>> REPLACE\n")


def night(experiments: int, thinking: int) -> tuple[list[dict], float, Prompt]:
    """Play the night: every call's usage, what the researcher says it cost, and the last prompt."""
    rng, clock, code = random.Random(0), [0.0], (ROOT / "train.py").read_text()
    program = (ROOT / "program.md").read_text()
    spent_usd, ideas = 0.0, {}
    rows = [Row("c0", 0.9660, status=Status.KEEP, description="baseline", source="baseline", when="00000")]
    best, best_at = 0.9660, "c0"
    log = "\n".join(f"step {i} | {i // 10}% | loss {4 - i / 400:.4f} | 1234567 tok/s" for i in range(0, 1000, 7))
    facts = "start 21.3 s (41 s are free), 1987 batches of 151.1 ms, score 8.1 s (480 s allowed), 43.91 of 140 GB"

    def reply(request: dict) -> object:
        lines = [line for line in code.split("\n") if code.split("\n").count(line) == 1 and line.strip()]
        broken = len(request["messages"]) == 1 and rng.random() < REPAIRED
        line = lines[rng.randrange(len(lines))]
        return answer(edit("not a line of the file" if broken else line, f"{line}  # {len(rows)}"), thinking=thinking)

    with ModelServer([reply], clock=lambda: clock[0]) as server:
        os.environ |= {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "none"}
        researcher = Researcher("claude-opus-5-5")
        for number in range(1, experiments + 1):
            prompt = build_prompt(Situation(program, {"budget": "300 s", "device": "one GPU"}, code, rows,
                                            logs={row.experiment: log for row in rows[-4:]}, sigma=0.0004,
                                            profiles={row.experiment: facts for row in rows[-4:]}, ideas=ideas))
            ideas[number] = {"kind": KINDS[number % 4], "area": AREAS[number % 15], "reasoning": "more steps " * 20}
            proposal = researcher.propose(prompt, ()).proposal
            spent_usd += proposal.usd
            gain = rng.random() < KEPT
            value = best + (-1 if gain else 1) * rng.uniform(0.0001, 0.002)
            idea = f"{IDEAS[number % len(IDEAS)]}, variant {number}: it should give more steps in the same time"
            rows.append(Row(f"c{number}", value, 44.0, Status.KEEP if gain else Status.DISCARD, idea, number, best_at,
                            source="claude-opus-5-5", tokens_m=480, params_m=95, when=f"{number:05d}"))
            if gain:
                best, best_at, code = value, f"c{number}", proposal.code
            clock[0] += SECONDS
        return server.usages, spent_usd, prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=100)
    parser.add_argument("--thinking", type=int, default=4_000, help="output tokens a call beside its text")
    options = parser.parse_args()
    usages, spent_usd, prompt = night(options.experiments, options.thinking)
    total = {name: sum(usage[name] for usage in usages) for name in usages[0]}
    inputs = sum(total.values()) - total["output_tokens"]
    print(f"{options.experiments} experiments, {len(usages)} calls, {inputs / len(usages):,.0f} input tokens a call")
    mend = mend_prompt(prompt, prompt.code + "broken = 1\n", "Traceback: boom\n" * 999)
    for name, n_chars in (("last prompt", len(prompt.text())), ("mend of a crash", len(mend.text()))):
        print(f"  the {name}: {n_chars:,d} characters, {n_chars / 3.5:,.0f} to {n_chars / 2.5:,.0f} tokens; without "
              f"program.md and train.py {n_chars - len(prompt.fixed[0]) - len(prompt.fixed[2]):,d} characters")
    for name in ("cache_read_input_tokens", "cache_creation_input_tokens", "input_tokens"):
        print(f"  {name:28s} {total[name]:10,d}  {total[name] / inputs:6.1%} of the input")
    print(f"  {'output_tokens':28s} {total['output_tokens']:10,d}")
    assert abs(spent_usd - cost_usd(PRICES["claude-opus-5-5"], total)) < 1e-6
    for model, price in PRICES.items():
        uncached = cost_usd(price, {"input_tokens": inputs, "output_tokens": total["output_tokens"]})
        print(f"  {model:20s} ${cost_usd(price, total):7.2f} a night, ${uncached:7.2f} without the cache")


if __name__ == "__main__":
    main()
