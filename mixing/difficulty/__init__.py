"""Sources that follow the policy: windows on its pass rate, curricula."""
