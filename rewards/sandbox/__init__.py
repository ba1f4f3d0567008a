"""A jail for code that a model wrote: tiers, the warm zygote, limits, and what a run gave back.

`tiers` chooses the strongest one that its own self-test finds to hold here, `jail` runs one input
after another, each in a process of its own. What lies in `inside` is imported by the parent and,
with nothing else of ours, by the process in the jail.
"""
