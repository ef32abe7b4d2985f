"""What is fuzzed: of each target a strategy of cases, and what is done with one of them.

tests/fuzzing.py runs them: tests/integration/test_fuzz.py some hundred cases of each target,
benchmarks/fuzz.py ten thousand.
"""

from tests import fuzz_inputs, fuzz_runs, fuzz_servers

TARGETS = [*fuzz_inputs.TARGETS, *fuzz_servers.TARGETS, *fuzz_runs.TARGETS]
