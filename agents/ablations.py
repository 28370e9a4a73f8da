"""Variants of STORM+PG that switch off one of its parts each: name on the command line and what it shows."""

PAPER = (
    "storm_plus_pg[momentum='storm+',step_memory=None,metric='euclidean',target_kl=None,reuse_rollouts=1,"
    "use_action_values=False]"
)

ABLATIONS: dict[str, str] = {
    "storm_plus_pg[momentum=1.0]": "no recursion",
    "storm_plus_pg[use_action_values=False]": "no action values",
    "storm_plus_pg[step_memory=None]": "STORM+'s step with the paper's sum over all updates",
    "storm_plus_pg[target_kl=None]": "STORM+'s step without a bound",
    "storm_plus_pg[step_kl=0.01]": "steps of constant KL 0.01",
    "storm_plus_pg[step_kl=0.02]": "steps of constant KL 0.02",
    "storm_plus_pg[step_kl=0.04]": "steps of constant KL 0.04",
    "storm_plus_pg[momentum=1.0,step_kl=0.02]": "neither recursion nor STORM+'s step",
    "storm_plus_pg[corrected=False]": "plain momentum",
    "storm_plus_pg[momentum=0.3]": "STORM with constant a = 0.3",
    "storm_plus_pg[momentum='storm+']": "the paper's schedule of a",
    "storm_plus_pg[weights='per_decision']": "weights per decision",
    "storm_plus_pg[weights='trajectory']": "weights per trajectory",
    "storm_plus_pg[fisher_rollouts=1]": "Fisher matrix on the newest rollout's states alone",
    "storm_plus_pg[advantage_floor=0.0]": "plain standardisation of advantages",
    "storm_plus_pg[reuse_rollouts=1]": "the newest rollout alone",
    "storm_plus_pg[reuse_rollouts=1,momentum=1.0]": "the newest rollout alone, no recursion",
    "storm_plus_pg[metric='euclidean',target_kl=None]": "Euclidean metric",
    PAPER: "the paper's STORM+ as it stands",
}

RENAMED: dict[str, str] = {
    "storm_plus_pg[weights='decision']": "storm_plus_pg[weights='per_decision']",
    "storm_plus_pg[metric='euclidean']": "storm_plus_pg[metric='euclidean',target_kl=None]",
    "storm_plus_pg[momentum='storm+',momentum_floor=0.0,metric='euclidean',max_kl=None,reuse_rollouts=1]": (
        "storm_plus_pg[momentum='storm+',momentum_floor=0.0,metric='euclidean',target_kl=None,reuse_rollouts=1]"
    ),
    "storm_plus_pg[momentum='storm+',metric='euclidean',target_kl=None,reuse_rollouts=1]": PAPER,
}
"""Names under which stored runs of version 0.1 know these variants, and their names now."""
