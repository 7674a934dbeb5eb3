"""What a night of 100 experiments costs: tokens and dollars, from the usage that the loopback server counts.

    python tests/bench/night_cost.py [--experiments 100] [--thinking 4000] [--tuner-share 0.3]

Real prompts of the repository's own program.md and train.py, the real SDK over HTTP, real prefix matching of the cache
marks against a clock that advances 320 s an experiment. Assumed: the tuner has its default share of the turns, 18 % of
all ideas are kept (each moves the incumbent), 8 % of the model's crash and are mended by one more call, 4 % of its
answers need a repair, 4 000 tokens of thinking a call, notes of 640 characters, a trial under way at each ask. The
token counter is the server's own, an approximation; the last prompt is also counted at 2.5 and at 3.5 characters a
token.
"""

import argparse
import os
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from model_server import ModelServer, answer  # noqa: E402

from lab.commandline import TUNER_SHARE  # noqa: E402
from lab.edits import AREAS, KINDS  # noqa: E402
from lab.ledger import Row, Status  # noqa: E402
from lab.model import PRICES, Researcher, cost_usd  # noqa: E402
from lab.prompt import Prompt, Situation, build_prompt, mend_prompt  # noqa: E402
from lab.turns import tuner_credit  # noqa: E402

MODEL = "claude-opus-5-5"
SECONDS, KEPT, CRASHED, REPAIRED = 320, 0.18, 0.08, 0.04
IDEAS = ("raise the matrix learning rate from 0.04 to 0.05", "window of the short layers from T/8 to T/6",
         "hashed bigram table with 2^17 rows", "remove the gate of the value embeddings",
         "warm down over the last 60 % in place of 75 %", "squared ReLU with a learnt slope in the last three layers")
FACTS = "1987 batches of 151.1 ms, 43.91 of 140 GB"
SHARES = ("1.02 passes over the data; start 21.3 s, 41 s are free; score 8.1 s, 480 s are allowed\n"
          "151.3 ms a step; functions with what they call: GPT.forward 38%, Tensor.backward 41%, Adam.step 6%\n"
          "kernels alone: triton_red_fused_add_mul_12 11%, flash_fwd 12%, flash_bwd 18%")


def edit(line: str, new: str) -> str:
    reasoning = "The last results suggest that this part is limited by the number of steps. " * 6
    return (f"<description>{line.strip()[:80]} changed</description>\n<reasoning>\n{reasoning}\n</reasoning>\n"
            f"<<<<<<< SEARCH\n{line}\n=======\n{new}\n>>>>>>> REPLACE\n<notes>\n{'what was learnt ' * 40}\n</notes>\n")


class Night:
    """What is known while it is played."""

    def __init__(self, thinking: int):
        self.rng, self.thinking, self.clock = random.Random(0), thinking, 0.0
        self.code, self.program = ((ROOT / name).read_text() for name in ("train.py", "program.md"))
        self.rows = [Row("c0", 0.9660, status=Status.KEEP, description="baseline", source="baseline")]
        self.ideas: dict[int, dict] = {}
        self.log = "\n".join(f"step {i} | {i // 10}% | loss {4 - i / 400:.4f}" for i in range(0, 1000, 7))

    def reply(self, request: dict) -> object:
        lines = [line for line in self.code.split("\n") if self.code.split("\n").count(line) == 1 and line.strip()]
        broken = len(request["messages"]) == 1 and self.rng.random() < REPAIRED
        line = lines[self.rng.randrange(len(lines))]
        text = edit("not a line of the file" if broken else line, f"{line}  # {len(self.rows)}")
        return answer(text, thinking=self.thinking)

    def prompt(self) -> Prompt:
        best = max(row.experiment for row in self.rows if row.status is Status.KEEP)
        last = {*range(max(0, len(self.rows) - 8), len(self.rows)), best}
        profiles = dict.fromkeys(last, FACTS) | {best: f"{FACTS}\n{SHARES}"}
        facts = {"budget": "300 s of training", "device": "NVIDIA H200", "corpus": "climbmix", "tokens": "480 M"}
        return build_prompt(Situation(
            self.program, facts, self.code, self.rows, logs=dict.fromkeys(last, self.log), sigma=0.0004,
            profiles=profiles, ideas=self.ideas, notes="what was learnt " * 40,
            running=[(IDEAS[0], self.code.replace("GPU_MATRIX_LR = 0.04", "GPU_MATRIX_LR = 0.05"))]))

    def judge(self, source: str, code: str, usd: float = 0.0, crashed: bool = False) -> None:
        """Write the row of an experiment, and move the incumbent where it is kept."""
        number = len(self.rows)
        n_kept = sum(row.status is Status.KEEP for row in self.rows) - 1
        kept = not crashed and n_kept < round(KEPT * number)
        best = next(row.val_bpb for row in reversed(self.rows) if row.status is Status.KEEP)
        value = best + (-1 if kept else 1) * self.rng.uniform(0.0001, 0.002)
        status = Status.CRASH if crashed else Status.KEEP if kept else Status.DISCARD
        self.rows.append(Row(f"c{number}", None if crashed else value, 44.0, status,
                             f"{IDEAS[number % 6]}, variant {number}: more steps in the same time", number,
                             source=source, tokens_m=480, params_m=95, usd=usd))
        if source != "tuner":
            said = {"kind": KINDS[number % 4], "area": AREAS[number % 15], "reasoning": "more steps " * 20}
            self.ideas[number] = said
        self.code = code if kept else self.code
        self.clock += SECONDS


def play(experiments: int, thinking: int, share: float) -> tuple[list[dict], Night]:
    """Every call's usage, and the night."""
    night = Night(thinking)
    with ModelServer([night.reply], clock=lambda: night.clock) as server:
        os.environ |= {"ANTHROPIC_BASE_URL": server.url, "ANTHROPIC_API_KEY": "none"}
        researcher = Researcher(MODEL)
        while len(night.rows) <= experiments:
            if tuner_credit([row.source for row in night.rows[1:]], share) >= 1:
                night.judge("tuner", f"{night.code}# {len(night.rows)}\n")
                continue
            prompt = night.prompt()
            idea = researcher.propose(prompt, ()).proposal
            crashed = night.rng.random() < CRASHED
            night.judge(MODEL, idea.code, idea.usd, crashed)
            if crashed:
                mend = researcher.repair(prompt, idea.code, "Traceback: boom\n" * 99).proposal
                night.judge(MODEL, mend.code, mend.usd)
        return server.usages, night


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=100)
    parser.add_argument("--thinking", type=int, default=4_000, help="output tokens a call beside its text")
    parser.add_argument("--tuner-share", type=float, default=TUNER_SHARE)
    options = parser.parse_args()
    usages, night = play(options.experiments, options.thinking, options.tuner_share)
    total = {name: sum(usage[name] for usage in usages) for name in usages[0]}
    inputs = sum(total.values()) - total["output_tokens"]
    n_ideas = sum(row.source == MODEL for row in night.rows)
    n_kept = sum(row.status is Status.KEEP for row in night.rows) - 1
    print(f"{options.experiments} experiments, {n_kept} kept, {n_ideas} by the model, {len(usages)} calls, "
          f"{inputs / len(usages):,.0f} input tokens a call")
    prompt = night.prompt()
    mend = mend_prompt(prompt, prompt.code + "broken = 1\n", "Traceback: boom\n" * 999)
    for name, asked in (("last prompt", prompt), ("mend of a crash", mend)):
        n_chars, n_fixed = len(asked.text()), len(asked.fixed[0]) + len(asked.fixed[2])
        print(f"  the {name}: {n_chars:,d} characters, {n_chars / 3.5:,.0f} to {n_chars / 2.5:,.0f} tokens; without "
              f"program.md and train.py {n_chars - n_fixed:,d} characters")
    for name in ("cache_read_input_tokens", "cache_creation_input_tokens", "input_tokens"):
        print(f"  {name:28s} {total[name]:10,d}  {total[name] / inputs:6.1%} of the input")
    print(f"  {'output_tokens':28s} {total['output_tokens']:10,d}")
    spent_usd = sum(row.usd for row in night.rows)
    assert abs(spent_usd - cost_usd(PRICES[MODEL], total)) < 1e-6
    for model, price in PRICES.items():
        uncached = cost_usd(price, {"input_tokens": inputs, "output_tokens": total["output_tokens"]})
        usd = cost_usd(price, total)
        print(f"  {model:20s} ${usd:7.2f} a night, ${usd / n_ideas:.3f} an idea of the model, ${uncached:7.2f} without "
              "the cache")


if __name__ == "__main__":
    main()
